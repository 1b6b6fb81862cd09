"""The data sets of the papers, in the folders that torchvision and the official archives create.

    <root>/cifar10/cifar-10-batches-py/data_batch_1 ...
    <root>/stl10/stl10_binary/train_X.bin ...
    <root>/svhn/train_32x32.mat, test_32x32.mat
    <root>/gtsrb/GTSRB/Final_Training/Images/00000/*.ppm ..., GTSRB/Final_Test/Images/*.ppm, GT-final_test.csv

If a folder contains the same set as Parquet, npz or an image folder, benchbd reads that, and takes from here only the
declared normalisation and, if the files have none, the class names.
"""

from __future__ import annotations

import csv
import io
import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchbd import DataAbsentError, DataError, Dataset, ImageSet, decode_images, hookimpl, resize_images

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Cifar10(Dataset):
    """CIFAR-10: 60,000 small photographs of animals and vehicles, in the Python version of the archive."""

    name = "cifar10"
    paper = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
    version = "1"
    splits = {"train": 50_000, "test": 10_000}
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    normalization = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

    def sources(self, split: str, root: Path) -> list[Path]:
        names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        return _existing(self.name, root, [f"cifar-10-batches-py/{name}" for name in names])

    def load(self, split: str, root: Path) -> ImageSet:
        batches = [_unpickle(path) for path in self.sources(split, root)]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        return _images(pixels, np.concatenate([batch["labels"] for batch in batches]), self.classes)

    def download(self, root: Path) -> None:
        url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
        _fetch(url, root / self.name, "c58f30108f718f92721af3b95e74349a")


class Stl10(Dataset):
    """STL-10: 5,000 training, 8,000 test and 100,000 unlabelled photographs, originally of 96x96 pixels."""

    name = "stl10"
    paper = "Coates et al., An Analysis of Single-Layer Networks in Unsupervised Feature Learning, AISTATS 2011"
    version = "1"
    splits = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}
    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    normalization = ((0.44087798, 0.42790666, 0.38678814), (0.25507198, 0.24801506, 0.25641308))

    def sources(self, split: str, root: Path) -> list[Path]:
        names = [f"{split}_X.bin"] if split == "unlabeled" else [f"{split}_X.bin", f"{split}_y.bin"]
        return _existing(self.name, root, [f"stl10_binary/{name}" for name in names])

    def load(self, split: str, root: Path) -> ImageSet:
        return self.load_at(split, root, 32)

    def load_at(self, split: str, root: Path, size: int) -> ImageSet:
        x, *y = self.sources(split, root)
        image = 3 * 96 * 96
        if not x.stat().st_size or x.stat().st_size % image:
            raise DataError(f"{x}: {x.stat().st_size} bytes are no whole number of 96x96 RGB images; unpack it again")
        # Stored column by column: (N, 3, width, height). Mapped, since the unlabelled part is 2.8 GB.
        stored = np.memmap(x, np.uint8, "c").reshape(-1, 3, 96, 96)
        pixels = resize_images(stored.transpose(0, 3, 2, 1), size).transpose(0, 3, 1, 2)
        labels = np.fromfile(y[0], np.uint8).astype(np.int64) - 1 if y else None
        return _images(pixels, labels, self.classes if y else (), y[0] if y else x)

    def download(self, root: Path) -> None:
        url = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
        _fetch(url, root / self.name, "91f7769df0f17e558f3565bffb0c7dfb")


class Svhn(Dataset):
    """SVHN, cropped digits: 73,257 training and 26,032 test pictures of house numbers; the extra set is not used."""

    name = "svhn"
    paper = "Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011"
    version = "1"
    splits = {"train": 73_257, "test": 26_032}
    classes = _DIGITS

    def sources(self, split: str, root: Path) -> list[Path]:
        return _existing(self.name, root, [f"{split}_32x32.mat"])

    def load(self, split: str, root: Path) -> ImageSet:
        [path] = self.sources(split, root)
        arrays = _read_mat(path)
        if not {"X", "y"} <= arrays.keys():
            raise DataError(f"{path}: holds {sorted(arrays)}, not the arrays X and y")
        x, y = arrays["X"], arrays["y"].reshape(-1).astype(np.int64)
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
            raise DataError(f"{path}: X must be uint8 (32, 32, 3, N), not {x.dtype} {x.shape}")
        if len(zero := np.flatnonzero(y == 0)):
            raise DataError(f"{path}: row {zero[0]}: label 0; the digit 0 is stored as 10")
        return _images(np.ascontiguousarray(x.transpose(3, 2, 0, 1)), np.where(y == 10, 0, y), self.classes, path)

    def download(self, root: Path) -> None:
        for split, md5 in (
            ("train", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test", "eb5a983be6a315427106f1b164d9cef3"),
        ):
            _fetch(f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat", root / self.name, md5)


class Gtsrb(Dataset):
    """GTSRB: the official 39,209 training and 12,630 test pictures of 43 German traffic signs, not cropped.

    torchvision's GTSRB reads another training archive, with 26,640 pictures, which is not accepted.
    """

    name = "gtsrb"
    paper = "Stallkamp et al., Man vs. computer, Neural Networks 32, 2012"
    version = "1"
    splits = {"train": 39_209, "test": 12_630}
    classes = (
        "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70", "speed limit 80",
        "end of speed limit 80", "speed limit 100", "speed limit 120", "no passing",
        "no passing for vehicles over 3.5t", "right-of-way at next intersection", "priority road", "yield", "stop",
        "no vehicles", "vehicles over 3.5t prohibited", "no entry", "general caution", "dangerous curve left",
        "dangerous curve right", "double curve", "bumpy road", "slippery road", "road narrows on the right",
        "road work", "traffic signals", "pedestrians", "children crossing", "bicycles crossing", "beware of ice/snow",
        "wild animals crossing", "end of all speed and passing limits", "turn right ahead", "turn left ahead",
        "ahead only", "go straight or right", "go straight or left", "keep right", "keep left",
        "roundabout mandatory", "end of no passing", "end of no passing for vehicles over 3.5t",
    )  # fmt: skip

    def sources(self, split: str, root: Path) -> list[Path]:
        """Train: the pictures, class by class. Test: the table of labels, then the pictures."""
        home = root / self.name
        images = home / "GTSRB" / ("Final_Training" if split == "train" else "Final_Test") / "Images"
        pictures = sorted(images.glob("[0-9]*/*.ppm" if split == "train" else "*.ppm"))
        if not pictures:
            other = (home / "GTSRB" / "Training").is_dir()
            hint = "; GTSRB/Training is torchvision's part of 26,640, not the official set" if other else ""
            raise DataAbsentError(f"{self.name}: no pictures in {images}{hint}")
        if split == "train":
            return pictures
        return _existing(self.name, root, ["GT-final_test.csv"]) + pictures

    def load(self, split: str, root: Path) -> ImageSet:
        return self.load_at(split, root, 32)

    def load_at(self, split: str, root: Path, size: int) -> ImageSet:
        files = self.sources(split, root)
        if split == "train":
            labels = [int(path.parent.name) for path in files]
        else:
            table, *files = files
            by_name = _read_table(table)
            if unknown := [path for path in files if path.name not in by_name]:
                raise DataError(f"{table}: no row for {unknown[0].name}")
            labels = [by_name[path.name] for path in files]
        pixels = decode_images(files, lambda row: str(files[row]), size).transpose(0, 3, 1, 2)
        return _images(pixels, np.array(labels, np.int64), self.classes)

    def download(self, root: Path) -> None:
        base = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/GTSRB_"
        for archive, md5 in (
            ("Final_Training_Images.zip", "f33fd80ac59bff73c82d25ab499e03a3"),
            ("Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185"),
            ("Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
        ):
            _fetch(base + archive, root / self.name, md5)


@hookimpl
def benchbd_datasets() -> list[type[Dataset]]:
    return [Cifar10, Gtsrb, Stl10, Svhn]


def _existing(name: str, root: Path, relative: list[str]) -> list[Path]:
    files = [root / name / path for path in relative]
    if absent := [path for path in files if not path.is_file()]:
        raise DataAbsentError(f"{name}: no {absent[0]}")
    return files


def _images(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None, classes: tuple[str, ...], source: Path | None = None
) -> ImageSet:
    """uint8 (N, 3, H, W) with labels as an ImageSet; DataError, naming ``source``, if their numbers differ."""
    if labels is not None and len(labels) != len(pixels):
        raise DataError(f"{source}: {len(labels)} labels for {len(pixels)} images")
    return ImageSet(
        torch.from_numpy(pixels), None if labels is None else torch.from_numpy(labels.astype(np.int64)), classes
    )


def _fetch(url: str, folder: Path, md5: str) -> None:
    """Download a file into ``folder`` and check it; an archive is unpacked there and removed."""
    from torchvision.datasets import utils  # imported here, because it takes seconds and downloads are rare

    if url.endswith(".mat"):
        utils.download_url(url, str(folder), md5=md5)
    else:
        utils.download_and_extract_archive(url, str(folder), md5=md5, remove_finished=True)


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain containers, and calls nothing else: a pickle from a stranger could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("dtype", "ndarray"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(path: Path) -> dict[str, Any]:
    """A batch of CIFAR-10: ``data`` uint8 (N, 3072) and ``labels`` int64 (N,)."""
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        data, labels = batch["data"], np.array(batch["labels"], np.int64)
        if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
            raise ValueError(f"data is {data.dtype} {data.shape} for {len(labels)} labels")
    except (OSError, MemoryError):  # the file may be sound
        raise
    except Exception as error:  # a damaged pickle raises errors of almost any type
        raise DataError(f"{path}: not a batch of CIFAR-10 ({error})") from error
    return {"data": data, "labels": labels}


def _read_table(path: Path) -> dict[str, int]:
    """Class per file name from GTSRB's table of the test labels."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return {row["Filename"]: int(row["ClassId"]) for row in csv.DictReader(file, delimiter=";")}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a table with Filename;...;ClassId ({error})") from error


_MAT_TYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15


def _read_mat(path: Path) -> dict[str, NDArray[Any]]:
    """The numeric arrays of a MATLAB 5 file: the part of the format that SVHN needs, without scipy for two files."""
    try:
        content = memoryview(path.read_bytes())
        if bytes(content[126:128]) != b"IM":
            raise ValueError("no header of version 5, little-endian")
        arrays = {}
        for kind, data in _mat_elements(content[128:]):
            if kind == _MAT_COMPRESSED:
                kind, data = next(_mat_elements(memoryview(zlib.decompress(data))))
            if kind == _MAT_MATRIX:
                _flags, (_, shape), (_, label), (number, values) = list(_mat_elements(data))[:4]
                array = np.frombuffer(values, _MAT_TYPES[number])
                arrays[bytes(label).decode()] = array.reshape(np.frombuffer(shape, "<i4"), order="F")
        return arrays
    except (ValueError, KeyError, StopIteration, struct.error, zlib.error) as error:
        raise DataError(f"{path}: not a readable MATLAB 5 file ({error})") from error


def _mat_elements(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, data) of each element. An element of up to 4 bytes has its size in the upper half of the type."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        if kind >> 16:
            yield kind & 0xFFFF, content[at + 4 : at + 4 + (kind >> 16)]
            at += 8
        else:
            if at + 8 + size > len(content):
                raise ValueError("it ends early")
            yield kind, content[at + 8 : at + 8 + size]
            at += 8 + size + (0 if kind == _MAT_COMPRESSED else -size % 8)

"""The official archives, in miniature, and the generated data set."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins import datasets
from benchbd_plugins.datasets import Cifar10, Gtsrb, Stl10, Svhn
from benchbd_plugins.shapes import Shapes
from PIL import Image

from benchbd.base.errors import DataAbsentError, DataError
from benchbd.base.pictures import resize_images
from benchbd.contract.dataset import Dataset
from benchbd.contract.images import ImageSet
from benchbd.data.library import DataLibrary

KNOWN: list[type[Dataset]] = [Cifar10, Gtsrb, Stl10, Svhn, Shapes]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives of any size count as complete."""
    for dataset in (Cifar10, Gtsrb, Stl10, Svhn):
        monkeypatch.setattr(dataset, "splits", dict.fromkeys(dataset.splits, 0))


@pytest.fixture
def library(tmp_path: Path) -> DataLibrary:
    return DataLibrary({cls.name: cls() for cls in KNOWN}, tmp_path, tmp_path / "cache")


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_cifar10(root: Path) -> np.ndarray[Any, Any]:
    folder = root / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    data = noise(12, 3072)
    for i, name in enumerate([f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]):
        batch = {"batch_label": name, "data": data[2 * i : 2 * i + 2], "labels": [i, 9]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=3))
    return data


def test_cifar10(library: DataLibrary) -> None:
    data = write_cifar10(library.root)
    train, test = library.load("cifar10", "train"), library.load("cifar10", "test")
    assert np.array_equal(train.pixels.flatten(1).numpy(), data[:10])
    assert train.labels is not None
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert len(test) == 2
    assert train.classes[0] == "airplane"
    assert train.mean == (0.4914, 0.4822, 0.4465)


def test_a_pickle_that_wants_more_than_arrays_is_refused(library: DataLibrary) -> None:
    write_cifar10(library.root)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("run",)

    file = library.root / "cifar10" / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(DataError, match=r"data_batch_3: not a batch of CIFAR-10 \(it asks for builtins\.print\)"):
        library.load("cifar10", "train")


class AllFiles(Dataset):
    """A data set of whatever lies in its folder."""

    name = "all-files"


def test_a_data_set_of_files_has_all_of_them_or_none(tmp_path: Path) -> None:
    folder = tmp_path / "all-files"
    with pytest.raises(DataAbsentError, match=rf"^all-files: no files in {folder} \(a generated"):
        AllFiles().sources("train", tmp_path)
    (folder / "b").mkdir(parents=True)
    with pytest.raises(DataAbsentError):
        AllFiles().sources("train", tmp_path)
    for name in ("b.txt", "b/a.txt", "a.txt"):
        (folder / name).write_text(name)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.txt").write_text("d")
    (folder / "c").symlink_to(tmp_path / "c")
    told = [path.relative_to(folder).as_posix() for path in AllFiles().sources("train", tmp_path)]
    assert told == ["a.txt", "b/a.txt", "b.txt", "c/d.txt"]
    (folder / "b" / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"^{folder}/b/lost: a link to nothing"):
        AllFiles().sources("train", tmp_path)


def test_a_folder_of_a_data_set_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "all-files" / "closed"
    closed.mkdir(parents=True)
    (tmp_path / "all-files" / "a.txt").write_text("")
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(DataError, match=rf"^{closed}: cannot be read \(Permission denied\)$"):
        AllFiles().sources("train", tmp_path)


def test_what_lies_there_instead_of_an_archive_is_named(library: DataLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(library.root)
    file = library.root / "cifar10" / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(b"<html><body>Please log in</body></html>")
    with pytest.raises(DataError, match=r"data_batch_3: it is an HTML page"):
        library.load("cifar10", "train")

    def scarce(_: Path) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", scarce)
    with pytest.raises(DataError, match=r"cifar10: cannot be read \(there is too little memory for it\)$"):
        DataLibrary(library.datasets, library.root, library.cache).load("cifar10", "test")


def test_stl10_is_stored_by_columns_and_counts_from_one(library: DataLibrary) -> None:
    folder = library.root / "stl10" / "stl10_binary"
    folder.mkdir(parents=True)
    upright = np.zeros((2, 3, 96, 96), np.uint8)
    upright[:, :, :48] = 200  # bright upper half
    for split in ("train", "test", "unlabeled"):
        (folder / f"{split}_X.bin").write_bytes(upright.transpose(0, 1, 3, 2).tobytes())
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes(bytes([1, 10]))
    train = library.load("stl10", "train")
    assert train.pixels.shape == (2, 3, 32, 32)
    assert (train.pixels[:, :, :15] == 200).all()
    assert (train.pixels[:, :, 17:] == 0).all()
    assert train.labels is not None
    assert train.labels.tolist() == [0, 9]
    assert train.classes[9] == "truck"
    assert len(library.load("stl10", "pool")) == 4
    assert library.info("stl10", "pool").std == Stl10.normalization[1]

    (folder / "train_y.bin").write_bytes(bytes([1, 0]))
    fresh = DataLibrary(library.datasets, library.root, library.cache)
    with pytest.raises(DataError, match=r"row 1: label -1 is out of range 0\.\.9"):
        fresh.load("stl10", "train")
    (folder / "train_X.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"train_X\.bin: 5 bytes are no whole number"):
        DataLibrary(library.datasets, library.root, library.cache).load("stl10", "train")


def mat_element(kind: int, data: bytes) -> bytes:
    if len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def mat_array(name: str, array: np.ndarray[Any, Any], kind: int, compressed: bool) -> bytes:
    body = b"".join(
        (
            mat_element(6, struct.pack("<II", 9, 0)),
            mat_element(5, np.array(array.shape, "<i4").tobytes()),
            mat_element(1, name.encode()),
            mat_element(kind, array.tobytes(order="F")),
        )
    )
    element = struct.pack("<II", 14, len(body)) + body
    packed = zlib.compress(element)
    return struct.pack("<II", 15, len(packed)) + packed if compressed else element


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn_stores_zero_as_ten(library: DataLibrary, compressed: bool) -> None:
    x, y = noise(32, 32, 3, 3), np.array([[1.0], [10.0], [9.0]])
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    content = header + mat_array("X", x, 2, compressed) + mat_array("y", y, 9, compressed)
    (library.root / "svhn").mkdir()
    for split in ("train", "test"):
        (library.root / "svhn" / f"{split}_32x32.mat").write_bytes(content)
    train = library.load("svhn", "train")
    assert np.array_equal(train.pixels.numpy(), x.transpose(3, 2, 0, 1))
    assert train.labels is not None
    assert train.labels.tolist() == [1, 0, 9]
    assert train.classes[:2] == ("zero", "one")

    (library.root / "svhn" / "train_32x32.mat").write_bytes(content[:-200])
    with pytest.raises(DataError, match=r"train_32x32\.mat: not a readable MATLAB 5 file"):
        DataLibrary(library.datasets, library.root, library.cache).load("svhn", "train")


def write_gtsrb(root: Path) -> None:
    home = root / "gtsrb"
    for label in (0, 12, 42):
        folder = home / "GTSRB" / "Final_Training" / "Images" / f"{label:05}"
        folder.mkdir(parents=True)
        Image.fromarray(np.full((40, 30 + label, 3), label, np.uint8)).save(folder / "00000_00000.ppm")
        (folder / f"GT-{label:05}.csv").write_text("Filename;ClassId\n")
    folder = home / "GTSRB" / "Final_Test" / "Images"
    folder.mkdir(parents=True)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i, label in enumerate((14, 1)):
        Image.fromarray(np.full((20, 20, 3), label, np.uint8)).save(folder / f"{i:05}.ppm")
        rows.append(f"{i:05}.ppm;20;20;1;1;18;18;{label}")
    (home / "GT-final_test.csv").write_text("\n".join(rows))


def test_gtsrb_reads_the_official_archives(library: DataLibrary) -> None:
    write_gtsrb(library.root)
    train, test = library.load("gtsrb", "train"), library.load("gtsrb", "test")
    assert train.labels is not None
    assert test.labels is not None
    assert train.labels.tolist() == train.pixels[:, 0, 0, 0].tolist() == [0, 12, 42]
    assert test.labels.tolist() == test.pixels[:, 0, 0, 0].tolist() == [14, 1]
    assert len(train.classes) == len(set(train.classes)) == 43
    assert (train.classes[12], train.classes[14]) == ("priority road", "stop")

    (library.root / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;14\n")
    with pytest.raises(DataError, match=r"GT-final_test\.csv: no row for 00001\.ppm"):
        DataLibrary(library.datasets, library.root, library.cache).load("gtsrb", "test")


def test_gtsrb_is_not_the_subset_of_torchvision(library: DataLibrary) -> None:
    (library.root / "gtsrb" / "GTSRB" / "Training" / "00000").mkdir(parents=True)
    with pytest.raises(DataAbsentError, match="torchvision's part of 26,640, not the official set"):
        library.load("gtsrb", "train")


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "stl10", "svhn"])
def test_absent_sets_say_how_to_get_them(library: DataLibrary, name: str) -> None:
    with pytest.raises(DataAbsentError, match=rf"^{name}: no .*; accepted: Parquet .*; --download fetches it$"):
        library.info(name, "train")


def test_downloads_ask_for_the_official_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(url: str, folder: Path, md5: str) -> None:
        assert len(md5) == 32
        asked.append((url.rsplit("/", 1)[1], folder.name))

    monkeypatch.setattr(datasets, "_fetch", fetch)
    for dataset in (Cifar10(), Gtsrb(), Stl10(), Svhn()):
        dataset.download(tmp_path)
    assert asked == [
        ("cifar-10-python.tar.gz", "cifar10"),
        ("GTSRB_Final_Training_Images.zip", "gtsrb"),
        ("GTSRB_Final_Test_Images.zip", "gtsrb"),
        ("GTSRB_Final_Test_GT.zip", "gtsrb"),
        ("stl10_binary.tar.gz", "stl10"),
        ("train_32x32.mat", "svhn"),
        ("test_32x32.mat", "svhn"),
    ]


def test_download_reads_what_it_fetched(library: DataLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, folder: Path, md5: str) -> None:
        write_cifar10(folder.parent)

    monkeypatch.setattr(datasets, "_fetch", fetch)
    library.download = True
    assert library.info("cifar10", "train").count == 10


def test_shapes_are_balanced_and_the_same_each_time(library: DataLibrary) -> None:
    train, test = library.load("shapes", "train"), library.load("shapes", "test")
    assert library.info("shapes", "train").histogram == (800,) * 10
    assert library.info("shapes", "test").histogram == (200,) * 10
    assert not torch.equal(train.pixels[:2000], test.pixels)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(Shapes().load("test", library.root).pixels, test.pixels)


def test_shapes_leave_the_trigger_its_corner(library: DataLibrary) -> None:
    corner = library.load("shapes", "test").pixels[:, :, 21:31, 21:31].float().mean((1, 2, 3))
    assert (corner > 240).float().mean() < 0.002


def test_shapes_are_not_told_by_their_pixels(library: DataLibrary) -> None:
    train, test = (library.load("shapes", split) for split in ("train", "test"))
    assert train.labels is not None
    assert test.labels is not None
    a, b = (images.pixels[:2000].flatten(1).float() for images in (train, test))
    nearest = torch.cdist(b[:500], a).argmin(1)
    assert (train.labels[nearest] == test.labels[:500]).float().mean() < 0.3


class FewShapes(Shapes):
    splits = {"train": 40, "test": 20}


@pytest.mark.parametrize("size", [33, 64, 224])
def test_shapes_are_drawn_at_any_size(library: DataLibrary, size: int) -> None:
    """The same scenes: scaled down, they differ from small ones only by their noise."""
    small, large = (FewShapes().load_at("test", library.root, each) for each in (32, size))
    assert (large.size, large.classes) == (size, small.classes)
    plain, noise = (mean_distance(small, large, shift) for shift in (0, 1))
    assert plain < 0.6 * noise


def mean_distance(small: ImageSet, large: ImageSet, shift: int) -> float:
    """The correlation of ``small`` pictures with ``large`` ones scaled down and moved by ``shift`` rows."""
    made = F.interpolate(large.pixels.float(), (32, 32), mode="area")
    return float((small.pixels.float() - made.roll(shift, 0)).abs().mean())


def test_sets_with_larger_pictures_are_resized_once(library: DataLibrary) -> None:
    """STL-10's 96x96 pictures are used directly at 96, and are not scaled to 32x32 before 64."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), np.uint8)
    folder = library.root / "stl10" / "stl10_binary"
    folder.mkdir(parents=True)
    pictures.tofile(folder / "train_X.bin")
    np.array([1, 2], np.uint8).tofile(folder / "train_y.bin")
    upright = pictures.transpose(0, 3, 2, 1)
    assert np.array_equal(Stl10().load_at("train", library.root, 96).pixels.permute(0, 2, 3, 1).numpy(), upright)
    assert np.array_equal(
        Stl10().load_at("train", library.root, 64).pixels.permute(0, 2, 3, 1).numpy(), resize_images(upright, 64)
    )
    assert Stl10().load("train", library.root).size == 32

"""Layouts, checks, pool and cache of the data library, on data sets of a few pictures."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchbd.base.content import sealed
from benchbd.base.errors import DataAbsentError, DataError, UnknownDataError, UnknownNameError, UsageError
from benchbd.base.mapped import region_of
from benchbd.base.pictures import blank_images
from benchbd.contract.dataset import Dataset
from benchbd.contract.images import ImageSet
from benchbd.data import entries, layouts, parquet
from benchbd.data.library import DataLibrary, find_data_root

NAMES = ("ant", "bee", "cat")
REAL = os.environ.get("BENCHBD_DATA")  # read before conftest hides the user's data from the tests


def pictures(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def labels(count: int) -> np.ndarray[Any, Any]:
    return np.arange(count) % 3


def encode(pixels: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    file: Path,
    x: list[bytes | None],
    y: Any,
    *,
    names: tuple[str, ...] = NAMES,
    plain: bool = False,
    column: str = "image",
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = pa.array(x, pa.binary()) if plain else pa.array([{"bytes": b, "path": "p"} for b in x])
    table = pa.table({column: image, "label": pa.array(y)} if y is not None else {column: image})
    if names:
        features = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, file)


def write_npz(file: Path, x: Any, y: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, x=x, y=y)


def write_folder(top: Path, x: Any, y: Any) -> None:
    for name in NAMES:
        (top / name).mkdir(parents=True, exist_ok=True)
    for row, (pixels, label) in enumerate(zip(x, y, strict=True)):
        (top / NAMES[label] / f"{row:04}.png").write_bytes(encode(pixels))


def write_set(folder: Path, layout: str) -> None:
    """Nine train and six test pictures, ordered by class as in an image folder."""
    for split, count, seed in (("train", 9, 1), ("test", 6, 2)):
        x, y = pictures(count, seed), np.sort(labels(count))
        if layout.startswith("parquet"):
            plain = layout == "parquet-plain"
            cut = 4
            write_parquet(folder / f"{split}-00000-of-00002.parquet", list(map(encode, x[:cut])), y[:cut], plain=plain)
            write_parquet(folder / f"{split}-00001-of-00002.parquet", list(map(encode, x[cut:])), y[cut:], plain=plain)
        elif layout.startswith("npz"):
            write_npz(folder / f"{split}.npz", x, y[:, None] if layout == "npz-column" else y)
        else:
            write_folder(folder / split, x, y)


class Known(Dataset):
    """Declares names and normalisation; its own layout is one file."""

    name = "known"
    version = "1"
    classes = NAMES
    normalization = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))

    def load(self, split: str, root: Path) -> ImageSet:
        return ImageSet(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), torch.arange(3), self.classes)

    def sources(self, split: str, root: Path) -> list[Path]:
        path = root / self.name / f"{split}.own"
        if not path.is_file():
            raise DataAbsentError(f"known: no {path}")
        return [path]

    def download(self, root: Path) -> None:
        (root / self.name).mkdir(parents=True, exist_ok=True)
        for split in self.splits:
            (root / self.name / f"{split}.own").write_text(split)


@pytest.fixture
def library(tmp_path: Path) -> DataLibrary:
    return DataLibrary({"known": Known()}, tmp_path / "root", tmp_path / "cache")


def again(library: DataLibrary) -> DataLibrary:
    """The same library in a fresh process: nothing in memory, the cache on disk."""
    return DataLibrary(library.datasets, library.root, library.cache, library.download)


def message(library: DataLibrary, name: str = "toy", split: str = "train") -> str:
    with pytest.raises(DataError) as error:
        library.load(name, split)
    text = str(error.value)
    assert "\n" not in text
    return text


LAYOUTS = ["parquet", "parquet-plain", "npz", "npz-column", "folder"]


def test_every_layout_gives_the_same_images_and_digest(tmp_path: Path) -> None:
    digests = set()
    for layout in LAYOUTS:  # each below its own name, since npz takes its class names from the known data set
        write_set(tmp_path / layout / "known", layout)
        library = DataLibrary({"known": Known()}, tmp_path / layout, tmp_path / "cache" / layout)
        train, test = library.load("known", "train"), library.load("known", "test")
        assert train.pixels.shape == (9, 3, 32, 32)
        assert torch.equal(train.pixels.permute(0, 2, 3, 1), torch.from_numpy(pictures(9, 1)))
        assert train.labels is not None
        assert train.labels.tolist() == sorted(labels(9))
        assert train.classes == test.classes == NAMES
        digests.add((train.digest, test.digest, library.load("known", "pool").digest))
    assert len(digests) == 1


def test_pictures_may_be_called_img(library: DataLibrary) -> None:
    x = list(map(encode, pictures(3)))
    write_parquet(library.root / "toy" / "train-0.parquet", x, labels(3), column="img")
    write_parquet(library.root / "other" / "train-0.parquet", x, labels(3))
    assert library.load("toy", "train").digest == library.load("other", "train").digest
    write_parquet(library.root / "bad" / "train-0.parquet", x, labels(3), column="picture")
    assert "no column 'image'; it has picture, label" in message(library, "bad")


def test_statistics_are_those_of_the_images(library: DataLibrary) -> None:
    write_set(library.root / "toy", "parquet")
    info, images = library.info("toy", "train"), library.load("toy", "train")
    assert (info.digest, info.count, info.size) == (images.digest, 9, 32)
    assert (info.classes, info.histogram) == (NAMES, (3, 3, 3))
    assert (info.mean, info.std) == images.normalization()
    assert images.mean is None


def test_declared_normalisation_goes_by_name(library: DataLibrary) -> None:
    write_set(library.root / "known", "npz")
    write_set(library.root / "toy", "npz")
    for split in ("train", "pool"):
        info, images = library.info("known", split), library.load("known", split)
        assert (info.mean, info.std) == images.normalization() == Known.normalization
        assert info.digest == images.digest
    assert library.load("toy", "train").mean is None
    assert library.load("toy", "train").classes == ("0", "1", "2")


def test_pool_is_train_and_unlabeled_without_labels(library: DataLibrary) -> None:
    folder = library.root / "toy"
    write_set(folder, "parquet")
    assert torch.equal(library.load("toy", "pool").pixels, library.load("toy", "train").pixels)
    write_parquet(folder / "unlabeled-00000-of-00001.parquet", [encode(p) for p in pictures(4)], [-1] * 4)
    library = again(library)
    pool = library.load("toy", "pool")
    assert len(pool) == 13
    assert (pool.labels, pool.classes) == (None, ())
    assert torch.equal(pool.pixels[9:], library.load("toy", "unlabeled").pixels)
    assert library.info("toy", "pool").digest == pool.digest
    assert library.info("toy", "unlabeled").histogram == ()


def test_released_union_is_the_pool_alone(library: DataLibrary) -> None:
    folder = library.root / "toy"
    write_set(folder, "npz")
    write_npz(folder / "train_unlabeled.npz", pictures(12), np.full((12, 1), -1))
    assert len(library.load("toy", "pool")) == 12
    assert "part of the pool only" in message(library, split="unlabeled")


def test_unlabeled_pictures_may_lie_in_the_folder_itself(library: DataLibrary) -> None:
    folder = library.root / "toy"
    write_set(folder, "folder")
    (folder / "unlabeled").mkdir()
    (folder / "unlabeled" / "a.png").write_bytes(encode(pictures(1)[0]))
    (folder / "unlabeled" / ".hidden").write_text("")
    assert len(library.load("toy", "pool")) == 10


def test_pictures_of_other_sizes_and_modes_become_32x32_rgb(library: DataLibrary) -> None:
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    buffers = [io.BytesIO() for _ in range(3)]
    big.save(buffers[0], "PNG")
    big.convert("L").save(buffers[1], "PNG")
    big.quantize(8).save(buffers[2], "PNG", transparency=0)
    write_parquet(library.root / "toy/train-0.parquet", [b.getvalue() for b in buffers], [0, 1, 2])
    pixels = library.load("toy", "train").pixels
    expected = np.asarray(big.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), expected)
    assert torch.equal(pixels[1, 0], pixels[1, 1])


def test_digest_does_not_depend_on_the_path(tmp_path: Path) -> None:
    infos, keys = [], []
    for place in ("a", "b/c"):
        write_set(tmp_path / place / "toy", "parquet")
        library = DataLibrary({}, tmp_path / place, tmp_path / "cache")
        infos.append(library.info("toy", "train"))
        keys.append(sorted(path.name for path in library.cache.iterdir()))
    assert infos[0] == infos[1]
    assert keys[0] == keys[1]


# A fault of a data set is one line


def test_names_and_absence(library: DataLibrary) -> None:
    write_set(library.root / "toy", "npz")
    assert library.names() == ["known", "toy"]
    with pytest.raises(UnknownDataError, match=r"data set 'tou': not in .*root/tou; put it there as Parquet .*'toy'\?"):
        library.load("tou", "train")
    with pytest.raises(DataAbsentError, match=r"data set 'mnistm': .*image folder \(train/<class>/<picture>\)$"):
        library.load("mnistm", "train")
    for name in ("", ".", ".."):
        with pytest.raises(UnknownNameError, match=f"unknown data set '{re.escape(name)}'"):
            library.info(name, "train")
    with pytest.raises(UnknownNameError, match=r"unknown data set '\.\./root/toy'"):
        library.info("../root/toy", "train")
    with pytest.raises(UsageError, match=r"no split 'val': splits are train, test"):
        library.load("toy", "val")
    with pytest.raises(DataAbsentError, match=r"no .*train\.own; accepted: Parquet .*npz .*--download fetches it"):
        library.load("known", "train")
    (library.root / "empty").mkdir()
    assert "empty: no data set in a known layout; accepted: Parquet" in message(library, "empty")


def test_download_fetches_a_known_data_set(library: DataLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    library.download = True
    assert len(library.load("known", "test")) == 3

    def offline(self: Known, root: Path) -> None:
        raise OSError("no route to host\nat all")

    monkeypatch.setattr(Known, "download", offline)
    library.root = library.root / "elsewhere"
    assert "the download failed (no route to host); try again" in message(again(library), "known")


def test_count_of_the_official_set(library: DataLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    Known().download(library.root)
    monkeypatch.setattr(Known, "splits", {"train": 1000, "test": 0})
    assert "3 images in train, 1,000 are expected" in message(library, "known")


def test_two_layouts_in_one_folder(library: DataLibrary) -> None:
    write_set(library.root / "toy", "npz")
    write_set(library.root / "toy", "parquet")
    assert "two layouts in one folder, Parquet and npz: keep one" in message(library)
    write_set(library.root / "known", "npz")
    Known().download(library.root)
    assert "two layouts in one folder, npz and the data set's own layout" in message(library, "known")


def test_missing_and_empty_splits(library: DataLibrary) -> None:
    folder = library.root / "toy"
    write_npz(folder / "train.npz", pictures(3), labels(3))
    assert "no test split (npz)" in message(library, split="test")
    write_npz(folder / "test.npz", pictures(0), labels(0))
    assert "the test split is empty" in message(again(library), split="test")
    (library.root / "bare" / "train" / "ant").mkdir(parents=True)
    assert "the train split is empty" in message(library, "bare")


def test_damaged_files(library: DataLibrary) -> None:
    folder = library.root / "toy"
    good = encode(pictures(1)[0], "JPEG")
    file = folder / "train-00000-of-00001.parquet"

    write_parquet(file, [good, good[:300], good], [0, 1, 2])
    assert f"{file}: row 1: not a readable picture" in message(library)
    write_parquet(file, [good, good, b"nonsense"], [0, 1, 2])
    assert f"{file}: row 2: not a readable picture (it is text)" in message(again(library))
    write_parquet(file, [good, None], [0, 1], plain=True)
    assert f"{file}: row 1: no picture" in message(again(library))
    file.write_bytes(file.read_bytes()[:-40])
    assert f"{file}: not a readable Parquet file" in message(again(library))
    file.unlink()

    write_npz(folder / "train.npz", pictures(3), labels(3))
    damaged = (folder / "train.npz").read_bytes()
    (folder / "train.npz").write_bytes(damaged[: len(damaged) // 2])
    assert "train.npz: not a readable npz file" in message(again(library))
    (folder / "train.npz").unlink()

    write_set(folder, "folder")
    (folder / "train" / "bee" / "0003.png").write_bytes(good[:100])
    assert "bee/0003.png: not a readable picture" in message(again(library))


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (np.zeros((3, 3, 32, 32), np.uint8), labels(3), r"must be uint8 (N, H, W, 3), not uint8 (3, 3, 32, 32)"),
        (np.zeros((3, 32, 32, 3), np.float32), labels(3), "not float32"),
        (pictures(3), labels(2), "y must be integer (3,) or (3, 1), not int64 (2,)"),
        (pictures(3), np.zeros(3), "not float64 (3,)"),
        (pictures(3), np.array([0, -1, 1]), "row 1: label -1 is out of range 0..2"),
        (pictures(3), np.array([0, 1, 10**9]), "row 2: label 1000000000 is out of range 0..2"),
    ],
)
def test_arrays_that_do_not_fit(library: DataLibrary, x: Any, y: Any, text: str) -> None:
    write_npz(library.root / "toy" / "train.npz", x, y)
    assert f"{library.root / 'toy' / 'train.npz'}: " in (said := message(library))
    assert text in said


def test_labels_out_of_range(library: DataLibrary) -> None:
    folder, good = library.root / "toy", encode(pictures(1)[0])
    write_parquet(folder / "train-00000-of-00002.parquet", [good] * 3, [0, 1, 2])
    second = folder / "train-00001-of-00002.parquet"
    write_parquet(second, [good] * 3, [0, 3, 2])
    assert f"{second}: row 1: label 3 is out of range 0..2 (3 classes are known)" in message(library)
    write_parquet(second, [good] * 3, [0, None, 2])
    assert f"{second}: row 1: no label" in message(again(library))
    write_parquet(second, [good] * 3, ["a", "b", "c"])
    assert f"{second}: labels are names in one shard and integers in another" in message(again(library))
    write_parquet(second, [good] * 3, [0.0, 1.0, 2.0])
    assert f"{second}: column 'label' must be integers or names, not double" in message(again(library))
    write_parquet(second, [good] * 3, None)
    assert f"{second}: no column 'label'; it has image" in message(again(library))
    write_parquet(second, [good] * 3, [0, 1, 2], names=("ant", "bee", "cow"))
    assert f"{second}: its class names differ" in message(again(library))
    second.unlink()
    assert "1 Parquet files of train, but their names promise 2" in message(again(library))


def test_train_and_test_share_their_classes(library: DataLibrary) -> None:
    folder, good = library.root / "toy", encode(pictures(1)[0])
    write_parquet(folder / "train-0.parquet", [good] * 3, [0, 1, 2])
    write_parquet(folder / "test-0.parquet", [good] * 3, [0, 1, 2], names=("ant", "cow", "cat"))
    assert "train and test name their classes differently: 'bee' against 'cow'" in message(library, split="test")
    write_parquet(folder / "test-0.parquet", [good] * 3, [0, 1, 3], names=())
    assert "test-0.parquet: row 2: label 3 is out of range 0..2" in message(again(library), split="test")
    write_set(library.root / "dirs", "folder")
    (library.root / "dirs" / "test" / "zebra").mkdir()
    assert "test: class zebra: train has no class of that name" in message(library, "dirs", "test")


def put(folder: Path, *names: str) -> None:
    """A different picture under each name."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, number)[0]).save(folder / name)


def classes_of(library: DataLibrary, split: str = "train") -> dict[str, int]:
    """The number of pictures in each class of toy."""
    info = library.info("toy", split)
    return dict(zip(info.classes, info.histogram, strict=True))


def test_folders_named_by_number_are_labels(library: DataLibrary, caplog: pytest.LogCaptureFixture) -> None:
    top = library.root / "toy" / "train"
    put(top, *(f"{number}/0.png" for number in range(12)))
    expected = library.load("toy", "train")
    assert expected.classes == tuple(map(str, range(12)))
    assert expected.labels is not None
    assert expected.labels.tolist() == list(range(12))
    assert not caplog.messages

    (top / "7" / "0.png").unlink()
    (top / "9").rename(top / "twelfth")
    images = again(library).load("toy", "train")
    assert images.classes == (*map(str, range(12)), "twelfth")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12]
    assert caplog.messages == ["toy: train: no pictures of class 7, 9; labels stay"]

    (top / "twelfth").rename(top / "03")
    assert f"{top}: classes 03 and 3 are one number, and so one label" in message(again(library))
    (top / "03").rename(top / "20240131")
    assert f"{top}: class 20240131: a class that is named by a number has it for its label" in message(again(library))


def test_a_gap_in_padded_numbers_shifts_nothing(library: DataLibrary) -> None:
    for split in ("train", "test"):
        put(library.root / "toy" / split, *(f"{number:05}/0.png" for number in (0, 1, 3)))
    assert classes_of(library) == classes_of(library, "test") == {"00000": 1, "00001": 1, "00002": 0, "00003": 1}
    (library.root / "toy" / "test" / "00003").rename(library.root / "toy" / "test" / "3")
    assert classes_of(again(library), "test")["00003"] == 1


def test_numbers_are_labels_of_declared_classes(library: DataLibrary) -> None:
    put(library.root / "known" / "train", "0/a.png", "2/a.png")
    assert library.info("known", "train").classes == NAMES
    assert library.info("known", "train").histogram == (1, 0, 1)
    put(library.root / "known" / "train", "3/a.png")
    assert "train: class 3: label 3 is out of range 0..2 (3 classes are known)" in message(again(library), "known")


def test_a_folder_without_pictures_shifts_no_label(library: DataLibrary, caplog: pytest.LogCaptureFixture) -> None:
    top = library.root / "toy" / "train"
    put(top, "ant/0.png", "bee/0.png", "cat/0.png", ".thumbnails/0.png", "__MACOSX/._0.png", "__MACOSX/ant/1.png")
    assert classes_of(library) == dict.fromkeys(NAMES, 1)
    assert caplog.messages == ["toy: train: __MACOSX ignored, for it is no class"]
    (top / "bee" / "0.png").unlink()
    assert f"{top}/bee: no picture in it, so it is no class: fill or remove it" in message(again(library))
    (top / "bee").rmdir()
    assert classes_of(again(library)) == {"ant": 1, "cat": 1}
    (top / "bee").mkdir()  # no file has it, but the cache does
    assert "train/bee: no picture in it" in message(again(library))


def test_an_emptied_class_of_a_test_split_keeps_its_label(library: DataLibrary) -> None:
    write_set(library.root / "toy", "folder")
    for file in (library.root / "toy" / "test" / "bee").iterdir():
        file.unlink()
    assert classes_of(library, "test") == {"ant": 2, "bee": 0, "cat": 2}
    (library.root / "toy" / "test" / "bee").rmdir()
    assert classes_of(again(library), "test") == {"ant": 2, "bee": 0, "cat": 2}


def test_links_are_followed_and_those_to_nowhere_named(library: DataLibrary, tmp_path: Path) -> None:
    top = library.root / "toy" / "train"
    put(tmp_path / "elsewhere", "bees/0.png", "bees/1.png", "cat.png")
    put(top, "ant/0.png", "cat/0.png")
    (top / "bee").symlink_to(tmp_path / "elsewhere" / "bees")
    (top / "cat" / "1.png").symlink_to(tmp_path / "elsewhere" / "cat.png")
    assert classes_of(library) == {"ant": 1, "bee": 2, "cat": 2}
    (top / "ant" / "again").symlink_to(top)
    assert f"{top}/ant/again: a link to a folder that it lies in" in message(again(library))
    (top / "ant" / "again").unlink()
    (tmp_path / "elsewhere" / "cat.png").unlink()
    assert f"{top}/cat/1.png: a link to {tmp_path}/elsewhere/cat.png, which is not there" in message(again(library))
    (top / "cat" / "1.png").unlink()
    (tmp_path / "elsewhere" / "bees").rename(tmp_path / "bees")
    assert f"{top}/bee: a link to {tmp_path}/elsewhere/bees, which is not there" in message(again(library))


def test_whatever_pillow_opens_is_read_and_the_rest_counted(
    library: DataLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    top = library.root / "toy" / "train" / "ant"
    kinds = ("tif", "TIFF", "pgm", "jfif", "avif", "bmp", "webp", "jp2", "pcx", "tga")
    put(top, *(f"0.{kind}" for kind in kinds))
    (top / "0.png").write_bytes(encode(pictures(1)[0]))
    (top / "0.png").rename(top / "without suffix")
    for name in ("labels.csv", "more.csv", "Thumbs.db", "README", "video.mpg"):
        (top / name).write_bytes(b"\1")
    assert library.info("toy", "train").count == len(kinds) + 1
    said = "toy: train: 5 files (2 .csv, 1 .db, 1 without suffix, 1 others) skipped, for they are no pictures"
    assert sorted(caplog.messages[0]) == sorted(said)
    again(library).info("toy", "train")  # the cache repeats it
    assert caplog.messages == [caplog.messages[0]] * 2
    for file in top.iterdir():
        if file.suffix != ".csv":
            file.unlink()
    assert "the train split is empty: no picture below it, and 2 files (2 .csv)" in message(again(library))


@pytest.mark.parametrize("layout", ["folder", "Parquet"])
def test_exif_orientation_is_honoured_and_said(
    library: DataLibrary, caplog: pytest.LogCaptureFixture, layout: str
) -> None:
    """As the ``datasets`` library does it; damaged EXIF counts as none."""
    upright = pictures(1)[0]
    for number in range(9):
        image, exif = Image.fromarray(upright), Image.Exif()
        exif[0x0112] = number
        if number == 6:  # turn by 90 degrees to the right
            image = image.transpose(Image.Transpose.ROTATE_90)
        if number in (0, 1, 6):
            file = library.root / "toy" / "train" / "ant" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, exif=exif.tobytes() if number else b"Exif\0\0nonsense")
    if layout == "Parquet":
        files = sorted((library.root / "toy" / "train" / "ant").iterdir())
        write_parquet(
            library.root / "other" / "train-0.parquet", [file.read_bytes() for file in files], [0] * 3, names=()
        )
    name = "toy" if layout == "folder" else "other"
    pixels = library.load(name, "train").pixels.permute(0, 2, 3, 1).numpy()
    assert (pixels == upright).all()
    assert caplog.messages == [f"{name}: train: 1 picture turned upright, as the EXIF orientation says"]


def test_resizing_is_said_once_with_both_sizes(library: DataLibrary, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "test"):
        for label, size in enumerate(((48, 40), (96, 20))):
            file = library.root / "toy" / split / NAMES[label] / "0.png"
            file.parent.mkdir(parents=True)
            Image.new("RGB", size).save(file)
    fresh = [library, again(library)]
    for each in fresh:  # from the files, and from the cache
        for split in ("pool", "train", "test"):
            each.load("toy", split)
            each.info("toy", split)
        assert caplog.messages == ["toy: pictures of 48x20 to 96x40 pixels are resized to 32x32"]
        caplog.clear()
    again(library).info("toy", "pool")
    assert caplog.messages == ["toy: pictures of 48x20 to 96x40 pixels are resized to 32x32"]
    caplog.clear()
    write_npz(library.root / "arrays" / "train.npz", np.zeros((3, 64, 48, 3), np.uint8), labels(3))
    assert library.load("arrays", "train").pixels.shape == (3, 3, 32, 32)
    assert caplog.messages == ["arrays: pictures of 48x64 pixels are resized to 32x32"]


# Image size


@pytest.mark.parametrize("layout", ["parquet", "npz", "folder"])
def test_a_set_is_resized_to_the_size_that_is_asked_for(
    library: DataLibrary, caplog: pytest.LogCaptureFixture, layout: str
) -> None:
    write_set(library.root / "toy", layout)
    small = {split: library.load("toy", split) for split in ("train", "pool")}
    assert not caplog.messages
    for split, images in small.items():
        large, info = library.load("toy", split, 64), library.info("toy", split, 64)
        assert (large.size, info.size, info.digest) == (64, 64, large.digest)
        assert large.digest != images.digest
        expected = Image.fromarray(pictures(9, 1)[3]).resize((64, 64), Image.Resampling.BILINEAR)
        assert np.array_equal(large.pixels[3].permute(1, 2, 0).numpy(), np.asarray(expected))
        assert library.load("toy", split).digest == images.digest  # the smaller one has its own entry
    assert caplog.messages == ["toy: pictures of 32x32 pixels are resized to 64x64"]
    assert again(library).load("toy", "train", 64).digest == library.load("toy", "train", 64).digest


class Vector(Dataset):
    """Draws itself at any size."""

    name = "vector"
    version = "1"
    needs_files = False
    classes = NAMES
    drawn: ClassVar[int] = 0  # another size than the requested one

    def load(self, split: str, root: Path) -> ImageSet:
        return self.load_at(split, root, 32)

    def load_at(self, split: str, root: Path, size: int) -> ImageSet:
        pixels = blank_images(3, self.drawn or size)
        pixels[:, :, : len(pixels[0, 0]) // 2] = 200
        return ImageSet(pixels, torch.arange(3), self.classes)


def test_a_plugin_gives_the_size_or_32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets: dict[str, Dataset] = {"known": Known(), "vector": Vector()}
    library = DataLibrary(sets, tmp_path / "root", tmp_path / "cache", download=True)
    for size in (32, 33, 224):
        half = (library.load("vector", "train", size).pixels[0, 0] > 0).sum(0)
        assert half.tolist() == [size // 2] * size
    assert not caplog.messages
    assert library.load("known", "train", 48).size == 48
    assert caplog.messages == ["known: pictures of 32x32 pixels are resized to 48x48"]


def test_a_plugin_that_gives_another_size_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vector, "drawn", 96)
    library = DataLibrary({"vector": Vector()}, tmp_path / "root", tmp_path / "cache")
    with pytest.raises(DataError, match=r"images must be 32x32, not \(96, 96\)$"):
        library.load("vector", "train")
    with pytest.raises(DataError, match=r"images must be 32x32 or 64x64, not \(96, 96\)$"):
        library.load("vector", "train", 64)


# Cache


@pytest.mark.parametrize("split", ["train", "pool"])
def test_an_entry_is_what_the_library_of_the_format_reads(library: DataLibrary, split: str) -> None:
    write_set(library.root / "toy", "npz")
    write_npz(library.root / "toy" / "unlabeled.npz", pictures(4), labels(4))
    images = library.load("toy", split)
    tensors = load_file(library.cache / (library._key("toy", split) + ".safetensors"))
    assert torch.equal(tensors.pop("pixels"), images.pixels)
    assert list(tensors) == (["labels"] if split == "train" else [])


def test_an_entry_that_the_library_of_the_format_wrote_is_read(
    library: DataLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(library.root / "toy", "npz")
    images = library.load("toy", "train")
    path = entry_of(library, "train").with_suffix(".safetensors")
    tensors = {"pixels": images.pixels.clone(), "labels": images.labels.clone()}  # type: ignore[union-attr]
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    fresh = again(library).load("toy", "train")
    assert fresh.digest == images.digest
    assert region_of(fresh.pixels) is not None  # from the file, and not decoded again
    assert not caplog.messages


def test_pixels_are_mapped_and_what_is_written_to_them_stays(library: DataLibrary) -> None:
    write_set(library.root / "toy", "parquet")
    write_parquet(library.root / "toy" / "unlabeled-0.parquet", [encode(p) for p in pictures(4)], None)
    for split in ("train", "pool"):
        for images in (library.load("toy", split), again(library).load("toy", split)):
            copy = images.unlabeled()
            for pixels in (images.pixels, copy.pixels):
                assert region_of(pixels) is not None
                assert pixels.untyped_storage().nbytes() == pixels.nbytes  # labels cannot be reached from it
            digest = images.digest
            copy.pixels.zero_()
            images.pixels[0] = 7
            assert again(library).load("toy", split).digest == digest


def test_cache_hit_does_not_decode(library: DataLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(library.root / "toy", "parquet")
    first = {split: library.load("toy", split) for split in ("train", "test", "pool")}

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(layouts, "decode_images", fail)
    fresh = again(library)
    for split, images in first.items():
        assert fresh.info("toy", split).digest == images.digest
    assert not fresh._images  # info needs no pixels
    for split, images in first.items():
        assert torch.equal(fresh.load("toy", split).pixels, images.pixels)
    assert fresh.load("toy", "train") is fresh.load("toy", "train")


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_damaged_cache_is_decoded_again(
    library: DataLibrary, caplog: pytest.LogCaptureFixture, suffix: str, how: str
) -> None:
    write_set(library.root / "toy", "parquet")
    expected = library.load("toy", "train")
    kept = expected.pixels.clone()  # the file that they are mapped from is damaged in place
    [path] = library.cache.glob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content if how == "flipped" and suffix != ".json" else content[:-3])
    assert torch.equal(again(library).load("toy", "train").pixels, kept)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is damaged; toy train is decoded again" in caplog.text
    caplog.clear()
    assert again(library).load("toy", "train").digest == expected.digest
    assert not caplog.records
    assert not list(library.cache.glob(".*"))


def entry_of(library: DataLibrary, split: str) -> Path:
    """The JSON of a split in the cache."""
    return library.cache / (library._key("toy", split) + ".json")


def changed(text: str, field: str) -> str:
    """One digit of a field of a cache entry changed."""
    at = text.index(
        next(c for c in text[text.index(f'"{field}"') + len(field) + 3 :] if c.isdigit()), text.index(field)
    )
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]


@pytest.mark.parametrize("split", ["train", "pool"])
@pytest.mark.parametrize("field", ["digest", "count", "mean"])
def test_one_digit_of_a_cache_entry_is_noticed(
    library: DataLibrary, caplog: pytest.LogCaptureFixture, split: str, field: str
) -> None:
    write_set(library.root / "toy", "npz")
    expected = library.info("toy", split)
    path = entry_of(library, split)
    path.write_text(changed(path.read_text(), field))
    assert again(library).info("toy", split) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"data cache: {path} is damaged; toy {split} is decoded again"
    ]
    caplog.clear()
    assert again(library).info("toy", split) == expected
    assert not caplog.records


def test_cache_entries_of_other_days(library: DataLibrary, caplog: pytest.LogCaptureFixture) -> None:
    """Without a checksum: not trusted. Without a schema: schema 1. Newer, deep, huge: one line."""
    write_set(library.root / "toy", "npz")
    expected = library.info("toy", "train")
    path = entry_of(library, "train")
    fields = {**dataclasses.asdict(expected), "count": 5}
    path.write_text(json.dumps(fields))
    assert again(library).info("toy", "train") == expected
    path.write_text(sealed("entry", {"key": path.stem, "info": fields}))
    assert again(library).info("toy", "train").count == 5
    assert not caplog.records

    deep, huge = "[" * 100_000, '{"count": ' + "9" * 5000 + "}"
    wrong_key, text = {"key": "0" * 64, "info": fields}, {"key": path.stem, "info": fields | {"count": "nine"}}
    far = {"key": path.stem, "info": fields | {"mean": (float("inf"),) * 3}}
    for content in (deep, huge, "7", *(sealed("entry", value) for value in (wrong_key, text, far, [], {}))):
        path.write_text(content)
        assert again(library).info("toy", "train") == expected
        assert [" is damaged; toy train is decoded again" in line for line in caplog.messages] == [True], content[:80]
        caplog.clear()
    path.write_text(sealed("entry", {"schema": 2, "key": path.stem, "statistics": {}}))
    assert again(library).info("toy", "train") == expected
    assert "was written by a newer benchbd (schema 2, this one reads up to 1); toy train is dec" in caplog.messages[0]
    assert len(caplog.messages) == 1


def test_a_cache_that_may_not_be_read_is_not_damaged(
    library: DataLibrary, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(library.root / "toy", "npz")
    expected = library.load("toy", "train")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(entries, "_regions", refuse)
        assert again(library).load("toy", "train").digest == expected.digest
    assert "safetensors cannot be read (Permission denied); toy train is decoded again" in caplog.text
    assert "damaged" not in caplog.text


def test_an_entry_that_is_sound_but_out_of_date_is_known(library: DataLibrary) -> None:
    """As if another version of Pillow gave other pixels: they differ from the cache entry that the plan read."""
    write_set(library.root / "toy", "npz")
    expected = library.info("toy", "pool")
    path = entry_of(library, "pool")
    fields = {**dataclasses.asdict(expected), "digest": "0" * 64}
    path.write_text(sealed("entry", {"schema": 1, "key": path.stem, "info": fields}))
    fresh = again(library)
    planned = fresh.info("toy", "pool").digest
    assert planned == "0" * 64
    assert not fresh.holds([("toy", "pool", 32, planned)])
    assert fresh.info("toy", "pool") == expected
    assert fresh.holds([("toy", "pool", 32, expected.digest)])


def test_unwritable_cache_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_set(tmp_path / "toy", "npz")
    (tmp_path / "file").write_text("")
    library = DataLibrary({}, tmp_path, tmp_path / "file" / "cache")
    assert library.info("toy", "train").count == 9
    assert "cannot be written" in caplog.text


def test_find_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENCHBD_DATA", str(tmp_path / "variable"))
    assert find_data_root("option") == Path("option")
    assert find_data_root(None) == tmp_path / "variable"
    monkeypatch.delenv("BENCHBD_DATA")
    assert find_data_root(None).name == "benchbd"


@pytest.mark.realdata
def test_real_data(tmp_path: Path) -> None:
    if REAL is None:
        pytest.skip("BENCHBD_DATA is not set")
    from benchbd_plugins.datasets import Cifar10, Gtsrb

    library = DataLibrary({"cifar10": Cifar10(), "gtsrb": Gtsrb()}, Path(REAL), tmp_path)
    cifar = library.load("cifar10", "train")
    assert (len(cifar), library.info("cifar10", "test").count) == (50_000, 10_000)
    assert cifar.classes == Cifar10.classes
    mean = cifar.pixels.double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx(Cifar10.normalization[0], abs=1e-3)
    assert library.info("cifar10", "train").mean == Cifar10.normalization[0]
    signs = library.info("gtsrb", "train")
    assert signs.classes == Gtsrb.classes
    assert len(signs.histogram) == 43
    assert (signs.classes[12], signs.classes[14]) == ("priority road", "stop")
    if "tinyimagenet10" in library.names():
        assert library.info("tinyimagenet10", "pool").count == 25_000


def test_metadata_nested_without_end_are_a_line() -> None:
    with pytest.raises(DataError, match="not what Hugging Face writes"):
        parquet._class_label_names(Path("train.parquet"), "label", {b"huggingface": b"[" * 100_000})

"""Folders as the hub, Kaggle and users write them: shards, names of splits, label columns, pools without labels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchbd_plugins.datasets import Cifar10, Gtsrb
from PIL import Image

from benchbd.base.errors import DataError, UsageError
from benchbd.data.library import DataLibrary
from tests.data.test_data import (
    NAMES,
    again,
    encode,
    labels,
    message,
    pictures,
    put,
    write_npz,
    write_parquet,
    write_set,
)


@pytest.fixture
def library(tmp_path: Path) -> DataLibrary:
    return DataLibrary({}, tmp_path / "root", tmp_path / "cache")


def shard(file: Path, *, columns: dict[str, Any] | None = None, count: int = 3, seed: int = 1) -> None:
    """Parquet of ``count`` pictures; with columns, those beside them, else their labels."""
    x = list(map(encode, pictures(count, seed)))
    if columns is None:
        write_parquet(file, x, np.sort(labels(count)))
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(x, pa.binary()), **columns}), file)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (["00000-of-00003-9f", "00002-of-00003-9f"], "2 Parquet files of train, but their names promise 3: number 1 "),
        (
            ["00000-of-00003-9f", "00000-of-00003-0a", "00001-of-00003-9f"],
            "one train shard twice, train-00000-of-00003",
        ),
        (["00000-of-00003", "00001-of-00003", "00001-of-00003-9f"], "one train shard twice, train-00001-of-00003"),
        (["00000-of-00001", "00000-of-00002"], "are not of one set of train shards: keep one"),
        (
            ["00000-of-00001", "0"],
            "train-00000-of-00001.parquet and train-0.parquet are not of one set of train shards",
        ),
        (["00003-of-00004"], "number 0 and 2 more is not there"),
    ],
)
def test_a_missing_shard_is_named(library: DataLibrary, numbers: list[str], said: str) -> None:
    for number in numbers:
        shard(library.root / "toy" / f"train-{number}.parquet")
    assert said in message(library)
    assert said in message(again(library), split="pool")


def test_shards_with_a_hash_are_read(library: DataLibrary) -> None:
    for number in range(3):
        shard(library.root / "toy" / f"train-0000{number}-of-00003-abf0e5919b7ec6fd.parquet", seed=number)
    assert library.info("toy", "train").count == 9


def test_a_gap_between_numbered_shards_is_named(library: DataLibrary) -> None:
    for number in (0, 2):
        shard(library.root / "toy" / "train" / f"000{number}.parquet")
    assert "toy/train: 2 Parquet files of train, but their names promise 3: number 1 is not there" in message(library)


HUB = [
    "data/train-00000-of-00001.parquet",
    "data/train-00000-of-00001-0123456789abcdef.parquet",
    "train/0000.parquet",
    "default/train/0000.parquet",
    "plain_text/train-00000-of-00001.parquet",
    "train.parquet",
    "Train/anything.parquet",
    "data/train/part.parquet",
]


@pytest.mark.parametrize("file", HUB)
@pytest.mark.parametrize("other", ["test", "validation", "val"])
def test_trees_as_the_hub_writes_them(
    library: DataLibrary, caplog: pytest.LogCaptureFixture, file: str, other: str
) -> None:
    test = file.replace("train", other).replace("Train", other.title())
    shard(library.root / "toy" / file)
    shard(library.root / "toy" / test, seed=2)
    write_parquet(library.root / "plain" / "train-0.parquet", list(map(encode, pictures(3, 1))), labels(3))
    write_parquet(library.root / "plain" / "test-0.parquet", list(map(encode, pictures(3, 2))), labels(3))
    assert library.names() == ["plain", "toy"]
    for split in ("train", "test", "pool"):
        assert library.info("toy", split).digest == library.info("plain", split).digest
    said = [f"toy: test: there is none of that name; {test} is read"] if other != "test" else []
    assert caplog.messages == said


@pytest.mark.parametrize("layout", ["npz", "folder"])
def test_names_of_splits_in_any_case(library: DataLibrary, layout: str) -> None:
    folder = library.root / "toy"
    write_set(folder, layout)
    expected = {split: library.info("toy", split).digest for split in ("train", "test")}
    suffix = ".npz" if layout == "npz" else ""
    (folder / f"train{suffix}").rename(folder / f"Train{suffix}")
    (folder / f"test{suffix}").rename(folder / f"VAL{suffix}")
    assert {split: again(library).info("toy", split).digest for split in expected} == expected
    write_set(folder, layout)
    assert f"toy: Train{suffix} and train{suffix} are two train splits: keep one" in message(again(library))


def test_a_validation_split_is_not_read_beside_a_test_split(library: DataLibrary) -> None:
    for split, count in (("train", 3), ("validation", 4), ("test", 5)):
        shard(library.root / "toy" / "data" / f"{split}-00000-of-00001.parquet", count=count)
    assert library.info("toy", "test").count == 5


def test_two_configurations_are_named(library: DataLibrary) -> None:
    for config in ("full", "small"):
        shard(library.root / "toy" / config / "train-00000-of-00001.parquet")
    assert (
        "toy: full/train-00000-of-00001.parquet and small/train-00000-of-00001.parquet are two train splits: keep one"
        in message(library)
    )


def test_what_lies_there_is_named(library: DataLibrary) -> None:
    put(library.root / "toy", "ant/0.png", "bee/0.png")
    (library.root / "toy" / "archive.zip").write_bytes(b"PK")
    (library.root / "toy" / "train").symlink_to("nowhere")
    said = "no data set in a known layout; it holds ant/, archive.zip, bee/, train (a link to nowhere); accepted: Par"
    assert said in message(library)
    shard(library.root / "half" / "data" / "train-00000-of-00001.parquet")
    assert "half: no test split (Parquet); it holds data/" in message(library, "half", "test")
    (library.root / "lost").mkdir()
    (library.root / "lost" / "train-0.parquet").symlink_to(library.root / "nowhere")
    assert "lost/train-0.parquet: a link to " in message(library, "lost")


def test_names_that_are_no_utf_8(library: DataLibrary) -> None:
    """Pictures may have any name; a class or a data set needs a name that a record can contain."""
    strange = os.fsdecode(b"caf\xe9")
    put(library.root / "toy" / "train", f"ant/{strange}.png")
    (library.root / "toy" / "train" / "ant" / f"{strange}.txt").write_text("")
    assert library.info("toy", "train").count == 1
    put(library.root / "toy" / "train", f"{strange}/0.png")
    assert "train/caf\udce9: a class name that is no UTF-8: rename the folder" in message(again(library))
    put(library.root / strange / "train", "ant/0.png")
    assert library.names() == [strange, "toy"]
    with pytest.raises(UsageError, match=r"data set 'caf.*': its name is no UTF-8: rename the folder"):
        library.load(strange, "train")


# Pools without labels


def test_pools_need_no_labels(library: DataLibrary) -> None:
    """Flat pictures, Parquet without a label column, npz without y, unlabeled/ alone: one pool, and no task."""
    root, x = library.root, pictures(3, 1)
    put(root / "flat" / "train", *(f"{number}.png" for number in range(3)))
    put(root / "alone" / "unlabeled", *(f"{number}.png" for number in range(3)))
    put(root / "deep" / "unlabeled" / "a", *(f"b/{number}.png" for number in range(3)))
    x = np.stack([pictures(1, number)[0] for number in range(3)])
    write_parquet(root / "parquet" / "train-0.parquet", list(map(encode, x)), None)
    (root / "npz").mkdir()
    np.savez(root / "npz" / "train.npz", x=x)
    expected = torch.from_numpy(x).permute(0, 3, 1, 2)
    for name in ("flat", "alone", "deep", "parquet", "npz"):
        assert torch.equal(library.load(name, "pool").pixels, expected), name
        assert torch.equal(again(library).load(name, "pool").pixels, expected), name
    assert len({library.info(name, "pool").digest for name in ("flat", "alone", "deep", "parquet", "npz")}) == 1
    for name, said in {
        "flat": "flat/train: train has no labels: they are the names of folders <class>/ in it; without labels it can",
        "parquet": "train-0.parquet: no column 'label'; it has image; without labels it can be pre-trained on, but is",
        "npz": "train.npz: train has no labels: they are in an array 'y'; without",
        "alone": "alone: no train split (image folder); it holds unlabeled/",
    }.items():
        for fresh in (library, again(library)):
            assert said in message(fresh, name)
            with pytest.raises(DataError):
                fresh.info(name, "train")


def test_a_pool_is_train_and_unlabeled_of_any_kind(library: DataLibrary) -> None:
    put(library.root / "toy" / "train", "0.png", "1.png")
    put(library.root / "toy" / "unlabelled", "2.png")
    assert library.info("toy", "pool").count == 3


# Labels: columns, names


def test_a_choice_of_label_column(library: DataLibrary, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"fine_label": pa.array([0, 1, 2]), "coarse_label": pa.array([0, 0, 1])}
    for split in ("train", "test"):
        shard(library.root / "toy" / f"{split}.parquet", columns=columns)
    assert "train.parquet: labels may be fine_label or coarse_label: name one, as in toy@fine_label" in message(library)
    assert library.info("toy", "pool").count == 3
    assert library.info("toy@fine_label", "train").histogram == (1, 1, 1)
    assert library.info("toy@coarse_label", "test").histogram == (2, 1)
    assert again(library).info("toy@fine_label", "pool").digest == library.info("toy", "pool").digest
    assert "no column 'colour'; it has image, fine_label, coarse_label" in message(library, "toy@colour")
    assert "data set 'toys@fine_label': not in" in message(library, "toys@fine_label")
    assert not caplog.messages
    write_npz(library.root / "arrays" / "train.npz", pictures(3), labels(3))
    assert "arrays: only Parquet has columns, such as 'y', to choose labels from" in message(library, "arrays@y")
    write_npz(library.root / "a@y" / "train.npz", pictures(3), labels(3))
    assert library.info("a@y", "train").count == 3  # a folder's own name comes first


@pytest.mark.parametrize("column", ["fine_label", "labels", "Class", "digit"])
def test_the_only_column_that_can_be_meant_is_read_and_said(
    library: DataLibrary, caplog: pytest.LogCaptureFixture, column: str
) -> None:
    shard(library.root / "toy" / "train.parquet", columns={column: pa.array([0, 1, 2]), "id": pa.array([7, 8, 9])})
    assert library.info("toy", "train").histogram == (1, 1, 1)
    assert caplog.messages == [f"toy: train: labels are those of column '{column}'"]


def test_labels_may_be_names(library: DataLibrary) -> None:
    values = {"train": ["cat", "ant", "bee"], "test": ["bee", "bee", "ant"]}
    for split, names in values.items():
        label = pa.array(names).dictionary_encode() if split == "test" else pa.array(names)
        shard(library.root / "toy" / f"{split}.parquet", columns={"label": label})
    train, test = library.load("toy", "train"), library.load("toy", "test")
    assert train.classes == test.classes == NAMES
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 0, 1], [1, 1, 0])
    shard(library.root / "toy" / "test.parquet", columns={"label": pa.array(["bee", "cow", "ant"])})
    assert "test.parquet: class cow: train has no class of that name" in message(again(library), split="test")
    shard(library.root / "toy" / "train.parquet", columns={"label": pa.array(["2", "0", "10"])})
    images = again(library).load("toy", "train")
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 10]


# GTSRB as on Kaggle


def write_kaggle(folder: Path) -> None:
    for label in (0, 2, 10, 42):
        put(folder / "Train" / str(label), f"000{label:02}_00000_00000.png")
    put(folder / "Test", "00000.png", "00001.png")
    put(folder / "Meta", "0.png")
    rows = ["Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path", "32,32,1,1,9,9,16,Test/00000.png"]
    (folder / "Test.csv").write_text("\n".join([*rows, "32,32,1,1,9,9,1,Test/00001.png"]))
    (folder / "Train.csv").write_text(rows[0])


def test_gtsrb_as_kaggle_has_it(library: DataLibrary) -> None:
    library.datasets["gtsrb"] = Gtsrb()
    folder = library.root / "gtsrb"
    write_kaggle(folder)
    train, test = library.load("gtsrb", "train"), library.load("gtsrb", "test")
    assert train.classes == test.classes == Gtsrb.classes
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 2, 10, 42], [16, 1])
    assert library.info("gtsrb", "pool").count == 4
    table = folder / "Test.csv"
    content = table.read_text()
    table.write_text(content.replace("00001.png", "00002.png"))
    assert f"{table}: no row for 00001.png" in message(again(library), "gtsrb", "test")
    table.write_text(content + "\n32,32,1,1,9,9,1,Test/00002.png")
    assert f"{table}: it has a row for 00002.png, which is not there" in message(again(library), "gtsrb", "test")
    table.write_text(content.replace(",1,Test/", ",43,Test/"))
    assert "Test: class 43: train has no class of that name" in message(again(library), "gtsrb", "test")
    table.write_text("a,b\n1,2")
    assert f"{table}: not a table with Path (or Filename) and ClassId" in message(again(library), "gtsrb", "test")
    table.unlink()
    assert "gtsrb/Test: test has no labels" in message(again(library), "gtsrb", "test")


def test_gtsrb_with_kaggles_folders_twice(library: DataLibrary, caplog: pytest.LogCaptureFixture) -> None:
    """Kaggle's zip contains Train/ and train/, Test/ and test/: the folders that the tables name are read."""
    library.datasets["gtsrb"] = Gtsrb()
    folder = library.root / "gtsrb"
    write_kaggle(folder)
    (folder / "Train.csv").write_text("ClassId,Path\n0,Train/0/00000_00000_00000.png")
    alone = {split: library.info("gtsrb", split).digest for split in ("train", "test", "pool")}
    caplog.clear()
    for name in ("Train", "Test"):
        shutil.copytree(folder / name, folder / name.lower())
    (folder / "train" / "0" / "00000_00000_00000.png").unlink()  # the content of the other one does not matter
    assert {split: again(library).info("gtsrb", split).digest for split in alone} == alone
    fresh = DataLibrary(library.datasets, library.root, library.cache.with_name("other"))
    caplog.clear()
    assert {split: fresh.info("gtsrb", split).digest for split in alone} == alone
    assert "gtsrb: train: Train/ is read and train/ is not, for the table beside them names Train/" in caplog.messages
    assert "gtsrb: test: Test/ is read and test/ is not, for the table beside them names Test/" in caplog.messages
    (folder / "Train.csv").write_text("ClassId,Path\n0,0/00000_00000_00000.png")
    assert "gtsrb: Train and train are two train splits: keep one" in message(again(library), "gtsrb")


@pytest.mark.parametrize("name", ["1.0", "-1", "+2", "3.", " 1", "", " "])
def test_a_number_that_is_no_label_is_no_class_name(library: DataLibrary, name: str) -> None:
    """Sorted as text, 10.0 would come before 2.0, and -1 behind all."""
    root, said = library.root, f"class {name!r}: a class has a name, or the number that is its label: 0, 1, 2 ..."
    shard(root / "names" / "train.parquet", columns={"label": pa.array(["0", name, "2"])})
    assert f"train.parquet: {said}" in message(library, "names")
    if name.strip():
        put(root / "folder" / "train", f"{name}/0.png", "0/1.png")
        assert f"folder/train: {said}" in message(library, "folder")
    if name == name.strip():
        put(root / "table" / "train", "0.png", "1.png")
        (root / "table" / "train.csv").write_text(f"Filename,ClassId\n0.png,0\n1.png,{name}")
        assert f"table/train: {said}" in message(library, "table")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Filename,ClassId\n0.png,1\n1.png,0\na/0.png,2", "0.png is in two rows, of class 1 and of class 2"),
        (
            "version https://git-lfs.github.com/spec/v1",
            "not a table with Path (or Filename) and ClassId (it is a Git LFS",
        ),
        ("<!doctype html>", "not a table with Path (or Filename) and ClassId (it is an HTML page"),
        ("", "not a table with Path (or Filename) and ClassId (it is an empty file"),
        (
            "file,label\n0.png,1\n1.png,0",
            "not a table with Path (or Filename) and ClassId (its columns are file, label)",
        ),
        ("Filename,ClassId\n0.png,1\n1.png", "not a table with Path (or Filename) and ClassId (row 1 ends early)"),
    ],
)
def test_tables_that_tell_no_classes(library: DataLibrary, content: str, said: str) -> None:
    put(library.root / "toy" / "train", "0.png", "1.png")
    table = library.root / "toy" / "train.csv"
    table.write_text(content)
    assert f"{table}: {said}" in message(library)


@pytest.mark.parametrize("picture", ["train/ant/0.png", "train/0.png"])
def test_parquet_and_pictures_in_one_folder_are_two_layouts(library: DataLibrary, picture: str) -> None:
    shard(library.root / "toy" / "train" / "0000.parquet")
    assert library.info("toy", "train").count == 3
    put(library.root / "toy", picture)
    assert "toy: two layouts in one folder, Parquet and image folder: keep one" in message(again(library))


@pytest.mark.parametrize("name", ["part-00000.snappy.parquet", "train-00000-of-00001.parquet"])
def test_a_folder_of_shards_may_be_called_train_parquet(library: DataLibrary, name: str) -> None:
    """As Spark writes Parquet."""
    shard(library.root / "toy" / "train.parquet" / name)
    assert library.info("toy", "train").count == 3


@pytest.mark.parametrize(
    "label", [pa.array([9, -1, -2]), pa.array([0.5, 1, 2]), pa.nulls(3), pa.array([[1], [2], [3]])]
)
def test_labels_of_an_unlabeled_split_are_not_read(library: DataLibrary, label: Any) -> None:
    for name in ("parquet", "npz"):
        write_set(library.root / name, name)
    shard(library.root / "parquet" / "unlabeled.parquet", columns={"label": label})
    np.savez(library.root / "npz" / "unlabeled.npz", x=pictures(3), y=np.array(label.to_pylist(), float))
    for name in ("parquet", "npz"):
        assert library.info(name, "pool").count == 12


@pytest.mark.parametrize("column", ["image", "label"])
def test_two_columns_of_one_name_are_a_line(library: DataLibrary, column: str) -> None:
    x, y = pa.array(list(map(encode, pictures(3))), pa.binary()), pa.array([0, 1, 2])
    table = pa.Table.from_arrays([x, y, {"image": x, "label": y}[column]], names=["image", "label", column])
    file = library.root / "toy" / "train.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(table, file)
    assert f"train.parquet: more than one column {column!r}; it has image, label, {column}" in message(library)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train.parquet", "train-small.parquet"], "are not of one set of train shards: keep one"),
        (["train-0.parquet", "train-2.parquet"], "their names promise 3: number 1 is not there"),
        (["train-1.parquet", "train-3.parquet"], "their names promise 3: number 2 is not there"),
        (["train/part-00000.parquet", "train/part-00002.parquet"], "number 1 is not there"),
        (["train-1.parquet", "train-01.parquet"], "one train shard twice, train-01.parquet and train-1.parquet"),
        (["train-1.parquet", "train-2.parquet"], ""),
        (["train-2019.parquet", "train-2021.parquet"], ""),
        (["train-a0.parquet", "train-b0.parquet"], ""),
        (["train-a.parquet", "train-b.parquet"], ""),
    ],
)
def test_shards_under_names_of_others(library: DataLibrary, names: list[str], said: str) -> None:
    for name in names:
        shard(library.root / "toy" / name)
    if said:
        assert said in message(library)
    else:
        assert library.info("toy", "train").count == 3 * len(names)


def test_frames_and_transparency_that_are_left_out_are_said(
    library: DataLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    top = library.root / "toy" / "train" / "ant"
    put(top, "plain.png")
    first, second = (Image.fromarray(pixels) for pixels in pictures(2))
    for suffix in ("gif", "tif", "png", "webp"):
        first.save(top / f"two.{suffix}", save_all=True, append_images=[second])
    assert library.info("toy", "train").count == 5
    assert caplog.messages == ["toy: train: of 4 pictures with several frames or pages the first is read"]
    caplog.clear()
    opaque, clear = np.full((2, 32, 32, 4), 255, np.uint8)
    clear[5, 5] = (1, 2, 3, 0)
    put(library.root / "alpha" / "train" / "ant", "plain.png")
    Image.fromarray(opaque).save(library.root / "alpha" / "train" / "ant" / "opaque.png")
    Image.fromarray(clear).save(library.root / "alpha" / "train" / "ant" / "rgba.png")
    Image.fromarray(clear).convert("LA").save(library.root / "alpha" / "train" / "ant" / "la.png")
    pixels = library.load("alpha", "train").pixels
    assert (1, 2, 3) in [tuple(picture[:, 5, 5].tolist()) for picture in pixels]
    assert caplog.messages == [
        "alpha: train: the transparency of 2 pictures is left out; the colours below it are read"
    ]


def test_labels_that_may_surprise_are_said(library: DataLibrary, caplog: pytest.LogCaptureFixture) -> None:
    """In any layout: a class without pictures, and names that the data set does not declare."""
    values = np.array([1, 3, 1, 3])
    shard(library.root / "parquet" / "train.parquet", columns={"label": pa.array(values)}, count=4)
    write_npz(library.root / "npz" / "train.npz", pictures(4), values)
    for name in ("parquet", "npz"):
        assert library.info(name, "train").histogram == (0, 2, 0, 2)
        assert caplog.messages == [f"{name}: train: no pictures of class 0, 2; labels stay"]
        caplog.clear()
    library.datasets["cifar10"] = Cifar10()
    names = tuple("plane" if name == "airplane" else name for name in Cifar10.classes)
    put(library.root / "cifar10" / "train", *(f"{name}/0.png" for name in names))
    assert library.info("cifar10", "train").classes == tuple(sorted(names))
    assert caplog.messages == [
        "cifar10: train: label 0 is automobile, where airplane is declared: the files are followed"
    ]

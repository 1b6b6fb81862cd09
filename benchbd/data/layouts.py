"""The layouts that a data set in a folder may have.

A layout finds the files of a stored split and reads them; unusable content is a DataError of one line that names the
file and the row. Rows count from 0.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchbd.base.arrays import read_npz
from benchbd.base.errors import DataError, fault
from benchbd.base.inputs import file_kind, is_stand_in, is_text
from benchbd.base.pictures import (
    NOBODYS,
    Pixels,
    decode_images,
    is_picture,
    pictures_below,
    remark,
    resize_images,
)
from benchbd.data.classes import Labels, check_labels, name_labels
from benchbd.data.parquet import read_parquet, why_unlabeled

STORED = ("train", "test", "unlabeled", "train_unlabeled")  # the splits that a folder may hold

WITHOUT_LABELS = STORED[2:]

ACCEPTED = "Parquet (train-*.parquet), npz (train.npz) or an image folder (train/<class>/<picture>)"

# Names of a split, ignoring case; a row of names is used only if no file has a name of the row before.
CALLED: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (("train", "training"),),
    "test": (("test", "testing"), ("validation", "valid", "val", "dev")),
    "unlabeled": (("unlabeled", "unlabelled", "unsupervised"),),
    "train_unlabeled": (("train_unlabeled",),),
}

_WORDS = {word for rows in CALLED.values() for words in rows for word in words}


class Raw(NamedTuple):
    """A split as read: uint8 (N, H, W, 3) of the wanted size; int64 (N,) or None; the class names, () if the files
    contain none."""

    pixels: Pixels
    labels: Labels | None
    classes: tuple[str, ...] = ()


class Wanted(NamedTuple):
    """What a layout is to read from its files.

    split: the stored split. expected: the class names to check labels against, () if none are known.
    column: the label column that a user chose, "" if none. size: of the images, in pixels.
    """

    split: str
    size: int
    expected: tuple[str, ...] = ()
    column: str = ""

    @property
    def unlabeled(self) -> bool:
        return self.split in WITHOUT_LABELS


class Reader(NamedTuple):
    """A layout. find: (a folder, a name of a split) -> every set of files of that split, each in order.
    read: read one set, without labels if the files have none. needs: what the files must contain."""

    find: Callable[[Path, str], Iterator[list[Path]]]
    read: Callable[[list[Path], Wanted], Raw]
    needs: str


def find(layout: str, folder: Path, split: str) -> list[Path]:
    """The files of a split, in order; [] if there are none, DataError if there are two sets."""
    for words in CALLED[split]:
        found = list(_found(layout, folder, words))
        if len(found) > 1:
            first, second = (files[0].relative_to(folder).as_posix() for files in found[:2])
            raise DataError(f"{folder}: {first} and {second} are two {split} splits: keep one")
        if found:
            return found[0]
    return []


def layouts_in(folder: Path) -> list[str]:
    """The layouts in which a folder holds splits."""
    return [layout for layout in READERS if any(_found(layout, folder, _WORDS))]


def _found(layout: str, folder: Path, words: Iterable[str]) -> Iterator[list[Path]]:
    """Every set of files in this layout that has one of the words as its name."""
    for home in _homes(folder, deep=layout == "Parquet"):
        for word in words:
            yield from READERS[layout].find(home, word)


def stand_in(split: str, files: list[Path]) -> bool:
    """Whether the files of a split have another split's name, as a validation split in place of a missing test one."""
    names = {part.lower() for part in (*re.split(r"[-.]", files[0].name), files[0].parent.name)}
    return split == "test" and not names & {*CALLED["test"][0]}


def held(folder: Path, most: int = 5) -> str:
    """A folder's content as a clause: "; it holds a.zip, images/ and 3 more"; empty if the folder is empty."""
    kinds = {
        path: "/" if path.is_dir() else "" if path.exists() else " (a link to nowhere)" for path in _children(folder)
    }
    names = [path.name + kind for path, kind in kinds.items()]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"; it holds {', '.join(names[:most])}{more}" if names else ""


def _homes(folder: Path, deep: bool) -> list[Path]:
    """Folders that may contain splits: the folder and data/; with ``deep``, folders of configurations too."""
    children = (path for path in _children(folder) if path.name.lower().partition(".")[0] not in _WORDS)
    below = [path for path in children if path.is_dir()]
    return [folder, *(path for path in below if deep or path.name == "data")]


def _children(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not (path.name.startswith(".") or path.name in NOBODYS))


def _called(home: Path, word: str) -> list[Path]:
    """The entries of a folder that have this name, ignoring case and suffix."""
    return [path for path in _children(home) if path.name.lower().partition(".")[0] == word]


# Parquet


def _find_parquet(home: Path, word: str) -> Iterator[list[Path]]:
    """<word>.parquet, <word>-*.parquet, or <word>/*.parquet, as the hub converts data sets."""
    named = re.compile(rf"{word}(-.*)?\.parquet", re.IGNORECASE)
    if files := [path for path in _children(home) if named.fullmatch(path.name) and not path.is_dir()]:
        yield files
    for folder in _called(home, word):
        if files := _parquet_in(folder):
            yield files


def _parquet_in(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if path.suffix.lower() == ".parquet"]


def _read_parquet(files: list[Path], wanted: Wanted) -> Raw:
    return Raw(*read_parquet(files, wanted.split, wanted.size, wanted.expected, wanted.column, wanted.unlabeled))


# npz


def _find_npz(home: Path, word: str) -> Iterator[list[Path]]:
    for path in _called(home, word):
        if path.suffix.lower() == ".npz":
            yield [path]


def _read_npz(files: list[Path], wanted: Wanted) -> Raw:
    [file] = files
    arrays = read_npz(file, "x", optional=() if wanted.unlabeled else ("y",))
    x, y = arrays["x"], arrays.get("y")
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3 or 0 in x.shape[1:]:
        raise DataError(f"{file}: x must be uint8 (N, H, W, 3), not {x.dtype} {x.shape}")
    if y is None:
        return Raw(resize_images(x, wanted.size), None)
    if not np.issubdtype(y.dtype, np.integer) or y.shape not in ((len(x),), (len(x), 1)):
        raise DataError(f"{file}: y must be integer ({len(x)},) or ({len(x)}, 1), not {y.dtype} {y.shape}")
    labels = y.reshape(-1).astype(np.int64)
    check_labels(file, labels, wanted.expected)
    return Raw(resize_images(x, wanted.size), labels)


# Image folders


def _find_folder(home: Path, word: str) -> Iterator[list[Path]]:
    """<word>/, and beside it the table <word>.csv if its pictures lie in no class folders."""
    called = _called(home, word)
    tables = [path for path in called if path.suffix.lower() == ".csv"]
    folders = [path for path in called if path.is_dir() and (not _parquet_in(path) or _pictures_in(path))]
    if any(_twins(folder) for folder in folders) and tables:
        named = _named_by(tables[0])
        folders = [folder for folder in folders if folder.name == named] or folders
    for folder in folders:
        yield [folder, *tables] if tables and not class_folders(folder) else [folder]


def _pictures_in(folder: Path) -> bool:
    """Whether a folder that contains Parquet files contains an image folder too."""
    return bool(class_folders(folder)) or any(path.is_file() and is_picture(path) for path in _children(folder))


def _twins(folder: Path) -> list[Path]:
    """The sibling folders whose names differ from the folder's in case alone: Kaggle's GTSRB has Train/ and train/."""
    others = (path for path in _children(folder.parent) if path != folder and path.is_dir())
    return [path for path in others if path.name.lower() == folder.name.lower()]


def _named_by(table: Path) -> str:
    """The folder that contains a table's first picture; "" if the table does not name it."""
    with suppress(DataError, OSError):  # reading the table raises it later
        return next((path.partition("/")[0] for path, _ in _rows(table) if "/" in path), "")
    return ""


def class_folders(top: Path) -> list[str]:
    """Names of the folders in ``top`` that may be classes, sorted, without those that archives and systems add."""
    return [path.name for path in _children(top) if path.is_dir()]


def _read_folder(files: list[Path], wanted: Wanted) -> Raw:
    top, *tables = files
    pictures = pictures_below(top, f"the {wanted.split} split")
    for twin in _twins(top):
        remark(f"{top.name}/ is read and {twin.name}/ is not, for the table beside them names {top.name}/")
    flat = all(path.parent == top for path in pictures)
    if wanted.unlabeled or (flat and not tables):
        return Raw(decode_images(pictures, lambda i: str(pictures[i]), wanted.size), None)
    if flat:
        names = _table(tables[0], pictures)
    elif stray := [path for path in pictures if path.parent.parent != top]:
        raise DataError(f"{stray[0]}: pictures belong in {top}/<class>/")
    else:
        names = [path.parent.name for path in pictures]
    index, classes = _folder_labels(top, wanted, names)
    labels = np.array([index[name] for name in names], np.int64)
    order = np.argsort(labels, kind="stable") if not flat else np.arange(len(labels))  # "10" is not between "1" and "2"
    pictures = [pictures[row] for row in order]
    return Raw(decode_images(pictures, lambda i: str(pictures[i]), wanted.size), labels[order], classes)


def _folder_labels(top: Path, wanted: Wanted, names: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each class, and the class names in label order. names: the classes of the pictures."""
    folders, filled = class_folders(top), set(names)
    if strange := [name for name in folders if not is_text(name)]:
        raise DataError(f"{top / strange[0]}: a class name that is no UTF-8: rename the folder")
    if ignored := sorted(path.name for path in top.iterdir() if path.is_dir() and path.name in NOBODYS):
        remark(f"{', '.join(ignored)} ignored, for it is no class")
    try:
        index, classes = name_labels({*folders, *filled}, wanted.expected, fixed=wanted.split == "test")
    except DataError as error:
        raise DataError(f"{top}: {error}") from error
    empty = [name for name in folders if name not in filled and not name.isdecimal()]
    if empty and wanted.split != "test" and classes != wanted.expected:
        raise DataError(f"{top / empty[0]}: no picture in it, so it is no class: fill or remove it")
    return index, classes


def _table(table: Path, pictures: Iterable[Path]) -> list[str]:
    """The class of each picture from a CSV table with ClassId and Path or Filename, as in Kaggle's GTSRB."""
    classes: dict[str, str] = {}
    for path, name in _rows(table):
        if (other := classes.setdefault(Path(path).name, name)) != name:
            raise DataError(f"{table}: {Path(path).name} is in two rows, of class {other} and of class {name}")
    names = [path.name for path in pictures]
    if absent := [name for name in names if name not in classes]:
        raise DataError(f"{table}: no row for {absent[0]}")
    if lost := sorted({*classes} - {*names}):
        raise DataError(f"{table}: it has a row for {lost[0]}, which is not there")
    return [classes[name] for name in names]


def _rows(table: Path) -> Iterator[tuple[str, str]]:
    """Path and class of each row of a table."""
    what = f"{table}: not a table with Path (or Filename) and ClassId"
    if is_stand_in(kind := file_kind(table)):
        raise DataError(f"{what} (it is {kind})")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
        rows = csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ",")
        column = next((name for name in ("Path", "Filename") if name in (rows.fieldnames or ())), "")
        if not column or "ClassId" not in (rows.fieldnames or ()):
            raise DataError(f"{what} (its columns are {', '.join(rows.fieldnames or ())})")
        for number, row in enumerate(rows):
            if row[column] is None or row["ClassId"] is None:
                raise DataError(f"{what} (row {number} ends early)")
            yield row[column].strip(), row["ClassId"].strip()
    except (ValueError, csv.Error) as error:
        raise DataError(f"{what} ({fault(error)})") from error


# Why a labelled split without labels is unusable


def unlabeled_reason(layout: str, name: str, split: str, files: list[Path]) -> str:
    """Why a split that should have labels has none."""
    if layout == "Parquet":
        return why_unlabeled(files[0], name)
    return f"{files[0]}: {split} has no labels: {READERS[layout].needs}"


READERS = {
    "Parquet": Reader(_find_parquet, _read_parquet, "they are in a column 'label'"),
    "npz": Reader(_find_npz, _read_npz, "they are in an array 'y'"),
    "image folder": Reader(_find_folder, _read_folder, "they are the names of folders <class>/ in it"),
}

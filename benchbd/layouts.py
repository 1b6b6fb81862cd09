"""How a data set may lie in a folder.

A layout finds the files of a stored split and reads them; what it cannot use is a DataError of one line that names the
file and the row. Rows count from 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchbd.arrays import read_npz
from benchbd.errors import DataError
from benchbd.inputs import file_kind, obstacle
from benchbd.pictures import NOBODYS, SIZE, Pixels, decode_images, expand, is_picture, of_kinds, remark, resize_images

STORED = ("train", "test", "unlabeled", "train_unlabeled")  # the splits that a folder may hold
WITHOUT_LABELS = STORED[2:]
ACCEPTED = "Parquet (train-*.parquet), npz (train.npz) or an image folder (train/<class>/<picture>)"
MOST_CLASSES = 10_000  # a folder is named by a number above it for another reason than its label

Labels = NDArray[np.int64]


# Layouts: how to find the files of a split, and how to read them


class Raw(NamedTuple):
    """A split as read: uint8 (N, 32, 32, 3); int64 (N,) or None; the class names, () where the files do not tell."""

    pixels: Pixels
    labels: Labels | None
    classes: tuple[str, ...] = ()


class Reader(NamedTuple):
    find: Callable[[Path, str], list[Path]]  # (folder, split) -> its files in order, [] where there are none
    read: Callable[[list[Path], str, tuple[str, ...]], Raw]  # (files, split, expected classes)


def _find_parquet(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.parquet"))


def _read_parquet(files: list[Path], split: str, expected: tuple[str, ...]) -> Raw:
    totals = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)\.parquet$", file.name))}
    if totals and totals != {len(files)}:
        where = files[0].parent
        raise DataError(f"{where}: {len(files)} Parquet files of {split}, but their names promise {max(totals)}")
    pictures: list[bytes] = []
    rows: list[tuple[Path, int]] = []
    labels: list[Labels] = []
    classes: tuple[str, ...] = ()
    for file in files:
        encoded, values, names = _read_shard(file, split)
        if labels and names != classes:
            raise DataError(f"{file}: its class names differ from those of {files[0].name}")
        classes = names
        check_labels(file, split, values, names or expected)
        pictures += encoded
        rows += [(file, row) for row in range(len(encoded))]
        labels.append(values)
    pixels = decode_images(pictures, lambda i: f"{rows[i][0]}: row {rows[i][1]}")
    return Raw(pixels, np.concatenate(labels), classes)


def _read_shard(file: Path, split: str) -> tuple[list[bytes], Labels, tuple[str, ...]]:
    """The encoded pictures, labels (-1 where an unlabeled split has none) and class names of a Parquet file.

    Pictures are in the column ``image``, or ``img`` as in the hub's CIFAR-10.
    """
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            column = "img" if "img" in schema.names and "image" not in schema.names else "image"
            needed = [column] if split in WITHOUT_LABELS else [column, "label"]
            if absent := [name for name in needed if name not in schema.names]:
                raise DataError(f"{file}: no column {absent[0]!r}; it has {', '.join(schema.names)}")
            table = parquet.read([name for name in (column, "label") if name in schema.names])
    except (pa.ArrowException, OSError) as error:
        if reason := obstacle(error):
            raise DataError(f"{file}: cannot be read ({reason})") from error
        kind = file_kind(file)
        found = f"it is {kind}" if kind and "Parquet" not in kind else first_line(error)
        raise DataError(f"{file}: not a readable Parquet file ({found})") from error
    image = table[column].combine_chunks()
    if pa.types.is_struct(image.type) and image.type.get_field_index("bytes") >= 0:
        image = image.field("bytes")
    if not (pa.types.is_binary(image.type) or pa.types.is_large_binary(image.type)):
        raise DataError(f"{file}: column {column!r} must be struct{{bytes, path}} or binary, not {image.type}")
    pictures = image.to_pylist()
    if None in pictures:
        raise DataError(f"{file}: row {pictures.index(None)}: no picture")
    if "label" not in table.column_names:
        return pictures, np.full(len(pictures), -1), ()
    label = table["label"].combine_chunks()
    if not pa.types.is_integer(label.type):
        raise DataError(f"{file}: column 'label' must be an integer, not {label.type}")
    if label.null_count:
        raise DataError(f"{file}: row {label.is_null().to_pylist().index(True)}: no label")
    return pictures, label.to_numpy(zero_copy_only=False).astype(np.int64), _class_label_names(file, schema.metadata)


def _class_label_names(file: Path, metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """The names of Hugging Face's ClassLabel; () where the file declares none."""
    if not metadata or b"huggingface" not in metadata:
        return ()
    try:
        label = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {}).get("label", {})
        return tuple(str(name) for name in label.get("names") or ())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file}: its 'huggingface' metadata is not what Hugging Face writes ({first_line(error)})"
        ) from error


def _find_npz(folder: Path, split: str) -> list[Path]:
    return [path for path in (folder / f"{split}.npz",) if path.is_file()]


def _read_npz(files: list[Path], split: str, expected: tuple[str, ...]) -> Raw:
    [file] = files
    arrays = read_npz(file, "x", "y")
    x, y = arrays["x"], arrays["y"]
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3 or 0 in x.shape[1:]:
        raise DataError(f"{file}: x must be uint8 (N, {SIZE}, {SIZE}, 3), not {x.dtype} {x.shape}")
    if not np.issubdtype(y.dtype, np.integer) or y.shape not in ((len(x),), (len(x), 1)):
        raise DataError(f"{file}: y must be integer ({len(x)},) or ({len(x)}, 1), not {y.dtype} {y.shape}")
    labels = y.reshape(-1).astype(np.int64)
    check_labels(file, split, labels, expected)
    return Raw(resize_images(x), labels)


def _find_folder(folder: Path, split: str) -> list[Path]:
    return [path for path in (folder / split,) if path.is_dir()]


def _read_folder(files: list[Path], split: str, expected: tuple[str, ...]) -> Raw:
    [top] = files
    found = expand(files)
    pictures = [path for path in found if is_picture(path)]
    skipped = sorted({*found} - {*pictures})
    if not pictures:
        held = f", and {of_kinds(skipped)} of other kinds" if skipped else ""
        raise DataError(f"{top}: the {split} split is empty: no picture below it{held}")
    if skipped:
        remark(f"{of_kinds(skipped)} skipped, for they are no pictures")
    if split in WITHOUT_LABELS:
        return Raw(decode_images(pictures, lambda i: str(pictures[i])), None)
    if stray := [path for path in pictures if path.parent.parent != top]:
        raise DataError(f"{stray[0]}: pictures belong in {top}/<class>/")
    index, classes = _classes(top, split, expected, {path.parent.name for path in pictures})
    pictures.sort(key=lambda path: (index[path.parent.name], path))  # "10" is no class between "1" and "2"
    labels = np.array([index[path.parent.name] for path in pictures], np.int64)
    return Raw(decode_images(pictures, lambda i: str(pictures[i])), labels, classes)


def class_folders(top: Path) -> list[str]:
    """Names of the folders in ``top`` that may be classes, sorted; what archives and systems leave there is none."""
    return sorted(
        path.name for path in top.iterdir() if path.is_dir() and not (path.name.startswith(".") or path.name in NOBODYS)
    )


def _classes(
    top: Path, split: str, expected: tuple[str, ...], filled: Iterable[str]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each class folder, and the class names in label order. filled: the folders with pictures."""
    names = class_folders(top)
    if ignored := sorted(path.name for path in top.iterdir() if path.is_dir() and path.name in NOBODYS):
        remark(f"{', '.join(ignored)} ignored, for it is no class")
    index, unknown = _expected_labels(names, expected)
    if expected and not unknown:
        return index, expected
    if split == "test":
        raise DataError(f"{top / unknown[0]}: train has no class of that name")
    if expected and all(name.isdecimal() for name in names):
        known = f"0..{len(expected) - 1} ({len(expected)} classes are known)"
        raise DataError(f"{top / unknown[0]}: label {int(unknown[0])} is out of range {known}")
    try:
        index, classes = label_names(names)
    except DataError as error:
        raise DataError(f"{top}: {error}") from error
    empty = [name for name in names if name not in set(filled)]
    if shifting := [name for name in empty if not name.isdecimal()]:
        raise DataError(f"{top / shifting[0]}: no picture in it, so it is no class: fill or remove it")
    if absent := [name for name in classes if name not in set(filled)]:
        remark(f"no pictures of class {', '.join(absent[:5])}{', ...' * (len(absent) > 5)}; labels stay")
    return index, classes


def _expected_labels(names: Iterable[str], expected: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
    """Labels among the expected classes, by name or by number; and the names that are none of them."""
    index = {name: label for label, name in enumerate(expected)}
    unknown = []
    for name in names:
        if name in index:
            continue
        label = int(name) if name.isdecimal() else len(expected)
        # "3" is the label 3, unless that class has another number for its name.
        if label < len(expected) and (not expected[label].isdecimal() or int(expected[label]) == label):
            index[name] = label
        else:
            unknown.append(name)
    return index, unknown


def label_names(names: Iterable[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Labels of class names, and the classes in label order, where only the names tell.

    A number is its own label, whatever else is there or missing; other names follow, sorted. A label without a name
    is called by its number, with the zeros in front that the others have. DataError where two names are one number, or
    a number is too large for a label.
    """
    numbers: dict[int, str] = {}
    others = []
    for name in sorted(names):
        if not name.isdecimal():
            others.append(name)
        elif (label := int(name)) >= MOST_CLASSES:
            raise DataError(
                f"class {name}: a class that is named by a number has it for its label, up to {MOST_CLASSES - 1:,}; "
                f"name it class-{name} instead"
            )
        elif label in numbers:
            raise DataError(f"classes {numbers[label]} and {name} are one number, and so one label")
        else:
            numbers[label] = name
    widths = {len(name) for name in numbers.values()}
    digits = widths.pop() if len(widths) == 1 else 0
    first = max(numbers, default=-1) + 1
    classes = [*(numbers.get(label, str(label).zfill(digits)) for label in range(first)), *others]
    index = {name: label for label, name in numbers.items()} | {name: first + i for i, name in enumerate(others)}
    return index, tuple(classes)


READERS = {
    "Parquet": Reader(_find_parquet, _read_parquet),
    "npz": Reader(_find_npz, _read_npz),
    "image folder": Reader(_find_folder, _read_folder),
}


def layouts_in(folder: Path) -> list[str]:
    return [name for name, reader in READERS.items() if any(reader.find(folder, split) for split in STORED)]


def check_labels(file: Path, split: str, labels: Labels, classes: tuple[str, ...]) -> None:
    """Labels are 0..C-1 where the class names are known, at least 0 elsewhere; -1 is legal in an unlabeled split."""
    lowest = -1 if split in WITHOUT_LABELS else 0
    # Without names the labels say how many classes there are; more classes than images is a mistake.
    limit = len(classes) if classes else max(len(labels), 1)
    bad = np.flatnonzero((labels < lowest) | (labels >= limit))
    if len(bad):
        known = f"{limit} classes are known" if classes else f"no class names, and only {limit} images"
        raise DataError(f"{file}: row {bad[0]}: label {labels[bad[0]]} is out of range {lowest}..{limit - 1} ({known})")


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

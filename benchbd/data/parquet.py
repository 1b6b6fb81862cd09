"""Data sets as Parquet: shards as the Hugging Face hub writes them, with columns of encoded pictures and labels."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchbd.base.errors import DataError, fault
from benchbd.base.inputs import file_kind, obstacle
from benchbd.base.pictures import Decoder, Pixels, remark
from benchbd.data.classes import Labels, check_labels, name_labels

LABEL = "label"  # the column of the labels, unless the user chose another

_OTHER_LABELS = ("class", "target", "digit", "category")  # its other names, besides all that contain "label"

AT_ONCE = 512  # encoded pictures in memory

_OF = re.compile(r"-(\d+)-of-(\d+)(?:-\w+)?\.parquet$", re.IGNORECASE)

_NUMBER = re.compile(r"(.*?)(\d+)\.parquet", re.IGNORECASE)


def read_parquet(
    files: Sequence[Path], split: str, size: int, expected: tuple[str, ...], column: str, unlabeled: bool
) -> tuple[Pixels, Labels | None, tuple[str, ...]]:
    """Pixels of ``size``, labels and class names of a split; labels are None if ``label_column`` finds no column.
    Pictures are decoded while they are read: they are never in memory all at once.

    column: the label column that a user chose, or "". unlabeled: whether to ignore labels.
    """
    _check_shards(files, split)
    chosen = "" if unlabeled else label_column(files[0], column)
    if chosen and chosen != (column or LABEL):
        remark(f"labels are those of column {chosen!r}")
    shards: dict[Path, tuple[str, int]] = {}
    labels: dict[Path, Labels | list[str]] = {}
    classes: tuple[str, ...] = ()
    for file in files:
        picture, count, values, names = _read_shard(file, chosen)
        if values is not None:
            labels[file] = values
            if isinstance(values, list) != isinstance(labels[files[0]], list):
                raise DataError(f"{file}: labels are names in one shard and integers in another, {files[0].name}")
        if shards and names != classes:
            raise DataError(f"{file}: its class names differ from those of {files[0].name}")
        classes = names
        shards[file] = picture, count
    classes = classes or expected
    if labels and isinstance(labels[files[0]], list):
        named, classes = _named(labels, expected, fixed=split == "test")
        labels = dict(named)
    total = sum(count for _, count in shards.values())
    for file, values in labels.items():
        assert isinstance(values, np.ndarray)
        check_labels(file, values, classes, images=total)
    decoder = Decoder(total, size)
    for file, (picture, _) in shards.items():
        for row, pictures in _pictures(file, picture):
            decoder.add(pictures, _rows_from(file, row))
    return decoder.pixels(), np.concatenate(list(labels.values())) if labels else None, classes


def _rows_from(file: Path, first: int) -> Callable[[int], str]:
    """A function that names the i-th picture of a part for messages."""
    return lambda i: f"{file}: row {first + i}"


def _named(
    labels: Mapping[Path, Any], expected: tuple[str, ...], fixed: bool
) -> tuple[dict[Path, Labels], tuple[str, ...]]:
    """Labels that are names as integers, by file; and the class names."""
    try:
        index, classes = name_labels({name for names in labels.values() for name in names}, expected, fixed=fixed)
    except DataError as error:
        raise DataError(f"{next(iter(labels))}: {error}") from error
    return {file: np.array([index[name] for name in names], np.int64) for file, names in labels.items()}, classes


def _check_shards(files: Sequence[Path], split: str) -> None:
    """DataError if the names of the files imply missing ones, or repeat one."""
    where, there = files[0].parent, defaultdict(list)
    parts = {file: match for file in files if (match := _OF.search(file.name))}
    totals = {file: int(match[2]) for file, match in parts.items()}
    whole = {file.stem.lower(): file for file in files}
    odd = [
        (whole[stem], file) for file in files if not parts and (stem := file.stem.lower().rpartition("-")[0]) in whole
    ]
    if other := next((file for file in files if parts and totals.get(file) != max(totals.values())), None):
        odd.append((next(file for file in parts if totals[file] == max(totals.values())), other))
    for one, other in odd:
        raise DataError(f"{where}: {one.name} and {other.name} are not of one set of {split} shards: keep one")
    numbers = {file.name: int(match[1]) for file, match in parts.items()} or _numbers(files)
    for name, number in numbers.items():
        there[number].append(name)
    if twice := next((names for names in there.values() if len(names) > 1), None):
        raise DataError(f"{where}: one {split} shard twice, {twice[0]} and {twice[1]}: keep one")
    # The hub counts from 0, with bare numbers too; other sources may count from 1.
    first = 1 if there and min(there) == 1 and not (parts or files[0].stem.isdecimal()) else 0
    count = max(totals.values(), default=max(there, default=-1) + 1)
    if absent := [number for number in range(first, count) if number not in there]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise DataError(
            f"{where}: {len(files)} Parquet files of {split}, but their names promise {count - first}: "
            f"number {absent[0]}{more} is not there"
        )


def _numbers(files: Sequence[Path]) -> dict[str, int]:
    """The number at the end of each name if these numbers count the files, from 0 or 1; else {}: years do not count."""
    matches = [match for file in files if (match := _NUMBER.fullmatch(file.name))]
    numbers = {match.string: int(match[2]) for match in matches}
    alike = len(matches) == len(files) and len({match[1].lower() for match in matches}) == 1
    return numbers if alike and (not matches[0][1] or min(numbers.values()) < 2) else {}


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(file, buffer_size=2**20) as parquet:  # read a large row group page by page
            yield parquet
    except (pa.ArrowException, OSError) as error:
        if reason := obstacle(error):
            raise DataError(f"{file}: cannot be read ({reason})") from error
        kind = file_kind(file)
        found = f"it is {kind}" if kind and "Parquet" not in kind else fault(error)
        raise DataError(f"{file}: not a readable Parquet file ({found})") from error


def label_column(file: Path, column: str = "") -> str:
    """The column of a file's labels: the one that a user chose, else ``label``, else the only candidate; "" if there is
    none, or more than one. DataError if the column that a user chose does not exist."""
    with _opened(file) as parquet:
        names = parquet.schema_arrow.names
    if column and column not in names:
        raise DataError(f"{file}: no column {column!r}; it has {', '.join(names)}")
    found = _candidates(names)
    return column or (LABEL if LABEL in names else found[0] if len(found) == 1 else "")


def why_unlabeled(file: Path, name: str) -> str:
    """Why ``label_column`` finds no column in a file of the data set ``name``."""
    with _opened(file) as parquet:
        names = parquet.schema_arrow.names
    if not (found := _candidates(names)):
        return f"{file}: no column {LABEL!r}; it has {', '.join(names)}"
    return f"{file}: labels may be {' or '.join(found)}: name one, as in {name}@{found[0]}"


def _candidates(names: Sequence[str]) -> list[str]:
    """The columns that could be labels, by their names."""
    return [name for name in names if LABEL in name.lower() or name.lower() in _OTHER_LABELS]


def _read_shard(file: Path, column: str) -> tuple[str, int, Labels | list[str] | None, tuple[str, ...]]:
    """The column of the pictures and their number, labels (names if they are strings; None without a column) and
    class names of a file.

    Pictures are in the column ``image``, or ``img`` as in the hub's CIFAR-10.
    """
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        picture = "img" if "img" in schema.names and "image" not in schema.names else "image"
        needed = [picture, *([column] if column else [])]
        if odd := [name for name in needed if schema.names.count(name) != 1]:
            number = {0: "no column"}.get(schema.names.count(odd[0]), "more than one column")
            raise DataError(f"{file}: {number} {odd[0]!r}; it has {', '.join(schema.names)}")
        kind, count = _stored(schema.field(picture).type), parquet.metadata.num_rows
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(f"{file}: column {picture!r} must be struct{{bytes, path}} or binary, not {kind}")
        if not column:
            return picture, count, None, ()
        table = parquet.read([column])
    label = table[column].combine_chunks()
    if pa.types.is_dictionary(label.type):
        label = label.dictionary_decode()
    text = pa.types.is_string(label.type) or pa.types.is_large_string(label.type)
    if not (text or pa.types.is_integer(label.type)):
        raise DataError(f"{file}: column {column!r} must be integers or names, not {label.type}")
    if label.null_count:
        raise DataError(f"{file}: row {label.is_null().to_pylist().index(True)}: no label")
    if text:
        return picture, count, label.to_pylist(), ()
    names = _class_label_names(file, column, schema.metadata)
    return picture, count, label.to_numpy(zero_copy_only=False).astype(np.int64), names


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type of encoded pictures in a column of this type."""
    of_bytes = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return kind if of_bytes < 0 else kind.field(of_bytes).type


def _pictures(file: Path, column: str) -> Iterator[tuple[int, list[bytes]]]:
    """The encoded pictures of a file in parts, each with the row of its first picture."""
    row = 0
    with _opened(file) as parquet:
        for batch in parquet.iter_batches(AT_ONCE, columns=[column]):
            image = batch.column(0)
            if pa.types.is_struct(image.type):
                image = image.field("bytes")
            pictures = image.to_pylist()
            if None in pictures:
                raise DataError(f"{file}: row {row + pictures.index(None)}: no picture")
            yield row, pictures
            row += len(pictures)


def _class_label_names(file: Path, column: str, metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """The names of Hugging Face's ClassLabel; () if the file declares none."""
    if not metadata or b"huggingface" not in metadata:
        return ()
    try:
        label = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {}).get(column, {})
        return tuple(str(name) for name in label.get("names") or ())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file}: its 'huggingface' metadata is not what Hugging Face writes ({fault(error)})"
        ) from error

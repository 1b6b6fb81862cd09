"""How a data set may lie in a folder, and how its pictures become uint8 32x32 RGB.

A layout finds the files of a stored split and reads them; what it cannot use is a DataError of one line that names the
file and the row. Rows count from 0.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchbd.arrays import bounded_pictures, picture_fault, read_npz
from benchbd.errors import DataError
from benchbd.inputs import HEAD, file_kind, obstacle

SIZE = 32  # pixels; images.RESIZE_RULE names how pictures of other sizes get there
STORED = ("train", "test", "unlabeled", "train_unlabeled")  # the splits that a folder may hold
WITHOUT_LABELS = STORED[2:]
ACCEPTED = "Parquet (train-*.parquet), npz (train.npz) or an image folder (train/<class>/<picture>)"
PICTURES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp"))

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


def decode_images(pictures: Sequence[bytes | Path], where: Callable[[int], str]) -> Pixels:
    """Encoded pictures, or files of them, as uint8 (N, 32, 32, 3) RGB; one of another size is resized, bilinear.

    where: names picture ``i`` in the DataError that a damaged one raises.
    """

    def decode(row: int) -> Image.Image:
        picture = pictures[row]
        try:
            with Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture)) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"mode {image.mode}, 8 bits per channel are expected")
                if "transparency" in image.info:
                    return image.convert("RGBA").convert("RGB")
                return image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise whatever they like on damaged bytes
            raise DataError(f"{where(row)}: {picture_fault(error, _head(picture))}") from error

    with bounded_pictures():
        return _in_threads(len(pictures), decode)


def _head(picture: bytes | Path) -> bytes:
    """The first bytes of a picture; none where its file cannot be read."""
    if isinstance(picture, bytes):
        return picture[:HEAD]
    try:
        with picture.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def resize_images(pixels: Pixels) -> Pixels:
    """uint8 (N, H, W, 3) as uint8 (N, 32, 32, 3), by the rule of ``decode_images``."""
    if pixels.shape[1:3] == (SIZE, SIZE):
        return pixels
    return _in_threads(len(pixels), lambda row: Image.fromarray(np.ascontiguousarray(pixels[row])))


def _in_threads(count: int, picture: Callable[[int], Image.Image]) -> Pixels:
    out = np.empty((count, SIZE, SIZE, 3), np.uint8)

    def fill(start: int) -> None:
        for row in range(start, min(start + 512, count)):
            image = picture(row)
            if image.size != (SIZE, SIZE):
                image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            out[row] = np.asarray(image)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        for done in [threads.submit(fill, start) for start in range(0, count, 512)]:
            done.result()
    return out


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
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (SIZE, SIZE, 3):
        raise DataError(f"{file}: x must be uint8 (N, {SIZE}, {SIZE}, 3), not {x.dtype} {x.shape}")
    if not np.issubdtype(y.dtype, np.integer) or y.shape not in ((len(x),), (len(x), 1)):
        raise DataError(f"{file}: y must be integer ({len(x)},) or ({len(x)}, 1), not {y.dtype} {y.shape}")
    labels = y.reshape(-1).astype(np.int64)
    check_labels(file, split, labels, expected)
    return Raw(x, labels)


def _find_folder(folder: Path, split: str) -> list[Path]:
    return [path for path in (folder / split,) if path.is_dir()]


def _read_folder(files: list[Path], split: str, expected: tuple[str, ...]) -> Raw:
    [top] = files
    pictures = [path for path in expand(files) if path.suffix.lower() in PICTURES]
    if split in WITHOUT_LABELS:
        return Raw(decode_images(pictures, lambda i: str(pictures[i])), None)
    if stray := [path for path in pictures if path.parent.parent != top]:
        raise DataError(f"{stray[0]}: pictures belong in {top}/<class>/")
    names = {path.name for path in top.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if names <= set(expected):
        classes = expected
    elif split == "test":
        raise DataError(f"{top / min(names - set(expected))}: train has no class of that name")
    else:
        # Folders named by number keep their numbers' order: "10" is not the class after "1".
        classes = tuple(
            sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
        )
    index = {name: label for label, name in enumerate(classes)}
    labels = np.array([index[path.parent.name] for path in pictures], np.int64)
    return Raw(decode_images(pictures, lambda i: str(pictures[i])), labels, classes)


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


def expand(paths: Sequence[Path]) -> list[Path]:
    """The files, and those below the folders, in a fixed order; hidden ones are nobody's data."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
            files += sorted(p for p in below if p.is_file())
        else:
            files.append(path)
    return files


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

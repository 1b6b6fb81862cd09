"""Read arrays and pictures, recognised by their content; a file that cannot be read is a DataError of one line."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import torch
from numpy.lib.npyio import NpzFile
from PIL import Image, UnidentifiedImageError

from benchbd.base.content import expanded
from benchbd.base.errors import DataError, fault
from benchbd.base.inputs import file_kind, kind_of, obstacle
from benchbd.base.mapped import LARGE, blank

Array = np.ndarray[Any, Any]


def read_npz(path: str | Path, *keys: str, optional: Sequence[str] = ()) -> dict[str, Array]:
    """The named arrays of an npz file; DataError if the file is absent, damaged or lacks one. Never unpickles.
    An array of more than ``LARGE`` bytes lies in an unnamed file instead of memory.

    optional: keys that may be missing.
    """
    path = expanded(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            absent = [key for key in keys if key not in archive]
            if absent:
                raise DataError(f"{path}: no array {absent[0]!r} in it; it has {sorted(archive.files)}")
            arrays = {key: _array(archive, key) for key in (*keys, *optional) if key in archive}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise DataError(f"{path}: not a readable npz file (a member is no array)")
            return arrays
    except DataError:
        raise
    except Exception as error:  # a damaged archive fails in zipfile, zlib, struct and numpy, each in its own ways
        raise _unreadable(path, "npz file", "a zip", error) from error


def _array(archive: NpzFile, key: str) -> Array:
    assert archive.zip is not None
    name = f"{key}.npy" if f"{key}.npy" in archive.zip.namelist() else key
    with archive.zip.open(name) as member:
        headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if (header := headers.get(npy.read_magic(member))) is None:
            return archive[key]
        shape, by_columns, dtype = header(member)
        if by_columns or dtype.hasobject or (size := math.prod(shape) * dtype.itemsize) <= LARGE:
            return archive[key]
        if archive.zip.getinfo(name).file_size < size:
            raise ValueError(f"{key} ends early")
        content = blank(torch.uint8, (size,)).numpy()
        left = content.data
        while left:
            piece = member.read(min(LARGE, len(left)))
            if not piece:
                raise ValueError(f"{key} ends early")
            left[: len(piece)] = piece
            left = left[len(piece) :]
        member.read(1)  # reading past the end of a member makes zipfile compare its checksum
        return content.view(dtype).reshape(shape)


def _unreadable(path: Path, wanted: str, kind: str, error: Exception) -> DataError:
    """The error for a ``path`` that is not a readable ``wanted``. kind: the name of files that look like one."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file")
    if reason := obstacle(error):
        return DataError(f"{path}: cannot be read ({reason})")
    found, text = file_kind(path), " ".join(str(error).split())
    if found and not found.startswith(kind):
        text = f"it is {found}"
    elif "allow_pickle" in text:  # no advice to allow pickles: a pickle from a stranger could run any code
        text = "it holds Python objects, and only numbers are read" if text.startswith("Obj") else "it holds no array"
    return DataError(f"{path}: not a readable {wanted} ({text})")


def picture_or_array(path: Path) -> Array | None:
    """The content of a PNG, uint8 (H, W, 3), or (H, W, 4) if it has transparency, or of a .npy; None for others."""
    kind = file_kind(path)
    if kind == "a PNG picture":
        return _read_picture(path)
    if not kind.startswith("a .npy"):
        return None
    try:
        array: Array = np.load(path, allow_pickle=False)
        return array
    except Exception as error:  # a damaged npy file fails in as many ways as an archive
        raise _unreadable(path, ".npy file", "a .npy", error) from error


def _read_picture(path: Path) -> Array:
    try:
        with bounded_pictures(), Image.open(path) as image:
            if image.mode.startswith("I"):
                raise ValueError("16 bits per channel, 8 are expected")
            clear = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA")
            return np.asarray(image.convert("RGBA" if clear else "RGB"))
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged bytes
        raise DataError(f"{path}: {picture_fault(error)}") from error


@contextmanager
def bounded_pictures() -> Iterator[None]:
    """In the block, on every thread, a picture with more pixels than Pillow considers safe is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def picture_fault(error: BaseException, head: bytes = b"") -> str:
    """What is wrong with a picture that was not read, for a message after its name. head: the file's first bytes."""
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        pixels = re.search(r"\((\d+) pixels", str(error))
        size = f"{int(pixels[1]) / 1e6:.0f}" if pixels else "too many"
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return f"a picture of {size} megapixels; up to {limit:.0f} are read: make it smaller"
    if reason := obstacle(error):
        return f"cannot be read ({reason})"
    found = fault(error)
    if isinstance(error, UnidentifiedImageError):
        kind = kind_of(head)
        found = f"it is {kind}" if kind and "picture" not in kind else "not a picture"
    return f"not a readable picture ({found})"

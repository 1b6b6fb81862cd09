"""Recognise files that users bring by their content, read their TOML, and name what prevents reading them."""

from __future__ import annotations

import errno
import math
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchbd.base.errors import DataError, UsageError

HEAD = 1024  # bytes that are enough to recognise a file

_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"\x93NUMPY": "a .npy file, one array",
    b"PK\x03\x04": "a zip archive, as npz files are",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"MATLAB 5.0": "a MATLAB file",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file, of llama.cpp",
    b"\x08\x01\x12": "a TensorFlow SavedModel",
    **{b"\x08" + bytes([version]) + b"\x12": "an ONNX file" for version in range(3, 16)},
    b"%PDF": "a PDF",
    b"\xff\xfe": "UTF-16 text; UTF-8 is expected",
    b"\xfe\xff": "UTF-16 text; UTF-8 is expected",
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file itself",
    **{b"\x80" + bytes([protocol]): "a Python pickle" for protocol in range(2, 6)},
}

_TAR = (257, b"ustar")

_FULL = ("allocate memory", "bad_alloc", "failed to map segment")  # texts of errors that mean a lack of memory


def kind_of(head: bytes) -> str:
    """The type of a file with its article ("an HTML page"), from its first HEAD bytes; empty if they match no type."""
    if not head:
        return "an empty file"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP picture"
    if head[_TAR[0] :].startswith(_TAR[1]):
        return "a tar archive"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:15].lower().startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page, as a failed download leaves it"
    if text.startswith(b"<?xml"):
        return "an HTML page, as a failed download leaves it" if b"<html" in text.lower() else "an XML file"
    if b"/annex/objects/" in head[:200]:
        return "a git-annex pointer; `git annex get` fetches the file itself"
    if found := next((kind for beginning, kind in _BEGINNINGS.items() if head.startswith(beginning)), ""):
        return found
    if text[:1] in (b"{", b"["):
        return "JSON or other text"
    return "text" if head.isascii() and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head) else ""


def is_stand_in(kind: str) -> bool:
    """Whether a file of this ``kind_of`` contains no data but lies in the place of a file that should."""
    return any(word in kind for word in ("an empty file", "HTML page", "XML file", "pointer"))


def is_text(name: str) -> bool:
    """Whether a file's name is valid UTF-8: no record can hold a name that is not."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def file_kind(path: Path) -> str:
    """``kind_of`` a file, or "a folder"; empty if it cannot be read."""
    if path.is_dir():
        return "a folder"
    try:
        with path.open("rb") as file:
            return kind_of(file.read(HEAD))
    except OSError:
        return ""


def obstacle(error: BaseException) -> str:
    """The reason, other than the file itself, that keeps a file from being read; empty for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    # torch, safetensors and the loader of libraries raise these without a type of their own
    text = str(error) if isinstance(error, (RuntimeError, ImportError)) else ""
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(sign in text for sign in _FULL):
        return "there is too little memory for it"
    if "start new thread" in text:
        return "there is too little memory, or too few processes are allowed (ulimit -u), for another thread"
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return "too many files are open: allow more of them (ulimit -n)"
    return "" if number is None else os.strerror(number)


@contextmanager
def reading(where: object) -> Iterator[None]:
    """In the block, any obstacle to reading the files at ``where``, including a lack of memory, is a DataError."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if not (reason := obstacle(error)):
            raise
        place = getattr(error, "filename", None) or where
        raise DataError(f"{place}: cannot be read ({reason})") from error


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file. UsageError, which begins with ``what``, if the file cannot be read, is no TOML, or
    contains a value that JSON does not have."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors write a BOM
        foreign = foreign_to_json(tables)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        kind = file_kind(path)
        raise UsageError(f"{what} {path}: {error if kind in ('', 'text') else f'it is {kind}'}") from error
    except (OSError, RecursionError, MemoryError) as error:
        raise UsageError(f"{what} {path}: cannot be read ({obstacle(error) or 'it is nested too deeply'})") from error
    if foreign:
        raise UsageError(f"{what} {path}: {foreign}")
    return tables


def foreign_to_json(value: object, place: str = "") -> str:
    """The place of the first value in a parsed TOML file that JSON does not have, such as a date, and what it is;
    empty if there is none."""
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        found = (foreign_to_json(inner, f"{place}.{name}" if place else str(name)) for name, inner in inside)
        return next(filter(None, found), "")
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place}: {value} is not a finite number"
    if value is None or isinstance(value, bool | int | float | str):
        return ""
    return f"{place}: {value} is a {type(value).__name__}, which no option takes; write it as text, in quotes"

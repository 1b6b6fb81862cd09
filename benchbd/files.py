"""Files that are written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def commit(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file aside, sync it and move it into place: after a crash it is whole or not there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        _sync(part, os.O_RDWR)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync(path.parent, os.O_RDONLY)


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """sha256 of the content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

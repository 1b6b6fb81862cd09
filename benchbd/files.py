"""Files that are written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def expanded(path: str | Path) -> Path:
    """A path as a user gives it, with ``~`` and ``~name`` at its start as a shell has them."""
    return Path(os.path.expanduser(path))


def sealed(name: str, value: Any) -> str:
    """JSON of ``value``, under ``name``, behind the sha256 of its own text."""
    body = json.dumps(value, indent=1, sort_keys=True)
    return f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "{name}":\n{body}\n}}\n'


def unsealed(name: str, content: bytes) -> str | None:
    """The JSON that ``sealed`` was given, as text; None where one byte is not as it was."""
    head, _, rest = content.partition(b"\n")
    body = rest.removesuffix(b"\n}\n")
    digest = hashlib.sha256(body).hexdigest()
    intact = head == f'{{"sha256": "{digest}", "{name}":'.encode() and rest == body + b"\n}\n"
    return body.decode() if intact else None

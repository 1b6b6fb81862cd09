"""Files that are written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

STALE = 24 * 3600.0  # seconds after which nobody is taken to be still writing a file


def commit(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file aside, sync it and move it into place: after a crash it is whole or not there.

    The file may be read and written by whoever may do so in its folder, whatever the umask. Its name aside is random:
    processes in two containers have the same number.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        write(part)
        share(part)
        _sync(part, os.O_RDWR)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync(path.parent, os.O_RDONLY)


def share(path: Path) -> None:
    """Give a file, or a folder, that this user made the permissions of the folder that it lies in."""
    mode = path.parent.stat().st_mode
    with suppress(PermissionError):  # a file system without permissions, or one that another user made meanwhile
        path.chmod(mode & (0o7777 if path.is_dir() else 0o666))


def make_folder(path: Path) -> None:
    """Make a folder and what is missing above it, each with the permissions of the folder that it lies in."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        share(folder)


def sweep(root: Path) -> None:
    """Remove what killed processes left below ``root`` of files that they were writing."""
    for part in root.rglob(".*.part"):
        with suppress(FileNotFoundError, PermissionError):  # another process sweeps too; or it is another user's
            if time.time() - part.stat().st_mtime > STALE:
                part.unlink()


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

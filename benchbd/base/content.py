"""Files that are written whole or not at all, and their digests; and texts that name none of a user's folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_QUOTED = re.compile(r"""(?P<quote>['"`])(?:~|[A-Za-z]:)?[/\\][^'"`\n]*[/\\](?P<name>[^'"`\n]*)(?P=quote)""")

_BARE = re.compile(
    r"""(?<![\w.)\]/\\])(?!//)(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'"`<>|:;,()[\]]+)+[/\\](?P<name>[^\s/\\'"`<>|:;,()[\]]*)"""
)

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


def nests_within(value: object, levels: int) -> bool:
    """Whether JSON is nested in at most so many levels: deeper ends in RecursionError when it is written again."""
    level = [value]
    for _ in range(levels):
        level = [inner for outer in level for inner in _inside(outer)]
    return not level


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def paths_in(value: object) -> Iterator[str]:
    """Strings in JSON that are or hold a path."""
    if isinstance(value, str) and without_paths(value) != value:
        yield value
    inside = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    for inner in inside:
        yield from paths_in(inner)


def as_json(value: object, levels: int = 32) -> Any:
    """A foreign value as JSON gives it back. ValueError, TypeError or RecursionError where it is no JSON, holds numbers
    that are not finite or text that is not UTF-8, or is nested deeper than anybody reads."""
    found = json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    if not nests_within(found, levels):
        raise ValueError(f"nested deeper than {levels} levels")
    return found


def without_paths(text: str, roots: Mapping[Path, str] | None = None) -> str:
    """The text with no folder of this machine in it: what is published tells nothing of where its author works.

    A path below one of ``roots`` begins with the name that it has there ("DATA/gtsrb/train.npz"); of any other absolute
    path the last part is left. Addresses on the web stay.
    """
    named = {str(folder): name for root, name in (roots or {}).items() for folder in (root, root.resolve())}
    for folder in sorted(named, key=len, reverse=True):
        if len(Path(folder).parts) > 1:  # the root of the file system begins every path
            text = re.sub(rf"{re.escape(folder)}(?![\w.-])", named[folder], text)
    text = _QUOTED.sub(r"\g<quote>\g<name>\g<quote>", re.sub(r"\bfile://(?=/)", "", text))
    return _BARE.sub(lambda found: found["name"] or Path(found[0].replace("\\", "/")).name, text)


def path_digest(path: Path) -> str:
    """sha256 of a file's content, or of all that a folder holds, by relative names; of what is not there, of its
    name."""
    if path.is_file():
        return file_digest(path)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else []
    told = [f"{each.relative_to(path).as_posix()} {file_digest(each)}" for each in files] or [path.name]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal content, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

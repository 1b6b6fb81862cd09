"""Write files whole or not at all, compute their digests, and remove a user's folders from texts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchbd.base.errors import DataError, StoreError, UsageError, shown
from benchbd.base.inputs import reading

_QUOTED = re.compile(r"""(?P<quote>['"`])(?:~|[A-Za-z]:)?[/\\][^'"`\n]*[/\\](?P<name>[^'"`\n]*)(?P=quote)""")

_BARE = re.compile(
    r"""(?<![\w.)\]/\\])(?!//)(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'"`<>|:;,()[\]]+)+[/\\](?P<name>[^\s/\\'"`<>|:;,()[\]]*)"""
)

STALE = 24 * 3600.0  # seconds after which we assume that no process is still writing a file


def commit(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, sync it and move it into place: after a crash the file is whole or absent.

    Whoever may read and write in the folder may read and write the file, whatever the umask. The temporary name is
    random, because processes in two containers can have the same process number.
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
    """Give a file or folder of this user the permissions of the folder that contains it."""
    mode = path.parent.stat().st_mode
    with suppress(PermissionError):  # the file system has no permissions, or another user made the file meanwhile
        path.chmod(mode & (0o7777 if path.is_dir() else 0o666))


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, each with the permissions of the folder that contains it."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        share(folder)


def sweep(root: Path) -> None:
    """Remove the temporary files that killed processes left below ``root``."""
    for part in root.rglob(".*.part"):
        with suppress(FileNotFoundError, PermissionError):  # another process sweeps too, or the file is another user's
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
    """A path as a user gives it, with ``~`` and ``~name`` at its start expanded as a shell does. UsageError if it is
    no path."""
    if not isinstance(path, str | Path) or "\0" in str(path):
        raise UsageError(f"{shown(path)} is no path: it must be a text without NUL, or a pathlib.Path")
    return Path(os.path.expanduser(path))


def shipped(path: str) -> str:
    """The text of a file that lies inside an installed wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return next(each / path for each in (here, here.parent) if (each / path).is_file()).read_text(encoding="utf-8")


def file_at(path: str | Path, what: str = "file") -> Path:
    """The path of an ordinary file that exists, ``expanded``. UsageError if it is no path; DataError if there is no
    such ``what``, or if it is a folder, a pipe, a socket or a device: those are not read, since reading may not end."""
    found = expanded(path)
    if path == "":
        raise UsageError(f"the path of the {what} is empty")
    with reading(found):
        try:
            mode = found.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{found}: {'a link to nothing' if found.is_symlink() else f'no such {what}'}") from None
        folder = found.parent.resolve()
    if stat.S_ISDIR(mode):
        raise DataError(f"{found}: a folder; name the file in it")
    # the system shows the open files of a process there (/dev/stdin, /dev/fd/0), and another process has others
    if not stat.S_ISREG(mode) or folder == Path("/dev") or Path("/proc") in folder.parents:
        raise DataError(f"{found}: not an ordinary file; save its content in one")
    return found


def unwritable(path: Path) -> str:
    """Why no file can be written at a path, behind a link at the link's target; empty if one can."""
    place = Path(os.path.realpath(path))
    if place.is_dir():
        return f"{path}: is a folder; name a file in it"
    if not place.parent.is_dir():
        return f"{place.parent if path.is_symlink() else path.parent}: no such folder"
    if place.exists() and not place.is_file():
        return f"{path}: is no ordinary file"
    return "" if os.access(place if place.exists() else place.parent, os.W_OK) else f"{path}: may not be written"


def write_file(path: Path, content: bytes) -> None:
    """Write a file that a user names, whole or not at all; a link stays, and its target is written. StoreError if it
    cannot be written."""
    if reason := unwritable(path):
        raise StoreError(reason)
    try:
        commit(Path(os.path.realpath(path)), partial(Path.write_bytes, data=content))
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error


def sealed(name: str, value: Any) -> str:
    """JSON of ``value`` under ``name``, preceded by the sha256 of that text."""
    body = json.dumps(value, indent=1, sort_keys=True)
    return f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "{name}":\n{body}\n}}\n'


def unsealed(name: str, content: bytes) -> str | None:
    """The JSON that ``sealed`` was given, as text; None if one byte changed."""
    head, _, rest = content.partition(b"\n")
    body = rest.removesuffix(b"\n}\n")
    digest = hashlib.sha256(body).hexdigest()
    intact = head == f'{{"sha256": "{digest}", "{name}":'.encode() and rest == body + b"\n}\n"
    return body.decode() if intact else None


def nests_within(value: object, levels: int) -> bool:
    """Whether JSON has at most ``levels`` levels of nesting: writing deeper JSON ends in a RecursionError."""
    level = [value]
    for _ in range(levels):
        level = [inner for outer in level for inner in _inside(outer)]
    return not level


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def paths_in(value: object) -> Iterator[str]:
    """The strings in JSON that are or contain a path."""
    if isinstance(value, str) and without_paths(value) != value:
        yield value
    inside = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    for inner in inside:
        yield from paths_in(inner)


def as_json(value: object, levels: int = 32) -> Any:
    """A foreign value as JSON returns it. ValueError, TypeError or RecursionError if the value is no JSON, contains
    numbers that are not finite or text that is not UTF-8, or has more than ``levels`` levels of nesting."""
    found = json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    if not nests_within(found, levels):
        raise ValueError(f"nested deeper than {levels} levels")
    return found


def without_paths(text: str, roots: Mapping[Path, str] | None = None) -> str:
    """The text without any folder of this machine, so that a published text does not reveal its author's folders.

    A path below one of ``roots`` begins with the name that the root has there ("DATA/gtsrb/train.npz"); any other
    absolute path is cut to its last part. Addresses on the web stay.
    """
    named = {str(folder): name for root, name in (roots or {}).items() for folder in (root, root.resolve())}
    for folder in sorted(named, key=len, reverse=True):
        if len(Path(folder).parts) > 1:  # every path begins with the root of the file system
            text = re.sub(rf"{re.escape(folder)}(?![\w.-])", named[folder], text)
    text = _QUOTED.sub(r"\g<quote>\g<name>\g<quote>", re.sub(r"\bfile://(?=/)", "", text))
    return _BARE.sub(lambda found: found["name"] or Path(found[0].replace("\\", "/")).name, text)


def short_digests(text: str) -> str:
    """The text with the first 12 digits, which are printed elsewhere too, of every sha256 in it."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", text)


def path_digest(path: Path) -> str:
    """sha256 of a file's content, or of the relative names and contents of all files in a folder; if the path does not
    exist, of its name. DataError if it is neither a file nor a folder, such as a device, or contains such a thing."""
    if path.is_file():
        return file_digest(path)
    if path.is_dir():
        told = [f"{each.relative_to(path).as_posix()} {file_digest(each)}" for each in files_in(path)]
    elif path.exists():
        raise DataError(f"{path}: neither a file nor a folder")
    else:
        told = [path.name]
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()


def files_in(folder: Path, *above: Path) -> Iterator[Path]:
    """Every file in a folder and its subfolders, sorted, also behind symbolic links. DataError for anything else there,
    and for a folder that cannot be read, because a digest without it would not be that of the folder. above: the
    folders that contain it, resolved."""
    if (here := folder.resolve()) in above:
        raise DataError(f"{folder}: a link to a folder that contains it")
    with reading(folder):
        inside = [(each, each.is_dir(), each.is_file()) for each in sorted(folder.iterdir())]
    for each, is_folder, is_file in inside:
        if is_folder:
            yield from files_in(each, *above, here)
        elif is_file:
            yield each
        else:
            what = "neither a file nor a folder" if each.exists() else "a link to nothing"
            raise DataError(f"{each}: {what}; such a folder contains files and folders alone")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal content, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

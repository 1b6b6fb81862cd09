"""A folder of generated files that a later build replaces, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from benchbd.base.content import expanded
from benchbd.base.errors import StoreError

MANIFEST = ".benchbd-site"

_NAME = re.compile(r"(?!.*\.\./)[\w.-][\w./-]*")


def write_site(out: Path, files: Iterable[tuple[str, str | bytes]]) -> int:
    """Write the files, remove those of an earlier build that are no longer among them, and return their number.

    StoreError if the folder has files but no list of an earlier build, or cannot be written.
    """
    out = expanded(out)
    former = _former(out)
    written: set[str] = set()
    made: set[Path] = set()
    try:
        for name, content in files:
            path = out / name
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            written.add(name)
        for name in sorted(former - written):
            (out / name).unlink(missing_ok=True)
        (out / MANIFEST).write_text("".join(f"{name}\n" for name in sorted(written)), encoding="utf-8", newline="\n")
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error.strerror or error})") from error
    return len(written)


def _former(out: Path) -> set[str]:
    """The files of an earlier build."""
    try:
        if not out.exists() or not any(out.iterdir()):
            return set()
        if not (out / MANIFEST).is_file():
            raise StoreError(f"{out}: has files, but is no site of benchbd; give an empty folder, or a new one")
        names = (out / MANIFEST).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{out}: cannot be read ({error})") from error
    return {name for name in names if _NAME.fullmatch(name)}

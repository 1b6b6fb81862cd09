"""Pictures of a record: PNG files with fixed names, in a folder beside the record's file. This module does not import
torch.

    records/<record>.json
    records/<record>/trigger.png ...

They may be a stranger's, and a page shows them. A picture is therefore an ordinary file with pixels and nothing else:
no texts, no animation, and nothing behind its end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from benchbd.base.content import commit, make_folder
from benchbd.base.errors import fault
from benchbd.base.inputs import HEAD, kind_of, reading

PICTURES = {
    "trigger": "Trigger",
    "inversion": "Inverted triggers beside the true one",
    "attention": "Attention of each stage of the encoder",
    "information": "Mutual information and weight of each stage",
    "pruning": "Levels of pruning",
    "features": "Features of test images in two dimensions",
}
"""What a picture shows, by its name, in the order of a page."""

MOST = 100_000  # bytes of all pictures of a record

SIDE = 2_000  # pixels: largest width and height of a picture

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PARTS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}  # of a PNG: its form, its colours, its pixels, its end


def folder_of_pictures(record: Path) -> Path:
    """The folder of the pictures that belong to a record's file."""
    return record.with_name(record.name.removesuffix(".json"))


def read_pictures(record: Path) -> dict[str, bytes]:
    """The pictures of a record's file by name, in the order of PICTURES. What is no sound picture is left out, and so
    is a picture that would exceed MOST. DataError if a file cannot be read."""
    folder, found, left = folder_of_pictures(record), dict[str, bytes](), MOST
    if folder.is_symlink() or not folder.is_dir():
        return found
    for name in PICTURES:
        path = folder / f"{name}.png"
        with reading(path):
            if path.is_symlink() or not path.is_file() or path.stat().st_size > left:
                continue
            content = path.read_bytes()
        if not picture_fault(content):
            found[name] = content
            left -= len(content)
    return found


def write_pictures(record: Path, pictures: Mapping[str, bytes]) -> None:
    """Let these be the pictures of a record's file, by name; others are removed. OSError if that fails."""
    folder = folder_of_pictures(record)
    if pictures:
        make_folder(folder)
    for name in PICTURES if folder.is_dir() else ():
        path = folder / f"{name}.png"
        if name in pictures:
            commit(path, partial(Path.write_bytes, data=pictures[name]))
        else:
            path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def picture_fault(content: bytes) -> str:
    """What is wrong with the content of a picture's file; empty if it is sound."""
    if not content.startswith(_SIGNATURE):
        kind = kind_of(content[:HEAD])
        return f"no PNG picture{f' (it is {kind})' if kind else ''}"
    try:
        parts = list(_parts(content))
    except struct.error:
        return "a damaged PNG picture"
    kinds = [kind for kind, _ in parts]
    if odd := next((kind for kind in kinds if kind not in _PARTS), None):
        return f"has a part {odd.decode('ascii', 'replace')!r}; a picture has pixels alone"
    once = kinds.count(b"IHDR") == kinds.count(b"IEND") == 1
    if not once or kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or len(parts[0][1]) != 13:
        return "a damaged PNG picture"
    width, height = struct.unpack_from(">II", parts[0][1])
    if max(width, height) > SIDE:
        return f"{width} x {height} pixels; a picture has at most {SIDE} x {SIDE}"
    try:
        with Image.open(BytesIO(content), formats=("PNG",)) as image:
            image.load()
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged bytes
        return f"a damaged PNG picture ({fault(error)})"
    return ""


def _parts(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and content of each part of a PNG. struct.error if one is cut off."""
    at = len(_SIGNATURE)
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        yield kind, struct.unpack_from(f">{size}s4x", content, at + 8)[0]  # the last four bytes are a checksum
        at += 12 + size

"""The names of a site's files. Names in records are a stranger's, so no file has one of them unchanged."""

from __future__ import annotations

import hashlib
import re

from benchbd.records.files import place_of
from benchbd.records.models import Entry

LONGEST = 60  # characters of a name in the name of a file


def slug(name: str) -> str:
    """A name of ASCII letters, digits, dots and dashes; two names that differ have two slugs."""
    if re.fullmatch(rf"[a-z0-9][a-z0-9-]{{0,{LONGEST - 1}}}", name):
        return name
    kept = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST]
    return f"{kept or 'x'}.{_digest(name)}"


def board_place(board: str) -> str:
    """The folder of a board's pages and files."""
    return f"boards/{slug(board)}"


def method_place(axis: str, name: str) -> str:
    """The page of a method."""
    return f"methods/{slug(axis)}/{slug(name)}.html"


def record_place(record: Entry) -> str:
    """The page of a record, without its ending; the record itself is beside it as JSON."""
    return f"records/{_digest(f'{record.board}/{place_of(record)}')}"


def picture_place(content: bytes) -> str:
    """The file of a picture."""
    return f"pictures/{hashlib.sha256(content).hexdigest()[:20]}.png"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]

"""Findings of an audit."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """Something that does not hold. tier: the one that found it. place: the file, under the folder of records; empty
    for the whole board. text: one line."""

    tier: int
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text

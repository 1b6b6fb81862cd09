"""What several tables are written with: text that is safe to show, Markdown, and marked notes for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence

from tabulate import tabulate

WIDTH = 100  # columns of what a terminal shows


def plain(text: str) -> str:
    """Text on one line that steers no terminal: whitespace becomes spaces, what cannot be printed its escape in Python.

    That is control characters, and those that only format, as marks that turn the direction of reading.
    """
    return text if text.isprintable() else "".join(map(_plain, text))


def _plain(char: str) -> str:
    return char if char.isprintable() else " " if char.isspace() else ascii(char)[1:-1]


def escaped(text: str) -> str:
    """Plain text as Markdown that stays within its cell."""
    return plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def pipe(headers: Sequence[str], body: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """A Markdown table of plain cells. left: the headers of the columns that are not aligned right."""
    cells = [[escaped(cell) for cell in line] for line in body]
    align = ["left" if header in left else "right" for header in headers]
    return tabulate(cells, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def marked(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of at most WIDTH columns from (mark, text), each text indented behind its mark."""
    lines = []
    for mark, text in notes:
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"{mark} ", subsequent_indent=" " * (len(mark) + 1))
    return lines

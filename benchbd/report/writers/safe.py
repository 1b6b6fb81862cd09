"""What several tables are written with: text that is safe to show, in Markdown, CSV and JSON.

What plugins and data sets call themselves, and what records say, comes from strangers: every writer passes it through
`plain`, or through a function here that does.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from tabulate import tabulate

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # the wide ones count in Japanese spreadsheets


def plain(text: str) -> str:
    """Text on one line that steers no terminal: whitespace becomes spaces, what cannot be printed its escape in Python.

    That is control characters, and those that only format, as marks that turn the direction of reading.
    """
    return text if text.isprintable() else "".join(map(_plain, text))


def _plain(char: str) -> str:
    return char if char.isprintable() else " " if char.isspace() else ascii(char)[1:-1]


def paragraphs(text: str) -> str:
    """`plain` text that keeps its lines."""
    return "\n".join(map(plain, text.splitlines()))


def escaped(text: str) -> str:
    """Plain text as Markdown that stays within its cell."""
    return plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def pipe(headers: Sequence[str], body: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """A Markdown table of plain cells. left: the headers of the columns that are not aligned right."""
    cells = [[escaped(cell) for cell in line] for line in body]
    align = ["left" if header in left else "right" for header in headers]
    return tabulate(cells, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def spreadsheet_cell(value: Any) -> Any:
    """A value as a cell of CSV that no spreadsheet computes: text that begins like a formula gets an apostrophe first.

    Numbers stay numbers, negative ones too. The text is `plain`, so that no tab or line break comes before its sign.
    """
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def json_text(data: Any) -> str:
    """One JSON document that ends with a newline; what cannot be printed is escaped, other letters stay as they are."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n"

"""A document as CSV: its frames, each with a line of names, and an empty line between two of them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from benchbd.report.document import Document
from benchbd.report.writers.safe import plain

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # spreadsheets in Japanese also compute the wide ones


def write(document: Document) -> str:
    """Text that ends with a newline; empty if the document has no frame. A list in a cell is JSON."""
    parts = []
    for names, lines in document.frames:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(spreadsheet_cell, names))
        writer.writerows([spreadsheet_cell(line[name]) for name in names] for line in lines)
        parts.append(stream.getvalue())
    return "\n".join(parts)


def spreadsheet_cell(value: Any) -> Any:
    """A value as a cell of CSV that no spreadsheet computes: text that begins like a formula gets an apostrophe first.

    Numbers stay numbers, negative ones too. The text is `plain`, so that no tab or line break precedes its sign.
    """
    if isinstance(value, list | tuple | dict):
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text

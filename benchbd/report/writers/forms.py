"""One writer per form: each writes any document. Only these modules format tables."""

from __future__ import annotations

from benchbd.base.errors import UnknownNameError
from benchbd.report.document import Document
from benchbd.report.writers import csv, json, latex, markdown, text
from benchbd.report.writers.columns import WIDTH

_PAGES = {"markdown": markdown.write, "csv": csv.write, "json": json.write, "latex": latex.write}

FORMATS = ("text", *_PAGES)


def write(document: Document, form: str, width: int = WIDTH) -> str:
    """A document in one of FORMATS, ending with a newline. width: columns of the form ``text``.

    UnknownNameError for any other form.
    """
    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    return text.write(document, width) if form == "text" else _PAGES[form](document)

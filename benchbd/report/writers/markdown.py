"""A document as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchbd.report.document import Document, Section, Table
from benchbd.report.writers.cells import Cells
from benchbd.report.writers.safe import plain


def write(document: Document) -> str:
    """Text that ends with a newline; empty if the document is empty."""
    cells = Cells(document)
    parts = [f"# {escaped(document.title)}" if document.title else "", escaped(document.intro)]
    for section in document.sections:
        for table in section.tables:
            parts += _table(section, table, cells)
    parts += [escaped(document.empty)] if not document.sections else []
    notes = [*document.legend, *document.remarks, *(f"{mark} {text}" for mark, text in cells.footnotes())]
    parts += [bullets(document.summary), f"## {escaped(document.notes)}" if document.notes and notes else ""]
    text = "\n\n".join(part for part in [*parts, bullets(notes)] if part)
    return f"{text}\n" if text else ""


def _table(section: Section, table: Table, cells: Cells) -> Iterator[str]:
    from tabulate import tabulate  # slow to import: --help lists the forms but writes none

    yield f"## {escaped(table.heading)}" if table.heading else ""
    yield escaped(table.intro)
    if body := [[escaped(text) for text in texts] for texts in cells.rows(section.columns, table.rows)]:
        headers = [escaped(column.full) for column in section.columns]
        align = ["left" if column.words else "right" for column in section.columns]
        yield tabulate(body, headers, tablefmt="pipe", colalign=align, disable_numparse=True)
    yield bullets(table.below)


def bullets(texts: Iterable[str]) -> str:
    """A list of plain texts; empty if there are none."""
    return "\n".join(f"- {escaped(text)}" for text in texts)


def escaped(text: str) -> str:
    """Plain text as Markdown that stays within its cell."""
    return plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")

"""A document for a terminal of a given width. No row and no word is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchbd.report.document import Document, Section
from benchbd.report.statistics import Interval
from benchbd.report.writers.cells import Cells, Style
from benchbd.report.writers.columns import WIDTH, Fitted, left_out, marked, wrapped


def write(document: Document, width: int = WIDTH) -> str:
    """Text that ends with a newline; empty if the document is empty. width: columns of the terminal."""
    lines = wrapped(document.title, width)
    lines += [] if document.brief else wrapped(document.intro, width)
    gone: list[str] = []
    for section in document.sections:
        cells = Cells(document, Style(digits=1, pm="±", halves=False, lone=_lone(section)))
        places = [place for place, column in enumerate(section.columns) if not column.detail]
        columns = [section.columns[place] for place in places]
        bodies = [
            [[texts[place] for place in places] for texts in cells.rows(section.columns, table.rows)]
            for table in section.tables
        ]
        if section.stacked:
            lines += [""] if lines else []
            lines += _stacked(section, [texts for body in bodies for texts in body], width)
            continue
        fitted = Fitted(columns, [texts for body in bodies for texts in body], width)
        gone += fitted.gone
        head = fitted.head(section.ruled) if any(column.short for column in columns) else []
        for table, body in zip(section.tables, bodies, strict=True):
            lines += [""] if lines else []
            lines += wrapped(table.heading, width, rest="  ")
            lines += [*wrapped(table.intro, width), ""] if table.intro else []
            lines += [*head, *(line for texts in body for line in fitted.row(texts))]
            lines += [] if document.brief else wrapped(left_out(fitted.gone, width), width)
            lines += [line for text in table.below for line in wrapped(text, width)]
    if not document.sections:
        lines += wrapped(document.empty, width)
    below = list(_below(document, left_out(gone, width), width))
    return "\n".join([*lines, *([""] if lines and below else []), *below, ""]) if lines or below else ""


def _lone(section: Section) -> str:
    """The mark of a mean of one seed among others, if no column gives the number of seeds."""
    if any(column.kind == "seeds" and not column.detail for column in section.columns):
        return ""
    values = (value for table in section.tables for row in table.rows for value in row)
    return "†" if any(isinstance(value, Interval) and value.half is not None for value in values) else ""


def _stacked(section: Section, body: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """A block of lines for each row: the cells that its heading lacks, each behind its column's heading."""
    named = [place for place in range(len(section.columns)) if f"{{{place}}}" in section.stacked]
    room = max(len(column.short) for column in section.columns) + 1
    for texts in body:
        yield from wrapped(section.stacked.format(*texts), width, rest="    ")
        for place, column in enumerate(section.columns):
            if place not in named:
                yield from wrapped(texts[place], width, f"  {column.short:<{room}}", " " * (room + 2))


def _below(document: Document, told: str, width: int) -> Iterator[str]:
    """The lines under the tables. told: of omitted columns, if the document is brief."""
    for text in document.summary:
        yield from wrapped(text, width, rest="  ")
    if document.brief and document.sections:
        yield from wrapped(f"{document.brief} {told}", width)
    elif document.sections:
        for text in document.legend:
            yield from wrapped(text, width)
    notes = [("*", text) for text in document.remarks]
    yield from marked([*notes, *Cells(document).footnotes()], width)

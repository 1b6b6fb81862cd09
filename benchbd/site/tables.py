"""A document's tables as cells for a page: text, marks of notes, a key to sort by, a link, badges."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from benchbd.records.gates import Judged
from benchbd.report.document import Column, Document, Noted, Value
from benchbd.report.statistics import Interval
from benchbd.report.writers.cells import Cells

STATUSES: tuple[str, ...] = get_args(Judged)

Link = tuple[str, str]
"""A text and the page that it leads to, from the top of the site."""

_PARTS = re.compile(r"(?P<count>\d+ )?(?P<clean>clean )?(?P<status>[a-z/-]+)")

_FRACTION = re.compile(r"(\d+)/(\d+)")

_FIGURE = re.compile(r"[+-]?\d[\d,]*(\.\d+)?")


@dataclass(frozen=True)
class Cell:
    """A cell. notes: numbers of footnotes. key: a number or text to sort by; None: nothing to sort. badges: status, or
    kind of claim, and text of each; they replace the text."""

    text: str = ""
    notes: Sequence[int] = ()
    key: float | str | None = None
    href: str = ""
    badges: Sequence[tuple[str, str]] = ()
    links: Sequence[Link] = ()


@dataclass(frozen=True)
class Line:
    """A row. statuses: those that its badges name, for the filter."""

    cells: Sequence[Cell]
    statuses: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of a page. head: the column whose cells are headings of the rows. words: columns that are text. mark: the
    start of the ids of its footnotes."""

    heading: str
    columns: Sequence[str]
    words: Sequence[bool]
    head: int
    lines: Sequence[Line]
    intro: str = ""
    below: Sequence[str] = ()
    about: Sequence[object] = field(default=(), repr=False)
    mark: str = "note"


More = tuple[str, Callable[[object], Cell]]
"""A further column: its heading, and its cell for what a row tells of."""


def grids(
    document: Document,
    links: Mapping[tuple[str, str], str],
    more: Mapping[type, Sequence[More]] | None = None,
    mark: str = "note",
) -> Iterator[Grid]:
    """The tables of a document. links: pages by heading of a column and text of a cell. more: further columns, by what
    the rows tell of. mark: see Grid."""
    cells, numbers = Cells(document), document.footnotes
    for section in document.sections:
        columns = section.columns
        for table in section.tables:
            kind = type(table.about[0]) if table.about else object
            added = (more or {}).get(kind, ())
            lines = []
            for number, values in enumerate(table.rows):
                bare = [value.text if isinstance(value, Noted) else value for value in values]
                texts = cells.row(columns, bare)
                own = [
                    _cell(column, value, text, numbers, links)
                    for column, value, text in zip(columns, values, texts, strict=True)
                ]
                own += [make(table.about[number]) for _, make in added]
                told = [status for cell in own for status, _ in cell.badges]
                lines.append(Line(own, " ".join(status for status in STATUSES if status in told)))
            yield Grid(
                table.heading,
                [*(column.full for column in columns), *(heading for heading, _ in added)],
                [*(column.words for column in columns), *_worded(lines, len(columns), len(added))],
                next((at for at, column in enumerate(columns) if column.full in ("Defense", "Detector")), 0),
                lines,
                table.intro,
                table.below,
                table.about,
                mark,
            )


def _worded(lines: Sequence[Line], start: int, number: int) -> list[bool]:
    """Which of the further columns are text: those with badges."""
    return [any(line.cells[at].badges for line in lines) for at in range(start, start + number)]


def badges(text: str) -> list[tuple[str, str]]:
    """The parts of a text such as "2 ok, 1 collapsed", each with its status; empty if it has none."""
    parts = [(_PARTS.fullmatch(part), part) for part in text.split(", ")]
    found = [(match["status"] if match else "", part) for match, part in parts]
    return found if any(status in STATUSES for status, _ in found) else []


def _cell(
    column: Column, value: Value, text: str, numbers: Mapping[str, int], links: Mapping[tuple[str, str], str]
) -> Cell:
    notes = sorted(numbers[note] for note in value.notes) if isinstance(value, Noted) else []
    told = badges(text) if column.full in ("Status", "Cells") else []
    return Cell(text, notes, _key(column, value, text), links.get((column.full, text), ""), told)


def _key(column: Column, value: Value, text: str) -> float | str | None:
    if isinstance(value, Interval):
        return value.mean
    if value is None or isinstance(value, int | float):
        return value
    if column.words:
        return text.casefold() if text and text != "-" else None
    if share := _FRACTION.search(text):
        return int(share[1]) / int(share[2])
    found = _FIGURE.search(text)
    return float(found[0].replace(",", "")) if found else None

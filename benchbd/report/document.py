"""A document: sections of tables with typed columns, and the texts around them. Every writer can write it.

`sections` and the texts are for readers: Markdown, LaTeX and the terminal. `frames` and `data` are the same for
programs, at full precision: CSV and JSON. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from benchbd.report.statistics import Interval

Kind = Literal["words", "figure", "percent", "change", "seeds", "seconds", "count"]
"""The type of a column's values.

words: text, or `Noted`; aligned left, may wrap. All others are aligned right, and None is "-".
figure: text of a figure of a type used once. percent: an `Interval` in percent. change: an `Interval`, or a
float, in percentage points, written with its sign. seeds: a number of seeds. seconds: a float. count: a number,
written with three digits.
"""


class Noted(NamedTuple):
    """A text with footnotes; the document numbers footnotes in order of occurrence."""

    text: str
    notes: tuple[str, ...] = ()


Value = str | int | float | Interval | Noted | None


@dataclass(frozen=True)
class Column:
    """A column of a section's tables.

    over: a heading above the heading, shared by neighbours with the same one.
    brief: the heading in a terminal, if it differs. detail: whether a terminal always omits the column.
    least: the minimum width in a terminal, in characters. Words wrap to that width before other columns are omitted; if
    it is 0, only afterwards.
    rank: if a terminal is narrow, it omits columns of the highest rank first, and never those of rank 0.
    points: the width of words on a page. apart: on a page, the caption of a separate table for this column and the
    first columns of words, which name the rows; rows without a figure in this column are omitted there.
    """

    header: str
    kind: Kind = "figure"
    over: str = ""
    brief: str | None = None
    detail: bool = False
    least: int = 0
    rank: int = 0
    points: int = 56
    apart: str = ""

    @property
    def words(self) -> bool:
        """Whether the column contains words, not figures."""
        return self.kind == "words"

    @property
    def short(self) -> str:
        """The heading in a terminal."""
        return self.header if self.brief is None else self.brief

    @property
    def full(self) -> str:
        """The heading together with the shared one above it."""
        return f"{self.over} {self.header}" if self.over else self.header


@dataclass(frozen=True)
class Table:
    """Rows of a section's columns, a value for each. intro, below: a paragraph before the rows, remarks after them.

    about: what each row tells of, for a site that links it and draws it; empty if nobody needs it.
    """

    rows: Sequence[Sequence[Value]]
    heading: str = ""
    intro: str = ""
    below: Sequence[str] = ()
    about: Sequence[object] = ()


@dataclass(frozen=True)
class Section:
    """Tables with the same columns, which a terminal shows at the same widths.

    ruled: whether a terminal draws a line of dashes under the headings. stacked: if it is not empty, the rows are too
    wide for a terminal, which shows each as a block of lines under this heading, with the row's cells for {0}, {1}, ...
    """

    columns: Sequence[Column]
    tables: Sequence[Table]
    ruled: bool = False
    stacked: str = ""


class Frame(NamedTuple):
    """Lines for a program: a value for each name in ``names``; text, numbers, or other JSON."""

    names: Sequence[str]
    lines: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Document:
    """Tables, and texts around them; no text has line breaks.

    intro: a paragraph before the tables. empty: replaces the tables if there are none.
    summary: lines on the whole, below the tables. legend: how to read the columns. remarks: on all rows.
    brief: what a terminal shows instead of ``intro`` and ``legend``; if it is empty, the terminal shows those.
    notes: a heading above legend, remarks and footnotes, on pages with headings.
    lettered: whether footnotes have letters instead of numbers.
    frames: what CSV writes, one table below the other. data: what JSON writes.
    """

    title: str = ""
    intro: str = ""
    sections: Sequence[Section] = ()
    empty: str = ""
    summary: Sequence[str] = ()
    legend: Sequence[str] = ()
    remarks: Sequence[str] = ()
    brief: str = ""
    notes: str = ""
    lettered: bool = False
    frames: Sequence[Frame] = ()
    data: Any = None

    @property
    def footnotes(self) -> dict[str, int]:
        """The footnotes with their numbers, from 1."""
        values = (value for s in self.sections for table in s.tables for row in table.rows for value in row)
        noted = dict.fromkeys(note for value in values if isinstance(value, Noted) for note in value.notes)
        return {note: number for number, note in enumerate(noted, start=1)}

"""The cells and footnotes of a document as plain text, which a writer then escapes for its form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchbd.report.document import Column, Document, Noted, Value
from benchbd.report.statistics import Interval


class Style(NamedTuple):
    """How a form writes figures.

    digits: decimal places of percentages. pm: between a mean and its half-width. halves: whether changes show their
    half-widths. lone: the mark of a mean of one seed.
    """

    digits: int = 2
    pm: str = " ± "
    halves: bool = True
    lone: str = ""


PAGE = Style()


class Cells:
    """The cells of a document in one style, and its footnotes, numbered."""

    def __init__(self, document: Document, style: Style = PAGE) -> None:
        self._style, self._lettered = style, document.lettered
        self._numbers = document.footnotes

    def row(self, columns: Sequence[Column], values: Sequence[Value]) -> list[str]:
        """A text for each value."""
        return [self._cell(column, value) for column, value in zip(columns, values, strict=True)]

    def rows(self, columns: Sequence[Column], rows: Iterable[Sequence[Value]]) -> list[list[str]]:
        return [self.row(columns, values) for values in rows]

    def footnotes(self) -> list[tuple[str, str]]:
        """Pairs of mark and text."""
        return [(f"[{self._mark(number)}]", note) for note, number in self._numbers.items()]

    def _mark(self, number: int) -> str:
        return letter(number) if self._lettered else str(number)

    def _cell(self, column: Column, value: Value) -> str:
        if isinstance(value, Noted):
            return self._noted(value)
        if value is None or isinstance(value, str):
            return "-" if value is None else value
        if isinstance(value, Interval) or column.kind == "change":
            spread = value if isinstance(value, Interval) else Interval(value)
            return self._change(spread) if column.kind == "change" else self._percent(spread)
        return {"seconds": seconds, "count": count, "seeds": _seeds}.get(column.kind, str)(value)

    def _percent(self, value: Interval) -> str:
        if value.mean is None:
            return "-"
        style = self._style
        spread = style.lone if value.half is None else f"{style.pm}{value.half:.{style.digits}f}"
        return f"{value.mean:.{style.digits}f}{spread}"

    def _change(self, value: Interval) -> str:
        if value.mean is None:
            return "-"
        style = self._style
        spread = f"{style.pm}{value.half:.{style.digits}f}" if style.halves and value.half is not None else ""
        return f"{round(value.mean, style.digits) + 0.0:+.{style.digits}f}{spread}"

    def _noted(self, value: Noted) -> str:
        numbers = sorted(self._numbers[note] for note in value.notes)
        marks = ",".join(map(letter, numbers)) if self._lettered else _ranges(numbers)
        if not value.text:
            return marks or "-"
        return f"{value.text} [{marks}]" if marks else value.text


def letter(number: int) -> str:
    """A number as letters: a for 1, z for 26, aa for 27."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def seconds(value: float) -> str:
    """Seconds, with one decimal place below 100."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def count(value: float) -> str:
    """A number with three digits and a unit: 9.01G."""
    if value < 1000:
        return f"{value:.0f}"
    for unit in "kMG":
        value /= 1000
        if value < 999.5 or unit == "G":
            break
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"


def _seeds(value: float) -> str:
    return "1†" if value == 1 else f"{value:.0f}"


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers as ranges: 1,3-5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

"""The layout of tables and notes for a terminal of a given width. No row and no word is cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

from rich.cells import cell_len

from benchbd.report.document import Column
from benchbd.report.writers.safe import plain

_ENTRY = re.compile(r"\s*(- |[\w ,./*-]{1,40}: )")

WIDTH = 100  # columns of the output if no terminal reports its width


class Fitted:
    """A table that fits a number of columns: its visible columns and their widths.

    gone: the headings of the omitted columns. If the longest words of the columns of rank 0 do not fit, the table's
    lines are longer than ``width``.
    """

    def __init__(self, columns: Sequence[Column], body: Iterable[Sequence[str]], width: int) -> None:
        cells = [[column.short, *map(plain, texts)] for column, *texts in zip(columns, *body, strict=True)]
        sizes = [max(map(cell_len, texts)) for texts in cells]
        words = [max(cell_len(word) for text in texts for word in text.split() or [""]) for texts in cells]
        # The width that a column needs before another is omitted, and its minimum width.
        wanted = [
            size if not (column.words and column.least) else min(size, max(word, column.least))
            for column, size, word in zip(columns, sizes, words, strict=True)
        ]
        needed = [word if column.words else size for column, size, word in zip(columns, sizes, words, strict=True)]
        for place, column in enumerate(columns):
            if not column.words:
                sizes[place] = wanted[place] = needed[place] = max(sizes[place], column.least)
        for over, group in groupby(range(len(columns)), key=lambda place: columns[place].over):
            places = list(group)  # a heading over narrow columns widens the first of them
            short = max(0, cell_len(over) - sum(sizes[place] + 1 for place in places) + 1)
            for each in (sizes, wanted, needed):
                each[places[0]] += short
        shown = list(range(len(columns)))

        def fits(sizes: Sequence[int], gap: int) -> bool:
            return sum(sizes[place] + gap for place in shown) - gap <= width

        while not fits(wanted, 1) and (rank := max(columns[place].rank for place in shown)):
            shown = [place for place in shown if columns[place].rank < rank]
        limits = wanted if fits(wanted, 1) else needed
        self._gap = 2 if fits(limits, 2) else 1
        while not fits(sizes, self._gap) and (wide := [place for place in shown if sizes[place] > limits[place]]):
            sizes[max(wide, key=sizes.__getitem__)] -= 1
        self._columns, self._shown = columns, [(place, sizes[place]) for place in shown]
        gone = (column for place, column in enumerate(columns) if place not in shown)
        self.gone = list(dict.fromkeys(column.over or column.short for column in gone))

    def head(self, rule: bool = False) -> list[str]:
        """The lines of the headings. rule: a line of dashes below them."""
        above, end = "", 0
        for over, places in groupby(self._shown, key=lambda shown: self._columns[shown[0]].over):
            end += sum(size + self._gap for _, size in places)
            above = above.ljust(end) if not over else f"{above}{over:>{end - self._gap - len(above)}}"
        lines = [above.rstrip()] if above.strip() else []
        lines += self.row([column.short for column in self._columns])
        return [*lines, (" " * self._gap).join("-" * size for _, size in self._shown)] if rule else lines

    def row(self, cells: Sequence[str]) -> list[str]:
        """The lines of a row, as many as its longest cell needs."""
        texts = [wrapped(cells[place], size) for place, size in self._shown]
        lines = []
        for number in range(max(map(len, texts))):
            line = ""
            for (place, size), text in zip(self._shown, texts, strict=True):
                part = text[number] if number < len(text) else ""
                room = " " * (size - cell_len(part) + self._gap)
                line += f"{part}{room}" if self._columns[place].words else f"{room[self._gap :]}{part}{' ' * self._gap}"
            lines.append(line.rstrip())
        return lines


def left_out(columns: Iterable[str], width: int) -> str:
    """A sentence on omitted columns; empty if there are none."""
    names = ", ".join(dict.fromkeys(columns))
    return f"Left out at {width} columns: {names}." if names else ""


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Plain text in lines of at most ``width`` columns; a longer word has a longer line of its own.

    first, rest: the start of the first line and of the others.
    """
    lines, line, empty = [], first, True
    for word in plain(text).split():
        if not empty and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line, empty = rest, True
        line += word if empty else f" {word}"
        empty = False
    return lines if empty else [*lines, line]


def kept(text: str, width: int) -> list[str]:
    """The lines of a text with line breaks: unchanged, but a line that is too long is wrapped with the rest of its
    paragraph, which ends before an empty line, a smaller indent, or an entry of a list ("name: ...", "- ...").
    """
    lines: list[str] = []
    first = rest = held = ""
    for line, below in pairwise([*text.splitlines(), ""]):
        if held:
            held += f" {line.strip()}"
        else:
            held, first = line, line[: len(line) - len(line.lstrip())]
            rest = first
        follows = below[: len(below) - len(below.lstrip())]
        if cell_len(held) > width and below.strip() and follows >= rest and not _ENTRY.match(below):
            rest = follows
            continue
        lines += wrapped(held, width, first, rest) or [""]
        held = ""
    return lines


def marked(notes: Iterable[tuple[str, str]], width: int = WIDTH) -> list[str]:
    """Lines of (mark, text), each text indented behind its mark."""
    return [line for mark, text in notes for line in wrapped(text, width, f"{mark} ", " " * (len(mark) + 1))]

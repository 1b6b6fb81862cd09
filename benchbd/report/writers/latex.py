"""LaTeX from plain text: ASCII that pdflatex compiles, tables that break over pages, notes in paragraphs under them.

A table of figures fits 453 pt, the text of A4 with margins of an inch. What is written needs the packages array,
booktabs and longtable, and a single column.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchbd.report.writers.safe import plain

BEGIN = r"""% needs \usepackage{array,booktabs,longtable}, and \onecolumn in a paper of two columns
\begingroup
\setlength{\LTcapwidth}{\linewidth}\setlength{\tabcolsep}{2pt}"""

END = r"\endgroup"

_FIGURE = re.compile(r"([+-]?[\d.]+)(?: ± ([\d.]+))?")

_SEPARATORS = "/_.,:=-"

_BREAK = "\N{ZERO WIDTH SPACE}"  # marks where a long word may break; `plain` leaves none in a text

_SYMBOLS = {
    **{char: rf"\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", _BREAK: r"\allowbreak{}",
    # A bracket or star after \\ would be its argument; quotes and hyphens in a row would become others.
    "<": "$<$", ">": "$>$", "|": r"\textbar{}", "[": "{[}", "*": "{*}", "`": "{`}", "'": "{'}", '"': "{''}",
    "±": r"$\pm$", "Δ": r"$\Delta$", "†": r"$\dagger$", "→": r"$\to$", "×": r"$\times$", "…": r"\dots{}",
    "≤": r"$\leq$", "≥": r"$\geq$", "−": "$-$", "·": r"$\cdot$", "–": r"\textendash{}", "—": r"\textemdash{}",
    "‘": "{`}", "’": "{'}", "“": "{``}", "”": "{''}", "°": r"$^\circ$", "µ": r"$\mu$", "²": "$^2$", "ß": r"\ss{}",
}  # fmt: skip

_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0308\u0327\u030a\u030c", "`'^~\"crv", strict=True))


class Column(NamedTuple):
    """A column of a table: its heading and, where it holds words, its width; figures take what they need.

    points: width of a column of words, which wrap and stand at its left; 0 for figures.
    """

    header: str
    points: int = 0

    @property
    def align(self) -> str:
        return rf">{{\raggedright\arraybackslash}}p{{{self.points}pt}}" if self.points else "r"

    def cell(self, text: str) -> str:
        """A figure is set in mathematics, so that its minus is one; "-" stands for no figure."""
        if figure := _FIGURE.fullmatch(text):
            mean, half = figure.groups()
            return f"${mean}$" if half is None else rf"${mean} \pm {half}$"
        letter = 4 if text.islower() else 7  # points, at most: capitals are wide
        return "--" if text == "-" else tex(text, longest=self.points // letter or 20)


def tex(text: str, longest: int = 20) -> str:
    """Plain text as ASCII that prints it. A character that pdflatex cannot print is named by its code point.

    longest: a word of more letters may break, behind a separator or after so many.
    """
    may_break = re.compile(rf"[{_SEPARATORS}]|[^{_SEPARATORS}]{{{longest}}}")
    text = unicodedata.normalize("NFC", plain(text)).replace("->", "→")
    text = re.sub(rf"\S{{{longest + 1},}}", lambda word: may_break.sub(lambda part: part[0] + _BREAK, word[0]), text)
    return "".join(map(_symbol, text)).replace("--", "-{}-")


def _symbol(char: str) -> str:
    if char in _SYMBOLS or char.isascii():
        return _SYMBOLS.get(char, char)
    letter, *accents = list(unicodedata.normalize("NFD", char))
    if not letter.isascii() or not all(accent in _ACCENTS for accent in accents):
        return f"{{[}}U+{ord(char):04X}]"
    for accent in accents:
        letter = rf"\{_ACCENTS[accent]}{{{letter}}}"
    return letter


def longtable(
    caption: str,
    columns: Sequence[Column],
    body: Iterable[Sequence[str]],
    spans: Iterable[tuple[str, int, int]] = (),
) -> str:
    """A table of plain cells that breaks over pages, with its headings on each.

    spans: headings over several columns, each with its first and last column, from 1.
    """
    head = [r"\toprule"]
    if over := list(spans):
        cells, at = [], 1
        for text, first, last in over:
            cells += [""] * (first - at) + [rf"\multicolumn{{{last - first + 1}}}{{c}}{{{tex(text)}}}"]
            at = last + 1
        rules = "".join(rf"\cmidrule(lr){{{first}-{last}}}" for _, first, last in over)
        head += [" & ".join(cells + [""] * (len(columns) - at + 1)) + r" \\", rules]
    head += [" & ".join(tex(column.header) for column in columns) + r" \\", r"\midrule"]
    return "\n".join(
        [
            r"{\scriptsize",
            rf"\begin{{longtable}}{{{''.join(column.align for column in columns)}}}",
            rf"\caption{{{tex(caption)}}}\\",
            *[*head, r"\endfirsthead", *head, r"\endhead"],
            *[r"\bottomrule", r"\endfoot"],
            *(" & ".join(map(Column.cell, columns, line)) + r" \\" for line in body),
            r"\end{longtable}}",
        ]
    )


def notes(texts: Iterable[str]) -> str:
    """A small paragraph for each text."""
    lines = [rf"\noindent {tex(text)}\par" for text in texts]
    return "\n".join([r"{\footnotesize\raggedright", *lines, "}"])

"""A document as LaTeX: ASCII that pdflatex compiles, tables that break over pages, notes in paragraphs under them.

A table of figures fits 453 pt, the text of A4 with margins of an inch. The output needs the packages array,
booktabs and longtable, and a single column.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import dropwhile, groupby, takewhile

from benchbd.report.document import Column, Document, Table
from benchbd.report.writers.cells import Cells
from benchbd.report.writers.safe import plain

BEGIN = r"""% needs \usepackage{array,booktabs,longtable}, and \onecolumn in a paper of two columns
\begingroup
\setlength{\LTcapwidth}{\linewidth}\setlength{\tabcolsep}{2pt}"""

END = r"\endgroup"

_FIGURE = re.compile(r"([+-]?[\d.]+)(?: ± ([\d.]+))?")

_SEPARATORS = "/_.,:=-"

_BREAK = "\N{ZERO WIDTH SPACE}"  # marks a place to break a long word; `plain` leaves none in a text

_SYMBOLS = {
    **{char: rf"\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", _BREAK: r"\allowbreak{}",
    # LaTeX would read a bracket or star after \\ as its argument, and change quotes and hyphens in a row.
    "<": "$<$", ">": "$>$", "|": r"\textbar{}", "[": "{[}", "*": "{*}", "`": "{`}", "'": "{'}", '"': "{''}",
    "±": r"$\pm$", "Δ": r"$\Delta$", "†": r"$\dagger$", "→": r"$\to$", "×": r"$\times$", "…": r"\dots{}",
    "≤": r"$\leq$", "≥": r"$\geq$", "−": "$-$", "·": r"$\cdot$", "–": r"\textendash{}", "—": r"\textemdash{}",
    "‘": "{`}", "’": "{'}", "“": "{``}", "”": "{''}", "°": r"$^\circ$", "µ": r"$\mu$", "²": "$^2$", "ß": r"\ss{}",
}  # fmt: skip

_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0308\u0327\u030a\u030c", "`'^~\"crv", strict=True))


def write(document: Document) -> str:
    """Text that ends with a newline: the tables, each with its paragraphs under it, then the remarks on all."""
    cells = Cells(document)
    parts = [BEGIN]
    for section in document.sections:
        for table in section.tables:
            parts += _table(document.title, section.columns, table, cells)
    texts = [document.intro, *document.summary, *document.legend, *document.remarks]
    texts += [] if document.sections else [document.empty]
    texts += [f"{mark} {text}" for mark, text in cells.footnotes()]
    return "\n".join([*parts, *notes(texts), END]) + "\n"


def _table(title: str, columns: Sequence[Column], table: Table, cells: Cells) -> Iterator[str]:
    """The table without the columns set apart, then one table for each of their captions."""
    caption = ": ".join(text for text in (title, table.heading) if text)
    body = cells.rows(columns, table.rows)
    if body:
        yield _part(caption, columns, [place for place, column in enumerate(columns) if not column.apart], body)
    after_figures = dropwhile(lambda place: not columns[place].words, range(len(columns)))  # as a rank
    names = list(takewhile(lambda place: columns[place].words, after_figures))
    for apart in dict.fromkeys(column.apart for column in columns if column.apart):
        own = [place for place, column in enumerate(columns) if column.apart == apart]
        if told := [texts for texts in body if any(texts[place] != "-" for place in own)]:
            yield _part(f"{apart}. {caption}" if caption else f"{apart}.", columns, [*names, *own], told)
    heading = [] if body else [table.heading]
    yield from notes([*heading, table.intro, *table.below])


def _part(caption: str, columns: Sequence[Column], places: Sequence[int], body: Sequence[Sequence[str]]) -> str:
    return longtable(
        caption, [columns[place] for place in places], [[texts[place] for place in places] for texts in body]
    )


def align(column: Column) -> str:
    """LaTeX's alignment of a column: words wrap at their width, figures take the width that they need."""
    return rf">{{\raggedright\arraybackslash}}p{{{column.points}pt}}" if column.words else "r"


def cell(column: Column, text: str) -> str:
    """A cell in LaTeX: a figure is set in mathematics, so that its minus is one; "-" means no figure."""
    if figure := _FIGURE.fullmatch(text):
        mean, half = figure.groups()
        return f"${mean}$" if half is None else rf"${mean} \pm {half}$"
    letter = 4 if text.islower() else 7  # points, at most: capitals are wide
    return "--" if text == "-" else tex(text, longest=column.points // letter if column.words else 20)


def tex(text: str, longest: int = 20) -> str:
    """Plain text as ASCII that prints it. A character that pdflatex cannot print is replaced by its code point.

    longest: a word of more letters may break, behind a separator or after ``longest`` letters.
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


def longtable(caption: str, columns: Sequence[Column], body: Iterable[Sequence[str]]) -> str:
    """A table of plain cells that breaks over pages, with its headings on each."""
    head = [r"\toprule"]
    over, rules, at = [], "", 1
    for text, group in groupby(columns, key=lambda column: column.over):
        size = len(list(group))
        over += [rf"\multicolumn{{{size}}}{{c}}{{{tex(text)}}}"] if text else [""] * size
        rules += rf"\cmidrule(lr){{{at}-{at + size - 1}}}" if text else ""
        at += size
    head += [" & ".join(over) + r" \\", rules] if rules else []
    head += [" & ".join(tex(column.header) for column in columns) + r" \\", r"\midrule"]
    return "\n".join(
        [
            r"{\scriptsize",
            rf"\begin{{longtable}}{{{''.join(map(align, columns))}}}",
            *([rf"\caption{{{tex(caption)}}}\\"] if caption else []),
            *[*head, r"\endfirsthead", *head, r"\endhead"],
            *[r"\bottomrule", r"\endfoot"],
            *(" & ".join(map(cell, columns, line)) + r" \\" for line in body),
            r"\end{longtable}}",
        ]
    )


def notes(texts: Iterable[str]) -> list[str]:
    """A small paragraph for each text that is not empty."""
    lines = [rf"\noindent {tex(text)}\par" for text in texts if text]
    return [r"{\footnotesize\raggedright", *lines, "}"] if lines else []

"""Every document in every form: complete, on its own lines, and cells contain only text."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from benchbd.base.errors import UnknownNameError
from benchbd.papers.document import document as comparison
from benchbd.planning.board import Board
from benchbd.report import detection as populations
from benchbd.report import examined, leaderboard
from benchbd.report.document import Column, Document, Frame, Noted, Section, Table
from benchbd.report.known import Known, KnownPopulation, KnownScores
from benchbd.report.plan import LARGE, PlannedStage
from benchbd.report.plan import document as planned
from benchbd.report.statistics import Interval
from benchbd.report.writers.cells import letter
from benchbd.report.writers.forms import FORMATS, write

from ..papers.test_compare import cell
from ..records_factory import make_record
from ..stages.test_detections import inspection

LONG = "zyxw" * 500

# Pipes, line breaks, control characters, a formula, LaTeX's specials, Markdown, letters of other scripts, a long word.
HOSTILE = (
    *("a|b", "x\n# Heading\r\n| y | z |", "\x1b[2J\x9b31m\x07\u202e\x00", "=1+1", "\t@SUM(A1)", "-2+3", "＝1"),
    *(
        r"50 % of {x} ~ $y^2 #1 \n & a_b \input{x} \\[1]* `` ''",
        "<script>*b* [l](u)\\",
        "{0} {} %s {x",
        "中文 é ấ ± 🦊",
        LONG,
    ),
)


def of_leaderboard(name: str) -> Document:
    records = [
        make_record("none", metrics=(82.0, 5.0, 3.0)),
        make_record(name, name, seconds=4.5, forwards=9_010, target_name=name, notes=[name]),
        make_record(name, "ft", metrics=None, status="error", reason=name, on_board=False, departures=[name]),
    ]
    return leaderboard.document(records, name, off_board=True)


def of_populations(name: str) -> Document:
    records = [inspection("none", 1, 0.5, detection=name), inspection(name, 1, 0.9, detection=name, notes=[name])]
    return populations.document(records)


def of_comparison(name: str) -> Document:
    board = Board.model_validate(
        {
            "name": "b",
            "title": name,
            "attacks": ["badencoder"],
            "defenses": ["ft", "nad"],
            "rows": [{"pretrain": "p", "tasks": ["t"]}],
        }
    )
    records = [cell("ft"), cell("nad"), cell(name), cell("ft", evaluator=name, target_name=name)]
    return comparison(board, records)


def of_plan(name: str, count: int = 2) -> Document:
    board = SimpleNamespace(name=name)
    plan: Any = SimpleNamespace(board=board, cases=[], cells=[], inspections=[], departures=[name])
    stages = [PlannedStage("f" * 64, name, name, name, False, True, (name,), None, 3.5) for _ in range(count)]
    return planned(plan, stages, [name])


def of_inspection(name: str) -> Document:
    """One encoder before three detectors: with known encoders, without any, and without a verdict."""
    facts = {"encoder": name, "arch": "w16", "images": 9, "size": 32, "seed": 1}
    clean, attacked = KnownScores("", 4, 0.1, 0.2, 0.3, 1, (0.25, 0.01, 0.81)), (0.9, 0.1, 1.0)
    group = KnownScores(name, 2, 0.1, 0.2, 0.3, 0, (0.0, 0.0, 0.84), attacked)
    beside = KnownPopulation((name,), name, name, clean, group, (group, group), {name: 1}, (name,))
    rows = [
        examined.Row(name, 0.5, True, 1.5, remarks=(name,), known=Known((beside,))),
        examined.Row(name, 0.5, False, 1.5, known=Known((), name)),
        examined.Row(name, status="error", reason=name),
    ]
    return examined.document(facts, rows)


def of_everything(name: str) -> Document:
    """Every field of a document, with the text in each."""
    columns = (
        Column("Name", "words", points=60),
        *(Column("one", "percent", over="pair"), Column("two", "change", over="pair"), Column("n", "seeds")),
        *(Column("s", "seconds", apart="Costs"), Column("forwards", "count", apart="Costs"), Column("text")),
        Column("Status", "words"),
    )
    full = [name, Interval(50.0, 1.25), Interval(-2.0, 0.5), 3, 123.4, 9.01e9, name, Noted("ok", (name, "other"))]
    bare = ["-", Interval(), None, 1, None, None, None, Noted("", ())]
    table = Table([full, bare], name, f"Of {name}", [name])
    return Document(
        title=name,
        intro=f"Of {name}",
        sections=[Section(columns, [table, table], ruled=True), Section(columns, [table], stacked="{0} of {7}")],
        summary=[name],
        legend=[name],
        remarks=[name],
        notes=name,
        lettered=True,
        frames=[Frame(["name", "n"], [{"name": name, "n": -1}]), Frame([name], [{name: [name, 1]}])],
        data={"name": name, "rows": [1.5, None]},
    )


DOCUMENTS: dict[str, Callable[[str], Document]] = {
    "leaderboard": of_leaderboard,
    "populations": of_populations,
    "comparison": of_comparison,
    "plan": of_plan,
    "large plan": partial(of_plan, count=LARGE + 1),
    "inspection": of_inspection,
    "everything": of_everything,
}

every = pytest.mark.parametrize("make", DOCUMENTS.values(), ids=DOCUMENTS)


@every
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
def test_a_hostile_cell_is_text(make: Callable[[str], Document], form: str, name: str) -> None:
    document, harmless = make(name), make("x")
    text = write(document, form)
    assert text.endswith("\n")
    assert all(char.isprintable() or char == "\n" for char in text)
    assert _LOOKS[form](text) == _LOOKS[form](write(harmless, form))
    if form == "json":
        assert json.loads(text) == json.loads(json.dumps(document.data))


def _rows(text: str) -> list[int]:
    """The number of rows of every CSV table; asserts that no cell is a formula."""
    counts = []
    for part in re.split(r"(?m)^\n", text):
        rows = list(csv.reader(io.StringIO(part)))
        assert len({len(row) for row in rows}) == 1
        for value in (value for row in rows for value in row):
            assert not value.lstrip().startswith(tuple("=@＝＋－＠")), value
            assert not value.startswith(("+", "-")) or re.fullmatch(r"[+-]?[\d.e-]+", value), value
        counts.append(len(rows))
    return counts


def _shape(text: str) -> list[object]:
    """The first characters of the lines of a Markdown text; for a line of a table, its number of cells."""
    assert "<" not in text
    shape: list[object] = []
    for line in text.splitlines():
        begin = line.partition(" ")[0]
        cells = line.replace("\\\\", "").replace("\\|", "").count("|")
        shape.append(cells if line.startswith("|") else begin if begin in ("", "#", "##", "-") else "text")
    return shape


def _balanced(text: str) -> list[str]:
    """The commands of a LaTeX text that begin or end something, or leave it."""
    assert text.isascii()
    bare = re.sub(r"\\[\\{}$%&#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert "\\input" not in text
    assert all(line.startswith("%") for line in text.splitlines() if "%" in re.sub(r"\\%", "", line))
    return re.findall(r"\\(?:begin|end)\{\w+\}|\\midrule|\\noindent", text)


_LOOKS: dict[str, Callable[[str], object]] = {
    "text": lambda text: None,
    "markdown": _shape,
    "csv": _rows,
    "json": lambda text: None,
    "latex": _balanced,
}


@every
@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_cut(make: Callable[[str], Document], form: str) -> None:
    text = write(make(LONG), form, 60).replace("\\allowbreak{}", "")
    assert LONG in text
    assert text.count("zyxw") % 500 == 0


@every
def test_a_narrow_terminal_is_kept_to(make: Callable[[str], Document]) -> None:
    for width in (50, 60, 80, 120):
        text = write(make("name"), "text", width)
        assert max(map(len, text.splitlines())) <= width
        assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_document_has_no_table(form: str) -> None:
    text = write(Document(title="T", empty="Nothing is here.", legend=["how"], data=[]), form)
    assert "Nothing is here." in text or form in ("csv", "json")
    assert (text == "") == (form == "csv")
    assert "|" not in text
    assert "longtable}" not in text.replace("booktabs,longtable}", "")


def test_every_kind_of_value_in_a_terminal_and_on_a_page() -> None:
    columns = (
        *(Column("acc", "percent"), Column("points", "change"), Column("n", "seeds")),
        *(Column("s", "seconds"), Column("forwards", "count"), Column("of", "words")),
    )
    rows = [
        [Interval(50.0, 1.25), Interval(-2.0, 0.5), 3, 123.4, 9.01e9, Noted("ok", ("a", "b", "c"))],
        [Interval(50.06), 0.04, 1, 3.14159, 999, Noted("ok", ("b",))],
        [Interval(), None, 0, None, None, Noted("", ())],
    ]
    document = Document(sections=[Section(columns, [Table(rows)])])
    assert write(document, "text").splitlines()[:4] == [
        "     acc  points   n    s  forwards  of",
        "50.0±1.2    -2.0   3  123     9.01G  ok [1-3]",
        "    50.1    +0.0  1†  3.1       999  ok [2]",
        "       -       -   0    -         -  -",
    ]
    page = [[each.strip() for each in line.split("|")[1:-1]] for line in write(document, "markdown").splitlines()[2:5]]
    assert page == [
        ["50.00 ± 1.25", "-2.00 ± 0.50", "3", "123", "9.01G", "ok [1-3]"],
        ["50.06", "+0.04", "1†", "3.1", "999", "ok [2]"],
        ["-", "-", "0", "-", "-", "-"],
    ]
    assert r"$50.00 \pm 1.25$ & $-2.00 \pm 0.50$ & $3$ & $123$ & 9.01G & ok {[}1-3] \\" in write(document, "latex")


def test_a_mean_of_one_seed_is_marked_if_no_column_says_so() -> None:
    rows = [[Interval(50.0, 1.2)], [Interval(40.0)]]
    assert "40.0†" in write(Document(sections=[Section([Column("acc", "percent")], [Table(rows)])]), "text")
    assert "40.0†" not in write(Document(sections=[Section([Column("acc", "percent")], [Table(rows[1:])])]), "text")


def test_footnotes_have_numbers_or_letters_in_order_of_occurrence() -> None:
    rows = [[Noted("x", ("second", "first"))], [Noted("y", ("first",))], [Noted("z")]]
    document = Document(sections=[Section([Column("a", "words")], [Table(rows)])])
    assert document.footnotes == {"second": 1, "first": 2}
    assert write(document, "text") == "a\nx [1-2]\ny [2]\nz\n\n[1] second\n[2] first\n"
    assert [letter(number) for number in (1, 26, 27, 53, 703)] == ["a", "z", "aa", "ba", "aaa"]


def test_columns_that_stand_apart_have_a_table_of_their_own_on_a_page() -> None:
    columns = (Column("Name", "words"), Column("acc"), Column("s", "seconds", apart="Costs"))
    document = Document("T", sections=[Section(columns, [Table([["a", "1", None], ["b", "2", 3.0]], "h")])])
    text = write(document, "latex")
    assert re.findall(r"\\caption\{(.*)\}\\\\", text) == ["T: h", "Costs. T: h"]
    assert [line for line in text.splitlines() if line.startswith(("a &", "b &"))] == [
        r"a & $1$ \\",
        r"b & $2$ \\",
        r"b & $3.0$ \\",
    ]
    assert "| a      |     1 |   - |" in write(document, "markdown")


def test_a_table_that_stands_apart_names_its_rows_if_a_rank_comes_first() -> None:
    columns = (Column("Rank"), Column("Name", "words"), Column("acc"), Column("s", "seconds", apart="Costs"))
    text = write(Document(sections=[Section(columns, [Table([["1", "a", "2", 3.0]])])]), "latex")
    assert [line for line in text.splitlines() if "a &" in line] == [r"$1$ & a & $2$ \\", r"a & $3.0$ \\"]


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'markdown'"):
        write(Document(), "markdow")


def test_reports_need_no_torch() -> None:
    code = "import sys, pkgutil, importlib, benchbd.report as r\n"
    code += "for m in pkgutil.walk_packages(r.__path__, 'benchbd.report.'): importlib.import_module(m.name)\n"
    code += "print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"

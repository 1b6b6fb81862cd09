"""Names from strangers reach terminals, headings and formulas only as text."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from benchbd.cli.terminal import Terminal
from benchbd.records.models import Record
from benchbd.report.leaderboard import build
from benchbd.report.writers.csv import spreadsheet_cell
from benchbd.report.writers.forms import FORMATS
from benchbd.report.writers.json import json_text
from benchbd.report.writers.markdown import escaped
from benchbd.report.writers.safe import paragraphs, plain

from ..records_factory import make_record
from ..report.test_leaderboard import render, terminal_table

STEERS = "\x1b[2J\x9b31m\x07\u202e"


def hostile() -> list[Record]:
    machine = {"device": f"cpu{STEERS}\n# Machine"}
    return [
        make_record(target_name=f"road\n# Heading{STEERS}", notes=[f"=1+1{STEERS}\n\n# Note"], machine=machine),
        make_record(
            defense="=cmd",
            metrics=None,
            status="error",
            reason=f"@SUM(A1)\r\n## Reason{STEERS}",
            machine=machine,
        ),
    ]


def test_plain_text_is_one_printable_line() -> None:
    assert plain("a\n# b\r\tc\u2028d") == "a # b  c d"
    assert plain("\x1b[31m\x9b\u202ex\x00") == "\\x1b[31m\\x9b\\u202ex\\x00"
    assert plain("é 中 ± ’") == "é 中 ± ’"
    assert escaped("a\n|<b>") == "a \\|&lt;b>"
    assert paragraphs("a\x07\n\nb") == "a\\x07\n\nb"


@pytest.mark.parametrize("form", FORMATS)
def test_no_format_carries_control_characters(form: str) -> None:
    text = render(hostile(), form, f"Title{STEERS}\n# x")
    assert all(char.isprintable() or char == "\n" for char in text)


def test_neither_does_a_terminal() -> None:
    stream = io.StringIO()
    with Terminal(stream) as terminal:
        for record in hostile():
            terminal.benchbd_record_finished(record)
    assert len(stream.getvalue().splitlines()) == 2
    for text in (stream.getvalue(), terminal_table(hostile())):
        assert all(char.isprintable() or char == "\n" for char in text)


def test_a_line_break_in_a_name_starts_no_heading() -> None:
    readme = build("demo", hostile(), description="About.")["README.md"]
    headings = [line for line in readme.splitlines() if line.startswith("#")]
    assert headings[0] == "# Leaderboard: demo"
    assert [heading.split()[1] for heading in headings[1:]] == ["cifar10", "cifar10", "Cost"]


def test_a_cell_of_csv_that_begins_like_a_formula_is_text_and_numbers_are_numbers() -> None:
    for text in ("=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "＝1"):
        assert spreadsheet_cell(text) == f"'{plain(text)}"
    for value in (-4.85, 3, None, True, "a=b", "", "ok"):
        assert spreadsheet_cell(value) is value
    first, second = csv.DictReader(io.StringIO(render(hostile(), "csv")))
    rows = {row["defense"]: row for row in (first, second)}
    assert rows["none"]["notes"].startswith("'=1+1")
    assert rows["none"]["acc_to_floor"] == "-2.0"
    assert "'=cmd" in rows


def test_json_keeps_what_was_said() -> None:
    data = {"text": f"é{STEERS}\n", "tag": "\U000e0041"}
    text = json_text(data)
    assert json.loads(text) == data
    assert text.replace("\n", "").isprintable()
    assert "é" in text


def test_the_files_of_a_board_carry_none_either(tmp_path: Path) -> None:
    for text in build("demo", hostile(), tmp_path, description=f"About\x1b[31m.\n\nMore{STEERS}.").values():
        assert all(char.isprintable() or char == "\n" for char in text)
    assert "More" in (tmp_path / "README.md").read_text(encoding="utf-8")

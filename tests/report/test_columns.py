"""Tables for a terminal: they fit, omit columns before rows wrap, wrap between words, and cut nothing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from benchbd.cli.main import main
from benchbd.report.document import Column, Document, Section, Table
from benchbd.report.writers import text
from benchbd.report.writers.columns import Fitted, kept, marked, wrapped

COLUMNS = (
    *(Column("name", "words"), Column("acc"), Column("cost", rank=1)),
    *(Column("a", over="pair", rank=2, least=3), Column("b", over="pair", rank=2, least=3)),
    Column("state", "words"),
)
BODY = [["ft", "53.2", "490k", "+1", "-10.5", "ok"], ["mimic", "7.0", "-", "-", "-", "attack-failed [1]"]]


def table(columns: Sequence[Column], body: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table alone."""
    return text.write(Document(sections=[Section(columns, [Table(body)])]), width).splitlines()


def test_a_table_that_fits_is_aligned_and_whole() -> None:
    assert table(COLUMNS, BODY, 60) == [
        "                         pair",
        "name    acc  cost    a      b  state",
        "ft     53.2  490k   +1  -10.5  ok",
        "mimic   7.0     -    -      -  attack-failed [1]",
    ]


def test_headings_over_narrow_columns_do_not_touch() -> None:
    columns = (Column("a"), Column("b", over="Δ scratch"), Column("c", over="Δ own floor"), Column("d", over="Δ bn"))
    assert table(columns, [["1", "+2", "+3", "+4"]], 60) == [
        "   Δ scratch  Δ own floor  Δ bn",
        "a          b            c     d",
        "1         +2           +3    +4",
    ]


def test_columns_are_left_out_by_rank_before_rows_wrap() -> None:
    assert table(COLUMNS, BODY, 40)[1:] == [
        "ft     53.2  490k  ok",
        "mimic   7.0     -  attack-failed [1]",
        "Left out at 40 columns: pair.",
    ]
    assert table(COLUMNS, BODY, 29)[1:] == [
        "ft    53.2 ok",
        "mimic  7.0 attack-failed [1]",
        "Left out at 29 columns: cost,",
        "pair.",
    ]
    assert table(COLUMNS, BODY, 26)[1:4] == ["ft     53.2  ok", "mimic   7.0  attack-failed", "             [1]"]


def test_no_word_is_cut_where_it_cannot_fit() -> None:
    assert table(COLUMNS, BODY, 10)[1:4] == ["ft    53.2 ok", "mimic  7.0 attack-failed", "           [1]"]
    assert wrapped("a " + "x" * 30 + " b", 10) == ["a", "x" * 30, "b"]


def test_words_with_a_least_width_wrap_before_a_column_is_left_out() -> None:
    columns = (Column("option", "words"), Column("help", "words", least=8), Column("default", rank=1))
    assert table(columns, [["lr", "the rate of learning", "0.01"]], 27) == [
        "option  help        default",
        "lr      the rate       0.01",
        "        of",
        "        learning",
    ]


def test_wide_letters_count_twice() -> None:
    lines = table((Column("name", "words"), Column("n")), [["中文", "1"], ["ab", "10"]], 80)
    assert lines == ["name   n", "中文   1", "ab    10"]


def test_notes_are_indented_behind_their_marks_and_keep_flags_whole() -> None:
    assert marked([("[1]", "give --out or --json-lines")], 17) == ["[1] give --out or", "    --json-lines"]
    assert kept("one\n\n  two three", 8) == ["one", "", "  two", "  three"]


def test_a_paragraph_of_longer_lines_is_wrapped_anew_and_lists_stay() -> None:
    assert kept("one two three\nfour\n\nfive", 9) == ["one two", "three", "four", "", "five"]
    assert kept("one two three\nfour five six", 12) == ["one two", "three four", "five six"]
    assert kept("a: one two three\n   four\nb: five", 13) == ["a: one two", "   three four", "b: five"]
    assert kept("- one two three\n- four", 12) == ["- one two", "three", "- four"]


def test_control_characters_take_no_part_in_a_row() -> None:
    fitted = Fitted((Column("name", "words"),), [["a\x1b[31m\nb"]], 80)
    assert fitted.row(["a\x1b[31m\nb"]) == ["a\\x1b[31m b"]


COMMANDS = (
    ["list"],
    ["plugins"],
    ["show", "moth"],
    ["show", "simclr"],
    ["show", "table1"],
    ["show", "trigger"],
    ["show", "resnet50"],
)
PAPER = ["compare", "cifar10-small"]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("command", [*COMMANDS, PAPER], ids=" ".join)
def test_commands_take_the_width_that_they_have(command: list[str], width: int) -> None:
    def shown(columns: int) -> str:
        result = CliRunner().invoke(main, command, env={"COLUMNS": str(columns)})
        assert result.exit_code == 0, result.output
        return result.stdout

    text = shown(width)
    too_long = [line for line in text.splitlines() if cell_len(line) > width]
    assert not too_long
    note = f"Left out at {width} columns: "
    known = set(shown(10_000).split())
    assert {word.strip(",.") for word in text.split()} <= {word.strip(",.") for word in known | set(note.split())} | {
        word for word in text.split() if set(word) == {"-"}
    }


def test_without_a_terminal_a_hundred_columns_are_assumed() -> None:
    lines = CliRunner().invoke(main, ["list"]).stdout.splitlines()
    assert 80 < max(map(cell_len, lines)) <= 100


HOSTILE = '''
from benchbd import Mitigation, hookimpl

class Bad(Mitigation):
    """Wipes \\x1b[2J the\\x07 screen\\x9b31m."""
    name = "bad"
    paper = "\x1b[31m"
    version = "1"

    def repair(self, encoder, knowledge):
        return encoder

@hookimpl
def benchbd_defenses():
    return [Bad]
'''


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_hostile.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("\x1b]0;title\x07", "plugin_hostile", "benchbd")
    monkeypatch.setattr("benchbd.registry.entry_points", lambda group: [point])


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("command", [["list", "defense"], ["plugins"], ["show", "defense:bad"]], ids=" ".join)
def test_what_a_plugin_says_steers_no_terminal(command: list[str]) -> None:
    result = CliRunner().invoke(main, command)
    assert "bad" in result.stdout
    assert all(char.isprintable() for char in (result.stdout + result.stderr).replace("\n", ""))

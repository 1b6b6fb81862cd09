"""The rows of axes: what follows from them, and that it follows from them alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchbd.api import Request
from benchbd.cli.main import main
from benchbd.contract import hookspecs
from benchbd.contract.axes import AXES, GRID, Axis
from benchbd.contract.method import Method
from benchbd.planning.board import Board
from benchbd.planning.selection import Selection


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_a_row_says_where_its_contract_is(axis: Axis) -> None:
    assert issubclass(axis.base, Method)
    assert axis.base.axis == axis.name
    assert axis.base.__module__ == f"benchbd.contract.{axis.name}"
    assert all(hasattr(axis.base, work) for work in axis.work)
    assert hasattr(hookspecs, axis.hook)


@pytest.mark.parametrize("axis", GRID, ids=lambda axis: axis.name)
def test_what_boards_cross_is_an_option_a_field_and_an_argument(axis: Axis) -> None:
    for command in ("run", "plan"):
        [option] = [each for each in main.commands[command].params if f"--{axis.name}" in each.opts]
        assert (option.name, option.multiple) == (axis.field, axis.several)  # type: ignore[attr-defined]
    assert Board.model_fields[axis.field].default == axis.grid
    assert Selection.of(**{axis.field: "x"}).names(axis.name) == ("x",)
    assert axis.name in Request.__optional_keys__


NEW_AXIS = """
from benchbd.contract import axes

row = axes.Axis("audit", "audits", "Audit", ("audit",), (), "audits by name", "Audit; repeat.", "X")
axes.AXES += (row,)
axes.GRID += (row,)
axes.AXIS["audit"] = row

from benchbd.cli.main import main
from benchbd.planning.board import Board
from benchbd.planning.selection import Selection

print([option.name for option in main.commands["run"].params if "--audit" in option.opts])
board = Board(name="new", rows=[{"pretrain": "shapes", "tasks": ["shapes:1"]}], audits=["toy"])
print(board.names("audit"), Selection.of(audits=["toy"]).names("audit"))
main(["run", "--help"], standalone_mode=False)
"""


def test_a_new_row_is_an_option_and_a_field() -> None:
    done = subprocess.run([sys.executable, "-c", NEW_AXIS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['audits']\n('toy',) ['toy']\n")
    assert "--audit X " in done.stdout


def test_rows_are_read_without_torch() -> None:
    program = "import sys, benchbd.contract.axes, benchbd.planning.board; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

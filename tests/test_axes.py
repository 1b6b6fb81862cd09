"""The rows of axes: what follows from them, and that it follows from them alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import benchbd
from benchbd.api import Request
from benchbd.cli.main import main
from benchbd.contract import hookspecs
from benchbd.contract.axes import AXES, GRID, Axis
from benchbd.contract.method import Method
from benchbd.planning.board import Board, boards_folder
from benchbd.planning.selection import Selection


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_a_row_says_where_its_contract_is(axis: Axis) -> None:
    assert issubclass(axis.base, Method)
    assert axis.base.axis == axis.name
    assert axis.base.__module__.startswith("benchbd.contract.")
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


CONTRACT = '''"""The axis of audits: an axis that only a test knows."""

from typing import ClassVar

from benchbd.contract.encoder import Encoder
from benchbd.contract.method import Method


class Audit(Method):
    """Looks at an encoder and says what it sees."""

    axis: ClassVar[str] = "audit"

    def look(self, encoder: Encoder) -> str:
        """A line."""
        raise NotImplementedError
'''

ROW = '    Axis("audit", "audits", "Audit", ("look",), grid=(), about="audits by name", option="Audit.", letter="X"),'

HOOK = "@hookspec\ndef benchbd_audits(): ..."

TOY = '''
from pydantic import Field

from benchbd import hookimpl
from benchbd.contract.audit import Audit


class Toy(Audit):
    """Sees nothing."""

    name = "toy"
    paper = "a test"

    depth: int = Field(1, ge=0, le=9, description="how far it looks")

    def look(self, encoder):
        return "nothing"


@hookimpl
def benchbd_audits():
    return [Toy]
'''

PROGRAM = """
import sys, toy, benchbd
from benchbd.contract import registry
from benchbd.cli.main import main
from benchbd.planning.board import load_board
from benchbd.testing import check_method

loaded = registry.load_registry(extra={"toy": toy})
assert loaded.problems == [], loaded.problems
check_method(toy.Toy, depth=2)
print(loaded.names("audit"), load_board(sys.argv[1]).names("audit"))
registry.load_registry = lambda: loaded
for command in ("list audit", "show toy", "run --help", f"show {sys.argv[1]}"):
    main(command.split(), standalone_mode=False)
try:
    benchbd.plan("smoke", audti="toy")
except benchbd.UsageError as error:
    print(error)
"""


def test_a_new_axis_is_its_contract_a_row_and_a_hook(tmp_path: Path) -> None:
    """In a copy of the package: what follows from the row alone is there, with no other line changed."""
    copy = tmp_path / "benchbd"
    shutil.copytree(Path(benchbd.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(boards_folder(), tmp_path / "leaderboards", ignore=shutil.ignore_patterns("records"))
    (copy / "contract" / "audit.py").write_text(CONTRACT)
    for module, line, below in (
        ("axes.py", ROW, "AXES: tuple[Axis, ...] = (\n"),
        ("hookspecs.py", f"\n\n{HOOK}\n", 'hookimpl = pluggy.HookimplMarker("benchbd")\n'),
    ):
        path = copy / "contract" / module
        before, marker, after = path.read_text().partition(below)
        assert marker, module
        path.write_text(f"{before}{marker}{line}\n{after}")
    (tmp_path / "toy.py").write_text(TOY)
    board = tmp_path / "mine.toml"
    board.write_text('audits = ["toy"]\n[[rows]]\npretrain = "shapes"\ntasks = ["shapes:1"]\n')
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(board)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    for part in (
        "['toy'] ('toy',)\n",
        "  toy             Sees nothing.\n",
        "depth ",
        "--audit X ",
        "\naudits  ",
        "has no argument 'audti'; did you mean 'audit'",
    ):
        assert part in done.stdout, (part, done.stdout)


def test_rows_are_read_without_torch() -> None:
    program = "import sys, benchbd.contract.axes, benchbd.planning.board; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

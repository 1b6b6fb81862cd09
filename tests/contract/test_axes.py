"""The rows of axes: everything that an axis needs follows from its row alone."""

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

from benchbd.nets.encoder import Encoder
from benchbd.contract.method import Method


class Audit(Method):
    """Looks at an encoder and says what it sees."""

    axis: ClassVar[str] = "audit"

    def look(self, encoder: Encoder) -> int:
        """A number."""
        raise NotImplementedError
'''

STAGE = '''"""audit: a look at an encoder."""

from benchbd.base.isolation import isolated
from benchbd.contract.handover import Product
from benchbd.nets.encoder import Encoder
from benchbd.stages.base import Outcome
from benchbd.stages.inputs import alone, handover

alike = alone


def plan(sources, method, suspect, departures):
    return sources.stage(
        "audit",
        f"{method.name} of {suspect.published.label}",
        method,
        suspect.seed,
        departures,
        data={},
        parents={"encoder": suspect.published},
    )


def hand_over(inputs, stage):
    return handover(stage, encoders={"given": inputs.encoder(stage.parents["encoder"])})


def work(methods, handed, device):
    with isolated("audit"):
        return Product(json={"parameters": methods["own"].look(Encoder.from_bytes(handed.encoders["given"], device))})


def accept(inputs, product, stage):
    return [Outcome({}, dict(product.json))]


def forwards(stage):
    return 0
'''

RECORD = '''"""The record of an audit."""

from typing import ClassVar

from benchbd.records.models import Inspected


class AuditRecord(Inspected):
    """One audit."""

    axis: ClassVar[str] = "audit"
    audit: str
    parameters: int | None = None
'''

REPORT = '''"""From the records of audits to a document."""

from benchbd.report.document import Column, Document, Section, Table


def document(records, order, off_board=False):
    if not records:
        return Document(data=[])
    rows = [[record.audit, record.attack, record.parameters] for record in records]
    columns = (Column("Audit", "words"), Column("Attack", "words"), Column("Parameters"))
    return Document(sections=[Section(columns, [Table(rows)])], data=[record.model_dump() for record in records])
'''

FILES = {
    "contract/audit.py": CONTRACT,
    "stages/audit.py": STAGE,
    "records/audit.py": RECORD,
    "report/audit.py": REPORT,
}

ROW = '    Axis("audit", "Audit", ("look",), "audit", (), about="audits by name", inspects=True),'

HOOK = "@hookspec\ndef benchbd_audits(): ..."

TOY = '''
from pydantic import Field

from benchbd import hookimpl
from benchbd.contract.audit import Audit


class Toy(Audit):
    """Counts parameters."""

    name = "toy"
    paper = "a test"

    depth: int = Field(1, ge=0, le=9, description="how far it looks")

    def look(self, encoder):
        return self.depth * sum(p.numel() for p in encoder.backbone())


@hookimpl
def benchbd_audits():
    return [Toy]
'''

PROGRAM = """
import sys, toy, benchbd, benchbd.api
from benchbd import registry
from benchbd.cli.main import main
from benchbd.planning.board import load_board
from benchbd.testing import check_method

load = registry.load_registry
loaded = load(extra={"toy": toy})
assert loaded.problems == [], loaded.problems
check_method(toy.Toy, depth=2)
print(loaded.names("audit"), load_board(sys.argv[1]).names("audit"))
registry.load_registry = benchbd.api.load_registry = lambda: load(extra={"toy": toy})
run = "--board smoke --attack badencoder --defense none --audit toy -o toy.depth=2 --store store --device cpu"
built = "smoke --store store --off-board"
for command in (
    "list audit", "show toy", "run --help", f"show {sys.argv[1]}", f"plan {run}", f"run {run}",
    f"run {run} --json", f"leaderboard build {built}", f"leaderboard build {built} --out out",
):
    main(command.split(), standalone_mode=False)
try:
    benchbd.plan("smoke", audti="toy")
except benchbd.UsageError as error:
    print(error)
"""


def test_a_new_axis_is_four_files_and_two_lines(tmp_path: Path) -> None:
    """In a copy of the package with these files and no other change, the axis is planned, computed and shown."""
    copy = tmp_path / "benchbd"
    shutil.copytree(Path(benchbd.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(boards_folder(), tmp_path / "leaderboards", ignore=shutil.ignore_patterns("records"))
    for name, text in FILES.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
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
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    parameters = 2 * sum(p.numel() for p in benchbd.Encoder("w16").backbone())
    for part in (
        "['toy'] ('toy',)\n",
        "Counts parameters.\n",
        "depth ",
        "--audit A ",
        "\naudits  ",
        "2 inspections",
        "toy of badencoder",
        f"| toy     | none       |       {parameters} |",
        '"audits": [\n',
        f'"parameters": {parameters}',
        "## Audit\n\n| Audit ",
        "has no argument 'audti'; did you mean 'audit'",
    ):
        assert part in done.stdout, (part, done.stdout)
    assert f"none before toy, shapes -> shapes:3, seed 1: parameters {parameters}" in done.stderr
    assert len(list((tmp_path / "out" / "records" / "audits").iterdir())) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"audits.csv", "audits.json"}


def test_rows_are_read_without_torch() -> None:
    program = "import sys, benchbd.contract.axes, benchbd.planning.board; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""Roles: the harness asks for methods by role, whatever their names, and records contain the roles."""

from __future__ import annotations

import ast
import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from benchbd_plugins.bassl import BasslControl
from benchbd_plugins.none import NoAttack, NoDefense
from benchbd_plugins.scratch import Scratch

from benchbd import Attack, Mitigation, Role, UsageError
from benchbd.planning.board import boards_folder
from benchbd.records.files import read_inspected, read_record, read_records, write_records
from benchbd.records.models import SCHEMA
from benchbd.registry import FIRST_PARTY, GROUP, Registry, flaw_of, load_registry
from benchbd.report.leaderboard import document
from benchbd.report.rows import BY_NAME, summarise
from benchbd.report.writers.forms import write
from docs.house import CORE

from ..boards import TINY, Tiny, offering


class Clean(NoAttack):
    """A floor of another name."""

    name = "untouched"


class Nothing(NoDefense):
    """A floor of another name."""

    name = "nothing"


class Fresh(Scratch):
    """Another name of scratch."""

    name = "fresh"


OTHERS = offering(benchbd_attacks=[Clean], benchbd_defenses=[Nothing, Fresh])
BOARD = TINY.replace('"none", "badencoder"', '"untouched", "badencoder"').replace(
    '"none", "scratch", "ft"', '"nothing", "fresh", "ft"'
)


def without(*names: str, **extra: Any) -> Registry:
    """A registry without these of benchbd's plugins."""
    return load_registry([point for point in entry_points(group=GROUP) if point.name not in names], extra)


def test_core_names_no_method(registry: Registry) -> None:
    ours = {
        name
        for axis, methods in registry.methods.items()
        for name in methods
        if registry.plugin_of(axis, name).distribution == FIRST_PARTY
    }
    assert {"none", "scratch", "ft", "mlp", "simclr"} <= ours
    found = {}
    for path in (path for path in CORE.rglob("*.py") if "papers" not in path.parts):
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if named := (texts & ours) - {"none"}:  # a word like any other
            found[path.relative_to(CORE).as_posix()] = named
    assert found == {
        "contract/roles.py": {"scratch", "bn", "ft"},  # the roles
        "contract/axes.py": {"simclr", "mlp"},  # defaults of a board's fields
        "exchange/exporting.py": {"badencoder"},  # the form of that project's files
        "exchange/layouts.py": {"badencoder"},  # likewise
        "exchange/normalisation.py": {"cifar10", "stl10"},  # the mean and std of these images
        "records/models.py": {"scratch", "ft"},  # schema 1
    }


def flaw(base: type[Any], **attributes: Any) -> str:
    known = {"name": "odd", "version": "1", "__module__": __name__, "__doc__": "Odd."}
    return flaw_of(type("Odd", (base,), {**known, **attributes}))


def test_a_role_that_an_axis_has_not_is_one_line() -> None:
    assert flaw(BasslControl, role="control").startswith("role must be a Role, as in Role.CONTROL, not 'control'")
    assert flaw(NoAttack, role=Role.SCRATCH) == "role of attack must be method, floor, control, file, not scratch"
    assert (
        flaw(NoDefense, role=Role.CONTROL)
        == "role of defense must be method, floor, scratch, bn, ft, oracle, not control"
    )
    assert flaw(Scratch, role=Role.FLOOR) == "passthrough and the role floor go together"
    assert flaw(Scratch, passthrough=True) == "passthrough and the role floor go together"
    assert flaw(BasslControl, role=Role.METHOD) == "control_of and the role control go together"
    assert flaw(BasslControl, control_of="") == "control_of and the role control go together"
    assert flaw(Scratch, role=Role.BN) == flaw(BasslControl) == ""
    assert (Attack.role, Mitigation.role) == (Role.METHOD, Role.METHOD)


def test_floors_and_scratch_have_any_name(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, without("none", "scratch", others=OTHERS), BOARD)
    cells = tiny.plan(defenses=("ft",), attacks=("badencoder",), only=False).cells
    beside = [(cell.attack, cell.defense, cell.context) for cell in cells]
    assert beside == [
        ("untouched", "nothing", True),
        ("badencoder", "nothing", True),
        ("badencoder", "fresh", True),
        ("badencoder", "bn", True),
        ("badencoder", "ft", False),
    ]
    records = tiny.run()
    roles = {(record.attack, record.defense): (record.attack_role, record.defense_role) for record in records}
    assert roles["untouched", "nothing"] == (Role.FLOOR, Role.FLOOR)
    assert roles["badencoder", "fresh"] == (Role.METHOD, Role.SCRATCH)
    assert read_records(tiny.store / "records" / "tiny") == sorted(records, key=lambda record: record.name)
    rows = summarise(records, BY_NAME, off_board=False)
    assert [(row.attack, row.defense) for row in rows][:2] == [("untouched", "nothing"), ("untouched", "fresh")]
    assert rows[0].of_floor
    assert all(row.acc_to_scratch.mean is not None for row in rows)
    assert "attack untouched under defense nothing is the clean encoder" in write(document(records), "markdown")


def test_a_plan_without_a_floor_is_one_line(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, without("none"), TINY)
    with pytest.raises(UsageError, match=r"^no attack has the role floor, and this plan needs one: `benchbd plugins` "):
        tiny.plan(attacks=("badencoder",), defenses=("ft",), only=False)
    assert [cell.defense for cell in tiny.plan(attacks=("badencoder",), defenses=("ft",)).cells] == ["ft"]
    tiny = Tiny(tmp_path, without("scratch", "bn"), TINY.replace('"scratch", ', ""))
    brought = tiny.plan(attacks=("badencoder",), defenses=("ft",), only=False).cells
    assert [(cell.attack, cell.defense) for cell in brought] == [
        ("none", "none"),
        ("badencoder", "none"),
        ("badencoder", "ft"),
    ]


@pytest.mark.parametrize("folder", sorted(boards_folder().glob("*/records")), ids=lambda folder: folder.parent.name)
def test_records_of_schema_1_have_their_roles_and_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    known = [*read_records(folder), *read_inspected(folder)]
    named = {"none": Role.FLOOR, "bassl-control": Role.CONTROL}
    for record in known:
        assert record.attack_role == named.get(record.attack, Role.METHOD)
        if hasattr(record, "defense"):
            controls = {"none": Role.FLOOR, "scratch": Role.SCRATCH, "bn": Role.BN, "ft": Role.FT}
            assert record.defense_role == controls.get(record.defense, Role.METHOD)
    old = [record for record in read_records(folder) if record.schema_version < SCHEMA]
    for path in write_records(old, tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    for path in write_records(
        [r for r in read_inspected(folder) if r.schema_version < SCHEMA], tmp_path / "detections"
    ):
        assert path.read_bytes() == (folder / "detections" / path.name).read_bytes()


def test_a_record_of_schema_2_says_its_roles(tmp_path: Path) -> None:
    folder = boards_folder() / "cifar10-small" / "records"
    path = next(folder.glob("none_*.json"))
    data = json.loads(path.read_text())
    (tmp_path / path.name).write_text(json.dumps(data | {"schema": 2}))
    with pytest.raises(Exception, match="attack_role: Field required"):
        read_record(tmp_path / path.name)

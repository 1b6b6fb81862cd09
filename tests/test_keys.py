"""The guard of every move: keys of stages, exported names and built tables stay the same.

A key changes only together with a method's ``version``, on purpose; then ``python -m tests.test_keys`` writes
tests/keys.json anew, and the diff shows which keys changed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

import benchbd
from benchbd import Mitigation
from benchbd.api import Session
from benchbd.base.options import options_of
from benchbd.contract.axes import AXIS
from benchbd.contract.method import Method
from benchbd.contract.specs import SECTIONS
from benchbd.planning.board import boards_folder
from benchbd.records.files import read_records
from benchbd.registry import FIRST_PARTY, load_registry

from .conftest import write_npz_set

FROZEN = Path(__file__).with_name("keys.json")
GENERATED = ("smoke", "demo", "demo-matrix", "detect-shapes", "sweeps-shapes")


def stages(board: str | Path, folder: Path, data: Path | None = None) -> dict[str, str]:
    """``kind label`` to key, for every stage that the board plans."""
    plan = Session.open(str(board), store=folder / "store", data_root=data, device="cpu").plan(strict=True)
    return {f"{stage.kind} {stage.label}": stage.key for stage in plan.stages}


def table1_in_small(folder: Path) -> dict[str, str]:
    """Keys of ``table1``, all of whose methods have their defaults, on tiny sets of its names."""
    text = (boards_folder() / "table1" / "board.toml").read_text()
    text = re.sub(r"train = \d+", "train = 120", re.sub(r"test = \d+", "test = 60", text))
    text = re.sub(r", unlabeled = \d+", "", text).replace("images = 2000", "images = 20")
    for name, classes in {"cifar10": 10, "gtsrb": 43, "stl10": 10, "svhn": 10}.items():
        write_npz_set(folder / "data", name, train=120, test=60, classes=classes)
    (folder / "small.toml").write_text(text)
    return stages(folder / "small.toml", folder, folder / "data")


def late_options(classes: Iterable[type[BaseModel]]) -> dict[str, dict[str, Any]]:
    """Version of the class and default, by late option; parts of the protocol have no version."""
    found = {}
    for cls in classes:
        method = issubclass(cls, Method)
        for option in sorted(getattr(cls, "late", ())):
            who = f"{cls.axis} {cls.name}" if method else cls.__name__
            version = cls.effective_version() if method else ""
            found[f"{who}: {option}"] = {"version": version, "default": options_of(cls())[option]}
    return found


def first_party() -> list[type[BaseModel]]:
    registry = load_registry()
    ours = [
        cls
        for axis in AXIS
        for name, cls in registry.methods[axis].items()
        if registry.plugin_of(axis, name).distribution == FIRST_PARTY
    ]
    return [*ours, *SECTIONS.values()]


def late_faults(frozen: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> list[str]:
    """The faults of late options, each with the remedy."""
    write = "`python -m tests.test_keys` writes it down"
    faults = []
    for option in {**frozen, **found}:
        before, after = frozen.get(option), found.get(option)
        if after is None:
            faults.append(f"{option}: no longer late, which changes keys: raise the version; then {write}")
        elif before is None or before["version"] != after["version"]:
            faults.append(f"{option}: late, and new in this version; {write}")
        elif before != after:
            faults.append(f"{option}: another default under the same keys: raise the version; then {write}")
    return faults


def now(folder: Path) -> dict[str, object]:
    keys = {board: stages(board, folder) for board in GENERATED}
    return {
        "all": sorted(benchbd.__all__),
        "keys": {**keys, "table1 in small": table1_in_small(folder)},
        "late": late_options(first_party()),
        "published": {
            board.parent.name: sorted({key for record in read_records(board) for key in record.stages.values()})
            for board in sorted(boards_folder().glob("*/records"))
        },
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return json.loads(json.dumps(now(tmp_path_factory.mktemp("keys"))))


@pytest.mark.parametrize("what", ["keys", "published"])
def test_no_key_changes_by_itself(found: dict[str, Any], what: str) -> None:
    assert found[what] == json.loads(FROZEN.read_text())[what]


def test_defaults_of_late_options_are_frozen(found: dict[str, Any]) -> None:
    assert late_faults(json.loads(FROZEN.read_text())["late"], found["late"]) == []


def test_a_changed_late_default_would_be_found() -> None:
    class Grown(Mitigation):
        name = "grown"
        version = "1"
        late = frozenset({"rounds"})

        rounds: int = Field(1, description="rounds")

    class Longer(Grown):
        rounds: int = Field(2, description="rounds")

    class Raised(Longer):
        version = "2"

    class Early(Grown):
        late = frozenset()

    grown = late_options([Grown])
    assert grown == {"defense grown: rounds": {"version": "1", "default": 1}}
    assert late_options([Early, *SECTIONS.values()]) == {}
    assert late_faults(grown, grown) == []
    new = "defense grown: rounds: late, and new in this version; `python -m tests.test_keys` writes it down"
    assert late_faults({}, grown) == late_faults(grown, late_options([Raised])) == [new]
    for other, fault in ((Longer, "another default under the same keys"), (Early, "no longer late")):
        (line,) = late_faults(grown, late_options([other]))
        assert line.startswith(f"defense grown: rounds: {fault}")
        assert "raise the version" in line


def test_no_public_name_is_lost(found: dict[str, Any]) -> None:
    lost = set(json.loads(FROZEN.read_text())["all"]) - set(benchbd.__all__)
    assert not lost
    assert all(hasattr(benchbd, name) for name in benchbd.__all__)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        FROZEN.write_text(json.dumps(now(Path(root)), indent=1) + "\n")

"""The guard of every move: keys of stages, names of the front door and built tables stay what they are.

A key changes only together with a method's ``version``, on purpose; then ``python -m tests.test_keys`` writes
tests/keys.json anew, and the diff shows which.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest

import benchbd
from benchbd.api import Session
from benchbd.planning.board import boards_folder
from benchbd.records.files import read_records

from .conftest import write_npz_set

FROZEN = Path(__file__).with_name("keys.json")
GENERATED = ("smoke", "demo", "demo-matrix", "detect-shapes", "bassl-scaling")


def stages(board: str | Path, folder: Path, data: Path | None = None) -> dict[str, str]:
    """``kind label`` to key, for every stage that the board plans."""
    plan = Session.open(str(board), store=folder / "store", data_root=data, device="cpu").plan(strict=True)
    return {f"{stage.kind} {stage.label}": stage.key for stage in plan.stages}


def table1_in_small(folder: Path) -> dict[str, str]:
    """Keys of ``table1``, all of whose methods have their defaults, on tiny sets of its names."""
    text = (boards_folder() / "table1" / "board.toml").read_text()
    text = re.sub(r"train = \d+", "train = 120", re.sub(r"test = \d+", "test = 60", text))
    text = re.sub(r", unlabeled = \d+", "", text).replace("clean_images = 2000", "clean_images = 20")
    for name, classes in {"cifar10": 10, "gtsrb": 43, "stl10": 10, "svhn": 10}.items():
        write_npz_set(folder / "data", name, train=120, test=60, classes=classes)
    (folder / "small.toml").write_text(text)
    return stages(folder / "small.toml", folder, folder / "data")


def now(folder: Path) -> dict[str, object]:
    keys = {board: stages(board, folder) for board in GENERATED}
    return {
        "all": sorted(benchbd.__all__),
        "keys": {**keys, "table1 in small": table1_in_small(folder)},
        "published": {
            board.parent.name: sorted({key for record in read_records(board) for key in record.stages.values()})
            for board in sorted(boards_folder().glob("*/records"))
        },
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return json.loads(json.dumps(now(tmp_path_factory.mktemp("keys"))))


@pytest.mark.parametrize("what", ["keys", "published"])
def test_no_key_changes_by_itself(found: dict[str, object], what: str) -> None:
    assert found[what] == json.loads(FROZEN.read_text())[what]


def test_no_public_name_is_lost(found: dict[str, object]) -> None:
    lost = set(json.loads(FROZEN.read_text())["all"]) - set(benchbd.__all__)
    assert not lost
    assert all(hasattr(benchbd, name) for name in benchbd.__all__)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        FROZEN.write_text(json.dumps(now(Path(root)), indent=1) + "\n")

"""Records of two protocols, left by runs before and after a change of the board, are in no one table."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, TypeVar

import pytest

from benchbd.base.errors import DataError
from benchbd.planning.board import boards_folder
from benchbd.records.files import read_inspected, read_records
from benchbd.records.models import Entry, Record
from benchbd.report.leaderboard import build, document
from benchbd.report.protocols import check_together

from ..stages.test_detections import inspection

E = TypeVar("E", bound=Entry)

OFTEN = "badencoder_ft_cifar10_gtsrb-12_s1_mlp.json"


def published(board: str = "cifar10-small") -> list[Record]:
    """The records of the first seed."""
    return [record for record in read_records(boards_folder() / board / "records") if record.seed == 1]


def changed(record: E, place: str, value: Any, **fields: Any) -> E:
    """The record with another value in its identity."""
    identity = copy.deepcopy(record.identity)
    *parents, last = place.split(".")
    into = identity
    for parent in parents:
        into = into[parent]
    into[last] = value
    return record.model_copy(update={"identity": identity, **fields})


@pytest.mark.parametrize("folder", sorted(boards_folder().glob("*/records")), ids=lambda path: path.parent.name)
def test_what_is_published_is_of_one_protocol(folder: Path) -> None:
    check_together([*read_records(folder), *read_inspected(folder)])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("pretrain.method.options.steps", 471),
        ("pretrain.method.options.arch", "w16"),
        ("pretrain.method.version", "2"),
        ("pretrain.numerics.precision", "bf16"),
        ("pretrain.params.image_size", 64),
        ("attack.method.options.lr", 0.2),
        ("defend.params.clean.count", 1999),
        ("evaluate.method.options.epochs", 41),
        ("evaluate.data.test", "0" * 64),
        ("evaluate.params.trigger", "0" * 64),
    ],
)
def test_one_changed_record_among_those_of_a_seed_is_refused(place: str, value: Any, tmp_path: Path) -> None:
    records = published()
    records = [changed(record, place, value) if record.name == OFTEN else record for record in records]
    told = rf"^(?=.*{OFTEN}).*\.json and .*\.json are of two protocols: identity\.{re.escape(place)} is .* of one seed"
    for make in (lambda: document(records), lambda: build("cifar10-small", records, tmp_path)):
        with pytest.raises(DataError, match=told) as caught:
            make()
        assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_two_evaluators_share_one_repair() -> None:
    (first,) = (record for record in published() if record.name == OFTEN)
    other = changed(first, "evaluate.method.name", "knn", evaluator="knn")
    check_together([first, other])
    other = changed(other, "defend.method.options.lr", 0.5)
    with pytest.raises(
        DataError, match=r"two protocols: identity\.defend\.method\.options\.lr is 0\.5 in one and 0\.001"
    ):
        check_together([first, other])


def test_inspections_are_compared_with_each_other_and_with_cells() -> None:
    records = [inspection("badencoder", 1, 0.9), inspection("none", 1, 0.5)]
    check_together(records)
    with pytest.raises(DataError, match=r"^detections/\S+ and detections/\S+ are of two protocols: identity\.pretrain"):
        check_together([records[0], changed(records[1], "pretrain.steps", 3)])
    with pytest.raises(
        DataError, match=r"two protocols: identity\.detect\.method\.version is \"absent\" in one and \"2\""
    ):
        check_together([records[0], changed(records[1], "detect.method.version", "2")])
    (cell,) = (record for record in published("detect-shapes") if record.attack != "none")
    found = [record for record in read_inspected(boards_folder() / "detect-shapes" / "records") if record.seed == 1]
    check_together([cell, *found])
    with pytest.raises(
        DataError, match=r"identity\.pretrain\.method\.options\.steps is 300 in one and 299 in the other"
    ):
        check_together([changed(cell, "pretrain.method.options.steps", 299), *found])


def test_what_the_user_or_a_point_changed_is_no_change_of_the_board() -> None:
    (first,) = (record for record in published() if record.name == OFTEN)
    other = changed(first, "pretrain.method.options.steps", 471)
    told = {"on_board": False, "departures": ["simclr.steps=471 (the board's: 470)"]}
    check_together([first, other.model_copy(update=told)])
    for point in (
        {"simclr.steps": 471},
        {"pretraining:simclr.steps": 471},
        {"pretraining": "x"},
        {"budget.steps": 471},
    ):
        check_together([first, other.model_copy(update={"point": point})])
    for point in ({"clean.images": 2000}, {"trigger.size": 3}, {"ft.steps": 3}, {"defense:ft.steps": 3}):
        with pytest.raises(DataError, match=r"are of two protocols: identity\.pretrain"):
            check_together([first, other.model_copy(update={"point": point})])
    fewer = changed(first, "defend.params.clean.count", 3)
    check_together([first, fewer.model_copy(update={"point": {"clean.images": 3}})])

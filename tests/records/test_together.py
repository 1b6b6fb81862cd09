"""Records are checked against those beside them: an edit that agrees with itself alone is found."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchbd.base.errors import DataError
from benchbd.planning.board import boards_folder
from benchbd.records.files import read_inspected, read_records
from benchbd.records.places import find_records
from benchbd.records.together import check_consistent

from .test_verify import edit

REPAIRED = "badencoder_ft_shapes_shapes-7_s1_mlp"
FLOOR = "none_none_shapes_shapes-7_s1_mlp"
ATTACKED = "badencoder_none_shapes_shapes-7_s1_mlp"
INSPECTED = "detections/badencoder_decree_shapes_shapes-7_s1"


def edited(folder: Path, board: str, name: str, changes: Mapping[str, Any]) -> None:
    """Copy a published board's records of the first seed, one of them with values replaced at dotted places, and read
    them."""
    for path in sorted((boards_folder() / board / "records").rglob("*_s1*")):
        to = folder / path.relative_to(boards_folder() / board / "records")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    path = folder / f"{name}.json"
    record = json.loads(path.read_text())
    for place, value in changes.items():
        edit(record, place, value)
    path.write_text(json.dumps(record))
    find_records(board, store=folder / "no store", published=folder)


@pytest.mark.parametrize("folder", sorted(boards_folder().glob("*/records")), ids=lambda path: path.parent.name)
def test_what_is_published_is_consistent(folder: Path) -> None:
    check_consistent([*read_records(folder), *read_inspected(folder)])


COUNTED = {"baseline_counts.correct": 1339, "baseline.ca": 66.95}
"""An edit of the clean encoder's figures that agrees with itself."""


@pytest.mark.parametrize(
    ("board", "name", "changes", "wrong"),
    [
        ("sweeps-shapes", REPAIRED, COUNTED, ("evaluation", "correct", 1439, 1339)),
        (
            "sweeps-shapes",
            FLOOR,
            COUNTED | {"counts.correct": 1339, "metrics.acc": 66.95, "undefended.acc": 66.95},
            ("evaluation", "correct", 1439, 1339),
        ),
        ("sweeps-shapes", REPAIRED, {"undefended.acc": 70.0}, ("evaluation", "acc", 72.15, 70.0)),
        ("sweeps-shapes", REPAIRED, {"target_name": "cow"}, ("class", "target_name", "vertical stripes", "cow")),
        ("sweeps-shapes", REPAIRED, {"reference.rows": [3]}, ("reference inputs", "rows", [7826], [3])),
        ("detect-shapes", INSPECTED, {"gains.shapes:7.counts.correct": 1343}, ("evaluation", "acc", 72.6, 67.15)),
        (
            "detect-shapes",
            INSPECTED,
            {"gains.shapes:7.baseline_counts.hits": 200},
            ("evaluation", "hits", 201, 200),
        ),
    ],
)
def test_a_record_that_contradicts_another_is_refused(
    tmp_path: Path, board: str, name: str, changes: dict[str, Any], wrong: tuple[str, str, object, object]
) -> None:
    what, value, *values = wrong
    with pytest.raises(
        DataError, match=rf"^(?=.*{name})\S+ and \S+ contradict each other on the same {what}: "
    ) as caught:
        edited(tmp_path, board, name, changes)
    line = str(caught.value)
    assert "\n" not in line
    (one, other) = re.search(rf"has {value} (.*), \S.* has (.*); run the board again$", line).groups()  # type: ignore[union-attr]
    assert {one, other} == set(map(repr, values))


def test_another_draw_of_the_same_seed_is_refused(tmp_path: Path) -> None:
    path = boards_folder() / "sweeps-shapes" / "records" / f"{REPAIRED}.json"
    rows = json.loads(path.read_text())["clean_images"]
    other = next(row for row in range(len(rows)) if row not in rows)
    with pytest.raises(
        DataError, match=r"contradict each other on the same draw of clean images: clean_images has rows"
    ):
        edited(tmp_path, "sweeps-shapes", REPAIRED, {"clean_images": sorted([*rows[1:], other])})


def test_measurements_of_two_sources_may_differ(tmp_path: Path) -> None:
    changes = {"baseline_counts.correct": 1439 + 1, "baseline.ca": 72.0, "source": "0" * 16}
    edited(tmp_path, "sweeps-shapes", REPAIRED, changes)

"""Tasks of a row without an attack: evaluated on its encoders, marked in records and tables, never gated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchbd.base.errors import DataError, UsageError
from benchbd.planning.board import load_board
from benchbd.records.files import read_records
from benchbd.records.gates import judge
from benchbd.records.places import records_folder
from benchbd.registry import Registry
from benchbd.report.leaderboard import document, frame_of_rows
from benchbd.report.rows import Order
from benchbd.report.writers import markdown

from ..boards import TINY, Tiny, keys, write_npz_set

ALSO = TINY.replace('tasks = ["task:1"]', 'tasks = ["task:1"], also = ["other:2"]')


@pytest.fixture
def tiny(tmp_path: Path, registry: Registry) -> Tiny:
    made = Tiny(tmp_path, registry, ALSO)
    write_npz_set(made.data, "other", seed=5)
    return made


def test_a_task_beside_costs_its_evaluations_alone(tiny: Tiny, tmp_path: Path, registry: Registry) -> None:
    plan = tiny.plan()
    plain = tmp_path / "plain.toml"
    plain.write_text(TINY)
    tiny.board = plain
    assert {stage.kind for stage in plan.stages if stage.key not in keys(tiny.plan())} == {"evaluate"}


def test_its_records_say_beside_what_it_stands_and_are_never_gated(tiny: Tiny) -> None:
    records = tiny.run()
    beside = {record.task: record.beside for record in records}
    assert beside == {"task": [], "other": ["task:1"]}
    assert "attack-failed" not in {judge(record).status for record in records if record.beside}
    attacked = [r for r in records if r.task == "task" and r.attack == "badencoder"]
    assert {judge(record).status for record in attacked} == {"attack-failed"}  # two steps of BadEncoder have no effect
    board = load_board(tiny.board)
    text = markdown.write(document(records, order=Order.of(board)))
    assert "pool -> other:2, not attacked (task:1), evaluator mlp" in text
    assert set(frame_of_rows(records)["beside"]) == {"", "task:1"}
    folder = records_folder(tiny.store, board.name)
    assert len(read_records(folder)) == len(records) == 12
    name = "badencoder_ft_pool_other-2_s1_mlp_beside-task-1.json"
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**told, "beside": []}))
    with pytest.raises(DataError, match=r"beside: empty, but identity\.attack spares other:2"):
        read_records(folder)


def test_it_can_be_asked_for_alone(tiny: Tiny) -> None:
    assert {str(cell.task) for cell in tiny.plan(tasks=["other"]).cells} == {"other:2"}


def test_a_task_is_attacked_or_beside(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, ALSO.replace("other:2", "task:1"))
    with pytest.raises(UsageError, match="row pool: task:1 stands under also, and task:1 is attacked: leave one out"):
        tiny.plan()

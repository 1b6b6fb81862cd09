"""Sweeps of a board: points are planned beside the grid, share its stages, and have their own tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchbd_plugins.simclr import SimCLR
from pydantic import Field

from benchbd import DefenderKnowledge, Encoder, Mitigation
from benchbd.base.errors import DataError, UnknownNameError, UsageError
from benchbd.planning.board import load_board
from benchbd.registry import Registry, load_registry
from benchbd.report.leaderboard import document
from benchbd.report.rows import Order, summarise
from benchbd.report.writers import markdown

from ..boards import TINY, Tiny, keys, offering

SWEPT = (
    TINY.replace("seeds = [1]", "seeds = [1]\ntrigger.size = 10")
    + """
[[sweeps]]
name = "trigger"
option = "trigger.size"
values = [3, 10]

[[sweeps]]
name = "rates"
points = { slow = ["ft.lr=0.0001"], fast = ["ft.lr=0.1", "ft.steps=1"], as-it-is = [] }
"""
)


SWEEP = '\n[[sweeps]]\nname = "s"\n'


@pytest.fixture
def tiny(tmp_path: Path, registry: Registry) -> Tiny:
    return Tiny(tmp_path, registry, SWEPT)


def test_points_stand_beside_the_grid_and_share_its_stages(tiny: Tiny) -> None:
    plan = tiny.plan()
    points = [dict(cell.point) for cell in plan.cells]
    assert points[:6] == [{}] * 6
    moved = {str(point): 0 for point in points if point}
    for cell in plan.cells[6:]:
        moved[str(dict(cell.point))] += 1
    # Another trigger changes every cell, a rate only those of ft; a point has the cells that any of its sweep moves.
    counts = {"{'trigger.size': 3}": 6, "{'trigger.size': 10}": 6}
    assert moved == counts | {"{'ft.lr': 0.0001}": 2, "{'ft.lr': 0.1, 'ft.steps': 1}": 2}
    own = [cell.judged.key for cell in plan.cells if cell.point == {"trigger.size": 10}]
    assert own == [cell.judged.key for cell in plan.cells[:6]]  # the board's own value: nothing is computed again
    assert plan.departures == []
    size = next(cell for cell in plan.cells if cell.point == {"trigger.size": 3})
    alone = tiny.plan(options=["trigger.size=3"], sweeps=["rates"])
    assert size.judged.key in keys(alone)
    assert size.floors[0].key != plan.cells[0].floors[0].key  # a point has its own floor


def test_a_sweep_asked_for_is_the_only_one(tiny: Tiny) -> None:
    assert {str(cell.point) for cell in tiny.plan(sweeps=["trigger"]).cells} == {
        "{}",
        "{'trigger.size': 3}",
        "{'trigger.size': 10}",
    }
    with pytest.raises(UnknownNameError, match="unknown sweep 'triger': did you mean 'trigger'"):
        tiny.plan(sweeps=["triger"])


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (
            "values = [3, 10]",
            'values = ["x"]',
            "board tiny: sweep trigger: trigger.size: input should be a valid integer",
        ),
        ('trigger.size"', 'trigger.siz"', "board tiny: sweep trigger: unknown option of trigger 'siz'"),
        ("ft.lr=0.1", "ft.lrr=0.1", "board tiny: sweep rates: .*unknown option of ft 'lrr'"),
        ("ft.lr=0.1", "ftt.lr=0.1", "board tiny: sweep rates: unknown method 'ftt'"),
        ("values = [3, 10]", "", "sweep trigger needs an option with its values, or points"),
        (
            'option = "trigger.size"',
            'option = "size"',
            "board tiny: sweep trigger: size=3 is neither of the form NAME.FIELD=VALUE nor pretraining",
        ),
        ('option = "trigger.size"', 'optoin = "size"', "unknown field of sweeps.0 'optoin': did you mean 'option'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, registry: Registry, old: str, new: str, error: str) -> None:
    assert old in SWEPT
    tiny = Tiny(tmp_path, registry, SWEPT.replace(old, new))
    with pytest.raises(UsageError, match=error) as caught:
        tiny.plan()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sweep", "error"),
    [
        ("option = 'fp.steps'\nvalues = [1, 2]", "option fp.steps: fp takes no part in this run"),
        ("points = { a = ['ft.lr=0.5', 'fp.steps=1'] }", "option fp.steps: fp takes no part in this run"),
        ("points = { a = [] }", "none of its points changes a cell or an inspection of this run"),
        ("option = 'trigger.size'\nvalues = [10]", "none of its points changes a cell or an inspection of this run"),
        ("points = { a = ['bassl.rate=0.5'] }", "unknown option of bassl 'rate'"),
    ],
)
def test_a_sweep_that_changes_nothing_is_one_line(tmp_path: Path, registry: Registry, sweep: str, error: str) -> None:
    tiny = Tiny(tmp_path, registry, TINY.replace("seeds = [1]", "seeds = [1]\ntrigger.size = 10") + SWEEP + sweep)
    for selection in ({}, {"sweeps": ["s"]}, {"sweeps": ["s"], "defenses": ["ft"]}, {"seeds": [2]}):
        with pytest.raises(UsageError, match=f"^board tiny: sweep s: {error}"):
            tiny.plan(**selection)


def test_a_part_of_the_board_may_leave_a_sweep_without_work(tmp_path: Path, registry: Registry) -> None:
    sweep = "option = 'ft.lr'\nvalues = [0.1, 0.5]"
    tiny = Tiny(tmp_path, registry, TINY + SWEEP + sweep)
    plan = tiny.plan(defenses=["scratch"])
    assert [dict(cell.point) for cell in plan.cells] == [{}, {}]
    with pytest.raises(UsageError, match=r"^board tiny: sweep s: option ft\.lr: ft takes no part in this run$"):
        tiny.plan(defenses=["scratch"], sweeps=["s"])


@pytest.mark.parametrize(
    ("selection", "option"),
    [
        ({"options": ["trigger.size=7"]}, "trigger.size"),
        ({"options": ["defense:ft.steps=7"]}, "ft.steps"),
        ({"pretrainings": ["simclr"], "pretraining": "simclr"}, "pretraining"),
    ],
)
def test_what_the_command_sets_a_sweep_does_not_vary(
    tmp_path: Path, selection: dict[str, Any], option: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = load_registry(extra={"local": offering(benchbd_pretrainings=[Other])})
    selection.pop("pretrainings", None)
    points = "points = { a = ['trigger.size=3', 'ft.steps=1', 'pretraining=other', 'other.arch=w16'] }"
    other = "[[sweeps]]\nname = 't'\npoints = { b = ['ft.lr=0.5'] }"
    tiny = Tiny(tmp_path, registry, f"{TINY}{SWEEP}{points}\n{other}")
    error = f"board tiny: sweep s: it varies {option}, which the command sets; leave one of them out"
    with pytest.raises(UsageError, match=f"^{re.escape(error)}$"):
        tiny.plan(sweeps=["s"], **selection)
    assert caplog.messages == []
    plan = tiny.plan(**selection)
    assert {str(dict(cell.point)) for cell in plan.cells} == {"{}", "{'ft.lr': 0.5}"}
    assert caplog.messages == [f"board tiny: sweep s is left out: the command sets {option}"]


@pytest.mark.parametrize(
    ("assigned", "error"),
    [
        ("option = 'trigger.size'\nvalues = [true]", r"trigger\.size: must be a whole number, not true"),
        ("option = 'trigger.size'\nvalues = [2, 3.0]", r"trigger\.size: must be a whole number, not 3\.0"),
        ("option = 'ft.steps'\nvalues = [3.0]", r"ft\.steps: must be a whole number, not 3\.0"),
        ("option = 'ft.lr'\nvalues = [true]", r"ft\.lr: must be a number, not true"),
        ("option = 'ft.crop_scale'\nvalues = [[true, 1.0]]", r"ft\.crop_scale\.0: must be a number, not true"),
        ("points = { a = ['trigger.size=true'] }", r"trigger\.size: must be a whole number, not true"),
    ],
)
def test_a_value_has_the_type_of_its_option(tmp_path: Path, registry: Registry, assigned: str, error: str) -> None:
    with pytest.raises(UsageError, match=f"^board tiny: sweep s: {error}$"):
        Tiny(tmp_path, registry, TINY + SWEEP + assigned).plan()


def test_a_point_has_the_value_that_its_methods_have(tmp_path: Path, registry: Registry) -> None:
    points = "points = { a = ['trigger.size=3.0', 'ft.steps=1e0', 'ft.lr=1.0'] }"
    plan = Tiny(tmp_path, registry, TINY + SWEEP + points).plan()
    (point,) = {tuple(cell.point.items()) for cell in plan.cells if cell.point}
    assert point == (("trigger.size", 3), ("ft.steps", 1), ("ft.lr", 1))
    assert [type(value) for _, value in point] == [int, int, int]  # a whole number is one text, however it is written


def test_a_file_that_does_not_fit_names_board_and_sweep(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, f'{TINY}{SWEEP}option = "reference.file"\nvalues = ["r.npz"]\n')
    with pytest.raises(DataError, match=r"^board tiny: sweep s: .*r\.npz: no such file"):
        tiny.plan()
    np.savez(tmp_path / "r.npz", x=np.zeros((1, 32, 32, 3), np.uint8), y=np.zeros(1, int))
    with pytest.raises(DataError, match=r"^board tiny: sweep s: .*r\.npz: no reference of class 1; it has \[0\]$"):
        tiny.plan()


def test_records_of_points_have_names_and_tables_of_their_own(tiny: Tiny) -> None:
    records = tiny.run()
    assert len({record.name for record in records}) == len(records) == 22
    assert all(record.on_board for record in records)
    assert "badencoder_ft_pool_task-1_s1_mlp_trigger.size=3.json" in {record.name for record in records}
    board = load_board(tiny.board)
    table = document(records, order=Order.of(board))
    first, swept = table.sections
    assert [len(each.rows) for each in first.tables] == [6]
    headings = {each.heading.partition(":")[0]: [row[0] for row in each.rows] for each in swept.tables}
    assert headings == {
        "Sweep trigger": ["3"] * 6 + ["10"] * 6,  # the board's own size is its grid
        "Sweep rates": ["slow"] * 2 + ["fast"] * 2 + ["as-it-is"] * 2,
    }
    rows = {(row.point, row.attack, row.defense): row for row in summarise(records, Order.of(board), False)}
    own = rows["trigger.size=3", "badencoder", "ft"]
    floor = rows["trigger.size=3", "none", "none"]
    assert own.asr_nontarget_to_floor.mean == pytest.approx(own.asr_nontarget.mean - floor.asr_nontarget.mean)
    slow = rows["ft.lr=0.0001", "badencoder", "ft"]
    assert slow.scratch_seeds == (1,)  # scratch is the same under the point
    assert "| point" not in markdown.write(table)
    unnamed = document(records).sections[1].tables  # without the board
    assert {each.heading.partition(":")[0] for each in unnamed} == {"Sweep points that the board does not name"}


class Other(SimCLR):
    """SimCLR by another name."""

    name = "other"


def test_a_point_may_name_the_pre_training(tmp_path: Path) -> None:
    registry = load_registry(extra={"local": offering(benchbd_pretrainings=[Other])})
    board = (
        f'{TINY}\n[[sweeps]]\nname = "algorithm"\npoints = {{ by-other = ["pretraining=other", "other.arch=w16"] }}\n'
    )
    plan = Tiny(tmp_path, registry, board).plan()
    moved = [cell for cell in plan.cases if cell.point]
    assert {str(cell.point) for cell in moved} == {"{'pretraining': 'other', 'other.arch': 'w16'}"}
    assert {cell.chain[0].method_name for cell in moved} == {"other"}
    assert {cell.departures for cell in moved} == {()}
    wrong = Tiny(tmp_path / "wrong", registry, board.replace("=other", "=othr"))
    with pytest.raises(UsageError, match="sweep algorithm: unknown pretraining 'othr': did you mean 'other'"):
        wrong.plan()


def test_detectors_get_the_encoders_of_points_that_are_others(tiny: Tiny) -> None:
    found = [(each.attack, dict(each.point)) for each in tiny.plan(detections=["decree"]).inspections]
    # The clean encoder is the same under another trigger; ft's rate does not change the attacked encoder.
    attacked = [("badencoder", {"trigger.size": size}) for size in (3, 10)]
    assert found == [("none", {}), ("badencoder", {}), *attacked]


def test_a_value_that_is_a_methods_default_has_the_row_of_the_grid(tmp_path: Path, registry: Registry) -> None:
    board = f'{TINY}\n[[sweeps]]\nname = "decay"\noption = "ft.weight_decay"\nvalues = [0.0, 0.1]\n'
    default = registry.get("defense", "ft").model_fields["weight_decay"].default
    tiny = Tiny(tmp_path, registry, board.replace("0.0,", f"{default},"))
    records = tiny.run(defenses=["none", "ft"], attacks=["badencoder"])
    (table,) = document(records, order=Order.of(load_board(tiny.board))).sections[1].tables
    assert [row[0] for row in table.rows] == [str(default), "0.1"]


class Grown(Mitigation):
    """Changes nothing, whatever its options."""

    name = "grown"
    paper = "a test"
    version = "1"
    late = frozenset({"extra"})

    extra: float = Field(0.5, description="an option that came later")
    depth: int = Field(1, description="another")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return encoder


POINTS = """
[[sweeps]]
name = "late"
option = "grown.extra"
values = [0.1, 0.5, 0.9]

[[sweeps]]
name = "alike"
points = { one = ["grown.depth=2"], float = ["grown.depth=2.0"], axis = ["defense:grown.depth=2"], plain = [] }

[[sweeps]]
name = "more"
points = { own = ["grown.depth=2", "grown.extra=0.5"] }
"""


def test_every_line_of_a_sweep_has_its_row_whatever_it_has_in_common_with_others(tmp_path: Path) -> None:
    registry = load_registry(extra={"local": offering(benchbd_defenses=[Grown])})
    board = TINY.replace('["none", "scratch", "ft"]', '["none", "grown"]') + POINTS
    tiny = Tiny(tmp_path, registry, board)
    swept = document(tiny.run(attacks=["none"]), order=Order.of(load_board(tiny.board))).sections[1]
    lines = {table.heading.partition(":")[0]: [row[0] for row in table.rows] for table in swept.tables}
    assert lines == {
        "Sweep late": ["0.1", "0.5", "0.9"],
        "Sweep alike": ["one", "float", "axis", "plain"],
        "Sweep more": ["own"],
    }


def test_the_order_of_assignments_is_in_no_name(tiny: Tiny) -> None:
    one, other = ({"ft.lr": 0.1, "ft.steps": 1}, {"ft.steps": 1, "ft.lr": 0.1})
    record = tiny.run(attacks=["none"], defenses=["none"])[0]
    names = {record.model_copy(update={"point": point}).name for point in (one, other)}
    assert len(names) == 1


@pytest.mark.parametrize(
    ("sweeps", "error"),
    [
        (
            f"{SWEEP}points = {{ x = ['trigger.size'] }}",
            "tiny: sweep s: option 'trigger.size' is not of the form",
        ),
        (
            f"{SWEEP}points = {{ x = ['ft.lr=1', 'ft.lr=2'] }}",
            "tiny: sweep s: point 'x' assigns one option twice",
        ),
        (f"{SWEEP}option = 'pretraining'\nvalues = [3]", "board tiny: sweep s: pretraining=3 is neither of the form"),
        (f"{SWEEP}points = {{ x = [] }}{SWEEP}points = {{ y = [] }}", "sweeps: s is listed 2 times"),
    ],
)
def test_a_sweep_that_means_nothing_is_one_line(tmp_path: Path, registry: Registry, sweeps: str, error: str) -> None:
    with pytest.raises(UsageError, match=error) as caught:
        Tiny(tmp_path, registry, TINY + sweeps).plan()
    assert "\n" not in str(caught.value)


def test_rows_with_triggers_of_their_own_have_no_sweep_of_the_boards(tmp_path: Path, registry: Registry) -> None:
    board = SWEPT.replace('tasks = ["task:1"] }', 'tasks = ["task:1"], triggers = [{ size = 4 }] }')
    with pytest.raises(
        UsageError, match=r"sweep trigger: rows of the board have triggers of their own: no trigger\.\*"
    ):
        Tiny(tmp_path, registry, board).plan()

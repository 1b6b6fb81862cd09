"""Sweeps of a board: points are planned beside the grid, share its stages, and have tables of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchbd.base.errors import UnknownNameError, UsageError
from benchbd.contract.registry import Registry
from benchbd.planning.board import load_board
from benchbd.report.leaderboard import document
from benchbd.report.rows import Order, summarise
from benchbd.report.writers import markdown

from .boards import TINY, Tiny, keys

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
    # Another trigger moves every cell; a rate only those of ft; the values of the board move none.
    assert moved == {"{'trigger.size': 3}": 6, "{'ft.lr': 0.0001}": 2, "{'ft.lr': 0.1, 'ft.steps': 1}": 2}
    assert plan.departures == []
    size = next(cell for cell in plan.cells if cell.point == {"trigger.size": 3})
    alone = tiny.plan(options=["trigger.size=3"], sweeps=["rates"])
    assert size.evaluate.key in keys(alone)
    assert size.floor.key != plan.cells[0].floor.key  # a floor is that of its own point


def test_a_sweep_asked_for_is_the_only_one(tiny: Tiny) -> None:
    assert {str(cell.point) for cell in tiny.plan(sweeps=["trigger"]).cells} == {"{}", "{'trigger.size': 3}"}
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
        ('option = "trigger.size"', 'option = "size"', "board tiny: sweep trigger: size is not of the form NAME.FIELD"),
        ('option = "trigger.size"', 'optoin = "size"', "unknown field of sweeps.0 'optoin': did you mean 'option'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, registry: Registry, old: str, new: str, error: str) -> None:
    assert old in SWEPT
    tiny = Tiny(tmp_path, registry, SWEPT.replace(old, new))
    with pytest.raises(UsageError, match=error) as caught:
        tiny.plan()
    assert "\n" not in str(caught.value)


def test_records_of_points_have_names_and_tables_of_their_own(tiny: Tiny) -> None:
    records = tiny.run()
    assert len({record.name for record in records}) == len(records) == 16
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
    assert slow.scratch_seeds == (1,)  # from scratch is no other under the point
    assert "| point" not in markdown.write(table)
    unnamed = document(records).sections[1].tables  # without the board
    assert {each.heading.partition(":")[0] for each in unnamed} == {"Sweep points that the board does not name"}

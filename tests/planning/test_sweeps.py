"""Sweeps of a board: points are planned beside the grid, share its stages, and have their own tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchbd_plugins.simclr import SimCLR

from benchbd.base.errors import UnknownNameError, UsageError
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
    # Another trigger changes every cell; a rate only those of ft; the board's own values change none.
    assert moved == {"{'trigger.size': 3}": 6, "{'ft.lr': 0.0001}": 2, "{'ft.lr': 0.1, 'ft.steps': 1}": 2}
    assert plan.departures == []
    size = next(cell for cell in plan.cells if cell.point == {"trigger.size": 3})
    alone = tiny.plan(options=["trigger.size=3"], sweeps=["rates"])
    assert size.judged.key in keys(alone)
    assert size.floors[0].key != plan.cells[0].floors[0].key  # a point has its own floor


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
        (
            'option = "trigger.size"',
            'option = "size"',
            "board tiny: sweep trigger: size is neither of the form NAME.FIELD nor pretraining",
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
    assert found == [("none", {}), ("badencoder", {}), ("badencoder", {"trigger.size": 3})]


def test_a_value_that_is_a_methods_default_has_the_row_of_the_grid(tmp_path: Path, registry: Registry) -> None:
    board = f'{TINY}\n[[sweeps]]\nname = "decay"\noption = "ft.weight_decay"\nvalues = [0.0, 0.1]\n'
    default = registry.get("defense", "ft").model_fields["weight_decay"].default
    tiny = Tiny(tmp_path, registry, board.replace("0.0,", f"{default},"))
    records = tiny.run(defenses=["none", "ft"], attacks=["badencoder"])
    (table,) = document(records, order=Order.of(load_board(tiny.board))).sections[1].tables
    assert [row[0] for row in table.rows] == [str(default), "0.1"]

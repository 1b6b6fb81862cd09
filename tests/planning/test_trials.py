"""Trials of defenses: the same settings on every board, planned as sweeps of one defense each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from benchbd import DefenderKnowledge, Encoder, Mitigation, Tunable
from benchbd.base.errors import UnknownNameError, UsageError
from benchbd.contract.axes import AXES
from benchbd.planning.trials import RANKED, point_of
from benchbd.records.points import faults
from benchbd.registry import Registry, flaw_of, load_registry

from ..boards import TINY, Tiny, keys, offering
from ..records_factory import make_record

TUNED = f"{TINY}\n[tuned]\ntrials = 3\n"


class Mine(Mitigation):
    """Two options with ranges."""

    name = "mine"
    version = "1"
    tunable = {"rate": Tunable(1e-3, 10.0, log=True), "depth": Tunable(1, 4)}

    rate: float = Field(0.1, gt=0, le=10, description="a rate")
    depth: int = Field(2, ge=1, le=4, description="a depth")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return encoder


@pytest.mark.parametrize(
    ("span", "share", "value"),
    [
        (Tunable(1.0, 5.0), 0.25, 2),
        (Tunable(0.0, 1.0), 0.12345, 0.123),
        (Tunable(0.01, 1.0, log=True), 0.5, 0.1),
        (Tunable(100.0, 10_000.0, log=True), 0.5, 1000),
        (Tunable(1, 4), 0.0, 1),
        (Tunable(1, 4), 0.5, 3),
        (Tunable(1, 4), 0.999, 4),
        (Tunable(1, 4), 1.0, 4),
        (Tunable(10, 1000, log=True), 0.5, 100),
        (Tunable(0.12345, 0.2), 0.0, 0.12345),  # rounding never leaves the range
        (Tunable(0.1, 0.22222), 1.0, 0.222),
    ],
)
def test_a_share_of_a_range(span: Tunable, share: float, value: float) -> None:
    assert span.at(share) == value
    assert type(span.at(share)) is type(value)


def test_draws_fill_the_range() -> None:
    points = [point_of(Mine, number) for number in range(1, 2001)]
    rates = [point["defense:mine.rate"] for point in points]
    low = sum(rate < 0.1 for rate in rates)  # half of four orders of magnitude
    assert abs(low - 1000) < 4 * 22.4  # binomial: the standard deviation is 22.4
    depths = [point["defense:mine.depth"] for point in points]
    assert all(abs(depths.count(depth) - 500) < 4 * 19.4 for depth in (1, 2, 3, 4))
    assert 1e-3 <= min(rates) <= max(rates) <= 10


def test_settings_depend_on_names_and_number_alone() -> None:
    assert [point_of(Mine, number) for number in (2, 1)] == [point_of(Mine, number) for number in (2, 1)]
    assert point_of(Mine, 1) == {"trial": 1, "defense:mine.rate": 1.95, "defense:mine.depth": 1}  # for ever

    class Fewer(Mine):
        tunable = {"depth": Tunable(1, 4)}

    assert point_of(Fewer, 1)["defense:mine.depth"] == point_of(Mine, 1)["defense:mine.depth"]


def test_trials_are_planned_beside_the_grid(tmp_path: Path, registry: Registry) -> None:
    plain, tuned = Tiny(tmp_path / "a", registry, TINY), Tiny(tmp_path / "b", registry, TUNED)
    grid, plan = plain.plan(), tuned.plan()
    assert [cell.judged.key for cell in plan.cells[:6]] == [cell.judged.key for cell in grid.cells]
    trials = plan.cells[6:]
    assert [(cell.attack, cell.defense, cell.point["trial"]) for cell in trials] == [
        ("none", "ft", 1),
        ("badencoder", "ft", 1),
        ("none", "ft", 2),
        ("badencoder", "ft", 2),
    ]
    assert {cell.point["trial"]: cell.point for cell in trials} == {
        number: point_of(registry.get("defense", "ft"), number)  # type: ignore[arg-type]
        for number in (1, 2)
    }
    assert plan.departures == []
    assert keys(grid) < keys(plan)
    repairs = [cell.judged.parents["encoder"].method for cell in trials]
    assert [method.lr for method in repairs] == [cell.point["defense:ft.lr"] for cell in trials]  # type: ignore[union-attr]


def test_other_boards_try_the_same(tmp_path: Path, registry: Registry) -> None:
    more = TUNED.replace('["none", "scratch", "ft"]', '["none", "fp", "ft", "nad"]').replace("trials = 3", "trials = 4")
    own = '\n[[sweeps]]\nname = "s"\noption = "trigger.size"\nvalues = [3]\n[options.ft]\nlr = 0.5\n'
    points = [
        {str(dict(cell.point)) for cell in tiny.plan().cells if cell.defense == "ft" and "trial" in cell.point}
        for tiny in (Tiny(tmp_path / "a", registry, TUNED), Tiny(tmp_path / "b", registry, more + own))
    ]
    assert points[0] < points[1]
    assert [len(each) for each in points] == [2, 3]
    counts: dict[str, int] = {}
    for cell in Tiny(tmp_path / "c", registry, more).plan().cells:
        counts[cell.defense] = counts.get(cell.defense, 0) + ("trial" in cell.point)
    assert counts == {"none": 0, "fp": 6, "ft": 6, "nad": 6}  # three a defense, for each of two attacks


def test_the_trials_of_one_defense_are_a_sweep_by_name(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, TUNED.replace('"ft"]', '"ft", "fp"]'))
    chosen = tiny.plan(sweeps=["tuned-fp"])
    assert {cell.defense for cell in chosen.cells if cell.point} == {"fp"}
    added = tiny.plan(defenses=["nad"])  # a method that the board does not name, at its own ranges
    assert {cell.defense for cell in added.cells if cell.point} == {"nad"}
    assert added.departures == []
    both = tiny.plan(options=["nad.beta=5", "fp.lr=0.1"], defenses=["fp", "nad"])
    assert not [cell for cell in both.cells if cell.point]  # the command sets what their trials would vary
    with pytest.raises(UnknownNameError, match="unknown sweep 'tuned-fpp': did you mean 'tuned-fp'"):
        tiny.plan(sweeps=["tuned-fpp"])
    with pytest.raises(UsageError, match=r"sweep tuned-fp: it varies defense:fp\.lr, which the command sets"):
        tiny.plan(sweeps=["tuned-fp"], options=["fp.lr=0.1"])


def test_a_defense_without_ranges_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Fixed(Mine):
        name = "fixed"
        tunable = {}

    registry = load_registry(extra={"local": offering(benchbd_defenses=[Mine, Fixed])})
    plan = Tiny(tmp_path, registry, TUNED.replace('"ft"]', '"fixed", "bn", "mine"]')).plan()
    assert caplog.messages == ["board tiny: no trials of fixed, which declare no range"]
    assert {cell.defense for cell in plan.cells if cell.point} == {"mine"}


@pytest.mark.parametrize(
    ("board", "error"),
    [
        (f"{TINY}\n[tuned]\ntrials = 1\n", "board .*: tuned.trials: input should be greater than or equal to 2"),
        (f"{TINY}\n[tuned]\ntolerance = 2\n", "board .*: tuned.tolerance: input should be less than or equal to 1"),
        (f"{TINY}\n[tuned]\ntrails = 3\n", "board .*: unknown field of tuned 'trails': did you mean 'trials'"),
        (
            f'{TUNED}\n[[sweeps]]\nname = "tuned-ft"\noption = "ft.lr"\nvalues = [1]\n',
            "board tiny: sweep tuned-ft: trials have this name; give the sweep another",
        ),
        (
            f'{TINY}\n[[sweeps]]\nname = "s"\noption = "trial"\nvalues = [1]\n',
            "board .*: sweep s: trial is neither of the form name.field nor pretraining",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, registry: Registry, board: str, error: str) -> None:
    with pytest.raises(UsageError, match=error) as caught:
        Tiny(tmp_path, registry, board).plan()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranges", "error"),
    [
        ({"rat": Tunable(0.1, 1.0)}, "unknown tunable option 'rat': did you mean 'rate'"),
        ({"rate": Tunable(0.0, 1.0)}, "tunable rate, from 0 to 1: mine.rate: input should be greater than 0 (got 0)"),
        ({"rate": Tunable(0.1, 11.0)}, "tunable rate, from 0.1 to 11: mine.rate: input should be less than or equal"),
        ({"depth": Tunable(1.0, 3.5)}, "tunable depth, from 1 to 3.5: mine.depth: input should be a valid integer"),
        ({"rate": Tunable(1.0, 0.1)}, "tunable rate: its first end must be below its second, not 1.0 and 0.1"),
        ({"rate": Tunable(0.0, 1.0, log=True)}, "tunable rate: a range by logarithm must begin above 0, not 0.0 and 1"),
        ({"rate": Tunable(0.1, float("nan"))}, "tunable rate: its ends must be finite numbers, not 0.1 and nan"),
        ({"rate": (0.1, 1.0)}, "tunable must be a Tunable by option, as in {'lr': Tunable(1e-4, 1e-2, log=True)}, not"),
        ([], "tunable must be a Tunable by option"),
    ],
)
def test_a_range_is_checked_where_the_method_is_registered(ranges: Any, error: str) -> None:
    wrong = type("Wrong", (Mine,), {"tunable": ranges, "__module__": __name__, "__doc__": "Wrong."})
    assert flaw_of(wrong).startswith(error)
    problems = load_registry(extra={"local": offering(benchbd_defenses=[wrong])}).problems
    assert any(error in problem for problem in problems)


def test_the_ranges_of_benchbd_have_the_default_inside(registry: Registry) -> None:
    (axis,) = (axis for axis in AXES if axis.name == "defense")
    ranked = [cls for name in registry.names("defense") if (cls := registry.get("defense", name)).role in RANKED]
    assert all(issubclass(cls, axis.base) for cls in ranked)
    for cls in ranked:
        assert cls.tunable, cls.name  # type: ignore[attr-defined]
        for option, span in cls.tunable.items():  # type: ignore[attr-defined]
            default = cls.model_fields[option].default
            assert (cls.name, option) == ("moth", "lr") or span.low < default < span.high, (cls.name, option)


@pytest.mark.parametrize(
    ("point", "fault"),
    [
        ({"trial": 1, "defense:ft.lr": 0.1}, ""),
        ({"trial": 0, "defense:ft.lr": 0.1}, "point: trial 0; trials are numbered from 1"),
        ({"trial": True}, "point: trial True; trials are numbered from 1"),
        ({"trial": 1, "defense:fp.lr": 0.1}, "point: 'defense:fp.lr', but a trial varies options of its defense alone"),
        ({"trial": 1, "trigger.size": 3}, "point: 'trigger.size', but a trial varies options of its defense alone"),
    ],
)
def test_the_point_of_a_record_of_a_trial(point: dict[str, Any], fault: str) -> None:
    record = make_record(defense="ft", point=point)
    assert next(faults(record), "") == fault
    assert re.fullmatch(r"badencoder_ft_cifar10_gtsrb-12_s0_mlp_trial-\w+\.json", record.name)

"""Ranks of defenses: what counts, what is clear, and what stays tied."""

from __future__ import annotations

from itertools import combinations, product
from statistics import fmean, pvariance
from typing import Any

import numpy as np
import pytest

from benchbd.base.errors import DataError
from benchbd.records.gates import Gates
from benchbd.report.ranking import Score, Standing, judged, ranked, spread
from benchbd.report.statistics import t_975

FLOOR = (80.0, 5.0)


def row(
    defense: str,
    seed: int = 1,
    asr: float | None = 5.0,
    acc: float | None = 80.0,
    attack: str = "bad",
    **fields: Any,
) -> Score:
    return Score(attack, defense, seed, acc, asr, *FLOOR, **fields)


def table(residuals: dict[str, list[float]]) -> list[Score]:
    """Defenses with these residuals on seeds 1, 2, ..., of an attack that always takes."""
    seeds = range(1, 1 + max(map(len, residuals.values())))
    return [
        *(row("none", seed, 95.0) for seed in seeds),
        *(row(name, seed, 5 + left) for name, own in residuals.items() for seed, left in zip(seeds, own, strict=False)),
    ]


def tie(found: dict[str, Standing], one: str, other: str) -> bool:
    return bool({*found[one].ties} & {*found[other].ties})


def by_name(standings: list[Standing]) -> dict[str, Standing]:
    return {standing.defense: standing for standing in standings}


def test_clear_differences_are_ranked_and_unclear_ones_are_tied() -> None:
    standings = ranked(table({"a": [0, 1, 2], "b": [1, 0, 2], "c": [40, 41, 42], "d": [70, 30, 80]}))
    assert [(each.defense, each.best, each.worst, each.ties) for each in standings] == [
        ("a", 1, 3, (0,)),  # clearly better than c alone
        ("b", 1, 3, (0,)),
        ("c", 3, 4, (1,)),
        ("d", 1, 4, (0, 1)),
        ("none", None, None, ()),
    ]


def test_two_defenses_are_tied_exactly_if_their_difference_is_not_clear() -> None:
    g = np.random.default_rng(3)
    both = set()
    for _ in range(50):
        left = {name: list(40 + 12 * n + g.normal(0, 8, 3)) for n, name in enumerate("abcdef")}
        found = by_name(ranked(table(left)))
        for one, other in combinations("abcdef", 2):
            mean, half = spread({s: [x - y] for s, x, y in zip((1, 2, 3), left[one], left[other], strict=True)})
            assert mean is not None
            assert half is not None
            both.add(tied := abs(mean) <= 1.1 * half)
            assert tie(found, one, other) == tied
        assert all((each.best or 0) <= (each.worst or 0) for each in found.values() if each.best)
        groups = [{each.defense for each in found.values() if n in each.ties} for n in range(10)]
        assert not [(x, y) for x, y in combinations(filter(None, groups), 2) if x <= y or y <= x]
    assert both == {True, False}


def test_a_residual_is_counted_from_the_clean_encoder_and_never_below_it() -> None:
    found = by_name(ranked([*table({"a": [0, 0]}), row("b", 1, 0.0), row("b", 2, 3.0)]))
    assert found["a"].residual.mean == found["b"].residual.mean == 0
    assert found["b"].asr.mean == 1.5
    assert tie(found, "a", "b")


@pytest.mark.parametrize(
    ("status", "acc", "asr"), [("ok", 69.9, 5.0), ("error", None, None), ("timeout", None, None), ("n/a", None, None)]
)
def test_what_is_no_repair_counts_as_undefended(status: str, acc: float | None, asr: float | None) -> None:
    rows = [row("none", 1, 95.0), row("none", 2, 85.0), *(row("good", seed, 15.0) for seed in (1, 2))]
    rows += [row("bad", seed, asr, acc, status=status) for seed in (1, 2)]
    found = by_name(ranked(rows))
    assert found["bad"].residual.mean == fmean([90, 80])
    assert found["bad"].statuses == {"collapsed" if status == "ok" else status: 2}
    assert (found["good"].best, found["bad"].best) == (1, 2)


def test_a_failed_attack_scores_for_nobody() -> None:
    rows = table({"a": [10, 10], "b": [20, 20]})
    weak = [row(defense, seed, asr, attack="weak") for seed in (1, 2) for defense, asr in (("none", 19.9), ("b", 5.0))]
    assert [judgement.status for judgement in judged(weak)] == ["attack-failed"] * 4
    found = by_name(ranked([*rows, *weak]))
    assert found["b"].residual.mean == 20
    assert found["b"].worst_attack == "bad"
    assert found["a"].missing == ()  # nothing counts that a could lack
    assert found["a"].best == found["a"].worst == 1


def test_a_defense_that_lacks_a_cell_is_not_ranked() -> None:
    found = ranked(table({"all": [30, 30, 30], "some": [0, 0], "more": [40, 40, 40]}))
    assert [(each.defense, each.best) for each in found] == [("all", 1), ("more", 2), ("none", None), ("some", None)]
    assert found[3].missing == (("bad", "", 3),)


def test_a_cell_counts_if_half_of_the_defenses_have_it() -> None:
    few = [row(d, 1, asr, task="few") for d, asr in (("none", 95.0), ("a", 90.0))]
    found = by_name(ranked([*table({"a": [0, 1], "b": [2, 3], "c": [4, 5]}), *few]))
    assert found["a"].residual.mean == 0.5
    assert all(each.missing == () for each in found.values())
    half = [row(d, 1, asr, task="few") for d, asr in (("none", 95.0), ("a", 90.0), ("b", 80.0))]
    found = by_name(ranked([*table({"a": [0, 1], "b": [2, 3], "c": [4, 5]}), *half]))
    assert found["c"].missing == (("bad", "few", 1),)
    assert found["c"].best is None
    assert found["a"].residual.mean == fmean([fmean([0, 85]), 1])


def test_one_seed_is_provisional_and_leaves_all_tied() -> None:
    found = ranked(table({"a": [10], "b": [20], "c": [30]}))[:3]
    assert [(each.defense, each.best, each.worst, each.ties, each.provisional) for each in found] == [
        ("a", 1, 3, (0,), True),
        ("b", 1, 3, (0,), True),
        ("c", 1, 3, (0,), True),
    ]


def test_controls_stand_apart_and_the_clean_encoder_is_no_attack() -> None:
    rows = [
        *table({"a": [10, 10], "scratch": [0, 0]}),
        row("a", 1, 5.0, attack="none"),
        row("none", 1, 5, attack="none"),
    ]
    found = ranked(rows, apart=["scratch"])
    assert [(each.defense, each.best) for each in found] == [("a", 1), ("none", None), ("scratch", None)]
    assert found[2].residual.mean == 0
    lost = row("scratch", 3, 5.0, acc=20.0)  # collapsed, and no repair that a collapse could favour
    assert (
        by_name(ranked([*rows, lost, row("none", 3, 95.0), row("a", 3, 15.0)], apart=["scratch"]))[
            "scratch"
        ].residual.mean
        == 0
    )


def test_the_worst_attack_is_named() -> None:
    tasks = {"easy": 10.0, "hard": 60.0}
    rows = [
        row(d, s, 95.0 if d == "none" else 5 + tasks[t], task=t) for d in ("none", "a") for s in (1, 2) for t in tasks
    ]
    (first, _) = ranked(rows)
    assert (first.worst_attack, first.worst_task, first.most, first.residual.mean) == ("bad", "hard", 60.0, 35.0)


def test_the_error_is_that_of_a_bootstrap_over_seeds() -> None:
    """Every outcome of drawing 2 of 2 seeds, each with its cells, is listed. With n - 1 instead of n the variance is
    twice as large."""
    values = {1: [3.0, 9.0], 2: [20.0, 24.0]}
    outcomes = [fmean([fmean(values[one]), fmean(values[two])]) for one, two in product(values, repeat=2)]
    mean, half = spread(values)
    assert mean == pytest.approx(fmean(outcomes))
    assert half is not None
    assert (half / t_975(1)) ** 2 == pytest.approx(2 * pvariance(outcomes))


def test_attacks_that_differ_leave_a_clear_difference_clear() -> None:
    """A defense that is better against every attack, much against one and little against the other, is better."""
    left = {"a": {"x": 1, "y": 2}, "b": {"x": 10, "y": 80}, "none": {"x": 30, "y": 95}}
    rows = [row(d, s, 5 + v + s / 10, attack=x) for d, own in left.items() for x, v in own.items() for s in (1, 2, 3)]
    found = by_name(ranked(rows))
    assert (found["a"].best, found["a"].worst, found["b"].best) == (1, 1, 2)


def simulated(g: np.random.Generator, means: list[float], bimodal: bool, seeds: int = 3) -> list[Score]:
    """Two attacks on two tasks. Noise of a seed, common to its cells, and of a cell; bimodal: a repair fails on one in
    four seeds."""
    rows = []
    for seed in range(seeds):
        for attack, task in product(("x", "y"), ("s", "t")):
            rows.append(row("none", seed, 99.0, attack=attack, task=task))
        for number, mean in enumerate(means):
            shift = 40 * (g.random() < 0.25) if bimodal else g.normal(0, 8)
            for attack, task in product(("x", "y"), ("s", "t")):
                left = mean + shift + g.normal(0, 4)
                rows.append(row(f"d{number}", seed, 5 + max(0.0, left), attack=attack, task=task))
    return rows


@pytest.mark.parametrize("bimodal", [False, True])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_ties_are_declared_among_equals(bimodal: bool, seeds: int) -> None:
    g = np.random.default_rng(11)
    tied = []
    for _ in range(120):
        found = by_name(ranked(simulated(g, [30.0] * 5, bimodal, seeds)))
        tied += [tie(found, one, other) for one, other in combinations([f"d{n}" for n in range(5)], 2)]
    assert fmean(tied) >= 0.95


def test_the_order_is_found_among_clearly_different_ones() -> None:
    g = np.random.default_rng(12)
    means = [0.0, 30.0, 60.0, 90.0]
    exact = 0
    for _ in range(40):
        rows = simulated(g, means, bimodal=False, seeds=5)
        exact += [(each.defense, each.best, each.worst) for each in ranked(rows)[:4]] == [
            (f"d{n}", n + 1, n + 1) for n in range(4)
        ]
    assert exact >= 36
    found = ranked(table({"a": [1, 2, 0], "b": [30, 33, 31], "c": [60, 62, 61]}))[:3]
    assert [(each.best, each.worst, each.ties) for each in found] == [(n, n, (n - 1,)) for n in (1, 2, 3)]


def test_gates_are_those_given() -> None:
    rows = table({"a": [10, 12]})
    assert {j.status for j in judged(rows, Gates(gain=95))} == {"attack-failed"}
    assert ranked(rows, Gates(gain=95)) == []


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([row("a"), row("none", 1, 90.0), row("a", 1, 7.0)], "two rows of bad, seed 1 under a: a cell has one"),
        ([row("a", task="t")], "no undefended ASR of bad on t, seed 1, by which a is judged"),
        ([row("a", asr=None, undefended=90.0)], "no ACC or no ASR of bad, seed 1 under a, whose status is ok"),
    ],
)
def test_a_table_that_is_none_is_refused(rows: list[Score], wrong: str) -> None:
    with pytest.raises(DataError, match=wrong):
        ranked(rows)
    assert ranked([]) == []

"""The summary of a board: a row a defense over all its attacks, tasks and seeds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchbd import Role
from benchbd.records.models import Record
from benchbd.report.leaderboard import document
from benchbd.report.rows import BY_NAME
from benchbd.report.statistics import mean_interval
from benchbd.report.summary import remarks, summaries
from benchbd.report.writers.forms import write

from ..records_factory import counts_of, make_record, paper_like

ROLES = {"scratch": Role.SCRATCH, "bn": Role.BN, "ft": Role.FT, "none": Role.FLOOR, "peek": Role.ORACLE}


def cell(defense: str, seed: int, asr: float, acc: float = 80.0, **fields: Any) -> Record:
    """A cell whose undefended ASR non-target is 98, and the clean encoder's 3 at ACC 82."""
    metrics = (80.0, 99.0, 98.0) if defense == "none" else (acc, asr, asr)
    return make_record(defense=defense, seed=seed, metrics=metrics, defense_role=ROLES.get(defense, "method"), **fields)


def board() -> list[Record]:
    found = {"good": [4, 5, 6], "ft": [40, 45, 44], "scratch": [10, 12, 14], "peek": [3, 3, 3], "none": [98, 98, 98]}
    return [cell(name, seed, asr) for name, own in found.items() for seed, asr in enumerate(own, start=1)]


def test_it_has_one_row_a_defense_and_the_references_stand_below() -> None:
    (summary,) = summaries(board(), BY_NAME)
    rows = [(each.defense, each.best, each.worst) for each in summary.standings]
    assert rows == [("good", 1, 1), ("ft", 2, 2), ("none", None, None), ("peek", None, None), ("scratch", None, None)]
    good = summary.standings[0]
    assert good.residual == pytest.approx(mean_interval([1, 2, 3]))
    assert good.asr == pytest.approx(mean_interval([4, 5, 6]))
    assert good.acc_to_floor.mean == -2
    acc, asr = summary.differences["good", Role.FT]
    assert asr == pytest.approx(mean_interval([4 - 40, 5 - 45, 6 - 44]))
    assert acc.mean == 0
    assert ("ft", Role.FT) not in summary.differences
    assert ("good", Role.BN) not in summary.differences


def test_every_form_has_it() -> None:
    made = document(board(), order=BY_NAME)
    text = write(made, "text", 120)
    head, *lines = text.splitlines()[3:]
    assert text.splitlines()[0] == "Summary: evaluator mlp"
    assert lines[0].split()[:4] == ["1", "a", "good", "80.0±0.0"] or head.split()[:3] == ["1", "a", "good"]
    assert "Ties | Defense" in " ".join(write(made, "markdown").split())
    (told,) = json.loads(write(made, "json"))["summary"]
    assert [each["defense"] for each in told["standings"]] == ["good", "ft", "none", "peek", "scratch"]
    assert told["standings"][0]["ties"] == [0]
    assert told["standings"][0]["asr_to_ft"] == pytest.approx(-38)
    assert "uses what a defender does not have" in write(made, "markdown")
    assert r"\section" in write(made, "latex") or "Summary" in write(made, "latex")


def test_a_failed_attack_a_control_and_a_sweep_are_no_part_of_it() -> None:
    calm = make_record("calm", "none", 1, (80.0, 4.0, 4.0), attack_role=Role.CONTROL)
    weak = make_record("weak", "good", 1, (80.0, 60.0, 60.0), undefended=calm.metrics)
    point = cell("good", 4, 90.0, point={"trigger.size": 3})
    (plain,), (more,) = summaries(board(), BY_NAME), summaries([*board(), calm, weak, point], BY_NAME)
    assert [each.residual for each in more.standings] == [each.residual for each in plain.standings]


def test_missing_cells_are_listed() -> None:
    records = [each for each in board() if (each.defense, each.seed) not in (("good", 2), ("good", 3))]
    records += [cell("other", seed, 50) for seed in (1, 2, 3)]
    text = write(document(records), "text", 120)
    assert "not ranked: it lacks badencoder, cifar10 -> gtsrb:12 (seeds 2, 3)" in text
    (summary,) = summaries(records, BY_NAME)
    assert {each.defense for each in summary.standings if each.best} == {"ft", "other"}


def test_there_is_none_where_nothing_is_summed_up() -> None:
    one = [cell(name, 1, 10) for name in ("none", "ft", "good")]
    assert summaries(one, BY_NAME) == []  # the table has the same rows
    assert summaries([*one, cell("good", 2, 10), cell("none", 2, 98)], BY_NAME) == []  # no two defenses are ranked
    assert len(summaries([*one, *(cell(name, 2, 10) for name in ("none", "ft", "good"))], BY_NAME)) == 1


def test_the_worst_attack_is_named_as_far_as_there_are_several() -> None:
    place = {"task": "svhn", "target": 1, "target_name": "1"}
    both = [*board(), *(cell(name, s, 70 if name == "good" else 50, **place) for name in ROLES for s in (1, 2, 3))]
    both += [cell("good", seed, 70, **place) for seed in (1, 2, 3)]
    text = write(document(both), "markdown")
    assert "cifar10 -> svhn:1: 67.0" in text
    assert "badencoder, " not in text.partition("## cifar10")[0]


def test_evaluators_have_a_summary_each() -> None:
    both = [*board(), *(cell(r.defense, r.seed, 20, evaluator="knn") for r in board())]
    assert [each.evaluator for each in summaries(both, BY_NAME)] == ["knn", "mlp"]


def headed(seed: int, asrs: list[float]) -> Record:
    parts = [counts_of((80.0, asr, asr)) for asr in asrs]
    record = cell("good", seed, sum(asrs) / len(asrs))
    return record.model_copy(update={"heads": parts})


def test_shares_of_variance_are_those_of_heads_and_seeds() -> None:
    """Heads 2 points apart: variance 2 in an encoder. Means of 10 and 30: variance 200, of which 1 is the heads'."""
    records = [*(r for r in board() if r.defense != "good" and r.seed < 3), headed(1, [9, 11]), headed(2, [29, 31])]
    (summary,) = summaries(records, BY_NAME)
    assert summary.head_share == pytest.approx(2 / (2 + 199))
    assert list(remarks([summary]))[1:] == [
        "Variance of the ASR non-target of one repaired encoder under one head (mlp): 1 % lies between heads, 99 % "
        "between seeds of pre-training, attack and repair."
    ]
    (without,) = summaries(board(), BY_NAME)
    assert without.head_share is None
    assert "Variance" not in "".join(remarks([without]))


def test_the_papers_records_have_one_of_one_seed() -> None:
    (summary,) = summaries(paper_like(), BY_NAME)
    assert all(each.provisional for each in summary.standings if each.best)
    assert "(1-" in write(document(paper_like()), "text", 160)

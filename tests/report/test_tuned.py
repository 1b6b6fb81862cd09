"""The trial that clean images choose, by hand, and the table of default and tuned settings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchbd.audit.planned import PlannedBoard
from benchbd.base.errors import DataError
from benchbd.planning.board import Tuned, load_board
from benchbd.records.models import CleanFeatures, Record
from benchbd.registry import Registry
from benchbd.report.leaderboard import document
from benchbd.report.rows import Order
from benchbd.report.tuned import Trial, taken
from benchbd.report.writers import json as as_json
from benchbd.report.writers import latex, markdown, text

from ..boards import TINY, Tiny
from ..records_factory import make_record

FLOOR = (82.0, 5.0, 3.0)


@pytest.mark.parametrize(
    ("trials", "number"),
    [
        ([Trial(0, 0.90, 0.99), Trial(1, 0.90, 0.80), Trial(2, 0.90, 0.95)], 1),  # the lowest cosine
        ([Trial(0, 0.90, 0.99), Trial(1, 0.87, 0.10), Trial(2, 0.88, 0.95)], 2),  # 1 costs too much
        ([Trial(0, 0.90, 0.99), Trial(1, 0.50, 0.10), Trial(2, 0.60, 0.20)], 0),  # all do
        ([Trial(0, 0.90, 0.50), Trial(1, 0.95, 0.70), Trial(2, 0.99, 0.60)], 0),  # the default moves features most
        ([Trial(0, 0.90, 0.80), Trial(1, 0.90, 0.70), Trial(2, 0.95, 0.70)], 1),  # equal ones: the first
        ([Trial(0, 0.90, 0.80), Trial(1, 0.90, 0.80)], 0),
        ([Trial(0, 0.90, 0.99), Trial(1), Trial(2, 0.90, 0.98)], 2),  # 1 was not measured
        ([Trial(0), Trial(1, 0.90, 0.10)], 0),  # the default was not
        ([Trial(1, 0.90, 0.10)], 0),
        ([Trial(0, 0.0, 1.0), Trial(1, 0.0, -1.0)], 1),
    ],
)
def test_the_choice_by_hand(trials: list[Trial], number: int) -> None:
    assert taken(trials, tolerance=0.02) == number
    for seed in range(3):  # in whatever order
        shuffled = random.Random(seed).sample(trials, len(trials))
        assert taken(shuffled, tolerance=0.02) == number


def test_the_tolerance_itself_is_allowed() -> None:
    trials = [Trial(0, 0.3, 0.9), Trial(1, 0.1, 0.5)]  # 0.3 - 0.2 is 0.09999...98
    assert taken(trials, tolerance=0.2) == 1
    assert taken(trials, tolerance=0.199) == 0


def trial(number: int, acc: float, asr: float, pretext: float, cosine: float, seed: int = 1, **more: Any) -> Record:
    """One of ft, with these figures on labels and on clean images."""
    features = CleanFeatures(pretext=pretext, pretext_given=0.9, cosine=cosine)
    fields = {
        "metrics": (acc, asr, asr),
        "clean_features": features,
        "point": {"trial": number, "defense:ft.lr": 0.001 * number} if number else {},
    }
    return make_record("badencoder", "ft", seed, baseline=FLOOR, **{**fields, **more})


def two_seeds() -> list[Record]:
    return [
        make_record("badencoder", "none", 1),
        make_record("badencoder", "none", 2),
        *[trial(0, 80.0, 60.0, 0.9, 0.99), trial(1, 79.0, 20.0, 0.9, 0.80), trial(2, 60.0, 1.0, 0.5, 0.10)],
        *[trial(0, 81.0, 50.0, 0.9, 0.99, 2), trial(1, 80.0, 70.0, 0.9, 0.98, 2), trial(2, 78.0, 40.0, 0.89, 0.97, 2)],
    ]


def test_a_row_has_default_and_tuned_side_by_side() -> None:
    made = document(two_seeds(), order=Order(tuned=Tuned(trials=3)))
    (row,) = made.data["tuned"]
    assert (row["attack"], row["defense"], row["seeds"], row["taken"]) == ("badencoder", "ft", [1, 2], [1, 2])
    assert (row["acc_default"], row["acc_tuned"], row["acc_difference"]) == (80.5, 78.5, -2.0)
    assert (row["asr_nontarget_default"], row["asr_nontarget_tuned"]) == (55.0, 30.0)
    assert row["asr_nontarget_difference"] == -25.0
    assert row["asr_nontarget_difference_half"] == pytest.approx(12.7062 * 15, rel=1e-4)  # -40 and -10
    assert row["status"] == "ok"
    assert row["notes"] == []
    assert row["trials"][0]["taken"] == 1
    assert row["trials"][0]["trials"][2] == {
        "trial": 2,
        "setting": {"defense:ft.lr": 0.002},
        "pretext": 0.5,
        "cosine": 0.1,
        "acc": 60.0,
        "asr_nontarget": 1.0,
        "ra": 60.0,
    }
    assert all(not line["point"] for line in made.data["rows"] if "point" in line)  # trials are no rows of their own
    assert len(made.data["rows"]) == 2
    assert not any("Sweep" in table.heading for section in made.sections for table in section.tables)


def test_another_tolerance_takes_another_trial() -> None:
    made = document(two_seeds(), order=Order(tuned=Tuned(trials=3, tolerance=0.4)))
    assert made.data["tuned"][0]["taken"] == [2, 2]
    assert made.data["tuned"][0]["status"] == "1 ok, 1 collapsed"  # the choice saw no label; the gate does


def test_figures_with_labels_take_no_part() -> None:
    worse = [
        trial(0, 10.0, 99.0, 0.9, 0.99),
        trial(1, 5.0, 100.0, 0.9, 0.80),
        trial(2, 82.0, 0.0, 0.5, 0.10),
    ]
    (row,) = document(worse, order=Order(tuned=Tuned(trials=3))).data["tuned"]
    assert row["taken"] == [1]


def test_what_is_missing_is_said() -> None:
    records = two_seeds()
    records[-1] = trial(2, 0, 0, 0.9, 0.5, 2, status="error", reason="it broke", metrics=None, clean_features=None)
    records.append(make_record("badencoder", "fp", 1, (80.0, 50.0, 50.0), FLOOR))
    made = document(records, order=Order(tuned=Tuned(trials=3)))
    assert made.data["tuned"][0]["notes"] == ["seed 2: 2 of 3 trials have a result"]
    assert made.data["tuned"][0]["taken"] == [1, 1]
    assert "Tuned leaves out fp: without trials." in made.remarks
    unmeasured = [trial(0, 80.0, 60.0, 0.9, 0.9, clean_features=None), trial(1, 80.0, 60.0, 0.9, 0.9)]
    (row,) = document(unmeasured, order=Order(tuned=Tuned(trials=2))).data["tuned"]
    assert row["taken"] == [0]
    assert row["notes"] == ["seed 1: trial 0 is from before its features were measured, so nothing is chosen"]


def test_off_board_trials_are_apart() -> None:
    other = [trial(n, 80.0, 30.0, 0.9, 0.5 - n / 10, 9, on_board=False, departures=["seed 9"]) for n in (0, 1, 2)]
    order = Order(tuned=Tuned(trials=3))
    on_board, alone = (
        document(records, order=order).data["tuned"] for records in ([*two_seeds(), *other], two_seeds())
    )
    assert on_board == alone
    both = document([*two_seeds(), *other], order=order, off_board=True).data["tuned"]
    assert [row["taken"] for row in both] == [[1, 2], [2]]


def test_two_records_of_one_trial_are_an_error() -> None:
    records = [*two_seeds(), trial(1, 70.0, 10.0, 0.9, 0.5, key="0" * 64)]
    with pytest.raises(DataError, match="two records of one trial; remove the one out of date"):
        document(records)


def test_a_board_without_trials_has_no_such_section() -> None:
    records = [record for record in two_seeds() if not record.point]
    made = document(records, order=Order(tuned=Tuned()))
    assert "tuned" not in made.data
    assert "Tuned" not in markdown.write(made)


def test_every_writer_has_the_table() -> None:
    made = document(two_seeds(), "Demo", Order(tuned=Tuned(trials=3)))
    assert "Tuned: cifar10 -> gtsrb:12 (priority road), evaluator mlp" in markdown.write(made)
    assert "every defense has 3 trials" in markdown.write(made)
    assert "is at most 0.02 below that of the board's setting" in markdown.write(made)
    assert "| badencoder | ft" in markdown.write(made)
    assert "1, 2" in text.write(made, 100)
    assert "Differences of tuned to default" in latex.write(made)
    assert json.loads(as_json.write(made))["tuned"][0]["taken"] == [1, 2]


def test_a_tiny_board_from_end_to_end(tmp_path: Path, registry: Registry) -> None:
    board = TINY.replace('attacks = ["none", "badencoder"]', 'attacks = ["badencoder"]')
    tiny = Tiny(tmp_path, registry, f"{board}\n[tuned]\ntrials = 3\n")
    records = tiny.run()
    tried = [record for record in records if record.defense == "ft"]
    assert [record.point.get("trial", 0) for record in tried] == [0, 1, 2]
    assert all(record.on_board and record.clean_features for record in tried)
    assert len({record.key for record in tried}) == 3
    assert [record.name for record in tried] == [
        f"badencoder_ft_pool_task-1_s1_mlp{end}.json" for end in ("", "_trial-1", "_trial-2")
    ]
    planned = PlannedBoard(load_board(tiny.board), registry, tiny.session().library, records)
    assert [fault for record in records for fault in planned.faults(record)] == []
    (row,) = document(records, order=Order.of(load_board(tiny.board))).data["tuned"]
    features = [record.clean_features for record in tried]
    expected = taken([Trial(n, f.pretext, f.cosine) for n, f in enumerate(features) if f], 0.02)
    assert row["taken"] == [expected]
    assert row["acc_tuned"] == (tried[expected].metrics and tried[expected].metrics.acc)
    assert row["acc_default"] == (tried[0].metrics and tried[0].metrics.acc)
    assert {(e["trial"], *e["setting"].values()) for e in row["trials"][0]["trials"]} == {
        (record.point.get("trial", 0), *([record.point["defense:ft.lr"]] if record.point else ())) for record in tried
    }

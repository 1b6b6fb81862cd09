"""Gates judge measured cells from their counts, when a table is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchbd import Role
from benchbd.base.errors import UsageError
from benchbd.planning.board import load_board
from benchbd.records.files import read_record, write_records
from benchbd.records.gates import Gates, judge
from benchbd.records.models import Metrics, Record

from ..records_factory import make_record
from ..stages.test_detections import inspection

FLOOR = (82.0, 5.0, 3.0)


def undefended(asr: float) -> Record:
    """An attacked encoder of this ASR non-target; the clean encoder's is 3."""
    return make_record(metrics=(80.0, asr, asr), baseline=FLOOR)


@pytest.mark.parametrize(
    ("asr", "gain", "status"),
    [
        (18.0, 15.0, "ok"),  # exactly at the gate
        (17.99, 15.0, "attack-failed"),
        (3.0, 15.0, "attack-failed"),
        (17.99, 14.99, "ok"),
        (3.0, 0.0, "ok"),
        (2.99, 0.0, "attack-failed"),
    ],
)
def test_an_attack_must_gain(asr: float, gain: float, status: str) -> None:
    assert judge(undefended(asr), Gates(gain=gain)).status == status


@pytest.mark.parametrize(
    ("acc", "loss", "status"),
    [
        (72.0, 10.0, "ok"),
        (71.99, 10.0, "collapsed"),
        (71.99, 10.01, "ok"),
        (82.0, 0.0, "ok"),
        (81.99, 0.0, "collapsed"),
    ],
)
def test_a_repair_must_keep_accuracy(acc: float, loss: float, status: str) -> None:
    repaired = make_record(defense="ft", metrics=(acc, 3.0, 3.0), baseline=FLOOR)
    assert judge(repaired, Gates(loss=loss)).status == status
    clean = make_record("none", "ft", metrics=(acc, 3.0, 3.0), baseline=FLOOR)
    assert judge(clean, Gates(loss=loss)).status == status  # of the clean encoder too


def test_reasons_tell_the_figures_and_the_gate() -> None:
    assert judge(undefended(10.0), Gates(gain=12.5)) == (
        "attack-failed",
        "undefended ASR 10.0 is +7.0 points from the clean encoder's 3.0; an attack counts from +12.5",
    )
    lost = make_record(defense="ft", metrics=(60.0, 3.0, 3.0), baseline=FLOOR)
    assert judge(lost) == ("collapsed", "ACC is more than 10 points below the clean encoder's")


def test_where_the_attack_failed_no_repair_collapses() -> None:
    both = make_record(defense="ft", metrics=(10.0, 3.0, 3.0), undefended=Metrics(acc=80, asr=4, asr_nontarget=4, ra=9))
    assert judge(both).status == "attack-failed"


@pytest.mark.parametrize(
    "fields",
    [
        {"attack": "none"},
        {"attack_role": Role.CONTROL},
        {"beside": ["gtsrb:12"], "task": "svhn", "target": 1},
    ],
)
def test_no_gain_is_asked_of_the_clean_encoder_controls_and_tasks_that_are_not_attacked(fields: dict[str, Any]) -> None:
    calm = make_record(**{"attack": "badencoder", "metrics": (80.0, 3.0, 3.0), "baseline": FLOOR, **fields})
    assert judge(calm) == ("ok", "")


@pytest.mark.parametrize("status", ["n/a", "timeout", "error"])
def test_what_was_not_measured_keeps_its_status(status: str) -> None:
    assert judge(make_record(metrics=None, status=status, reason="why")) == (status, "why")


def test_an_encoder_that_was_attacked_on_several_tasks_counts_if_one_took() -> None:
    weak, strong = (inspection("badencoder", 1, 0.5, took=took).gains["shapes:7"] for took in (False, True))
    both = inspection("badencoder", 1, 0.5, tasks=["shapes:7", "other:1"], gains={"shapes:7": weak, "other:1": strong})
    assert judge(both).status == "ok"
    assert judge(inspection("badencoder", 1, 0.5, took=False)).status == "attack-failed"


@pytest.mark.parametrize(("former", "status"), [("failed", "error"), ("attack-failed", "ok")])
def test_statuses_of_earlier_records_are_read_as_todays(tmp_path: Path, former: str, status: str) -> None:
    made = undefended(3.0) if status == "ok" else make_record(metrics=None, status="error", reason="NaN")
    (path,) = write_records([made], tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": former, "reason": "NaN"}), encoding="utf-8")
    assert read_record(path) == made
    assert judge(made).status == former.replace("failed", "error" if former == "failed" else "failed")


def test_a_board_sets_its_gates(tmp_path: Path) -> None:
    text = 'rows = [{ pretrain = "shapes", tasks = ["shapes:7"] }]\n[gates]\n'
    path = tmp_path / "own.toml"
    path.write_text(text + "gain = 30\n")
    assert load_board(path).gates == Gates(gain=30, loss=10)
    for line, wrong in (("gain = 101", "gates.gain: input should be less"), ("gian = 3", "did you mean 'gain'")):
        path.write_text(text + line)
        with pytest.raises(UsageError, match=wrong):
            load_board(path)

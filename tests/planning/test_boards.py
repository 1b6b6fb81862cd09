"""The whole boards of benchbd: the demo's results, and the identity of the published boards."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from benchbd.api import Session
from benchbd.planning.board import boards_folder, load_board
from benchbd.planning.selection import Selection
from benchbd.records.files import read_records
from benchbd.records.gates import judge
from benchbd.records.models import Record
from benchbd.registry import Registry
from benchbd.report.detection import populations

DEFENSES = ("ft", "fp", "nad", "anp", "moth", "decree", "medic", "mimic")


@pytest.mark.slow
def test_the_demo_matrix_computes_every_cell(tmp_path: Path, registry: Registry) -> None:
    """Each cell is ok or n/a with its reason; no defense spends more than its budget."""
    records = Session.open("demo-matrix", store=tmp_path, device="cpu", registry=registry).run()
    found = {(record.attack, record.defense): record for record in records}
    assert len(found) == 37
    assert {record.status for record in records} <= {"ok", "n/a"}
    assert all(record.reason for record in records if record.status != "ok")
    attacked = found["badencoder", "none"]
    assert attacked.metrics is not None
    assert attacked.metrics.asr_nontarget >= 85
    for defense in (*DEFENSES, "bn", "clp"):
        assert found["badencoder", defense].status == "ok"
        assert found["badencoder", defense].cost["defend"].image_forwards <= 300_000
        assert judge(found["bassl", defense]).status == "attack-failed"


@pytest.mark.slow
def test_the_demo_shows_the_phenomenon(tmp_path: Path, registry: Registry) -> None:
    """The attack takes at little cost in accuracy, both repairs reduce it, and MIMIC does so at equal steps."""
    session = Session.open("demo", store=tmp_path, device="cpu", registry=registry)
    found = {(record.attack, record.defense): record for record in session.run()}
    assert set(found) == {(a, d) for a in ("none", "badencoder") for d in ("none", "scratch", "ft", "mimic")}
    assert {record.status for record in found.values()} == {"ok"}
    attacked = found["badencoder", "none"]
    assert attacked.metrics is not None
    assert attacked.baseline is not None
    assert attacked.metrics.asr_nontarget >= 85
    assert attacked.metrics.acc >= attacked.baseline.ca - 8
    assert attacked.baseline.asr_b_nontarget < 30
    ft, mimic = found["badencoder", "ft"], found["badencoder", "mimic"]
    assert ft.metrics is not None
    assert mimic.metrics is not None
    assert ft.metrics.asr_nontarget < attacked.metrics.asr_nontarget
    assert mimic.metrics.asr_nontarget <= 35
    options = [record.identity["defend"]["method"]["options"] for record in (ft, mimic)]
    assert options[0]["steps"] == options[1]["steps"]
    assert options[0]["batch"] == options[1]["batch"]


@pytest.mark.slow
def test_detectors_before_ten_clean_and_ten_attacked_encoders(tmp_path: Path, registry: Registry) -> None:
    """Every attack takes. DECREE flags half of the attacked encoders and hardly a clean one; channel constants rank
    most attacked ones above clean ones; random patches flag hardly a clean one."""
    inspected = Session.open("detect-shapes", store=tmp_path, device="cpu", registry=registry).inspect()
    found_by = {each.detection: each for each in populations(inspected)}
    assert set(found_by) == {"decree", "lipschitz", "patches"}
    for each in found_by.values():
        assert (len(each.clean), len(each.attacked), each.left_out) == (10, 10, {})
    assert found_by["lipschitz"].flat()["auroc"] > 0.6
    assert found_by["patches"].clean_flagged <= 1
    population = found_by["decree"]
    clean, attacked = population.clean, population.attacked
    found = population.flat()
    assert found["auroc"] == pytest.approx(fmean((a > c) + (a == c) / 2 for a in attacked for c in clean))
    assert found["tpr_at_fpr_0"] == fmean(score > max(clean) for score in attacked)
    assert fmean(attacked) > fmean(clean)
    assert sum(score > max(clean) for score in attacked) >= 5
    assert population.clean_flagged <= 2


@pytest.mark.realdata
def test_the_published_records_are_those_of_this_code_and_these_data(registry: Registry, tmp_path: Path) -> None:
    """Every key of a published record is one that this checkout would compute from the real data sets."""
    session = Session.open("cifar10-small", Selection(), store=tmp_path, device="cpu", registry=registry)
    plan = session.plan(strict=True)
    assert plan.departures == []
    planned = {
        (cell.attack, cell.defense, cell.task.name, cell.seed): {stage.key for stage in (*cell.chain, cell.judged)}
        for cell in plan.cells
    }
    records = published()
    assert {(r.attack, r.defense, r.task, r.seed) for r in records} <= set(planned)
    for record in records:
        assert set(record.stages.values()) <= planned[record.attack, record.defense, record.task, record.seed]


def published() -> list[Record]:
    return read_records(boards_folder() / "cifar10-small" / "records")


def test_the_published_attack_meets_its_floor() -> None:
    """The board's claims about BadEncoder: over the seeds of each real task, undefended ASR and accuracy."""
    undefended = [r for r in published() if r.attack == "badencoder" and r.defense == "none"]
    assert {r.task for r in undefended} == {"gtsrb", "tinyimagenet10", "mnistm"}
    for task in {r.task for r in undefended}:
        of_task = [r for r in undefended if r.task == task]
        assert len({r.seed for r in of_task}) >= 3
        values = [r.metrics.asr_nontarget for r in of_task if r.metrics]
        assert sum(values) / len(values) >= 85
        assert min(values) >= 75
        assert all(r.metrics.acc >= r.baseline.ca - 8 for r in of_task if r.metrics and r.baseline)


def test_the_published_matrix_is_whole_and_its_budgets_are_equal() -> None:
    """Every defense against both attacks on gtsrb, BadEncoder's under every seed; BASSL is marked as attack-failed;
    budgets within a sixth."""
    records = [r for r in published() if r.task == "gtsrb"]
    for attack, status, seeds in (("badencoder", "ok", {1, 2, 3}), ("bassl", "attack-failed", {1})):
        cells = [r for r in records if r.attack == attack]
        assert {r.defense for r in cells} == {"none", "scratch", *DEFENSES}
        for defense in {r.defense for r in cells}:
            assert {r.seed for r in cells if r.defense == defense} >= seeds
        assert ({judge(r).status for r in cells} == {"attack-failed"}) == (status == "attack-failed")
        costs = [(r.defense, r.cost["defend"].image_forwards) for r in cells if r.defense != "none"]
        assert max(cost for _, cost in costs) <= 520_000
        own_length = [cost for defense, cost in costs if defense != "decree"]  # decree's inversion stops by itself
        assert min(own_length) >= 0.85 * max(own_length)
    assert {r.seed for r in records if r.attack == "bassl-control"} >= {1}


def test_bassl_takes_on_its_published_board_with_every_repair_beside_it() -> None:
    """At least 15 points over the clean encoder, mean over three pre-trainings."""
    records = read_records(boards_folder() / "cifar10-bassl" / "records")
    cells = {(r.attack, r.defense, r.seed): r for r in records}
    board = load_board("cifar10-bassl")
    assert cells.keys() == {(a, d, s) for a in board.names("attack") for d in board.names("defense") for s in (1, 2, 3)}
    gains = []
    for seed in board.seeds:
        own = cells["bassl", "none", seed]
        assert own.metrics is not None
        assert own.baseline is not None
        gains.append(own.metrics.asr_nontarget - own.baseline.asr_b_nontarget)
        assert any("pairs of stamped images" in note for note in own.notes)
    assert fmean(gains) >= 15
    assert len({r.stages["pretrain"] for r in records if r.attack == "none"}) == 3
    mean_undefended = fmean(
        r.metrics.asr_nontarget for r in records if r.attack == "badencoder" and r.defense == "none" and r.metrics
    )
    assert mean_undefended >= 95

"""Protocol 2: several heads judge a cell, and none of them is trained on the attacker's reference inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchbd import Evaluator, Predictions, Probe
from benchbd.base.errors import DataError
from benchbd.base.seeds import derive_seed
from benchbd.records.files import read_record, write_records
from benchbd.records.models import Counts, Record
from benchbd.registry import load_registry

from ..boards import TINY, Tiny, keys, offering

PROBES: list[Probe] = []


class Counting(Evaluator):
    """Predicts class 1 for as many images as the number of its probe, in the order of the probes."""

    name = "counting"
    version = "1"

    def evaluate(self, probe: Probe) -> Predictions:
        PROBES.append(probe)
        predicted = (torch.arange(len(probe.test)) < len(PROBES)).long()
        return Predictions(predicted, predicted.clone())


class Half(Counting):
    """Certifies the predictions of its first head alone."""

    name = "half"
    version = "1"

    def evaluate(self, probe: Probe) -> Predictions:
        made = super().evaluate(probe)
        return made if len(PROBES) > 1 else Predictions(made.clean, made.triggered, made.clean > 0)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    PROBES.clear()
    registry = load_registry(extra={"counting": offering(benchbd_evaluators=[Counting, Half])})
    return Tiny(tmp_path, registry, "protocol = 2\n" + TINY)


def of_kind(tiny: Tiny, kind: str, **selection: Any) -> list[Any]:
    return [stage for stage in tiny.plan(**selection).stages if stage.kind == kind]


def test_no_head_is_trained_on_the_reference_inputs(tiny: Tiny) -> None:
    """Floor, undefended and repaired encoder have the same training images: all but those that the attacker chose."""
    records = tiny.run(evaluators=["counting"], defenses=["none", "ft"])
    (attacked,) = [record for record in records if (record.attack, record.defense) == ("badencoder", "ft")]
    (row,) = attacked.reference["rows"]
    whole = tiny.session().library.load("task", "train")
    kept = [i for i in range(len(whole)) if i != row]
    assert len(PROBES) == 4 * 3  # clean and attacked, undefended and repaired
    for probe in PROBES:
        assert torch.equal(probe.train.pixels, whole.pixels[kept])
        assert torch.equal(probe.labels, whole.labels[kept])
        assert probe.classes == 3
    assert {record.identity["evaluate"]["parents"]["reference"] for record in records} == {attacked.stages["reference"]}
    assert all(record.reference == attacked.reference for record in records)


def test_a_head_for_a_detector_is_trained_on_the_same_images(tiny: Tiny) -> None:
    (reference,) = {stage.key for stage in of_kind(tiny, "reference")}
    boards = [tiny.plan(detections=["decree"]), tiny.plan()]
    assert all(
        stage.parents["reference"].key == reference
        for plan in boards
        for stage in plan.stages
        if stage.kind in ("head", "evaluate")
    )


def test_counts_are_sums_over_heads(tiny: Tiny) -> None:
    """The first probe predicts class 1 once, the second twice, the third three times."""
    (record,) = tiny.run(attacks=["none"], defenses=["none"], evaluators=["counting"])
    labels = tiny.session().library.load("task", "test").labels
    assert [head.hits for head in record.heads] == [1, 2, 3]
    for number, head in enumerate(record.heads, 1):
        predicted = (torch.arange(30) < number).long()
        other = labels != 1
        assert head == Counts(
            total=30,
            correct=int((predicted == labels).sum()),
            hits=number,
            nontarget=int(other.sum()),
            hits_nontarget=int(((predicted == 1) & other).sum()),
            correct_triggered=int(((predicted == labels) & other).sum()),
        )
    assert record.counts == Counts(
        **{
            name: None if name == "certified" else sum(getattr(head, name) for head in record.heads)
            for name in Counts.model_fields
        }
    )
    assert record.metrics is not None
    assert record.metrics.asr == pytest.approx(100 * 6 / 90, abs=1e-4)


def test_seeds_of_heads_follow_from_the_stages(tiny: Tiny) -> None:
    tiny.run(attacks=["none"], defenses=["none"], evaluators=["counting"])
    (stage,) = of_kind(tiny, "evaluate", attacks=["none"], defenses=["none"], evaluators=["counting"])
    first, *others = [probe.seed for probe in PROBES]
    assert first == stage.seed == derive_seed(1, "evaluate")
    assert others == [derive_seed(stage.seed, "head1"), derive_seed(stage.seed, "head2")]
    assert PROBES[0].encoder is PROBES[2].encoder  # its features are computed once


def test_mlps_first_head_is_the_head_of_protocol_1(tiny: Tiny) -> None:
    """As the reference inputs of a file are no training images, nothing else differs."""
    train = tiny.session().library.load("task", "train")
    from PIL import Image

    Image.fromarray(train.pixels[1].permute(1, 2, 0).numpy()).save(tiny.folder / "own.png")
    text = tiny.board.read_text() + f'\n[reference]\nfile = "{tiny.folder / "own.png"}"\n'
    tiny.board.write_text(text)
    (three,) = tiny.run(attacks=["none"], defenses=["none"])
    tiny.board.write_text(text.replace("protocol = 2\n", ""))
    (one,) = tiny.run(attacks=["none"], defenses=["none"])
    assert one.heads == []
    assert three.heads[0] == one.counts
    assert len(three.heads) == 3


def test_a_task_that_is_not_attacked_keeps_all_images(tiny: Tiny) -> None:
    tiny.board.write_text(
        tiny.board.read_text().replace('tasks = ["task:1"] }', 'tasks = ["task:1"], also = ["pool:0"] }')
    )
    spared = [stage for stage in of_kind(tiny, "evaluate") if "pool:0" in stage.label]
    assert spared
    assert all("reference" not in stage.parents and stage.params["heads"] == 3 for stage in spared)


def test_protocol_1_has_the_keys_of_a_board_without_the_field(tiny: Tiny) -> None:
    two = keys(tiny.plan())
    tiny.board.write_text(TINY)
    plain = keys(tiny.plan())
    tiny.board.write_text("protocol = 1\n" + TINY)
    assert keys(tiny.plan()) == plain
    same = {stage.key for stage in tiny.plan().stages if stage.kind != "evaluate"}
    assert two & plain == same


def test_certifying_some_heads_is_an_error(tiny: Tiny) -> None:
    (record,) = tiny.run(attacks=["none"], defenses=["none"], evaluators=["half"])
    assert (record.status, record.reason) == (
        "error",
        "evaluator half must certify the predictions of all heads, or of none",
    )


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda told: told["heads"].pop(), "heads: 2 of them, but by identity.evaluate there are 3"),
        (lambda told: told.update(heads=[]), "heads: 0 of them, but by identity.evaluate there are 3"),
        (
            lambda told: told["heads"][1].update(correct=told["heads"][1]["correct"] + 1),
            r"heads.correct: \d+ \+ \d+ \+ \d+ is \d+, but counts have \d+",
        ),
        (
            lambda told: [told["heads"][n].update(total=30 + n - 1) for n in range(3)],
            r"heads.total: \[29, 30, 31\], but all heads judge the same images",
        ),
        (lambda told: told["heads"].reverse(), "heads.0.hits: 3, but the predictions give 1"),
        (
            lambda told: told["heads"][0].update(certified=0),
            r"heads.certified: \[0, None, None\], but counts have None",
        ),
    ],
)
def test_heads_that_contradict_the_record_are_refused(tiny: Tiny, change: Any, wrong: str) -> None:
    (record,) = tiny.run(attacks=["none"], defenses=["none"], evaluators=["counting"])
    (path,) = write_records([record], tiny.folder / "records")
    assert read_record(path) == record
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))
    with pytest.raises(DataError, match=wrong):
        read_record(path)


def test_a_record_of_one_head_has_none(tiny: Tiny) -> None:
    tiny.board.write_text(TINY)
    (record,) = tiny.run(attacks=["none"], defenses=["none"], evaluators=["counting"])
    assert isinstance(record, Record)
    assert record.heads == []

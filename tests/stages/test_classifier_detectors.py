"""Detectors of downstream classifiers, and what a detector learns once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchbd import (
    Classifier,
    ClassifierDetection,
    DefenderKnowledge,
    Detection,
    Encoder,
    Head,
    TaskKnowledge,
    Verdict,
    keep,
    note,
)
from benchbd.base.errors import PluginError
from benchbd.planning.cases import Inspection
from benchbd.records.detection import DetectionRecord
from benchbd.records.files import read_inspected, read_records
from benchbd.registry import Registry, flaw_of, load_registry
from benchbd.report.detection import populations
from benchbd.stages.base import ENCODER, PREDICTIONS
from benchbd.stages.head import HEAD
from benchbd.testing import ContractError, check_method

from ..boards import TINY, Tiny, keys, offering, write_npz_set


class Confident(ClassifierDetection):
    """Scores the classifier's certainty of one class on random pictures."""

    name = "confident"
    paper = "a test"
    version = "1"
    seen: ClassVar[list[TaskKnowledge]] = []

    def inspect(self, classifier: Classifier, knowledge: TaskKnowledge) -> Verdict:  # type: ignore[override]
        self.seen.append(knowledge)
        generator = torch.Generator().manual_seed(knowledge.seed)
        shares = classifier(torch.rand(8, 3, 32, 32, generator=generator)).softmax(1).mean(0)
        assert knowledge.images.labels is not None
        note("images", len(knowledge.images))
        return Verdict(float(shares.max()), False)


class Learned(Detection):
    """Compares an encoder with directions learned once."""

    name = "learned"
    paper = "a test"
    version = "1"
    prepares = True
    prepared: ClassVar[list[int]] = []

    def prepare(self, blank: Encoder, knowledge: DefenderKnowledge) -> Mapping[str, Tensor]:
        self.prepared.append(knowledge.seed)
        return {"directions": blank.extract(knowledge.images.pixels)}

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        own = encoder.extract(knowledge.images.pixels)
        return Verdict(float((own * knowledge.prepared["directions"]).sum(1).mean()), False)


@pytest.fixture
def registry() -> Registry:
    Confident.seen.clear()
    Learned.prepared.clear()
    return load_registry(extra={"local": offering(benchbd_detections=[Confident, Learned])})


BOARD = TINY.replace('defenses = ["none", "scratch", "ft"]', 'defenses = ["none"]').replace(
    "seeds = [1]", "seeds = [1, 2]\ntask.images = 20"
)

TWO = BOARD.replace('tasks = ["task:1"]', 'tasks = ["task:1", "other:2", "other:0"]')


def test_classifiers_are_inspected_one_a_task(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, TWO)
    write_npz_set(tiny.data, "other", seed=5)
    plan = tiny.plan(detections=["confident"], seeds=[1])
    found = [(each.attack, [str(task) for task in each.tasks]) for each in plan.inspections]
    each = (["task:1"], ["other:2", "other:0"])  # a data set has one classifier, whatever its target
    assert found == [(attack, tasks) for attack in ("none", "badencoder") for tasks in each]
    kinds = {stage.kind for stage in plan.stages if stage.key not in keys(tiny.plan(seeds=[1]))}
    assert kinds == {"head", "detect"}  # evaluations and encoders stay as they are without it
    records = tiny.session(detections=["confident"]).inspect()
    assert len({record.name for record in records}) == len(records) == 8
    for record in records:
        assert record.status == "ok", record.reason
        assert record.findings["detect"] == {"images": 20}
        assert {"head", "detect"} <= record.stages.keys()
    assert {(k.images.classes, len(k.images)) for k in Confident.seen} == {((), 20)}
    groups = populations([record for record in records if isinstance(record, DetectionRecord)])
    assert [(group.tasks, group.attack, len(group.clean)) for group in groups] == [
        (("other:2", "other:0"), "badencoder", 2),
        (("task:1",), "badencoder", 2),
    ]


def test_the_classifier_predicts_what_its_evaluator_does(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, BOARD.replace("mlp]\nepochs = 1", "mlp]\nepochs = 20\nlr = 0.01\nscale = 10"))
    session = tiny.session(detections=["confident"], seeds=[1])
    session.inspect()
    test = session.library.load("task", "test").pixels
    checked = 0
    for case in session.plan(strict=True).inspections:
        head, published = (case.judged.parents[role] for role in ("head", "encoder"))
        options = session._runner.results.artifacts[head.key].result
        own = Head(**options)
        own.load_state_dict(load_file(tiny.blob(head.key, HEAD)))
        classifier = Classifier(Encoder.load(tiny.blob(published.key, ENCODER)), own)
        predicted = load_file(tiny.blob(case.undefended[0].key, PREDICTIONS))["clean"]
        assert torch.equal(classifier(test.float() / 255).argmax(1), predicted)
        checked += len(predicted.unique()) > 1
    assert checked


def test_an_evaluator_without_a_head_is_not_applicable(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, f'evaluators = ["knn"]\n{BOARD}')
    records = tiny.session(detections=["confident"], seeds=[1], attacks=["none"]).inspect()
    assert [(r.status, r.reason) for r in records] == [("n/a", "head knn: knn has no differentiable head")]


def test_a_detector_prepares_once_for_all_seeds_and_encoders(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, BOARD)
    plan = tiny.plan(detections=["learned"])
    assert len({case.judged.parents["prepared"].key for case in plan.inspections}) == 1
    first = tiny.plan(detections=["learned"], seeds=[2]).inspections[0]
    assert first.judged.parents["prepared"].key == plan.inspections[0].judged.parents["prepared"].key
    records = tiny.session(detections=["learned"]).inspect()
    assert len(Learned.prepared) == 1
    assert [record.status == "ok" for record in records] == [True] * 4
    assert all("prepare" in record.stages for record in records)
    assert len({record.found["score"] for record in records}) > 1


class Wrong(Learned):
    """Prepares something that is no tensor."""

    name = "wrong"

    def prepare(self, blank: Encoder, knowledge: DefenderKnowledge) -> Any:
        return [1]


class Unstorable(Learned):
    """Prepares tensors that no file can hold."""

    name = "unstorable"
    made: ClassVar[Any]

    def prepare(self, blank: Encoder, knowledge: DefenderKnowledge) -> Mapping[str, Tensor]:
        return self.made  # type: ignore[no-any-return]


class Idle(ClassifierDetection):
    """Defines nothing."""

    name = "idle"
    paper = "a test"


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    registry = load_registry(extra={"local": offering(benchbd_detections=[Wrong])})
    (record,) = Tiny(tmp_path, registry, BOARD).session(detections=["wrong"], attacks=["none"], seeds=[1]).inspect()
    assert record.status == "error"
    assert record.reason.endswith("must return tensors by name from prepare(), not [1]")
    with pytest.raises(ContractError, match=r"must return tensors by name from prepare"):
        check_method(Wrong)
    assert flaw_of(Idle) == "it does not define inspect()"
    half = type("Half", (Detection,), {"name": "half", "prepares": True, "inspect": Learned.inspect})
    assert flaw_of(half) == "it does not define prepare()"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"a": torch.ones(2, dtype=torch.complex128)}, "KeyError: torch.complex128"),
        ({"__metadata__": torch.ones(2)}, "SafetensorError: "),
        ({"a": torch.ones(2, 2).to_sparse()}, "RuntimeError: "),
        ({"a": torch.ones(2, device="meta")}, "NotImplementedError: "),
    ],
)
def test_what_no_file_can_hold_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any, reason: str
) -> None:
    monkeypatch.setattr(Unstorable, "made", made, raising=False)
    registry = load_registry(extra={"local": offering(benchbd_detections=[Unstorable])})
    tiny = Tiny(tmp_path, registry, BOARD)
    (record,) = tiny.session(detections=["unstorable"], attacks=["none"], seeds=[1]).inspect()
    assert record.status == "error"
    told = "prepare unstorable: detector unstorable: the tensors of prepare() cannot be stored: "
    assert record.reason.startswith(told + reason)
    assert "traceback" not in record.reason
    with pytest.raises(PluginError, match=r"what keep\(\) got as '.*' cannot be stored"):
        [keep(*pair) for pair in made.items()]


@pytest.mark.parametrize("detector", [Confident, Learned])
def test_the_conformance_suite_knows_both(detector: type[Detection]) -> None:
    check_method(detector)


def test_the_images_of_a_task_are_a_departure_of_these_alone(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, BOARD)
    plan = tiny.plan(detections=["confident", "learned"], options=["task.images=10"], seeds=[1])
    told = {(case.method, case.departures) for case in plan.cases if isinstance(case, Inspection)}
    assert told == {("confident", ("task.images=10 (the board's: 20)",)), ("learned", ())}
    assert {cell.departures for cell in plan.cells} == {()}


SWEEPS = """
[[sweeps]]
name = "parts"

[sweeps.points]
few = ["task.images=10"]
all = ["task.images=1000"]
own = ["shadow.set=task:train", "shadow.images=20"]
other = ["shadow.set=other:train", "clean.poisoned=0.3"]
pool = ["shadow.set=pool:pool", "reference.count=2"]
file = ["reference.file={file}"]
"""


def test_records_of_every_part_of_the_protocol_are_read(tmp_path: Path, registry: Registry) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.full((3, 32, 32, 3), 7, np.uint8), y=np.arange(3))
    board = TWO.replace("seeds = [1, 2]", "seeds = [1]").replace('["none"]\nseeds', '["none", "ft"]\nseeds')
    assert '"ft"' in board
    tiny = Tiny(tmp_path, registry, board + SWEEPS.format(file=tmp_path / "inputs.npz"))
    write_npz_set(tiny.data, "other", seed=5)
    swept = {"attacks": ["badencoder"], "detections": ["confident", "learned"]}
    changed = (
        "shadow.set=other:train",
        "shadow.images=30",
        "clean.poisoned=0.2",
        "task.images=12",
        "reference.count=2",
    )
    for options in ((), changed):
        session = tiny.session(**swept, options=options)
        made, judged = session.run(), session.inspect()
        points = [record.point for record in (*made, *judged)]
        for option in ("task.images", "shadow.set", "clean.poisoned", "reference.count", "reference.file"):
            assert options or any(option in point for point in points), option
        folder = tiny.store / "records" / "tiny"
        assert {record.name for record in (*made, *judged)} <= {
            record.name for record in (*read_records(folder), *read_inspected(folder))
        }

"""Isolation of methods: whatever one writes to or changes, the figures of all others stay the same.

Also a method's result: it is the class itself, and an encoder is its tensors alone.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.simclr import SimCLR
from pydantic import Field
from torch import Tensor, nn

import benchbd.records.counts
from benchbd import (
    Attack,
    AttackerKnowledge,
    Backdoor,
    DefenderKnowledge,
    Detection,
    Encoder,
    Evaluator,
    ImageSet,
    Mitigation,
    Predictions,
    Probe,
    Trigger,
    Verdict,
    hookimpl,
)
from benchbd.base.errors import PluginError
from benchbd.planning.cost import known_forwards
from benchbd.records.models import Record
from benchbd.registry import GROUP, load_registry
from benchbd.stages.attack import check_backdoor
from benchbd.stages.base import ENCODER, PREDICTIONS, Stage
from benchbd.testing import toy_encoder

from ..boards import TINY, Tiny, offering, weights

MANY = TINY.replace('defenses = ["none", "scratch", "ft"]', 'defenses = ["none", "ft"]\nevaluators = ["linear"]')


def wreck(*handed: Any) -> None:
    """Write to every tensor within reach, and make torch unusable."""
    for tensor in (value for thing in handed for value in vars(thing).values() if isinstance(value, Tensor)):
        tensor.detach().zero_()
    F.cross_entropy = F.l1_loss
    nn.Linear.forward = lambda self, x: x  # type: ignore[assignment]
    Encoder.forward = Trigger.stamp = lambda *_: torch.zeros(1)  # type: ignore[assignment,method-assign]
    nn.modules.module.register_module_forward_hook(lambda module, given, out: out * 0)
    torch.manual_seed(0)
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    torch.set_flush_denormal(True)
    torch.autograd.set_detect_anomaly(True, check_nan=False)
    torch.backends.mkldnn.enabled = False
    torch.inference_mode().__enter__()


class Wild(Attack):
    """Writes to all its arguments; the test decides what it returns."""

    name = "wild"
    paper = "test"
    version = "1"
    draws: list[int] = Field([1, 2], description="a list, which a frozen model does not freeze")
    act: ClassVar[Callable[[AttackerKnowledge], Any]]

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        return Wild.act(knowledge)  # type: ignore[no-any-return]


def write_to_all(knowledge: AttackerKnowledge) -> Backdoor:
    (target,) = knowledge.targets
    encoder, digest = knowledge.encoder.copy(), target.trigger.digest
    vars(knowledge.pretraining)["steps"] = 1
    vars(knowledge.pretraining)["batch"] = 2
    knowledge.encoder.arch = "w32"
    knowledge.encoder.requires_grad_(False)
    target.trigger.keep.zero_()
    target.trigger.pattern.fill_(255)  # the whole image is the trigger
    assert target.trigger.digest == digest  # its digest was computed before
    wreck(knowledge, target, target.images, knowledge.pool, knowledge.shadow, *knowledge.encoder.modules())
    return Backdoor(encoder, (target.trigger,))


class WildDefense(Mitigation):
    """Writes to all its arguments."""

    name = "wild-defense"
    paper = "test"
    version = "1"
    draws: list[int] = Field([1, 2], description="a list, which a frozen model does not freeze")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        twin = encoder.copy()
        with torch.no_grad():
            twin.stem[0].weight.mul_(len(self.draws))  # type: ignore[operator]
        self.draws.append(3)
        wreck(knowledge.images)
        return twin


class WildDetector(Detection):
    """Writes to all its arguments."""

    name = "wild-detector"
    paper = "test"
    version = "1"

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        wreck(knowledge.images, *encoder.requires_grad_(False).modules())
        return Verdict(0.0, False)


class WildEvaluator(Evaluator):
    """Writes to all its arguments."""

    name = "wild-evaluator"
    paper = "test"
    version = "1"

    def evaluate(self, probe: Probe) -> Predictions:
        answer = torch.zeros(len(probe.test), dtype=torch.int64)
        wreck(probe, probe.train, *probe.encoder.modules())
        return Predictions(answer, answer)


class WildPretraining(SimCLR):
    """SimCLR that finally writes to the pool."""

    name = "wild-pretraining"

    def pretrain(self, images: ImageSet, seed: int) -> Encoder:
        encoder = super().pretrain(images, seed)
        wreck(images)
        return encoder


WILD = offering(
    benchbd_attacks=[Wild],
    benchbd_defenses=[WildDefense],
    benchbd_detections=[WildDetector],
    benchbd_evaluators=[WildEvaluator],
    benchbd_pretrainings=[WildPretraining],
)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, list[Record]]:
    """The board without vandals, run once."""
    tiny = Tiny(tmp_path_factory.mktemp("quiet"), load_registry(), MANY)
    return tiny, tiny.run()


@pytest.fixture
def wild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    monkeypatch.setattr(Wild, "act", write_to_all, raising=False)
    return Tiny(tmp_path, load_registry(extra={"wild": WILD}), MANY)


def assert_same_bits(one: Tiny, other: Tiny) -> None:
    """Every encoder and prediction of the first board's plan is the same file in both stores."""
    for stage in one.plan().stages:
        for name in (ENCODER, PREDICTIONS):
            if (path := one.blob(stage.key, name)).is_file():
                assert other.blob(stage.key, name).read_bytes() == path.read_bytes(), stage.label


def test_figures_are_the_same_after_vandals(
    quiet: tuple[Tiny, list[Record]], wild: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    """All vandals come first, in one process; then the honest stages are computed."""
    with caplog.at_level(logging.WARNING, "benchbd"):
        records = wild.run(
            attacks=("wild", "none", "badencoder"),
            defenses=("wild-defense", "none", "ft"),
            evaluators=("wild-evaluator", "linear"),
        )
    failed = {r.reason for r in records if r.status == "error"}
    assert failed == {
        "attack wild: attack wild must return the triggers that it was given, unchanged and one per target"
    }
    floors = {r.baseline_counts for r in records if r.evaluator == "linear" and r.attack != "wild"}
    assert floors == {quiet[1][0].baseline_counts}
    assert_same_bits(quiet[0], wild)
    named = "attack wild left torch.nn.functional.cross_entropy and 4 more changed; it was put back"
    assert named in caplog.messages
    assert {message.split(" left ")[0] for message in caplog.messages} == {
        "attack wild",
        "defense wild-defense",
        "evaluator wild-evaluator",
    }


def test_figures_are_the_same_after_a_vandal_detector(quiet: tuple[Tiny, list[Record]], wild: Tiny) -> None:
    inspected = wild.session(detections=("wild-detector",)).inspect()
    assert {record.status for record in inspected} == {"ok"}
    wild.run()
    assert_same_bits(quiet[0], wild)


def test_figures_are_the_same_after_vandal_pretraining(quiet: tuple[Tiny, list[Record]], wild: Tiny) -> None:
    text = MANY.replace("clean.images", 'pretraining = "wild-pretraining"\nclean.images')
    wild.board.write_text(text.replace("options.simclr", "options.wild-pretraining"))
    assert [record.counts for record in wild.run()] == [record.counts for record in quiet[1]]


def test_a_method_that_changes_itself_is_the_same_in_every_stage(wild: Tiny) -> None:
    """Two seeds of one defense: its second repair starts with the options that its key contains."""
    plan = wild.plan(attacks=("none",), defenses=("wild-defense",), seeds=(1, 2))
    wild.run(attacks=("none",), defenses=("wild-defense",), seeds=(1, 2))
    for cell in plan.cells:
        stem = [weights(wild.blob(stage.key, ENCODER))["stem.0.weight"] for stage in cell.chain]
        assert torch.equal(stem[1], 2 * stem[0])


class Meddler:
    """An observer that writes to the stages that it receives."""

    def __init__(self, meddle: Callable[[Stage], None]) -> None:
        self.meddle = meddle

    @hookimpl
    def benchbd_stage_started(self, stage: Stage) -> None:
        if stage.kind == "evaluate":
            self.meddle(stage)


@pytest.mark.parametrize(
    ("meddle", "reason"),
    [
        (
            lambda s: s.attachments["triggers"][0].keep.zero_(),
            "a trigger of the board was changed in memory by a plugin",
        ),
        (lambda s: s.params.update(trigger="0" * 64), "evaluate linear task:1 .* was changed in memory by a plugin"),
        (lambda s: vars(s.method).update(epochs=1), "evaluate linear task:1 .* was changed in memory by a plugin"),
    ],
)
def test_a_stage_that_was_changed_is_not_computed(tmp_path: Path, meddle: Any, reason: str) -> None:
    registry = load_registry(extra={"meddler": Meddler(meddle)})
    (record,) = Tiny(tmp_path, registry, MANY).run(attacks=("none",), defenses=("none",))
    assert record.status == "error"
    assert re.search(reason, record.reason)


@pytest.mark.parametrize(
    ("hand_back", "said"),
    [
        (lambda trigger: trigger, "its triggers as a tuple, not Trigger"),
        (lambda trigger: None, "its triggers as a tuple, not NoneType"),
        (lambda trigger: (vars(trigger).update(stamp=print), trigger)[1:], "a stamp of their own, which is not used"),
    ],
)
def test_triggers_that_are_none_or_stamp_otherwise_are_refused(hand_back: Callable[[Trigger], Any], said: str) -> None:
    trigger = Trigger.square(3)
    backdoor = Backdoor(toy_encoder(), hand_back(trigger))
    with pytest.raises(PluginError, match=said):
        check_backdoor(backdoor, [trigger.digest], "attack odd")


# At import, and in a plan's calls -----------------------------------------------------------------------------------

SPOILER = """
import random
import numpy, torch
import torch.nn.functional as F
import benchbd.records.counts
from benchbd import Mitigation, hookimpl


def spoil():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    torch.backends.mkldnn.enabled = False
    torch.use_deterministic_algorithms(True)
    F.cross_entropy = F.l1_loss
    benchbd.records.counts.count = None
    torch.manual_seed(0), numpy.random.seed(0), random.seed(0)


AT = {at!r}
if AT == "import":
    import torch.fx, torchvision.ops  # what a library loads stays loaded
    spoil()


class Spoiler(Mitigation):
    "Spoils."

    name = "spoiler"
    paper = "test"
    version = "1"

    def __init__(self, **values):
        super().__init__(**values)
        if AT == "init":
            spoil()

    @classmethod
    def effective_version(cls):
        if AT == "version":
            spoil()
        return cls.version

    def identity(self):
        if AT == "identity":
            spoil()
        return super().identity()

    def forwards(self, images):
        if AT == "forwards":
            spoil()
        return 3

    def shortened(self, images):
        if AT == "shortened":
            spoil()

    def repair(self, encoder, knowledge):
        return encoder


@hookimpl
def benchbd_defenses():
    if AT == "hook":
        spoil()
    return [Spoiler]


@hookimpl
def benchbd_stage_started():
    if AT == "observer":
        spoil()
"""


def the_state() -> tuple[Any, ...]:
    return (
        (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
        (torch.backends.mkldnn.enabled, torch.are_deterministic_algorithms_enabled()),
        (F.cross_entropy, benchbd.records.counts.count),
        (random.random(), float(np.random.rand()), float(torch.rand(1))),
    )


@pytest.mark.parametrize(
    "at", ["import", "hook", "init", "version", "identity", "forwards", "shortened", "observer", "nowhere"]
)
def test_whatever_is_spoilt_before_or_beside_the_work_is_put_back(
    quiet: tuple[Tiny, list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The plugin is an entry point. The cells beside it have the same bits as without it."""
    name = f"spoiler_{at}"
    (tmp_path / f"{name}.py").write_text(SPOILER.replace("{at!r}", repr(at)))
    monkeypatch.syspath_prepend(tmp_path)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = the_state()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    registry = load_registry([*entry_points(group=GROUP), EntryPoint("spoiler", name, GROUP)])
    assert registry.problems == []
    tiny = Tiny(tmp_path / "tiny", registry, MANY)
    chosen = {"defenses": ("spoiler", "none", "ft"), "attacks": ("none",)}
    known_forwards(tiny.plan(**chosen).stages)
    assert the_state() == before
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert {record.status for record in tiny.run(**chosen)} == {"ok"}
    assert the_state() == before
    for stage in tiny.plan(attacks=("none",)).stages:
        for file in (ENCODER, PREDICTIONS):
            if (path := tiny.blob(stage.key, file)).is_file():
                assert path.read_bytes() == quiet[0].blob(stage.key, file).read_bytes(), stage.label

"""Every installed method passes the suite for third parties; the suite itself catches every breach that it names."""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field

from benchbd import (
    DataAbsentError,
    Dataset,
    DefenderKnowledge,
    Detection,
    Encoder,
    Evaluator,
    Head,
    ImageSet,
    Mitigation,
    NotApplicable,
    Predictions,
    Probe,
    Verdict,
)
from benchbd.base.errors import StoreError
from benchbd.contract.axes import AXIS
from benchbd.contract.method import Method
from benchbd.registry import load_registry
from benchbd.testing import ContractError, ToyPretraining, check_method, toy_defender
from benchbd.testing.conformance import check_properties
from benchbd.testing.shortest import shortened
from benchbd.testing.watch import Property

GIVEN: dict[str, dict[str, Any]] = {"ctrl": {"mode": "append"}}  # the pool of toys has no image of their task


def quick(cls: type[Method], **options: Any) -> Any:
    """The method with the shortest options, as `plugin check` takes them, and those that it needs on toys."""
    return cls(**shortened(cls, {**GIVEN.get(cls.name, {}), **options}))


METHODS = [(axis, name) for axis in AXIS for name in load_registry().names(axis)]


@pytest.mark.fixed_draw("check_method draws for itself; it holds a contract, no outcome of training")
@pytest.mark.parametrize(("axis", "name"), METHODS)
def test_installed_method(axis: str, name: str, registry: Any, tmp_path: Path) -> None:
    cls = registry.get(axis, name)
    checked = check_properties(cls, tmp_path, GIVEN.get(name))
    assert checked.holds, checked
    reads = issubclass(cls, Dataset) and cls.needs_files
    assert (checked.findings[Property.CONTRACT].state == "skip") == reads, checked
    assert (checked.findings[Property.SEALED].state == "pass") == (bool(AXIS[axis].stage) and not cls.passthrough)
    assert checked.findings[Property.NETWORK].reason == ""


class Honest(Mitigation):
    """Does nothing."""

    name = "honest"
    paper = "control"
    version = "1"
    strength: float = Field(1.0, description="nothing")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return encoder


def test_honest_passes() -> None:
    check_method(Honest)


def variant(**members: Any) -> type[Mitigation]:
    return type("Variant", (Honest,), {"__module__": __name__, "__doc__": "A variant.", **members})


def _write_to_images(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    knowledge.images.pixels.zero_()
    return encoder


def _global_randomness(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    with torch.no_grad():
        next(encoder.parameters()).add_(torch.rand(1))
    return encoder


def _hidden_randomness(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        return _global_randomness(self, encoder, knowledge)


def _reseed(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    torch.manual_seed(knowledge.seed)
    return encoder


def _leave_a_hook(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    encoder.stem.register_forward_hook(lambda *_: None)
    return encoder


def _numpys_randomness(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    np.random.rand()
    return encoder


def _pythons_randomness(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    random.random()
    return encoder


def _set_a_variable(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    os.environ["BENCHBD_STORE"] = "elsewhere"
    return encoder


def _filter_warnings(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    warnings.simplefilter("ignore")
    return encoder


def _raise(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    raise KeyError("two lines")


def _raising(error: BaseException) -> Any:
    def repair(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        raise error

    return repair


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"__doc__": ""}, "docstring"),
        ({"paper": ""}, "paper"),
        ({"name": ""}, "it has no name"),
        ({"name": "../odd name|x"}, "is not made of lower-case letters"),
        ({"name": "trigger"}, "the name 'trigger' is reserved"),
        ({"repair": Mitigation.repair}, r"it does not define repair\(\)"),
        ({"repair": _raise}, r"Variant: _raise\(\) raised KeyError: 'two lines'$"),
        ({"repair": lambda self, encoder, knowledge: None}, "must return a benchbd.Encoder"),
        ({"repair": _write_to_images}, "clean images were changed"),
        ({"repair": _global_randomness}, "the global generator was touched"),
        ({"repair": _reseed}, "the global generator was touched"),
        ({"repair": _hidden_randomness}, "the same seed gave other weights"),
        ({"repair": _leave_a_hook}, "a hook is left"),
        ({"repair": _numpys_randomness}, r"the global generator of NumPy was touched; draw from benchbd.stream"),
        ({"repair": _pythons_randomness}, r"the global generator of random was touched; draw from benchbd.stream"),
        ({"repair": _set_a_variable}, r"_set_a_variable\(\) left the environment changed"),
        ({"repair": _filter_warnings}, r"_filter_warnings\(\) left the filters of warnings changed"),
        ({"uses_weights": False}, "the weights matter"),
        ({"repair": _raising(SystemExit(0))}, r"repair\(\) raised SystemExit: 0$"),
        ({"repair": _raising(GeneratorExit())}, r"repair\(\) raised GeneratorExit: no message$"),
        ({"repair": _raising(StoreError("full"))}, r"repair\(\) raised StoreError: full$"),
        ({"forwards": lambda self, images: -1}, r"forwards\(\) must give a whole number from 0 on or None, not -1"),
        ({"forwards": lambda self, images: 1 / 0}, r"forwards\(\) raised ZeroDivisionError"),
        ({"shortened": lambda self, images: 7}, r"shortened\(\) must give a line or None, not 7"),
        ({"identity": lambda self: {}}, r"identity\(\) must hold axis, name, version, options"),
        ({"version": 3}, "version must be a short line of text, such as '1', not 3"),
        ({"name": "x" * 300}, "its name has 300 characters"),
    ],
)
def test_breaches_are_named(members: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ContractError, match=complaint):
        check_method(variant(**members))


def test_a_breach_names_the_option() -> None:
    for options, complaint in (
        ({"strenght": 1}, "unknown option of honest 'strenght': did you mean 'strength'"),
        ({"strength": "x"}, "honest.strength: input should be a valid number"),
    ):
        with pytest.raises(ContractError, match=complaint) as caught:
            check_method(Honest, **options)
        assert "\n" not in str(caught.value)

    class Required(Honest):
        """Has an option without a default."""

        factor: float = Field(description="a factor")

    with pytest.raises(ContractError, match="option 'factor' has no default"):
        check_method(Required, factor=1)


@pytest.mark.parametrize("name", ["train", "test", "triggered"])
def test_an_evaluator_must_leave_the_images_alone(name: str) -> None:
    class Careless(Evaluator):
        """Writes to its images."""

        name = "careless"
        paper = "control"
        version = "1"

        def evaluate(self, probe: Probe) -> Predictions:
            images = getattr(probe, spoilt)
            (images if isinstance(images, torch.Tensor) else images.pixels)[0].zero_()
            return Predictions(*torch.zeros(2, len(probe.test), dtype=torch.int64))

    spoilt = name
    with pytest.raises(ContractError, match="the images were changed"):
        check_method(Careless)


def test_pretraining_must_leave_the_images_alone() -> None:
    class Careless(ToyPretraining):
        """Writes to its images."""

        paper = "control"

        def pretrain(self, images: ImageSet, seed: int) -> Encoder:
            encoder = super().pretrain(images, seed)
            (images.pixels if images.labels is None else images.labels)[1] = 0
            return encoder

    with pytest.raises(ContractError, match="the images were changed"):
        check_method(Careless)
    Careless.labelled = True
    with pytest.raises(ContractError, match="the images were changed"):
        check_method(Careless)


def test_the_suite_gives_the_random_state_back() -> None:
    before = torch.random.get_rng_state()
    check_method(Honest)
    with pytest.raises(ContractError):
        check_method(variant(repair=_reseed))
    assert torch.equal(before, torch.random.get_rng_state())


def test_toy_defender_has_no_oracle() -> None:
    images = toy_defender().images
    assert images.labels is None
    assert images.classes == ()


def test_not_applicable_is_not_swallowed() -> None:
    def refuse(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        raise NotApplicable("never")

    with pytest.raises(NotApplicable, match="never"):
        check_method(variant(repair=refuse))


class Nearest(Evaluator):
    """Predicts the class whose mean feature is nearest; as a head it is linear: 2 m h - |m|^2 for each mean m."""

    name = "nearest"
    paper = "control"
    version = "1"

    def means(self, probe: Probe) -> torch.Tensor:
        features = probe.encoder.extract(probe.train.pixels)
        return torch.stack([features[probe.labels == label].mean(0) for label in range(probe.classes)])

    def evaluate(self, probe: Probe) -> Predictions:
        head = Nearest.head(self, probe)
        return Predictions(*(head(probe.encoder.extract(x)).argmax(1) for x in (probe.test, probe.triggered)))

    def head(self, probe: Probe) -> Head:
        means = self.means(probe)
        return Head.of([(2 * means, -(means**2).sum(1))], classes=probe.train.classes)


def _reversed(self: Nearest, probe: Probe) -> Head:
    means = self.means(probe).flip(0)
    return Head.of([(2 * means, -(means**2).sum(1))])


def _of_two(self: Nearest, probe: Probe) -> Head:
    return Head.of([(torch.zeros(2, probe.encoder.feature_dim), torch.zeros(2))])


def _of_other_features(self: Nearest, probe: Probe) -> Head:
    return Head.of([(torch.zeros(3, probe.encoder.feature_dim + 1), torch.zeros(3))])


def _infinite(self: Nearest, probe: Probe) -> Head:
    return Head.of([(self.means(probe) / 0, torch.zeros(3))])


@pytest.mark.parametrize(
    ("head", "breach"),
    [
        (_reversed, r"head\(\) gives other clean predictions than evaluate\(\)"),
        (_of_two, r"must give a head of 64 features and 3 classes, not \(64, 2\)"),
        (_of_other_features, r"must give a head of 64 features and 3 classes, not \(65, 3\)"),
        (_infinite, "the weights of the head are not finite"),
        (lambda self, probe: self.means(probe), "must return a benchbd.Head, not Tensor"),
    ],
)
def test_a_head_predicts_as_its_evaluator_does(head: Any, breach: str) -> None:
    check_method(Nearest)
    members = {"__module__": __name__, "__doc__": "A variant.", "head": head}
    with pytest.raises(ContractError, match=breach):
        check_method(type("Variant", (Nearest,), members))


class OfFiles(Dataset):
    """Three images per split, from one file each."""

    name = "of-files"
    paper = "control"
    version = "1"

    def sources(self, split: str, root: Path) -> list[Path]:
        return [root / self.name / split]

    def load(self, split: str, root: Path) -> ImageSet:
        (file,) = self.sources(split, root)
        pixels = torch.full((3, 3, int(file.read_text()), 32), 7, dtype=torch.uint8)
        return ImageSet(pixels, torch.arange(3), ("a", "b", "c"))


def test_a_data_set_of_files_is_checked_where_its_files_are(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"OfFiles: needs_files is True, .* give check_method a data_root .*= False"):
        check_method(OfFiles)
    with pytest.raises(ContractError, match="sources of train names a file that is not there"):
        check_method(OfFiles, data_root=tmp_path)
    (tmp_path / "of-files").mkdir()
    for side in (32, 16):
        for split in ("train", "test"):
            (tmp_path / "of-files" / split).write_text(str(side))
        if side == 32:
            check_method(OfFiles, data_root=tmp_path)
    with pytest.raises(ContractError, match=r"images must be 32x32, not \(16, 32\)"):
        check_method(OfFiles, data_root=str(tmp_path))


def test_a_generated_set_that_does_not_say_so_is_told_how(tmp_path: Path) -> None:
    class Forgetful(OfFiles):
        """Generates its images without declaring it."""

        sources = Dataset.sources

    with pytest.raises(DataAbsentError, match=r"no files in .*of-files \(a generated set declares needs_f"):
        check_method(Forgetful, data_root=tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes", "source", "reason"),
    [
        ((-1, 0), ("a", "b"), "set/x", "row 0: label -1 is out of range 0..1"),
        ((0, 2), ("a", "b"), "set/x", "row 1: label 2 is out of range 0..1"),
        ((0, 1), ["a", "b"], "set/x", "class names must be a tuple of texts"),
        ((0, 1), (), "set/x", "train needs labels and class names"),
        ((0, 1), None, "set/x", "train and test name their classes differently"),
        ((0, 1), ("a", "b"), "x", "sources.. must give paths in"),
        ((0, 1), ("a", "b"), "", "sources.. must give paths in"),
    ],
)
def test_a_data_set_that_no_run_would_read_is_refused(
    tmp_path: Path, labels: tuple[int, ...], classes: Any, source: str, reason: str
) -> None:
    class Set(Dataset):
        """Two pictures."""

        name = "set"
        paper = "control; for tests"
        version = "1"

        def sources(self, split: str, root: Path) -> list[Path]:
            return [root / source if source else "x"]  # type: ignore[list-item]

        def load(self, split: str, root: Path) -> ImageSet:
            names = (split, "b") if classes is None else classes
            return ImageSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor(labels), names)

    for file in ("set/x", "x"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("data")
    with pytest.raises(ContractError, match=reason):
        check_method(Set, data_root=tmp_path)


class Judge(Detection):
    """Gives the verdict that a test sets."""

    name = "judge"
    paper = "control"
    verdict: ClassVar[Any] = None

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        verdict: Verdict = Judge.verdict
        return verdict


@pytest.mark.parametrize(
    ("score", "flagged", "message"),
    [
        ("0.5", True, "must give a finite number as score, not '0.5'$"),
        (True, True, "must give a finite number as score, not True$"),
        (torch.ones(2), True, "must give a finite number as score, not tensor"),
        (float("nan"), True, "must give a finite number as score, not nan$"),
        (0.5, "no", "must say flagged=True or False, not 'no'$"),
        (0.5, 1, "must say flagged=True or False, not 1$"),
    ],
)
def test_a_verdict_is_a_number_and_a_flag(
    monkeypatch: pytest.MonkeyPatch, score: Any, flagged: Any, message: str
) -> None:
    monkeypatch.setattr(Judge, "verdict", Verdict(score, flagged))
    with pytest.raises(ContractError, match=message):
        check_method(Judge)


def test_a_verdict_may_come_as_scalars_of_torch_and_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    for score, flagged in ((torch.tensor(0.5), torch.tensor(True)), (np.float32(0.5), np.bool_(True)), (1, False)):
        monkeypatch.setattr(Judge, "verdict", Verdict(score, flagged))
        check_method(Judge)


class Guess(Evaluator):
    """Gives the predictions that a test sets."""

    name = "guess"
    paper = "control"
    given: ClassVar[Any] = None

    def evaluate(self, probe: Probe) -> Predictions:
        predictions: Predictions = Guess.given
        return predictions


ZEROS = torch.zeros(24, dtype=torch.int64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Predictions(ZEROS.tolist(), ZEROS), "must give clean predictions as a tensor, not list$"),  # type: ignore[arg-type]
        (Predictions(ZEROS, None), "must give triggered predictions as a tensor, not NoneType$"),  # type: ignore[arg-type]
        (Predictions(ZEROS.float(), ZEROS), r"as int64 \(24,\), not torch.float32 \(24,\)$"),
        (Predictions(ZEROS, ZEROS[1:]), r"must give triggered predictions as int64 \(24,\), not torch.int64 \(23,\)$"),
        (Predictions(ZEROS, ZEROS + 3), "must give triggered predictions from 0 to 2, the classes$"),
        (Predictions(ZEROS, ZEROS, True), "must give certified predictions as a tensor, not bool$"),  # type: ignore[arg-type]
        (Predictions(ZEROS, ZEROS, ZEROS), r"give certified predictions as bool \(24,\), not torch.int64 \(24,\)$"),
        (Predictions(ZEROS, ZEROS, ZEROS[1:] == 0), r"predictions as bool \(24,\), not torch.bool \(23,\)$"),
    ],
)
def test_predictions_are_classes(monkeypatch: pytest.MonkeyPatch, given: Predictions, message: str) -> None:
    monkeypatch.setattr(Guess, "given", given)
    with pytest.raises(ContractError, match=message):
        check_method(Guess)


@pytest.mark.parametrize(
    ("together", "message"),
    [
        (None, "must give a list from evaluate_together, not NoneType$"),
        ([1], "must give 2 results for 2 probes, not 1$"),
    ],
)
def test_predictions_together_are_one_a_probe(monkeypatch: pytest.MonkeyPatch, together: Any, message: str) -> None:
    monkeypatch.setattr(Guess, "given", Predictions(ZEROS, ZEROS))
    monkeypatch.setattr(Guess, "evaluate_together", lambda self, probes: together)
    with pytest.raises(ContractError, match=message):
        check_method(Guess)

"""For plugin authors: a toy encoder, toy images, and ``check_method``, the conformance suite.

    from benchbd.testing import check_method
    from my_defense import MyDefense

    def test_my_defense():
        check_method(MyDefense, steps=3)

It needs a CPU and no files. The method does its work two to four times on 48 images: options that shorten the work,
as above, reduce the time to seconds. Every method of benchbd passes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from benchbd.base.content import expanded
from benchbd.base.errors import (
    BenchbdError,
    DataAbsentError,
    DataError,
    Diverged,
    NotApplicable,
    PluginError,
    StoreError,
    is_interrupt,
    named,
)
from benchbd.base.isolation import restoring
from benchbd.base.pictures import SIZE
from benchbd.contract.attack import Attack
from benchbd.contract.axes import AXES
from benchbd.contract.dataset import Dataset
from benchbd.contract.defense import Mitigation
from benchbd.contract.detection import ClassifierDetection, Detection, TaskKnowledge
from benchbd.contract.evaluator import Evaluator, Probe
from benchbd.contract.images import ImageSet
from benchbd.contract.method import Method, build, exactly, forwards_of, shortened_of
from benchbd.contract.pretraining import Pretraining
from benchbd.contract.roles import Role
from benchbd.contract.specs import OF_DATA, TriggerSpec
from benchbd.contract.trigger import Trigger
from benchbd.contract.trigger_function import TriggerFunction
from benchbd.data.layouts import WITHOUT_LABELS
from benchbd.data.own import read_own, sources_of
from benchbd.nets.classifier import Classifier
from benchbd.nets.encoder import ARCHITECTURES, Encoder
from benchbd.nets.promises import broken_promises
from benchbd.nets.rebuild import rebuild
from benchbd.registry import check_plannable, flaw_of, flaw_of_architecture
from benchbd.stages.attack import check_backdoor
from benchbd.stages.detect import checked_verdict
from benchbd.stages.encoders import check_alike, check_classes
from benchbd.stages.evaluate import checked_predictions, evaluated_together
from benchbd.stages.head import checked_head
from benchbd.stages.prepare import checked_prepared
from benchbd.toolkit.patterns import make_trigger
from benchbd.toolkit.toys import (
    ToyPretraining,
    toy_attacker,
    toy_classifier,
    toy_defender,
    toy_encoder,
    toy_images,
    toy_probe,
)

__all__ = [
    "ContractError",
    "ToyPretraining",
    "check_architecture",
    "check_method",
    "toy_attacker",
    "toy_classifier",
    "toy_defender",
    "toy_encoder",
    "toy_images",
    "toy_probe",
]

R = TypeVar("R")


class ContractError(AssertionError):
    """A method breaks the contract; the text names the breach."""


def check_method(cls: type[Method], *, data_root: str | Path | None = None, **options: Any) -> None:
    """Raise ContractError if a method class breaks its contract.

    options: fields that make it quick, such as ``steps=3``; everything else is the method's default.
    data_root: folder of data sets, with the files that a data set reads. Without it a data set with ``needs_files`` is
        not loaded, and a warning names it.
    Checks: name, docstring and paper; every option has a default and a description; options are frozen and
    round-trip; the result has exactly the right type, no subclass, and can be used; an encoder is its weights alone;
    an evaluator's head predicts as the evaluator does; inputs stay untouched; the same seed gives the same result, bit
    for bit; no hook is left; torch's global CPU generator, settings and functions stay as they were.
    """
    _require(isinstance(cls, type) and issubclass(cls, Method), f"{cls!r} is not a class derived from benchbd.Method")
    who = f"{cls.__module__}.{cls.__name__}"
    bases = [axis.base for axis in AXES]
    of = [base for base in bases if issubclass(cls, base)]
    _require(bool(of), f"{who}: derives from none of {', '.join(base.__name__ for base in bases)}")
    if flaw := flaw_of(cls):
        raise ContractError(f"{who}: {flaw}")
    _require(bool((cls.__doc__ or "").strip()) and cls.__doc__ != Method.__doc__, f"{who}: give it a docstring")
    _require(bool(cls.paper), f"{who}: paper must say where it comes from ('control; ...' for a control)")
    for field, info in cls.model_fields.items():
        _require(bool(info.description), f"{who}.{field}: give the option a description")
    try:
        method = build(cls, options, cls.name)
        survived = cls.model_validate(method.model_dump(mode="json")) == method
        check_plannable(method)
        forwards_of(method, 48), shortened_of(method, 48)
    except BenchbdError as error:
        raise ContractError(f"{who}: {error}") from error
    _require(survived, f"{who}: options do not survive JSON")
    checks: dict[type[Method], Callable[[Any, str], None]] = {
        Pretraining: _check_pretraining,
        TriggerFunction: _check_trigger,
        Attack: _check_attack,
        Mitigation: _check_mitigation,
        Detection: _check_detection,
        Evaluator: _check_evaluator,
        Dataset: partial(_check_dataset, root=None if data_root is None else expanded(data_root)),
    }
    with torch.random.fork_rng(devices=[]):
        _other_randomness(0)
        if check := checks.get(of[0]):
            check(method, who)


def check_architecture(cls: type[Encoder], *, size: int | None = None) -> None:
    """Raise ContractError if a class of encoders breaks the contract.

    size: height and width of the images, 32 to 224; None: its ``image_size``, else 32.
    Checks: name and docstring; weights depend on the seed alone; features are finite and (N, feature_dim), depend on
    no other image, and are nearly the same under bfloat16; stages, maps, ``convolutions`` and ``norms`` have their
    declared names; gradients reach every map and the images; the mask prunes; copies are independent; a file
    contains all of it.
    """
    _require(isinstance(cls, type) and issubclass(cls, Encoder), f"{cls!r} is not a class derived from benchbd.Encoder")
    who = f"{cls.__module__}.{cls.__name__}"
    if flaw := flaw_of_architecture(cls):
        raise ContractError(f"{who}: {flaw}")
    _require(bool((cls.__doc__ or "").strip()) and cls.__doc__ != Encoder.__doc__, f"{who}: give it a docstring")

    def build(seed: int) -> Encoder:
        return Encoder.seeded(cls.arch, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), seed=seed, device="cpu").eval()

    with patch.dict(ARCHITECTURES, {cls.arch: cls}), _promised(who):
        one, same, other = (_call(who, build, seed) for seed in (1, 1, 2))
        _require(_same(one.tensors(), same.tensors()), f"{who}: the same seed gave other weights")
        _require(not _same(one.tensors(), other.tensors()), f"{who}: the seed makes no difference")
        if flaw := _call(who, next, broken_promises(one, size or cls.image_size or SIZE), ""):
            raise ContractError(f"{who}: {flaw}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


_other_randomness = torch.default_generator.manual_seed  # the state of the global generator must not matter


def _call(who: str, work: Callable[..., R], *arguments: object) -> R:
    """The result of a method's work; the work must leave torch and its global generator unchanged and raise no errors
    but benchbd's."""
    before = torch.random.get_rng_state()
    try:
        with restoring() as left:
            result = work(*arguments)
            untouched = torch.equal(before, torch.random.get_rng_state())
    except BaseException as error:
        # An answer such as NotApplicable, or an error of one line; no method may raise the store's error.
        if is_interrupt(error) or (isinstance(error, BenchbdError) and not isinstance(error, StoreError)):
            raise
        raise ContractError(f"{who}: {work.__name__}() raised {named(error)}") from error
    _require(
        untouched, f"{who}: the global generator was touched; draw from benchbd.stream, or in torch.random.fork_rng"
    )
    changed = left.names + left.settings
    _require(not changed, f"{who}: {work.__name__}() left {', '.join(changed[:3])} changed; put back what it changes")
    return result


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@contextmanager
def _promised(who: str) -> Iterator[None]:
    """In the block, an error that the harness would raise in a run is a breach of the contract."""
    try:
        yield
    except PluginError as error:  # its text names the method
        raise ContractError(str(error)) from error
    except DataAbsentError:  # the method may be sound: the files are not in the given folder
        raise
    except (Diverged, DataError) as error:
        raise ContractError(f"{who}: {error}") from error


def _check_encoder(encoder: Encoder, who: str, arch: str = "w16") -> Encoder:
    """The encoder rebuilt from its tensors, as the harness rebuilds it."""
    images = toy_images(8)
    with _promised(who):
        plain = rebuild(encoder, arch, f"{who}:")
        _require(bool(torch.isfinite(plain.extract(images.pixels)).all()), f"{who}: the features are not finite")
        for name, module in encoder.named_modules():
            hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
            _require(hooks == 0, f"{who}: a hook is left on {name or 'the encoder'}")
        check_alike(encoder, plain, images.pixels, f"{who}:")
    return plain


def _check_pretraining(method: Pretraining, who: str) -> None:
    images = toy_images(labels=method.labelled)
    first = _check_encoder(_call(who, method.pretrain, images, 1), who, method.architecture)
    if method.labelled and first.classifier is not None:
        with _promised(who):
            check_classes(first.classifier, toy_images().classes, f"{who}:")
    _require(images.copy().digest == toy_images(labels=method.labelled).digest, f"{who}: the images were changed")
    _other_randomness(99)
    again, other = (_call(who, method.pretrain, images, seed) for seed in (1, 2))
    _require(_same(first.tensors(), again.tensors()), f"{who}: the same seed gave other weights")
    drawn = method.role is not Role.FILE
    _require(not (drawn and _same(first.tensors(), other.tensors())), f"{who}: the seed makes no difference")


def _check_trigger(method: TriggerFunction, who: str) -> None:
    images = toy_images().pixels
    made = []
    for seed in (1, 1):
        with _promised(who):
            made.append(_call(who, Trigger.by(method).stamp, images, torch.Generator().manual_seed(seed)))
        _other_randomness(99)
    _require(torch.equal(*made), f"{who}: the same generator gave other images; draw from the generator alone")
    _require(not torch.equal(made[0], images), f"{who}: stamp() changes no pixel")


def _check_attack(method: Attack, who: str) -> None:
    results = []
    kind = next((kind for kind in OF_DATA if kind in method.binds), "patch")
    for _ in range(2):
        knowledge = toy_attacker(seed=1, trigger=make_trigger(TriggerSpec(kind=kind), 32))
        shadow, references = knowledge.shadow.pixels.clone(), knowledge.targets[0].references.clone()
        digests = [target.trigger.digest for target in knowledge.targets]
        backdoor = _call(who, method.inject, knowledge)
        _require(torch.equal(shadow, knowledge.shadow.pixels), f"{who}: the shadow images were changed")
        _require(torch.equal(references, knowledge.targets[0].references), f"{who}: the references were changed")
        with _promised(who):
            check_backdoor(backdoor, digests, f"{who}:")
        results.append(_check_encoder(backdoor.encoder, who).tensors())
        _other_randomness(99)
    _require(_same(*results), f"{who}: the same seed gave other weights")


def _check_mitigation(method: Mitigation, who: str) -> None:
    results = []
    for _ in range(2):
        knowledge = toy_defender(seed=1)
        given = knowledge.images.pixels.clone()
        repaired = _call(who, method.repair, toy_encoder().copy(), knowledge)
        _require(torch.equal(given, knowledge.images.pixels), f"{who}: the clean images were changed")
        results.append(_check_encoder(repaired, who).tensors())
        _other_randomness(99)
    _require(_same(*results), f"{who}: the same seed gave other weights")
    if not method.uses_weights:
        other = _call(who, method.repair, toy_encoder(seed=5).copy(), toy_defender(seed=1))
        _require(_same(results[0], other.tensors()), f"{who}: uses_weights is False, but the weights matter")


def _check_detection(method: Detection, who: str) -> None:
    results = []
    for _ in range(2):
        knowledge = toy_defender(seed=1)
        given = knowledge.images.pixels.clone()
        prepared: dict[str, Tensor] = {}
        if method.prepares:
            with _promised(who):
                prepared = checked_prepared(_call(who, method.prepare, toy_encoder(seed=5), knowledge), f"{who}:")
            _other_randomness(98)
            knowledge = toy_defender(seed=1)
        suspect: Any = toy_encoder().copy()
        seen: Any = replace(knowledge, prepared=prepared)
        if isinstance(method, ClassifierDetection):
            suspect, seen = toy_classifier(), TaskKnowledge(toy_images(labels=True), 1, prepared)
            given = seen.images.pixels.clone()
        verdict = _call(who, method.inspect, suspect, seen)
        with _promised(who):
            verdict = checked_verdict(verdict, f"{who}:")
        _require(torch.equal(given, seen.images.pixels), f"{who}: the images were changed")
        results.append((verdict, prepared))
        _other_randomness(99)
    (first, prepared), (second, again) = results
    _require(first == second, f"{who}: the same seed gave another verdict")
    _require(_same(prepared, again), f"{who}: the same seed prepared something else")


def _check_evaluator(method: Evaluator, who: str) -> None:
    probe = toy_probe(seed=1)
    before = probe.encoder.tensors()
    first = _predictions(_call(who, method.evaluate, probe), probe, who)
    _require(_same(before, probe.encoder.tensors()), f"{who}: the encoder was changed")
    _require(_pixels(probe) == _pixels(toy_probe()), f"{who}: the images were changed")
    _other_randomness(99)
    again = _predictions(_call(who, method.evaluate, toy_probe(seed=1)), probe, who)
    _require(_same(first, again), f"{who}: the same seed gave other predictions")
    both = [toy_probe(seed=2), toy_probe(seed=1)]
    with _promised(who):
        _, together = evaluated_together(_call(who, method.evaluate_together, both), 2, f"{who}:")
    same = _same(first, _predictions(together, probe, who))
    _require(same, f"{who}: predictions depend on the other probes of evaluate_together")
    _check_head(method, toy_probe(seed=1), first, who)


def _predictions(result: object, probe: Probe, who: str) -> dict[str, Tensor]:
    with _promised(who):
        return checked_predictions(result, len(probe.test), len(probe.train.classes), f"{who}:")


def _check_head(method: Evaluator, probe: Probe, predicted: dict[str, Tensor], who: str) -> None:
    """The classifier as an object, if the evaluator has one, predicts as the evaluator does."""
    none = probe.test[:0]
    try:
        given = _call(who, method.head, replace(probe, test=none, triggered=none))
    except NotApplicable:
        return
    with _promised(who):
        head = checked_head(given, probe.encoder.feature_dim, probe.classes, f"{who}: head()")
        classifier = Classifier(probe.encoder, head)
    for name, pixels in (("clean", probe.test), ("triggered", probe.triggered)):
        own = classifier(pixels / 255).argmax(1)
        _require(torch.equal(own, predicted[name]), f"{who}: head() gives other {name} predictions than evaluate()")


def _pixels(probe: Probe) -> list[str]:
    sets = probe.train.copy(), ImageSet(probe.test), ImageSet(probe.triggered)
    return [images.digest for images in sets]


def _check_dataset(method: Dataset, who: str, root: Path | None) -> None:
    _require({"train", "test"} <= set(method.splits), f"{who}: splits must name train and test")
    if method.needs_files and root is None:
        warnings.warn(
            f"{who}: needs_files is True, so its images were not loaded and not checked: give check_method a "
            "data_root with its files, or declare needs_files = False where it generates its images",
            stacklevel=3,
        )
        return
    root = root or Path()
    names: dict[str, tuple[str, ...]] = {}
    for split, expected in method.splits.items():
        files = _call(who, method.sources, split, root)
        with _promised(who):
            sources_of(method, split, root)
        _require(all(path.exists() for path in files), f"{who}: sources of {split} names a file that is not there")
        images = _call(who, method.load, split, root)
        with _promised(who):
            exactly(ImageSet, images, f"{who}:")
        right = tuple(images.pixels.shape[2:]) == (SIZE, SIZE)
        _require(right, f"{who}: images must be {SIZE}x{SIZE}, not {tuple(images.pixels.shape[2:])}")
        _require(expected in (0, len(images)), f"{who}: {split} has {len(images)} images, splits says {expected}")
        labelled = images.labels is not None and bool(images.classes)
        _require(labelled or split in WITHOUT_LABELS, f"{who}: {split} needs labels and class names")
        with _promised(who):
            raw = read_own(method, split, root, files, SIZE)
        labels = None if raw.labels is None else torch.from_numpy(raw.labels)
        again = ImageSet(torch.from_numpy(raw.pixels).permute(0, 3, 1, 2), labels, images.classes)
        _require(images.digest == again.digest, f"{who}: {split} differs from call to call")
        names[split] = raw.classes
    same = names["train"] == names["test"]
    _require(same, f"{who}: train and test name their classes differently: {names['train']} against {names['test']}")

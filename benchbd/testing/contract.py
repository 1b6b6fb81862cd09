"""``check_method``: one check per axis, on toys."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchbd.base.content import expanded
from benchbd.base.errors import (
    BenchbdError,
    NotApplicable,
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
from benchbd.nets.encoder import Encoder
from benchbd.nets.rebuild import rebuild
from benchbd.registry import check_plannable, flaw_of
from benchbd.stages.attack import check_backdoor
from benchbd.stages.detect import checked_verdict
from benchbd.stages.encoders import check_alike, check_classes
from benchbd.stages.evaluate import checked_predictions, evaluated_together
from benchbd.stages.head import checked_head
from benchbd.stages.prepare import checked_prepared
from benchbd.testing.watch import ContractError, Property, call, other_randomness, promised, require, same
from benchbd.toolkit.patterns import make_trigger
from benchbd.toolkit.toys import (
    toy_attacker,
    toy_classifier,
    toy_defender,
    toy_encoder,
    toy_images,
    toy_probe,
)


def check_method(cls: type[Method], *, data_root: str | Path | None = None, **options: Any) -> None:
    """Raise ContractError if a method class breaks its contract.

    options: fields that make it quick, such as ``steps=3``; everything else is the method's default.
    data_root: folder of data sets, with the files that a data set reads. Without it a data set with ``needs_files`` is
        not loaded, and a warning names it.
    Checks: name, docstring and paper; every option has a default and a description; options are frozen and
    round-trip; the result has exactly the right type, no subclass, and can be used; an encoder is its weights alone;
    an evaluator's head predicts as the evaluator does; inputs stay untouched; the same seed gives the same result, bit
    for bit; no hook is left; the global generators of torch, NumPy and ``random``, and the settings and functions of
    torch and the process stay as they were.
    """
    require(isinstance(cls, type) and issubclass(cls, Method), f"{cls!r} is not a class derived from benchbd.Method")
    who, docs = f"{cls.__module__}.{cls.__name__}", Property.DOCUMENTATION
    bases = [axis.base for axis in AXES]
    of = [base for base in bases if issubclass(cls, base)]
    require(bool(of), f"{who}: derives from none of {', '.join(base.__name__ for base in bases)}")
    if flaw := flaw_of(cls):
        raise ContractError(f"{who}: {flaw}")
    require(bool((cls.__doc__ or "").strip()) and cls.__doc__ != Method.__doc__, f"{who}: give it a docstring", docs)
    require(bool(cls.paper), f"{who}: paper must say where it comes from ('control; ...' for a control)", docs)
    for field, info in cls.model_fields.items():
        require(bool(info.description), f"{who}.{field}: give the option a description", docs)
    try:
        method = build(cls, options, cls.name)
        survived = cls.model_validate(method.model_dump(mode="json")) == method
        check_plannable(method)
        forwards_of(method, 48), shortened_of(method, 48)
    except BenchbdError as error:
        raise ContractError(f"{who}: {error}") from error
    require(survived, f"{who}: options do not survive JSON")
    checks: dict[type[Method], Callable[[Any, str], None]] = {
        Pretraining: _check_pretraining,
        TriggerFunction: _check_trigger,
        Attack: _check_attack,
        Mitigation: _check_mitigation,
        Detection: _check_detection,
        Evaluator: _check_evaluator,
        Dataset: partial(_check_dataset, root=None if data_root is None else expanded(data_root)),
    }
    with restoring():
        other_randomness(0)
        if check := checks.get(of[0]):
            check(method, who)


def _check_encoder(encoder: Encoder, who: str, arch: str = "w16") -> Encoder:
    """The encoder rebuilt from its tensors, as the harness rebuilds it."""
    images = toy_images(8)
    with promised(who):
        plain = rebuild(encoder, arch, f"{who}:")
        require(bool(torch.isfinite(plain.extract(images.pixels)).all()), f"{who}: the features are not finite")
        for name, module in encoder.named_modules():
            hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
            require(hooks == 0, f"{who}: a hook is left on {name or 'the encoder'}", Property.STATE)
        check_alike(encoder, plain, images.pixels, f"{who}:")
    return plain


def _check_pretraining(method: Pretraining, who: str) -> None:
    images = toy_images(labels=method.labelled)
    first = _check_encoder(call(who, method.pretrain, images, 1), who, method.architecture)
    if method.labelled and first.classifier is not None:
        with promised(who):
            check_classes(first.classifier, toy_images().classes, f"{who}:")
    require(images.copy().digest == toy_images(labels=method.labelled).digest, f"{who}: the images were changed")
    other_randomness(99)
    again, other = (call(who, method.pretrain, images, seed) for seed in (1, 2))
    require(same(first.tensors(), again.tensors()), f"{who}: the same seed gave other weights", Property.DETERMINISM)
    drawn = method.role is not Role.FILE
    require(
        not (drawn and same(first.tensors(), other.tensors())),
        f"{who}: the seed makes no difference",
        Property.DETERMINISM,
    )


def _check_trigger(method: TriggerFunction, who: str) -> None:
    images = toy_images().pixels
    made = []
    for seed in (1, 1):
        with promised(who):
            made.append(call(who, Trigger.by(method).stamp, images, torch.Generator().manual_seed(seed)))
        other_randomness(99)
    require(
        torch.equal(*made),
        f"{who}: the same generator gave other images; draw from the generator alone",
        Property.DETERMINISM,
    )
    require(not torch.equal(made[0], images), f"{who}: stamp() changes no pixel")


def _check_attack(method: Attack, who: str) -> None:
    results = []
    kind = next((kind for kind in OF_DATA if kind in method.binds), "patch")
    for _ in range(2):
        knowledge = toy_attacker(seed=1, trigger=make_trigger(TriggerSpec(kind=kind), 32))
        shadow, references = knowledge.shadow.pixels.clone(), knowledge.targets[0].references.clone()
        digests = [target.trigger.digest for target in knowledge.targets]
        backdoor = call(who, method.inject, knowledge)
        require(torch.equal(shadow, knowledge.shadow.pixels), f"{who}: the shadow images were changed")
        require(torch.equal(references, knowledge.targets[0].references), f"{who}: the references were changed")
        with promised(who):
            check_backdoor(backdoor, digests, f"{who}:")
        results.append(_check_encoder(backdoor.encoder, who).tensors())
        other_randomness(99)
    require(same(*results), f"{who}: the same seed gave other weights", Property.DETERMINISM)


def _check_mitigation(method: Mitigation, who: str) -> None:
    results = []
    for _ in range(2):
        knowledge = toy_defender(seed=1)
        given = knowledge.images.pixels.clone()
        repaired = call(who, method.repair, toy_encoder().copy(), knowledge)
        require(torch.equal(given, knowledge.images.pixels), f"{who}: the clean images were changed")
        results.append(_check_encoder(repaired, who).tensors())
        other_randomness(99)
    require(same(*results), f"{who}: the same seed gave other weights", Property.DETERMINISM)
    if not method.uses_weights:
        other = call(who, method.repair, toy_encoder(seed=5).copy(), toy_defender(seed=1))
        require(same(results[0], other.tensors()), f"{who}: uses_weights is False, but the weights matter")


def _check_detection(method: Detection, who: str) -> None:
    results = []
    for _ in range(2):
        knowledge = toy_defender(seed=1)
        given = knowledge.images.pixels.clone()
        prepared: dict[str, Tensor] = {}
        if method.prepares:
            with promised(who):
                prepared = checked_prepared(call(who, method.prepare, toy_encoder(seed=5), knowledge), f"{who}:")
            other_randomness(98)
            knowledge = toy_defender(seed=1)
        suspect: Any = toy_encoder().copy()
        seen: Any = replace(knowledge, prepared=prepared)
        if isinstance(method, ClassifierDetection):
            suspect, seen = toy_classifier(), TaskKnowledge(toy_images(labels=True), 1, prepared)
            given = seen.images.pixels.clone()
        verdict = call(who, method.inspect, suspect, seen)
        with promised(who):
            verdict = checked_verdict(verdict, f"{who}:")
        require(torch.equal(given, seen.images.pixels), f"{who}: the images were changed")
        results.append((verdict, prepared))
        other_randomness(99)
    (first, prepared), (second, again) = results
    require(first == second, f"{who}: the same seed gave another verdict", Property.DETERMINISM)
    require(same(prepared, again), f"{who}: the same seed prepared something else", Property.DETERMINISM)


def _check_evaluator(method: Evaluator, who: str) -> None:
    probe = toy_probe(seed=1)
    before = probe.encoder.tensors()
    first = _predictions(call(who, method.evaluate, probe), probe, who)
    require(same(before, probe.encoder.tensors()), f"{who}: the encoder was changed")
    require(_pixels(probe) == _pixels(toy_probe()), f"{who}: the images were changed")
    other_randomness(99)
    again = _predictions(call(who, method.evaluate, toy_probe(seed=1)), probe, who)
    require(same(first, again), f"{who}: the same seed gave other predictions", Property.DETERMINISM)
    both = [toy_probe(seed=2), toy_probe(seed=1)]
    with promised(who):
        _, together = evaluated_together(call(who, method.evaluate_together, both), 2, f"{who}:")
    alike = same(first, _predictions(together, probe, who))
    require(alike, f"{who}: predictions depend on the other probes of evaluate_together", Property.DETERMINISM)
    _check_head(method, toy_probe(seed=1), first, who)


def _predictions(result: object, probe: Probe, who: str) -> dict[str, Tensor]:
    with promised(who):
        return checked_predictions(result, len(probe.test), len(probe.train.classes), f"{who}:")


def _check_head(method: Evaluator, probe: Probe, predicted: dict[str, Tensor], who: str) -> None:
    """The classifier as an object, if the evaluator has one, predicts as the evaluator does."""
    none = probe.test[:0]
    try:
        given = call(who, method.head, replace(probe, test=none, triggered=none))
    except NotApplicable:
        return
    with promised(who):
        head = checked_head(given, probe.encoder.feature_dim, probe.classes, f"{who}: head()")
        classifier = Classifier(probe.encoder, head)
    for name, pixels in (("clean", probe.test), ("triggered", probe.triggered)):
        own = classifier(pixels / 255).argmax(1)
        require(torch.equal(own, predicted[name]), f"{who}: head() gives other {name} predictions than evaluate()")


def _pixels(probe: Probe) -> list[str]:
    sets = probe.train.copy(), ImageSet(probe.test), ImageSet(probe.triggered)
    return [images.digest for images in sets]


def _check_dataset(method: Dataset, who: str, root: Path | None) -> None:
    require({"train", "test"} <= set(method.splits), f"{who}: splits must name train and test")
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
        files = call(who, method.sources, split, root)
        with promised(who):
            sources_of(method, split, root)
        require(all(path.exists() for path in files), f"{who}: sources of {split} names a file that is not there")
        images = call(who, method.load, split, root)
        with promised(who):
            exactly(ImageSet, images, f"{who}:")
        right = tuple(images.pixels.shape[2:]) == (SIZE, SIZE)
        require(right, f"{who}: images must be {SIZE}x{SIZE}, not {tuple(images.pixels.shape[2:])}")
        require(expected in (0, len(images)), f"{who}: {split} has {len(images)} images, splits says {expected}")
        labelled = images.labels is not None and bool(images.classes)
        require(labelled or split in WITHOUT_LABELS, f"{who}: {split} needs labels and class names")
        with promised(who):
            raw = read_own(method, split, root, files, SIZE)
        labels = None if raw.labels is None else torch.from_numpy(raw.labels)
        again = ImageSet(torch.from_numpy(raw.pixels).permute(0, 3, 1, 2), labels, images.classes)
        require(images.digest == again.digest, f"{who}: {split} differs from call to call", Property.DETERMINISM)
        names[split] = raw.classes
    alike = names["train"] == names["test"]
    require(alike, f"{who}: train and test name their classes differently: {names['train']} against {names['test']}")

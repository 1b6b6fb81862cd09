"""Inspect and repair one encoder with images of one's own: no board, no store, no trigger.

A method gets what it gets on a board, an encoder and clean images without labels, under the seed that the stage of the
same kind would have. So a score compares with those in records of the same detector, options and images.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from benchbd.base.arguments import LARGEST, SMALLEST, seed_of
from benchbd.base.device import pick_device
from benchbd.base.errors import (
    BenchbdError,
    Diverged,
    NotApplicable,
    PluginError,
    UnknownNameError,
    UsageError,
    shown,
)
from benchbd.base.seeds import derive_seed
from benchbd.contract.defense import Mitigation
from benchbd.contract.detection import ClassifierDetection, Detection
from benchbd.contract.handover import Failure, Product
from benchbd.contract.images import ImageSet
from benchbd.contract.method import Method, build, identity_of
from benchbd.engine.executors import Inline
from benchbd.engine.observers import Observers
from benchbd.nets.encoder import Encoder
from benchbd.nets.rebuild import rebuild
from benchbd.planning.options import parse_options
from benchbd.registry import Registry, installed
from benchbd.report.gallery import GALLERY, Gallery, read_gallery
from benchbd.report.known import Facts, Known, known
from benchbd.stages.base import Stage
from benchbd.stages.encoders import SAMPLE, check_features
from benchbd.stages.inputs import handover, prefixed

M = TypeVar("M", bound=Method)

NUMERICS: Mapping[str, Any] = {"precision": "fp32", "tf32": False}

log = logging.getLogger("benchbd")


@dataclass(frozen=True)
class Inspection:
    """A detector's verdict on one encoder.

    score: higher is more suspicious; flagged: the detector's own decision. remarks: lines of the detector.
    seconds, image_forwards: what the inspection took. known: the scores of known encoders beside it.
    """

    detection: str
    score: float
    flagged: bool
    remarks: tuple[str, ...]
    seconds: float
    image_forwards: int
    known: Known


@dataclass(frozen=True)
class Repair:
    """A repaired encoder, in eval mode on the CPU. remarks: lines of the defense. seconds, image_forwards: its cost."""

    defense: str
    encoder: Encoder = field(repr=False)
    remarks: tuple[str, ...]
    seconds: float
    image_forwards: int


@dataclass(frozen=True)
class Bench:
    """The plugins, the device and the run seed of examinations.

    gallery: known encoders to compare scores with, by default benchbd's own.
    """

    registry: Registry
    device: torch.device
    seed: int
    gallery: Gallery | None = field(default=None, repr=False)

    def methods(self, base: type[M], names: Iterable[str], options: Iterable[str]) -> list[M]:
        """The methods of ``base``'s axis by name, each once.

        options: NAME.FIELD=VALUE; UsageError if one is for a method that is not among them.
        """
        asked = parse_options(options)
        named = {name: self.registry.get(base.axis, name) for name in dict.fromkeys(names)}
        for name, values in asked.items():
            self.registry.find(name)
            if name.removeprefix(f"{base.axis}:") not in named:
                only = f"only {', '.join(named)} {'do' if len(named) > 1 else 'does'}"
                raise UsageError(f"option {name}.{next(iter(values))}: {name} takes no part, {only}")
        values = {name: asked.get(name, {}) | asked.get(f"{base.axis}:{name}", {}) for name in named}
        return [cast(M, build(cls, values[name], name)) for name, cls in named.items()]

    def detectors(self) -> list[str]:
        """The names of all detectors of encoders."""
        found = self.registry.methods[Detection.axis].items()
        return sorted(name for name, cls in found if not issubclass(cls, ClassifierDetection))

    def inspect(self, encoder: Encoder, images: ImageSet, detection: Detection) -> Inspection:
        """The verdict of a detector. UsageError if it judges classifiers, which need a task, or if the encoder or the
        images cannot be examined."""
        if isinstance(detection, ClassifierDetection):
            raise UsageError(f"detector {detection.name} judges classifiers, not encoders: put it on a board")
        given = {"given": self._checked(encoder, images).to_bytes()}
        prepared: Mapping[str, Tensor] = {}
        if detection.prepares:
            prepared = prefixed("prepared", self._work("prepare", detection, encoder.arch, images, {}, {}).tensors)
        product = self._work("detect", detection, encoder.arch, images, given, prepared)
        score, flagged = product.json["score"], product.json["flagged"]
        facts = Facts(identity_of(detection), encoder.arch, len(images), images.size, images.digest, NUMERICS)
        gallery = read_gallery() if self.gallery is None else self.gallery
        return Inspection(detection.name, score, flagged, *_told(product), known(gallery, facts, score))

    def repair(self, encoder: Encoder, images: ImageSet, defense: Mitigation) -> Repair:
        """The result of a defense, checked as on a board. NotApplicable if the defense cannot repair the encoder;
        UsageError if the encoder or the images cannot be examined."""
        checked = self._checked(encoder, images, weights=defense.uses_weights)
        given = {"given": checked.to_bytes()} if defense.uses_weights else {}
        product = self._work("defend", defense, encoder.arch, images, given, {})
        who = f"defense {defense.name}"
        if product.encoder is None:
            raise PluginError(f"{who} must return an encoder")
        repaired = rebuild(Encoder.from_bytes(product.encoder), encoder.arch, who)
        self._check_features(repaired, images, who)
        remarks, seconds, forwards = _told(product)
        changes = _changes(defense.name, checked, repaired.cpu())
        return Repair(defense.name, repaired, (*remarks, *changes), seconds, forwards)

    def _checked(self, encoder: Encoder, images: ImageSet, *, weights: bool = True) -> Encoder:
        """The encoder as a file would give it. UsageError if it is none, the images are not of its size or all the
        same, or, if its ``weights`` are used, no method can use its features of them."""
        if not isinstance(encoder, Encoder):
            raise UsageError(f"encoder {shown(encoder)}: must be a benchbd.Encoder, as Encoder.load gives it")
        if not isinstance(images, ImageSet):
            raise UsageError(f"images {shown(images)}: must be a benchbd.ImageSet, as ImageSet.from_folder gives it")
        least, most = (SMALLEST, LARGEST) if encoder.image_size is None else (encoder.image_size,) * 2
        height, width = images.pixels.shape[2:]
        if height != width or not least <= width <= most:
            takes = f"{least}x{least}" + (f" to {most}x{most}" if least < most else "")
            raise UsageError(f"images of {width}x{height} pixels: {encoder.arch} takes {takes}")
        first = images.pixels[:SAMPLE]
        if not len(first) or (len(first) > 1 and (first == first[:1]).all()):
            raise UsageError(f"images: {'they are all the same picture' if len(first) else 'there are none'}")
        try:
            plain = rebuild(encoder, encoder.arch, "the encoder", "must be")
            if weights:
                self._check_features(plain, images, "the encoder")
        except (PluginError, Diverged) as error:
            raise UsageError(str(error)) from error
        return plain.cpu()

    def _check_features(self, encoder: Encoder, images: ImageSet, who: str) -> None:
        """Raise Diverged, which begins with ``who``, if no method can use an encoder's features of the images."""
        try:
            check_features(encoder.to(self.device), images)
        except Diverged as error:
            raise Diverged(f"{who}: {error}") from error

    def _work(
        self,
        kind: str,
        method: Method,
        arch: str,
        images: ImageSet,
        given: Mapping[str, bytes],
        tensors: Mapping[str, Tensor],
    ) -> Product:
        """The product of a stage of this kind outside of any plan. A failure is raised as an error of one line."""
        seed, observers = derive_seed(self.seed, kind), Observers(self.registry)
        stage = Stage(kind, f"{method.name} on {arch}", method, seed, {}, {}, {}, NUMERICS, arch)
        plain = ImageSet(images.pixels)  # what a defender knows: no labels, names or declared statistics
        handed = handover(stage, json={"architecture": arch}, images={"images": plain}, tensors=tensors, encoders=given)
        observers.tell("benchbd_stage_started", stage=stage, position=1, total=1)
        began = time.perf_counter()

        def report(step: int, steps: int, loss: float | None) -> None:
            observers.tell("benchbd_stage_progress", stage=stage, step=step, steps=steps, loss=loss)

        result = Inline(self.registry, self.device).submit(handed, report).result()
        status, reason = (result.status, result.reason) if isinstance(result, Failure) else ("computed", "")
        seconds = time.perf_counter() - began
        observers.tell("benchbd_stage_finished", stage=stage, status=status, seconds=seconds, message=reason)
        if isinstance(result, Failure):
            raise _raised(method, result)
        return result


def inspect(
    encoder: Encoder,
    images: ImageSet,
    detection: Detection | str,
    *,
    seed: int = 1,
    device: str | None = None,
    gallery: str | Path | None = None,
) -> Inspection:
    """The verdict of a detector on an encoder.

    images: clean ones, of the size that the encoder was trained on, 32x32 to 224x224 pixels; labels are not used.
    detection: a method that ``method`` made, or a name for its defaults. seed: of the run, 0 to 2**63 - 1.
    device: ``cpu``, ``cuda`` or ``cuda:N``; by default CUDA if there is any. gallery: a file of
    `benchbd gallery build` with known encoders to compare with; by default benchbd's own.
    UsageError for a detector of classifiers, or if the images do not fit, or the encoder's features of them are
    constant or not finite; NotApplicable or another BenchbdError, of one line, if the detector has no verdict.
    """
    compared = read_gallery(GALLERY if gallery is None else gallery)
    bench = Bench(installed(), pick_device(device), seed_of(seed), compared)
    return bench.inspect(encoder, images, _asked(Detection, detection))


def repair(
    encoder: Encoder,
    images: ImageSet,
    defense: Mitigation | str,
    *,
    seed: int = 1,
    device: str | None = None,
) -> Encoder:
    """The encoder that a defense makes of an encoder, on the CPU; the given one stays as it is.

    Arguments as those of ``inspect``. NotApplicable if the defense cannot repair this encoder, another BenchbdError,
    of one line, if it fails.
    """
    bench = Bench(installed(), pick_device(device), seed_of(seed))
    return bench.repair(encoder, images, _asked(Mitigation, defense)).encoder


def method(axis: str, name: str, **options: Any) -> Method:
    """A method by its axis ("defense") and name, with options as ``-o NAME.FIELD=VALUE`` sets them.

    UsageError, with the nearest name, for an unknown axis, name or option, or a value that is out of bounds.
    """
    registry = installed()
    if axis not in registry.methods:
        raise UnknownNameError("axis", axis, registry.methods)
    return build(registry.get(axis, name), options, name)


def _asked(kind: type[M], wanted: M | str) -> M:
    """The method itself, or the one of that name with its defaults. UsageError if it is of another axis."""
    found = method(kind.axis, wanted) if isinstance(wanted, str) else wanted
    if not isinstance(found, kind):
        raise UsageError(f"{kind.axis} {shown(found)}: must be the name of a {kind.axis}, or one that method() made")
    return found


def _changes(name: str, before: Encoder, after: Encoder) -> Iterator[str]:
    """What a user must know of a repair besides the weights: that it changed nothing, or the normalisation."""
    if before.to_bytes() == after.to_bytes():
        yield f"{name}: it changed nothing: the encoder is the one that was given"
    for part in ("mean", "std"):
        new = getattr(after, part)
        if not torch.equal(getattr(before, part).cpu(), new):
            values = ", ".join(f"{value:.4f}" for value in new.flatten().tolist())
            yield f"{name}: {part} of the normalisation is now {values}; the encoder and what is exported have it"


def _told(product: Product) -> tuple[tuple[str, ...], float, int]:
    """The remarks and the cost of a piece of work."""
    remarks = cast(list[str], product.notes.get("remarks", []))
    return tuple(remarks), product.cost["seconds"], int(product.cost["image_forwards"])


def _raised(method: Method, failure: Failure) -> BenchbdError:
    """A failure as an error that names the method once. The traceback of a plugin's own error goes to the log."""
    if failure.traceback:
        log.debug("%s", failure.traceback)
    named = re.match(
        rf"(?:({method.axis}|detector) )?{re.escape(method.name)}\b(?![-.=])", failure.reason, re.IGNORECASE
    )
    begin = f"{method.axis} {method.name}: " if named is None else "" if named[1] else f"{method.axis} "
    reason = f"{begin}{failure.reason}"
    return NotApplicable(reason) if failure.status == "n/a" else PluginError(reason)

"""Stages, and the cells and inspections of a plan, which are made of them.

A stage is one unit of work, identified by everything that determines its result and by nothing else. Stages are plain
data: a method's fields, names of data sets with their digests, seeds and parents. Equal stages have equal keys, so a
grid computes each once, and a change recomputes what stands on it and no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import BaseModel

from benchbd.base.content import canonical
from benchbd.base.errors import Diverged
from benchbd.contract.attack import Attack
from benchbd.contract.content import identity_options
from benchbd.contract.encoder import Encoder
from benchbd.contract.images import SIZE, ImageSet
from benchbd.contract.meter import unmetered
from benchbd.contract.method import Method, forwards_of, identity_of, shortened_of
from benchbd.contract.pretraining import Pretraining, architecture_of
from benchbd.data.entries import ABSENT

SHORTEST = 1e-6  # of features: lengths of trained encoders are some 1 to 100


def check_features(encoder: Encoder, images: ImageSet) -> None:
    """Raise Diverged where the features of some images are not finite, all alike, or shorter than losses can tell.

    Cosines are computed of no length below 1e-8, so that shorter features would silently count as orthogonal. Charged
    to nobody.
    """
    with unmetered():
        features = encoder.extract(images.pixels[:256])
    length = float(features.norm(dim=1).median())
    if 0 < length < SHORTEST:
        raise Diverged(f"the features vanished: their median length is {length:.1e}, below {SHORTEST:g}")
    spread = float(F.normalize(features, dim=1).std(0).norm())
    if len(images) > 1 and spread < 1e-4:
        raise Diverged(f"the features collapsed: their standard deviation is {spread:.1e}")


SCHEMA = 1  # raise it when a stage of the harness itself (the reference inputs, say) gives other results

Kind = Literal["pretrain", "reference", "attack", "defend", "detect", "evaluate"]


@dataclass(frozen=True)
class DataRef:
    """A split of a data set by name, its images ``size`` pixels high and wide; its identity is the digest alone."""

    name: str
    split: str
    digest: str
    count: int
    size: int = SIZE

    @property
    def absent(self) -> bool:
        return self.digest.startswith(ABSENT)


@dataclass(frozen=True, eq=False)
class Stage:
    """What to compute. ``key`` is the sha256 of the identity; names of data sets and labels are not part of it.

    method: the method that does the work, or the specification of the reference inputs.
    seed: the stage's own seed, derived from the run seed and the kind alone.
    data: data sets by role. params: further JSON that determines the result. parents: stages by role.
    numerics: precision and TF32. attachments: objects (triggers, references) whose digests are in ``params``.
    departures: in what the stage itself differs from the board's; no part of the identity.
    """

    kind: Kind
    label: str
    method: Method | BaseModel
    seed: int
    data: Mapping[str, DataRef]
    params: Mapping[str, Any]
    parents: Mapping[str, Stage]
    numerics: Mapping[str, Any]
    attachments: Mapping[str, Any] = field(default_factory=dict)
    departures: tuple[str, ...] = ()

    @property
    def method_name(self) -> str:
        return self.method.name if isinstance(self.method, Method) else self.kind

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON; parents by key."""
        method = self.method
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "method": identity_of(method) if isinstance(method, Method) else identity_options(method),
            "seed": self.seed,
            "data": {role: ref.digest for role, ref in self.data.items()},
            "params": dict(self.params),
            "parents": {role: parent.key for role, parent in self.parents.items()},
            "numerics": dict(self.numerics),
        }

    @cached_property
    def key(self) -> str:
        """64 hex digits; the first 12 are printed."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()

    @cached_property
    def departed(self) -> tuple[str, ...]:
        """In what it and the stages that it stands on differ from the board's, each once."""
        above = [departure for parent in self.parents.values() for departure in parent.departed]
        return tuple(dict.fromkeys([*above, *self.departures]))

    @property
    def provisional(self) -> bool:
        """Whether some data set is absent, so that the key is a placeholder."""
        own = any(ref.absent for ref in self.data.values())
        return own or any(parent.provisional for parent in self.parents.values())

    @cached_property
    def architecture(self) -> str:
        """Of the encoder that the stage makes or looks at; PluginError where the method names none."""
        if isinstance(self.method, Pretraining):
            return architecture_of(self.method)
        return self.params.get("architecture") or self.parents["encoder"].architecture

    def forwards(self) -> int | None:
        """Estimated cost in image-forwards, where the method knows; PluginError where it says no such thing."""
        if self.kind == "evaluate":  # feature extraction; the head is not counted in encoder forwards
            train, test = self.data["train"].count, self.data["test"].count
            return train + 2 * test if train and test else None
        if not isinstance(self.method, Method):  # the reference inputs: features of the training split
            return self.data["train"].count or None
        if isinstance(self.method, Attack) and self.method.retrains:
            return self.parents["encoder"].forwards()
        return forwards_of(self.method, self._images) if self._images else None

    def shortened(self) -> str | None:
        """How far below its own length the method of this stage is cut, in a line; None where it is not. PluginError
        where the method says nothing of the sort."""
        return shortened_of(self.method, self._images) if isinstance(self.method, Method) and self._images else None

    @property
    def _images(self) -> int:
        """How many images the method trains on; 0 where nobody knows."""
        drawn = self.params.get("clean") or self.params.get("shadow") or {}
        return int(drawn.get("count", self.data["pool"].count))


def distinct(stages: Iterable[Stage]) -> list[Stage]:
    """Each stage once, parents before children, otherwise in the order given."""
    seen: dict[str, Stage] = {}

    def visit(stage: Stage) -> Iterator[Stage]:
        for parent in stage.parents.values():
            yield from visit(parent)
        yield stage

    for stage in stages:
        for each in visit(stage):
            seen.setdefault(each.key, each)
    return list(seen.values())

"""A stage: one unit of work, identified by everything that determines its result and by nothing else.

Stages are plain data: a method's fields, names of data sets with their digests, seeds and parents. Equal stages have
equal keys, so a grid computes each once, and a change recomputes only what depends on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel
from safetensors.torch import save
from torch import Tensor

from benchbd.base.content import canonical
from benchbd.base.errors import PluginError
from benchbd.base.options import identity_options
from benchbd.base.pictures import SIZE
from benchbd.contract.method import Method, forwards_of, identity_of, shortened_of
from benchbd.data.entries import ABSENT

SCHEMA = 1  # raise it when a stage of the harness itself (the reference inputs, say) gives other results

ENCODER, REFERENCES, PREDICTIONS = "encoder.safetensors", "references.safetensors", "predictions.safetensors"

EMPTY: Mapping[str, Any] = MappingProxyType({})


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
    """A unit of work. ``key`` is the sha256 of the identity; names of data sets and labels are not part of it.

    kind: the file of ``stages/`` that does the work.
    method: the method that does the work, or the specification of the reference inputs.
    seed: the stage's own seed, derived from the run seed and the kind alone.
    data: data sets by role. params: further JSON that determines the result. parents: stages by role.
    numerics: precision and TF32. architecture: of the encoder that the stage makes or uses.
    attachments: objects (triggers, references) whose digests are in ``params``.
    departures: the stage's own differences from the board. The last three fields are not part of the identity.
    """

    kind: str
    label: str
    method: Method | BaseModel
    seed: int
    data: Mapping[str, DataRef]
    params: Mapping[str, Any]
    parents: Mapping[str, Stage]
    numerics: Mapping[str, Any]
    architecture: str
    attachments: Mapping[str, Any] = field(default_factory=dict)
    departures: tuple[str, ...] = ()

    @property
    def method_name(self) -> str:
        return self.method.name if isinstance(self.method, Method) else self.kind

    @cached_property
    def _identity(self) -> str:
        told = {
            "schema": SCHEMA,
            "kind": self.kind,
            "method": identity_of(self.method) if isinstance(self.method, Method) else identity_options(self.method),
            "seed": self.seed,
            "data": {role: ref.digest for role, ref in self.data.items()},
            "params": dict(self.params),
            "parents": {role: parent.key for role, parent in self.parents.items()},
            "numerics": dict(self.numerics),
        }
        return canonical(told)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON; parents by key. Each call gives another dict: an observer may
        write to it."""
        return dict(json.loads(self._identity))

    @cached_property
    def key(self) -> str:
        """64 hex digits; the first 12 are printed."""
        return hashlib.sha256(self._identity.encode()).hexdigest()

    @cached_property
    def departed(self) -> tuple[str, ...]:
        """The differences from the board of this stage and those that it depends on, each once."""
        above = [departure for parent in self.parents.values() for departure in parent.departed]
        return tuple(dict.fromkeys([*above, *self.departures]))

    @property
    def provisional(self) -> bool:
        """Whether some data set is absent, so that the key is a placeholder."""
        return any(each.absent for each in self.data.values()) or any(
            each.provisional for each in self.parents.values()
        )

    @property
    def images(self) -> int:
        """The number of images that the method trains on; 0 if unknown."""
        drawn = self.params.get("clean") or self.params.get("task") or self.params.get("shadow") or {}
        whole = self.data.get("shadow") or self.data.get("pool")
        return int(drawn.get("count", whole.count if whole else 0))

    def shortened(self) -> str | None:
        """A line with the stage's cost relative to the method's own length, if options reduce it; else None.
        PluginError if the method returns no such line."""
        return shortened_of(self.method, self.images) if isinstance(self.method, Method) and self.images else None

    def check_unchanged(self) -> None:
        """Raise PluginError if a plugin changed the stage in memory after it was planned."""
        if replace(self).key != self.key:  # a copy has no cached key
            raise PluginError(f"{self.kind} {self.label} was changed in memory by a plugin; run without it")


@dataclass(frozen=True)
class Outcome:
    """A stage's output for the store. blobs: the content of each file by name. result: small JSON."""

    blobs: dict[str, bytes]
    result: dict[str, Any]

    @classmethod
    def of_tensors(cls, name: str, tensors: Mapping[str, Tensor], result: Mapping[str, Any] = EMPTY) -> Outcome:
        """An outcome whose blob ``name`` is the safetensors file of ``tensors``. It is made here, because what no file
        can hold is the method's failure, not the store's."""
        return cls({name: save(dict(tensors))}, dict(result))


def forwards(stage: Stage) -> int | None:
    """The method's own estimate of the stage's cost, in image-forwards."""
    assert isinstance(stage.method, Method)
    return forwards_of(stage.method, stage.images) if stage.images else None


def distinct(stages: Iterable[Stage]) -> list[Stage]:
    """Each stage once, parents before children, otherwise in the order given."""
    seen: dict[str, Stage] = {}
    for stage in stages:
        for each in (*distinct(stage.parents.values()), stage):
            seen.setdefault(each.key, each)
    return list(seen.values())

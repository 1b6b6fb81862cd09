"""The kinds of stages: one file each, by the name that stands in a stage."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Protocol, cast

import torch

from benchbd.contract.axes import AXES
from benchbd.contract.handover import Handover, Product
from benchbd.contract.method import Method
from benchbd.stages.base import Outcome, Stage
from benchbd.stages.clean import Suspect
from benchbd.stages.inputs import Inputs
from benchbd.stages.sources import Sources


class StageKind(Protocol):
    """What a file of a kind does, besides ``plan``, which makes a stage of it and takes what the kind needs.

    A function that takes several stages gets one, unless ``alike`` says that several share a handover.
    """

    def hand_over(self, stages: Sequence[Stage], inputs: Inputs) -> Handover:
        """All that the work may see. The harness's side: it sees everything and decides."""

    def work(self, methods: Mapping[str, Method], handed: Handover, device: torch.device) -> Product:
        """The work itself, anywhere: it sees the handover alone. methods: those of the handover, built."""

    def accept(self, stages: Sequence[Stage], product: Product, inputs: Inputs) -> list[Outcome]:
        """What each stage leaves, once the product is found to be what was asked for. The harness's side."""

    def forwards(self, stage: Stage) -> int | None:
        """Estimated cost in image-forwards; None if nobody knows. PluginError if a method says no such thing."""

    def alike(self, stage: Stage, inputs: Inputs) -> Hashable | None:
        """Stages with equal answers may share one handover; None: alone."""


class InspectingKind(StageKind, Protocol):
    """The kind of an axis that inspects: its stages are of an encoder and of what a defender has."""

    def plan(self, sources: Sources, method: Method, suspect: Suspect, departures: Iterable[str]) -> Stage:
        """The stage of ``method`` on an encoder."""


KINDS: Mapping[str, StageKind] = MappingProxyType(
    {
        kind: cast(StageKind, import_module(f"benchbd.stages.{kind}"))
        for kind in ("reference", "head", "prepare", *(axis.stage for axis in AXES if axis.stage))
    }
)

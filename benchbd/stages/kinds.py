"""The kinds of stages: one file each, by the name of the kind."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
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
    """The functions in the file of a kind, besides ``plan``, whose arguments depend on the kind.

    A function that takes several stages gets one, unless ``alike`` groups several in one handover.
    """

    def hand_over(self, inputs: Inputs, *stages: Stage) -> Handover:
        """The whole input of the work. The harness calls it: it may read everything and selects."""

    def work(self, methods: Mapping[str, Method], handed: Handover, device: torch.device) -> Product:
        """Do the work, in any process, with the handover alone. methods: those of the handover, built."""

    def accept(self, inputs: Inputs, product: Product, *stages: Stage) -> list[Outcome]:
        """Each stage's output, once the product is checked. The harness calls it."""

    def forwards(self, stage: Stage) -> int | None:
        """Estimated cost in image-forwards; None if unknown. PluginError if a method returns no such number."""

    def alike(self, stage: Stage, inputs: Inputs) -> Hashable | None:
        """Stages with equal values may share one handover; None: alone."""


class InspectingKind(StageKind, Protocol):
    """The kind of an axis that inspects: its stages take an encoder and a defender's input."""

    def plan(self, sources: Sources, method: Method, suspect: Suspect, departures: Iterable[str]) -> Stage:
        """The stage of ``method`` on an encoder."""


KINDS: Mapping[str, StageKind] = MappingProxyType(
    {
        kind: cast(StageKind, import_module(f"benchbd.stages.{kind}"))
        for kind in ("reference", "head", "prepare", *(axis.stage for axis in AXES if axis.stage))
    }
)

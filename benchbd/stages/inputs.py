"""The harness's inputs of stages: artifacts, images, and the rows drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchbd.base.errors import PluginError
from benchbd.contract.handover import Handover
from benchbd.contract.images import ImageSet
from benchbd.contract.method import Method, call_of
from benchbd.contract.trigger import Trigger
from benchbd.data.library import DataLibrary
from benchbd.stages.base import ENCODER, DataRef, Stage
from benchbd.store.artifact import Artifact


@dataclass(frozen=True)
class Inputs:
    """The source of handovers.

    fetch: returns the verified artifact of a stage that was computed before. device: for checking encoders.
    """

    library: DataLibrary
    fetch: Callable[[Stage], Artifact]
    device: torch.device

    def images(self, ref: DataRef) -> ImageSet:
        """A split, on the CPU; shared, so it must not be written to."""
        return self.library.load(ref.name, ref.split, ref.size)

    def encoder(self, stage: Stage) -> bytes:
        """The file of a stage's encoder."""
        return self.fetch(stage).blob(ENCODER).read_bytes()


def handover(
    stage: Stage,
    *,
    others: Mapping[str, Method] | None = None,
    json: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    encoders: Mapping[str, bytes] | None = None,
) -> Handover:
    """The handover of a stage. others: methods that the work may call, by role."""
    own = {"own": stage.method} if isinstance(stage.method, Method) else {}
    return Handover(
        kind=stage.kind,
        methods={role: call_of(method) for role, method in {**own, **(others or {})}.items()},
        seed=stage.seed,
        precision=stage.numerics["precision"],
        tf32=stage.numerics["tf32"],
        json=json or {},
        tensors=tensors or {},
        encoders=encoders or {},
    )


def draw_rows(pool: int, drawn: Mapping[str, int]) -> Tensor:
    """Rows of the pool, int64 (count,), sorted: drawn without replacement with their own seed."""
    return draw_order(pool, drawn).sort().values


def draw_order(pool: int, drawn: Mapping[str, int]) -> Tensor:
    """The rows of ``draw_rows`` in the order of the draw."""
    generator = torch.Generator().manual_seed(drawn["seed"])
    return torch.randperm(pool, generator=generator)[: drawn["count"]]


def facts_of(images: ImageSet) -> dict[str, Any]:
    """The facts about images besides their pixels, as JSON."""
    return {"classes": images.classes, "mean": images.mean, "std": images.std}


def images_from(facts: Mapping[str, Any], pixels: Tensor, labels: Tensor | None, device: torch.device) -> ImageSet:
    """The images of ``facts_of``, on the device."""
    declared = {name: None if facts[name] is None else tuple(facts[name]) for name in ("mean", "std")}
    return ImageSet(pixels, labels, tuple(facts["classes"]), **declared).to(device)


def alone(stage: Stage, inputs: Inputs) -> None:
    """The ``alike`` of a kind whose stages share nothing."""


def verified(trigger: Trigger, digest: str) -> Trigger:
    """A copy of the board's trigger. PluginError if its digest is not the one in the stage's key."""
    copy = trigger.copy("cpu")
    if copy.digest != digest:
        raise PluginError("a trigger of the board was changed in memory by a plugin; run without it")
    return copy


def unlabeled(images: ImageSet) -> ImageSet:
    """The images without labels and class names; they share the pixels."""
    return replace(images, labels=None, classes=())

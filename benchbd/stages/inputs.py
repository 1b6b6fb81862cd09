"""The harness's inputs of stages: artifacts, images, and the rows drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchbd.base.errors import PluginError
from benchbd.contract.handover import Handover
from benchbd.contract.images import ImageSet
from benchbd.contract.method import Method, call_of
from benchbd.contract.trigger import Trigger
from benchbd.data.library import DataLibrary
from benchbd.stages.base import EMPTY, ENCODER, DataRef, Stage
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

    def tensors(self, stage: Stage, name: str) -> dict[str, Tensor]:
        """The tensors in a file of a stage."""
        return load_file(self.fetch(stage).blob(name))


def training_images(inputs: Inputs, stage: Stage) -> ImageSet:
    """The labelled images on which a stage's heads are trained: without the reference inputs of its parent
    ``reference``, because an attack gives their features to triggered images, which a head would learn by heart."""
    train, parent = inputs.images(stage.data["train"]), stage.parents.get("reference")
    kept = torch.ones(len(train), dtype=torch.bool)
    kept[[] if parent is None else inputs.fetch(parent).result["rows"]] = False
    return train if kept.all() else train.subset(kept.nonzero()[:, 0])


def training_forwards(stage: Stage) -> int | None:
    """The cost of the features of the training split, in image-forwards; None if its size is unknown."""
    return stage.data["train"].count or None


def handover(
    stage: Stage,
    *,
    others: Mapping[str, Method] = EMPTY,
    json: Mapping[str, Any] = EMPTY,
    images: Mapping[str, ImageSet] = EMPTY,
    tensors: Mapping[str, Tensor] = EMPTY,
    encoders: Mapping[str, bytes] = EMPTY,
) -> Handover:
    """The handover of a stage. others: methods that the work may call, by role. images: for ``images_from``."""
    own = {"own": stage.method} if isinstance(stage.method, Method) else {}
    facts = {name: {"classes": each.classes, "mean": each.mean, "std": each.std} for name, each in images.items()}
    pixels = {name: each.pixels for name, each in images.items()}
    labels = {f"{name}.labels": each.labels for name, each in images.items() if each.labels is not None}
    return Handover(
        kind=stage.kind,
        methods={role: call_of(method) for role, method in {**own, **others}.items()},
        seed=stage.seed,
        precision=stage.numerics["precision"],
        tf32=stage.numerics["tf32"],
        json={**json, **facts},
        tensors={**tensors, **pixels, **labels},
        encoders=encoders,
    )


def images_from(handed: Handover, name: str, device: torch.device) -> ImageSet:
    """The images of this name in a handover, on the device."""
    facts = handed.json[name]
    declared = {each: None if facts[each] is None else tuple(facts[each]) for each in ("mean", "std")}
    labels = handed.tensors.get(f"{name}.labels")
    return ImageSet(handed.tensors[name], labels, tuple(facts["classes"]), **declared).to(device)


def prefixed(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a common prefix in their names, for ``inside``."""
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def inside(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that ``prefixed`` gave this prefix, by their own names."""
    start = f"{name}."
    return {each.removeprefix(start): tensor for each, tensor in tensors.items() if each.startswith(start)}


def draw_rows(pool: int, drawn: Mapping[str, int]) -> Tensor:
    """Rows of the pool, int64 (count,), sorted: drawn without replacement with their own seed."""
    return draw_order(pool, drawn).sort().values


def draw_order(pool: int, drawn: Mapping[str, int]) -> Tensor:
    """The rows of ``draw_rows`` in the order of the draw."""
    generator = torch.Generator().manual_seed(drawn["seed"])
    return torch.randperm(pool, generator=generator)[: drawn["count"]]


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

"""prepare: a detector learns once for all the encoders of one architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchbd.base.errors import PluginError, shown
from benchbd.base.isolation import isolated
from benchbd.base.packed import stored
from benchbd.contract.detection import Detection
from benchbd.contract.handover import Handover, Product
from benchbd.nets.encoder import Encoder
from benchbd.stages.base import Outcome, Stage
from benchbd.stages.clean import Clean, hand_over_clean, knowledge_of, plan_clean
from benchbd.stages.inputs import Inputs, alone
from benchbd.stages.sources import Sources

PREPARED = "prepared.safetensors"

alike, hand_over = alone, hand_over_clean


def plan(
    sources: Sources, detection: Detection, architecture: str, clean: Clean, seed: int, departures: Iterable[str]
) -> Stage:
    """The stage of a detector's preparation from the clean images of one seed, for encoders of an architecture."""
    label = f"{detection.name} for {architecture} on clean images of {clean.pool} seed {seed}"
    return plan_clean(sources, "prepare", label, detection, clean, seed, departures, {}, architecture)


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    method: Detection = methods["own"]
    knowledge, arch, who = knowledge_of(handed, device), handed.json["architecture"], f"detector {method.name}"
    encoder = Encoder.seeded(arch, *knowledge.images.normalization(), seed=handed.seed, device=device)
    with isolated(who):
        prepared = method.prepare(encoder, knowledge)
    return Product(tensors=checked_prepared(prepared, who))


def accept(inputs: Inputs, product: Product, stage: Stage) -> list[Outcome]:
    return [Outcome.of_tensors(PREPARED, product.tensors)]


def forwards(stage: Stage) -> int | None:
    """Unknown: a detector's ``forwards`` is about an inspection."""
    return None


def checked_prepared(prepared: object, who: str) -> dict[str, Tensor]:
    """Copies of the prepared tensors, by name; PluginError if they are no mapping of names to tensors, or if
    no file can hold them."""
    if not isinstance(prepared, Mapping) or not all(
        isinstance(name, str) and isinstance(part, Tensor) for name, part in prepared.items()
    ):
        raise PluginError(f"{who} must return tensors by name from prepare(), not {shown(prepared)}")
    return stored(prepared, f"{who}: the tensors of prepare()")

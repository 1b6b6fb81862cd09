"""What a defender gets besides an encoder: clean images of the pool, drawn once a seed for every attack and defense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchbd.base.errors import UsageError
from benchbd.contract.context import derive_seed
from benchbd.contract.defense import DefenderKnowledge
from benchbd.contract.handover import Handover
from benchbd.contract.images import ImageSet
from benchbd.stages.base import Stage
from benchbd.stages.inputs import Inputs, draw_rows, handover
from benchbd.stages.sources import Sources


@dataclass(frozen=True)
class Clean:
    """pool: the data set that the images are drawn from; images: how many."""

    pool: str
    images: int


def plan_clean(sources: Sources, clean: Clean, seed: int) -> dict[str, Any]:
    """The parameters of a stage that gets clean images: how many, and the seed that they are drawn with."""
    pool = sources.ref(clean.pool, "pool")
    if pool.count and clean.images > pool.count:
        raise UsageError(
            f"the board gives defenders {clean.images} clean images, but the pool {clean.pool} has {pool.count}"
        )
    return {"clean": {"count": clean.images, "seed": derive_seed(seed, "clean")}}


def hand_over_clean(stage: Stage, inputs: Inputs, json: Mapping[str, Any]) -> Handover:
    """The encoder, if there is one, and the clean images without labels, names or the pool's declared statistics:
    nothing in them points back to anything."""
    rows = draw_rows(stage.data["pool"].count, stage.params["clean"])
    images = inputs.images(stage.data["pool"]).subset(rows).pixels
    parent = stage.parents.get("encoder")
    encoders = {} if parent is None else {"given": inputs.encoder(parent)}
    return handover(stage, json=json, tensors={"images": images}, encoders=encoders)


def knowledge_of(handed: Handover, device: torch.device) -> DefenderKnowledge:
    return DefenderKnowledge(ImageSet(handed.tensors["images"].to(device)), handed.seed)

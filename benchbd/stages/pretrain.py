"""pretrain: train an encoder from random weights on the pool of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchbd.base.errors import UsageError
from benchbd.base.isolation import isolated
from benchbd.contract.context import derive_seed
from benchbd.contract.handover import Handover, Product
from benchbd.contract.images import ImageSet
from benchbd.contract.pretraining import Pretraining, architecture_of
from benchbd.stages.base import Stage, forwards
from benchbd.stages.encoders import COMPARED, accept_encoder, product_of
from benchbd.stages.inputs import Inputs, alone, facts_of, handover, images_from, unlabeled
from benchbd.stages.sources import Sources

__all__ = ["accept", "alike", "forwards", "hand_over", "plan", "work"]

accept, alike = accept_encoder, alone


def plan(sources: Sources, method: Pretraining, name: str, seed: int, departures: Iterable[str]) -> Stage:
    """The stage of a pre-training on the data set ``name``, run seed ``seed``. UsageError if it lacks needed labels."""
    split = "train" if method.labelled else "pool"
    info = sources.info(name, split)
    if more := max(0, sources.info(name, "pool").count - info.count):
        raise UsageError(
            f"pre-training {method.name} learns from labels, and {more} images of the pool {name} have none: "
            "take a data set without unlabelled images"
        )
    return sources.stage(
        "pretrain",
        f"{method.name} on {name} seed {seed}",
        method,
        derive_seed(seed, "pretrain"),
        data={"pool": sources.ref(name, split)},
        params={"normalization": [list(info.mean), list(info.std)]},
        parents={},
        architecture=architecture_of(method),
        departures=departures,
    )


def hand_over(stages: Sequence[Stage], inputs: Inputs) -> Handover:
    (stage,) = stages
    facts, tensors = pool_of(stage, inputs)
    return handover(stage, json={"pool": facts, "architecture": stage.architecture}, tensors=tensors)


def pool_of(stage: Stage, inputs: Inputs) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON and tensors of a ``pretrain`` stage's pool for a handover; labels only for a labelled method."""
    assert isinstance(stage.method, Pretraining)
    pool = inputs.images(stage.data["pool"])
    if not stage.method.labelled:
        pool = unlabeled(pool)
    labels = {} if pool.labels is None else {"labels": pool.labels}
    return facts_of(pool), {"pool": pool.pixels, **labels}


def pool_from(handed: Handover, device: torch.device) -> ImageSet:
    """The images of ``pool_of``, on the device."""
    return images_from(handed.json["pool"], handed.tensors["pool"], handed.tensors.get("labels"), device)


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    method: Pretraining = methods["own"]
    pool = pool_from(handed, device)
    seen, who = pool.pixels[:COMPARED].clone(), f"pre-training {method.name}"
    with isolated(who):
        encoder = method.pretrain(pool, handed.seed)
    return product_of(encoder, handed.json["architecture"], seen, who)

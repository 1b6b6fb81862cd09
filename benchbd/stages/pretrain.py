"""pretrain: an encoder trained from random weights on the pool of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from benchbd.base.isolation import isolated
from benchbd.contract.context import derive_seed
from benchbd.contract.handover import Handover, Product
from benchbd.contract.pretraining import Pretraining, architecture_of
from benchbd.stages.base import Stage, forwards
from benchbd.stages.encoders import COMPARED, accept_encoder, product_of
from benchbd.stages.inputs import Inputs, alone, facts_of, handover, images_from, unlabeled
from benchbd.stages.sources import Sources

__all__ = ["accept", "alike", "forwards", "hand_over", "plan", "work"]

accept, alike = accept_encoder, alone


def plan(sources: Sources, method: Pretraining, name: str, seed: int, departures: Iterable[str]) -> Stage:
    """Of the data set ``name`` under the run seed ``seed``."""
    info = sources.info(name, "pool")
    return sources.stage(
        "pretrain",
        f"{method.name} on {name} seed {seed}",
        method,
        derive_seed(seed, "pretrain"),
        data={"pool": sources.ref(name, "pool")},
        params={"normalization": [list(info.mean), list(info.std)]},
        parents={},
        architecture=architecture_of(method),
        departures=departures,
    )


def hand_over(stages: Sequence[Stage], inputs: Inputs) -> Handover:
    (stage,) = stages
    pool = unlabeled(inputs.images(stage.data["pool"]))
    return handover(
        stage,
        json={"pool": facts_of(pool), "architecture": stage.architecture},
        tensors={"pool": pool.pixels},
    )


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    method: Pretraining = methods["own"]
    pool = images_from(handed.json["pool"], handed.tensors["pool"], None, device)
    seen, who = pool.pixels[:COMPARED].clone(), f"pre-training {method.name}"
    with isolated(who):
        encoder = method.pretrain(pool, handed.seed)
    return product_of(encoder, handed.json["architecture"], seen, who)

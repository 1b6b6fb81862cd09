"""pretrain: train an encoder from random weights on the pool of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from benchbd.base.errors import UsageError
from benchbd.base.isolation import isolated
from benchbd.contract.handover import Handover, Product
from benchbd.contract.images import ImageSet
from benchbd.contract.pretraining import Pretraining, architecture_of
from benchbd.stages import base
from benchbd.stages.base import Stage
from benchbd.stages.encoders import COMPARED, accept_encoder, product_of
from benchbd.stages.inputs import Inputs, alone, handover, images_from, unlabeled
from benchbd.stages.sources import Sources

accept, alike, forwards = accept_encoder, alone, base.forwards


def plan(sources: Sources, method: Pretraining, name: str, seed: int, departures: Iterable[str]) -> Stage:
    """The stage of a pre-training on the data set ``name``, run seed ``seed``. UsageError if it lacks needed labels."""
    split = "train" if method.labelled else "pool"
    info = sources.info(name, split)
    if more := max(0, sources.info(name, "pool").count - info.count):
        raise UsageError(
            f"pre-training {method.name} learns from labels, and {more} images of the pool {name} have none: "
            "take a data set without unlabelled images"
        )
    label, data = f"{method.name} on {name} seed {seed}", {"pool": sources.ref(name, split)}
    params, arch = {"normalization": [list(info.mean), list(info.std)]}, architecture_of(method)
    return sources.stage("pretrain", label, method, seed, departures, data=data, parents={}, params=params, arch=arch)


def hand_over(inputs: Inputs, stage: Stage) -> Handover:
    return handover(stage, json={"architecture": stage.architecture}, images={"pool": pool_of(stage, inputs)})


def pool_of(stage: Stage, inputs: Inputs) -> ImageSet:
    """The pool of a ``pretrain`` stage, with labels only for a labelled method."""
    assert isinstance(stage.method, Pretraining)
    pool = inputs.images(stage.data["pool"])
    return pool if stage.method.labelled else unlabeled(pool)


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    method: Pretraining = methods["own"]
    pool = images_from(handed, "pool", device)
    seen, who = pool.pixels[:COMPARED].clone(), f"pre-training {method.name}"
    with isolated(who):
        encoder = method.pretrain(pool, handed.seed)
    return product_of(encoder, handed.json["architecture"], seen, who)

"""defend: a defender repairs an encoder with a few clean images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchbd.base.isolation import isolated
from benchbd.contract.defense import Mitigation
from benchbd.contract.handover import Handover, Product
from benchbd.nets.encoder import Encoder
from benchbd.stages import base
from benchbd.stages.base import ENCODER, Outcome, Stage
from benchbd.stages.clean import Clean, clean_images, hand_over_clean, knowledge_of, plan_clean
from benchbd.stages.clean_features import clean_features
from benchbd.stages.encoders import COMPARED, accept_encoder, product_of
from benchbd.stages.inputs import Inputs, alone
from benchbd.stages.sources import Sources

CLEAN_FEATURES = "clean_features"  # in the stage's result

alike, hand_over, forwards = alone, hand_over_clean, base.forwards


def plan(
    sources: Sources, defense: Mitigation, published: Stage, clean: Clean, seed: int, departures: Iterable[str]
) -> Stage:
    """The stage of a repair of another stage's encoder. A method that uses no weights is keyed without them."""
    origin = published.label if defense.uses_weights else f"clean images of {clean.pool} seed {seed}"
    label, parents = f"{defense.name} on {origin}", {"encoder": published} if defense.uses_weights else {}
    return plan_clean(sources, "defend", label, defense, clean, seed, departures, parents, published.architecture)


def accept(inputs: Inputs, product: Product, stage: Stage) -> list[Outcome]:
    """As for every encoder; the result also has what the defender's images tell of a repair."""
    (outcome,) = accept_encoder(inputs, product, stage)
    told = features_of(inputs, stage, outcome.blobs[ENCODER])
    return [replace(outcome, result={**outcome.result, **({} if told is None else {CLEAN_FEATURES: told})})]


def features_of(inputs: Inputs, stage: Stage, repaired: bytes) -> dict[str, float] | None:
    """``clean_features`` of the file of a stage's encoder; None if it repairs no given one."""
    if (parent := stage.parents.get("encoder")) is None:
        return None
    before, after = (Encoder.from_bytes(file, inputs.device) for file in (inputs.encoder(parent), repaired))
    images = clean_images(inputs, stage).to(inputs.device)
    return clean_features(before, after, images, stage.params["clean"]["seed"])


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    method: Mitigation = methods["own"]
    knowledge, arch = knowledge_of(handed, device), handed.json["architecture"]
    if "given" in handed.encoders:
        encoder = Encoder.from_bytes(handed.encoders["given"], device).copy()
    else:  # a control that may use only the architecture
        encoder = Encoder.seeded(arch, *knowledge.images.normalization(), seed=handed.seed, device=device)
    seen, who = knowledge.images.pixels[:COMPARED].clone(), f"defense {method.name}"
    with isolated(who):
        repaired = method.repair(encoder, knowledge)
    return product_of(repaired, arch, seen, who)

"""defend: a defender repairs an encoder with a few clean images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from benchbd.base.isolation import isolated
from benchbd.contract.context import derive_seed
from benchbd.contract.defense import Mitigation
from benchbd.contract.handover import Handover, Product
from benchbd.nets.encoder import Encoder
from benchbd.stages.base import Stage, forwards
from benchbd.stages.clean import Clean, attachments_of, hand_over_clean, knowledge_of, plan_clean
from benchbd.stages.encoders import COMPARED, accept_encoder, product_of
from benchbd.stages.inputs import Inputs, alone
from benchbd.stages.sources import Sources

__all__ = ["accept", "alike", "forwards", "hand_over", "plan", "work"]

accept, alike = accept_encoder, alone


def plan(
    sources: Sources, defense: Mitigation, published: Stage, clean: Clean, seed: int, departures: Iterable[str]
) -> Stage:
    """The stage of a repair of another stage's encoder. A method that uses no weights is keyed without them."""
    params, parents, origin = plan_clean(sources, clean, seed), {"encoder": published}, published.label
    if not defense.uses_weights:
        params["architecture"] = published.architecture
        parents, origin = {}, f"clean images of {clean.pool} seed {seed}"
    return sources.stage(
        "defend",
        f"{defense.name} on {origin}",
        defense,
        derive_seed(seed, "defend"),
        data={"pool": sources.ref(clean.pool, "pool")},
        params=params,
        parents=parents,
        architecture=published.architecture,
        departures=[*departures, *clean.departures],
        attachments=attachments_of(clean),
    )


def hand_over(stages: Sequence[Stage], inputs: Inputs) -> Handover:
    (stage,) = stages
    return hand_over_clean(stage, inputs, {"architecture": stage.architecture})


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

"""detect: a verdict on an encoder, by somebody who has it and a few clean images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchbd.base.errors import PluginError, shown
from benchbd.base.isolation import isolated
from benchbd.contract.context import derive_seed
from benchbd.contract.detection import Detection, Verdict
from benchbd.contract.encoder import Encoder
from benchbd.contract.handover import Handover, Product
from benchbd.contract.method import exactly
from benchbd.stages.base import Outcome, Stage, forwards
from benchbd.stages.clean import Clean, attachments_of, hand_over_clean, knowledge_of, plan_clean
from benchbd.stages.inputs import Inputs, alone
from benchbd.stages.sources import Sources

__all__ = ["accept", "alike", "forwards", "hand_over", "plan", "work"]

alike = alone


def plan(
    sources: Sources, detection: Detection, published: Stage, clean: Clean, seed: int, departures: Iterable[str]
) -> Stage:
    """Of the encoder that a stage published."""
    return sources.stage(
        "detect",
        f"{detection.name} on {published.label}",
        detection,
        derive_seed(seed, "detect"),
        data={"pool": sources.ref(clean.pool, "pool")},
        params=plan_clean(sources, clean, seed),
        parents={"encoder": published},
        architecture=published.architecture,
        departures=[*departures, *clean.departures],
        attachments=attachments_of(clean),
    )


def hand_over(stages: Sequence[Stage], inputs: Inputs) -> Handover:
    (stage,) = stages
    return hand_over_clean(stage, inputs, {})


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    method: Detection = methods["own"]
    encoder, who = Encoder.from_bytes(handed.encoders["given"], device).copy(), f"detector {method.name}"
    knowledge = knowledge_of(handed, device)
    with isolated(who):
        verdict = method.inspect(encoder, knowledge)
    verdict = checked_verdict(verdict, who)
    return Product(json={"score": verdict.score, "flagged": verdict.flagged})


def accept(stages: Sequence[Stage], product: Product, inputs: Inputs) -> list[Outcome]:
    (stage,) = stages
    told = product.json
    verdict = checked_verdict(Verdict(told.get("score", ""), told.get("flagged", "")), f"detector {stage.method_name}")
    return [Outcome({}, {"score": verdict.score, "flagged": verdict.flagged})]


def checked_verdict(verdict: object, who: str) -> Verdict:
    """The verdict in Python's own numbers; PluginError if the score is no finite number or the flag is no bool."""
    verdict = exactly(Verdict, verdict, who)
    score, flagged = (
        value.item() if isinstance(value, Tensor | np.generic) and value.ndim == 0 else value
        for value in (verdict.score, verdict.flagged)
    )
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise PluginError(f"{who} must give a finite number as score, not {shown(score)}")
    if not isinstance(flagged, bool):
        raise PluginError(f"{who} must say flagged=True or False, not {shown(flagged)}")
    return Verdict(float(score), flagged)

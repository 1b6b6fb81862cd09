"""detect: a defender judges an encoder with a few clean images, or the owner of a classifier on it judges the
classifier with a few labelled ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchbd.base.errors import PluginError, shown
from benchbd.base.isolation import isolated
from benchbd.contract.context import derive_seed
from benchbd.contract.detection import Detection, TaskKnowledge, Verdict
from benchbd.contract.handover import Handover, Product
from benchbd.contract.images import ImageSet
from benchbd.contract.method import exactly
from benchbd.nets.classifier import Classifier
from benchbd.nets.encoder import Encoder
from benchbd.nets.head import Head
from benchbd.stages import prepare
from benchbd.stages.base import Outcome, Stage, forwards
from benchbd.stages.clean import Suspect, attachments_of, hand_over_clean, knowledge_of, plan_clean
from benchbd.stages.head import read_head
from benchbd.stages.inputs import Inputs, alone, draw_rows, handover
from benchbd.stages.prepare import PREPARED
from benchbd.stages.sources import Sources

__all__ = ["accept", "alike", "forwards", "hand_over", "plan", "work"]

alike = alone


def plan(sources: Sources, detection: Detection, suspect: Suspect, departures: Iterable[str]) -> Stage:
    """The stage of an inspection of an encoder, or of the classifier on it, after the detector's ``prepare`` stage."""
    published, clean, seed, departures = suspect.published, suspect.clean, suspect.seed, list(departures)
    parents = {"encoder": published}
    if detection.prepares:
        arch = published.architecture
        parents["prepared"] = prepare.plan(sources, detection, arch, clean, suspect.first_seed, departures)
    if (head := suspect.head) is None:
        of, data, params = published.label, {"pool": sources.ref(clean.pool, "pool")}, plan_clean(sources, clean, seed)
        attachments, departures = attachments_of(clean), [*departures, *clean.departures]
    else:
        train = head.data["train"]
        of, data, params = head.label, {"train": train}, {"task": _drawn(train.count, suspect.images, seed)}
        parents["head"], attachments = head, {}
    return sources.stage(
        "detect",
        f"{detection.name} on {of}",
        detection,
        derive_seed(seed, "detect"),
        data=data,
        params=params,
        parents=parents,
        architecture=published.architecture,
        departures=departures,
        attachments=attachments,
    )


def _drawn(count: int, images: int, seed: int) -> dict[str, int]:
    """The number of training images of a task to draw, and the seed; all images if there are no more."""
    return {"count": min(images, count) if count else images, "seed": derive_seed(seed, "task")}


def hand_over(stages: Sequence[Stage], inputs: Inputs) -> Handover:
    (stage,) = stages
    if "head" not in stage.parents:
        return with_prepared(hand_over_clean(stage, inputs, {}), stage, inputs)
    train = inputs.images(stage.data["train"])
    own = train.subset(draw_rows(len(train), stage.params["task"]))
    assert own.labels is not None
    made_with, head = read_head(inputs.fetch(stage.parents["head"]))
    handed = handover(
        stage,
        json={"head": made_with},
        tensors={"images": own.pixels, "labels": own.labels, **{f"head.{name}": part for name, part in head.items()}},
        encoders={"given": inputs.encoder(stage.parents["encoder"])},
    )
    return with_prepared(handed, stage, inputs)


def with_prepared(handed: Handover, stage: Stage, inputs: Inputs) -> Handover:
    """The handover, with the tensors that the detector prepared, if it did."""
    if "prepared" not in stage.parents:
        return handed
    prepared = load_file(inputs.fetch(stage.parents["prepared"]).blob(PREPARED))
    return replace(handed, tensors={**handed.tensors, **{f"prepared.{name}": part for name, part in prepared.items()}})


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    method: Detection = methods["own"]
    encoder, who = Encoder.from_bytes(handed.encoders["given"], device).copy(), f"detector {method.name}"
    prepared = {name: part.to(device) for name, part in _inside(handed, "prepared.").items()}
    suspect: Any = encoder
    knowledge: Any = replace(knowledge_of(handed, device), prepared=prepared)
    if "head" in handed.json:
        head = Head(**handed.json["head"])
        head.load_state_dict(_inside(handed, "head."))
        images = ImageSet(handed.tensors["images"], handed.tensors["labels"]).to(device)
        suspect, knowledge = Classifier(encoder, head), TaskKnowledge(images, handed.seed, prepared)
    with isolated(who):
        verdict = method.inspect(suspect, knowledge)
    verdict = checked_verdict(verdict, who)
    return Product(json={"score": verdict.score, "flagged": verdict.flagged})


def _inside(handed: Handover, start: str) -> dict[str, Tensor]:
    """The tensors whose names have this prefix, by the rest of the name."""
    return {name.removeprefix(start): part for name, part in handed.tensors.items() if name.startswith(start)}


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

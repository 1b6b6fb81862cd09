"""detect: a defender judges an encoder with a few clean images, or the owner of a classifier on it judges the
classifier with a few labelled ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchbd.base.errors import PluginError, shown
from benchbd.base.isolation import isolated
from benchbd.base.seeds import derive_seed
from benchbd.contract.defense import DefenderKnowledge
from benchbd.contract.detection import Detection, TaskKnowledge, Verdict
from benchbd.contract.handover import Handover, Product
from benchbd.contract.images import ImageSet
from benchbd.contract.method import exactly
from benchbd.nets.classifier import Classifier
from benchbd.nets.encoder import Encoder
from benchbd.nets.head import Head
from benchbd.stages import base, prepare
from benchbd.stages.base import Outcome, Stage
from benchbd.stages.clean import Suspect, hand_over_clean, plan_clean
from benchbd.stages.head import HEAD
from benchbd.stages.inputs import Inputs, alone, draw_rows, handover, images_from, inside, prefixed
from benchbd.stages.prepare import PREPARED
from benchbd.stages.sources import Sources

alike, forwards = alone, base.forwards


def plan(sources: Sources, detection: Detection, suspect: Suspect, departures: Iterable[str]) -> Stage:
    """The stage of an inspection of an encoder, or of the classifier on it, after the detector's ``prepare`` stage."""
    published, clean, seed, told = suspect.published, suspect.clean, suspect.seed, list(departures)
    arch, head = published.architecture, suspect.head
    prepared = prepare.plan(sources, detection, arch, clean, suspect.first_seed, told) if detection.prepares else None
    parents = {"encoder": published, "prepared": prepared, "head": head}
    if head is None:
        label = f"{detection.name} on {published.label}"
        return plan_clean(sources, "detect", label, detection, clean, seed, told, parents, arch)
    train, label = head.data["train"], f"{detection.name} on {head.label}"
    count = min(suspect.images, train.count or suspect.images)  # all images if there are fewer; 0: not known yet
    params = {"task": {"count": count, "seed": derive_seed(seed, "task")}}
    return sources.stage("detect", label, detection, seed, told, data={"train": train}, params=params, parents=parents)


def hand_over(inputs: Inputs, stage: Stage) -> Handover:
    """A defender's input, or the classifier and labelled images of its task; and the tensors that the detector
    prepared, if it did. Classes have no names."""
    if (head := stage.parents.get("head")) is None:
        handed = hand_over_clean(inputs, stage)
    else:
        train = inputs.images(stage.data["train"])
        own = train.subset(draw_rows(len(train), stage.params["task"]))
        handed = handover(
            stage,
            json={"head": {**inputs.fetch(head).result, "classes": []}},
            images={"images": ImageSet(own.pixels, own.labels)},
            tensors=prefixed("head", inputs.tensors(head, HEAD)),
            encoders={"given": inputs.encoder(stage.parents["encoder"])},
        )
    if (prepared := stage.parents.get("prepared")) is None:
        return handed
    return replace(handed, tensors={**handed.tensors, **prefixed("prepared", inputs.tensors(prepared, PREPARED))})


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    method: Detection = methods["own"]
    encoder, who = Encoder.from_bytes(handed.encoders["given"], device).copy(), f"detector {method.name}"
    prepared = {name: part.to(device) for name, part in inside("prepared", handed.tensors).items()}
    images = images_from(handed, "images", device)
    suspect: Any = encoder
    knowledge: Any = DefenderKnowledge(images, handed.seed, prepared)
    if "head" in handed.json:
        head = Head(**handed.json["head"])
        head.load_state_dict(inside("head", handed.tensors))
        suspect, knowledge = Classifier(encoder, head), TaskKnowledge(images, handed.seed, prepared)
    with isolated(who):
        verdict = method.inspect(suspect, knowledge)
    return Product(json=vars(checked_verdict(verdict, who)))


def accept(inputs: Inputs, product: Product, stage: Stage) -> list[Outcome]:
    verdict = Verdict(product.json.get("score", ""), product.json.get("flagged", ""))
    return [Outcome({}, vars(checked_verdict(verdict, f"detector {stage.method_name}")))]


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

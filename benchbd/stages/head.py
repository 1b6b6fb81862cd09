"""head: the classifier that an evaluator trains on an encoder's features, as an object for detectors of classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchbd.base.errors import Diverged, PluginError
from benchbd.base.isolation import isolated
from benchbd.contract.context import derive_seed
from benchbd.contract.evaluator import Evaluator, Probe
from benchbd.contract.handover import Handover, Product
from benchbd.contract.method import exactly
from benchbd.nets.encoder import Encoder
from benchbd.nets.head import Head
from benchbd.stages.base import Outcome, Stage
from benchbd.stages.inputs import Inputs, alone, facts_of, handover, images_from
from benchbd.stages.sources import Sources
from benchbd.stages.task import Task
from benchbd.store.artifact import Artifact

HEAD = "head.safetensors"

alike = alone


def plan(
    sources: Sources, evaluator: Evaluator, encoder: Stage, task: Task, seed: int, departures: Iterable[str]
) -> Stage:
    """The stage of a classifier on another stage's encoder, on one task; trained like the one in ``evaluate``."""
    return sources.stage(
        "head",
        f"{evaluator.name} {task} seed {seed} of {encoder.label}",
        evaluator,
        derive_seed(seed, "evaluate"),
        data={"train": sources.ref(task.name, "train")},
        params={},
        parents={"encoder": encoder},
        architecture=encoder.architecture,
        departures=departures,
    )


def hand_over(stages: Sequence[Stage], inputs: Inputs) -> Handover:
    (stage,) = stages
    train = inputs.images(stage.data["train"])
    assert train.labels is not None
    return handover(
        stage,
        json={"train": facts_of(train)},
        tensors={"train": train.pixels, "labels": train.labels},
        encoders={"encoder": inputs.encoder(stage.parents["encoder"])},
    )


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    evaluator: Evaluator = methods["own"]
    train = images_from(handed.json["train"], handed.tensors["train"], handed.tensors["labels"], device)
    encoder, none = Encoder.from_bytes(handed.encoders["encoder"], device).frozen(), train.pixels[:0]
    with isolated(who := f"evaluator {evaluator.name}"):
        given = evaluator.head(Probe(encoder, train, test=none, triggered=none, seed=handed.seed))
    head = exactly(Head, given, who)
    tensors = {name: part.detach().cpu().contiguous() for name, part in head.state_dict().items()}
    return Product(json=head.options(), tensors=tensors)


def accept(stages: Sequence[Stage], product: Product, inputs: Inputs) -> list[Outcome]:
    (stage,) = stages
    classes, sizes = len(inputs.images(stage.data["train"]).classes), product.json["sizes"]
    if sizes[-1] != classes:
        raise PluginError(f"evaluator {stage.method_name} must give a head of {classes} classes, not {sizes[-1]}")
    if not all(part.isfinite().all() for part in product.tensors.values()):
        raise Diverged("the weights of the head are not finite")
    return [Outcome({HEAD: partial(save_file, dict(product.tensors))}, dict(product.json))]


def forwards(stage: Stage) -> int | None:
    """The cost of the features of the training split."""
    return stage.data["train"].count or None


def read_head(artifact: Artifact) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of a head, without names of classes, and its tensors."""
    return {**artifact.result, "classes": []}, load_file(artifact.blob(HEAD))

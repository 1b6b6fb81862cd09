"""reference: choose the attacker's reference inputs, images of which a clean classifier is most certain. The harness
does this work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchbd.base.errors import PluginError, UsageError
from benchbd.contract.handover import Handover, Product
from benchbd.contract.images import content_digest
from benchbd.contract.specs import ReferenceSpec
from benchbd.nets.encoder import Encoder
from benchbd.stages.base import REFERENCES, Outcome, Stage
from benchbd.stages.inputs import Inputs, alone, handover, images_from, training_forwards
from benchbd.stages.sources import Sources
from benchbd.stages.task import Task
from benchbd.toolkit.references import choose_references

alike, forwards = alone, training_forwards


def plan(
    sources: Sources,
    spec: ReferenceSpec,
    given: Tensor | None,
    task: Task,
    seed: int,
    clean: Stage,
    departures: Iterable[str],
) -> Stage:
    """The stage of a task's reference inputs, chosen by a ``pretrain`` stage's encoder. given: those of a file."""
    train = sources.info(task.name, "train")
    if given is None and not train.absent and spec.count > (most := train.histogram[task.label]):
        raise UsageError(
            f"reference.count: {spec.count} reference inputs are asked for, and the class {task.target} of "
            f"{task.name} has {most} training images, about half of which are held out for them"
        )
    label, data = f"{task} on {clean.data['pool'].name} seed {seed}", {"train": sources.ref(task.name, "train")}
    params: dict[str, Any] = {"target": task.label, "count": spec.count, "file": None}
    if given is not None:
        params |= {"count": len(given), "file": content_digest(given, None, ())}
    keyed = spec.model_copy(update={"file": None})  # a file is identified by its content
    parents, attached = {"encoder": clean}, {} if given is None else {"references": given}
    return sources.stage(
        "reference", label, keyed, seed, departures, data=data, parents=parents, params=params, attached=attached
    )


def hand_over(inputs: Inputs, stage: Stage) -> Handover:
    given = stage.attachments.get("references")
    if given is not None and content_digest(given, None, ()) != stage.params["file"]:
        raise PluginError("the reference inputs were changed in memory by a plugin; run without it")
    return handover(
        stage,
        json={"target": stage.params["target"], "count": stage.params["count"]},
        images={"train": inputs.images(stage.data["train"])},
        tensors={} if given is None else {"given": given},
        encoders={"clean": inputs.encoder(stage.parents["encoder"])},
    )


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    given = handed.tensors.get("given")
    choice = choose_references(
        Encoder.from_bytes(handed.encoders["clean"], device),
        images_from(handed, "train", device),
        target=handed.json["target"],
        count=handed.json["count"],
        seed=handed.seed,
        given=None if given is None else given.to(device),
    )
    told = {
        "reference": "train_split" if given is None else "file",
        "rows": choice.rows,
        "predicted": choice.predicted,
        "probability": choice.probability,
    }
    return Product(json=told, tensors={"pixels": choice.pixels.cpu().contiguous()})


def accept(inputs: Inputs, product: Product, stage: Stage) -> list[Outcome]:
    return [Outcome.of_tensors(REFERENCES, product.tensors, product.json)]

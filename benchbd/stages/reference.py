"""reference: choose the attacker's reference inputs, images of which a clean classifier is most certain. The harness
does this work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchbd.base.errors import PluginError, UsageError
from benchbd.contract.context import derive_seed
from benchbd.contract.handover import Handover, Product
from benchbd.contract.images import content_digest
from benchbd.contract.specs import ReferenceSpec
from benchbd.nets.encoder import Encoder
from benchbd.stages.base import REFERENCES, Outcome, Stage
from benchbd.stages.inputs import Inputs, alone, facts_of, handover, images_from
from benchbd.stages.sources import Sources
from benchbd.stages.task import Task
from benchbd.toolkit.references import choose_references

alike = alone


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
    digest = None if given is None else content_digest(given, None, ())
    return sources.stage(
        "reference",
        f"{task} on {clean.data['pool'].name} seed {seed}",
        spec.model_copy(update={"file": None}),  # a file is identified by its content
        derive_seed(seed, "reference"),
        data={"train": sources.ref(task.name, "train")},
        params={"target": task.label, "count": spec.count if given is None else len(given), "file": digest},
        parents={"encoder": clean},
        architecture=clean.architecture,
        departures=departures,
        attachments={} if given is None else {"references": given},
    )


def hand_over(stages: Sequence[Stage], inputs: Inputs) -> Handover:
    (stage,) = stages
    train = inputs.images(stage.data["train"])
    assert train.labels is not None
    tensors = {"train": train.pixels, "labels": train.labels}
    if (given := stage.attachments.get("references")) is not None:
        if content_digest(given, None, ()) != stage.params["file"]:
            raise PluginError("the reference inputs were changed in memory by a plugin; run without it")
        tensors["given"] = given
    return handover(
        stage,
        json={"train": facts_of(train), "target": stage.params["target"], "count": stage.params["count"]},
        tensors=tensors,
        encoders={"clean": inputs.encoder(stage.parents["encoder"])},
    )


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    given = handed.tensors.get("given")
    choice = choose_references(
        Encoder.from_bytes(handed.encoders["clean"], device),
        images_from(handed.json["train"], handed.tensors["train"], handed.tensors["labels"], device),
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


def accept(stages: Sequence[Stage], product: Product, inputs: Inputs) -> list[Outcome]:
    tensors = dict(product.tensors)
    return [Outcome({REFERENCES: lambda path: save_file(tensors, path)}, dict(product.json))]


def forwards(stage: Stage) -> int | None:
    """The cost of the features of the training split."""
    return stage.data["train"].count or None

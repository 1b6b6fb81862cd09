"""reference: the attacker's reference inputs, images that a clean classifier is surest of. The harness's own work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchbd.base.errors import DataError, PluginError, UsageError
from benchbd.contract.context import derive_seed, stream
from benchbd.contract.encoder import Encoder
from benchbd.contract.handover import Handover, Product
from benchbd.contract.images import ImageSet, content_digest
from benchbd.contract.specs import ReferenceSpec
from benchbd.stages.base import REFERENCES, Outcome, Stage
from benchbd.stages.inputs import Inputs, alone, facts_of, handover, images_from
from benchbd.stages.sources import Sources
from benchbd.stages.task import Task
from benchbd.toolkit.heads import train_head

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
    """Of one task, by the clean encoder of a ``pretrain`` stage. given: the reference inputs of the file, if any."""
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
        spec.model_copy(update={"file": None}),  # a file is identified by what is in it
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
    """Features of the training split."""
    return stage.data["train"].count or None


@dataclass(frozen=True)
class ReferenceChoice:
    """pixels: uint8 (r, 3, H, W); rows: their rows in the training split (empty for a file's); predicted: the clean
    classifier's class for each; probability: what it gives the target, 0..1."""

    pixels: Tensor
    rows: list[int]
    predicted: list[int]
    probability: list[float]


def choose_references(
    encoder: Encoder, train: ImageSet, *, target: int, count: int, seed: int, given: Tensor | None = None
) -> ReferenceChoice:
    """The ``count`` target images of a half of ``train`` that a head fitted on the other half is surest of.

    given: uint8 (r, 3, H, W), reference inputs from elsewhere; they are only classified.
    The source study chose the same way; the papers collect reference inputs from elsewhere.
    DataError below 3 images, since features are standardised over the fitted half and one has no deviation, and if
    fewer images of the target are held out than are asked for.
    """
    assert train.labels is not None
    if len(train) < 3:
        raise DataError(f"reference inputs are chosen from at least 3 training images, not {len(train)}")
    features = F.normalize(encoder.extract(train.pixels), dim=1)
    order = torch.randperm(len(train), generator=stream(seed, "halves")).to(features.device)
    fitted, held_out = order.chunk(2)
    mean, std = features[fitted].mean(0), features[fitted].std(0) + 1e-5
    classes = int(train.labels.max()) + 1
    head = _fit_head((features[fitted] - mean) / std, train.labels[fitted], classes, seed)

    @torch.no_grad()
    def judge(candidates: Tensor) -> Tensor:
        logits: Tensor = head((candidates - mean) / std)
        return logits.softmax(1)

    if given is not None:
        rows, pixels, probability = [], given, judge(F.normalize(encoder.extract(given), dim=1))
    else:
        own = held_out[train.labels[held_out] == target]
        own = own if len(own) else (train.labels == target).nonzero()[:, 0]
        if count > len(own):
            raise DataError(f"{count} reference inputs are asked for, and {len(own)} images of the target are held out")
        probability = judge(features[own])
        best = probability[:, target].topk(count).indices
        rows, pixels, probability = own[best].tolist(), train.pixels[own[best]], probability[best]
    return ReferenceChoice(
        pixels=pixels,
        rows=rows,
        predicted=probability.argmax(1).tolist(),
        probability=[round(p, 4) for p in probability[:, target].tolist()],
    )


def _fit_head(features: Tensor, labels: Tensor, classes: int, seed: int) -> nn.Module:
    """A small two-layer classifier on standardised features, deterministic by seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        head = nn.Sequential(nn.Linear(features.shape[1], 256), nn.ReLU(), nn.Linear(256, classes))
    head.to(features.device)
    optimizer = torch.optim.Adam(head.parameters(), 1e-3, weight_decay=1e-4)
    train_head(head, optimizer, features, labels, epochs=30, batch=256, order=stream(seed, "order"))
    return head.eval()

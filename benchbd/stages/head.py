"""head: the classifier that an evaluator trains on an encoder's features, as an object for detectors of classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from benchbd.base.errors import Diverged, PluginError
from benchbd.base.isolation import isolated
from benchbd.contract.evaluator import Evaluator, Probe
from benchbd.contract.handover import Handover, Product
from benchbd.contract.method import exactly
from benchbd.nets.encoder import Encoder
from benchbd.nets.head import Head
from benchbd.stages.base import Outcome, Stage
from benchbd.stages.evaluate import Trial
from benchbd.stages.inputs import Inputs, alone, handover, images_from, training_forwards, training_images
from benchbd.stages.sources import Sources

HEAD = "head.safetensors"

alike, forwards = alone, training_forwards


def plan(sources: Sources, evaluator: Evaluator, encoder: Stage, trial: Trial, departures: Iterable[str]) -> Stage:
    """The stage of a classifier on another stage's encoder, on one task; trained like the first one in ``evaluate``."""
    task, seed, parents = trial.task, trial.seed, {"encoder": encoder, "reference": trial.apart}
    label, data = f"{evaluator.name} {task} seed {seed} of {encoder.label}", {"train": sources.ref(task.name, "train")}
    return sources.stage("head", label, evaluator, seed, departures, data=data, parents=parents, draws_as="evaluate")


def hand_over(inputs: Inputs, stage: Stage) -> Handover:
    encoders = {"encoder": inputs.encoder(stage.parents["encoder"])}
    return handover(stage, images={"train": training_images(inputs, stage)}, encoders=encoders)


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    evaluator: Evaluator = methods["own"]
    train = images_from(handed, "train", device)
    encoder, none = Encoder.from_bytes(handed.encoders["encoder"], device).frozen(), train.pixels[:0]
    with isolated(who := f"evaluator {evaluator.name}"):
        given = evaluator.head(Probe(encoder, train, test=none, triggered=none, seed=handed.seed))
    head = checked_head(given, encoder.feature_dim, len(train.classes), who)
    tensors = {name: part.detach().cpu().contiguous() for name, part in head.state_dict().items()}
    return Product(json=head.options(), tensors=tensors)


def accept(inputs: Inputs, product: Product, stage: Stage) -> list[Outcome]:
    head, classes = Head(**product.json), len(inputs.images(stage.data["train"]).classes)
    head.load_state_dict(dict(product.tensors))
    checked_head(head, head.sizes[0], classes, f"evaluator {stage.method_name}")
    return [Outcome.of_tensors(HEAD, product.tensors, product.json)]


def checked_head(given: object, features: int, classes: int, who: str) -> Head:
    """The head that an evaluator gives. PluginError unless it is a ``Head`` of these sizes; Diverged if a weight is not
    finite."""
    head = exactly(Head, given, who)
    if (head.sizes[0], head.sizes[-1]) != (features, classes):
        raise PluginError(f"{who} must give a head of {features} features and {classes} classes, not {head.sizes}")
    if not all(part.isfinite().all() for part in head.state_dict().values()):
        raise Diverged("the weights of the head are not finite")
    return head

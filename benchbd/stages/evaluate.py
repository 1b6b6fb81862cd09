"""evaluate: train a downstream classifier on an encoder's features and predict test images, with the trigger and
without."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchbd.base.content import canonical
from benchbd.base.errors import PluginError
from benchbd.base.isolation import isolated
from benchbd.contract.context import derive_seed, stream
from benchbd.contract.evaluator import Evaluator, Predictions, Probe
from benchbd.contract.handover import Handover, Product
from benchbd.contract.method import exactly
from benchbd.contract.trigger import Trigger
from benchbd.nets.encoder import Encoder
from benchbd.stages.base import PREDICTIONS, Outcome, Stage
from benchbd.stages.inputs import Inputs, facts_of, handover, images_from, verified
from benchbd.stages.sources import Sources
from benchbd.stages.task import Task
from benchbd.store.artifact import Artifact


def plan(
    sources: Sources,
    evaluator: Evaluator,
    encoder: Stage,
    task: Task,
    seed: int,
    trigger: Trigger,
    departures: Iterable[str],
) -> Stage:
    """The stage of an evaluation of another stage's encoder on one task, whose test images get the trigger."""
    return sources.stage(
        "evaluate",
        f"{evaluator.name} {task} seed {seed} of {encoder.label}",
        evaluator,
        derive_seed(seed, "evaluate"),
        data={"train": sources.ref(task.name, "train"), "test": sources.ref(task.name, "test")},
        params={"trigger": trigger.digest},
        parents={"encoder": encoder},
        architecture=encoder.architecture,
        departures=departures,
        attachments={"trigger": trigger},
    )


def alike(stage: Stage, inputs: Inputs) -> Hashable | None:
    """Evaluator, data and architecture: evaluations in which they are equal are trained together if that is faster."""
    arch = inputs.fetch(stage.parents["encoder"]).result["arch"]
    return canonical(stage.identity["method"]), stage.data["train"].digest, stage.data["test"].digest, arch


def hand_over(stages: Sequence[Stage], inputs: Inputs) -> Handover:
    """One handover for all: they share the images, and those with one trigger and seed the triggered ones too."""
    first = stages[0]
    train, test = inputs.images(first.data["train"]), inputs.images(first.data["test"]).pixels
    assert train.labels is not None
    triggered: dict[tuple[str, int], str] = {}
    tensors = {"train": train.pixels, "labels": train.labels, "test": test}
    members = []
    for number, stage in enumerate(stages):
        place = (stage.params["trigger"], stage.seed)
        if place not in triggered:
            # A trigger's random numbers come from the stage's own seed, whatever else is evaluated.
            triggered[place] = f"triggered{len(triggered)}"
            trigger = verified(stage.attachments["trigger"], stage.params["trigger"])
            with isolated("the trigger"):  # kind function is a plugin's code
                tensors[triggered[place]] = trigger.stamp(test, stream(stage.seed, "positions"))
        members.append({"encoder": f"encoder{number}", "triggered": triggered[place], "seed": stage.seed})
    return handover(
        first,
        json={"train": facts_of(train), "members": members},
        tensors=tensors,
        encoders={f"encoder{number}": inputs.encoder(stage.parents["encoder"]) for number, stage in enumerate(stages)},
    )


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    evaluator: Evaluator = methods["own"]
    members = handed.json["members"]
    train = images_from(handed.json["train"], handed.tensors["train"], handed.tensors["labels"], device)
    names = {"test", *(member["triggered"] for member in members)}
    shown = {name: handed.tensors[name].to(device) for name in sorted(names)}
    # The probes share the images: an evaluator that writes to them affects only its own probes.
    probes = [
        Probe(
            encoder=Encoder.from_bytes(handed.encoders[member["encoder"]], device).frozen(),
            train=train,
            test=shown["test"],
            triggered=shown[member["triggered"]],
            seed=member["seed"],
        )
        for member in members
    ]
    images = len(handed.tensors["test"])
    with isolated(who := f"evaluator {evaluator.name}"):
        given = evaluator.evaluate_together(probes)
    results = evaluated_together(given, len(probes), who)
    tensors: dict[str, Tensor] = {}
    for number, result in enumerate(results):
        predictions = checked_predictions(result, images, len(train.classes), who)
        tensors |= {f"{name}{number}": values for name, values in predictions.items()}
    return Product(tensors=tensors)


def accept(stages: Sequence[Stage], product: Product, inputs: Inputs) -> list[Outcome]:
    outcomes = []
    for number, stage in enumerate(stages):
        classes = len(inputs.images(stage.data["train"]).classes)
        names = [each.name for each in fields(Predictions) if f"{each.name}{number}" in product.tensors]
        given = Predictions(**{name: product.tensors[f"{name}{number}"] for name in names})
        who = f"evaluator {stage.method_name}"
        tensors = checked_predictions(given, stage.data["test"].count, classes, who)
        outcomes.append(Outcome({PREDICTIONS: partial(save_file, tensors)}, {}))
    return outcomes


def forwards(stage: Stage) -> int | None:
    """The cost of feature extraction; the head takes no encoder forwards."""
    train, test = stage.data["train"].count, stage.data["test"].count
    return train + 2 * test if train and test else None


def read_predictions(artifact: Artifact) -> Predictions:
    return Predictions(**load_file(artifact.blob(PREDICTIONS)))


def checked_predictions(predictions: object, images: int, classes: int, who: str) -> dict[str, Tensor]:
    """Copies of the predictions, by name; PluginError if they are no int64 (images,) of classes. If the evaluator
    certifies, ``certified``, bool (images,), is among them."""
    predictions = exactly(Predictions, predictions, who)
    tensors = {"clean": predictions.clean, "triggered": predictions.triggered}
    if predictions.certified is not None:
        tensors["certified"] = predictions.certified
    for name, values in tensors.items():
        kind = "bool" if name == "certified" else "int64"
        if not isinstance(values, Tensor):
            raise PluginError(f"{who} must give {name} predictions as a tensor, not {type(values).__name__}")
        if values.dtype != getattr(torch, kind) or values.shape != (images,):
            raise PluginError(
                f"{who} must give {name} predictions as {kind} ({images},), not {values.dtype} {tuple(values.shape)}"
            )
        if name != "certified" and images and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise PluginError(f"{who} must give {name} predictions from 0 to {classes - 1}, the classes")
    return {name: values.cpu().clone() for name, values in tensors.items()}  # a file takes no shared storage


def evaluated_together(results: object, probes: int, who: str) -> list[object]:
    """An evaluator's results for several probes; PluginError if they are no list of one result per probe."""
    if not isinstance(results, list | tuple):
        raise PluginError(f"{who} must give a list from evaluate_together, not {type(results).__name__}")
    if len(results) != probes:
        raise PluginError(f"{who} must give {probes} results for {probes} probes, not {len(results)}")
    return list(results)

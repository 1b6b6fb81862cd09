"""evaluate: train a downstream classifier on an encoder's features and predict test images, with the trigger and
without."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchbd.base.content import canonical
from benchbd.base.errors import PluginError
from benchbd.base.isolation import isolated
from benchbd.base.seeds import derive_seed
from benchbd.contract.context import stream
from benchbd.contract.evaluator import Evaluator, Predictions, Probe
from benchbd.contract.handover import Handover, Product
from benchbd.contract.method import exactly
from benchbd.contract.trigger import Trigger
from benchbd.nets.encoder import Encoder
from benchbd.stages.base import PREDICTIONS, Outcome, Stage
from benchbd.stages.inputs import Inputs, handover, images_from, inside, prefixed, training_images, verified
from benchbd.stages.sources import Sources
from benchbd.stages.task import Task
from benchbd.store.artifact import Artifact


class Trial(NamedTuple):
    """The conditions under which encoders are judged: the task, the trigger of its test images, the run seed.

    apart: the stage whose reference inputs no head is trained on; None if heads are trained on all images.
    heads: the number of heads that judge, because figures of one are largely its chance; 1 is not in the identity.
    """

    task: Task
    trigger: Trigger
    seed: int
    apart: Stage | None = None
    heads: int = 1


def plan(sources: Sources, evaluator: Evaluator, encoder: Stage, trial: Trial, departures: Iterable[str]) -> Stage:
    """The stage of an evaluation of another stage's encoder on one task, whose test images get the trigger."""
    task, trigger, seed, apart, heads = trial
    label, parents = f"{evaluator.name} {task} seed {seed} of {encoder.label}", {"encoder": encoder, "reference": apart}
    data = {split: sources.ref(task.name, split) for split in ("train", "test")}
    params, attached = {"trigger": trigger.digest, **({"heads": heads} if heads > 1 else {})}, {"triggers": (trigger,)}
    return sources.stage(
        "evaluate", label, evaluator, seed, departures, data=data, parents=parents, params=params, attached=attached
    )


def alike(stage: Stage, inputs: Inputs) -> Hashable | None:
    """Evaluator, data and architecture: evaluations in which they are equal are trained together if that is faster."""
    arch, reference = inputs.fetch(stage.parents["encoder"]).result["arch"], stage.parents.get("reference")
    own = canonical(stage.identity["method"]), stage.params.get("heads"), reference and reference.key
    return *own, *(ref.digest for ref in stage.data.values()), arch


def hand_over(inputs: Inputs, *stages: Stage) -> Handover:
    """One handover for all: they share the images, and those with one trigger and seed the triggered ones too."""
    first, test = stages[0], inputs.images(stages[0].data["test"]).pixels
    shown, triggered, members = {"test": test}, dict[tuple[str, int], str](), []
    for number, stage in enumerate(stages):
        place = (stage.params["trigger"], stage.seed)
        if place not in triggered:
            # A trigger's random numbers come from the stage's own seed, whatever else is evaluated.
            triggered[place] = f"triggered{len(triggered)}"
            trigger = verified(stage.attachments["triggers"][0], stage.params["trigger"])
            with isolated("the trigger"):  # kind function is a plugin's code
                shown[triggered[place]] = trigger.stamp(test, stream(stage.seed, "positions"))
        # The first head's seed is the stage's, as in ``head``.
        seeds = [stage.seed, *(derive_seed(stage.seed, f"head{n}") for n in range(1, stage.params.get("heads", 1)))]
        members += [{"encoder": f"encoder{number}", "triggered": triggered[place], "seed": seed} for seed in seeds]
    return handover(
        first,
        json={"members": members},
        images={"train": training_images(inputs, first)},
        tensors=shown,
        encoders={f"encoder{number}": inputs.encoder(stage.parents["encoder"]) for number, stage in enumerate(stages)},
    )


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    evaluator: Evaluator = methods["own"]
    train = images_from(handed, "train", device)
    shown = {name: images.to(device) for name, images in handed.tensors.items() if not name.startswith("train")}
    # The probes share the images: an evaluator that writes to them affects only its own probes.
    encoders = {name: Encoder.from_bytes(content, device).frozen() for name, content in handed.encoders.items()}
    probes = [
        Probe(encoders[member["encoder"]], train, shown["test"], shown[member["triggered"]], member["seed"])
        for member in handed.json["members"]
    ]
    with isolated(who := f"evaluator {evaluator.name}"):
        given = evaluator.evaluate_together(probes)
    results = evaluated_together(given, len(probes), who)
    heads = [checked_predictions(result, len(shown["test"]), len(train.classes), who) for result in results]
    tensors: dict[str, Tensor] = {}
    for name in encoders:
        own = [head for head, member in zip(heads, handed.json["members"], strict=True) if member["encoder"] == name]
        if len({*map(tuple, own)}) > 1:
            raise PluginError(f"{who} must certify the predictions of all heads, or of none")
        tensors |= prefixed(name, {part: torch.cat([head[part] for head in own]) for part in own[0]})
    return Product(tensors=tensors)


def accept(inputs: Inputs, product: Product, *stages: Stage) -> list[Outcome]:
    data, who = stages[0].data, f"evaluator {stages[0].method_name}"  # those of one handover share both
    images, classes = data["test"].count * stages[0].params.get("heads", 1), len(inputs.images(data["train"]).classes)
    given = [Predictions(**inside(f"encoder{number}", product.tensors)) for number in range(len(stages))]
    return [Outcome.of_tensors(PREDICTIONS, checked_predictions(each, images, classes, who)) for each in given]


def forwards(stage: Stage) -> int | None:
    """The cost of feature extraction; the head takes no encoder forwards."""
    train, test = stage.data["train"].count, stage.data["test"].count
    return train + 2 * test if train and test else None


def read_predictions(artifact: Artifact) -> Predictions:
    """Those of several heads stand one after the other, (heads x images,)."""
    return Predictions(**load_file(artifact.blob(PREDICTIONS)))


def checked_predictions(predictions: object, images: int, classes: int, who: str) -> dict[str, Tensor]:
    """Copies of the predictions, by name; PluginError if they are no int64 (images,) of classes. If the evaluator
    certifies, ``certified``, bool (images,), is among them."""
    predictions = exactly(Predictions, predictions, who)
    tensors = {name: part for name, part in vars(predictions).items() if name != "certified" or part is not None}
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

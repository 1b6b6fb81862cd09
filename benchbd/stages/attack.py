"""attack: turn a clean encoder into a backdoored one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchbd.base.errors import PluginError, UsageError, shown
from benchbd.base.isolation import isolated
from benchbd.base.seeds import derive_seed
from benchbd.contract.attack import Attack, AttackerKnowledge, Backdoor, Target, check_binds
from benchbd.contract.handover import Handover, Product
from benchbd.contract.images import ImageSet
from benchbd.contract.method import Method, exactly
from benchbd.contract.specs import ShadowSpec
from benchbd.contract.trigger import Trigger
from benchbd.nets.encoder import Encoder
from benchbd.stages import base, pretrain
from benchbd.stages.base import REFERENCES, DataRef, Stage
from benchbd.stages.encoders import COMPARED, accept_encoder, product_of
from benchbd.stages.inputs import Inputs, alone, draw_rows, handover, images_from, inside, prefixed, unlabeled, verified
from benchbd.stages.sources import Sources
from benchbd.stages.task import Task

accept, alike = accept_encoder, alone


def plan(
    sources: Sources,
    attack: Attack,
    clean: Stage,
    targets: Sequence[tuple[Task, Trigger, Stage]],
    seed: int,
    shadow: ShadowSpec,
    departures: Iterable[str],
) -> Stage:
    """The stage of an attack on the encoder of a ``pretrain`` stage. targets: task, trigger, ``reference`` stage of
    each.

    UsageError if the shadow set would give the attacker the test images of a task.
    """
    pool, tasks = clean.data["pool"], [task for task, *_ in targets]
    others = {} if shadow.set is None else {"shadow": _shadow(sources, shadow.set, pool, tasks)}
    trains = {f"train{i}": sources.ref(task.name, "train") for i, task in enumerate(tasks)}
    references = {f"reference{i}": reference for i, (*_, reference) in enumerate(targets)}
    aims = [
        {"data": sources.info(task.name, "train").digest, "label": task.label, "trigger": trigger.digest}
        for task, trigger, _ in targets
    ]
    params: dict[str, Any] = {"targets": aims, "pool_seed": clean.seed}
    if others.get("shadow", pool).count > shadow.images:  # if the set has no more images, all are the shadow set
        params["shadow"] = {"count": shadow.images, "seed": derive_seed(seed, "shadow")}
    return sources.stage(
        "attack",
        f"{attack.name} {pool.name} -> {' + '.join(map(str, tasks))} seed {seed}",
        attack,
        seed,
        departures,
        data={"pool": pool, **others, **trains},
        parents={"encoder": clean, **references},
        params=params,
        attached={"tasks": tasks, "triggers": [trigger for _, trigger, _ in targets]},
    )


def _shadow(sources: Sources, named: str, pool: DataRef, tasks: Sequence[Task]) -> DataRef:
    """The data set that a board names as the shadow set."""
    name, _, split = named.rpartition(":")
    shadow = sources.ref(name, split)
    for task in tasks:
        if sources.ref(task.name, "test").digest == shadow.digest:
            raise UsageError(
                f"shadow.set {shown(named)} holds the test images of task {task}: no attacker may see them; "
                f"take another set or split, such as {task.name}:train"
            )
    if shadow.size != pool.size:
        raise UsageError(
            f"shadow.set {shown(named)} has images of {shadow.size} pixels, the pool {pool.name} of {pool.size}"
        )
    return shadow


def hand_over(inputs: Inputs, stage: Stage) -> Handover:
    clean, drawn = stage.parents["encoder"], stage.params.get("shadow")
    assert isinstance(clean.method, Method)
    others, images = {"pretraining": clean.method}, {"pool": pretrain.pool_of(clean, inputs)}
    if "shadow" in stage.data:
        shadow = unlabeled(inputs.images(stage.data["shadow"]))
        images["shadow"] = shadow if drawn is None else shadow.subset(draw_rows(len(shadow), drawn))
    told, tensors = [], dict[str, Tensor]()
    for i, (task, trigger) in enumerate(zip(stage.attachments["tasks"], stage.attachments["triggers"], strict=True)):
        own = verified(trigger, stage.params["targets"][i]["trigger"])
        if own.function is not None:
            others[f"trigger{i}"] = own.function
        facts, parts = own.to_parts()
        told.append({"label": task.label, "name": task.target, "trigger": facts})
        images[f"images{i}"] = unlabeled(inputs.images(stage.data[f"train{i}"]).of_class(task.label))
        tensors |= prefixed(f"trigger{i}", parts)
        tensors[f"references{i}"] = inputs.tensors(stage.parents[f"reference{i}"], REFERENCES)["pixels"]
    encoders = {"clean": inputs.encoder(clean)}
    json = {"targets": told, "drawn": drawn, "architecture": stage.architecture, "pool_seed": stage.params["pool_seed"]}
    return handover(stage, others=others, json=json, images=images, tensors=tensors, encoders=encoders)


def work(methods: Mapping[str, Any], handed: Handover, device: torch.device) -> Product:
    method: Attack = methods["own"]
    pool = images_from(handed, "pool", device)
    targets = tuple(_target(methods, handed, i, device) for i in range(len(handed.json["targets"])))
    knowledge = AttackerKnowledge(
        encoder=Encoder.from_bytes(handed.encoders["clean"], device).copy(),
        pretraining=methods["pretraining"],
        pool=pool,
        pool_seed=handed.json["pool_seed"],
        shadow=_shadow_images(handed, unlabeled(pool), device),
        targets=targets,
        seed=handed.seed,
    )
    check_binds(method, (target.trigger for target in targets))
    digests = [target.trigger.digest for target in targets]
    seen, who = pool.pixels[:COMPARED].clone(), f"attack {method.name}"
    with isolated(who):
        backdoor = method.inject(knowledge)
    check_backdoor(backdoor, digests, who)
    return product_of(backdoor.encoder, handed.json["architecture"], seen, who)


def _shadow_images(handed: Handover, pool: ImageSet, device: torch.device) -> ImageSet:
    """The shadow images as drawn from the set that the board names; else drawn from the pool."""
    if "shadow" in handed.json:
        return images_from(handed, "shadow", device)
    drawn = handed.json["drawn"]
    return pool if drawn is None else pool.subset(draw_rows(len(pool), drawn))


def _target(methods: Mapping[str, Any], handed: Handover, i: int, device: torch.device) -> Target:
    told, function = handed.json["targets"][i], methods.get(f"trigger{i}")
    functions = {} if function is None else {function.name: type(function)}
    trigger = Trigger.from_parts(told["trigger"], inside(f"trigger{i}", handed.tensors), functions)
    return Target(
        label=told["label"],
        name=told["name"],
        trigger=trigger.to(device),
        references=handed.tensors[f"references{i}"].to(device),
        images=images_from(handed, f"images{i}", device),
    )


def check_backdoor(backdoor: object, digests: Sequence[str], who: str) -> None:
    """Raise PluginError if an attack does not return the triggers with these digests, recomputed."""
    triggers = exactly(Backdoor, backdoor, who).triggers
    if not isinstance(triggers, tuple | list):
        raise PluginError(f"{who} must return its triggers as a tuple, not {type(triggers).__name__}")
    own = [exactly(Trigger, trigger, who) for trigger in triggers]
    if any("stamp" in vars(trigger) for trigger in own):
        raise PluginError(f"{who} must return triggers without a stamp of their own, which is not used")
    if [trigger.copy("cpu").digest for trigger in own] != list(digests):  # a copy has no cached digest
        raise PluginError(f"{who} must return the triggers that it was given, unchanged and one per target")


def forwards(stage: Stage) -> int | None:
    """The attack's own estimate; for an attack that trains again, the pre-training's."""
    assert isinstance(stage.method, Attack)
    return pretrain.forwards(stage.parents["encoder"]) if stage.method.retrains else base.forwards(stage)

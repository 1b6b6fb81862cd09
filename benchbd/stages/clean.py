"""A defender's clean images of the pool, drawn once per seed for every attack and defense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from benchbd.base.errors import UsageError
from benchbd.base.isolation import isolated
from benchbd.base.seeds import derive_seed
from benchbd.contract.context import stream
from benchbd.contract.defense import DefenderKnowledge
from benchbd.contract.handover import Handover
from benchbd.contract.images import ImageSet
from benchbd.contract.method import Method
from benchbd.contract.specs import CleanSpec
from benchbd.contract.trigger import Trigger
from benchbd.stages.base import Stage
from benchbd.stages.inputs import Inputs, draw_order, draw_rows, handover, images_from, verified
from benchbd.stages.sources import Sources


@dataclass(frozen=True)
class Clean:
    """pool: the data set that the images are drawn from. spec: their number, and the share that is stamped.

    triggers: of the tasks of the row. departures: the differences from the board's.
    """

    pool: str
    spec: CleanSpec
    triggers: tuple[Trigger, ...] = ()
    departures: tuple[str, ...] = ()

    @property
    def poisoned(self) -> int:
        """The number of stamped images: the share, rounded down; as a decimal number, 0.29 of 100 is 29."""
        return int(Decimal(str(self.spec.poisoned)) * self.spec.images)


@dataclass(frozen=True)
class Suspect:
    """An encoder for a method that inspects.

    published: the stage that made it. clean: the defender's images. seed: the run seed; first_seed: the first
    one of the board.
    head, images: for a method that inspects classifiers, the stage of the head, and the maximum number of labelled
    images of its task.
    """

    published: Stage
    clean: Clean
    seed: int
    first_seed: int
    head: Stage | None = None
    images: int = 0


def plan_clean(
    sources: Sources,
    kind: str,
    label: str,
    method: Method,
    clean: Clean,
    seed: int,
    departures: Iterable[str],
    parents: Mapping[str, Stage | None],
    arch: str,
) -> Stage:
    """A stage whose method gets clean images. Its parameters: their number, and the seed of the draw; if some are
    stamped, their number, and the digests of the triggers; without an encoder, the architecture."""
    pool = sources.ref(clean.pool, "pool")
    if pool.count and clean.spec.images > pool.count:
        raise UsageError(
            f"the board gives defenders {clean.spec.images} clean images, but the pool {clean.pool} has {pool.count}"
        )
    drawn: dict[str, Any] = {"count": clean.spec.images, "seed": derive_seed(seed, "clean")}
    params: dict[str, Any] = {"clean": drawn} if parents else {"clean": drawn, "architecture": arch}
    if clean.poisoned:
        drawn["poisoned"], params["trigger"] = clean.poisoned, [trigger.digest for trigger in clean.triggers]
    told, attached = [*departures, *clean.departures], {"triggers": clean.triggers} if clean.poisoned else {}
    data = {"pool": pool}
    return sources.stage(
        kind, label, method, seed, told, data=data, parents=parents, params=params, attached=attached, arch=arch
    )


def hand_over_clean(inputs: Inputs, stage: Stage) -> Handover:
    """The encoder, if there is one, and the clean images without labels, names or the pool's declared statistics: they
    reveal neither their source nor whether or which of them are stamped."""
    parent = stage.parents.get("encoder")
    encoders = {} if parent is None else {"given": inputs.encoder(parent)}
    told = {"architecture": stage.architecture}
    return handover(stage, json=told, images={"images": clean_images(inputs, stage)}, encoders=encoders)


def clean_images(inputs: Inputs, stage: Stage) -> ImageSet:
    """The images that a defender gets, on the CPU, in the order of the pool, without all that tells their source."""
    rows = draw_rows(stage.data["pool"].count, stage.params["clean"])
    images = inputs.images(stage.data["pool"]).subset(rows).pixels  # a copy
    if "poisoned" in stage.params["clean"]:
        _poison(images, stage)
    return ImageSet(images)


def _poison(images: Tensor, stage: Stage) -> None:
    """Stamp the images that were drawn last, with several triggers the i-th image by trigger i mod t.

    The images are in the order of the pool, so its last images could all be of one class; those drawn last are
    of any class. All random numbers of a trigger come from the stage's own seed.
    """
    last = drawn_last(stage.data["pool"].count, stage.params["clean"])
    generator, digests = stream(stage.seed, "positions"), stage.params["trigger"]
    for number, (trigger, digest) in enumerate(zip(stage.attachments["triggers"], digests, strict=True)):
        own = last[number :: len(digests)]
        with isolated("the trigger"):  # kind function is a plugin's code
            images[own] = verified(trigger, digest).stamp(images[own], generator)


def drawn_last(pool: int, drawn: Mapping[str, int]) -> Tensor:
    """Positions in ``draw_rows`` of the ``poisoned`` images that were drawn last, int64, in the order of the draw."""
    order = draw_order(pool, drawn)
    return order.argsort().argsort()[len(order) - drawn["poisoned"] :]


def knowledge_of(handed: Handover, device: torch.device) -> DefenderKnowledge:
    return DefenderKnowledge(images_from(handed, "images", device), handed.seed)

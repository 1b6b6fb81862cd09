"""A board of toys, on which a method does its work as in a run: planned, handed over, carried out and accepted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchbd.base.errors import PluginError
from benchbd.contract.axes import AXIS
from benchbd.contract.context import Reporter
from benchbd.contract.dataset import Dataset
from benchbd.contract.handover import Failure, Handover, Product
from benchbd.contract.hookspecs import hookimpl
from benchbd.contract.images import ImageSet
from benchbd.contract.method import Method
from benchbd.contract.roles import Role
from benchbd.contract.specs import OF_DATA
from benchbd.data.library import DataLibrary
from benchbd.engine.executors import Inline
from benchbd.engine.runner import Runner
from benchbd.planning.board import Board
from benchbd.planning.planner import make_plan
from benchbd.planning.selection import Selection
from benchbd.registry import Registry, load_registry
from benchbd.stages.base import Stage
from benchbd.stages.kinds import KINDS
from benchbd.store.store import Store
from benchbd.testing.audit import listening
from benchbd.testing.watch import Watch
from benchbd.toolkit.toys import ToyPretraining, toy_images

CLASSES = ("toy-anteater", "toy-bumblebee", "toy-caterpillar")  # names that no other text has

TARGET = 1

log = logging.getLogger("benchbd")


class ToyTask(Dataset):
    """Toy images in an order that no two splits share."""

    name = "toy-task"
    paper = "toys"
    version = "1"
    splits = {"train": 48, "test": 24}
    needs_files = False
    classes = CLASSES

    def load(self, split: str, root: Path) -> ImageSet:
        seed = 1 + list(self.splits).index(split)
        images = replace(toy_images(self.splits[split], seed=seed), classes=self.classes)
        return images.subset(torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)))


class ToyPool(ToyTask):
    """Toy images to pre-train on."""

    name = "toy-pool"
    splits = {"train": 48, "test": 3}


TOYS = SimpleNamespace(
    benchbd_datasets=hookimpl(lambda: [ToyTask, ToyPool]), benchbd_pretrainings=hookimpl(lambda: [ToyPretraining])
)


def registry_with(cls: type[Method] | None) -> Registry:
    """The installed methods and the toys, and a class that no installed plugin offers. It logs no plugin's problem."""
    registry = _loaded(None)
    return registry if cls is None or registry.methods[cls.axis].get(cls.name) is cls else _loaded(cls)


@cache
def _loaded(cls: type[Method] | None) -> Registry:
    own = {} if cls is None else {AXIS[cls.axis].hook: hookimpl(lambda: [cls])}
    before, log.disabled = log.disabled, True
    try:
        return load_registry(extra={"toys": TOYS, **({"checked": SimpleNamespace(**own)} if own else {})})
    finally:
        log.disabled = before


@dataclass
class Work:
    """What a method was handed and made of it. forwards: those that it estimates; None if it does not."""

    handed: list[Handover] = field(default_factory=list)
    made: list[Product | Failure] = field(default_factory=list)
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    forwards: int | None = None

    def found(self) -> Iterator[str]:
        """The secrets in the bytes of what was handed over."""
        for handed in self.handed:
            content, _ = handed.pack(files=False)
            yield from (name for name, secret in self.secrets.items() if secret in content)


class _Watched(Inline):
    """Listens to the work of one method, and keeps what it was handed and made."""

    def __init__(self, registry: Registry, method: Method, watch: Watch, work: Work) -> None:
        super().__init__(registry, torch.device("cpu"))
        self.own, self.watch, self.work = (method.axis, method.name), watch, work

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        own = handed.methods.get("own")
        if own is None or (own.axis, own.name) != self.own:
            return super().submit(handed, report)
        self.work.handed.append(handed)
        with listening(self.watch.heard):
            future = super().submit(handed, report)
        self.work.made.append(future.result())
        return future


def work_of(method: Method, folder: Path, watch: Watch) -> Work:
    """The work of a method on the board of toys, in a folder of its own. The method's axis has stages.

    PluginError if the board cannot be planned with it.
    """
    registry, work = registry_with(type(method)), Work()
    datasets = {toy.name: toy() for toy in (ToyTask, ToyPool)}
    library = DataLibrary(datasets, folder / "data", folder / "cache")
    plan = make_plan(_board(method, registry), Selection(only=True, precision="fp32"), registry, library, strict=True)
    kind = AXIS[method.axis].stage
    own = next(stage for stage in plan.stages if stage.kind == kind and stage.method == method)
    executor = _Watched(registry, method, watch, work)
    runner = Runner(plan, registry, library, Store(folder / "store"), torch.device("cpu"), executor=executor)
    runner.scheduler.open([own])
    runner.scheduler.settle([own])
    if not work.made:
        raise PluginError(f"{method.name} had no work: a stage before it failed")
    work.forwards = KINDS[kind].forwards(own)
    work.secrets = _secrets(method.axis, plan.stages, library)
    return work


def _board(method: Method, registry: Registry) -> Board:
    """One attack, one defense, one encoder, the method among them with its options."""
    axes: dict[str, Any] = {"pretraining": (ToyPretraining.name,)}
    axes |= {axis: (registry.first_of_role(axis, Role.FLOOR),) for axis in ("attack", "defense")}
    axes[method.axis] = (method.name,)
    fields = {AXIS[a].field: names if AXIS[a].several else names[0] for a, names in axes.items()}
    kinds = [kind for kind in OF_DATA if kind in getattr(method, "binds", OF_DATA)]
    told = {
        **fields,
        "name": "toys",
        "rows": [{"pretrain": ToyPool.name, "tasks": [f"{ToyTask.name}:{TARGET}"]}],
        "clean": {"images": 32},
        "trigger": {"kind": kinds[0] if kinds else "patch"},
        "options": {f"{method.axis}:{method.name}": json.loads(method.model_dump_json())},
    }
    return Board.model_validate(told)


def _secrets(axis: str, stages: Sequence[Stage], library: DataLibrary) -> dict[str, bytes]:
    """What must not be in a handover to a method of the axis, as bytes, by name."""
    test = library.load(ToyTask.name, "test", 32)
    assert test.labels is not None
    if axis == "evaluator":
        return {"the labels of the test images": test.labels.numpy().tobytes()}
    found = {f"test image {number}": image.numpy().tobytes() for number, image in enumerate(test.pixels)}
    if axis != "attack":
        (trigger,) = next(stage for stage in stages if stage.kind == "evaluate").attachments["triggers"]
        found |= {"the trigger's pattern": trigger.pattern.numpy().tobytes()}
        found |= {"the trigger's place": trigger.keep.numpy().tobytes(), "the target's name": CLASSES[TARGET].encode()}
    return found

"""The sources of stages in a plan: data sets by digest and count, a board's pins of them, and the run's numerics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from benchbd.base.errors import DataAbsentError, DataError, UsageError, brief, shown
from benchbd.base.seeds import derive_seed
from benchbd.contract.method import Method
from benchbd.contract.specs import Pin
from benchbd.data.entries import ABSENT, SplitInfo
from benchbd.data.library import DataLibrary
from benchbd.stages.base import EMPTY, DataRef, Stage
from benchbd.stages.task import Task, class_index, resolve_target, split_task


class Sources:
    """Data sets as a plan uses them.

    pins: the required data sets for a run to be on-board. size: height and width of all images, in pixels.
    numerics: precision and TF32 of every stage.
    strict: whether an absent data set is a DataAbsentError; otherwise its stages get provisional keys.
    """

    def __init__(
        self, library: DataLibrary, pins: Mapping[str, Pin], size: int, numerics: Mapping[str, Any], *, strict: bool
    ) -> None:
        self.library, self.pins, self.size, self.numerics, self.strict = library, pins, size, numerics, strict
        self._infos: dict[tuple[str, str], SplitInfo] = {}

    def info(self, name: str, split: str) -> SplitInfo:
        if (name, split) not in self._infos:
            try:
                info = self.library.info(name, split, self.size)
            except DataAbsentError:
                if self.strict:
                    raise
                count = self._official_count(name, split)
                info = SplitInfo(f"{ABSENT}{name}:{split}", count, self.size, (), (), (0.5,) * 3, (0.25,) * 3)
            self._infos[name, split] = info
        return self._infos[name, split]

    def ref(self, name: str, split: str) -> DataRef:
        info = self.info(name, split)
        return DataRef(name, split, info.digest, info.count, info.size)

    def task(self, text: str) -> Task:
        """The task ``DATASET:TARGET``; a one-line error if it names no task, or no target that can be attacked."""
        name, target = split_task(text)
        if target is None:
            write = f"write {brief(text)}:TARGET, an index or a class name"
            raise UsageError(f"task {shown(text)} has no target class: {write}")
        train, test = self.info(name, "train"), self.info(name, "test")
        if train.absent:
            index = class_index(target)
            return Task(name, -1 if index is None or index < 0 else index, target)
        if train.size != test.size:
            raise DataError(f"task {name}: train images are {train.size} pixels wide, test images {test.size}")
        label, label_name = resolve_target(name, target, train.classes, len(train.histogram))
        if not train.histogram[label]:
            raise UsageError(f"task {name}: no training image of target class {label} ({label_name})")
        if test.count and sum(test.histogram) == sum(test.histogram[label : label + 1]):
            raise UsageError(f"task {name}: every test image is of target class {label} ({label_name})")
        return Task(name, label, label_name)

    def stage(
        self,
        kind: str,
        label: str,
        method: Method | BaseModel,
        seed: int,
        departures: Iterable[str],
        *,
        data: Mapping[str, DataRef],
        parents: Mapping[str, Stage | None],
        params: Mapping[str, Any] = EMPTY,
        attached: Mapping[str, Any] = EMPTY,
        arch: str | None = None,
        draws_as: str | None = None,
    ) -> Stage:
        """A stage under the run's numerics.

        seed: of the run. The stage's own is derived from it and from the kind, or from the kind ``draws_as``.
        departures: those of its method; those of its data are added here. parents: None for one that is absent.
        attached: objects whose digests are in ``params``. arch: by default that of its parent ``encoder``.
        """
        told = (*departures, *(text for ref in data.values() for text in self._off_pins(ref.name, ref.split)))
        given = {role: parent for role, parent in parents.items() if parent is not None}
        seed, arch = derive_seed(seed, draws_as or kind), arch or given["encoder"].architecture
        return Stage(kind, label, method, seed, data, params, given, self.numerics, arch, attached, told)

    def _official_count(self, name: str, split: str) -> int:
        """The number of images of an absent split, for the estimate of cost; 0 if unknown."""
        splits = dataset.splits if (dataset := self.library.known(name)) else {}
        wanted = ("train", "unlabeled") if split == "pool" else (split,)
        return sum(splits.get(part, 0) for part in wanted)

    def _off_pins(self, name: str, split: str) -> Iterator[str]:
        """The differences of a split from the board's pins; a pool is pinned by its parts."""
        pin, info = self.pins.get(name), self.info(name, split)
        if pin is None or info.absent:
            return
        pinned: int | str | None
        if split == "pool":
            parts = {part: value for part in ("train", "unlabeled") if (value := getattr(pin, part)) is not None}
            for part in [part for part, value in parts.items() if isinstance(value, str)]:
                yield from self._off_pins(name, part)
            counts = [value for value in parts.values() if isinstance(value, int)]
            pinned = sum(counts) if counts and len(counts) == len(parts) else None
        else:
            pinned = getattr(pin, split)
        actual = info.count if isinstance(pinned, int) else info.digest
        if pinned is not None and actual != pinned:
            yield f"{name} {split} is {actual}, the board pins {pinned}"

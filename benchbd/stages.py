"""Stages, and the cells and inspections of a plan, which are made of them.

A stage is one unit of work, identified by everything that determines its result and by nothing else. Stages are plain
data: a method's fields, names of data sets with their digests, seeds and parents. Equal stages have equal keys, so a
grid computes each once, and a change recomputes what stands on it and no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from benchbd.board import Board
from benchbd.data import ABSENT
from benchbd.methods import Attack, Method, Pretraining, architecture_of, forwards_of, identity_of, shortened_of
from benchbd.store import canonical

SCHEMA = 1  # raise it when a stage of the harness itself (the reference inputs, say) gives other results

Kind = Literal["pretrain", "reference", "attack", "defend", "detect", "evaluate"]


@dataclass(frozen=True)
class DataRef:
    """A split of a data set by name; its identity is the digest alone."""

    name: str
    split: str
    digest: str
    count: int

    @property
    def absent(self) -> bool:
        return self.digest.startswith(ABSENT)


@dataclass(frozen=True, eq=False)
class Stage:
    """What to compute. ``key`` is the sha256 of the identity; names of data sets and labels are not part of it.

    method: the method that does the work, or the specification of the reference inputs.
    seed: the stage's own seed, derived from the run seed and the kind alone.
    data: data sets by role. params: further JSON that determines the result. parents: stages by role.
    numerics: precision and TF32. attachments: objects (triggers, references) whose digests are in ``params``.
    departures: in what the stage itself differs from the board's; no part of the identity.
    """

    kind: Kind
    label: str
    method: Method | BaseModel
    seed: int
    data: Mapping[str, DataRef]
    params: Mapping[str, Any]
    parents: Mapping[str, Stage]
    numerics: Mapping[str, Any]
    attachments: Mapping[str, Any] = field(default_factory=dict)
    departures: tuple[str, ...] = ()

    @property
    def method_name(self) -> str:
        return self.method.name if isinstance(self.method, Method) else self.kind

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON; parents by key."""
        method = self.method
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "method": identity_of(method) if isinstance(method, Method) else method.model_dump(mode="json"),
            "seed": self.seed,
            "data": {role: ref.digest for role, ref in self.data.items()},
            "params": dict(self.params),
            "parents": {role: parent.key for role, parent in self.parents.items()},
            "numerics": dict(self.numerics),
        }

    @cached_property
    def key(self) -> str:
        """64 hex digits; the first 12 are printed."""
        return hashlib.sha256(canonical(self.identity).encode()).hexdigest()

    @cached_property
    def departed(self) -> tuple[str, ...]:
        """In what it and the stages that it stands on differ from the board's, each once."""
        above = [departure for parent in self.parents.values() for departure in parent.departed]
        return tuple(dict.fromkeys([*above, *self.departures]))

    @property
    def provisional(self) -> bool:
        """Whether some data set is absent, so that the key is a placeholder."""
        own = any(ref.absent for ref in self.data.values())
        return own or any(parent.provisional for parent in self.parents.values())

    @cached_property
    def architecture(self) -> str:
        """Of the encoder that the stage makes or looks at; PluginError where the method names none."""
        if isinstance(self.method, Pretraining):
            return architecture_of(self.method)
        return self.params.get("architecture") or self.parents["encoder"].architecture

    def forwards(self) -> int | None:
        """Estimated cost in image-forwards, where the method knows; PluginError where it says no such thing."""
        if self.kind == "evaluate":  # feature extraction; the head is not counted in encoder forwards
            train, test = self.data["train"].count, self.data["test"].count
            return train + 2 * test if train and test else None
        if not isinstance(self.method, Method):  # the reference inputs: features of the training split
            return self.data["train"].count or None
        if isinstance(self.method, Attack) and self.method.retrains:
            return self.parents["encoder"].forwards()
        return forwards_of(self.method, self._images) if self._images else None

    def shortened(self) -> str | None:
        """How far below its own length the method of this stage is cut, in a line; None where it is not. PluginError
        where the method says nothing of the sort."""
        return shortened_of(self.method, self._images) if isinstance(self.method, Method) and self._images else None

    @property
    def _images(self) -> int:
        """How many images the method trains on; 0 where nobody knows."""
        drawn = self.params.get("clean") or self.params.get("shadow") or {}
        return int(drawn.get("count", self.data["pool"].count))


def distinct(stages: Iterable[Stage]) -> list[Stage]:
    """Each stage once, parents before children, otherwise in the order given."""
    seen: dict[str, Stage] = {}

    def visit(stage: Stage) -> Iterator[Stage]:
        for parent in stage.parents.values():
            yield from visit(parent)
        yield stage

    for stage in stages:
        for each in visit(stage):
            seen.setdefault(each.key, each)
    return list(seen.values())


class Goal(NamedTuple):
    """A task with its target class, index and name."""

    task: str
    label: int
    name: str

    def __str__(self) -> str:
        return f"{self.task}:{self.label}"


@dataclass(frozen=True, eq=False)
class Cell:
    """One entry of the grid, with every stage that it needs.

    chain: the stages that lead to its encoder, in order. evaluate: its own evaluation; undefended and floor: those of
    the attacked encoder as published and of the clean encoder, under the same task, evaluator and seed.
    control: whether its attack is the control of another.
    departures: in what it differs from the board, by its own stages, place and seed; empty for an on-board cell.
    context: whether it was not asked for, but stands beside what was.
    """

    attack: str
    defense: str
    pretrain: str
    goal: Goal
    seed: int
    evaluator: str
    chain: tuple[Stage, ...]
    evaluate: Stage
    undefended: Stage
    floor: Stage
    control: bool = False
    departures: tuple[str, ...] = ()
    context: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.chain, self.evaluate, self.undefended, self.floor)

    @property
    def gated(self) -> bool:
        """Whether the cell counts only where its attack took: neither the floor nor a control is an attack."""
        return self.undefended.key != self.floor.key and not self.control


@dataclass(frozen=True, eq=False)
class Inspection:
    """One encoder before a detector.

    goals: the tasks of its row. chain: the stages that lead to it, in order. detect: the verdict.
    undefended, floors: evaluations of it and of the clean encoder, one per goal; they tell whether the attack took.
    departures: as of a cell.
    """

    detection: str
    attack: str
    pretrain: str
    goals: tuple[Goal, ...]
    seed: int
    evaluator: str
    chain: tuple[Stage, ...]
    detect: Stage
    undefended: tuple[Stage, ...]
    floors: tuple[Stage, ...]
    departures: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.chain, self.detect, *self.undefended, *self.floors)

    @property
    def gated(self) -> bool:
        """Whether the encoder counts as backdoored only where its attack took."""
        return [stage.key for stage in self.undefended] != [stage.key for stage in self.floors]


@dataclass
class Plan:
    """Cells and inspections in the order of the board."""

    board: Board
    cells: list[Cell]
    inspections: list[Inspection] = field(default_factory=list)

    @property
    def departures(self) -> list[str]:
        """In what any of them differs from the board, each once."""
        parts: list[Cell | Inspection] = [*self.cells, *self.inspections]
        return list(dict.fromkeys(text for part in parts for text in part.departures))

    @property
    def stages(self) -> list[Stage]:
        needed = [each.stages for each in self.cells] + [each.stages for each in self.inspections]
        return distinct(stage for stages in needed for stage in stages)

    def blocks(self) -> list[list[Cell]]:
        """Cells that share a pre-training set, tasks and seed: what is computed together before the next ones."""
        blocks: dict[tuple[str, str, int], list[Cell]] = {}
        for cell in self.cells:
            blocks.setdefault((cell.pretrain, cell.goal.task, cell.seed), []).append(cell)
        return list(blocks.values())

"""The cases of a plan: cells and inspections, with every stage that they need."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchbd.contract.roles import Role
from benchbd.planning.board import Board
from benchbd.stages.base import Stage, distinct
from benchbd.stages.task import Task

_PLACE = ("attack", "pretrain", "tasks", "evaluator", "defense", "beside", "axis", "method")


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """One encoder and its judge, with every stage that they need; each case gives a record.

    attack, attack_role, pretrain, seed: of the encoder.
    tasks: those that decide whether its attack took, under ``evaluator``.
    chain: the stages that lead to it, in order. judged: the last stage, which the record is about.
    undefended, floors: evaluations of the attacked encoder as published and of the clean one, one per task, under the
    same evaluator and seed.
    departures: the differences of its own stages, place and seed from the board; empty if on-board.
    point: of a sweep, value by option; empty for the board's grid.
    """

    attack: str
    attack_role: Role
    pretrain: str
    tasks: tuple[Task, ...]
    seed: int
    evaluator: str
    chain: tuple[Stage, ...]
    judged: Stage
    undefended: tuple[Stage, ...]
    floors: tuple[Stage, ...]
    departures: tuple[str, ...] = ()
    point: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.chain, self.judged, *self.undefended, *self.floors)

    @property
    def place(self) -> Hashable:
        """Where the case stands in the grid of one seed, whatever the point."""
        return tuple(getattr(self, name, None) for name in _PLACE)

    @property
    def block(self) -> Hashable:
        """Cases of one block are computed together, before the next ones."""
        return self.judged.key


@dataclass(frozen=True, eq=False, kw_only=True)
class Cell(Case):
    """One entry of the grid, of one task: a defense, judged by an evaluator.

    defense, defense_role: the defense and its role in a board.
    beside: for a task that is not attacked, the attacked tasks; else empty.
    context: whether it was not requested, but is computed for comparison.
    """

    defense: str
    defense_role: Role
    beside: tuple[Task, ...] = ()
    context: bool = False

    @property
    def task(self) -> Task:
        return self.tasks[0]

    @property
    def block(self) -> Hashable:
        return self.pretrain, self.task.name, self.seed


@dataclass(frozen=True, eq=False, kw_only=True)
class Inspection(Case):
    """An encoder inspected by a method of an axis that inspects, such as a detector.

    axis, method: the axis and the method by name.
    """

    axis: str
    method: str


@dataclass
class Plan:
    """Cells and inspections in the order of the board."""

    board: Board
    cases: list[Case]

    @property
    def cells(self) -> list[Cell]:
        """The entries of the grid."""
        return [case for case in self.cases if isinstance(case, Cell)]

    @property
    def inspections(self) -> list[Inspection]:
        """The inspections of encoders."""
        return [case for case in self.cases if isinstance(case, Inspection)]

    @property
    def departures(self) -> list[str]:
        """All differences of the cases from the board, each once."""
        return list(dict.fromkeys(text for case in self.cases for text in case.departures))

    @property
    def stages(self) -> list[Stage]:
        return distinct(stage for case in self.cases for stage in case.stages)


def blocks(cases: Iterable[Case]) -> list[Sequence[Case]]:
    """The cases by block, in the order of the plan."""
    found: dict[Hashable, list[Case]] = {}
    for case in cases:
        found.setdefault(case.block, []).append(case)
    return list(found.values())

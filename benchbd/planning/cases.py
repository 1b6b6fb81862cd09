"""What a plan is made of: cells and inspections, with every stage that they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchbd.contract.roles import Role
from benchbd.planning.board import Board
from benchbd.stages.base import Stage, distinct
from benchbd.stages.task import Task


@dataclass(frozen=True, eq=False)
class Cell:
    """One entry of the grid, with every stage that it needs.

    chain: the stages that lead to its encoder, in order. evaluate: its own evaluation; undefended and floor: those of
    the attacked encoder as published and of the clean encoder, under the same task, evaluator and seed.
    attack_role, defense_role: what the two are in a board.
    departures: in what it differs from the board, by its own stages, place and seed; empty for an on-board cell.
    context: whether it was not asked for, but stands beside what was.
    point: of a sweep, value by option; empty for the board's grid.
    """

    attack: str
    attack_role: Role
    defense: str
    defense_role: Role
    pretrain: str
    task: Task
    seed: int
    evaluator: str
    chain: tuple[Stage, ...]
    evaluate: Stage
    undefended: Stage
    floor: Stage
    departures: tuple[str, ...] = ()
    context: bool = False
    point: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.chain, self.evaluate, self.undefended, self.floor)

    @property
    def gated(self) -> bool:
        """Whether the cell counts only where its attack took: neither the floor nor a control is an attack."""
        return self.undefended.key != self.floor.key and self.attack_role is not Role.CONTROL


@dataclass(frozen=True, eq=False)
class Inspection:
    """One encoder before a detector.

    tasks: the tasks of its row. chain: the stages that lead to it, in order. detect: the verdict.
    undefended, floors: evaluations of it and of the clean encoder, one per task; they tell whether the attack took.
    departures: as of a cell.
    """

    detection: str
    attack: str
    attack_role: Role
    pretrain: str
    tasks: tuple[Task, ...]
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
            blocks.setdefault((cell.pretrain, cell.task.name, cell.seed), []).append(cell)
        return list(blocks.values())

"""Trials of defenses: other settings, drawn from the ranges that they declare, the same on every board."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from benchbd.base.errors import UnknownNameError, UsageError
from benchbd.base.seeds import derive_seed
from benchbd.contract.defense import Mitigation
from benchbd.contract.roles import Role
from benchbd.planning.board import Board
from benchbd.planning.selection import Selection
from benchbd.planning.sweeps import Point, labelled
from benchbd.records.models import TRIAL
from benchbd.registry import Registry

RANKED = (Role.METHOD, Role.FT)
"""The roles of defenses that have trials."""

PREFIX = "tuned-"

log = logging.getLogger("benchbd")


@dataclass(frozen=True)
class Varied:
    """A sweep or the trials of a defense, with its points. defense: for trials, the only one that they change."""

    name: str
    points: Sequence[Point]
    defense: str = ""


def point_of(cls: type[Mitigation], number: int) -> Point:
    """The point of a trial from 1 on: each option's value is drawn from a stream that depends on the names of defense
    and option and on the number alone, so that no board, order or other range changes it."""
    options = {
        f"{cls.axis}:{cls.name}.{option}": span.at(derive_seed(number, TRIAL, cls.name, option) / 2**63)
        for option, span in cls.tunable.items()
    }
    return {TRIAL: number, **options}


def trials_of(board: Board, selection: Selection, registry: Registry) -> list[Varied]:
    """The trials from 1 on of each ranked defense of a run; none without the board's ``tuned``. One line is logged with
    the defenses that declare no range."""
    if board.tuned is None:
        return []
    names = dict.fromkeys(selection.names("defense") or board.names("defense"))
    ranked = [cls for name in names if (cls := registry.get("defense", name)).role in RANKED]
    classes = cast(list[type[Mitigation]], ranked)
    if fixed := [cls.name for cls in classes if not cls.tunable]:
        log.warning("board %s: no trials of %s, which declare no range", board.name, ", ".join(fixed))
    numbers = range(1, board.tuned.trials)
    return [
        Varied(f"{PREFIX}{cls.name}", [point_of(cls, number) for number in numbers], cls.name)
        for cls in classes
        if cls.tunable
    ]


def chosen(board: Board, selection: Selection, registry: Registry) -> list[Varied]:
    """The sweeps of a board, trials last, as far as they are selected: all if none is named. UnknownNameError for an
    unknown name, UsageError if a sweep has the name of trials, or an assignment is none."""
    trials = {each.name: each for each in trials_of(board, selection, registry)}
    known = [sweep.name for sweep in board.sweeps]
    for name in known:
        if name in trials:
            raise UsageError(f"board {board.name}: sweep {name}: trials have this name; give the sweep another")
    for name in selection.sweeps:
        if name not in known and name not in trials:
            raise UnknownNameError("sweep", name, [*known, *trials])
    sweeps = [
        Varied(sweep.name, [point for _, point in labelled(board, sweep) if point])
        for sweep in board.sweeps
        if sweep.name in (selection.sweeps or known)
    ]
    return [*sweeps, *(each for each in trials.values() if each.name in (selection.sweeps or trials))]

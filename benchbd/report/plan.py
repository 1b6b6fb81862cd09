"""The output of `benchbd plan` as a document: stages, which of them are cached, estimated cost, absent data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from benchbd.base.content import short_digests
from benchbd.base.errors import counted
from benchbd.report.document import Column, Document, Frame, Section, Table, Value

if TYPE_CHECKING:  # importing it would load torch
    from benchbd.planning.cases import Plan

LARGE = 40  # number of stages that a plan lists one by one; more are summed up


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a plan.

    cached: whether the store has it. provisional: whether its key is not final because data are absent.
    absent: those data, as "NAME (SPLIT)". image_forwards, seconds: estimates of its cost, None if unknown.
    """

    key: str
    kind: str
    method: str
    label: str
    cached: bool
    provisional: bool
    absent: tuple[str, ...]
    image_forwards: int | None
    seconds: float | None


def document(plan: Plan, stages: Sequence[PlannedStage], advice: Sequence[str] = ()) -> Document:
    """The plan; a large one is summed up by kind and method. advice: how to get the absent data sets."""
    small = len(stages) <= LARGE
    rows = [_row(stage) for stage in stages] if small else _summed(stages)
    summary = [*_totals(plan, stages), *_off_board(plan)]
    if absent := sorted({name for stage in stages for name in stage.absent}):
        summary.append(f"absent data sets, so keys are provisional: {', '.join(absent)}")
    lines = [asdict(stage) for stage in stages]
    return Document(
        sections=[Section(_STAGES if small else _SUMS, [Table(rows)], ruled=True)],
        summary=[*summary, *advice],
        frames=[Frame([field.name for field in fields(PlannedStage)], lines)],
        data={
            "board": plan.board.name,
            "cells": len(plan.cells),
            "context": sum(cell.context for cell in plan.cells),
            "inspections": len(plan.inspections),
            "departures": plan.departures,
            "stages": lines,
        },
    )


_COSTS = (Column("image-forwards", rank=3), Column("seconds", rank=1))

_STAGES = (
    *(Column("kind", "words", points=44), Column("stage", "words", points=150), Column("key", "words", rank=2)),
    *(Column("state", "words", brief=""), *_COSTS),
)

_SUMS = (
    *(Column("kind", "words"), Column("method", "words")),
    *(Column("stages"), Column("cached"), Column("to compute")),
    *(Column("image-forwards", rank=2), Column("seconds", rank=1)),
)


def _row(stage: PlannedStage) -> list[Value]:
    key = stage.key[:12] + ("?" if stage.provisional else "")
    state = "cached" if stage.cached else "absent data" if stage.provisional else ""
    forwards = "?" if stage.image_forwards is None else f"{stage.image_forwards:,}"
    return [stage.kind, stage.label, key, state, forwards, "?" if stage.seconds is None else f"{stage.seconds:.0f}"]


def _summed(stages: Sequence[PlannedStage]) -> list[list[Value]]:
    """The stages by kind and method, how many of them the store has, and the estimated cost of the others."""
    groups: dict[tuple[str, str], list[PlannedStage]] = {}
    for stage in stages:
        groups.setdefault((stage.kind, stage.method), []).append(stage)
    rows: list[list[Value]] = []
    for (kind, method), group in groups.items():
        todo = [stage for stage in group if not stage.cached]
        costs = (_sum([stage.image_forwards for stage in todo]), _sum([stage.seconds for stage in todo]))
        rows.append([kind, method, len(group), len(group) - len(todo), len(todo), *costs])
    return rows


def _sum(values: Sequence[float | None]) -> str:
    """A sum; followed by a question mark if some values are unknown, replaced by one if all are."""
    known = [value for value in values if value is not None]
    total = f"{sum(known):,.0f}" if known or not values else ""
    return total + ("?" if len(known) < len(values) else "")


def _totals(plan: Plan, stages: Sequence[PlannedStage]) -> Iterator[str]:
    """The number of stages, the number to compute, and their estimated cost from methods and past stages."""
    todo = [stage for stage in stages if not stage.cached]
    inspections = f", {counted(len(plan.inspections), 'inspection')}" if plan.inspections else ""
    yield (
        f"{counted(len(plan.cells), 'cell')}{inspections}, {counted(len(stages), 'distinct stage')}, "
        f"{len(stages) - len(todo)} cached, {len(todo)} to compute"
    )
    if context := sum(cell.context for cell in plan.cells):
        yield f"{context} of the cells stand beside those asked for; --only leaves them out"
    if pointed := sum(bool(case.point) for case in plan.cases):
        yield f"{pointed} of the {counted(len(plan.cases), 'case')} are of sweeps; --sweep NAME leaves out the others"
    if len(stages) > LARGE:
        yield "summed up by kind and method; --json has every stage"
    if todo:
        yield f"image-forwards to compute: {_partly([stage.image_forwards for stage in todo], '{:,.0f}'.format)}"
        seconds = [stage.seconds for stage in todo]
        if all(value is None for value in seconds):
            yield "estimated: unknown (the store has no past stages of these methods)"
        else:
            yield f"estimated: {_partly(seconds, _roughly)} (from what past stages of the same methods cost here)"


def _partly(values: Sequence[float | None], told: Callable[[float], str]) -> str:
    """A sum, and the number of stages whose share is unknown."""
    known = [value for value in values if value is not None]
    unknown = f"{counted(len(values) - len(known), 'stage')} of unknown cost"
    parts = [*([told(sum(known))] if known else []), *([unknown] if len(known) < len(values) else [])]
    return " and ".join(parts)


def _off_board(plan: Plan) -> Iterator[str]:
    """Each departure, and the number of cells and inspections that depend on it."""
    parts = [case.departures for case in plan.cases]
    for departure in plan.departures:
        off = sum(departure in departures for departures in parts)
        yield f"off-board: {short_digests(departure)}" + (f", in {off} of {len(parts)}" if off < len(parts) else "")


def _roughly(seconds: float) -> str:
    """An estimate in whole seconds, whole minutes or tenths of an hour."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

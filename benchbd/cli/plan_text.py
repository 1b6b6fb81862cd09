"""The text of a plan: its stages, which of them the store has, what the others may cost, and which data are absent."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from benchbd.api import Session
from benchbd.base.errors import BenchbdError, DataAbsentError
from benchbd.engine.recording import machine
from benchbd.engine.store import Store
from benchbd.planning.cases import Cell, Inspection, Plan
from benchbd.report.document import Column
from benchbd.report.writers.columns import WIDTH, table, wrapped
from benchbd.stages.base import Stage

LARGE = 40  # stages that a plan lists one by one; more are summed up

log = logging.getLogger("benchbd")


def render(session: Session, plan: Plan, *, as_json: bool = False, width: int = WIDTH) -> str:
    """The plan as text or as one JSON document, with a newline at the end. width: columns of the text."""
    stages = plan.stages
    rows = list(_rows(session, stages))
    if as_json:
        document = {
            "board": session.board.name,
            "cells": len(plan.cells),
            "context": sum(cell.context for cell in plan.cells),
            "inspections": len(plan.inspections),
            "departures": plan.departures,
            "stages": rows,
        }
        return json.dumps(document, indent=1) + "\n"
    lines = [*_totals(plan, rows), *_off_board(plan)]
    if absent := sorted({ref for row in rows for ref in row["absent"]}):
        lines.append(f"absent data sets, so keys are provisional: {', '.join(absent)}")
        lines += _how_to_get(session, stages).values()
    below = [part for line in lines for part in wrapped(line, width, rest="  ")]
    return "\n".join([*(_table if len(rows) <= LARGE else _summary)(rows, width), "", *below]) + "\n"


def _rows(session: Session, stages: Sequence[Stage]) -> Iterator[dict[str, Any]]:
    store = Store(session.store, writable=False)
    forwards = known_forwards(stages)
    seconds = estimate_seconds(stages, forwards, store.manifests(), session.device)
    for stage in stages:
        yield {
            "key": stage.key,
            "kind": stage.kind,
            "method": stage.method_name,
            "label": stage.label,
            "cached": store.has(stage.key),
            "provisional": stage.provisional,
            "absent": [f"{ref.name} ({ref.split})" for ref in stage.data.values() if ref.absent],
            "image_forwards": forwards[stage.key],
            "seconds": seconds[stage.key],
        }


_COLUMNS = (
    *(Column("kind", "words"), Column("stage", "words"), Column("key", "words", rank=2)),
    *(Column("", "words"), Column("image-forwards", rank=3), Column("seconds", rank=1)),
)


def _table(rows: Sequence[dict[str, Any]], width: int) -> list[str]:
    body = [
        [r["kind"], r["label"], r["key"][:12] + ("?" if r["provisional"] else ""), _state(r), *_cost(r)] for r in rows
    ]
    return table(_COLUMNS, body, width, rule=True)


def _summary(rows: Sequence[dict[str, Any]], width: int) -> list[str]:
    """The stages by kind and method, how many of them the store has, and what the others may cost."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["method"]), []).append(row)
    body = []
    for (kind, method), group in groups.items():
        todo = [row for row in group if not row["cached"]]
        cost = [_sum([row[name] for row in todo]) for name in ("image_forwards", "seconds")]
        body.append([kind, method, str(len(group)), str(len(group) - len(todo)), str(len(todo)), *cost])
    names = (Column("kind", "words"), Column("method", "words"))
    counts = (*map(Column, ("stages", "cached", "to compute")), Column("image-forwards", rank=2))
    return table((*names, *counts, Column("seconds", rank=1)), body, width, rule=True)


def _sum(values: Sequence[float | None]) -> str:
    """A sum; a question mark behind it, or in its place, where some of the values, or all, are unknown."""
    known = [value for value in values if value is not None]
    total = f"{sum(known):,.0f}" if known or not values else ""
    return total + ("?" if len(known) < len(values) else "")


def _state(row: dict[str, Any]) -> str:
    return "cached" if row["cached"] else "absent data" if row["provisional"] else ""


def _cost(row: dict[str, Any]) -> tuple[str, str]:
    forwards, seconds = row["image_forwards"], row["seconds"]
    return ("?" if forwards is None else f"{forwards:,}", "?" if seconds is None else f"{seconds:.0f}")


def _totals(plan: Plan, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How much there is and how much of it is to compute; at what cost, as far as methods and past stages tell."""
    todo = [row for row in rows if not row["cached"]]
    inspections = f", {_count(len(plan.inspections), 'inspection')}" if plan.inspections else ""
    yield (
        f"{_count(len(plan.cells), 'cell')}{inspections}, {_count(len(rows), 'distinct stage')}, "
        f"{len(rows) - len(todo)} cached, {len(todo)} to compute"
    )
    if context := sum(cell.context for cell in plan.cells):
        yield f"{context} of the cells stand beside those asked for; --only leaves them out"
    if len(rows) > LARGE:
        yield "summed up by kind and method; --json has every stage"
    if todo:
        yield f"image-forwards to compute: {_partly([row['image_forwards'] for row in todo], '{:,.0f}'.format)}"
        seconds = [row["seconds"] for row in todo]
        if all(value is None for value in seconds):
            yield "estimated: unknown (the store has no past stages of these methods)"
        else:
            yield f"estimated: {_partly(seconds, _duration)} (from what past stages of the same methods cost here)"


def _partly(values: Sequence[float | None], told: Callable[[float], str]) -> str:
    """A sum, and of how many stages nobody knows what they add to it."""
    known = [value for value in values if value is not None]
    unknown = f"{_count(len(values) - len(known), 'stage')} of unknown cost"
    parts = [*([told(sum(known))] if known else []), *([unknown] if len(known) < len(values) else [])]
    return " and ".join(parts)


def _off_board(plan: Plan) -> Iterator[str]:
    """Each departure, and of how many of the cells and inspections: a departure is of those that stand on it."""
    parts: list[Cell | Inspection] = [*plan.cells, *plan.inspections]
    for departure in plan.departures:
        off = sum(departure in part.departures for part in parts)
        yield f"off-board: {departure}" + (f", in {off} of {len(parts)}" if off < len(parts) else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _how_to_get(session: Session, stages: Sequence[Stage]) -> dict[str, str]:
    """What the library says of each absent data set, by name."""
    advice: dict[str, str] = {}
    for ref in [ref for stage in stages for ref in stage.data.values() if ref.absent]:
        if ref.name not in advice:
            try:
                session.library.info(ref.name, ref.split, ref.size)
            except DataAbsentError as absent:
                advice[ref.name] = str(absent)
    return advice


def known_forwards(stages: Iterable[Stage]) -> dict[str, int | None]:
    """Estimated image-forwards by key; None where nobody knows. A method that says no such thing is named, once."""
    known: dict[str, int | None] = {}
    complaints: dict[str, None] = {}
    for stage in stages:
        try:
            known[stage.key] = stage.forwards()
        except BenchbdError as error:
            known[stage.key] = None
            complaints[f"{stage.kind} {stage.method_name}: its cost is not known: {error}"] = None
    for complaint in complaints:
        log.warning("%s", complaint)
    return known


def estimate_seconds(
    stages: Iterable[Stage],
    forwards: Mapping[str, int | None],
    manifests: Iterable[Mapping[str, Any]],
    device: torch.device,
) -> dict[str, float | None]:
    """Estimated wall seconds by key, from the image-forwards a second of past stages in this store; None if unknown.

    Only stages of the same method and architecture on the same device tell anything.
    """
    here = machine(device)["device"]
    past: dict[tuple[str, ...], list[float]] = {}
    for manifest in manifests:
        cost, identity = manifest["cost"], manifest["identity"]
        if cost["seconds"] > 0 and cost["image_forwards"] and manifest["machine"]["device"] == here:
            name = identity["method"].get("name", identity["kind"])
            rate = cost["image_forwards"] / cost["seconds"]
            past.setdefault((identity["kind"], name, manifest.get("architecture", "")), []).append(rate)
    estimates: dict[str, float | None] = {}
    for stage in stages:
        rates, own = past.get((stage.kind, stage.method_name, stage.architecture)), forwards[stage.key]
        estimates[stage.key] = None if not rates or own is None else own / (sum(rates) / len(rates))
    return estimates

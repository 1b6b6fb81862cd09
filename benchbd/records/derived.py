"""Check the fields of a record that its identity or its counts determine. This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchbd.base.content import canonical
from benchbd.base.errors import shown
from benchbd.contract.axes import INSPECTING
from benchbd.records.models import Entry, Inspected, Record
from benchbd.records.points import within
from benchbd.records.predictions import unpack

_WORKING = ("defend", *(axis.stage for axis in INSPECTING))


def faults(record: Entry) -> Iterator[str]:
    """Fields of a verified record that differ from what the rest of it says, each as one line."""
    measured = record.status == "ok"
    for field in ("machine", "point", "reference"):
        try:
            canonical(getattr(record, field, None))
        except ValueError:
            yield f"{field}: holds a number that is not finite"
    if measured and (missing := sorted(record.identity.keys() - record.stages.keys())):
        yield f"stages: without {', '.join(missing)}, which identity has"
    worker = next((kind for kind in _WORKING if kind in record.identity), "")
    count = within(record.identity, worker, "params", "clean", "count") or 0
    rows = record.clean_images
    if len(rows) != count and (measured or rows):
        yield f"clean_images: {len(rows)} rows, but identity{f'.{worker}' if worker else ''} has {count} clean images"
    if rows != sorted({*rows}) or min(rows, default=0) < 0:
        yield "clean_images: rows are numbers from 0, ascending, each once"
    cost = record.cost[worker].seconds if worker in record.cost else record.seconds if worker else 0.0
    if record.seconds not in (None, cost):
        told = f"cost.{worker} has" if worker else "without a defense or detector it is"
        yield f"seconds: {record.seconds}, but {told} {cost}"
    if isinstance(record, Record):
        yield from _of_cell(record, measured)
    elif isinstance(record, Inspected):
        yield from _of_inspection(record)


def _of_cell(record: Record, measured: bool) -> Iterator[str]:
    given = within(record.identity, "reference", "params")
    if record.reference or (given and measured):
        yield from _reference(record.reference, given or {})
    yield from _heads(record, measured)
    if record.clean_features is not None and within(record.identity, "defend", "parents", "encoder") is None:
        yield "clean_features: measured on a repair, but no stage of the record repairs an encoder"
    percent, floor = record.undefended, record.baseline_counts
    if percent is None or floor is None:
        return
    found = {}
    for field, value in percent.model_dump().items():
        if value is not None:
            whole = floor.nontarget if field in ("asr_nontarget", "ra") else floor.total
            found[field] = round(exact := value * whole / 100)
            if abs(exact - found[field]) > 1e-6 * whole + 1e-6:  # rounded to 1e-4 percent
                yield f"undefended.{field}: {value}, which is no number of {whole} images"
    if not 0 <= found["asr"] - found["asr_nontarget"] <= floor.total - floor.nontarget:
        yield f"undefended.asr: {percent.asr}, which no hits give beside asr_nontarget {percent.asr_nontarget}"


def _heads(record: Record, measured: bool) -> Iterator[str]:
    """Counts of heads that the identity does not have, or whose sums are not those of the cell."""
    told = within(record.identity, "evaluate", "params", "heads") or 0
    if len(record.heads) != told and (measured or record.heads):
        yield f"heads: {len(record.heads)} of them, but by identity.evaluate there are {told}"
    if not record.heads or record.counts is None:
        return
    parts = [head.model_dump() for head in record.heads]
    for field, whole in record.counts.model_dump().items():
        values = [part[field] for part in parts]
        if whole is None or None in values:
            if any(value is not whole for value in values):
                yield f"heads.{field}: {values}, but counts have {whole}"
        elif sum(values) != whole:
            yield f"heads.{field}: {' + '.join(map(str, values))} is {sum(values)}, but counts have {whole}"
        elif field in ("total", "nontarget") and len({*values}) > 1:
            yield f"heads.{field}: {values}, but all heads judge the same images"
    if record.packed is not None:  # its digest and form were checked
        hits = (unpack(record.packed)[1].reshape(told, -1) == record.target).sum(1).tolist()
        for number, (head, given) in enumerate(zip(record.heads, hits, strict=True)):
            if head.hits != given:
                yield f"heads.{number}.hits: {head.hits}, but the predictions give {given}"


def _reference(reference: dict[str, Any], params: dict[str, Any]) -> Iterator[str]:
    """params: those of the stage's identity."""
    count = params.get("count")
    of_file = params.get("file") is not None
    whence = "file" if of_file else "train_split"
    if reference.get("reference") != whence:
        yield f"reference.reference: {shown(reference.get('reference'))}, but by identity.reference it is {whence}"
    for field, kinds in (("rows", (int,)), ("predicted", (int,)), ("probability", (int, float))):
        values, most = reference.get(field), 1 if field == "probability" else float("inf")
        number = 0 if field == "rows" and of_file else count
        if not isinstance(values, list) or not all(type(value) in kinds and 0 <= value <= most for value in values):
            kind = "numbers from 0 to 1" if most == 1 else "whole numbers from 0"
            yield f"reference.{field}: {shown(values)} is no list of {kind}"
        elif number is not None and len(values) != number:
            yield f"reference.{field}: {len(values)} of them, but by identity.reference there are {number}"


def _of_inspection(record: Inspected) -> Iterator[str]:
    judge = within(record.identity, "head", "method", "name")
    if judge not in (None, record.evaluator):
        yield f"evaluator: {shown(record.evaluator)}, but identity.head is of {shown(judge)}"
    counts = {
        f"gains.{task}.{name}": getattr(gain, name).certified
        for task, gain in record.gains.items()
        for name in ("counts", "baseline_counts")
    }
    if having := [name for name, certified in counts.items() if certified is not None]:
        for name in (name for name, certified in counts.items() if certified is None):
            yield f"{name}.certified: missing, but {having[0]} has it, of the same evaluator"

"""Check the records of one board against each other: what two of them say of one thing is the same.

``records.verify`` checks each record alone and cannot find an edit that agrees with itself. Measurements of two sources
are not compared, because two machines may round differently. What only one record is about stays unchecked: the figures
of a repair beyond its predictions, a score, costs, findings. A folder alone does not tell who wrote it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchbd.base.content import canonical
from benchbd.base.errors import DataError, shown
from benchbd.contract.axes import INSPECTING
from benchbd.contract.roles import Role
from benchbd.records.counts import metrics
from benchbd.records.files import place_of
from benchbd.records.models import Counts, Entry, Inspected, Record
from benchbd.records.points import bearing, within

_TOLERANCE = 1e-3  # percentage points: a record rounds to 1e-4

_Statement = tuple[tuple[object, ...], str, dict[str, Any]]
"""What a statement is about, first in words; the field of the record that makes it; values by name."""


def check_consistent(records: Iterable[Entry]) -> None:
    """DataError if two records contradict each other, in one line that names both and their fields.

    records: verified ones of one board. Each is read once, whatever their number.
    """
    for _, text in contradictions(records):
        raise DataError(f"{text}; run the board again")


def contradictions(records: Iterable[Entry]) -> Iterator[tuple[Entry, str]]:
    """Records that contradict an earlier one, in the order of their files, each with a line on both."""
    known: dict[tuple[object, ...], tuple[Entry, str, dict[str, Any]]] = {}
    for record in sorted(records, key=place_of):
        for about, field, values in _statements(record):
            first, its, expected = known.setdefault(about, (record, field, values))
            if name := _differing(values, expected):
                yield (
                    record,
                    f"{place_of(first)} and {place_of(record)} contradict each other on the same {about[0]}: "
                    f"{its} has {name} {shown(expected[name])}, {field} has {shown(values[name])}",
                )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first name in both with two values; empty if there is none. Records of schema 1 do not count RA."""
    for name in (name for name in one if name in other):
        a, b = one[name], other[name]
        since_2 = name in ("ra", "correct_triggered") and None in (a, b)
        close = isinstance(a, float) and isinstance(b, float) and abs(a - b) <= _TOLERANCE
        if a != b and not close and not since_2:
            return name
    return ""


def _statements(record: Entry) -> Iterator[_Statement]:
    for kind in ("defend", *(axis.stage for axis in INSPECTING)):
        if drawn := within(record.identity, kind, "params", "clean"):
            pool = within(record.identity, kind, "data", "pool")
            about = ("draw of clean images", pool, drawn.get("count"), drawn.get("seed"))
            yield about, "clean_images", {"rows": record.clean_images}
    keys = {kind: _key(identity) for kind, identity in record.identity.items()}
    if "pretrain" not in keys:
        return
    clean, published = keys["pretrain"], keys.get("attack", keys["pretrain"])
    if isinstance(record, Record):
        yield from _of_cell(record, keys, clean, published)
    elif isinstance(record, Inspected):
        for task, gain in record.gains.items():
            for encoder, name in ((clean, "baseline_counts"), (published, "counts")):
                field, values = f"gains.{task}.{name}", _figures(getattr(gain, name))
                yield ("evaluation", *_place(record, task), encoder), field, values


def _of_cell(record: Record, keys: Mapping[str, str], clean: str, published: str) -> Iterator[_Statement]:
    """clean, published: the keys of the clean encoder and of the attacked one without a defense."""
    evaluate = record.identity.get("evaluate", {})
    data = canonical(within(evaluate, "data"))
    yield ("class", record.task, data, record.target), "the record", {"target_name": record.target_name}
    if record.reference and "reference" in keys:
        yield ("reference inputs", keys["reference"], record.source), "reference", record.reference
    floor = record.baseline_counts
    said: list[tuple[str, str, dict[str, Any]]] = []
    if floor is not None:
        said.append((clean, "baseline_counts", _figures(floor)))
    if floor is not None and record.undefended is not None:
        sizes = {"total": floor.total, "nontarget": floor.nontarget}
        said.append((published, "undefended", {**sizes, **record.undefended.model_dump()}))
    if record.counts is not None and record.defense_role is Role.FLOOR:
        said.append((published, "counts", _figures(record.counts)))
    for encoder, field, values in said:
        yield ("evaluation", *_place(record, f"{record.task}:{record.target}"), encoder), field, values
        if within(evaluate, "parents").keys() == {"encoder"}:  # what the key of that evaluation is made of
            key = _key({**evaluate, "parents": {"encoder": encoder}})
            yield ("evaluation", key, record.target, record.source), field, values


def _place(record: Record | Inspected, task: str) -> tuple[object, ...]:
    """The values that two evaluations of one encoder on one task share; the identity of an inspection has no others."""
    moved = bearing(record, _EVALUATED, ("reference", "shadow", "trigger"))
    beside = tuple(record.beside) if isinstance(record, Record) else ()
    departed = record.on_board, *sorted(record.departures)
    return record.attack, record.seed, record.source, task, record.evaluator, beside, moved, departed


_EVALUATED = ("pretrain", "reference", "attack", "evaluate", "head")


def _figures(counts: Counts) -> dict[str, Any]:
    """Counts and percentages by name; certified images as a percentage alone."""
    return {**counts.model_dump(), **metrics(counts).model_dump()}


def _key(identity: Any) -> str:
    return hashlib.sha256(canonical(identity).encode()).hexdigest()

"""Refuse records of two protocols in one table: those of several seeds in a row, and those of one seed in all rows.

A board's file may be changed between two runs. Records of both are then in one folder under the names of their cells.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from benchbd.base.errors import DataError
from benchbd.contract.axes import AXIS, INSPECTING
from benchbd.records.differences import first_difference, leaves
from benchbd.records.files import place_of
from benchbd.records.models import Entry, Inspected, Record
from benchbd.records.points import bearing, within


def check_together(records: Iterable[Entry]) -> None:
    """DataError if records of one seed are of two protocols: if they differ in a stage that they have in common.

    Such stages are the pre-training, the attack on a task, the draw of clean images, a repair, and the method and data
    of an evaluation or an inspection. Records are compared if they have the same departures, and the same point as far
    as it may change the stage. Each is read once.
    """
    known: dict[tuple[object, ...], tuple[Entry, Any]] = {}
    for record in sorted(records, key=lambda record: (record.seed, record.name)):
        for place, name, part in _parts(record):
            first, expected = known.setdefault((name, *place), (record, part))
            if part != expected:
                raise DataError(_two_protocols(first, record, name, expected, part))


def _two_protocols(first: Entry, other: Entry, name: str, expected: Any, part: Any) -> str:
    difference = first_difference(expected, part)
    assert difference is not None
    field, *values = difference
    told = " in one and ".join(map(json.dumps, values))
    place = f"identity.{name}.{field}".removesuffix(".")
    return (
        f"{place_of(first)} and {place_of(other)} are of two protocols: {place} is {told} in the other, of one seed; "
        "was the board changed between their runs? Run all of it again, or remove the record out of date"
    )


_ENCODER = ("pretrain", "reference", "attack")  # the stages of an attacked encoder

_ATTACKER = ("reference", "shadow", "trigger")  # the parts of a protocol that an attack depends on


def _parts(record: Entry) -> Iterator[tuple[tuple[object, ...], str, Any]]:
    """The parts of a record's identity that other records share: what they belong to, their name, their content."""
    place = (record.pretrain, record.seed, record.on_board, *sorted(record.departures))
    identity = record.identity

    def part(of: Sequence[object], path: str, stages: Collection[str], parts: Collection[str]) -> Iterator[Any]:
        if (found := within(identity, *path.split("."))) is not None:
            yield (*place, bearing(record, stages, parts), *of), path, found

    yield from part((), "pretrain", ["pretrain"], ())
    tasks: list[str] = getattr(record, "tasks", [])
    if isinstance(record, Record):
        own = f"{record.task}:{record.target}"
        tasks = record.beside or [own]
    for task in tasks:
        yield from part([record.attack, task], "attack", _ENCODER, _ATTACKER)
    for kind in ("defend", *(axis.stage for axis in INSPECTING)):
        for field in ("count", "seed"):
            yield from part((), f"{kind}.params.clean.{field}", (), ["clean"])
    if isinstance(record, Record):
        repaired = [record.attack, *tasks, record.defense]
        yield from part(repaired, "defend", [*_ENCODER, "defend"], [*_ATTACKER, "clean"])
        for field in ("method", "data"):
            yield from part([record.task, record.evaluator], f"evaluate.{field}", ["evaluate"], ())
        yield from part([record.attack, own, *tasks], "evaluate.params.trigger", (), ["trigger"])
    elif isinstance(record, Inspected):
        kind = AXIS[record.axis].stage
        yield from part([record.method], f"{kind}.method", [kind], ())


def check_protocol(records: Sequence[Entry], stages: Collection[str] = ()) -> None:
    """DataError if records that are averaged differ in more than their seed. stages: compare only these."""
    known = [(record, _protocol(record, stages)) for record in records]
    for record, own in known[1:]:
        first, expected = known[0]
        for name in sorted({*expected, *own}):
            if (one := expected.get(name, "absent")) != (other := own.get(name, "absent")):
                raise DataError(
                    f"{first.file} and {record.file} are of two protocols: identity.{name} is {json.dumps(one)} in "
                    f"one and {json.dumps(other)} in the other; leave one of them out, or run it again"
                )


def _protocol(record: Entry, stages: Collection[str]) -> dict[str, Any]:
    """Every value that the identities of a row's seeds share, by dotted name: methods, options, versions, data."""
    shared = {}
    for kind, identity in record.identity.items():
        if kind in stages or not stages:
            for place, value in leaves(identity):
                names = place.split(".")
                # A seed changes its stages' own seeds, those for drawing data (clean.seed, pool_seed) and so keys of
                # parents, whose own identities are compared too. An option named seed is not among them.
                drawn = names[-1] == "seed" or names[-1].endswith("_seed")
                if names[0] == "method" or not (drawn or names[0] == "parents"):
                    shared[f"{kind}.{place}" if place else kind] = value
    return shared

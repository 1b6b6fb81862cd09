"""Tier 1: what records must hold together with their board, without data, store or accelerator.

A record is checked alone, against its predictions and the pinned labels, against the others, and against the plan of
its board: the identities that ``benchbd plan`` gives today. An edit that agrees with itself thus still has to agree
with the board's file, with the predictions, and with the records of the clean and of the undefended encoder. This tier
cannot find counts that were edited together with predictions, nor a method that never ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchbd.audit.findings import Finding
from benchbd.audit.planned import PlannedBoard
from benchbd.base.errors import DataError
from benchbd.contract.evaluator import Predictions
from benchbd.contract.roles import Role
from benchbd.planning.board import Board
from benchbd.planning.sweeps import point_text
from benchbd.records.counts import by_head, summed
from benchbd.records.files import place_of, read_each
from benchbd.records.models import Counts, Entry, Record
from benchbd.records.odd import odd_files
from benchbd.records.points import within
from benchbd.records.predictions import unpack
from benchbd.records.replicates import cell_of, is_replicate
from benchbd.records.together import contradictions
from benchbd.stages.inputs import draw_rows


def read(folder: Path) -> tuple[list[Entry], list[Finding]]:
    """The records under a folder that hold alone, and a finding for every other file but predictions and pictures."""
    findings = [Finding(1, place, text) for place, text in odd_files(folder)]
    records: list[Entry] = []
    if not findings:
        for each in read_each(folder):
            if isinstance(each, DataError):
                place, _, text = str(each).removeprefix(f"{folder}/").partition(": ")
                findings.append(Finding(1, place, text))
            else:
                records.append(each)
    return records, findings


def check(board: Board, records: Iterable[Entry], planned: PlannedBoard) -> Iterator[Finding]:
    """The findings on records that hold alone, in the order of their files."""
    known = sorted(records, key=place_of)
    cells = [record for record in known if isinstance(record, Record)]
    for record in known:
        if record.board != board.name:
            yield _of(record, f"board: {record.board!r}, not {board.name!r}")
    for record, text in contradictions(known):
        yield _of(record, text)
    yield from _misplaced(known)
    yield from _without_references(cells)
    yield from _replayed(cells)
    yield from _costs(known)
    for record in known:
        yield from _counted(record, planned) if isinstance(record, Record) else ()
        yield from _drawn(record, planned)
        if record.on_board:
            for text in planned.faults(record):
                yield _of(record, text)


def _of(record: Entry, text: str) -> Finding:
    return Finding(1, place_of(record), text)


def _misplaced(records: Iterable[Entry]) -> Iterator[Finding]:
    """Replicates that replicate nothing."""
    known = list(records)
    first = {cell_of(record): record for record in known if not is_replicate(record)}
    for record in filter(is_replicate, known):
        other = first.get(cell_of(record))
        if other is None:
            yield _of(record, "a replicate of no record")
        elif other.key != record.key:
            yield _of(record, f"a replicate, but {place_of(other)} has another key")
        elif other.source == record.source:
            yield _of(record, f"a replicate of the source of {place_of(other)}")


def _place(record: Record) -> tuple[object, ...]:
    """The values that a record shares with those of its floor and of its undefended encoder."""
    task = record.pretrain, record.task, record.target, record.evaluator, tuple(record.beside)
    return *task, record.seed, record.source, point_text(record.point), tuple(sorted(record.departures))


def _without_references(cells: Iterable[Record]) -> Iterator[Finding]:
    """Figures of the clean or undefended encoder that no record of its own backs. Whether the figures agree,
    ``contradictions`` tells."""
    known = list(cells)
    floors = {_place(r) for r in known if r.attack_role is Role.FLOOR and r.defense_role is Role.FLOOR and r.counts}
    published = {(r.attack, *_place(r)) for r in known if r.defense_role is Role.FLOOR and r.counts}
    for record in known:
        if record.baseline and record.on_board and not record.point:
            if _place(record) not in floors:
                yield _of(record, "baseline: there is no record of the clean encoder of this source, task and seed")
            elif record.undefended and (record.attack, *_place(record)) not in published:
                yield _of(record, "undefended: there is no record of this attack without a defense, of this source")


def _replayed(cells: Iterable[Record]) -> Iterator[Finding]:
    """Predictions that two seeds share, though their encoders differ."""
    known: dict[tuple[object, ...], Record] = {}
    for record in cells:
        if record.predictions is None or record.counts is None or record.counts.correct == record.counts.total:
            continue
        shared = record.attack, record.defense, record.task, record.evaluator, record.predictions
        first = known.setdefault(shared, record)
        if first.seed != record.seed and _encoder(first) != _encoder(record):
            yield _of(record, f"predictions: those of {place_of(first)}, of seed {first.seed}")


def _encoder(record: Record) -> object:
    return within(record.identity, "evaluate", "parents", "encoder")


def _costs(records: Iterable[Entry]) -> Iterator[Finding]:
    """Costs of one stage, of one source, that differ between records."""
    known: dict[tuple[str, str | None], tuple[Entry, str, Any]] = {}
    for record in records:
        for kind, cost in record.cost.items():
            key = record.stages.get(kind)
            if key is None:
                yield _of(record, f"cost.{kind}: of a stage without a key")
                continue
            first, its, expected = known.setdefault((key, record.source), (record, kind, cost))
            for field, value in cost.model_dump().items():
                if value != (other := getattr(expected, field)):
                    yield _of(record, f"cost.{kind}.{field}: {value}, but {place_of(first)} has {other} in cost.{its}")
                    break


def _counted(record: Record, planned: PlannedBoard) -> Iterator[Finding]:
    """Counts that differ from those of the predictions under the pinned labels."""
    labels = planned.labels(record)
    if labels is None or record.packed is None or record.counts is None:
        return
    clean, triggered, certified = (None if each is None else torch.from_numpy(each) for each in unpack(record.packed))
    assert clean is not None
    assert triggered is not None
    if not len(labels) or len(clean) % len(labels):
        yield _of(record, f"predictions: of {len(clean)} images, but there are {len(labels)} test images")
        return
    heads = by_head(Predictions(clean, triggered, certified), torch.tensor(labels), record.target)
    pairs: list[tuple[str, Counts, Counts]] = [("counts", record.counts, summed(heads))]
    pairs += [(f"heads.{n}", own, head) for n, (own, head) in enumerate(zip(record.heads, heads, strict=False))]
    for name, own, right in pairs:
        for field, value in right.model_dump().items():
            if (said := getattr(own, field)) not in (None, value):
                yield _of(record, f"{name}.{field}: {said}, but the predictions give {value}")


def _drawn(record: Entry, planned: PlannedBoard) -> Iterator[Finding]:
    """A list of clean images that is not the draw of its seed."""
    for kind, identity in record.identity.items():
        drawn: Mapping[str, int] | None = within(identity, "params", "clean")
        digest = within(identity, "data", "pool")
        count = planned.images(digest) if drawn and isinstance(digest, str) else None
        if drawn and count and record.clean_images not in ([], draw_rows(count, drawn).tolist()):
            yield _of(record, f"clean_images: not those that identity.{kind}.params.clean draws")

"""A submission: the records of a run, ready for a pull request to its board, and the reviewer's report on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchbd.audit import alone
from benchbd.audit.planned import PlannedBoard
from benchbd.base.content import file_digest, make_folder, write_file
from benchbd.base.errors import DataError, UsageError
from benchbd.planning.board import Board
from benchbd.records.files import place_of, write_records
from benchbd.records.models import Entry, Record
from benchbd.stages.base import ENCODER
from benchbd.store.store import Store

FACTS = "encoders.json"
"""The file of a submission with digest and size of every encoder that its records are of."""


@dataclass(frozen=True)
class Submission:
    """records: on-board ones, new or changed. encoders: sha256 and bytes by key of the stage that made them."""

    records: list[Entry]
    encoders: dict[str, tuple[str, int]]


def gather(
    board: Board, known: Sequence[Entry], published: Sequence[Entry], planned: PlannedBoard, store: Store
) -> Submission:
    """What a run adds to a board.

    known: the records of the run, with those of its references: the clean and the undefended encoder. published: those
    of the board, which are left out if they are the same. UsageError if there is nothing to add, DataError with all
    findings if something does not hold.
    """
    mine = [record for record in known if record.on_board]
    if not mine:
        raise UsageError(f"board {board.name}: no on-board records to submit; run it first, with its own options")
    findings = [str(finding) for finding in alone.check(board, mine, planned)]
    if findings:
        raise DataError("\n".join(findings))
    there = {place_of(record): record.to_json() for record in published}
    added = [record for record in mine if there.get(place_of(record)) != record.to_json()]
    if not added:
        raise UsageError(f"board {board.name}: all {len(mine)} records are published already")
    return Submission(added, _encoders(added, store))


def _encoders(records: Iterable[Entry], store: Store) -> dict[str, tuple[str, int]]:
    """The encoders that a store has of the records' attacks and defenses."""
    found: dict[str, tuple[str, int]] = {}
    for record in records:
        for kind in ("attack", "defend"):
            key = record.stages.get(kind)
            if key is None or key in found:
                continue
            path = store.folder(key) / ENCODER
            if path.is_file():
                found[key] = file_digest(path), path.stat().st_size
    return dict(sorted(found.items()))


def write(submission: Submission, out: Path, store: Store, *, encoders: bool) -> list[Path]:
    """The files of a submission. encoders: whether to copy them too, not only their digests."""
    make_folder(out)
    paths = write_records(submission.records, out / "records")
    facts = {key: {"sha256": digest, "bytes": size} for key, (digest, size) in submission.encoders.items()}
    write_file(out / FACTS, (json.dumps(facts, indent=1) + "\n").encode())
    if encoders:
        make_folder(out / "encoders")
        for key in submission.encoders:
            content = (store.folder(key) / ENCODER).read_bytes()
            write_file(out / "encoders" / f"{key}.safetensors", content)
    return [*paths, out / FACTS]


def merged(published: Sequence[Entry], added: Sequence[Entry]) -> list[Entry]:
    """The records of a board after a submission."""
    return list({place_of(record): record for record in (*published, *added)}.values())


def replicates(published: Sequence[Entry], added: Sequence[Entry]) -> list[tuple[Record, Record]]:
    """Pairs of records of one key that two sources measured: published, added."""
    known = {record.key: record for record in published if isinstance(record, Record)}
    pairs = [(known[record.key], record) for record in added if isinstance(record, Record) and record.key in known]
    return [(one, other) for one, other in pairs if one.source != other.source]

"""A submission: the records of a run, ready for a pull request to its board, and the reviewer's report on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchbd.audit import alone
from benchbd.audit.planned import PlannedBoard
from benchbd.base.content import make_folder
from benchbd.base.errors import DataError, UsageError
from benchbd.planning.board import Board
from benchbd.published import FOLDER, encoder_names, undefended_key, write_published
from benchbd.records.files import place_of, write_records
from benchbd.records.models import Entry, Record
from benchbd.records.replicates import as_replicate
from benchbd.store.store import Store

Encoders = Literal["none", "undefended", "all"]
"""The encoders that a submission has whole."""


@dataclass(frozen=True)
class Submission:
    """records: on-board ones, new or changed. encoders: a name for each encoder that they are of, by the key of its
    stage. undefended: the keys of those without a defense."""

    records: list[Entry]
    encoders: dict[str, str]
    undefended: frozenset[str]


def gather(board: Board, known: Sequence[Entry], published: Sequence[Entry], planned: PlannedBoard) -> Submission:
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
    there = {place_of(record): record for record in published}
    added = fresh(published, [as_replicate(r) if _replicates(r, there.get(place_of(r))) else r for r in mine])
    if not added:
        raise UsageError(f"board {board.name}: all {len(mine)} records are published already")
    names, mine_too = encoder_names(mine), {key for record in added for key in record.stages.values()}
    encoders = {key: name for key, name in names.items() if key in mine_too}
    return Submission(added, encoders, frozenset(encoders) & {undefended_key(record) for record in added})


def fresh(published: Sequence[Entry], submitted: Sequence[Entry]) -> list[Entry]:
    """The submitted records that a board does not have, or has with other content."""
    there = {place_of(record): record.to_json() for record in published}
    return [record for record in submitted if there.get(place_of(record)) != record.to_json()]


def write(submission: Submission, out: Path, store: Store, encoders: Encoders = "none") -> int:
    """Write the files of a submission; the number of encoders that the store has. encoders: those to write whole; of
    the others the manifest alone, with its sha256."""
    make_folder(out)
    write_records(submission.records, out / "records")
    whole = {"none": (), "undefended": submission.undefended, "all": submission.encoders}[encoders]
    return write_published(out / FOLDER, store, submission.encoders, whole)


def merged(published: Sequence[Entry], added: Sequence[Entry]) -> list[Entry]:
    """The records of a board after a submission."""
    return list({place_of(record): record for record in (*published, *added)}.values())


def _replicates(record: Entry, published: Entry | None) -> bool:
    """Whether another source than the record's published its cell, of the same key."""
    return published is not None and published.key == record.key and published.source != record.source


def replicates(published: Sequence[Entry], added: Sequence[Entry]) -> list[tuple[Record, Record]]:
    """Pairs of records of one key that two sources measured: published, added."""
    known = {record.key: record for record in published if isinstance(record, Record)}
    pairs = [(known[record.key], record) for record in added if isinstance(record, Record) and record.key in known]
    return [(one, other) for one, other in pairs if one.source != other.source]

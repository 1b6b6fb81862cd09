"""The folders of a board's records: in the store, beside a published board, or a folder that a user names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchbd.base.errors import DataError, UsageError, shown
from benchbd.records.files import read_inspected, read_records
from benchbd.records.models import Entry, Inspected, Record
from benchbd.records.replicates import pooled
from benchbd.records.together import check_consistent


@dataclass(frozen=True)
class Found:
    """The records of a board, and a line for the user if other records were passed over; else empty."""

    records: list[Record]
    inspected: list[Inspected]
    remark: str = ""


def records_folder(root: Path, board: str) -> Path:
    """The folder in which a store at ``root`` keeps the records of ``board``."""
    return root / "records" / board


def find_records(board: str, *, store: Path, published: Path, given: Sequence[Path] = ()) -> Found:
    """The records of ``board``: those in the folders ``given``, pooled, else the store's, else those in ``published``.

    DataError for a file that is no record, contradicts itself or another one, or is of another board; UsageError if
    there are none.
    """
    stored = records_folder(store, board)
    # Folders that a user easily takes for that of the records: that of the board, or the store.
    near = [place for folder in given for place in (folder / "records", records_folder(folder, board))]
    hint = "".join(
        f"; records are in {place}" for place in near if os.path.isdir(place) and any(place.glob("*_s*.json"))
    )
    choices = [tuple(given)] if given else [(stored,), (published,)]
    for places in choices:
        found: list[Record] = []
        inspected: list[Inspected] = []
        try:
            for place in places:
                mine, its = read_records(place), read_inspected(place)
                check_board((*mine, *its), board, place)
                found, inspected = pooled([*found, *mine]), pooled([*inspected, *its])
        except DataError as error:
            raise DataError(f"{error}{hint}") from error
        if found or inspected:
            known = (*found, *inspected)
            check_consistent([*known, *(each for record in known for each in record.replicates)])
            passed_over = not given and places == (stored,) and any(published.rglob("*.json"))
            remark = f"reading {stored}; the published records are in {published} (--records)" if passed_over else ""
            return Found(found, inspected, remark)
    looked = " or ".join(str(place) for places in choices for place in places)
    instead = hint or f": run it first with benchbd run --board {board}"
    raise UsageError(f"no records of board {board} in {looked}{instead}")


def check_board(records: Iterable[Entry], board: str, folder: Path | None = None) -> None:
    """Raise DataError for a record of another board. folder: that of the records."""
    for record in records:
        if record.board != board:
            path = record.name if folder is None else folder / record.name
            raise DataError(f"{path}: a record of board {shown(record.board)}, not of {board!r}")

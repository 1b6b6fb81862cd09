"""Replicates: one key, measured by another laboratory. They lie beside the record that was published first.

records/NAME.json                       the record of a cell
records/replicates/SOURCE/NAME.json     the same cell, measured by SOURCE, another store or machine
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TypeVar

from benchbd.base.errors import DataError
from benchbd.records.models import Entry

FOLDER = "replicates"

E = TypeVar("E", bound=Entry)


def is_replicate(record: Entry) -> bool:
    """Whether the record lies, or is to lie, among the replicates."""
    return "/" in record.file


def as_replicate(record: E) -> E:
    """A copy of the record, to be written among the replicates."""
    made = record.model_copy()
    made.__dict__["file"] = str(PurePosixPath(FOLDER, record.source or "unknown", record.name))
    return made


def cell_of(record: Entry) -> tuple[str, str]:
    """The values that a record shares with its replicates: its axis, if it is of an inspection, and its name."""
    return getattr(record, "axis", ""), record.name


def pooled(records: Iterable[E]) -> list[E]:
    """One record a cell, the first one given, with the others as its replicates.

    DataError for two records of a cell that have different keys, or that differ and are of one source.
    """
    found: dict[tuple[str, str], E] = {}
    others: dict[tuple[str, str], list[E]] = {}
    for record in (each for given in records for each in (given, *given.replicates)):
        cell = cell_of(record)
        first = found.setdefault(cell, record)
        known = [first, *others.get(cell, [])]
        if any(each is record or each.to_json() == record.to_json() for each in known):
            continue
        if first.key != record.key:
            keys = f"keys {first.key[:12]} and {record.key[:12]}"
            raise DataError(f"{record.file}: two records of one cell, {keys}; remove the one out of date")
        if record.source is None or record.source in [each.source for each in known]:
            raise DataError(f"{record.file}: two records of one key and one source differ; remove one of them")
        others.setdefault(cell, []).append(as_replicate(record))
    return [record.with_replicates(tuple(others.get(cell, ()))) for cell, record in found.items()]

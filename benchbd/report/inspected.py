"""Records of inspections as documents: one for every axis that inspects and has records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module

from benchbd.contract.axes import INSPECTING, Axis
from benchbd.records.models import Inspected
from benchbd.report.document import Document
from benchbd.report.rows import BY_NAME, Order


def documents(
    records: Sequence[Inspected], order: Order = BY_NAME, off_board: bool = False
) -> Iterator[tuple[Axis, Document]]:
    """Each axis with the ``document`` that its module ``benchbd/report/NAME.py`` makes of its records."""
    for axis in INSPECTING:
        own = [record for record in records if record.axis == axis.name]
        yield axis, import_module(f"benchbd.report.{axis.name}").document(own, order, off_board)

"""Records of inspections as documents, one for every axis that inspects; alone, or below a board's table of cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module

from benchbd.contract.axes import INSPECTING, Axis
from benchbd.records.models import Inspected
from benchbd.report.document import Document
from benchbd.report.rows import BY_NAME, Order
from benchbd.report.writers.columns import WIDTH
from benchbd.report.writers.forms import write


def documents(
    records: Sequence[Inspected], order: Order = BY_NAME, off_board: bool = False
) -> Iterator[tuple[Axis, Document]]:
    """Each axis with the ``document`` that its module ``benchbd/report/NAME.py`` makes of its records."""
    for axis in INSPECTING:
        own = [record for record in records if record.axis == axis.name]
        yield axis, import_module(f"benchbd.report.{axis.name}").document(own, order, off_board)


def write_with(
    table: Document | None, judged: Iterable[tuple[Axis, Document]], board: str, form: str, width: int = WIDTH
) -> str:
    """A board's table of cells, None if it has none, and the documents of its inspections, as one text of a form.

    As JSON they are one document: the table's, with the populations of each axis under its plural ("detections").
    """
    found = [(axis, each) for axis, each in judged if each.sections]
    if form == "json":
        data = {**(table.data if table else {}), "board": board, **{axis.plural: each.data for axis, each in found}}
        return write(Document(data=data), form)
    heading = "## {}\n\n" if form == "markdown" else ""
    captioned = [(axis, replace(each, title=axis.kind) if form == "latex" else each) for axis, each in found]
    parts = [heading.format(axis.kind) + write(each, form, width) for axis, each in captioned]
    return "\n".join([*([write(table, form, width)] if table else []), *parts])

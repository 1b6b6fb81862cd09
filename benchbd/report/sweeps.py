"""The columns of a leaderboard, and its tables of sweeps: a line per value, attack and defense."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from benchbd.report.document import Column, Table, Value
from benchbd.report.rows import Order, TableRow

_COST = "Cost of the defenses"
_TO_SCRATCH = "Δ scratch"

SWEPT = "Value"
"""The heading of the first column of a sweep's tables."""

# Points: with every figure as wide as "100.00 ± 100.00", the table is as wide as the text of A4.
_COLUMNS = (
    Column("Attack", "words", brief="attack", points=46),
    Column("Defense", "words", brief="defense", points=34),
    Column("n", "seeds", detail=True),
    *(Column("ACC", "percent"), Column("ASR", "percent"), Column("ASR non-target", "percent", brief="ASR-nt", rank=1)),
    Column("RA", "percent", rank=1, apart="RA"),
    Column("Certified", "percent", brief="cert.", rank=1, apart="Certified accuracy"),
    *(Column(metric, "change", over="Δ floor", least=5, rank=2) for metric in ("ACC", "ASR")),
    *(Column(metric, "change", over=_TO_SCRATCH, least=5, rank=4) for metric in ("ACC", "ASR")),
    *(Column(metric, "change", over="Δ bn", least=5, rank=5, apart="Differences to bn") for metric in ("ACC", "ASR")),
    Column("ASR", "change", over="Δ own floor", rank=6, apart="Differences to the same defense of the clean encoder"),
    Column("Seconds", "seconds", brief="s", rank=3, apart=_COST),
    Column("Image-forwards", "count", detail=True, apart=_COST),
    Column("Status", "words", brief="status"),
)

OTHERS = "points that the board does not name"


_NEEDS = {
    "RA": "ra",
    "Certified": "certified",
    "Δ bn ACC": "acc_to_bn",
    "Δ bn ASR": "acc_to_bn",
    "Δ own floor ASR": "asr_nontarget_to_own_floor",
}


def columns_of(rows: Iterable[TableRow]) -> list[Column]:
    """The columns of a leaderboard of these rows: those of ``_NEEDS`` only if some row has a value."""
    present = {name for row in rows for name, field in _NEEDS.items() if getattr(row, field).mean is not None}
    return [column for column in _COLUMNS if column.full not in _NEEDS or column.full in present]


def swept(columns: Sequence[Column]) -> list[Column]:
    """The columns of a table of a sweep. With the value, the differences to scratch would not fit on A4: they are set
    apart."""
    value = Column(SWEPT, "words", brief="value", points=46)
    apart = "Differences to scratch"
    return [value, *(replace(each, apart=apart) if each.over == _TO_SCRATCH else each for each in columns)]


def sweep_tables(rows: Sequence[TableRow], order: Order, values: Callable[[TableRow], list[Value]]) -> list[Table]:
    """A table per sweep and place: the points in the board's order, each with the attacks and defenses that it changes.

    values: the values of a row for ``columns_of``.
    """
    named = {text for lines in order.sweeps.values() for _, text in lines}
    others = [(row.point, row.point) for row in rows if row.point and row.point not in named]
    sweeps = {**order.sweeps, **({OTHERS: list(dict.fromkeys(others))} if others else {})}
    tables = []
    for name, lines in sweeps.items():
        points = {text for _, text in lines}
        for heading in dict.fromkeys(row.heading for row in rows if row.point and row.point in points):
            here = [row for row in rows if row.heading == heading]
            moved = {(row.attack, row.defense) for row in here if row.point and row.point in points}
            shown = [
                (label, row)
                for label, text in lines
                for row in here
                if row.point == text and (row.attack, row.defense) in moved
            ]
            lines_of = [[label, *values(row)] for label, row in shown]
            tables.append(Table(lines_of, f"Sweep {name}: {heading}", about=[row for _, row in shown]))
    return tables

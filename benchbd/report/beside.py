"""Two sets of records side by side: boards, runs, or two laboratories, with paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchbd.planning.sweeps import point_text
from benchbd.records.models import Metrics, Record
from benchbd.report.controls import precision_of, task_name
from benchbd.report.document import Column, Document, Frame, Section, Table, Value
from benchbd.report.rows import BY_NAME, Order, rank_of, rounded
from benchbd.report.statistics import Interval, interval

_COLUMNS = (
    *(Column("Attack", "words", brief="attack"), Column("Defense", "words", brief="defense")),
    Column("n", "seeds"),
    *(Column(which, "percent", over="ACC", least=5) for which in ("A", "B")),
    Column("B - A", "change", over="ACC", least=5),
    *(Column(which, "percent", over="ASR non-target", least=5) for which in ("A", "B")),
    Column("B - A", "change", over="ASR non-target", least=5),
    Column("Same key", "words", brief="same key", rank=1),
)

_Cell = tuple[str, str, str, str, str]
"""Pre-training set and task, evaluator, precision, attack, defense; with beside and point in the first."""


def document(a: Iterable[Record], b: Iterable[Record], names: tuple[str, str], order: Order = BY_NAME) -> Document:
    """A row for every cell that both have on at least one seed. names: of the two sets, for the reader."""
    one, other = _by_cell(a), _by_cell(b)
    shared = sorted(one.keys() & other.keys(), key=lambda cell: _rank(cell, order))
    tables: dict[str, list[list[Value]]] = {}
    lines: list[dict[str, Any]] = []
    for cell in shared:
        pairs = [(one[cell][seed], other[cell][seed]) for seed in sorted(one[cell].keys() & other[cell].keys())]
        known = [(x, y, x.metrics, y.metrics) for x, y in pairs if x.metrics and y.metrics]
        if not known:
            continue
        place, evaluator, precision, attack, defense = cell
        figures = [*_figures(known, "acc"), *_figures(known, "asr_nontarget")]
        same = sum(x.key == y.key for x, y, *_ in known)
        heading = f"{place}, evaluator {evaluator}{', bf16' * (precision == 'bf16')}"
        row: list[Value] = [attack, defense, len(known), *figures, f"{same} of {len(known)}"]
        tables.setdefault(heading, []).append(row)
        lines.append(
            {
                **dict(zip(("place", "evaluator", "precision", "attack", "defense"), cell, strict=True)),
                "n": len(known),
                **{
                    f"{metric}_{which}{part}": rounded(value)
                    for metric, three in (("acc", figures[:3]), ("asr_nontarget", figures[3:]))
                    for which, each in zip(("a", "b", "change"), three, strict=True)
                    for part, value in (("", each.mean), ("_half", each.half))
                },
                "same_keys": same,
            }
        )
    only = [sum(len(seeds) for cell, seeds in known.items() if cell not in shared) for known in (one, other)]
    remarks = [f"Only in {name}: {count} records." for name, count in zip("AB", only, strict=True) if count]
    return Document(
        title=f"A: {names[0]}; B: {names[1]}",
        sections=[Section(_COLUMNS, [Table(rows, heading) for heading, rows in tables.items()])] * bool(tables),
        empty="The two have no cell in common.",
        legend=[
            "Percent, mean over the seeds that both have; B - A: percentage points, seed by seed, with the half-width "
            "of the 95 % interval over seeds. Same key: records of one identity, which differ by the machine alone."
        ],
        remarks=remarks,
        frames=[Frame(list(lines[0]), lines)] if lines else [],
        data={"a": names[0], "b": names[1], "rows": lines},
    )


def _by_cell(records: Iterable[Record]) -> dict[_Cell, dict[int, Record]]:
    found: dict[_Cell, dict[int, Record]] = {}
    for record in records:
        if record.on_board:
            beside = f", not attacked ({' + '.join(record.beside)})" if record.beside else ""
            point = f" at {point_text(record.point)}" if record.point else ""
            place = f"{record.pretrain} -> {task_name(record)}{beside}{point}"
            cell = place, record.evaluator, precision_of(record), record.attack, record.defense
            found.setdefault(cell, {})[record.seed] = record
    return found


def _figures(known: Sequence[tuple[Record, Record, Metrics, Metrics]], metric: str) -> list[Interval]:
    pairs = [(getattr(x, metric), getattr(y, metric)) for _, _, x, y in known]
    return [interval(x for x, _ in pairs), interval(y for _, y in pairs), interval(y - x for x, y in pairs)]


def _rank(cell: _Cell, order: Order) -> tuple[object, ...]:
    place, evaluator, precision, attack, defense = cell
    return place, evaluator, precision, rank_of(attack, order.attacks), rank_of(defense, order.defenses)

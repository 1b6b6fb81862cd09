"""Records of several seeds, summarised: one row per (pretrain, task, evaluator, attack, defense).

All metrics are percentages, all differences percentage points. Only records are read; torch is never imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any, get_args

from benchbd.base.content import short_digests
from benchbd.base.errors import DataError
from benchbd.contract.roles import Role
from benchbd.planning.board import Board, Tuned
from benchbd.planning.claims import Claim
from benchbd.planning.sweeps import labelled, point_text
from benchbd.records.gates import DEFAULT, Gates, Judged, Judgement, judge
from benchbd.records.models import Record
from benchbd.report.controls import Controls, departures, place, precision_of, task_name
from benchbd.report.protocols import check_protocol, check_together
from benchbd.report.statistics import Interval, interval


@dataclass(frozen=True)
class Order:
    """The board's order of rows, its gates, claims and rule of trials. Floors come first in any case; names missing
    from a list are sorted after those in it.

    tasks: pairs of pre-training set and task, the latter with its target as index or name ("gtsrb:12").
    sweeps: by name, label and point of every line.
    """

    attacks: Sequence[str] = ()
    defenses: Sequence[str] = ()
    tasks: Sequence[tuple[str, str]] = ()
    evaluators: Sequence[str] = ()
    sweeps: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    gates: Gates = DEFAULT
    claims: Mapping[str, Claim] = field(default_factory=dict)
    tuned: Tuned | None = None

    @classmethod
    def of(cls, board: Board) -> Order:
        """The order in which a board lists names, its gates, claims and rule of trials."""
        tasks = [(row.pretrain, task) for row in board.rows for task in row.evaluated]
        sweeps = {
            sweep.name: [(label, point_text(point)) for label, point in labelled(board, sweep)]
            for sweep in board.sweeps
        }
        attacks, defenses, evaluators = map(board.names, ("attack", "defense", "evaluator"))
        return cls(attacks, defenses, tasks, evaluators, sweeps, board.gates, board.claims, board.tuned)


BY_NAME = Order()

_NOTHING = Interval()


_OPTIONAL = (
    "ra",
    "ra_b",
    "certified",
    "acc_to_bn",
    "asr_nontarget_to_bn",
    "asr_nontarget_to_own_floor",
)  # omitted if no row has them


@dataclass(frozen=True)
class TableRow:
    """One line of a table: the seeds of one (pretrain, task, evaluator, attack, defense) combined.

    seeds: those with numbers. The statuses count all seeds, including those without numbers.
    ..._to_floor, ..._to_scratch, ..._to_bn: means of differences taken seed by seed, to the clean encoder, to the
    defense from scratch, and to the one that only computes BatchNorm's statistics again.
    scratch_seeds, bn_seeds: the seeds with such a run to compare with.
    asr_nontarget_to_own_floor: as above, to the same defense of the clean encoder; own_floor_seeds: those with its run.
    seconds, image_forwards: means over the seeds, of the defense alone.
    precision: of the last stage, ``fp32`` or ``bf16``; empty if the records do not say.
    departures: the options in which the row is off-board; empty if it is on-board.
    point: assignments of a sweep's point; empty for the board's grid.
    beside: for a task without an attack, the attacked tasks; otherwise empty.
    sources: the number of laboratories that measured every seed of the row; the figures are those of the first.
    """

    pretrain: str = ""
    task: str = ""
    target_name: str = ""
    evaluator: str = ""
    attack: str = ""
    defense: str = ""
    attack_role: Role = Role.METHOD
    defense_role: Role = Role.METHOD
    precision: str = ""
    departures: tuple[str, ...] = ()
    point: str = ""
    beside: str = ""
    seeds: tuple[int, ...] = ()
    acc: Interval = _NOTHING
    asr: Interval = _NOTHING
    asr_nontarget: Interval = _NOTHING
    ca: Interval = _NOTHING
    asr_b: Interval = _NOTHING
    asr_b_nontarget: Interval = _NOTHING
    ra: Interval = _NOTHING
    ra_b: Interval = _NOTHING
    certified: Interval = _NOTHING
    acc_to_floor: Interval = _NOTHING
    asr_nontarget_to_floor: Interval = _NOTHING
    acc_to_scratch: Interval = _NOTHING
    asr_nontarget_to_scratch: Interval = _NOTHING
    scratch_seeds: tuple[int, ...] = ()
    acc_to_bn: Interval = _NOTHING
    asr_nontarget_to_bn: Interval = _NOTHING
    bn_seeds: tuple[int, ...] = ()
    asr_nontarget_to_own_floor: Interval = _NOTHING
    own_floor_seeds: tuple[int, ...] = ()
    statuses: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    image_forwards: float | None = None
    pretrain_pinned: bool = False
    sources: int = 1
    notes: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """The table that the row belongs to: one for every place and every kind of departure."""
        name = "" if self.task.endswith(f":{self.target_name}") else f" ({self.target_name})"
        off = f"; off-board: {short_digests(', '.join(self.departures))}" if self.departures else ""
        spared = f", not attacked ({self.beside})" if self.beside else ""
        half = ", bf16" if self.precision == "bf16" else ""
        return f"{self.pretrain} -> {self.task}{name}{spared}, evaluator {self.evaluator}{half}{off}"

    @property
    def of_floor(self) -> bool:
        """Whether the row is the clean encoder itself."""
        return self.attack_role is self.defense_role is Role.FLOOR

    @property
    def status(self) -> str:
        """The status that all seeds share, or the number of seeds with each."""
        shared = len(self.statuses) == 1
        text = ", ".join(name if shared else f"{count} {name}" for name, count in self.statuses.items())
        return f"{text}, off-board" if self.departures else text

    def flat(self) -> dict[str, Any]:
        """Numbers and lists by name; a half-width follows its mean as ``..._half``."""
        flat: dict[str, Any] = {}
        for name in (each.name for each in fields(self) if not each.name.endswith("_role")):
            value = getattr(self, name)
            if isinstance(value, Interval):
                flat |= {name: rounded(value.mean), f"{name}_half": rounded(value.half)}
            elif name == "statuses":
                flat |= {_column(status): value.get(status, 0) for status in get_args(Judged)}
            elif isinstance(value, tuple):
                flat |= {"n": len(value)} if name == "seeds" else {}
                flat[name] = list(value)
            else:
                flat[name] = rounded(value) if isinstance(value, float) else value
        return flat


def flattened(rows: Sequence[TableRow]) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of ``flat`` and the rows by these names, without those of ``_OPTIONAL`` that no row has."""
    flat = [row.flat() for row in rows]
    absent = {name for name in _OPTIONAL if all(each[name] is None for each in flat)}
    absent |= {
        name for name in ("point", "beside", "bn_seeds", "own_floor_seeds") if not any(each[name] for each in flat)
    }
    absent |= {"sources"} if all(each["sources"] == 1 for each in flat) else set()
    names = [name for name in TableRow().flat() if name.removesuffix("_half") not in absent]
    return names, [{name: each[name] for name in names} for each in flat]


def summarise(records: Sequence[Record], order: Order, off_board: bool) -> list[TableRow]:
    """The rows of the board, in its order. DataError if a cell has two records, or a row or a seed has two
    protocols."""
    cells: dict[tuple[object, ...], dict[int, Record]] = {}
    for record in sorted(records, key=lambda record: (record.seed, record.name)):
        if record.on_board or off_board:
            seeds = cells.setdefault((*place(record), record.attack, record.defense), {})
            other = seeds.setdefault(record.seed, record)
            if other != record:  # counting both as seeds would make the interval too narrow
                keys = f"keys {other.key[:12]} and {record.key[:12]}"
                raise DataError(
                    f"{other.file} and {record.file}: two records of one cell, {keys}; remove the one out of date"
                )
    for seeds in cells.values():
        check_protocol(list(seeds.values()))
    check_together(record for seeds in cells.values() for record in seeds.values())
    controls = Controls(record for seeds in cells.values() for record in seeds.values())

    def rank(records: Sequence[Record]) -> tuple[object, ...]:
        first = records[0]
        names = {(first.pretrain, task) for task in (task_name(first), f"{first.task}:{first.target_name}", first.task)}
        listed = [place for place, pair in enumerate(order.tasks) if tuple(pair) in names]
        return (
            listed[0] if listed else len(order.tasks),
            (first.pretrain, first.task, first.target, first.beside),  # the target as a number: gtsrb:9 before gtsrb:12
            point_text(first.point),
            *rank_of(first.evaluator, order.evaluators),
            *rank_of(first.attack, order.attacks, first.attack_role),
            *rank_of(first.defense, order.defenses, first.defense_role),
            departures(first),
        )

    return [
        row_of(cell, controls, order.gates)
        for cell in sorted((list(seeds.values()) for seeds in cells.values()), key=rank)
    ]


def row_of(records: Sequence[Record], controls: Controls, gates: Gates) -> TableRow:
    """The row of one cell's records, one a seed."""
    first = records[0]
    judgements = [judge(record, gates) for record in records]
    measured = [(record, record.metrics) for record in records if record.metrics]
    floored = [(metrics, record.baseline) for record, metrics in measured if record.baseline]
    compared, partly = controls.compared(measured)
    statuses = Counter(status for status, _ in judgements)
    pretrainings = [record.stages.get("pretrain") for record, _ in measured]
    return TableRow(
        pretrain=first.pretrain,
        task=task_name(first),
        target_name=first.target_name,
        evaluator=first.evaluator,
        attack=first.attack,
        defense=first.defense,
        attack_role=first.attack_role,
        defense_role=first.defense_role,
        precision=precision_of(first),
        departures=departures(first),
        point=point_text(first.point),
        beside=" + ".join(first.beside),
        seeds=tuple(record.seed for record, _ in measured),
        acc=interval(metrics.acc for _, metrics in measured),
        asr=interval(metrics.asr for _, metrics in measured),
        asr_nontarget=interval(metrics.asr_nontarget for _, metrics in measured),
        ca=interval(floor.ca for _, floor in floored),
        asr_b=interval(floor.asr_b for _, floor in floored),
        asr_b_nontarget=interval(floor.asr_b_nontarget for _, floor in floored),
        ra=interval(metrics.ra for _, metrics in measured if metrics.ra is not None),
        ra_b=interval(floor.ra_b for _, floor in floored if floor.ra_b is not None),
        certified=interval(metrics.certified for _, metrics in measured if metrics.certified is not None),
        acc_to_floor=interval(metrics.acc - floor.ca for metrics, floor in floored),
        asr_nontarget_to_floor=interval(metrics.asr_nontarget - floor.asr_b_nontarget for metrics, floor in floored),
        statuses={status: statuses[status] for status in get_args(Judged) if statuses[status]},
        seconds=_mean(record.seconds for record in records),
        image_forwards=_mean(defense_forwards(record) for record in records),
        sources=min((1 + len(record.replicates) for record, _ in measured), default=1),
        pretrain_pinned=len(measured) > 1 and None not in pretrainings and len(set(pretrainings)) == 1,
        notes=(*_notes(records, judgements), *partly),
        **compared,
    )


def _notes(records: Sequence[Record], judgements: Sequence[Judgement]) -> tuple[str, ...]:
    said: dict[str, list[int]] = {}
    for record, (status, reason) in zip(records, judgements, strict=True):
        texts = [f"{status}: {reason}"] if reason else []
        for text in dict.fromkeys([*texts, *_reproduced(record), *record.notes]):
            said.setdefault(" ".join(text.split()), []).append(record.seed)
    return tuple(
        text if len(seeds) == len(records) else f"{text} (seed {', '.join(map(str, seeds))})"
        for text, seeds in said.items()
    )


def _reproduced(record: Record) -> Iterator[str]:
    """What the laboratories of a cell measured, where there are several: that of the record first."""
    each = [one.metrics for one in (record, *record.replicates) if one.metrics]
    if len(each) > 1:
        acc, asr = (", ".join(f"{getattr(m, name):.1f}" for m in each) for name in ("acc", "asr_nontarget"))
        yield f"reproduced by {len(each)}: ACC {acc}; ASR non-target {asr}"


def defense_forwards(record: Record) -> int | None:
    """Image-forwards of the defense; None if none was run."""
    cost = record.cost.get("defend")
    return cost.image_forwards if cost else None


def rank_of(name: str, names: Sequence[str], role: Role = Role.METHOD) -> tuple[bool, int, str]:
    """A sort key: floors, then ``names`` in their order, then the others by name."""
    known = name in names
    return role is not Role.FLOOR, names.index(name) if known else len(names), "" if known else name


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def rounded(value: float | None) -> float | None:
    """A number rounded to a millionth: finer than N images can resolve, coarser than differences between machines."""
    return None if value is None else round(value, 6) + 0.0


def _column(status: str) -> str:
    return status.replace("/", "").replace("-", "_")

"""Trials of a defense, the one that clean images choose among them, and its figures beside the board's setting.

The choice sees no label, trigger or test image. Only records are read; torch is never imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchbd.base.errors import DataError
from benchbd.contract.roles import Role
from benchbd.planning.board import Tuned
from benchbd.records.gates import Gates
from benchbd.records.models import TRIAL, Record
from benchbd.report.controls import Controls, departures, task_name
from benchbd.report.document import Column, Noted, Section, Table, Value
from benchbd.report.rows import Order, TableRow, rounded, row_of
from benchbd.report.statistics import Interval, interval

_RANKED = (Role.METHOD, Role.FT)

_METRICS = ("acc", "asr_nontarget", "ra")

_ROUNDING = 1e-9  # pretext accuracies are quotients of counts


class Trial(NamedTuple):
    """One setting of a defense, of one encoder. number: 0 is the board's own setting. pretext: pretext accuracy on
    clean images, 0..1; cosine: mean cosine of their features before and after; None if not measured."""

    number: int
    pretext: float | None = None
    cosine: float | None = None


def taken(trials: Iterable[Trial], tolerance: float) -> int:
    """The number of the trial that clean images choose: of those whose pretext accuracy is at most ``tolerance`` below
    trial 0's, the one with the lowest cosine, and of equal ones the first. 0 if trial 0 was not measured.

    A repair is to move the features, where a backdoor is, without loss of what the features are good for.
    """
    known = {each.number: each for each in trials if each.pretext is not None and each.cosine is not None}
    if 0 not in known:
        return 0
    least = (known[0].pretext or 0) - tolerance - _ROUNDING
    allowed = [(each.cosine, each.number) for each in known.values() if (each.pretext or 0) >= least]
    return min(allowed)[1]


@dataclass(frozen=True)
class TunedRow:
    """A defense under the board's setting and under the trial that was taken, over the same seeds.

    taken: the trial of each seed. acc, asr_nontarget, ra: tuned minus default, in points, seed by seed. trials: every
    trial of every seed, for programs. notes: what is missing.
    """

    default: TableRow
    tuned: TableRow
    taken: tuple[int, ...]
    acc: Interval
    asr_nontarget: Interval
    ra: Interval
    trials: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def flat(self) -> dict[str, Any]:
        """Numbers and lists by name; a half-width follows its mean as ``..._half``."""
        names = ("pretrain", "task", "evaluator", "beside", "attack", "defense")
        flat: dict[str, Any] = {name: getattr(self.default, name) for name in names}
        flat |= {"seeds": list(self.default.seeds), "taken": list(self.taken)}
        for metric in _METRICS:
            for part, figure in (
                ("default", getattr(self.default, metric)),
                ("tuned", getattr(self.tuned, metric)),
                ("difference", getattr(self, metric)),
            ):
                flat |= {f"{metric}_{part}": rounded(figure.mean), f"{metric}_{part}_half": rounded(figure.half)}
        return {**flat, "status": self.tuned.status, "notes": list(self.notes), "trials": list(self.trials)}


def untried(records: Iterable[Record]) -> list[Record]:
    """The records that are not of trials from 1 on."""
    return [record for record in records if TRIAL not in record.point]


def tuned_rows(records: Iterable[Record], rows: Iterable[TableRow], order: Order, off_board: bool) -> list[TunedRow]:
    """A row for each of a board's rows that has trials. rows: those of its grid, in their order.

    DataError if a trial of one cell has two records.
    """
    shown = [record for record in records if record.on_board or off_board]
    if not (numbers := [record.point[TRIAL] for record in shown if TRIAL in record.point]):
        return []
    cells: dict[tuple[object, ...], dict[int, dict[int, Record]]] = {}
    for record in sorted(shown, key=lambda record: (record.seed, record.name)):
        number = record.point.get(TRIAL, None if record.point else 0)
        if number is None:
            continue
        trials = cells.setdefault(_place(record), {}).setdefault(record.seed, {})
        if (other := trials.setdefault(number, record)) is not record and other != record:
            raise DataError(f"{other.file} and {record.file}: two records of one trial; remove the one out of date")
    count, tolerance = (
        (order.tuned.trials, order.tuned.tolerance) if order.tuned else (max(numbers) + 1, Tuned().tolerance)
    )
    made = []
    for row in (row for row in rows if not row.point):
        seeds = cells.get((row.pretrain, row.task, row.evaluator, row.beside, row.departures, row.attack, row.defense))
        known = {seed: each for seed, each in (seeds or {}).items() if 0 in each and each[0].metrics and len(each) > 1}
        if known:
            made.append(_row(known, count, tolerance, order.gates))
    return made


def _place(record: Record) -> tuple[object, ...]:
    where = (record.pretrain, task_name(record), record.evaluator, " + ".join(record.beside), departures(record))
    return *where, record.attack, record.defense


def _row(seeds: Mapping[int, Mapping[int, Record]], count: int, tolerance: float, gates: Gates) -> TunedRow:
    """seeds: the trials with a record, by seed and number; trial 0 has metrics. count: how many each should have."""
    defaults, chosen, told, notes = [], [], [], []
    for seed, trials in seeds.items():
        measured = [_trial(number, record) for number, record in sorted(trials.items()) if record.metrics]
        number = taken(measured, tolerance)
        defaults.append(trials[0])
        chosen.append((number, trials[number]))
        told.append({"seed": seed, "taken": number, "trials": [_told(each, trials[each.number]) for each in measured]})
        if len(measured) < count:
            notes.append(f"seed {seed}: {len(measured)} of {count} trials have a result")
        if measured[0].pretext is None:
            notes.append(f"seed {seed}: trial 0 is from before its features were measured, so nothing is chosen")
    pairs = [(one.metrics, other.metrics) for one, (_, other) in zip(defaults, chosen, strict=True)]
    changes = {
        metric: interval(
            after - before
            for one, other in pairs
            if (before := getattr(one, metric)) is not None and (after := getattr(other, metric)) is not None
        )
        for metric in _METRICS
    }
    none = Controls(())
    return TunedRow(
        row_of(defaults, none, gates),
        row_of([record for _, record in chosen], none, gates),
        tuple(number for number, _ in chosen),
        **changes,
        trials=told,
        notes=tuple(notes),
    )


def _trial(number: int, record: Record) -> Trial:
    features = record.clean_features
    return Trial(number) if features is None else Trial(number, features.pretext, features.cosine)


def _told(trial: Trial, record: Record) -> dict[str, Any]:
    """A trial for programs: its setting, what chose, and what it led to."""
    setting = {option: value for option, value in record.point.items() if option != TRIAL}
    figures = {metric: rounded(getattr(record.metrics, metric)) for metric in _METRICS}
    return {"trial": trial.number, "setting": setting, "pretext": trial.pretext, "cosine": trial.cosine, **figures}


def _beside(name: str, rank: int = 0, apart: str = "") -> Iterator[Column]:
    """The columns of a metric: default, tuned and their difference."""
    yield from (Column(part, "percent", over=name, rank=rank, apart=apart) for part in ("default", "tuned"))
    yield Column("Δ", "change", over=name, rank=rank + 1, apart=apart or "Differences of tuned to default")


_COLUMNS = (
    Column("Attack", "words", brief="attack", points=46),
    Column("Defense", "words", brief="defense", points=34),
    Column("n", "seeds", detail=True),
    *_beside("ACC"),
    *_beside("ASR non-target"),
    *_beside("RA", rank=2, apart="RA, default and tuned"),
    Column("Trials taken", "words", brief="taken"),
    Column("Status", "words", brief="status", rank=4),
)


def legend(tuned: Tuned | None) -> str:
    """How to read the section. tuned: the board's rule, if it is known."""
    number = f"{tuned.trials} trials" if tuned else "the same number of trials"
    least = f"{(tuned or Tuned()).tolerance:g} below that of the board's setting (default, trial 0)"
    return (
        f"Tuned: every defense has {number}; for each attack, task and seed clean images choose one, without labels: "
        f"of the trials whose pretext accuracy is at most {least}, the one that moves features of clean images most. "
        "The rule is ours; no figure of the table takes part in it, and it cannot tell whether a backdoor remains. "
        "Status: of the tuned cells."
    )


BRIEF = "Tuned: the trial that clean images choose, beside the board's setting (trial 0). "


def tuned_section(rows: Sequence[TunedRow]) -> Iterator[Section]:
    """The section with a table for each place; none without rows."""
    groups: dict[str, list[TunedRow]] = {}
    for row in rows:
        groups.setdefault(row.default.heading, []).append(row)
    tables = [Table(list(map(_values, own)), f"Tuned: {heading}", about=own) for heading, own in groups.items()]
    if tables:
        yield Section(_COLUMNS, tables)


def tuned_remarks(rows: Sequence[TunedRow], grid: Iterable[TableRow]) -> Iterator[str]:
    """The ranked defenses of a board that have no trials, if others have; one line."""
    tried = {row.default.defense for row in rows}
    others = dict.fromkeys(row.defense for row in grid if row.defense_role in _RANKED and row.defense not in tried)
    if tried and others:
        yield f"Tuned leaves out {', '.join(others)}: without trials."


def _values(row: TunedRow) -> list[Value]:
    figures = [
        figure
        for metric in _METRICS
        for figure in (getattr(row.default, metric), getattr(row.tuned, metric), getattr(row, metric))
    ]
    chosen = Noted(", ".join(map(str, row.taken)), row.notes)
    return [row.default.attack, row.default.defense, len(row.taken), *figures, chosen, Noted(row.tuned.status)]

"""Detection records as a document: how well a detector separates a board's attacked encoders from its clean ones.

Only records are read; torch is never imported. An encoder whose attack did not take is no positive, only counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import pandas as pd

from benchbd.base.errors import DataError
from benchbd.contract.roles import Role
from benchbd.planning.sweeps import point_text
from benchbd.records.detection import DetectionRecord
from benchbd.records.gates import DEFAULT, Gates, judge
from benchbd.report.controls import departures, nearest_departures, precision_of
from benchbd.report.document import Column, Document, Frame, Noted, Section, Table, Value
from benchbd.report.protocols import check_protocol, check_together
from benchbd.report.rows import BY_NAME, Order, rank_of
from benchbd.report.statistics import auroc, auroc_interval, binomial_interval, true_positives

LEGEND = (
    "AUROC: chance that an attacked encoder scores higher than a clean one, with an interval of at least 95 % coverage "
    "for independent encoders at any number of them (Hoeffding's bound for two samples).",
    "TPR at FPR 0: share of attacked encoders above every clean one here; flagged: the detector's own verdict. Both "
    "with Clopper and Pearson's 95 % interval, the former given that threshold.",
    "Score: median (least to most), higher is more suspicious. Attacked encoders whose attack did not take are left "
    "out and counted under Status. The attacked encoder of a seed starts from its clean one.",
)


@dataclass(frozen=True)
class Population:
    """One detector against one attack: the scores of the clean encoders and of the attacked encoders.

    tasks: of the attacked encoders' row. left_out: encoders without a score, by status; clean ones as "clean failed".
    point: assignments of a sweep's point; empty for the board's grid. precision: of all verdicts.
    seconds, image_forwards: means over every inspection.
    """

    detection: str
    attack: str
    pretrain: str
    tasks: tuple[str, ...]
    departures: tuple[str, ...]
    clean: tuple[float, ...]
    attacked: tuple[float, ...]
    clean_flagged: int
    attacked_flagged: int
    left_out: dict[str, int]
    seconds: float | None
    image_forwards: float | None
    notes: tuple[str, ...]
    point: str = ""
    precision: str = ""

    @property
    def judged(self) -> bool:
        """Whether there are encoders of both kinds."""
        return bool(self.clean and self.attacked)

    @property
    def auroc(self) -> tuple[float, float, float] | None:
        """AUROC with its interval: (value, low, high)."""
        if not self.judged:
            return None
        value = auroc(self.clean, self.attacked)
        return value, *auroc_interval(value, len(self.clean), len(self.attacked))

    @property
    def found(self) -> int | None:
        """The number of attacked encoders that score above every clean one: TPR at FPR 0 is their share."""
        return true_positives(self.clean, self.attacked) if self.judged else None

    def flat(self) -> dict[str, object]:
        """Numbers and lists by name; shares are 0..1, None if a population is empty."""
        flat: dict[str, object] = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        flat |= {"n_clean": len(self.clean), "n_attacked": len(self.attacked)}
        value, low, high = self.auroc or (None, None, None)
        tpr = None if self.found is None else self.found / len(self.attacked)
        return flat | {"auroc": value, "auroc_low": low, "auroc_high": high, "tpr_at_fpr_0": tpr}


_Place = tuple[Any, ...]
"""(detection, pretrain, task, precision, point, departures) of clean encoders; of attacked ones then (tasks, attack).

task: the data set of the classifiers, if the detector inspects classifiers; else empty."""


def populations(
    records: Sequence[DetectionRecord], order: Order = BY_NAME, off_board: bool = False
) -> list[Population]:
    """One population per detector, attack and row of the board, in its order.

    DataError for two verdicts of one seed, and for encoders, or seeds, of two protocols.
    If only clean encoders were inspected, one population with attack "" reports their false positives.
    """
    groups: dict[_Place, dict[object, DetectionRecord]] = {}
    clean: dict[_Place, dict[object, DetectionRecord]] = {}
    for record in sorted(records, key=lambda record: (record.seed, record.name)):
        if record.on_board or off_board:
            whose = (record.detection, record.pretrain, _of_task(record), precision_of(record))
            place = (*whose, point_text(record.point), departures(record))
            if record.attack_role is Role.FLOOR:  # one encoder, whichever row or seed it was inspected for
                _take(clean.setdefault(place, {}), record.stages.get("pretrain", record.seed), record)
            else:
                _take(groups.setdefault((*place, tuple(record.tasks), record.attack), {}), record.seed, record)
    beside = {group: _clean_place(group, clean) for group in groups}
    for place in clean.keys() - beside.values():  # clean encoders alone still have their false positives
        groups[(*place, (), "")] = {}
        beside[(*place, (), "")] = place
    check_together(record for found in (groups, clean) for each in found.values() for record in each.values())

    def rank(place: _Place) -> tuple[object, ...]:
        detection, pretrain, of_task, precision, point, departures, row, attack = place
        tasks = [task for _, task in order.tasks]
        places = [at for at, task in enumerate(tasks) if task in row or of_task == task.rpartition(":")[0]]
        first = min(places, default=len(tasks))
        return (detection, departures, precision, point, first, of_task, pretrain, *rank_of(attack, order.attacks))

    return [
        _population(place, list(groups[place].values()), list(clean.get(beside[place], {}).values()), order.gates)
        for place in sorted(groups, key=rank)
    ]


def _clean_place(attacked: _Place, clean: Collection[_Place]) -> _Place:
    """The key of the clean encoders that attacked ones are compared with: it lacks departures of the attack alone."""
    *whose, point, departures = attacked[:6]
    for near in (point, ""):
        known = [place[5] for place in clean if place[:5] == (*whose, near)]
        if (nearest := nearest_departures(departures, known)) is not None:
            return *whose, near, nearest
    return attacked[:6]


def _of_task(record: DetectionRecord) -> str:
    """The data set of the classifier that a record is about; empty if it is about an encoder."""
    return record.tasks[0].rpartition(":")[0] if "head" in record.identity else ""


def _take(into: dict[object, DetectionRecord], encoder: object, record: DetectionRecord) -> None:
    """Count an encoder once. DataError if one seed has two verdicts: two would make the interval too narrow."""
    other = into.setdefault(encoder, record)
    if other.seed == record.seed and other.key != record.key:
        keys = f"keys {other.key[:12]} and {record.key[:12]}"
        raise DataError(
            f"{other.file} and {record.file}: two records of one encoder, {keys}; remove the one out of date"
        )


def _population(
    place: _Place, attacked: Sequence[DetectionRecord], clean: Sequence[DetectionRecord], gates: Gates
) -> Population:
    detection, pretrain, of_task, precision, point, departures, tasks, attack = place
    everyone = [*clean, *attacked]
    judged = {id(record): judge(record, gates) for record in everyone}
    positives = [(r.score, r.flagged) for r in attacked if judged[id(r)].status == "ok" and r.score is not None]
    negatives = [(r.score, r.flagged) for r in clean if judged[id(r)].status == "ok" and r.score is not None]
    others: list[str] = [status for r in attacked if (status := judged[id(r)].status) != "ok"]
    others += [f"clean {status}" for r in clean if (status := judged[id(r)].status) != "ok"]
    check_protocol(clean)
    check_protocol(attacked)
    check_protocol([*clean[:1], *attacked[:1]], ("pretrain", "detect"))
    costs = [record.cost["detect"] for record in everyone if "detect" in record.cost]
    notes = [f"{r.attack} seed {r.seed}: {': '.join(judged[id(r)])}" for r in everyone if judged[id(r)].reason]
    if len(attacked) > 1 and len({record.stages.get("pretrain", record.seed) for record in everyone}) == 1:
        notes.append("all encoders share one pre-training: the intervals leave it out")
    return Population(
        detection=detection,
        attack=attack,
        pretrain=pretrain,
        tasks=tasks or (of_task,) * bool(of_task),
        departures=departures,
        clean=tuple(score for score, _ in negatives),
        attacked=tuple(score for score, _ in positives),
        clean_flagged=sum(bool(flagged) for _, flagged in negatives),
        attacked_flagged=sum(bool(flagged) for _, flagged in positives),
        left_out={status: others.count(status) for status in sorted(set(others))},
        seconds=fmean(cost.seconds for cost in costs) if costs else None,
        image_forwards=fmean(cost.image_forwards for cost in costs) if costs else None,
        notes=tuple(dict.fromkeys([*notes, *_counted(everyone)])),
        point=point,
        precision=precision,
    )


def _counted(records: Sequence[DetectionRecord]) -> list[str]:
    """The detectors' remarks, each line once, with the number of encoders that it concerns."""
    said: dict[str, int] = {}
    for record in records:
        for note in dict.fromkeys(record.notes):
            said[note] = said.get(note, 0) + 1
    return [f"{note} ({count} of {len(records)} encoders)" for note, count in said.items()]


def frame(records: Iterable[DetectionRecord], gates: Gates = DEFAULT) -> pd.DataFrame:
    """One line per inspection: encoder, method, score, verdict, cost; its status is judged by ``gates``.

    point: the assignments of a sweep's point as text ("clean.images=250"); empty for the board's grid."""
    columns = ["detection", "attack", "pretrain", "tasks", "seed", "status", "reason", "score", "flagged", "seconds"]
    columns += ["precision", "on_board", "key"]
    lines = [
        {
            **record.model_dump(include={*columns}),
            **judge(record, gates)._asdict(),
            "precision": precision_of(record),
            "point": point_text(record.point),
        }
        for record in records
    ]
    return pd.DataFrame(lines, columns=[*columns, "point"])


def document(records: Iterable[DetectionRecord], order: Order = BY_NAME, off_board: bool = False) -> Document:
    """The populations and how to read them; an empty document if there are none."""
    found = populations(list(records), order, off_board)
    pointed = any(population.point for population in found)
    flat = [population.flat() for population in found]
    flat = [{name: each[name] for name in each if pointed or name != "point"} for each in flat]
    if not found:
        return Document(data=flat)
    return Document(
        sections=[
            Section(_COLUMNS, [Table([_values(each) for each in found], about=found)], stacked="{0} against {1} on {2}")
        ],
        legend=LEGEND,
        frames=[Frame(list(flat[0]), flat)],
        data=flat,
    )


_COLUMNS = (
    *(Column("Detector", "words", points=34), Column("Attack", "words", points=44)),
    Column("Encoders", "words", points=50),
    *(Column("Clean"), Column("Attacked"), Column("AUROC"), Column("TPR at FPR 0")),
    *(Column("Flagged clean"), Column("Flagged attacked")),
    *(Column(header, apart="Scores and cost") for header in ("Score clean", "Score attacked", "Image-forwards")),
    Column("Status", "words", apart="Scores and cost"),
)


def _values(population: Population) -> list[Value]:
    clean, attacked = population.clean, population.attacked
    status = ["ok"] if population.judged else ["no attacked encoders"] if clean else ["no clean encoders"]
    if not clean and any(status.startswith("clean ") for status in population.left_out):
        status = []  # the count explains why they have no score
    status += [f"{count} {status}" for status, count in population.left_out.items()]
    status += ["off-board"] if population.departures else []
    return [
        population.detection,
        population.attack or "-",
        _encoders(population),
        len(clean),
        len(attacked),
        "{:.3f} [{:.2f}, {:.2f}]".format(*population.auroc) if population.auroc else None,
        None if population.found is None else _share(population.found, len(attacked)),
        _share(population.clean_flagged, len(clean)),
        _share(population.attacked_flagged, len(attacked)),
        _scores(clean),
        _scores(attacked),
        None if population.image_forwards is None else f"{population.image_forwards:,.0f}",
        Noted(", ".join(status), population.notes),
    ]


def _encoders(population: Population) -> str:
    tasks = f" -> {' + '.join(population.tasks)}" if population.tasks else ""
    return f"{population.pretrain}{tasks}{f' at {population.point}' if population.point else ''}"


def _share(hits: int, trials: int) -> str | None:
    if not trials:
        return None
    low, high = binomial_interval(hits, trials)
    return f"{hits}/{trials} [{low:.2f}, {high:.2f}]"


def _scores(scores: Sequence[float]) -> str | None:
    return f"{median(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})" if scores else None

"""Compare a board with published figures: Table I of MIMIC, the ACC of clean encoders in its Table III, and the floors
(CA, ASR-B) of BadEncoder.

Figures are subtracted only if a block follows the papers' protocol: the same pre-training and downstream set,
target, trigger, number of test images, classifier and encoder. Otherwise only the orderings of the defenses are
compared, with the paper's cell of the same name or, if there is none, with its averages over six cells. Lengths of
training are not part of that rule; they are printed.

Only records are read, so torch is never imported; board and records alone determine the text. All metrics
are percentages, all differences percentage points; ASR counts every triggered test image, as the papers do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from benchbd.base.errors import UsageError
from benchbd.contract.roles import Role
from benchbd.papers.published import METRICS, NONE, Figure, Metric, PublishedFloor, published
from benchbd.planning.board import Board
from benchbd.records.models import Record
from benchbd.records.points import within
from benchbd.report.controls import task_name
from benchbd.report.rows import Order, TableRow, rank_of, summarise
from benchbd.report.statistics import Correlation, Interval, average_ranks, interval, spearman


class Ranks(NamedTuple):
    """Ranks of a defense, 1 for the best: the highest ACC, the lowest ASR."""

    ours: float
    paper: float


@dataclass(frozen=True)
class Line:
    """A defense in a block.

    figure: None if the paper lacks it. same_protocol: whether the block follows the papers' protocol.
    over_floor: our ASR less that of the clean encoder, seed by seed.
    paper_floor: the ASR of BadEncoder's clean encoder on the task of the paper's cell; None if it has none.
    ranks: by metric, if the defense is ranked. suspicions: numbers of those that concern the published cell.
    """

    row: TableRow
    figure: Figure | None
    over_floor: Interval
    paper_floor: float | None
    same_protocol: bool
    ranks: Mapping[Metric, Ranks]
    suspicions: tuple[int, ...]

    @property
    def sound(self) -> bool:
        """Whether every seed has numbers and the attack took. The papers have no gate on accuracy."""
        return _sound(self.row)

    def value(self, metric: Metric) -> Interval:
        """Our mean over seeds and the half-width of its interval."""
        return self.row.acc if metric == "acc" else self.row.asr

    def printed(self, metric: Metric) -> float | None:
        """The paper's figure."""
        return getattr(self.figure, metric) if self.figure else None

    @property
    def printed_over_floor(self) -> float | None:
        """The paper's ASR less that of a clean encoder, which says whether a repair left anything."""
        asr = self.printed("asr")
        return None if asr is None or self.paper_floor is None else asr - self.paper_floor

    def difference(self, metric: Metric) -> float | None:
        """Our mean minus the paper's figure, for a sound line of a block under the papers' protocol."""
        ours, paper = self.value(metric).mean, self.printed(metric)
        comparable = self.sound and self.same_protocol
        return None if ours is None or paper is None or not comparable else ours - paper


@dataclass(frozen=True)
class Block:
    """One (pretrain, task, evaluator, attack) of the board beside the paper.

    differs: the differences from the papers' protocol; if empty, figures may be subtracted.
    cell: whether the paper has a cell of this name; else its averages replace it.
    trained: the length of training, a phrase. missing: defenses of the paper without a row here.
    """

    pretrain: str
    task: str
    target_name: str
    evaluator: str
    attack: str
    differs: tuple[str, ...]
    cell: bool
    trained: str
    lines: tuple[Line, ...]
    correlations: Mapping[Metric, Correlation]
    missing: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether the block is about clean encoders."""
        return self.lines[0].row.attack_role is Role.FLOOR

    @property
    def heading(self) -> str:
        """The attack, then the heading of the leaderboard's table."""
        return f"{self.attack} on {self.lines[0].row.heading}"

    @property
    def foreign(self) -> tuple[str, ...]:
        """Defenses that the paper lacks."""
        return tuple(line.row.defense for line in self.lines if line.figure is None)


@dataclass(frozen=True)
class MeanRank:
    """A defense's mean rank over the blocks that rank it by a metric."""

    defense: str
    blocks: int
    means: Mapping[Metric, Ranks]


@dataclass(frozen=True)
class Floor:
    """The clean encoder of a (pretrain, task, evaluator): ours over seeds, and the papers' if they have the task.

    mimic_ca: MIMIC's ACC of its clean encoder. share_of_target: percent of the papers' test images.
    """

    pretrain: str
    task: str
    evaluator: str
    seeds: tuple[int, ...]
    ca: Interval
    asr_b: Interval
    badencoder: PublishedFloor | None
    mimic_ca: float | None
    share_of_target: float | None
    suspicions: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """A board beside the paper.

    foreign: attacks of the board that the paper lacks. absent: (attack, pretrain, downstream) of Table I without a
    block of that name. left_out: number of off-board records, which are not compared.
    """

    board: str
    title: str
    blocks: tuple[Block, ...]
    mean_ranks: tuple[MeanRank, ...]
    floors: tuple[Floor, ...]
    foreign: tuple[str, ...]
    absent: tuple[tuple[str, str, str], ...]
    left_out: int


def compare(board: Board, records: Iterable[Record]) -> Comparison:
    """Compare the on-board records of a board with the paper. UsageError if no cell has a counterpart."""
    known = [record for record in records if not record.point]
    shown = [record for record in known if record.on_board]
    paper, order = published(), Order.of(board)
    groups: dict[
        tuple[str, str, str, str], list[TableRow]
    ] = {}  # an absent attack is NONE in the paper, whatever its name here
    for row in summarise(shown, order, off_board=False):
        groups.setdefault((row.pretrain, row.task, row.evaluator, _attack(row)), []).append(row)
    members: dict[tuple[str, str, str, str], list[Record]] = {place: [] for place in groups}
    for record in shown:
        members[record.pretrain, task_name(record), record.evaluator, _attack(record)].append(record)
    blocks = [block for place, rows in groups.items() if (block := _block(rows, members[place], board))]
    if not any(line.figure and line.row.seeds for block in blocks for line in block.lines):
        attacks = ", ".join(paper.averages)
        off = f"; {len(known) - len(shown)} are off-board" if len(known) > len(shown) else ""
        raise UsageError(
            f"board {board.name}: nothing to compare: none of {len(known)} records is an on-board cell with numbers of "
            f"an attack ({attacks}) and a defense of the paper{off}"
        )
    names = {(_attack(block.lines[0].row), block.pretrain, block.task.partition(":")[0]) for block in blocks}
    return Comparison(
        board=board.name,
        title=board.title,
        blocks=tuple(blocks),
        mean_ranks=_mean_ranks(blocks, order.defenses),
        floors=_floors(groups, shown),
        foreign=tuple(dict.fromkeys(p[3] for p in groups if p[3] != NONE and p[3] not in paper.averages)),
        absent=tuple(place for place in paper.cells if place not in names and place[0] in paper.averages),
        left_out=len(known) - len(shown),
    )


def _block(rows: Sequence[TableRow], records: Sequence[Record], board: Board) -> Block | None:
    """The block; None if the paper has no counterpart: another attack, or clean encoders under another protocol."""
    paper, first, one = published(), rows[0], records[0]
    place = _attack(first), first.pretrain, one.task
    figures = paper.cells.get(place) or paper.averages.get(place[0])
    differs = _differs(place, records)
    if not figures or (place[0] == NONE and differs):  # Table III has one defense: there is no ordering
        return None
    cell = place in paper.cells
    floor = paper.floors.get((place[1], place[2])) if cell else None
    ranked = {metric: _ranked(rows, figures, metric) for metric in METRICS}
    lines = tuple(
        Line(
            row=row,
            figure=figures.get(_defense(row)),
            over_floor=interval(
                record.metrics.asr - record.baseline.asr_b
                for record in records
                if record.defense == row.defense and record.metrics and record.baseline
            ),
            paper_floor=floor.asr_b if floor else None,
            same_protocol=not differs,
            ranks={metric: places[row.defense] for metric, (places, _) in ranked.items() if row.defense in places},
            suspicions=_suspicions(" ".join((*place, _defense(row)))) if cell else (),
        )
        for row in rows
    )
    return Block(
        pretrain=first.pretrain,
        task=first.task,
        target_name=first.target_name,
        evaluator=first.evaluator,
        attack=first.attack,
        differs=differs,
        cell=cell,
        trained=_trained(one, board),
        lines=lines,
        correlations={metric: correlation for metric, (_, correlation) in ranked.items()},
        missing=tuple(defense for defense in figures if defense not in set(map(_defense, rows))),
    )


def _attack(of: TableRow | Record) -> str:
    """The paper's name of an attack."""
    return NONE if of.attack_role is Role.FLOOR else of.attack


def _defense(row: TableRow) -> str:
    """The name of a defense in ``published``."""
    return NONE if row.defense_role is Role.FLOOR else row.defense


def _differs(place: tuple[str, str, str], records: Sequence[Record]) -> tuple[str, ...]:
    """The reasons not to subtract a block's figures from the paper's, a phrase each."""
    paper = published()
    setting = paper.tasks.get(place[2])
    said = []
    if place not in paper.cells or setting is None:
        said.append("the paper has no such cell")
    else:
        targets = {record.target for record in records}
        tests = {record.counts.total for record in records if record.counts}
        said += [f"target {_list(targets)}, not {setting.target}"] if targets != {setting.target} else []
        if tests != {setting.test}:
            said.append(f"{_list(f'{n:,}' for n in tests)} test images, not {setting.test:,}")
    archs = {
        str(arch) for record in records if (arch := within(record.identity, "pretrain", "method", "options", "arch"))
    }
    evaluators = {record.evaluator for record in records}
    triggers = {
        str(digest) for record in records if (digest := within(record.identity, "evaluate", "params", "trigger"))
    }
    said += [f"encoder {_list(archs)}, not {paper.arch}"] if archs != {paper.arch} else []
    said += [f"evaluator {_list(evaluators)}, not {paper.evaluator}"] if evaluators != {paper.evaluator} else []
    said += ["not known to be the 10x10 white trigger"] if triggers != {paper.trigger} else []
    return tuple(said)


def _list(values: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, values))) or "unknown"


def _trained(record: Record, board: Board) -> str:
    name = within(record.identity, "pretrain", "method", "name")
    lengths = {unit: within(record.identity, "pretrain", "method", "options", unit) for unit in ("steps", "epochs")}
    unit = next((unit for unit, length in lengths.items() if isinstance(length, int)), None)
    said = [f"pre-training {name}, {lengths[unit]:,} {unit}"] if unit else []
    if board.budget.steps is not None:
        said.append(f"{board.budget.steps:,} steps for every defense that counts in steps")
    return "; ".join(said)


def _ranked(
    rows: Sequence[TableRow], figures: Mapping[str, Figure], metric: Metric
) -> tuple[dict[str, Ranks], Correlation]:
    """Ranks of the defenses that both sides have, and the correlation of the two rankings.

    Undefended rows are excluded: their rank is known in advance, and would only raise the correlation.
    """
    sign = -1 if metric == "acc" else 1
    ours, theirs = {}, {}
    for row in rows:
        mean = (row.acc if metric == "acc" else row.asr).mean
        printed = getattr(figures.get(_defense(row)), metric, None)
        sound = row.defense_role is not Role.FLOOR and _sound(row)
        if sound and mean is not None and printed is not None:
            ours[row.defense], theirs[row.defense] = sign * mean, sign * printed
    if len(ours) < 2:
        return {}, Correlation(len(ours))
    pairs = zip(average_ranks(list(ours.values())), average_ranks(list(theirs.values())), strict=True)
    ranks = {defense: Ranks(*pair) for defense, pair in zip(ours, pairs, strict=True)}
    return ranks, spearman(list(ours.values()), list(theirs.values()))


def _mean_ranks(blocks: Sequence[Block], order: Sequence[str]) -> tuple[MeanRank, ...]:
    ranks: dict[str, list[Mapping[Metric, Ranks]]] = {}
    for block in blocks:
        for line in block.lines:
            if len(line.ranks) == len(METRICS):
                ranks.setdefault(line.row.defense, []).append(line.ranks)
    return tuple(
        MeanRank(
            defense,
            len(ranks[defense]),
            {metric: Ranks(*map(fmean, zip(*(r[metric] for r in ranks[defense]), strict=True))) for metric in METRICS},
        )
        for defense in sorted(ranks, key=lambda name: rank_of(name, order))
    )


def _floors(places: Iterable[tuple[str, str, str, str]], records: Sequence[Record]) -> tuple[Floor, ...]:
    paper = published()
    floors = []
    for pretrain, task, evaluator in dict.fromkeys(place[:3] for place in places):
        seeds = {
            record.seed: record.baseline
            for record in records
            if (record.pretrain, task_name(record), record.evaluator) == (pretrain, task, evaluator) and record.baseline
        }
        name, _, target = task.partition(":")
        setting = paper.tasks.get(name)
        theirs = setting is not None and int(target) == setting.target
        badencoder = paper.floors.get((pretrain, name)) if theirs else None
        clean = paper.cells.get((NONE, pretrain, name), {}).get(NONE) if theirs else None
        floors.append(
            Floor(
                pretrain=pretrain,
                task=task,
                evaluator=evaluator,
                seeds=tuple(sorted(seeds)),
                ca=interval(seeds[seed].ca for seed in sorted(seeds)),
                asr_b=interval(seeds[seed].asr_b for seed in sorted(seeds)),
                badencoder=badencoder,
                mimic_ca=clean.acc if clean else None,
                share_of_target=100 * setting.of_target / setting.test if setting and theirs else None,
                suspicions=_suspicions(f"floor {pretrain} {name}") if badencoder else (),
            )
        )
    return tuple(floors)


def _suspicions(cell: str) -> tuple[int, ...]:
    return tuple(number for number, each in enumerate(published().suspicions) if cell in each.cells)


def _sound(row: TableRow) -> bool:
    return bool(row.statuses) and row.statuses.keys() <= {"ok", "collapsed"}

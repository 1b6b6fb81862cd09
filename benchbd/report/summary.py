"""The summary of a board: one row a defense over all its attacks, tasks and seeds, with ranks and their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, NamedTuple

from benchbd.contract.roles import Role
from benchbd.records.models import Record
from benchbd.report import claims
from benchbd.report.claims import Claimed, claimed
from benchbd.report.controls import departures, precision_of, task_name
from benchbd.report.document import Column, Frame, Noted, Section, Table, Value
from benchbd.report.ranking import Place, Score, Standing, by_seed, ranking, spread
from benchbd.report.rows import Order, rank_of, rounded
from benchbd.report.statistics import Interval
from benchbd.report.writers.cells import letter

REFERENCES = (Role.SCRATCH, Role.BN, Role.FT)
"""The roles of defenses to which the summary shows differences."""

_APART = (Role.FLOOR, Role.SCRATCH, Role.BN, Role.ORACLE)
"""The roles of defenses that have no rank: what stands beside, and what uses more than a defender has."""

_COLUMNS = (
    Column("Rank"),
    Column("Ties"),
    Column("Defense", "words", brief="defense", points=40),
    Column("n", "seeds", detail=True),
    *(Column("ACC", "percent"), Column("Δ floor ACC", "change", brief="Δ ACC", rank=2)),
    Column("ASR non-target", "percent", brief="ASR-nt", rank=1),
    Column("RA", "percent", rank=1, apart="RA"),
    Column("Residual", "percent", brief="residual"),
    Column("Worst attack", "words", brief="worst", rank=3, least=12, apart="Worst attacks"),
    *(
        Column(metric, "change", over=f"Δ {role}", rank=4, least=5, apart="Differences to the references")
        for role in REFERENCES
        for metric in ("ACC", "ASR")
    ),
    *(
        Column(metric, over="Reported", rank=4, apart="Figures that the authors of the defenses reported")
        for metric in ("ACC", "ASR")
    ),
    Column("Cells", "words", brief="cells"),
)

LEGEND = (
    "Summary: a row a defense over all attacks that took, tasks and seeds. Residual: points of ASR non-target above "
    "the clean encoder's, at least 0; a cell that collapsed or has no result counts as undefended. Rank: by residual, "
    "as far as clear differences determine it; two defenses are tied if they share a letter. In parentheses: "
    "provisional, of one seed.",
    "Clear: a difference, paired by cell, of more than 1.1 half-widths of its 95 % interval over seeds (a bootstrap's "
    "error, Student's t of seeds - 1 degrees of freedom).",
)


@dataclass(frozen=True)
class Summary:
    """The standings under one evaluator and precision. differences: to the defense of each role of REFERENCES, by
    defense and role: of ACC and of ASR non-target, in points. claimed: what the board claims of attacks and defenses.

    head_share: share, 0..1, of the variance of a repaired cell's ASR that lies between heads of one encoder; None if it
    is unknown. left_out: cells that few defenses have. pinned: whether all seeds share one pre-training.
    """

    evaluator: str
    precision: str
    standings: list[Standing]
    differences: Mapping[tuple[str, Role], tuple[Interval, Interval]]
    roles: Mapping[str, Role]
    attacks: frozenset[str]
    tasks: frozenset[str]
    claimed: Mapping[claims.Method, Claimed]
    left_out: Sequence[Place] = ()
    head_share: float | None = None
    pinned: bool = False

    def of(self, standing: Standing) -> Claimed:
        """What is claimed of the defense of a standing."""
        return self.claimed["defense", standing.defense]

    def _told(self, standing: Standing) -> str:
        """The worst attack and task of a standing, as far as the summary has several."""
        worst = (standing.worst_attack, self.attacks), (standing.worst_task, self.tasks)
        told = ", ".join(name for name, names in worst if len(names) > 1)
        return f"{told}: " if told else ""

    @property
    def heading(self) -> str:
        return f"Summary: evaluator {self.evaluator}{', bf16' if self.precision == 'bf16' else ''}"

    def flat(self) -> dict[str, Any]:
        """Numbers and lists by name."""
        return {
            "evaluator": self.evaluator,
            "precision": self.precision,
            "head_share": rounded(self.head_share),
            "standings": [{"evaluator": self.evaluator, **self._flat(each)} for each in self.standings],
        }

    def _flat(self, standing: Standing) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in vars(standing).items():
            if isinstance(value, Interval):
                flat |= {name: rounded(value.mean), f"{name}_half": rounded(value.half)}
            elif name == "missing":
                flat[name] = [list(place) for place in value]
            else:
                flat[name] = dict(value) if name == "statuses" else list(value) if isinstance(value, tuple) else value
        for role in REFERENCES:
            acc, asr = self.differences.get((standing.defense, role), (Interval(), Interval()))
            flat |= {f"acc_to_{role}": rounded(acc.mean), f"asr_to_{role}": rounded(asr.mean)}
        flat |= {"most": rounded(standing.most), "role": str(self.roles[standing.defense])}
        return {**flat, **self.of(standing).flat()}

    def values(self, standing: Standing) -> list[Value]:
        told = self.of(standing)
        oracle = (_ORACLE,) * (self.roles[standing.defense] is Role.ORACLE)
        differences = [
            figure.mean
            for role in REFERENCES
            for figure in self.differences.get((standing.defense, role), (Interval(), Interval()))
        ]
        return [
            rank_text(standing),
            "".join(letter(number + 1) for number in standing.ties) or None,
            Noted(standing.defense, (*oracle, *told.notes)),
            len(standing.seeds),
            standing.acc,
            standing.acc_to_floor.mean,
            standing.asr,
            standing.ra,
            standing.residual,
            f"{self._told(standing)}{standing.most:.1f}",
            *differences,
            *told.reported,
            Noted(_cells(standing), (f"not ranked: it lacks {_listed(standing.missing)}",) * bool(standing.missing)),
        ]


_ORACLE = "uses what a defender does not have; ranked apart"


class SummaryRow(NamedTuple):
    """What a row of the summary tells of."""

    standing: Standing
    claimed: Claimed


def summaries(records: Iterable[Record], order: Order) -> list[Summary]:
    """A summary for each evaluator and precision of a board's records, in its order, where there is something to sum
    up: two defenses with a rank, or superseded, on several cells. Off-board records, and those of sweeps, are left out.
    """
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        attack = record.attack_role not in (Role.FLOOR, Role.CONTROL)
        if attack and not (departures(record) or record.point or record.beside) and record.baseline:
            found.setdefault((record.evaluator, precision_of(record)), []).append(record)
    ordered = sorted(found, key=lambda of: (rank_of(of[0], order.evaluators), of[1]))
    made = [_summary(*of, found[of], order) for of in ordered]
    return [each for each in made if len(_rows_of(each)) > 1 and _several(each.standings)]


def _rows_of(summary: Summary) -> list[Standing]:
    """The standings with a rank, and those that were superseded."""
    return [each for each in summary.standings if each.best is not None or summary.of(each).superseded_by]


def sections(found: Sequence[Summary]) -> Iterator[Section]:
    """The section of the summaries, without columns that no row has a value for; none if there are no summaries."""
    if rows := [[each.values(standing) for standing in each.standings] for each in found]:
        filled = [any(row[at] not in (None, _NONE) for each in rows for row in each) for at in range(len(_COLUMNS))]
        places = [at for at, is_filled in enumerate(filled) if is_filled]
        tables = [
            Table(
                [[row[at] for at in places] for row in each],
                summary.heading,
                about=[SummaryRow(standing, summary.of(standing)) for standing in summary.standings],
            )
            for summary, each in zip(found, rows, strict=True)
        ]
        yield Section([_COLUMNS[at] for at in places], tables)


_NONE = Interval()


def remarks(found: Sequence[Summary]) -> Iterator[str]:
    """What is claimed of the rows, cells that are left out, and the shares of variance, where heads and seeds allow
    them."""
    yield from claims.remarks(each.claimed for each in found)
    for each in found:
        if each.left_out:
            yield f"Left out of the summary ({each.evaluator}), as few defenses have them: {_listed(each.left_out)}."
        for (_, name), told in sorted(each.claimed.items()):
            if told.challenge and not told.challenge.statuses:
                yield f"The challenge of {name} by {told.claim.challenged} lacks its records ({each.evaluator})."
        if each.head_share is not None:
            chain = "attack and repair" if each.pinned else "pre-training, attack and repair"
            yield (
                f"Variance of the ASR non-target of one repaired encoder under one head ({each.evaluator}): "
                f"{100 * each.head_share:.0f} % lies between heads, {100 - 100 * each.head_share:.0f} % between seeds "
                f"of {chain}."
            )


def frame(found: Sequence[Summary]) -> Frame:
    """One line per defense and evaluator, for CSV."""
    lines = [line for each in found for line in each.flat()["standings"]]
    return Frame(list(lines[0]) if lines else [], lines)


def _summary(evaluator: str, precision: str, everything: Sequence[Record], order: Order) -> Summary:
    outside = claims.challengers(order)
    records = [record for record in everything if record.attack not in outside]
    rows = [_score(record) for record in records]
    roles = {record.defense: record.defense_role for record in records}
    methods = {("attack", record.attack): record.attack_role for record in records}
    methods |= {("defense", name): role for name, role in roles.items()}
    told = claimed(order, methods, everything)
    floors = [name for name, role in roles.items() if role is Role.FLOOR]
    apart = [name for name, role in roles.items() if role in _APART or told["defense", name].superseded_by]
    standings, left_out = ranking(rows, order.gates, "", next(iter(floors), ""), apart)
    names = {standing.defense for standing in standings}
    differences = {
        (defense, role): figures
        for role in REFERENCES
        for reference in [name for name in roles if roles[name] is role][:1]
        for defense in names - {reference}
        if (figures := _differences(rows, defense, reference))
    }
    pretrainings = {record.stages.get("pretrain") for record in records}
    return Summary(
        evaluator,
        precision,
        standings,
        differences,
        {name: roles[name] for name in names},
        frozenset(row.attack for row in rows),
        frozenset(row.task for row in rows),
        told,
        left_out,
        _head_share(record for record in records if record.defense_role not in _APART),
        len(pretrainings) == 1 and None not in pretrainings,
    )


def _score(record: Record) -> Score:
    own, floor = record.metrics, record.baseline
    assert floor is not None
    return Score(
        attack=record.attack,
        defense=record.defense,
        seed=record.seed,
        acc=own.acc if own else None,
        asr=own.asr_nontarget if own else None,
        floor_acc=floor.ca,
        floor_asr=floor.asr_b_nontarget,
        task=f"{record.pretrain} -> {task_name(record)}",
        ra=own.ra if own else None,
        undefended=record.undefended.asr_nontarget if record.undefended else None,
        status=record.status,
    )


def _differences(rows: Iterable[Score], defense: str, reference: str) -> tuple[Interval, Interval] | None:
    """ACC and ASR less those of the reference, over the cells that both have; None without such a cell."""
    known: dict[str, dict[Place, tuple[float, float]]] = {defense: {}, reference: {}}
    for row in rows:
        if row.defense in known and row.acc is not None and row.asr is not None:
            known[row.defense][row.attack, row.task, row.seed] = row.acc, row.asr
    own, other = known[defense], known[reference]
    if not (shared := own.keys() & other.keys()):
        return None
    acc, asr = ({place: own[place][at] - other[place][at] for place in shared} for at in (0, 1))
    return spread(by_seed(acc)), spread(by_seed(asr))


def _head_share(records: Iterable[Record]) -> float | None:
    """The share of the variance of one head's ASR non-target that lies between the heads of one encoder."""
    cells: dict[tuple[str, ...], list[list[float]]] = {}
    for record in records:
        if len(record.heads) > 1:
            found = [100 * head.hits_nontarget / head.nontarget for head in record.heads]
            cells.setdefault((record.attack, record.defense, record.pretrain, task_name(record)), []).append(found)
    several = [heads for heads in cells.values() if len(heads) > 1]
    if not several:
        return None
    between_heads = fmean(variance(heads) for seeds in several for heads in seeds)
    of_means = fmean(variance([fmean(heads) for heads in seeds]) for seeds in several)
    number = fmean(len(heads) for seeds in several for heads in seeds)
    between_seeds = max(0.0, of_means - between_heads / number)
    whole = between_heads + between_seeds
    return between_heads / whole if whole else None


def _several(standings: Sequence[Standing]) -> bool:
    """Whether some defense has more than one cell."""
    return any(sum(standing.statuses.values()) > 1 for standing in standings)


def rank_text(standing: Standing) -> str | None:
    """The interval of ranks, in parentheses if it is provisional; None without a rank."""
    if standing.best is None:
        return None
    text = f"{standing.best}" if standing.best == standing.worst else f"{standing.best}-{standing.worst}"
    return f"({text})" if standing.provisional else text


def _cells(standing: Standing) -> str:
    """The number of cells with each status."""
    return ", ".join(f"{count} {status}" for status, count in standing.statuses.items())


def _listed(places: Sequence[Place]) -> str:
    """Cells in words, the seeds of an attack and task together."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for attack, task, seed in places:
        seeds.setdefault((attack, task), []).append(seed)
    return "; ".join(
        f"{attack}, {task} (seed{'s' * (len(own) > 1)} {', '.join(map(str, own))})"
        for (attack, task), own in seeds.items()
    )

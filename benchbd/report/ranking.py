"""Ranks of defenses over attacks, tasks and seeds, from plain rows: of any table, not only of ours.

A rank is a statement about differences, so a defense has an interval of ranks, which the clear differences leave open,
and two defenses whose difference is not clear are tied. The rules:

- A cell counts if its attack took (``Gates.gain``). Where an attack failed there was nothing to defend.
- Its residual is the ASR above the clean encoder's, in points, and at least 0: an ASR below the clean encoder's is no
  further merit. Lower is better.
- A cell that collapsed (``Gates.loss``), ended in an error or a timeout, or to which the defense does not apply, counts
  as undefended: its residual is that of the attacked encoder. Of what stands apart the residual is as measured.
- A cell counts if at least half of the ranked defenses have it. A defense that lacks one of these is not ranked, so
  that nobody chooses their cells.
- The unit of chance is the seed, which draws pre-training, attack, repair and heads anew. Attacks and tasks are the
  board's: nobody drew them. The difference of two defenses is taken cell by cell; its standard error is that of a
  bootstrap which draws seeds, each with all its cells. It is clear if it exceeds the half-width of its 95 % interval
  (Student's t of seeds - 1 degrees of freedom) by a tenth, so that among equals 95 of 100 differences stay unclear
  whatever the noise. Percentiles of the same bootstrap would call one of four clear: three seeds have one sign that
  often.
- Ties are no chain: a may be tied with b and b with c, and a clearly better than c. Groups tell them, as in the compact
  letter display of statistics: two defenses are tied if they share one.
- With one seed nothing is clear, and ranks are provisional.

Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import NamedTuple, get_args

from benchbd.base.errors import DataError
from benchbd.records.gates import DEFAULT, Gates, Judged, Judgement
from benchbd.records.models import Status
from benchbd.report.statistics import Interval, mean_interval


class Score(NamedTuple):
    """One cell of a table; figures in percent.

    asr: of triggered test images; in benchbd's tables, of those outside the target class. floor_acc, floor_asr: of the
    clean encoder under the same task, evaluator and seed. acc, asr: None if there are none, as the status says.
    undefended: ASR of the attacked encoder without a defense; None: that of the table's row.
    """

    attack: str
    defense: str
    seed: int
    acc: float | None
    asr: float | None
    floor_acc: float
    floor_asr: float
    task: str = ""
    ra: float | None = None
    undefended: float | None = None
    status: Status = "ok"


Place = tuple[str, str, int]
"""Attack, task and seed."""

CAUTION = 1.1
"""The number of half-widths of its 95 % interval from which a difference is clear."""

_NONE = Interval()


@dataclass(frozen=True)
class Standing:
    """A defense over all cells that count.

    best, worst: the ranks, from 1, that the clear differences leave open; None if it is not ranked. ties: its groups of
    mutually tied defenses, numbered from 0 in the order of their best members. provisional: whether there is one seed
    alone.
    residual: mean residual ASR in points, of which ranks are made. acc, asr, ra: measured means, in percent.
    acc_to_floor: in points. All are means over seeds of a seed's cells.
    worst_attack, worst_task: the attack and task with the largest mean residual, ``most``.
    statuses: the number of its cells with each status. missing: cells that count and that it lacks.
    """

    defense: str
    best: int | None = None
    worst: int | None = None
    ties: tuple[int, ...] = ()
    provisional: bool = False
    seeds: tuple[int, ...] = ()
    residual: Interval = _NONE
    acc: Interval = _NONE
    acc_to_floor: Interval = _NONE
    asr: Interval = _NONE
    ra: Interval = _NONE
    worst_attack: str = ""
    worst_task: str = ""
    most: float | None = None
    statuses: Mapping[Judged, int] = field(default_factory=dict)
    missing: tuple[Place, ...] = ()


def judged(
    rows: Sequence[Score], gates: Gates = DEFAULT, *, clean: str = "none", undefended: str = "none"
) -> list[Judgement]:
    """The status of each row. clean, undefended: the names of no attack and of no defense.

    DataError for two rows of one cell, and for a row whose undefended ASR is unknown.
    """
    known = _undefended(rows, undefended)
    return [_judgement(row, gates, clean, known) for row in rows]


def ranked(
    rows: Iterable[Score],
    gates: Gates = DEFAULT,
    *,
    clean: str = "none",
    undefended: str = "none",
    apart: Collection[str] = (),
) -> list[Standing]:
    """The defenses, best first, and after them those that are not ranked, by name.

    apart: defenses that stand beside the others without a rank, such as controls; ``undefended`` is one. clean,
    undefended and errors: see ``judged``.
    """
    return ranking(rows, gates, clean, undefended, apart).standings


class Ranking(NamedTuple):
    """left_out: cells that few of the ranked defenses have."""

    standings: list[Standing]
    left_out: list[Place]


def ranking(rows: Iterable[Score], gates: Gates, clean: str, undefended: str, apart: Collection[str] = ()) -> Ranking:
    """``ranked``, with the cells that it leaves out."""
    table = list(rows)
    known = _undefended(table, undefended)
    cells: dict[str, dict[Place, tuple[Score, Judgement, float]]] = {}
    for row in table:
        judgement, attacked = _judgement(row, gates, clean, known), known.get(_place(row))
        if row.attack == clean or attacked is None or gates.attack(attacked, row.floor_asr):
            continue
        repaired = judgement.status == "ok" or row.defense in apart
        left = row.asr if repaired and row.asr is not None else attacked
        cells.setdefault(row.defense, {})[_place(row)] = row, judgement, max(0.0, left - row.floor_asr)
    contesting = cells.keys() - {*apart, undefended}
    having = Counter(place for defense in contesting for place in cells[defense])
    places = {place for place, number in having.items() if 2 * number >= len(contesting)}
    counted = {
        defense: {place: cell for place, cell in own.items() if place in places} for defense, own in cells.items()
    }
    residuals = {
        defense: {place: left for place, (_, _, left) in counted[defense].items()}
        for defense in contesting
        if counted[defense].keys() == places
    }
    ranks = _ranks(residuals)
    standings = [
        _standing(
            defense, list(own.values()), ranks.get(defense), sorted(places - own.keys()) * (defense in contesting)
        )
        for defense, own in counted.items()
        if own
    ]
    standings.sort(key=lambda each: (each.best is None, each.residual.mean if each.best else 0.0, each.defense))
    return Ranking(standings, sorted(having.keys() - places))


def spread(values: Mapping[int, Sequence[float]]) -> Interval:
    """The mean over seeds of the mean of a seed's cells, with the half-width of its 95 % interval; none for one seed.

    The variance is that of a bootstrap which draws seeds with all their cells, as the number of draws grows; with n - 1
    in place of n, so that few seeds do not look more certain than they are.
    """
    return Interval(*mean_interval([fmean(cells) for cells in values.values()]))


def by_seed(values: Mapping[Place, float]) -> dict[int, list[float]]:
    """The values of each seed, for ``spread``."""
    found: dict[int, list[float]] = {}
    for (_, _, seed), value in sorted(values.items()):
        found.setdefault(seed, []).append(value)
    return found


def _place(row: Score) -> Place:
    return row.attack, row.task, row.seed


def _undefended(rows: Iterable[Score], undefended: str) -> dict[Place, float]:
    """The undefended ASR of every attack, task and seed: that of the row without a defense, if there is one."""
    seen: set[tuple[Place, str]] = set()
    known: dict[Place, float] = {}
    for row in sorted(rows, key=lambda row: (row.defense != undefended, row.defense)):
        if (cell := (_place(row), row.defense)) in seen:
            raise DataError(f"two rows of {_told(_place(row))} under {row.defense}: a cell has one")
        seen.add(cell)
        asr = row.asr if row.defense == undefended else row.undefended
        if asr is not None:
            known.setdefault(_place(row), asr)
    return known


def _judgement(row: Score, gates: Gates, clean: str, undefended: Mapping[Place, float]) -> Judgement:
    if row.status != "ok":
        return Judgement(row.status)
    if row.acc is None or row.asr is None:
        raise DataError(f"no ACC or no ASR of {_told(_place(row))} under {row.defense}, whose status is ok")
    attacked = undefended.get(_place(row)) if row.attack != clean else None
    if attacked is None and row.attack != clean:
        raise DataError(f"no undefended ASR of {_told(_place(row))}, by which {row.defense} is judged")
    return gates.judge(row.acc, row.floor_acc, attacked, row.floor_asr)


def _told(place: Place) -> str:
    attack, task, seed = place
    return f"{attack}{f' on {task}' if task else ''}, seed {seed}"


class _Rank(NamedTuple):
    best: int
    worst: int
    ties: tuple[int, ...]
    provisional: bool


def _ranks(residuals: Mapping[str, Mapping[Place, float]]) -> dict[str, _Rank]:
    """The rank of each defense by its residuals, which are of the same places."""
    order = sorted(residuals, key=lambda defense: (spread(by_seed(residuals[defense])).mean or 0.0, defense))
    clear = set()
    for one, other in combinations(order, 2):
        differences = {place: residuals[other][place] - residuals[one][place] for place in residuals[one]}
        mean, half = spread(by_seed(differences))
        if mean and half is not None and mean > CAUTION * half:
            clear.add((one, other))
    tied = {one: {other for other in order if not {(one, other), (other, one)} & clear} - {one} for one in order}
    groups = sorted(_cliques(tied), key=lambda group: sorted(map(order.index, group)))
    seeds = {seed for own in residuals.values() for _, _, seed in own}
    return {
        defense: _Rank(
            best=1 + sum((other, defense) in clear for other in order),
            worst=len(order) - sum((defense, other) in clear for other in order),
            ties=tuple(number for number, group in enumerate(groups) if defense in group),
            provisional=len(seeds) < 2,
        )
        for defense in order
    }


def _cliques(tied: Mapping[str, set[str]]) -> Iterator[set[str]]:
    """The largest sets of mutually tied defenses: none is part of another.

    Source: Bron and Kerbosch, Communications of the ACM 16(9), 1973, with a pivot.
    """

    def grow(group: set[str], candidates: set[str], done: set[str]) -> Iterator[set[str]]:
        if not candidates and not done:
            yield group
            return
        pivot = max(sorted(candidates | done), key=lambda each: len(tied[each] & candidates))
        for each in sorted(candidates - tied[pivot]):
            yield from grow(group | {each}, candidates & tied[each], done & tied[each])
            candidates = candidates - {each}
            done = done | {each}

    if tied:
        yield from grow(set(), set(tied), set())


def _standing(
    defense: str, cells: Sequence[tuple[Score, Judgement, float]], rank: _Rank | None, missing: Sequence[Place]
) -> Standing:
    def mean(values: Iterable[tuple[Score, float | None]]) -> Interval:
        known = {_place(row): value for row, value in values if value is not None}
        return spread(by_seed(known)) if known else Interval()

    rows = [row for row, _, _ in cells]
    attacks: dict[tuple[str, str], list[float]] = {}
    for row, _, left in sorted(cells, key=lambda cell: _place(cell[0])):
        attacks.setdefault((row.attack, row.task), []).append(left)
    most = {attack: fmean(lefts) for attack, lefts in attacks.items()}
    counted = Counter(judgement.status for _, judgement, _ in cells)
    worst = max(most, key=lambda attack: (most[attack], attack))
    return Standing(
        defense=defense,
        **(rank._asdict() if rank else {}),
        seeds=tuple(sorted({row.seed for row in rows})),
        residual=mean((row, left) for row, _, left in cells),
        acc=mean((row, row.acc) for row in rows),
        acc_to_floor=mean((row, None if row.acc is None else row.acc - row.floor_acc) for row in rows),
        asr=mean((row, row.asr) for row in rows),
        ra=mean((row, row.ra) for row in rows),
        worst_attack=worst[0],
        worst_task=worst[1],
        most=most[worst],
        statuses={status: counted[status] for status in get_args(Judged) if counted[status]},
        missing=tuple(missing),
    )

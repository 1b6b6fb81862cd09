"""A reviewer's report on records that are to join a board: what they add, and what changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchbd.base.errors import counted
from benchbd.contract.roles import Role
from benchbd.records.models import Entry, Inspected, Record
from benchbd.records.pictures import read_pictures
from benchbd.records.replicates import is_replicate
from benchbd.report import leaderboard
from benchbd.report.claims import claimed, unconfirmed
from benchbd.report.document import Column, Document, Section, Table, Value
from benchbd.report.inspected import documents
from benchbd.report.ranking import Standing
from benchbd.report.rows import Order
from benchbd.report.summary import Summary, rank_text, summaries

_ROWS = (
    *(Column("Defense", "words"), Column("Rank before"), Column("Rank after"), Column("n", "seeds")),
    *(Column("ACC", "percent"), Column("ASR non-target", "percent"), Column("RA", "percent")),
    *(Column("Residual", "percent"), Column("Row", "words")),
)

_REFERENCES = (Role.FLOOR, Role.SCRATCH, Role.BN, Role.FT)


def document(
    published: Sequence[Entry],
    added: Sequence[Entry],
    order: Order,
    *,
    board: str,
    findings: Sequence[str] = (),
    replicates: Sequence[tuple[Record, Record]] = (),
) -> Document:
    """The report. added: the submitted records. findings: what does not hold, a line each. replicates: pairs of
    records of one key, of two sources.

    Where nothing can be ranked, it has the board's own table as it would be, and of detectors the rows of those that
    are submitted.
    """
    places = {record.name: record for record in published}
    joining = [record for record in added if not is_replicate(record)]
    after = [*{**places, **{record.name: record for record in joining}}.values()]
    before_of, after_of = (
        {(each.evaluator, each.precision): each for each in summaries(_cells(records), order)}
        for records in (published, after)
    )
    submitted = _submitted(added)
    methods = _methods(published, added, submitted)
    tables = [
        Table(_rows(before_of.get(of), summary, submitted), summary.heading) for of, summary in sorted(after_of.items())
    ]
    sections: Sequence[Section] = [Section(_ROWS, tables)] * bool(tables)
    if added and not tables:
        sections = leaderboard.document(_cells(after), order=order).sections
    judges = {record.method for record in added if isinstance(record, Inspected)}
    inspected = [record for record in after if isinstance(record, Inspected) and record.method in judges]
    new = sum(record.name not in places for record in joining)
    replaced = [r for r in joining if r.name in places and places[r.name].key != r.key]
    moved = [line for of, summary in sorted(after_of.items()) for line in _moved(before_of.get(of), summary)]
    joined = f"{new} new records, {len(replaced)} that replace one of another identity, {len(replicates)} replicates"
    authors = ", ".join(sorted({record.author or "nobody named" for record in added}))
    told = [
        f"{joined}; of {', '.join(_named(methods, added))}; by {authors}." if added else "No new records.",
        f"Tier 1: {'what follows does not hold' if findings else 'all records hold'}.",
        *findings,
        *(_edit(places[r.name], r) for r in joining if r.name in places and places[r.name].key == r.key),
        *filter(None, [unconfirmed(claimed(order, methods)), _pictures(added)]),
        *(_replicate(one, other) for one, other in replicates),
        *(moved or ["No rank changes." if after_of else _UNRANKED]),
    ]
    return Document(
        title=f"Submission to {board}",
        sections=[*sections, *(section for _, each in documents(inspected, order) for section in each.sections)],
        summary=told,
        data={"board": board, "findings": list(findings), "told": told},
    )


_UNRANKED = "Nothing is ranked: that takes two defenses on several cells of attacks that took."


def _cells(records: Sequence[Entry]) -> list[Record]:
    return [record for record in records if isinstance(record, Record)]


def _submitted(added: Sequence[Entry]) -> set[str]:
    """The defenses of a submission without the references, or these if it has no others."""
    cells = _cells(added)
    own = {record.defense for record in cells if record.defense_role not in _REFERENCES}
    return own or {record.defense for record in cells}


def _named(methods: Mapping[tuple[str, str], Role], added: Sequence[Entry]) -> list[str]:
    """What a submission is of: its methods and detectors, without references unless it has nothing else."""
    own = {of for of, role in methods.items() if role not in _REFERENCES}
    own |= {(record.axis, record.method) for record in added if isinstance(record, Inspected)}
    own = own or {(axis, name) for axis, name in methods if axis == "defense"}
    return [f"{axis} {name}" for axis, name in sorted(own)]


def _rows(before: Summary | None, after: Summary, submitted: set[str]) -> list[list[Value]]:
    """The references, the best ranked row before the submission, and the submitted rows."""
    known = {each.defense: each for each in before.standings} if before else {}
    best = next((each.defense for each in known.values() if each.best is not None), None)
    rows: list[list[Value]] = []
    for standing in after.standings:
        role = after.roles[standing.defense]
        what = [
            text
            for text, holds in (
                ("submitted", standing.defense in submitted),
                ("best before", standing.defense == best),
                ("reference", role in _REFERENCES),
            )
            if holds
        ]
        if what:
            figures = standing.acc, standing.asr, standing.ra, standing.residual
            ranks = rank_text(known[standing.defense]) if standing.defense in known else None, rank_text(standing)
            rows.append([standing.defense, *ranks, len(standing.seeds), *figures, ", ".join(what)])
    return rows


def _methods(published: Sequence[Entry], added: Sequence[Entry], submitted: set[str]) -> dict[tuple[str, str], Role]:
    """The roles of the submitted defenses, and of attacks that the board did not have."""
    there, cells = {record.attack for record in _cells(published)}, _cells(added)
    attacks = {("attack", each.attack): each.attack_role for each in cells if each.attack not in there}
    return attacks | {("defense", each.defense): each.defense_role for each in cells if each.defense in submitted}


def _moved(before: Summary | None, after: Summary) -> list[str]:
    known: dict[str, Standing] = {each.defense: each for each in before.standings} if before else {}
    return [
        f"Rank of {each.defense}: {rank_text(known[each.defense]) or '-'} before, {rank_text(each) or '-'} after."
        for each in after.standings
        if each.defense in known and rank_text(known[each.defense]) != rank_text(each)
    ]


def _pictures(added: Sequence[Entry]) -> str:
    number = sum(bool(record.path and read_pictures(record.path)) for record in added)
    return f"Pictures stand beside {counted(number, 'record')}: nothing checks what they show." if number else ""


def _edit(one: Entry, other: Entry) -> str:
    """A published record that a submission replaces by one of the same key."""
    ours, theirs = (record.model_dump(mode="json") for record in (one, other))
    fields = sorted(field for field in ours.keys() | theirs.keys() if ours.get(field) != theirs.get(field))
    return f"{other.name}: edits the published record: {', '.join(fields)}."


def _replicate(one: Record, other: Record) -> str:
    if one.metrics is None or other.metrics is None:
        return f"{other.name}: a replicate without figures."
    changes = other.metrics.acc - one.metrics.acc, other.metrics.asr_nontarget - one.metrics.asr_nontarget
    return f"{other.name}: reproduced by 2; ACC {changes[0]:+.1f}, ASR non-target {changes[1]:+.1f} points."

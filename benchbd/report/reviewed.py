"""A reviewer's report on records that are to join a board: what they add, and what changes."""

from __future__ import annotations

from collections.abc import Sequence

from benchbd.base.errors import counted
from benchbd.contract.roles import Role
from benchbd.records.models import Record
from benchbd.records.pictures import read_pictures
from benchbd.records.replicates import is_replicate
from benchbd.report.claims import claimed, unconfirmed
from benchbd.report.document import Column, Document, Section, Table, Value
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
    published: Sequence[Record],
    added: Sequence[Record],
    order: Order,
    *,
    board: str,
    findings: Sequence[str] = (),
    replicates: Sequence[tuple[Record, Record]] = (),
) -> Document:
    """The report. added: the submitted records. findings: what does not hold, a line each. replicates: pairs of
    records of one key, of two sources.
    """
    places = {record.name: record for record in published}
    joining = [record for record in added if not is_replicate(record)]
    after = [*{**places, **{record.name: record for record in joining}}.values()]
    before_of, after_of = (
        {(each.evaluator, each.precision): each for each in summaries(records, order)} for records in (published, after)
    )
    submitted = {record.defense for record in added if record.defense_role not in _REFERENCES} or {
        record.defense for record in added
    }
    tables = [
        Table(_rows(before_of.get(of), summary, submitted), summary.heading) for of, summary in sorted(after_of.items())
    ]
    new = sum(record.name not in places for record in joining)
    replaced = [r for r in joining if r.name in places and places[r.name].key != r.key]
    moved = [line for of, summary in sorted(after_of.items()) for line in _moved(before_of.get(of), summary)]
    joined = f"{new} new records, {len(replaced)} that replace one of another identity, {len(replicates)} replicates"
    authors = ", ".join(sorted({record.author or "nobody named" for record in added}))
    told = [
        f"{joined}; of {', '.join(sorted(submitted))}; by {authors}." if added else "No new records of cells.",
        f"Tier 1: {'what follows does not hold' if findings else 'all records hold'}.",
        *findings,
        *filter(None, [unconfirmed(claimed(order, _methods(published, added, submitted)))]),
        *filter(None, [_pictures(added)]),
        *(_replicate(one, other) for one, other in replicates),
        *(moved or ["No rank changes."]),
    ]
    return Document(
        title=f"Submission to {board}",
        sections=[Section(_ROWS, tables)] * bool(tables),
        empty="Nothing to rank: fewer than two defenses on several cells.",
        summary=told,
        data={"board": board, "findings": list(findings), "told": told},
    )


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


def _methods(published: Sequence[Record], added: Sequence[Record], submitted: set[str]) -> dict[tuple[str, str], Role]:
    """The roles of the submitted defenses, and of attacks that the board did not have."""
    there = {record.attack for record in published}
    attacks = {("attack", each.attack): each.attack_role for each in added if each.attack not in there}
    return attacks | {("defense", each.defense): each.defense_role for each in added if each.defense in submitted}


def _moved(before: Summary | None, after: Summary) -> list[str]:
    known: dict[str, Standing] = {each.defense: each for each in before.standings} if before else {}
    return [
        f"Rank of {each.defense}: {rank_text(known[each.defense]) or '-'} before, {rank_text(each) or '-'} after."
        for each in after.standings
        if each.defense in known and rank_text(known[each.defense]) != rank_text(each)
    ]


def _pictures(added: Sequence[Record]) -> str:
    number = sum(bool(record.path and read_pictures(record.path)) for record in added)
    return f"Pictures stand beside {counted(number, 'record')}: nothing checks what they show." if number else ""


def _replicate(one: Record, other: Record) -> str:
    if one.metrics is None or other.metrics is None:
        return f"{other.name}: a replicate without figures."
    changes = other.metrics.acc - one.metrics.acc, other.metrics.asr_nontarget - one.metrics.asr_nontarget
    return f"{other.name}: reproduced by 2; ACC {changes[0]:+.1f}, ASR non-target {changes[1]:+.1f} points."

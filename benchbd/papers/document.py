"""The comparison of a board with the papers as a document: a table per block, the mean ranks, the floors.

Board and records alone determine it; torch is never imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchbd.papers.compare import Block, Comparison, Floor, Line, compare
from benchbd.papers.published import METRICS, NONE, Suspicion, published
from benchbd.planning.board import Board
from benchbd.records.models import Record
from benchbd.report.document import Column, Document, Frame, Noted, Section, Table, Value
from benchbd.report.rows import rounded
from benchbd.report.writers.cells import letter


def document(board: Board, records: Iterable[Record]) -> Document:
    """The board beside the papers. UsageError if no cell can be compared."""
    comparison = compare(board, records)
    everywhere, alike = set(_missing_everywhere(comparison)), _trained_alike(comparison)
    sections = [
        Section(
            _LINES if block.differs else _SUBTRACTED,
            [
                Table(
                    [_line(line, subtract=not block.differs) for line in block.lines],
                    block.heading,
                    _protocol(block, bool(alike)),
                    _below(block, everywhere),
                )
            ],
        )
        for block in comparison.blocks
    ]
    if ranked := comparison.mean_ranks:
        ranks = [
            [rank.defense, str(rank.blocks), *(f"{value:.2f}" for metric in METRICS for value in rank.means[metric])]
            for rank in ranked
        ]
        sections.append(Section(_RANKED, [Table(ranks, "Mean ranks over all blocks, ours and the paper's")]))
    sections.append(Section(_FLOORS, [Table(list(map(_floor, comparison.floors)), "Floors")]))
    page = Document(
        title=f"Board {comparison.board} beside Table I of MIMIC",
        intro=alike,
        sections=sections,
        remarks=_notes(comparison),
        notes="Notes",
        lettered=True,
    )
    data = _data(comparison, {note: letter(number) for note, number in page.footnotes.items()})
    return replace(page, data=data, frames=_frames(data))


# A narrow terminal first omits columns of the highest rank; the differences follow from the columns that stay.
_RANKS = tuple(Column(f"{metric.upper()} rank", rank=2) for metric in METRICS)

# ASR less that of a clean encoder, ours and the paper's.
_OVER_FLOOR = tuple(Column(name, "change", rank=6, apart="ASR over the floor") for name in ("over floor", "paper's"))

_MARKS = (Column("Odd", "words", rank=4, points=24), Column("Status", "words"))

_LINES = (
    *(Column("Defense", "words", points=34), Column("n", "seeds", rank=3)),
    *(Column("ACC", "percent"), Column("ASR", "percent"), *_OVER_FLOOR, *_RANKS, *_MARKS),
)

_SUBTRACTED = (
    *_LINES[:2],
    *(Column("ACC", "percent"), Column("paper", rank=1), Column("Δ ACC", "change", rank=5)),
    *(Column("ASR", "percent"), Column("paper", rank=1), Column("Δ ASR", "change", rank=5)),
    *(*_OVER_FLOOR, *_RANKS, *_MARKS),
)

_RANKED = (
    *(Column("Defense", "words"), Column("blocks")),
    *(Column("ACC rank", rank=2), Column("paper", rank=1), Column("ASR rank", rank=2), Column("paper", rank=1)),
)

_FLOORS = (
    *(Column("Clean encoder", "words", points=110), Column("n", "seeds", rank=3)),
    *(Column("CA", "percent"), Column("ASR-B", "percent"), Column("BE CA", rank=1), Column("BE ASR-B", rank=1)),
    *(Column("MIMIC CA", rank=2), Column("share", rank=4), _MARKS[0]),
)


def _line(line: Line, *, subtract: bool) -> list[Value]:
    values: list[Value] = [line.row.defense, len(line.row.seeds)]
    for metric in METRICS:
        values.append(line.value(metric))
        values += [_printed(line.printed(metric)), line.difference(metric)] if subtract else []
    values += [line.over_floor, line.printed_over_floor]
    values += [f"{r.ours:g}/{r.paper:g}" if (r := line.ranks.get(metric)) else None for metric in METRICS]
    return [*values, Noted("", _notes_of(line.suspicions)), line.row.status]


def _floor(floor: Floor) -> list[Value]:
    theirs = floor.badencoder
    printed = [theirs and theirs.ca, theirs and theirs.asr_b, floor.mimic_ca, floor.share_of_target]
    return [
        f"{floor.pretrain} -> {floor.task}, {floor.evaluator}",
        len(floor.seeds),
        *(floor.ca, floor.asr_b),
        *map(_printed, printed),
        Noted("", _notes_of(floor.suspicions)),
    ]


def _printed(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _notes_of(suspicions: Sequence[int]) -> tuple[str, ...]:
    known = published().suspicions
    return tuple(f"{_source(known[number])}: {known[number].text}" for number in suspicions)


def _source(suspicion: Suspicion) -> str:
    paper = {"mimic": "MIMIC", "badencoder": "BadEncoder"}[suspicion.paper]
    return f"{paper}, Table {suspicion.table}, {suspicion.figure.upper().replace('_', '-')}"


def _trained_alike(comparison: Comparison) -> str:
    """How long every block was trained; empty if blocks differ, because each block then contains its own phrase."""
    [first, *others] = {block.trained: None for block in comparison.blocks}
    return "" if others or not first else _sentence(first)


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."


def _protocol(block: Block, shared: bool) -> str:
    """How to read a block, a sentence group. shared: whether all blocks are trained alike: one note is then enough."""
    where = (
        f"the paper's cell {block.attack}, {block.pretrain} -> {block.task.partition(':')[0]}"
        if block.cell
        else f"the paper's averages of {block.attack} over six cells"
    )
    if block.differs:
        how = (
            f"Other protocol ({'; '.join(block.differs)}): nothing is subtracted, orderings are compared with {where}."
        )
    else:
        how = f"Same protocol as {where}."
    return how if shared or not block.trained else f"{how} {_sentence(block.trained)}"


def _below(block: Block, everywhere: set[str]) -> list[str]:
    """Lines under the table of a block: the correlations, and the defenses that only one side has."""
    lines = []
    if not block.clean:
        said = []
        for metric, (n, rho, p) in block.correlations.items():
            found = "-" if rho is None or p is None else f"{rho:+.2f} (p {_chance(p)})"
            said.append(f"{metric.upper()} {found}, {n} defense{'s' * (n != 1)}")
        lines.append(f"Spearman's rho: {'; '.join(said)}.")
    lines += [f"Not in the paper: {', '.join(block.foreign)}."] if block.foreign else []
    missing = [_paper_name(name) for name in block.missing if name not in everywhere]
    lines += [f"Not computed here: {', '.join(missing)}."] if missing else []
    return lines


def _missing_everywhere(comparison: Comparison) -> list[str]:
    """Defenses of the paper that no block has, in the paper's order."""
    blocks = [block for block in comparison.blocks if not block.clean]
    return [name for name in (blocks[0].missing if blocks else ()) if all(name in block.missing for block in blocks)]


def _notes(comparison: Comparison) -> list[str]:
    titles = published().titles
    seeds = [line.row.seeds for block in comparison.blocks for line in block.lines]
    single = any(len(each) == 1 for each in (*seeds, *(floor.seeds for floor in comparison.floors)))
    notes = [
        f"Paper: {titles['mimic']}. BE: {titles['badencoder']}. Their figures are single runs, without intervals.",
        "Percent, mean ± half-width of the 95 % interval over n seeds. "
        + ("† One seed: no interval. " if single else "")
        + "ASR counts every triggered test image, as the papers do. Δ: ours less the paper's, in points, only under "
        "the same protocol: pre-training and downstream set, target, trigger, number of test images, classifier and "
        "encoder. Lengths of training may differ even then.",
        "Ranks: ours/the paper's, 1 for the highest ACC and the lowest ASR, among the defenses that both have; ties "
        "share the mean. Undefended encoders are not ranked; cells that are not ok on every seed are neither ranked "
        "nor subtracted. p: exact, two-sided, over all orderings; '-' below three defenses.",
        "Clean encoder: an ASR is to be read against ASR-B, never against 0. Over floor: ASR less ASR-B, ours seed by "
        "seed, the paper's less the ASR-B that BadEncoder prints for the task, where MIMIC has that cell; below 0, "
        "less than a clean encoder sends to the target. share: of target images among the papers' "
        "test images, the ASR of a perfect classifier that ignores the trigger. MIMIC CA: its Table III.",
    ]
    foreign = comparison.foreign
    notes += [f"Attacks that are not in the paper's Table I: {', '.join(foreign)}."] if foreign else []
    if missing := _missing_everywhere(comparison):
        notes.append(f"Defenses of the paper that no block has: {', '.join(map(_paper_name, missing))}.")
    if comparison.absent:
        notes.append(f"Cells of the paper that are not computed: {_places(comparison.absent)}.")
    if comparison.left_out:
        notes.append(f"Off-board records left out: {comparison.left_out}.")
    return notes


def _paper_name(defense: str) -> str:
    return "undefended" if defense == NONE else defense


def _places(places: Sequence[tuple[str, str, str]]) -> str:
    """badencoder: cifar10 -> svhn, stl10; stl10 -> all. An attack without any cell takes one word."""
    table = [place for place in published().cells if place[0] != NONE]
    said = []
    for attack in dict.fromkeys(place[0] for place in places):
        own = [place for place in places if place[0] == attack]
        if len(own) == sum(place[0] == attack for place in table):
            said.append(f"{attack}: all {len(own)}")
            continue
        pretrains = dict.fromkeys(place[1] for place in own)
        tasks = (
            f"{pretrain} -> {', '.join(place[2] for place in own if place[1] == pretrain)}" for pretrain in pretrains
        )
        said.append(f"{attack}: {'; '.join(tasks)}")
    return ". ".join(said)


def _chance(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else f"{p:.1g}"


def _data(comparison: Comparison, letters: Mapping[str, str]) -> dict[str, Any]:
    """The comparison for programs. letters: of the suspicions that occur, by text."""
    return {
        "board": comparison.board,
        "title": comparison.title,
        "papers": dict(published().titles),
        "blocks": [_block_data(block, letters) for block in comparison.blocks],
        "mean_ranks": [
            {"defense": rank.defense, "blocks": rank.blocks}
            | {f"{m}_rank": rounded(rank.means[m].ours) for m in METRICS}
            | {f"paper_{m}_rank": rounded(rank.means[m].paper) for m in METRICS}
            for rank in comparison.mean_ranks
        ],
        "floors": [
            {"pretrain": floor.pretrain, "task": floor.task, "evaluator": floor.evaluator, "seeds": list(floor.seeds)}
            | {"ca": rounded(floor.ca.mean), "ca_half": rounded(floor.ca.half)}
            | {"asr_b": rounded(floor.asr_b.mean), "asr_b_half": rounded(floor.asr_b.half)}
            | {"badencoder": floor.badencoder._asdict() if floor.badencoder else None}
            | {"mimic_ca": floor.mimic_ca, "share_of_target": rounded(floor.share_of_target)}
            | {"suspicions": _marks(floor.suspicions, letters)}
            for floor in comparison.floors
        ],
        "attacks_not_in_the_paper": list(comparison.foreign),
        "cells_not_computed": [
            {"attack": attack, "pretrain": pretrain, "downstream": task} for attack, pretrain, task in comparison.absent
        ],
        "off_board_left_out": comparison.left_out,
        "suspicions": {mark: note for note, mark in letters.items()},
        "notes": _notes(comparison),
    }


def _block_data(block: Block, letters: Mapping[str, str]) -> dict[str, Any]:
    lines = []
    for line in block.lines:
        data: dict[str, Any] = {
            "defense": line.row.defense,
            "in_the_paper": line.figure is not None,
            "status": line.row.status,
            "statuses": dict(line.row.statuses),
            "seeds": list(line.row.seeds),
        }
        for metric in METRICS:
            value, ranks = line.value(metric), line.ranks.get(metric)
            data |= {metric: rounded(value.mean), f"{metric}_half": rounded(value.half)}
            data |= {f"paper_{metric}": line.printed(metric), f"{metric}_difference": rounded(line.difference(metric))}
            data |= {f"{metric}_rank": ranks and ranks.ours, f"paper_{metric}_rank": ranks and ranks.paper}
        data |= {"asr_over_floor": rounded(line.over_floor.mean)}
        data |= {"asr_over_floor_half": rounded(line.over_floor.half)}
        data |= {"paper_asr_over_floor": rounded(line.printed_over_floor)}
        lines.append(data | {"suspicions": _marks(line.suspicions, letters)})
    return {
        "attack": block.attack,
        "pretrain": block.pretrain,
        "task": block.task,
        "target_name": block.target_name,
        "evaluator": block.evaluator,
        "same_protocol": not block.differs,
        "differs": list(block.differs),
        "paper_figures": "cell" if block.cell else "averages",
        "trained": block.trained,
        "lines": lines,
        "spearman": {
            metric: {"n": n, "rho": rounded(rho), "p": None if p is None else round(p, 9)}
            for metric, (n, rho, p) in block.correlations.items()
        },
        "not_in_the_paper": list(block.foreign),
        "not_computed": [_paper_name(name) for name in block.missing],
    }


def _marks(suspicions: Sequence[int], letters: Mapping[str, str]) -> list[str]:
    return [letters[note] for note in _notes_of(suspicions)]


def _frames(data: Mapping[str, Any]) -> list[Frame]:
    """The lines of all blocks, each with its block, then mean ranks and floors."""
    place = ("attack", "pretrain", "task", "target_name", "evaluator", "same_protocol", "paper_figures")
    lines = [{name: block[name] for name in place} | line for block in data["blocks"] for line in block["lines"]]
    tables = (lines, data["mean_ranks"], data["floors"])
    return [Frame(list(table[0]), table) for table in tables if table]

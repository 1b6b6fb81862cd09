"""The text of a comparison with the papers, for a terminal, as Markdown and as JSON.

A function of board and records alone; torch is never imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchbd.base.errors import UnknownNameError
from benchbd.papers.compare import Block, Comparison, Line, compare
from benchbd.papers.published import METRICS, NONE, Suspicion, published
from benchbd.planning.board import Board
from benchbd.records.models import Record
from benchbd.report.rows import Interval, rounded
from benchbd.report.writers.columns import WIDTH, Column, marked, table, wrapped
from benchbd.report.writers.safe import escaped, json_text, pipe


def render(board: Board, records: Iterable[Record], form: str = "text", width: int = WIDTH) -> str:
    """The comparison as text that ends with a newline. form: one of FORMATS. width: columns of the form ``text``.

    UnknownNameError for any other form, UsageError where nothing compares.
    """
    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    comparison = compare(board, records)
    return _write_text(comparison, width) if form == "text" else _WRITERS[form](comparison)


_TITLE = "Board {board} beside Table I of MIMIC"

_RANKS = ("ACC rank", "ASR rank")

_HEADERS = {  # with differences, and of orderings alone
    True: ("Defense", "n", "ACC", "paper", "Δ ACC", "ASR", "paper", "Δ ASR", *_RANKS, "Odd", "Status"),
    False: ("Defense", "n", "ACC", "ASR", *_RANKS, "Odd", "Status"),
}

_LEFT = {"Defense", "Odd", "Status", "Clean encoder"}

# What a narrow terminal leaves out first; the differences follow from what stays.
_FIRST_LEFT_OUT = ({"Δ ACC", "Δ ASR"}, {"Odd", "share"}, {"n"}, {*_RANKS, "MIMIC CA"}, {"paper", "BE CA", "BE ASR-B"})


class _Marks:
    """Letters of the suspicions that occur, in order of occurrence."""

    def __init__(self, comparison: Comparison) -> None:
        numbers = [number for block in comparison.blocks for line in block.lines for number in line.suspicions]
        numbers += [number for floor in comparison.floors for number in floor.suspicions]
        self.letters = {number: chr(ord("a") + place) for place, number in enumerate(dict.fromkeys(numbers))}

    def of(self, numbers: Sequence[int]) -> str:
        return ",".join(sorted(self.letters[number] for number in numbers)) or "-"

    def notes(self) -> list[tuple[str, str]]:
        """Letter and text."""
        known = published().suspicions
        return [(letter, f"{_source(known[number])}: {known[number].text}") for number, letter in self.letters.items()]


def _source(suspicion: Suspicion) -> str:
    paper = {"mimic": "MIMIC", "badencoder": "BadEncoder"}[suspicion.paper]
    return f"{paper}, Table {suspicion.table}, {suspicion.figure.upper().replace('_', '-')}"


def _cells(line: Line, subtract: bool, digits: int, marks: _Marks) -> list[str]:
    cells = [line.row.defense, _seeds(line.row.seeds)]
    for metric in METRICS:
        cells.append(_spread(line.value(metric), digits))
        if subtract:
            printed, difference = line.printed(metric), line.difference(metric)
            cells.append("-" if printed is None else f"{printed:.2f}")
            cells.append("-" if difference is None else f"{round(difference, digits) + 0.0:+.{digits}f}")
    cells += [f"{r.ours:g}/{r.paper:g}" if (r := line.ranks.get(metric)) else "-" for metric in METRICS]
    return [*cells, marks.of(line.suspicions), line.row.status]


def _mean_rank_table(comparison: Comparison) -> tuple[tuple[str, ...], list[list[str]]]:
    body = [
        [rank.defense, str(rank.blocks), *(f"{value:.2f}" for metric in METRICS for value in rank.means[metric])]
        for rank in comparison.mean_ranks
    ]
    return ("Defense", "blocks", "ACC rank", "paper", "ASR rank", "paper"), body


def _floor_table(comparison: Comparison, digits: int, marks: _Marks) -> tuple[tuple[str, ...], list[list[str]]]:
    body = []
    for floor in comparison.floors:
        theirs = floor.badencoder
        printed = [theirs and theirs.ca, theirs and theirs.asr_b, floor.mimic_ca, floor.share_of_target]
        body.append(
            [
                f"{floor.pretrain} -> {floor.task}, {floor.evaluator}",
                _seeds(floor.seeds),
                _spread(floor.ca, digits),
                _spread(floor.asr_b, digits),
                *("-" if value is None else f"{value:.2f}" for value in printed),
                marks.of(floor.suspicions),
            ]
        )
    return ("Clean encoder", "n", "CA", "ASR-B", "BE CA", "BE ASR-B", "MIMIC CA", "share", "Odd"), body


def _trained_alike(comparison: Comparison) -> str:
    """How long every block was trained; empty where they differ, and each says it."""
    [first, *others] = {block.trained: None for block in comparison.blocks}
    return "" if others or not first else _sentence(first)


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."


def _protocol(block: Block, shared: bool) -> str:
    """How to read a block, a sentence group. shared: whether all blocks are trained alike, which is said once."""
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
    """Lines under the table of a block: the correlations, and which defenses are on one side only."""
    lines = []
    if not block.clean:
        said = []
        for metric, (n, rho, p) in block.correlations.items():
            found = "-" if rho is None or p is None else f"{rho:+.2f} (p {_share(p)})"
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
        "Clean encoder: an ASR is to be read against ASR-B, never against 0. share: of target images among the papers' "
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
    """badencoder: cifar10 -> svhn, stl10; stl10 -> all. An attack with no cell at all is said in a word."""
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


def _seeds(seeds: Sequence[int]) -> str:
    return "1†" if len(seeds) == 1 else str(len(seeds))


def _spread(value: Interval, digits: int) -> str:
    if value.mean is None:
        return "-"
    return f"{value.mean:.{digits}f}" + ("" if value.half is None else f"±{value.half:.{digits}f}")


def _share(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else f"{p:.1g}"


def _aligned(headers: Sequence[str], body: Sequence[Sequence[str]], width: int) -> list[str]:
    ranks = {header: len(_FIRST_LEFT_OUT) - place for place, each in enumerate(_FIRST_LEFT_OUT) for header in each}
    return table([Column(name, name in _LEFT, rank=ranks.get(name, 0)) for name in headers], body, width)


def _write_text(comparison: Comparison, width: int) -> str:
    marks, everywhere = _Marks(comparison), set(_missing_everywhere(comparison))
    alike = _trained_alike(comparison)
    lines = [_TITLE.format(board=comparison.board), *wrapped(alike, width)]
    for block in comparison.blocks:
        subtract = not block.differs
        lines += ["", *wrapped(block.heading, width), *wrapped(_protocol(block, bool(alike)), width), ""]
        lines += _aligned(_HEADERS[subtract], [_cells(line, subtract, 1, marks) for line in block.lines], width)
        for text in _below(block, everywhere):
            lines += wrapped(text, width)
    if comparison.mean_ranks:
        headers, body = _mean_rank_table(comparison)
        lines += ["", "Mean ranks over all blocks, ours and the paper's", *_aligned(headers, body, width)]
    headers, body = _floor_table(comparison, 1, marks)
    lines += ["", "Floors", *_aligned(headers, body, width), ""]
    lines += marked([*(("*", note) for note in _notes(comparison)), *((f"[{m}]", t) for m, t in marks.notes())], width)
    return "\n".join(lines) + "\n"


def _write_markdown(comparison: Comparison) -> str:
    marks, everywhere = _Marks(comparison), set(_missing_everywhere(comparison))
    alike = _trained_alike(comparison)
    parts = [f"# {_TITLE.format(board=comparison.board)}", *([escaped(alike)] if alike else [])]
    for block in comparison.blocks:
        subtract = not block.differs
        body = [_cells(line, subtract, 2, marks) for line in block.lines]
        parts += [
            f"## {escaped(block.heading)}",
            escaped(_protocol(block, bool(alike))),
            pipe(_HEADERS[subtract], body, _LEFT),
        ]
        parts += ["\n".join(f"- {escaped(text)}" for text in below)] if (below := _below(block, everywhere)) else []
    if comparison.mean_ranks:
        parts += ["## Mean ranks over all blocks, ours and the paper's", pipe(*_mean_rank_table(comparison), _LEFT)]
    parts += ["## Floors", pipe(*_floor_table(comparison, 2, marks), _LEFT), "## Notes"]
    notes = [f"- {escaped(note)}" for note in _notes(comparison)]
    notes += [f"- [{mark}] {escaped(text)}" for mark, text in marks.notes()]
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


def _write_json(comparison: Comparison) -> str:
    marks = _Marks(comparison)
    data = {
        "board": comparison.board,
        "title": comparison.title,
        "papers": dict(published().titles),
        "blocks": [_block_data(block, marks) for block in comparison.blocks],
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
            | {"suspicions": [marks.letters[n] for n in floor.suspicions]}
            for floor in comparison.floors
        ],
        "attacks_not_in_the_paper": list(comparison.foreign),
        "cells_not_computed": [
            {"attack": attack, "pretrain": pretrain, "downstream": task} for attack, pretrain, task in comparison.absent
        ],
        "off_board_left_out": comparison.left_out,
        "suspicions": dict(marks.notes()),
        "notes": _notes(comparison),
    }
    return json_text(data)


def _block_data(block: Block, marks: _Marks) -> dict[str, Any]:
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
        lines.append(data | {"suspicions": [marks.letters[number] for number in line.suspicions]})
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


_WRITERS = {"markdown": _write_markdown, "json": _write_json}

FORMATS = ("text", *_WRITERS)

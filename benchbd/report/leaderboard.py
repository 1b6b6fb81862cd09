"""A leaderboard from records: a row per attack and defense over seeds, as pandas, as a Document, as files.

Only records are read, so torch is never imported. The records alone determine the text, byte for byte: no date,
no host, no dependence on their order. All metrics are percentages, all differences percentage points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from benchbd.base.content import expanded, short_digests
from benchbd.base.errors import DataError, StoreError
from benchbd.contract.axes import INSPECTING
from benchbd.contract.roles import Role
from benchbd.planning.sweeps import point_text
from benchbd.records.files import PATTERNS, folder_of, read_inspected, read_records, remove_record, write_records
from benchbd.records.gates import DEFAULT, Gates, judge
from benchbd.records.inspected import INSPECTED
from benchbd.records.models import Inspected, Record
from benchbd.records.places import check_board
from benchbd.report.claims import with_claims
from benchbd.report.controls import departures, precision_of, task_name
from benchbd.report.document import Column, Document, Frame, Noted, Section, Table, Value
from benchbd.report.inspected import documents
from benchbd.report.protocols import check_together
from benchbd.report.rows import (
    BY_NAME,
    Order,
    TableRow,
    defense_forwards,
    flattened,
    rank_of,
    summarise,
)
from benchbd.report.summary import LEGEND as SUMMARY
from benchbd.report.summary import remarks as remarks_of
from benchbd.report.summary import sections, summaries
from benchbd.report.sweeps import columns_of, sweep_tables, swept
from benchbd.report.tuned import BRIEF as TUNED_BRIEF
from benchbd.report.tuned import legend, tuned_remarks, tuned_rows, tuned_section, untried
from benchbd.report.writers import csv, json, latex, markdown
from benchbd.report.writers.cells import letter, seconds
from benchbd.report.writers.safe import paragraphs

_FRAME = (
    *("attack", "defense", "pretrain", "task", "target", "target_name", "seed", "evaluator", "status", "reason"),
    *("acc", "asr", "asr_nontarget", "ra", "certified", "ca", "asr_b", "asr_b_nontarget", "ra_b"),
    *("seconds", "image_forwards", "precision", "on_board", "key", "point", "beside"),
)


def frame(records: Iterable[Record], gates: Gates = DEFAULT) -> pd.DataFrame:
    """One line per record, including off-board ones; its status is judged by ``gates``. ``task`` is "gtsrb:12"; a value
    that a record lacks is NaN.

    point: the assignments of a sweep's point as text ("trigger.size=3"); empty for the board's grid. beside: of a task
    without an attack, the attacked tasks ("gtsrb:12 + svhn:1"); else empty.
    """
    lines = []
    for record in records:
        line = record.model_dump(include=set(_FRAME))
        line |= record.metrics.model_dump() if record.metrics else {}
        line |= record.baseline.model_dump() if record.baseline else {}
        line |= {"task": task_name(record), "image_forwards": defense_forwards(record)}
        line["precision"] = precision_of(record)
        line |= judge(record, gates)._asdict()
        lines.append({**line, "point": point_text(record.point), "beside": " + ".join(record.beside)})
    return pd.DataFrame(lines, columns=list(_FRAME))


def frame_of_rows(records: Iterable[Record], order: Order = BY_NAME, off_board: bool = False) -> pd.DataFrame:
    """One line per row of the board, in its order; the columns are those of TableRow, flat.

    off_board: whether off-board records get rows, one set for each kind of departure; otherwise they are omitted.
    DataError if one cell has two records that differ.
    """
    rows = summarise(list(records), order, off_board)
    return pd.DataFrame([row.flat() for row in rows], columns=list(TableRow().flat()))


def document(
    records: Iterable[Record],
    title: str = "",
    order: Order = BY_NAME,
    off_board: bool = False,
) -> Document:
    """The rows of the board with the texts around them, a table for each place. off_board: see frame_of_rows."""
    known = list(records)
    rows = summarise(untried(known), order, off_board)
    tuned = tuned_rows(known, rows, order, off_board)
    shown = [record for record in known if record.on_board or off_board]
    shared = [note for note in rows[0].notes if all(note in row.notes for row in rows)] if len(rows) > 1 else []
    groups: dict[str, list[TableRow]] = {}
    for row in (row for row in rows if not row.point):
        groups.setdefault(row.heading, []).append(row)
    columns = columns_of(rows)
    values = partial(_values, columns=columns, shared=shared)
    tables = [Table(list(map(values, rows)), heading, about=rows) for heading, rows in groups.items()]
    moved = sweep_tables(rows, order, values)
    remarks = [f"All rows: {note}." for note in shared]
    if any(row.pretrain_pinned for row in rows):
        remarks.append("All seeds share one pre-training: the intervals leave pre-training out.")
    if left_out := Counter(departure for r in known if not (r.on_board or off_board) for departure in departures(r)):
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(left_out.items()))
        remarks.append(f"{len(known) - len(shown)} off-board records are left out: {short_digests(kinds)}.")
    boards = ", ".join(sorted({record.board for record in known}))
    seeds = ", ".join(map(str, sorted({record.seed for record in shown})))
    floor = next((f"attack {row.attack} under defense {row.defense} is " for row in rows if row.of_floor), "")
    names, flat = with_claims(order, *flattened(rows))
    summed = summaries(known, order)
    remarks += [*remarks_of(summed), *tuned_remarks(tuned, rows)]
    return Document(
        title=title,
        intro=f"Board {boards or '-'}; seeds {seeds or '-'}. "
        f"Floor: {floor}the clean encoder, its ACC is CA and its ASR is ASR-B.",
        sections=[
            *sections(summed),
            *[Section(columns, tables)] * bool(tables),
            *tuned_section(tuned),
            *[Section(swept(columns), moved)] * bool(moved),
        ],
        empty="No records.",
        legend=[
            _PERCENT.format("" if all(len(row.seeds) != 1 for row in rows) else ". † One seed: no interval"),
            *(SUMMARY if summed else ()),
            *[legend(order.tuned)] * bool(tuned),
            *_LEGEND,
            *(
                _OPTIONAL[name]
                for name in dict.fromkeys(each.over or each.header for each in columns)
                if name in _OPTIONAL
            ),
        ],
        remarks=remarks,
        brief=f"{_SUMMED * bool(summed)}{TUNED_BRIEF * bool(tuned)}{_brief(rows, columns)}",
        frames=[Frame(names, list(map(_joined, flat)))],
        data={
            "board": boards,
            "remarks": remarks,
            **({"summary": [each.flat() for each in summed]} if summed else {}),
            "rows": flat,
            **({"tuned": [each.flat() for each in tuned]} if tuned else {}),
        },
    )


_PERCENT = "ACC, ASR: percent, mean ± half-width of the 95 % interval over n seeds (Student t){}."

_LEGEND = (
    "ASR counts every triggered test image (the papers' definition); ASR non-target leaves out the images "
    "whose true class is the target.",
    "Δ floor, Δ scratch: percentage points to the clean encoder and to an encoder trained on the defender's "
    "clean images alone, seed by seed under the same task and evaluator; Δ ASR is that of ASR non-target.",
    "Seconds, image-forwards: of the defense alone, mean over seeds; a backward counts 2, or 1 where no weight "
    "gets a gradient.",
)


_OPTIONAL = {
    "RA": "RA: percent of the triggered test images outside the target class that get their own class, as if there "
    "were no trigger. A repair raises it; an encoder that confuses the classes has a low ASR without it.",
    "Certified": "Certified: percent of test images without the trigger that are classified correctly, with a "
    "certificate that no patch of the size that the evaluator declares changes that; the size is one of its options, "
    "which every record has under identity.evaluate.",
    "Δ bn": "Δ bn: percentage points to the same encoder with BatchNorm statistics computed again on the defender's "
    "clean images and nothing else changed, seed by seed.",
    "Δ own floor": "Δ own floor ASR: percentage points of ASR non-target to the same defense of the clean encoder, "
    "seed by seed. A student that confuses the target with other classes has an ASR of its own, which is no backdoor.",
}
"""What the columns mean that a table has only if some row has a value for them."""


def _values(row: TableRow, columns: Sequence[Column], shared: Collection[str]) -> list[Value]:
    """A row's values of ``columns``. shared: notes of all rows, which are no footnotes."""
    points = row.asr_nontarget_to_floor
    values: dict[str, Value] = {
        "Attack": row.attack,
        "Defense": row.defense,
        "n": len(row.seeds),
        "ACC": row.acc,
        "ASR": row.asr,
        "ASR non-target": row.asr_nontarget,
        "RA": row.ra,
        "Certified": row.certified,
        "Δ floor ACC": row.acc_to_floor.mean,
        "Δ floor ASR": points.mean if row.of_floor else points,  # the floor's to itself: no seed can differ
        "Δ scratch ACC": row.acc_to_scratch.mean,
        "Δ scratch ASR": row.asr_nontarget_to_scratch.mean,
        "Δ bn ACC": row.acc_to_bn.mean,
        "Δ bn ASR": row.asr_nontarget_to_bn.mean,
        "Δ own floor ASR": row.asr_nontarget_to_own_floor.mean,
        "Seconds": row.seconds,
        "Image-forwards": row.image_forwards,
        "Status": Noted(row.status, tuple(note for note in row.notes if note not in shared)),
    }
    return [values[column.full] for column in columns]


def _single(rows: Iterable[TableRow]) -> bool:
    """Whether some row has one seed alone."""
    return any(len(row.seeds) == 1 for row in rows)


_SUMMED = (
    "Residual: points of ASR-nt above the clean encoder's, at least 0, over all attacks that took; rank: by it, as far "
    "as clear; tied: a letter shared; (provisional): one seed. "
)

_BRIEF = {"RA": "RA: right in spite of the trigger. ", "Certified": "cert.: right, and certified. "}


def _brief(rows: Sequence[TableRow], columns: Sequence[Column]) -> str:
    several = any(len(row.seeds) > 1 for row in rows)
    one = "† one seed, no interval. " if several else "One seed: no intervals. "
    return (
        f"Percent{', mean ± 95 % half-width over seeds' if several else ''}. {one if _single(rows) else ''}"
        "ASR counts all triggered test images, ASR-nt leaves out those of the target class; Δ ASR is of ASR-nt. "
        f"{''.join(text for header, text in _BRIEF.items() if header in {each.header for each in columns})}"
        "Floor: the clean encoder (CA, ASR-B). s: seconds of the defense."
    )


def _joined(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A row for CSV, its lists as text."""
    lists = {
        "departures": "; ",
        "notes": "; ",
        "seeds": " ",
        "scratch_seeds": " ",
        "bn_seeds": " ",
        "own_floor_seeds": " ",
        "superseded_by": " ",
    }
    return {k: lists[k].join(map(str, value)) if k in lists else value for k, value in flat.items()}


def build(
    board: str,
    records: Iterable[Record],
    out: Path | None = None,
    order: Order = BY_NAME,
    description: str = "",
    off_board: bool = False,
    inspected: Sequence[Inspected] = (),
) -> dict[str, str]:
    """The files of a leaderboard by name: README.md, board.csv, board.json, board.tex, and detections.csv and
    detections.json if detectors were run (and likewise for every axis that inspects).

    out: the folder to write them to, with all records, so that a build from there gives the same bytes, under
    records/, where obsolete records are removed. The text of out/notes.md, if it exists, is part of the README.
    DataError for a record of another board, for records of two protocols, and for a file in out/records that is no
    record or of another board; StoreError if out/README.md is not a leaderboard's. In these cases nothing is written.
    StoreError if ``out`` cannot be written.
    """
    known, out = list(records), None if out is None else expanded(out)
    check_board((*known, *inspected), board)
    check_together(record for record in (*known, *inspected) if record.on_board or off_board)
    generated = f"generated by `benchbd leaderboard build {board}`; do not edit"
    notes = notes_of(out)
    table = document(known, order=order, off_board=off_board)
    judged = {axis: each for axis, each in documents(inspected, order, off_board) if markdown.write(each).strip()}
    captioned = replace(table, title=f"Leaderboard {board}")
    parts = [
        f"<!-- {generated} -->",
        f"# Leaderboard: {board}",
        paragraphs(description.strip()),
        markdown.write(table).strip(),
        *(f"## {axis.kind}\n\n{markdown.write(each).strip()}" for axis, each in judged.items()),
        _cost(costs(known, order, off_board)),
        f"## Notes\n\n{notes}" if notes else "",
    ]
    files = {
        "README.md": "\n\n".join(part for part in parts if part) + "\n",
        "board.csv": csv.write(table),
        "board.json": json.write(table),
        "board.tex": f"% {generated}\n{latex.write(captioned)}",
    }
    for axis, each in judged.items():
        files |= {f"{axis.plural}.csv": csv.write(each), f"{axis.plural}.json": json.write(each)}
    if out:
        folder = out / "records"
        # Report a foreign record or a README written by hand before anything is written or removed.
        check_board((*read_records(folder), *read_inspected(folder)), board, folder)
        _check_readme(out / "README.md", generated)
        kept = {*write_records([*known, *inspected], folder)}
        places = [folder, *(folder_of(kind, folder) for kind in INSPECTED.values())]
        try:
            there = {path for place in places for pattern in PATTERNS for path in place.glob(pattern)}
            for path in sorted(there - kept):
                remove_record(path)
            for axis in {*INSPECTING} - judged.keys():  # files of an earlier build
                for form in ("csv", "json"):
                    (out / f"{axis.plural}.{form}").unlink(missing_ok=True)
            for name, text in files.items():
                (out / name).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise StoreError(f"{out}: cannot be written ({error.strerror or error})") from error
    return files


def _check_readme(path: Path, generated: str) -> None:
    """StoreError if the folder has a README that a build of this board did not write."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise StoreError(f"{path}: cannot be written over ({error.strerror or error})") from error
    author = generated.partition(";")[0]
    if text and not text.startswith(f"<!-- {author}"):
        raise StoreError(f"{path}: not {author}, so it is not replaced; give another --out")


def notes_of(folder: Path | None) -> str:
    """The text of notes.md in the folder of a board, if there is one."""
    path = folder / "notes.md" if folder else None
    try:
        return path.read_text(encoding="utf-8").strip() if path and path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


# Cost and machines


def costs(records: Iterable[Record], order: Order = BY_NAME, off_board: bool = False) -> Document:
    """The cost of each defense, one line per defense and machine: seconds of two machines have no common mean. The
    summary has the machines."""
    runs: dict[tuple[str, str], dict[str, Record]] = {}
    machines: Counter[str] = Counter()
    for record in sorted(records, key=lambda record: record.name):
        if record.on_board or off_board:
            machine = _machine(record)
            machines[machine] += 1
            if "defend" in record.cost and record.defense_role is not Role.FLOOR:
                # One repair serves all evaluators, and one scratch run all attacks: each is counted once.
                done = runs.setdefault((record.defense, machine), {})
                done.setdefault(record.stages.get("defend", record.key), record)
    letters = {machine: letter(number).upper() for number, machine in enumerate(sorted(machines), start=1)}
    rows: list[list[Value]] = []
    for defense, machine in sorted(runs, key=lambda run: (*rank_of(run[0], order.defenses), run[1])):
        costs = [record.cost["defend"] for record in runs[defense, machine].values()]
        columns = ([cost.seconds for cost in costs], [cost.cpu_seconds for cost in costs])
        spans = [_range([seconds(value) for value in (fmean(c), min(c), max(c))]) for c in columns]
        forwards = fmean(cost.image_forwards for cost in costs)
        rows.append([defense, str(len(costs)), *spans, forwards, letters[machine]])
    said = [f"{letters[machine]}: {machine}; {count} records" for machine, count in sorted(machines.items())]
    return Document(sections=[Section(_COSTS, [Table(rows, "Cost")])], summary=said)


def _cost(found: Document) -> str:
    """``costs`` as Markdown; empty without a machine."""
    table = markdown.write(replace(found, summary=()))
    return f"{table}\nMachines:\n\n{markdown.bullets(found.summary)}" if found.summary else ""


_COSTS = (
    *(Column("Defense", "words"), Column("Runs"), Column("Seconds (range)"), Column("CPU seconds (range)")),
    *(Column("Image-forwards", "count"), Column("Machine", "words")),
)


def _range(texts: Sequence[str]) -> str:
    mean, least, most = texts
    return mean if least == most else f"{mean} ({least} to {most})"


def _machine(record: Record) -> str:
    """Device, threads and torch, then all else that the record contains about the machine."""
    known = {key: record.machine[key] for key in ("device", "threads", "torch") if key in record.machine}
    said = [f"{key} {value}" for key, value in (known | dict(sorted(record.machine.items()))).items()]
    return ", ".join(said) or "machine unknown"

"""From records to tables: a row per attack and defense over seeds, as pandas, Markdown, CSV, JSON, LaTeX or plain text.

Only records are read, so torch is never imported. The text is a function of the records alone, byte for byte: no date,
no host, no dependence on their order. All metrics are percentages, all differences percentage points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

from benchbd.base.content import expanded
from benchbd.base.errors import DataError, StoreError, UnknownNameError
from benchbd.contract.roles import Role
from benchbd.records.files import read_detections, read_records, write_records
from benchbd.records.models import DETECTIONS, DetectionRecord, Record
from benchbd.records.places import check_board
from benchbd.report import populations as detections
from benchbd.report.rows import (
    BY_NAME,
    Interval,
    Order,
    Row,
    defense_forwards,
    departures,
    rank_of,
    summarise,
    task_name,
)
from benchbd.report.writers import latex
from benchbd.report.writers.columns import WIDTH, Column, Fitted, marked, wrapped
from benchbd.report.writers.safe import escaped, json_text, paragraphs, pipe, plain, spreadsheet_cell

_FRAME = (
    *("attack", "defense", "pretrain", "task", "target", "target_name", "seed", "evaluator", "status", "reason"),
    *("acc", "asr", "asr_nontarget", "ca", "asr_b", "asr_b_nontarget", "seconds", "image_forwards", "on_board", "key"),
)


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One line per record, the off-board ones too. ``task`` is "gtsrb:12"; what a record lacks is NaN."""
    lines = []
    for record in records:
        line = record.model_dump(include=set(_FRAME))
        line |= record.metrics.model_dump() if record.metrics else {}
        line |= record.baseline.model_dump() if record.baseline else {}
        lines.append({**line, "task": task_name(record), "image_forwards": defense_forwards(record)})
    return pd.DataFrame(lines, columns=list(_FRAME))


def summary(records: Iterable[Record], order: Order = BY_NAME, off_board: bool = False) -> pd.DataFrame:
    """One line per row of the board, in its order; the columns are those of Row, flat.

    off_board: whether off-board records get rows, one set for each kind of departure; else they are left out.
    DataError where one cell has two records that differ.
    """
    return _frame_of(summarise(list(records), order, off_board))


def render(
    records: Iterable[Record],
    form: str,
    title: str = "",
    order: Order = BY_NAME,
    off_board: bool = False,
) -> str:
    """The board as text that ends with a newline. form: one of FORMATS; UnknownNameError for any other.

    title: heading of the Markdown, caption of the LaTeX. off_board: see summary.
    """
    if form not in _WRITERS:
        raise UnknownNameError("format", form, FORMATS)
    known = list(records)
    return _WRITERS[form](_Table(known, summarise(known, order, off_board), off_board), title)


def terminal_table(records: Iterable[Record], order: Order = BY_NAME, width: int = WIDTH) -> str:
    """What ``benchbd run`` prints at its end, off-board records included and marked. width: columns of the terminal."""
    known = list(records)
    table = _Table(known, summarise(known, order, off_board=True), off_board=True)
    if not table.rows:
        return "no records\n"
    several = any(len(row.seeds) > 1 for row in table.rows)
    fitted = Fitted(_TERMINAL, [_terminal_cells(row, table, several) for row in table.rows], width)
    lines: list[str] = []
    for heading, rows in table.groups():
        lines += [*([""] if lines else []), *wrapped(heading, width, rest="  "), *fitted.head()]
        lines += [line for row in rows for line in fitted.row(_terminal_cells(row, table, several))]
    one = "† one seed, no interval. " if several else "One seed: no intervals. "
    legend = (
        f"Percent{', mean ± 95 % half-width over seeds' if several else ''}. {one if table.single else ''}"
        "ASR counts all triggered test images, ASR-nt leaves out those of the target class; Δ ASR is of ASR-nt. "
        f"Floor: the clean encoder (CA, ASR-B). s: seconds of the defense. {fitted.left_out()}"
    )
    lines += ["", *wrapped(legend, width)]
    notes = [*(("*", text) for text in table.remarks), *((f"[{n}]", t) for t, n in table.footnotes.items())]
    return "\n".join([*lines, *marked(notes, width)]) + "\n"


def build(
    board: str,
    records: Iterable[Record],
    out: Path | None = None,
    order: Order = BY_NAME,
    description: str = "",
    off_board: bool = False,
    detected: Sequence[DetectionRecord] = (),
) -> dict[str, str]:
    """The files of a leaderboard by name: README.md, board.csv, board.json, board.tex, and detections.csv and
    detections.json where detectors were run.

    out: where they are written, with the records (all of them, so that a build from there gives the same bytes) under
    records/, from which the obsolete ones are removed. The text of out/notes.md, if there, enters the README as it is.
    DataError for a record of another board, and for a file in out/records that is no record or of another board;
    StoreError where out/README.md is not a leaderboard's. Nothing is written then. StoreError where ``out`` cannot be
    written.
    """
    known, out = list(records), None if out is None else expanded(out)
    check_board((*known, *detected), board)
    generated = f"generated by `benchbd leaderboard build {board}`; do not edit"
    notes = _notes_of(out)
    detection = detections.render(detected, "markdown", order, off_board).strip()
    parts = [
        f"<!-- {generated} -->",
        f"# Leaderboard: {board}",
        paragraphs(description.strip()),
        render(known, "markdown", order=order, off_board=off_board).strip(),
        f"## Detection\n\n{detection}" if detection else "",
        _cost(known, order, off_board),
        f"## Notes\n\n{notes}" if notes else "",
    ]
    files = {
        "README.md": "\n\n".join(part for part in parts if part) + "\n",
        "board.csv": render(known, "csv", order=order, off_board=off_board),
        "board.json": render(known, "json", order=order, off_board=off_board),
        "board.tex": f"% {generated}\n" + render(known, "latex", f"Leaderboard {board}", order, off_board),
    }
    judged = {f"detections.{form}": detections.render(detected, form, order, off_board) for form in ("csv", "json")}
    if detection:
        files |= judged
    if out:
        folder = out / "records"
        # A stranger among the records, or a text by hand, is reported before anything is written or removed.
        check_board((*read_records(folder), *read_detections(folder)), board, folder)
        _check_readme(out / "README.md", generated)
        kept = {*write_records(known, folder), *(write_records(detected, folder / DETECTIONS) if detected else ())}
        try:
            for path in sorted({*folder.glob("*.json"), *folder.glob(f"{DETECTIONS}/*.json")} - kept):
                path.unlink()
            if not detection:  # of an earlier build
                for name in judged:
                    (out / name).unlink(missing_ok=True)
            for name, text in files.items():
                (out / name).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise StoreError(f"{out}: cannot be written ({error.strerror or error})") from error
    return files


def _check_readme(path: Path, generated: str) -> None:
    """StoreError where there is a README that a build of this board did not write."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise StoreError(f"{path}: cannot be written over ({error.strerror or error})") from error
    author = generated.partition(";")[0]
    if text and not text.startswith(f"<!-- {author}"):
        raise StoreError(f"{path}: not {author}, so it is not replaced; give another --out")


def _notes_of(folder: Path | None) -> str:
    """The text of notes.md in the folder of a board, if there is one."""
    path = folder / "notes.md" if folder else None
    try:
        return path.read_text(encoding="utf-8").strip() if path and path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _frame_of(rows: Iterable[Row]) -> pd.DataFrame:
    return pd.DataFrame([row.flat() for row in rows], columns=list(Row().flat()))


# Tables


class _Table:
    """Rows with what stands around them: remarks on all of them, and numbered footnotes on some."""

    def __init__(self, records: Sequence[Record], rows: Sequence[Row], off_board: bool) -> None:
        shown = [record for record in records if record.on_board or off_board]
        left_out = Counter(departure for r in records if r not in shown for departure in departures(r))
        self.rows = rows
        self.boards = sorted({record.board for record in records})
        self.seeds = sorted({record.seed for record in shown})
        self.single = any(len(row.seeds) == 1 for row in rows)
        shared = (
            [note for note in rows[0].notes if len(rows) > 1 and all(note in r.notes for r in rows)] if rows else []
        )
        self.remarks = [f"All rows: {note}." for note in shared]
        if any(row.pretrain_pinned for row in rows):
            self.remarks.append("All seeds share one pre-training: the intervals leave pre-training out.")
        if left_out:
            kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(left_out.items()))
            self.remarks.append(f"{len(records) - len(shown)} off-board records are left out: {kinds}.")
        noted = dict.fromkeys(note for row in rows for note in row.notes if note not in shared)
        self.footnotes = {note: number for number, note in enumerate(noted, start=1)}

    def groups(self) -> list[tuple[str, list[Row]]]:
        """The rows by heading, in order."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.heading, []).append(row)
        return list(groups.items())

    def status(self, row: Row) -> str:
        """The status of a row and the numbers of its footnotes."""
        numbers = [self.footnotes[note] for note in row.notes if note in self.footnotes]
        return f"{row.status} [{_ranges(numbers)}]" if numbers else row.status

    def header(self) -> str:
        """Board, seeds and floor, in a line."""
        boards = ", ".join(self.boards) or "-"
        seeds = ", ".join(map(str, self.seeds)) or "-"
        floor = next((f"attack {row.attack} under defense {row.defense} is " for row in self.rows if row.of_floor), "")
        return f"Board {boards}; seeds {seeds}. Floor: {floor}the clean encoder, its ACC is CA and its ASR is ASR-B."

    def legend(self) -> list[str]:
        """How the columns are to be read, a sentence group each."""
        one = ". † One seed: no interval" if self.single else ""
        return [
            f"ACC, ASR: percent, mean ± half-width of the 95 % interval over n seeds (Student t){one}.",
            "ASR counts every triggered test image (the papers' definition); ASR non-target leaves out the images "
            "whose true class is the target.",
            "Δ floor, Δ scratch: percentage points to the clean encoder and to an encoder trained on the defender's "
            "clean images alone, seed by seed under the same task and evaluator; Δ ASR is that of ASR non-target.",
            "Seconds, image-forwards: of the defense alone, mean over seeds; a backward counts 2, or 1 where no weight "
            "gets a gradient.",
        ]


_HEADERS = (
    *("Attack", "Defense", "n", "ACC", "ASR", "ASR non-target", "Δ floor ACC", "Δ floor ASR"),
    *("Δ scratch ACC", "Δ scratch ASR", "Seconds", "Image-forwards", "Status"),
)

_COST = ("Seconds", "Image-forwards")

# Widths in points: with every figure as wide as "100.00 ± 100.00", the table is as wide as the text of A4.
_TEX_NAMES = (latex.Column("Attack", 46), latex.Column("Defense", 34))

_TEX_FIGURES = (
    *(*_TEX_NAMES, latex.Column("n"), latex.Column("ACC"), latex.Column("ASR"), latex.Column("ASR non-target")),
    *(latex.Column(header) for header in ("ACC", "ASR") * 2),  # under "Δ floor" and "Δ scratch"
    latex.Column("Status", 56),
)

_TEX_COSTS = (*_TEX_NAMES, *map(latex.Column, _COST))

_TERMINAL = (
    *(Column("attack", words=True), Column("defense", words=True)),
    *(Column("ACC"), Column("ASR"), Column("ASR-nt", rank=1)),
    *(Column(metric, least=5, rank=2, over="Δ floor") for metric in ("ACC", "ASR")),
    *(Column(metric, least=5, rank=4, over="Δ scratch") for metric in ("ACC", "ASR")),
    *(Column("s", rank=3), Column("status", words=True)),
)


def _cells(row: Row, table: _Table) -> list[str]:
    return [
        row.attack,
        row.defense,
        "1†" if len(row.seeds) == 1 else str(len(row.seeds)),
        *(_spread(value) for value in (row.acc, row.asr, row.asr_nontarget)),
        _signed(row.acc_to_floor),
        _signed(row.asr_nontarget_to_floor, interval=not row.of_floor),
        *(_signed(value) for value in (row.acc_to_scratch, row.asr_nontarget_to_scratch)),
        _seconds(row.seconds),
        _count(row.image_forwards),
        table.status(row),
    ]


def _terminal_cells(row: Row, table: _Table, several: bool) -> list[str]:
    mark = "†" if several and len(row.seeds) == 1 else ""
    return [
        row.attack,
        row.defense,
        *(_spread(value, digits=1, pm="±", mark=mark) for value in (row.acc, row.asr, row.asr_nontarget)),
        *(_signed(value, digits=1) for value in (row.acc_to_floor, row.asr_nontarget_to_floor)),
        *(_signed(value, digits=1) for value in (row.acc_to_scratch, row.asr_nontarget_to_scratch)),
        _seconds(row.seconds),
        table.status(row),
    ]


def _ranges(numbers: Iterable[int]) -> str:
    """1,3-5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _spread(value: Interval, digits: int = 2, pm: str = " ± ", mark: str = "") -> str:
    if value.mean is None:
        return "-"
    return f"{value.mean:.{digits}f}" + (mark if value.half is None else f"{pm}{value.half:.{digits}f}")


def _signed(value: Interval, digits: int = 2, interval: bool = False) -> str:
    if value.mean is None:
        return "-"
    spread = f" ± {value.half:.{digits}f}" if interval and value.half is not None else ""
    return f"{round(value.mean, digits) + 0.0:+.{digits}f}{spread}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _count(value: float | None) -> str:
    """Three digits and a unit: 9.01G."""
    if value is None:
        return "-"
    if value < 1000:
        return f"{value:.0f}"
    for unit in "kMG":
        value /= 1000
        if value < 999.5 or unit == "G":
            break
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"


def _markdown(table: _Table, title: str) -> str:
    parts = [f"# {plain(title)}"] if title else []
    parts.append(table.header())
    for heading, rows in table.groups():
        body = [_cells(row, table) for row in rows]
        parts += [f"## {escaped(heading)}", pipe(_HEADERS, body, left={"Attack", "Defense", "Status"})]
    if not table.rows:
        parts.append("No records.")
    notes = [f"- {escaped(text)}" for text in [*table.legend(), *table.remarks]]
    notes += [f"- [{number}] {escaped(text)}" for text, number in table.footnotes.items()]
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


def _csv(table: _Table, title: str) -> str:
    flat = _frame_of(table.rows)
    for column, separator in (("departures", "; "), ("notes", "; "), ("seeds", " "), ("scratch_seeds", " ")):
        flat[column] = [separator.join(map(str, values)) for values in flat[column]]
    return flat.map(spreadsheet_cell).to_csv(index=False, lineterminator="\n")


def _json(table: _Table, title: str) -> str:
    rows = [row.flat() for row in table.rows]
    data = {"board": ", ".join(table.boards), "remarks": table.remarks, "rows": rows}
    return json_text(data)


def _latex(table: _Table, title: str) -> str:
    """A table of figures for each heading, one of costs where there are any, and the notes under them all."""
    parts = [latex.BEGIN]
    for heading, rows in table.groups():
        caption = f"{title}: {heading}" if title else heading
        lines = [dict(zip(_HEADERS, _cells(row, table), strict=True)) for row in rows]
        figures = [[cell for header, cell in line.items() if header not in _COST] for line in lines]
        parts.append(latex.longtable(caption, _TEX_FIGURES, figures, spans=[("Δ floor", 7, 8), ("Δ scratch", 9, 10)]))
        costs = [
            [line[column.header] for column in _TEX_COSTS] for line in lines if any(line[name] != "-" for name in _COST)
        ]
        if costs:
            parts.append(latex.longtable(f"Cost of the defenses. {caption}", _TEX_COSTS, costs))
    notes = [table.header(), *table.legend(), *table.remarks]
    notes += [f"[{number}] {text}" for text, number in table.footnotes.items()]
    return "\n".join([*parts, latex.notes(notes), latex.END]) + "\n"


_WRITERS = {"markdown": _markdown, "csv": _csv, "json": _json, "latex": _latex}

FORMATS = tuple(_WRITERS)


# Cost and machines


def _cost(records: Sequence[Record], order: Order, off_board: bool) -> str:
    """What each defense cost, one line per defense and machine: seconds of two machines have no mean."""
    runs: dict[tuple[str, str], dict[str, Record]] = {}
    machines: Counter[str] = Counter()
    for record in sorted(records, key=lambda record: record.name):
        if record.on_board or off_board:
            machine = _machine(record)
            machines[machine] += 1
            if "defend" in record.cost and record.defense_role is not Role.FLOOR:
                # One repair serves all evaluators, and one scratch run all attacks: it is counted once.
                done = runs.setdefault((record.defense, machine), {})
                done.setdefault(record.stages.get("defend", record.key), record)
    letters = {machine: chr(ord("A") + i) for i, machine in enumerate(sorted(machines))}
    body = []
    for defense, machine in sorted(runs, key=lambda run: (*rank_of(run[0], order.defenses), run[1])):
        costs = [record.cost["defend"] for record in runs[defense, machine].values()]
        columns = ([cost.seconds for cost in costs], [cost.cpu_seconds for cost in costs])
        spans = [_range([_seconds(value) for value in (fmean(c), min(c), max(c))]) for c in columns]
        forwards = _count(fmean(cost.image_forwards for cost in costs))
        body.append([defense, str(len(costs)), *spans, forwards, letters[machine]])
    headers = ("Defense", "Runs", "Seconds (range)", "CPU seconds (range)", "Image-forwards", "Machine")
    lines = [
        f"- {letters[machine]}: {escaped(machine)}; {count} records" for machine, count in sorted(machines.items())
    ]
    table = [pipe(headers, body, left={"Defense", "Machine"})] if body else []
    return "\n\n".join(["## Cost", *table, "Machines:\n\n" + "\n".join(lines)]) if lines else ""


def _range(texts: Sequence[str]) -> str:
    mean, least, most = texts
    return mean if least == most else f"{mean} ({least} to {most})"


def _machine(record: Record) -> str:
    """Device, threads and torch first, whatever else the record knows after them."""
    known = {key: record.machine[key] for key in ("device", "threads", "torch") if key in record.machine}
    said = [f"{key} {value}" for key, value in (known | dict(sorted(record.machine.items()))).items()]
    return ", ".join(said) or "machine unknown"

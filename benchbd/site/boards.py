"""What the page of a board shows: its tables, charts, costs, notes and files to download."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from markupsafe import Markup

from benchbd._version import __version__
from benchbd.contract.roles import Role
from benchbd.planning.board import Board
from benchbd.planning.sweeps import point_text
from benchbd.published import Listed
from benchbd.records.files import place_of
from benchbd.records.gates import judge
from benchbd.records.models import Entry, Inspected, Record
from benchbd.report import leaderboard
from benchbd.report.claims import Claimed, Method, claimed
from benchbd.report.controls import departures, task_name
from benchbd.report.detection import Population
from benchbd.report.document import Column, Document, Noted, Section, Table
from benchbd.report.inspected import documents, write_with
from benchbd.report.protocols import check_together
from benchbd.report.rows import Order, TableRow
from benchbd.report.summary import SummaryRow
from benchbd.report.sweeps import SWEPT
from benchbd.report.tuned import TunedRow
from benchbd.report.writers import csv, latex
from benchbd.report.writers.cells import count
from benchbd.site import prose
from benchbd.site.charts import Curves, Point, Scatter, curves, scatter
from benchbd.site.names import record_place
from benchbd.site.tables import Cell, Grid, grids

FILES = {
    "data.json": "all figures, for programs",
    "board.csv": "the rows, for a spreadsheet",
    "board.tex": "the tables, for a paper",
    "board.bib": "this board, and the papers of its methods",
}
"""Files to download, with their content."""

_KINDS = {Role.FLOOR: "undefended"} | {role: role.value for role in (Role.SCRATCH, Role.BN, Role.ORACLE)}


@dataclass(frozen=True)
class Source:
    """A board with its records.

    notes: of the board, as Markdown. outdated: for records that another version of a method made than the installed
    one, by place, what is other. verified: badges by place, as tier and verdict. encoders: those that are published
    with the board.
    """

    board: Board
    records: Sequence[Record]
    inspected: Sequence[Inspected] = ()
    notes: str = ""
    outdated: Mapping[str, str] = field(default_factory=dict)
    verified: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    encoders: Sequence[Listed] = ()


@dataclass(frozen=True)
class Shown:
    """A table with its charts."""

    id: str
    grid: Grid
    scatters: Sequence[Scatter] = ()
    curves: Sequence[Curves] = ()


class BoardPage:
    """A board as its page shows it. DataError for records of two protocols."""

    def __init__(
        self,
        source: Source,
        methods: Mapping[tuple[str, str], str],
        about: Mapping[tuple[str, str], Mapping[str, Any] | None],
        off_board: bool = False,
    ) -> None:
        self.source, self.name, self.order = source, source.board.name, Order.of(source.board)
        self.title, self.description = source.board.title, source.board.description
        shown = [record for record in (*source.records, *source.inspected) if record.on_board or off_board]
        check_together(shown)
        self.everything: list[Entry] = sorted(shown, key=lambda record: place_of(record))
        self.records = [record for record in self.everything if isinstance(record, Record)]
        self.seeds = sorted({record.seed for record in self.everything})
        self.methods = {("attack", record.attack) for record in self.everything}
        for record in self.everything:
            if isinstance(record, Record):
                self.methods |= {("defense", record.defense), ("evaluator", record.evaluator)}
            elif isinstance(record, Inspected):
                self.methods.add((record.axis, record.method))
        self.document = leaderboard.document(source.records, f"Leaderboard {self.name}", self.order, off_board)
        self.judged = {axis: each for axis, each in documents(source.inspected, self.order, off_board) if each.sections}
        self.costs = leaderboard.costs(source.records, self.order, off_board)
        self._off_board, self._about = off_board, about
        heads = {"attack": "Attack", "defense": "Defense", "detection": "Detector"}
        self._links = {(heads[axis], name): place for (axis, name), place in methods.items() if axis in heads}
        self._records: dict[tuple[object, ...], list[tuple[str, str]]] = {}
        for record in sorted(self.records, key=lambda record: record.seed):
            self._records.setdefault(_cell_of(record), []).append((str(record.seed), f"{record_place(record)}.html"))
        self._outdated = {_cell_of(record) for record in self.records if place_of(record) in source.outdated}
        self._tiers: dict[tuple[object, ...], list[int]] = {}
        for record in self.records:
            tier, _ = source.verified.get(place_of(record), (1, ""))
            self._tiers.setdefault(_cell_of(record), []).append(tier)

    @cached_property
    def claimed(self) -> dict[Method, Claimed]:
        """What the board claims of the attacks and defenses of its records."""
        roles = {("attack", record.attack): record.attack_role for record in self.records}
        roles |= {("defense", record.defense): record.defense_role for record in self.records}
        return claimed(self.order, roles)

    @cached_property
    def rows(self) -> list[TableRow]:
        """All rows, those of sweeps too."""
        return [each for table in self._tables() for each in table.about if isinstance(each, TableRow)]

    @cached_property
    def populations(self) -> list[Population]:
        found = [each for document in self.judged.values() for section in document.sections for each in section.tables]
        return [each for table in found for each in table.about if isinstance(each, Population)]

    @cached_property
    def parts(self) -> list[tuple[str, list[Shown]]]:
        """The tables by part of the page: heading and tables."""
        more = {
            SummaryRow: [("Image-forwards", self._forwards), ("Claims", _claims)],
            TableRow: [("Records", lambda row: Cell(links=self._records.get(_row_of(row), ())))],
        }
        if any(self._marks(row) for row in self.rows):
            more[TableRow].append(("Marks", lambda row: Cell(badges=self._marks(row))))
        parts: dict[str, list[Shown]] = {"Summary": [], "Cells": [], "Tuned": [], "Sweeps": []}
        for number, grid in enumerate(grids(self.document, self._links, more), start=1):
            first = grid.about[0] if grid.about else None
            if grid.columns[0] == SWEPT:
                parts["Sweeps"].append(Shown(f"t{number}", grid, curves=list(_curves(grid))))
            elif isinstance(first, TunedRow):
                parts["Tuned"].append(Shown(f"t{number}", grid))
            elif isinstance(first, TableRow):
                parts["Cells"].append(Shown(f"t{number}", grid, list(_scatters(grid.heading, grid.about))))
            else:
                parts["Summary"].append(Shown(f"t{number}", grid))
        for axis, document in self.judged.items():
            made = grids(document, self._links, mark=axis.name)
            parts[axis.kind] = [
                Shown(f"{axis.name}{n}", replace(grid, heading=axis.kind)) for n, grid in enumerate(made)
            ]
        parts["Cost"] = [
            Shown("cost", replace(grid, heading="Cost of each defense"))
            for grid in grids(self.costs, self._links)
            if grid.lines
        ]
        parts["Encoders"] = [
            Shown("encoders", grid) for grid in grids(_encoders(self.source.encoders), {}) if grid.lines
        ]
        return [(heading, shown) for heading, shown in parts.items() if shown]

    @property
    def reading(self) -> list[tuple[str, str, list[str], list[tuple[int, str]]]]:
        """How to read the tables, by what they are of: heading, start of the ids of notes, remarks, numbered notes."""
        named = [("", "note", self.document)]
        named += [(axis.kind, axis.name, document) for axis, document in self.judged.items()]
        return [
            (
                heading,
                mark,
                [*document.legend, *document.remarks],
                [(number, note) for note, number in document.footnotes.items()],
            )
            for heading, mark, document in named
        ]

    @property
    def notes(self) -> Markup:
        return prose.html(self.source.notes)

    @cached_property
    def files(self) -> dict[str, str]:
        """The files to download, by name."""
        table = self.document if self.records else None
        data = write_with(table, self.judged.items(), self.name, "json")
        files = {
            "data.json": data,
            "board.csv": csv.write(self.document),
            "board.tex": latex.write(self.document),
            "board.bib": self._bibliography(hashlib.sha256(data.encode()).hexdigest()),
        }
        return files | {f"{axis.plural}.csv": csv.write(document) for axis, document in self.judged.items()}

    @property
    def downloads(self) -> list[tuple[str, str]]:
        """Name and content of each file."""
        return [(name, FILES.get(name, "the detectors' rows, for a spreadsheet")) for name in self.files]

    def listed(self) -> Grid:
        """A table of all records."""
        words = ("Attack", "Defense or detector", "Task", "Evaluator")
        columns = [*(Column(word, "words") for word in words), Column("Seed"), Column("Point", "words")]
        columns += [Column("ACC", "percent"), Column("ASR non-target", "percent"), Column("Status", "words")]
        rows = []
        for record in self.everything:
            cell = record if isinstance(record, Record) else None
            rows.append(
                [
                    record.attack,
                    cell.defense if cell else getattr(record, "method", ""),
                    f"{record.pretrain} -> {task_name(cell) if cell else ' + '.join(getattr(record, 'tasks', []))}",
                    getattr(record, "evaluator", ""),
                    record.seed,
                    point_text(record.point) or None,
                    f"{cell.metrics.acc:.2f}" if cell and cell.metrics else None,
                    f"{cell.metrics.asr_nontarget:.2f}" if cell and cell.metrics else None,
                    judge(record, self.order.gates).status,
                ]
            )
        document = Document(sections=[Section(columns, [Table(rows, about=self.everything)])])
        link = ("Record", lambda record: Cell(links=[("open", f"{record_place(record)}.html")]))
        kinds = {type(record): [link] for record in self.everything}
        mixed = {kind: [link] for kind in kinds}
        (grid,) = grids(document, self._links, mixed)
        return grid

    def _tables(self) -> Iterator[Table]:
        for section in self.document.sections:
            yield from section.tables

    def _marks(self, row: object) -> list[tuple[str, str]]:
        """What a reader should know of a row besides its status: badges."""
        assert isinstance(row, TableRow)
        marks = [("reproduced", f"reproduced by {row.sources}")] if row.sources > 1 else []
        if (tier := min(self._tiers.get(_row_of(row), [1]))) > 1:
            marks.append(("verified", f"tier {tier}"))
        return [*marks, *([("outdated", "earlier version")] if _row_of(row) in self._outdated else [])]

    def _forwards(self, row: object) -> Cell:
        """The mean image-forwards of a defense, each run counted once."""
        assert isinstance(row, SummaryRow)
        known = {
            record.stages.get("defend", record.key): record.cost["defend"].image_forwards
            for record in self.records
            if record.defense == row.standing.defense
            and record.on_board
            and not record.point
            and "defend" in record.cost
        }
        return Cell(count(mean), key=mean) if known and (mean := fmean(known.values())) else Cell("-")

    def _bibliography(self, digest: str) -> str:
        def entry(key: str, **fields: str) -> str:
            lines = [f"  {name} = {{{latex.tex(text, longest=1000)}}}" for name, text in fields.items()]
            return f"@misc{{{key},\n" + ",\n".join(lines) + "\n}\n"

        own = entry(
            f"benchbd-{self.name}",
            author="The benchbd authors",
            title=f"Leaderboard {self.name}: {self.title}",
            note=f"benchbd {__version__}; {len(self.everything)} records; data.json has the sha256 {digest}",
        )
        papers = [
            entry(f"benchbd-{axis}-{name}", title=f"{axis} {name} of benchbd", note=f"Source: {about['paper']}")
            for axis, name in sorted(self.methods)
            if (about := self._about.get((axis, name))) and about["paper"]
        ]
        return "\n".join([own, *papers])


def method_rows(boards: Iterable[BoardPage], axis: str, name: str) -> Iterator[Document]:
    """The rows of a method on all boards: one table, none if it has none."""
    if axis in ("attack", "defense"):
        rows = [(board, row) for board in boards for row in board.rows if getattr(row, axis) == name]
        if rows:
            yield Document(sections=[Section(_ROWS, [Table([_row(board, row) for board, row in rows], "On boards")])])
    elif axis == "detection":
        columns = _POPULATIONS
        found = [
            [board.name, each.attack or "-", len(each.clean), len(each.attacked), _auroc(each)]
            for board in boards
            for each in board.populations
            if each.detection == name
        ]
        if found:
            yield Document(sections=[Section(columns, [Table(found, "On boards")])])


_ROWS = (
    *(Column(header, "words") for header in ("Board", "Task", "Attack", "Defense")),
    *(Column("Seeds"), Column("ACC", "percent"), Column("ASR", "percent"), Column("ASR non-target", "percent")),
    *(Column("RA", "percent"), Column("Δ floor ACC", "change"), Column("Δ floor ASR", "change")),
    Column("Status", "words"),
)

_POPULATIONS = (
    *(Column("Board", "words"), Column("Attack", "words"), Column("Clean encoders"), Column("Attacked encoders")),
    Column("AUROC"),
)


def _row(board: BoardPage, row: TableRow) -> list[Any]:
    place = f"{row.heading}{f'; at {row.point}' if row.point else ''}"
    figures = [row.acc, row.asr, row.asr_nontarget, row.ra, row.acc_to_floor, row.asr_nontarget_to_floor]
    return [board.name, place, row.attack, row.defense, len(row.seeds), *figures, Noted(row.status)]


def _claims(row: object) -> Cell:
    """The marks of a row as badges. The footnote of its defense has what a confirmation says."""
    assert isinstance(row, SummaryRow)
    told = [(mark.kind, mark.text if mark.kind == "confirmed" else mark.note) for mark in row.claimed.marks]
    return Cell(key=" ".join(text for _, text in told) or None, badges=told)


def _auroc(population: Population) -> str | None:
    return "{:.3f} [{:.2f}, {:.2f}]".format(*population.auroc) if population.auroc else None


def _encoders(encoders: Sequence[Listed]) -> Document:
    """The encoders that a board publishes."""
    columns = [Column("Name", "words"), Column("Architecture", "words"), Column("sha256", "words"), Column("Bytes")]
    rows = [[each.name, each.architecture, each.sha256, each.size] for each in encoders]
    intro = (
        "benchbd.load_encoder(NAME) loads one, and benchbd run --published starts from them. Without bytes: published "
    )
    intro += "by the sha256 alone."
    return Document(sections=[Section(columns, [Table(rows, "Encoders without a defense", intro=intro)])])


def _row_of(row: object) -> tuple[object, ...]:
    assert isinstance(row, TableRow)
    place = (row.pretrain, row.task, row.evaluator, row.beside, row.point, row.departures)
    return *place, row.attack, row.defense


def _cell_of(record: Record) -> tuple[object, ...]:
    place = (record.pretrain, task_name(record), record.evaluator, " + ".join(record.beside))
    return *place, point_text(record.point), departures(record), record.attack, record.defense


def _scatters(heading: str, rows: Sequence[object]) -> Iterator[Scatter]:
    """A chart for every attack with a defense."""
    known = [row for row in rows if isinstance(row, TableRow)]
    floor = [row for row in known if row.of_floor]
    attacks = dict.fromkeys(row.attack for row in known if row.attack_role in (Role.METHOD, Role.FILE))
    for attack in attacks:
        own = [row for row in known if row.attack == attack]
        if made := scatter(f"{attack}, {heading}", [_point(row) for row in (*floor, *own)]):
            yield made


def _point(row: TableRow) -> Point:
    void = "method" if set(row.statuses) == {"ok"} else "void"
    kind = "floor" if row.of_floor else _KINDS.get(row.defense_role, void)
    name = {"floor": "clean encoder", "undefended": "undefended"}.get(kind, row.defense)
    return Point(name, kind, row.asr_nontarget, row.acc)


def _curves(grid: Grid) -> Iterator[Curves]:
    """A sweep's ASR non-target and ACC over its values, a line for each attack and defense."""
    told = [(line.cells[0].text, row) for line, row in zip(grid.lines, grid.about, strict=True)]
    labels = list(dict.fromkeys(label for label, _ in told))
    cells = {(row.attack, row.defense, label): row for label, row in told if isinstance(row, TableRow)}
    lines = list(dict.fromkeys((attack, defense) for attack, defense, _ in cells))
    if len(labels) > 1:
        for measure, name in (("ASR non-target", "asr_nontarget"), ("ACC", "acc")):
            nothing = TableRow()
            series = [
                (
                    f"{attack} / {defense}",
                    [getattr(cells.get((attack, defense, each), nothing), name) for each in labels],
                )
                for attack, defense in lines
            ]
            yield curves(f"{measure}: {grid.heading}", measure, labels, series)

"""What the page of a record shows, and its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchbd.planning.sweeps import point_text
from benchbd.records.files import place_of
from benchbd.records.gates import Judgement, judge
from benchbd.records.models import Counts, Entry, Inspected, Metrics, Record
from benchbd.records.pictures import PICTURES, read_pictures
from benchbd.report.controls import precision_of, task_name
from benchbd.report.document import Column, Document, Section, Table
from benchbd.site.names import picture_place
from benchbd.site.tables import Grid, grids

if TYPE_CHECKING:
    from benchbd.site.boards import BoardPage


@dataclass(frozen=True)
class Picture:
    """A picture of a record, and what it shows."""

    shows: str
    place: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class RecordPage:
    """A record as its page shows it. facts: name, text and page of each. methods: kind of stage, method and options."""

    title: str
    judged: Judgement
    facts: list[tuple[str, str, str]]
    grids: list[Grid]
    methods: list[tuple[str, str, str, list[tuple[str, Any]]]]
    pictures: list[Picture]


def record_page(record: Entry, board: BoardPage, links: Mapping[tuple[str, str], str]) -> RecordPage:
    """What the page of a record of ``board`` shows. links: pages of methods, by axis and name."""
    judged = judge(record, board.order.gates)
    axis = "defense" if isinstance(record, Record) else getattr(record, "axis", "")
    method = record.defense if isinstance(record, Record) else getattr(record, "method", "")
    tasks = task_name(record) if isinstance(record, Record) else " + ".join(getattr(record, "tasks", []))
    facts = [
        ("attack", record.attack, links.get(("attack", record.attack), "")),
        (axis, method, links.get((axis, method), "")),
        ("task", f"{record.pretrain} -> {tasks}", ""),
        ("target class", f"{record.target_name}" if isinstance(record, Record) else "", ""),
        ("evaluator", (judge_of := getattr(record, "evaluator", "")), links.get(("evaluator", judge_of), "")),
        ("seed", str(record.seed), ""),
        ("point of a sweep", point_text(record.point), ""),
        ("not attacked; attacked are", " + ".join(getattr(record, "beside", [])), ""),
        ("precision", precision_of(record), ""),
        ("departures from the board", "; ".join(record.departures), ""),
        ("clean images of the defender", f"{len(record.clean_images):,}" if record.clean_images else "", ""),
        ("features of these images", _features(record), ""),
        ("made by an earlier method", board.source.outdated.get(place_of(record), ""), ""),
        ("computed again", "tier {}: {}".format(*held) if (held := _held(record, board)) else "", ""),
        ("who ran it", record.author, ""),
        ("machine and store", record.source or "", ""),
        ("reproduced by", ", ".join(each.source or "" for each in record.replicates), ""),
        ("machine", ", ".join(f"{name} {value}" for name, value in sorted(record.machine.items())), ""),
        ("key", record.key, ""),
        ("sha256 of the predictions", getattr(record, "predictions", None) or "", ""),
    ]
    if isinstance(record, Inspected):
        facts += [(name, str(value), "") for name, value in sorted(record.found.items())]
    return RecordPage(
        f"{record.attack} x {method}, {record.pretrain} -> {tasks}, seed {record.seed}",
        judged,
        [fact for fact in facts if fact[1]],
        list(_grids(record)),
        list(_methods(record)),
        list(_pictures(record)),
    )


def _features(record: Entry) -> str:
    """What clean images tell of a repair; empty if that was not measured."""
    if (told := getattr(record, "clean_features", None)) is None:
        return ""
    change = f"{100 * told.pretext_given:.1f} % before the repair, {100 * told.pretext:.1f} % after"
    return f"pretext accuracy {change}; mean cosine of before and after {told.cosine:.3f}"


def _held(record: Entry, board: BoardPage) -> tuple[int, str] | None:
    return board.source.verified.get(place_of(record))


def _grids(record: Entry) -> Iterator[Grid]:
    percent = [Column(name, "percent") for name in ("ACC", "ASR", "ASR non-target", "RA", "Certified")]
    what = Column("Encoder", "words")
    if isinstance(record, Record) and record.metrics:
        rows = [["this cell", *_figures(record.metrics)]]
        rows += [["undefended", *_figures(record.undefended)]] if record.undefended else []
        if floor := record.baseline:
            figures = [floor.ca, floor.asr_b, floor.asr_b_nontarget, floor.ra_b, None]
            rows.append(["clean encoder (floor)", *map(_two, figures)])
        yield from _grid("Figures, in percent", [what, *percent], rows)
        named = [("this cell", record.counts), ("clean encoder (floor)", record.baseline_counts)]
        named += [(f"head {number}", head) for number, head in enumerate(record.heads, start=1)]
        counted = [[name, *vars(counts).values()] for name, counts in named if counts]
        heads = [Column(name.replace("_", " ")) for name in Counts.model_fields]
        yield from _grid("Counts of test images", [what, *heads], counted)
    costs = [[kind, *vars(cost).values()] for kind, cost in sorted(record.cost.items())]
    if costs:
        heads = [Column(name) for name in ("Seconds", "CPU seconds", "Image-forwards", "Memory [bytes]", "GPU [bytes]")]
        yield from _grid("Cost of each stage", [Column("Stage", "words"), *heads], costs)
    origins = [
        [kind, key, *((o.distribution, o.version, o.source or "") if (o := record.plugins.get(kind)) else ("", "", ""))]
        for kind, key in sorted(record.stages.items())
    ]
    heads = [Column(name, "words") for name in ("Stage", "Key", "Distribution", "Version", "sha256 of the source")]
    yield from _grid("Stages", heads, origins)


def _grid(heading: str, columns: list[Column], rows: list[list[Any]]) -> Iterator[Grid]:
    return grids(Document(sections=[Section(columns, [Table(rows, heading)])]), {})


def _figures(metrics: Metrics) -> list[str | None]:
    return list(map(_two, (metrics.acc, metrics.asr, metrics.asr_nontarget, metrics.ra, metrics.certified)))


def _two(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _methods(record: Entry) -> Iterator[tuple[str, str, str, list[tuple[str, Any]]]]:
    for kind, identity in sorted(record.identity.items()):
        method = identity.get("method") if isinstance(identity, Mapping) else None
        if isinstance(method, Mapping) and "name" in method:
            options = method.get("options")
            told = sorted(options.items()) if isinstance(options, Mapping) else []
            yield kind, str(method["name"]), str(method.get("version", "")), told


def _pictures(record: Entry) -> Iterator[Picture]:
    found = {} if record.path is None else read_pictures(record.path)
    for name, content in found.items():
        yield Picture(PICTURES[name], picture_place(content), content)

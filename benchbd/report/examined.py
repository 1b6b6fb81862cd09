"""Verdicts of detectors on one encoder as a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchbd.base.errors import counted
from benchbd.report.document import Column, Document, Frame, Noted, Section, Table, Value
from benchbd.report.known import LEGEND as KNOWN
from benchbd.report.known import Known, section

LEGEND = (
    "Score: higher is more suspicious; scores of two detectors do not compare. Flagged: the detector's own decision.",
)

_COLUMNS = (
    Column("Detector", "words", brief="detector"),
    Column("Score", "figure", brief="score"),
    Column("Flagged", "words", brief="flagged"),
    Column("Seconds", "seconds", brief="s", rank=1),
    Column("Known encoders", "words", brief="known encoders"),
    Column("Status", "words", brief="status"),
)


@dataclass(frozen=True)
class Row:
    """What one detector said: a verdict, or why there is none.

    status: ``ok``, ``n/a`` or ``error``. reason: of a status other than ok. remarks: the detector's own.
    """

    detection: str
    score: float | None = None
    flagged: bool | None = None
    seconds: float | None = None
    status: str = "ok"
    reason: str = ""
    remarks: tuple[str, ...] = ()
    known: Known | None = None


def document(facts: Mapping[str, Any], rows: Sequence[Row]) -> Document:
    """A row per detector, and one per population of known encoders that its score compares with.

    facts: of the encoder and the images, for programs and for the title.
    """
    images = counted(facts["images"], "image")
    told = "{arch}, {images} of {size}x{size} pixels, seed {seed}".format(**{**facts, "images": images})
    found = [(row.detection, row.known) for row in rows if row.known is not None and row.known.populations]
    return Document(
        title=f"Encoder {facts['encoder']} ({told})",
        sections=[Section(_COLUMNS, [Table([_values(row) for row in rows])]), *([section(found)] if found else [])],
        legend=[*LEGEND, *(KNOWN if found else [])],
        frames=[Frame(list(asdict(rows[0])), [asdict(row) for row in rows])],
        data={**facts, "detections": [asdict(row) for row in rows]},
    )


def _values(row: Row) -> list[Value]:
    flagged = None if row.flagged is None else "yes" if row.flagged else "no"
    notes = tuple(filter(None, (row.reason, *row.remarks)))
    return [
        row.detection,
        None if row.score is None else f"{row.score:.4g}",
        flagged,
        row.seconds,
        None if row.known is None else _counts(row.known),
        Noted(row.status, notes),
    ]


def _counts(known: Known) -> Noted:
    if not known.populations:
        return Noted("none", (known.reason,))
    counts = [
        sum(scores.n for each in known.populations if (scores := getattr(each, kind)) is not None)
        for kind in ("clean", "backdoored")
    ]
    return Noted("{} clean, {} backdoored".format(*counts))

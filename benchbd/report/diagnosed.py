"""What `benchbd doctor` found as a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from benchbd.report.document import Column, Document, Frame, Section, Table

State = Literal["ok", "warning", "problem"]

_COLUMNS = (Column("check", "words"), Column("state", "words"), Column("finding", "words", least=40))


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    state: problem: something does not work; warning: it works, and may not as the user expects. found: in one line.
    mend: what to do about it; empty if there is nothing to do.
    """

    check: str
    state: State
    found: str
    mend: str = ""


def document(findings: Sequence[Finding]) -> Document:
    """A row per check, and their number by state."""
    counts = {state: sum(each.state == state for each in findings) for state in ("ok", "warning", "problem")}
    lines = [asdict(each) for each in findings]
    rows = [[each.check, each.state, f"{each.found}: {each.mend}" if each.mend else each.found] for each in findings]
    return Document(
        sections=[Section(_COLUMNS, [Table(rows)], ruled=True)],
        summary=[f"ok: {counts['ok']}, warnings: {counts['warning']}, problems: {counts['problem']}"],
        frames=[Frame([field.name for field in fields(Finding)], lines)],
        data={"checks": lines, **{f"{state}s": counts[state] for state in ("warning", "problem")}},
    )

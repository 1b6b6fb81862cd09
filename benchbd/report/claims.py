"""What a board claims of its methods, as tables and pages show it beside what is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchbd.base.errors import UnknownNameError, UsageError
from benchbd.contract.roles import AUTHORED, Role
from benchbd.planning.board import Board
from benchbd.planning.claims import Claim
from benchbd.records.files import read_records
from benchbd.records.gates import judge
from benchbd.records.models import Record
from benchbd.report.controls import task_name
from benchbd.report.document import Noted
from benchbd.report.ranking import by_seed, spread
from benchbd.report.rows import Order, rounded

Method = tuple[str, str]
"""An axis, attack or defense, and a name."""

_NOTHING = Claim()


class Mark(NamedTuple):
    """A mark of a row. kind: confirmed, unconfirmed, superseded or challenged. more: what only its footnote says."""

    kind: str
    text: str
    more: str = ""

    @property
    def note(self) -> str:
        return f"{self.text}: {self.more}" if self.more else self.text


class Challenge(NamedTuple):
    """What the records of an adaptive attack measured. asr: mean ASR non-target in percent, over seeds of a seed's
    cells; None without a figure. statuses: the number of cells with each."""

    asr: float | None
    statuses: Mapping[str, int]

    @property
    def text(self) -> str:
        """The figure, with the statuses if one is not ok; or that there are no records."""
        if not self.statuses:
            return "no record"
        figure = "no figure" if self.asr is None else f"ASR non-target {self.asr:.1f}"
        told = ", ".join(f"{count} {status}" for status, count in self.statuses.items())
        return figure if {*self.statuses} == {"ok"} else f"{figure} ({told})"


@dataclass(frozen=True)
class Claimed:
    """What is claimed of a method, which has a role.

    superseded_by: the defenses that replace it. challenge: None if there is none, or if nobody looked for records.
    """

    claim: Claim = _NOTHING
    role: Role = Role.METHOD
    superseded_by: tuple[str, ...] = ()
    challenge: Challenge | None = None

    @property
    def unconfirmed(self) -> bool:
        """Whether the method has authors and none of them confirmed its settings."""
        return self.role in AUTHORED and self.claim.confirmed is None

    @property
    def marks(self) -> list[Mark]:
        claim, found = self.claim, []
        if claim.confirmed is not None:
            found.append(Mark("confirmed", "confirmed by its authors", claim.confirmed))
        elif self.unconfirmed:
            found.append(Mark("unconfirmed", "not confirmed by its authors"))
        if self.superseded_by:
            found.append(Mark("superseded", f"superseded by {', '.join(self.superseded_by)}"))
        if claim.challenged is not None:
            measured = self.challenge.text if self.challenge else ""
            found.append(Mark("challenged", f"challenged by {claim.challenged}", measured))
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """The marks as footnotes, but for the lack of a confirmation: one remark tells of all rows that lack it."""
        return tuple(mark.note for mark in self.marks if mark.kind != "unconfirmed")

    @property
    def reported(self) -> list[Noted | None]:
        """ACC and ASR as the authors reported them, with their source as a footnote."""
        if (told := self.claim.reported) is None:
            return [None, None]
        note = (f"reported by its authors: {told.source}",)
        return [None if figure is None else Noted(f"{figure:g}", note) for figure in (told.acc, told.asr)]

    @property
    def report(self) -> str:
        """The reported figures and their source in a line; empty if there are none."""
        figures = [f"{name} {each.text}" for name, each in zip(("ACC", "ASR"), self.reported, strict=True) if each]
        return f"{', '.join(figures)} ({self.claim.reported.source})" if self.claim.reported else ""

    def flat(self) -> dict[str, Any]:
        """The claims by name, for programs."""
        told = self.claim.reported
        return {
            "confirmed": self.claim.confirmed,
            "superseded_by": list(self.superseded_by),
            "challenged_by": self.claim.challenged,
            "challenged_asr_nontarget": rounded(self.challenge.asr) if self.challenge else None,
            "reported_acc": told and told.acc,
            "reported_asr": told and told.asr,
            "reported_source": told and told.source,
        }


def challengers(order: Order) -> set[str]:
    """The adaptive attacks that are not of the board's grid: their records are challenges, and count for no rank."""
    return {claim.challenged for claim in order.claims.values() if claim.challenged is not None} - {*order.attacks}


def claimed(
    order: Order, methods: Mapping[Method, Role], records: Iterable[Record] | None = None
) -> dict[Method, Claimed]:
    """What is claimed of methods. records: those among which the records of challenges are; None: do not look."""
    found = {}
    challenges = _challenges(order, records) if records is not None else {}
    for (axis, name), role in methods.items():
        claim = order.claims.get(name, _NOTHING)
        if axis == "defense":
            found[axis, name] = Claimed(claim, role, _superseded_by(name, order.claims), challenges.get(name))
        else:
            found[axis, name] = Claimed(Claim(confirmed=claim.confirmed), role)
    return found


def _superseded_by(name: str, claims: Mapping[str, Claim]) -> tuple[str, ...]:
    return tuple(sorted(other for other, claim in claims.items() if name in claim.supersedes))


def _challenges(order: Order, records: Iterable[Record]) -> dict[str, Challenge]:
    """The challenge of every defense that has one."""
    against: dict[tuple[str | None, str], list[Record]] = {
        (claim.challenged, name): [] for name, claim in order.claims.items() if claim.challenged is not None
    }
    for record in records:
        if (of := (record.attack, record.defense)) in against:
            against[of].append(record)
    return {name: _challenge(own, order) for (_, name), own in against.items()}


def _challenge(records: Sequence[Record], order: Order) -> Challenge:
    asrs = {
        (r.attack, f"{r.pretrain} -> {task_name(r)}", r.seed): r.metrics.asr_nontarget for r in records if r.metrics
    }
    statuses = Counter(judge(record, order.gates).status for record in records)
    return Challenge(spread(by_seed(asrs)).mean if asrs else None, dict(sorted(statuses.items())))


def remarks(found: Iterable[Mapping[Method, Claimed]]) -> Iterator[str]:
    """On all rows: whose settings nobody confirmed, whose attack's authors did, and what reported figures are."""
    known = {method: each for of in found for method, each in of.items()}
    if text := unconfirmed(known):
        yield text
    for (axis, name), each in sorted(known.items()):
        if axis == "attack" and each.claim.confirmed is not None:
            yield f"Settings of attack {name} confirmed by its authors: {each.claim.confirmed}."
    if any(each.claim.reported for each in known.values()):
        yield "Reported: figures of a defense's authors, ASR over all triggered test images; they count for no rank."


def unconfirmed(known: Mapping[Method, Claimed]) -> str:
    """The methods whose settings none of their authors confirmed, in a line; empty if there are none."""
    told = []
    for axis in ("attack", "defense"):
        if names := sorted(name for (of, name), each in known.items() if of == axis and each.unconfirmed):
            told.append(f"{axis}{'s' * (len(names) > 1)} {', '.join(names)}")
    return f"Settings not confirmed by their authors: {'; '.join(told)}." if told else ""


def with_claims(
    order: Order, names: Sequence[str], lines: Sequence[dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """The names and lines of rows with what is claimed of attack and defense, as far as a row has something."""
    methods = {(axis, line[axis]): Role.METHOD for line in lines for axis in ("attack", "defense")}
    known = claimed(order, methods)
    more = []
    for line in lines:
        attack, defense = (known[axis, line[axis]].flat() for axis in ("attack", "defense"))
        confirmed = {"attack_confirmed": attack["confirmed"], "defense_confirmed": defense.pop("confirmed")}
        more.append(confirmed | defense)
    told = [name for name in (more[0] if more else ()) if any(each[name] not in (None, []) for each in more)]
    return [*names, *told], [line | {name: each[name] for name in told} for line, each in zip(lines, more, strict=True)]


def check(board: Board, records: Iterable[Record], published: Path) -> None:
    """Raise UsageError for a claim about a method that is neither of the board nor of a record, or about an attack that
    only a defense can have. published: the folder of the board's records, which may be more than ``records``."""
    known = list(records)
    if _fault(board, known):
        known += read_records(published)
    if fault := _fault(board, known):
        raise UsageError(f"board {board.name}: {fault}")


def _fault(board: Board, records: Iterable[Record]) -> str:
    """What is wrong with the names of a board's claims; empty if nothing is."""
    attacks, defenses = {*board.names("attack")}, {*board.names("defense")}
    for record in records:
        attacks.add(record.attack)
        defenses.add(record.defense)
    for name, claim in board.claims.items():
        if name not in attacks | defenses:
            return str(UnknownNameError("defense or attack in claims", name, attacks | defenses))
        own = sorted(claim.model_fields_set - {"confirmed"})
        if own and name not in defenses:
            return f"claims.{name}.{own[0]}: is for a defense, and {name} is an attack"
        for former in claim.supersedes:
            if former not in defenses:
                return str(UnknownNameError(f"defense in claims.{name}.supersedes", former, defenses))
    return ""

"""Validity gates: which measured cells count.

They are judged from counts whenever a table is built. No record and no identity has their outcome, so a board can
change them without a new run, and a record cannot claim to have passed. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from benchbd.contract.roles import Role
from benchbd.contract.specs import Table
from benchbd.records.models import Entry, Inspected, Record

Judged = Literal["ok", "attack-failed", "collapsed", "n/a", "timeout", "error"]

_DIGITS = 3  # of points: percentages in records are rounded to 1e-4


class Judgement(NamedTuple):
    """A status with its reason, which is empty if the status is ok."""

    status: Judged = "ok"
    reason: str = ""


class Gates(Table):
    """What a measured cell must hold to count, in percentage points."""

    gain: float = Field(
        15.0,
        ge=0,
        le=100,
        description="least gain of an attack, its undefended ASR non-target less the clean encoder's; below it all "
        "cells of the attack are attack-failed",
    )
    loss: float = Field(
        10.0,
        ge=0,
        le=100,
        description="largest loss of ACC against the clean encoder. A cell that loses more is collapsed",
    )

    def attack(self, asr: float, floor: float) -> str:
        """Why an attack counts as failed; empty if it took. asr, floor: percent, undefended and of the clean encoder,
        of test images outside the target class."""
        gain = asr - floor
        if round(gain, _DIGITS) >= self.gain:
            return ""
        return (
            f"undefended ASR {asr:.1f} is {gain:+.1f} points from the clean encoder's {floor:.1f}; an attack counts "
            f"from +{self.gain:g}"
        )

    def accuracy(self, acc: float, floor: float) -> str:
        """Why a cell counts as collapsed; empty if it does not. acc, floor: ACC in percent, its own and the clean
        encoder's."""
        if round(floor - acc, _DIGITS) <= self.loss:
            return ""
        return f"ACC is more than {self.loss:g} points below the clean encoder's"

    def judge(self, acc: float, floor_acc: float, undefended: float | None, floor_asr: float) -> Judgement:
        """The status of a measured cell. The gate of the attack comes first: if it failed, there was nothing to defend.

        undefended: ASR of the attacked encoder without a defense; None if there is no attack, so no gain to reach.
        """
        if undefended is not None and (failed := self.attack(undefended, floor_asr)):
            return Judgement("attack-failed", failed)
        if collapsed := self.accuracy(acc, floor_acc):
            return Judgement("collapsed", collapsed)
        return Judgement()


DEFAULT = Gates()


def judge(record: Entry, gates: Gates = DEFAULT) -> Judgement:
    """The status of a record under ``gates``. The clean encoder, controls of attacks, and tasks that are not attacked
    have no gain to reach."""
    if record.status != "ok":
        return Judgement(record.status, record.reason)
    attacked = record.attack_role not in (Role.FLOOR, Role.CONTROL)
    if isinstance(record, Inspected):
        gain = max(record.gains.values(), key=lambda gain: gain.points, default=None)
        failed = attacked and gain is not None and gates.attack(gain.asr, gain.floor)
        return Judgement("attack-failed", failed) if failed else Judgement()
    assert isinstance(record, Record)
    floor = record.baseline
    assert record.metrics is not None
    assert record.undefended is not None
    assert floor is not None  # a measured record has all three
    undefended = record.undefended.asr_nontarget if attacked and not record.beside else None
    return gates.judge(record.metrics.acc, floor.ca, undefended, floor.asr_b_nontarget)

"""What a user asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """What a user asked for; empty means the board's own.

    only: leave out the cells that defenses asked for bring for comparison.
    """

    attacks: Sequence[str] = ()
    defenses: Sequence[str] = ()
    pretrain: str | None = None
    tasks: Sequence[str] = ()
    seeds: Sequence[int] = ()
    evaluators: Sequence[str] = ()
    options: Sequence[str] = ()
    detections: Sequence[str] = ()
    pretraining: str | None = None
    only: bool = False

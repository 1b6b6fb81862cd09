"""The part of a board that a user selects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchbd.contract.axes import GRID


@dataclass(frozen=True)
class Selection:
    """A user's selection; empty means the board's own.

    methods: names by axis. only: omit the cells that selected defenses add for comparison.
    sweeps: only points of these sweeps, beside the board itself. precision: ``fp32`` or ``bf16``; ``auto`` or
        None: the board's. departed: differences of the whole selection from the board.
    """

    methods: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pretrain: str | None = None
    tasks: Sequence[str] = ()
    seeds: Sequence[int] = ()
    options: Sequence[str] = ()
    only: bool = False
    sweeps: Sequence[str] = ()
    precision: str | None = None
    departed: Sequence[str] = ()

    @classmethod
    def of(cls, **asked: Any) -> Selection:
        """A selection from one mapping of names: axes by the names of a board's fields (``attacks=("none",)``,
        ``pretraining="simclr"``), and the other fields of a selection."""
        named = {axis.name: asked.pop(axis.field, None) or () for axis in GRID}
        return cls({axis: (names,) if isinstance(names, str) else names for axis, names in named.items()}, **asked)

    def overrides(self, options: Iterable[str]) -> str:
        """The first of a sweep's options that the user sets; empty if there is none."""
        asked = {text.partition("=")[0].rpartition(":")[2] for text in self.options}
        asked |= {axis for axis, names in self.methods.items() if names}  # a point may name the pre-training
        return next((option for option in options if option.rpartition(":")[2] in asked), "")

    def names(self, axis: str) -> Sequence[str]:
        """The selected methods of an axis."""
        return self.methods.get(axis, ())

"""Functions that a method may call while it runs: seeds, random streams, notes, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchbd.base.content import as_json
from benchbd.base.errors import Diverged, PluginError, says, shown
from benchbd.base.packed import stored
from benchbd.base.scoped import scoped
from benchbd.base.seeds import derive_seed

Reporter = Callable[[int, int, float | None], None]

Json = bool | int | float | str | None | Sequence["Json"] | Mapping[str, "Json"]

_reporter: ContextVar[Reporter | None] = ContextVar("benchbd_reporter", default=None)

_findings: ContextVar[Findings] = ContextVar("benchbd_findings")


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The named random stream of a method; streams of other names are independent of it."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, name))


def reporting(reporter: Reporter) -> AbstractContextManager[object]:
    """Send the progress of every loop over ``Steps`` in the block to ``reporter(step, steps, loss)``."""
    return scoped(_reporter, reporter)


@dataclass
class Findings:
    """Findings of a method. notes: JSON by name. tensors: for pictures, by name."""

    notes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def note(name: str, value: Json) -> None:
    """Store something that a method found (chosen units, layer weights) with the result of its stage.

    The note named ``remarks`` is a list of lines for the reader of the table: each becomes a footnote. Lines are added
    to those of earlier calls; any other note replaces the earlier one of its name.
    PluginError if the value is no JSON, which has neither NaN nor inf.
    """
    try:
        own = as_json({name: value})[name]  # a copy: later changes by the method have no effect
    except (TypeError, ValueError, RecursionError, KeyError) as error:
        raise PluginError(f"note {shown(name)} cannot be kept as JSON: {says(error)}") from error
    if name == "remarks" and not (isinstance(own, list) and all(isinstance(line, str) for line in own)):
        raise PluginError("note 'remarks' must be a list of lines, one string each")
    if (findings := _findings.get(None)) is not None:
        lines = [*findings.notes.get(name, []), *own] if name == "remarks" else []
        findings.notes[name] = list(dict.fromkeys(lines)) or own


def keep(name: str, tensor: Tensor) -> None:
    """Store a small tensor (an inverted trigger) with the result of the stage, for ``benchbd figures``.
    PluginError if no file can hold it."""
    if not (isinstance(name, str) and isinstance(tensor, Tensor)):
        raise PluginError(f"keep takes a name and a tensor, not {shown(name)} and {shown(tensor)}")
    whole = stored({name: tensor}, f"what keep() got as {shown(name)}")
    if (findings := _findings.get(None)) is not None:
        findings.tensors |= whole


def collecting() -> AbstractContextManager[Findings]:
    """In the block, collect what a method notes and keeps."""
    return scoped(_findings, Findings())


class Steps:
    """``for step in (steps := Steps(n)): ...; steps.loss(value)``: counts, reports progress, stops on NaN and inf.

    The loss is read back from the device a few times per second at most, so that the CPU rarely waits for a GPU. A loop
    inside another one (an inversion within a training) stops on NaN and inf too, but only the outer one reports.
    """

    INTERVAL = 0.25  # seconds between two reports

    def __init__(self, total: int) -> None:
        self.total = total
        self._latest: Tensor | None = None

    def loss(self, value: Tensor) -> None:
        """Pass this step's loss (0-d)."""
        self._latest = value.detach()

    def __iter__(self) -> Iterator[int]:
        due = time.monotonic()
        reporter = _reporter.get()
        with scoped(_reporter, None):
            for step in range(self.total):
                yield step
                if time.monotonic() >= due or step + 1 == self.total:
                    self._report(step + 1, reporter)
                    due = time.monotonic() + self.INTERVAL

    def _report(self, step: int, reporter: Reporter | None) -> None:
        loss = None if self._latest is None else float(self._latest)
        if loss is not None and not math.isfinite(loss):
            raise Diverged(f"the loss is {'NaN' if loss != loss else loss} at step {step} of {self.total}")
        if reporter is not None:
            reporter(step, self.total, loss)

"""The ranges from which trials of a defense draw its options."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchbd.base.errors import UnknownNameError, UsageError, shown
from benchbd.contract.method import Method, build

Number = int | float


@dataclass(frozen=True)
class Tunable:
    """A range for an option, as in ``tunable = {"lr": Tunable(1e-4, 1e-2, log=True)}``.

    low, high: its ends, which a draw may be. Between whole ends all draws are whole.
    log: whether the logarithm is drawn uniformly instead of the value, for a range over orders of magnitude.
    """

    low: Number
    high: Number
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', by logarithm' if self.log else ''}"

    def at(self, share: float) -> Number:
        """The value at a share of the range, 0 to 1, rounded to three digits: the last digits of a power differ between
        mathematical libraries."""
        if self.log:
            value = self.low * (self.high / self.low) ** share
        elif self._whole:
            value = math.floor(self.low + (self.high - self.low + 1) * share)
        else:
            value = self.low + (self.high - self.low) * share
        value = min(self.high, max(self.low, round(value) if self._whole else float(f"{value:.3g}")))
        return int(value) if float(value).is_integer() else value

    @property
    def _whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def fault(self) -> str:
        """Why it is no range, in words; empty if it is one."""
        ends = (self.low, self.high)
        if any(isinstance(end, bool) or not isinstance(end, Number) or not math.isfinite(end) for end in ends):
            return "its ends must be finite numbers"
        if not self.low < self.high:
            return "its first end must be below its second"
        return "a range by logarithm must begin above 0" if self.log and self.low <= 0 else ""


def flaws(cls: type[Method], ranges: object) -> Iterator[str]:
    """The faults of the ranges that a class declares, one line each."""
    if not isinstance(ranges, Mapping) or not all(isinstance(each, Tunable) for each in ranges.values()):
        yield f"tunable must be a Tunable by option, as in {{'lr': Tunable(1e-4, 1e-2, log=True)}}, not {shown(ranges)}"
        return
    for option, span in ranges.items():
        if option not in cls.model_fields:
            yield str(UnknownNameError("tunable option", option, cls.model_fields))
        elif fault := span.fault:
            yield f"tunable {option}: {fault}, not {shown(span.low)} and {shown(span.high)}"
        else:
            yield from _outside(cls, option, span)


def _outside(cls: type[Method], option: str, span: Tunable) -> Iterator[str]:
    """The end of a range that the option does not allow, with the reason."""
    for share in (0.0, 1.0):
        try:
            build(cls, {option: span.at(share)}, cls.name)
        except UsageError as error:
            yield f"tunable {option}, from {span}: {error}"

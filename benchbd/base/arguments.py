"""What numbers a user may give in Python and on the command line. This module does not import torch."""

from __future__ import annotations

from numbers import Integral

from benchbd.base.errors import UsageError, shown

LARGEST_SEED = 2**63 - 1  # the names of files contain the seed

SMALLEST, LARGEST = 32, 224  # pixels: height and width of images


def whole_number(name: str, value: object, least: int, most: int | None = None, hint: str = "") -> int:
    """The value as an int. UsageError, which ends with ``hint``, unless it is a whole number in bounds."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else least - 1
    if least <= number and (most is None or number <= most):
        return number
    bounds = f"from {least} on" if most is None else f"from {least} to {most}"
    raise UsageError(f"{name} {shown(value)}: must be a whole number {bounds}{hint}")


def seed_of(value: object, hint: str = "") -> int:
    """A seed as an int; UsageError unless it is a whole number from 0 to LARGEST_SEED."""
    return whole_number("seed", value, 0, LARGEST_SEED, hint)

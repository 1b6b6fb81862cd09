"""What a method is in a board, beside what it does."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """Declared by a class, copied into records. The harness asks for methods of a role, and knows none by name.

    METHOD: an attack or a defense as any other.
    FLOOR: changes nothing. Floor under floor is the clean encoder, whose ACC is CA and whose ASR is ASR-B.
    SCRATCH: a defense that never saw the encoder: what the clean images alone are worth.
    BN: a defense that only computes the statistics of batch normalisation again, on the clean images.
    CONTROL: an attack without what makes it one, to be subtracted from the attack that ``control_of`` names; never
        gated.
    """

    METHOD = "method"
    FLOOR = "floor"
    SCRATCH = "scratch"
    BN = "bn"
    CONTROL = "control"


ROLES: Mapping[str, tuple[Role, ...]] = {
    "attack": (Role.METHOD, Role.FLOOR, Role.CONTROL),
    "defense": (Role.METHOD, Role.FLOOR, Role.SCRATCH, Role.BN),
}
"""The roles of an axis; methods of any other axis are METHOD."""

"""A method's role in a board, in addition to its axis."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """Declared by a class, copied into records. The harness asks for methods by role, never by name.

    METHOD: an ordinary attack or defense.
    FLOOR: changes nothing. Floor under floor is the clean encoder, whose ACC is CA and whose ASR is ASR-B.
    SCRATCH: a defense that does not use the encoder's weights: it measures the value of the clean images alone.
    BN: a defense that only computes the statistics of batch normalisation again, on the clean images.
    FT: a defense that only trains on, on the clean images: it is ranked, and the others are compared with it.
    ORACLE: a defense that uses what a defender does not have, such as the trigger. It is ranked apart.
    CONTROL: an attack without its effective part, to be subtracted from the attack named by ``control_of``; never
        gated.
    FILE: a pre-training or an attack whose encoder is that of the file which its option ``file`` names.
    """

    METHOD = "method"
    FLOOR = "floor"
    SCRATCH = "scratch"
    BN = "bn"
    FT = "ft"
    ORACLE = "oracle"
    CONTROL = "control"
    FILE = "file"


ROLES: Mapping[str, tuple[Role, ...]] = {
    "attack": (Role.METHOD, Role.FLOOR, Role.CONTROL, Role.FILE),
    "defense": (Role.METHOD, Role.FLOOR, Role.SCRATCH, Role.BN, Role.FT, Role.ORACLE),
    "pretraining": (Role.METHOD, Role.FILE),
}
"""The roles of an axis; methods of any other axis are METHOD."""

AUTHORED = (Role.METHOD, Role.ORACLE)
"""The roles of methods whose authors can confirm settings. The settings of all others, which are references and
controls, are benchbd's."""

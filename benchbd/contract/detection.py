"""The axis of detectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from benchbd.contract.defense import DefenderKnowledge
from benchbd.contract.method import Method

if TYPE_CHECKING:
    from benchbd.contract.encoder import Encoder


@dataclass(frozen=True)
class Verdict:
    """What a detector thinks of one encoder.

    score: higher is more suspicious, finite; populations of encoders are compared by it alone.
    flagged: the detector's own decision.
    """

    score: float
    flagged: bool


class Detection(Method):
    """Tells backdoored encoders from clean ones. Judged on populations: many encoders of either kind."""

    axis: ClassVar[str] = "detection"

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        """The verdict on one encoder. ``encoder`` is a copy that may be changed."""
        raise NotImplementedError

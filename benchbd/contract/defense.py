"""The axis of defenses that repair an encoder, and a defender's knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from benchbd.contract.method import Method
from benchbd.contract.tunable import Tunable

if TYPE_CHECKING:
    from torch import Tensor

    from benchbd.contract.images import ImageSet
    from benchbd.nets.encoder import Encoder


@dataclass(frozen=True, eq=False)
class DefenderKnowledge:
    """A defender's knowledge: a few clean images without labels, and a seed. No trigger, target, test data or path.

    prepared: the result of the detector's ``Detection.prepare``; empty for all other methods.
    """

    images: ImageSet
    seed: int
    prepared: Mapping[str, Tensor] = field(default_factory=dict)


class Mitigation(Method):
    """A defense that repairs an encoder.

    tunable: ranges of options, from which a board's trials draw them; see ``Tunable``. A range is wide enough for any
        board, and its middle is a good setting. Ranges are no part of a result: ``version`` stays when they change, but
        other laboratories draw other trials.
    uses_weights: False for a control that depends on the architecture and the clean images alone, so that one run
        serves every attack.
    """

    axis: ClassVar[str] = "defense"
    tunable: ClassVar[Mapping[str, Tunable]] = {}
    uses_weights: ClassVar[bool] = True

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """A repaired encoder of the same architecture. ``encoder`` is a copy that may be changed or returned."""
        raise NotImplementedError

"""The axis of detectors, of encoders and of downstream classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from benchbd.contract.defense import DefenderKnowledge
from benchbd.contract.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from benchbd.contract.images import ImageSet
    from benchbd.nets.classifier import Classifier
    from benchbd.nets.encoder import Encoder


@dataclass(frozen=True)
class Verdict:
    """A detector's verdict on one encoder.

    score: higher is more suspicious, finite; it alone compares populations of encoders.
    flagged: the detector's own decision.
    """

    score: float
    flagged: bool


class Detection(Method):
    """Distinguishes backdoored encoders from clean ones. Judged on populations: many encoders of either kind.

    prepares: whether ``prepare`` learns something once for all the encoders of a board.
    """

    axis: ClassVar[str] = "detection"
    prepares: ClassVar[bool] = False

    def prepare(self, blank: Encoder, knowledge: DefenderKnowledge) -> Mapping[str, Tensor]:
        """The tensors, by name, for ``knowledge.prepared`` of ``inspect``. Called once per board, with its architecture
        and the clean images of its first seed. ``blank`` is an encoder with random weights that may be changed."""
        raise NotImplementedError

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        """The verdict on one encoder. ``encoder`` is a copy that may be changed."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class TaskKnowledge:
    """The knowledge of a downstream classifier's owner: labelled training images of its task, without class names, and
    a seed. No trigger, target, test data or path.

    prepared: the result of ``Detection.prepare``.
    """

    images: ImageSet
    seed: int
    prepared: Mapping[str, Tensor] = field(default_factory=dict)


class ClassifierDetection(Detection):
    """Distinguishes classifiers on backdoored encoders from those on clean ones: one inspection per encoder and
    data set of its tasks.

    The classifier is the encoder with the head of the board's first evaluator; the cell is not applicable if that
    evaluator has no ``head``.
    """

    def inspect(self, classifier: Classifier, knowledge: TaskKnowledge) -> Verdict:  # type: ignore[override]
        """The verdict on one classifier, a copy that may be changed."""
        raise NotImplementedError

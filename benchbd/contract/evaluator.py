"""The axis of downstream classifiers, and their input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from benchbd.base.errors import DataError, NotApplicable
from benchbd.contract.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from benchbd.contract.images import ImageSet
    from benchbd.nets.encoder import Encoder
    from benchbd.nets.head import Head


@dataclass(frozen=True, eq=False)
class Probe:
    """One encoder to be evaluated on one downstream task.

    encoder: frozen.
    train: labelled downstream training images.
    test, triggered: uint8 (N, 3, H, W), the test images without and with the trigger. Their labels stay with the
        harness, which computes the metrics.
    seed: for the initial weights, the order and the dropout of a downstream classifier.
    """

    encoder: Encoder
    train: ImageSet
    test: Tensor
    triggered: Tensor
    seed: int

    @property
    def labels(self) -> Tensor:
        """The training labels, int64 (N,), on the encoder's device. DataError if there are none."""
        if self.train.labels is None:
            raise DataError("a downstream classifier needs labelled training images")
        return self.train.labels.to(self.encoder.device)

    @property
    def classes(self) -> int:
        """The number of classes of the task."""
        return len(self.train.classes) or int(self.labels.max()) + 1


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted classes, int64 (N,) of 0..C - 1, of the test images without and with the trigger, on any device.

    certified: bool (N,), for images without the trigger: whether it is certain that no patch of the size that the
        evaluator declares, at any position, changes the prediction. None if the evaluator certifies nothing. The
        evaluator declares the size as one of its options: identity, key and record contain all of them.
    """

    clean: Tensor
    triggered: Tensor
    certified: Tensor | None = None


class Evaluator(Method):
    """A downstream classifier on frozen features."""

    axis: ClassVar[str] = "evaluator"

    def evaluate(self, probe: Probe) -> Predictions:
        """Train on ``probe.train``, predict both test sets."""
        raise NotImplementedError

    def evaluate_together(self, probes: Sequence[Probe]) -> list[Predictions]:
        """Evaluate several probes of one task and feature dimension at once, if faster; by default one by one.

        A prediction must not depend on the other probes: the harness keys and stores each separately.
        """
        return [self.evaluate(probe) for probe in probes]

    def head(self, probe: Probe) -> Head:
        """The trained classifier of ``probe.encoder`` as an object: ``Classifier(probe.encoder, head)`` predicts as
        ``evaluate`` does, without reading test images. NotApplicable, as by default, if the evaluator is no net on
        the features."""
        raise NotApplicable(f"{self.name} has no differentiable head")

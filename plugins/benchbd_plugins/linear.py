"""linear: BASSL's linear probe, a cheap second opinion.

Features are L2-normalised and then standardised per dimension with the training images' mean and unbiased variance; one
linear layer, SGD .01 with momentum .9 and weight decay 1e-4, 40 epochs of batches of 256, the rate x0.1 after 15, 30.

All of that is the released code's. Ours: the layer is trained on one fixed feature of every image, computed once; the
original computes features anew in every epoch from randomly cropped and flipped images. The two give figures that
cannot be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchbd import (
    DataError,
    Diverged,
    Evaluator,
    Head,
    Predictions,
    Probe,
    computed_once,
    hookimpl,
    one_thread,
    stream,
    train_head,
)

EPS = 1e-5  # added to the variance: a dimension that is always 0 stays finite


class Linear(Evaluator):
    """Trains a linear classifier on standardised features of the frozen encoder."""

    name = "linear"
    paper = "evaluation of BASSL (Saha et al., CVPR 2022)"
    version = "2"

    epochs: int = Field(40, ge=1, le=1_000_000, description="number of passes over the training images")
    batch: int = Field(
        256, ge=1, le=1_000_000, description="number of images per step; the last, smaller batch is used too"
    )
    lr: float = Field(0.01, gt=0, le=1e3, description="learning rate of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(1e-4, ge=0, le=1e3, description="weight decay of SGD")
    milestones: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        (15, 30), max_length=100, description="epochs after which the learning rate is divided by 10"
    )

    def evaluate(self, probe: Probe) -> Predictions:
        """The predictions of ``head``. Diverged if a logit is not finite."""
        return self.evaluate_together([probe])[0]

    @torch.no_grad()
    def evaluate_together(self, probes: Sequence[Probe]) -> list[Predictions]:
        """One by one; the features of an encoder and a tensor are computed once for all."""
        features = computed_once(lambda encoder, pixels: encoder.extract(pixels))

        def predict(head: Head, found: Tensor) -> Tensor:
            logits: Tensor = head(found)
            if not logits.isfinite().all():
                raise Diverged("linear: the logits are not finite; lr is too high")
            return logits.argmax(1).cpu()

        results = []
        for probe in probes:
            head = self.trained(probe, features(probe.encoder, probe.train.pixels))
            tests = (features(probe.encoder, pixels) for pixels in (probe.test, probe.triggered))
            results.append(Predictions(*(predict(head, found) for found in tests)))
        return results

    def head(self, probe: Probe) -> Head:
        """DataError if there is one training image, whose variance is not a number. Diverged if the loss is not."""
        return self.trained(probe, probe.encoder.extract(probe.train.pixels))

    def trained(self, probe: Probe, features: Tensor) -> Head:
        """The head for ``features``, (N, d), of the training images."""
        labels = probe.labels
        if len(labels) < 2:
            raise DataError(f"linear: features are standardised over at least 2 training images, not {len(labels)}")
        train = F.normalize(features, dim=1)
        mean, deviation = train.mean(0), (train.var(0) + EPS).sqrt()
        with one_thread(), torch.enable_grad():
            layer = self.fit((train - mean) / deviation, labels, probe.classes, probe.seed)
        return Head.of([layer], normalized=True, mean=mean, std=deviation, classes=probe.train.classes)

    def fit(self, features: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """Weight (C, d) and bias (C,) from features (N, d) and labels int64 (N,). Diverged on NaN."""
        images, dim = features.shape
        init, order = stream(seed, "init"), stream(seed, "order")
        shapes = ((classes, dim), (classes,))
        weight, bias = (((torch.rand(s, generator=init) * 2 - 1) / dim**0.5).to(features.device) for s in shapes)
        weight.requires_grad_()
        bias.requires_grad_()
        sgd = torch.optim.SGD([weight, bias], self.lr, self.momentum, weight_decay=self.weight_decay)
        per_epoch = -(-images // self.batch)
        schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [m * per_epoch for m in self.milestones], 0.1)
        train_head(
            lambda x: F.linear(x, weight, bias),
            sgd,
            features,
            labels,
            epochs=self.epochs,
            batch=self.batch,
            order=order,
            schedule=schedule,
        )
        return weight.detach(), bias.detach()


@hookimpl
def benchbd_evaluators() -> list[type[Evaluator]]:
    return [Linear]

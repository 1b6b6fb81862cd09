"""knn: the weighted nearest-neighbour vote with which BadEncoder's code monitors its training. For quick sweeps.

The k most similar training images vote for their class with exp(cosine / temperature). Nothing is trained. A trigger
that fools a trained head often moves too few neighbours for this vote: report the final figures with ``mlp``.

Only the ratio of two votes matters, so the nearest image's cosine is subtracted first: its vote weighs 1 at every
temperature and no vote overflows. Votes are float64, in which the smallest temperature is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchbd import Evaluator, Predictions, Probe, computed_once, hookimpl

CHUNK = 1024  # queries at a time: their similarities to 50,000 images are 200 MB


class KNN(Evaluator):
    """Classifies by a vote of the k nearest training images, weighted by their similarity."""

    name = "knn"
    paper = "Wu et al. (CVPR 2018), as in BadEncoder's monitor"
    version = "2"

    k: int = Field(
        200, ge=1, le=1_000_000_000, description="number of training images that vote; all of them if there are fewer"
    )
    temperature: float = Field(
        0.5, gt=0, le=1e4, description="temperature of the votes; a vote weighs exp(cosine / temperature)"
    )

    def evaluate(self, probe: Probe) -> Predictions:
        return self.evaluate_together([probe])[0]

    def evaluate_together(self, probes: Sequence[Probe]) -> list[Predictions]:
        """One by one; the features of an encoder and a tensor are computed once for all."""
        features = computed_once(lambda encoder, pixels: F.normalize(encoder.extract(pixels), dim=1))

        def predict(probe: Probe, pixels: Tensor) -> Tensor:
            bank, queries = (features(probe.encoder, images) for images in (probe.train.pixels, pixels))
            votes = [self.vote(part, bank, probe.labels, probe.classes) for part in queries.split(CHUNK)]
            return torch.cat(votes).cpu()

        return [Predictions(predict(probe, probe.test), predict(probe, probe.triggered)) for probe in probes]

    def vote(self, queries: Tensor, bank: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Classes, int64 (Q,), of queries (Q, d) from a bank (N, d) with labels (N,). All features have length 1."""
        similarity, nearest = (queries @ bank.T).topk(min(self.k, len(bank)), dim=1)
        below = similarity.double() - similarity[:, :1]  # column 0 is the nearest image, because topk sorts
        votes = below.new_zeros(len(queries), classes)
        return votes.scatter_add_(1, labels[nearest], (below / self.temperature).exp()).argmax(1)


@hookimpl
def benchbd_evaluators() -> list[type[Evaluator]]:
    return [KNN]

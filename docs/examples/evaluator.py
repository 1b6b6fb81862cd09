"""The nearest class mean: an example of a downstream classifier."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchbd import Evaluator, Predictions, Probe, hookimpl


class Centroid(Evaluator):
    """The class whose mean training feature has the largest cosine with the feature of the image."""

    name = "centroid"
    paper = "an example; no paper"

    def evaluate(self, probe: Probe) -> Predictions:
        labels = probe.train.labels
        assert labels is not None  # training images of a task are labelled
        features = normalize(probe.encoder.extract(probe.train.pixels))
        known: Tensor = labels.unique()
        means = normalize(torch.stack([features[labels == label].mean(0) for label in known]))

        def predict(pixels: Tensor) -> Tensor:
            return known[(normalize(probe.encoder.extract(pixels)) @ means.T).argmax(1)]

        return Predictions(predict(probe.test), predict(probe.triggered))


@hookimpl
def benchbd_evaluators() -> list[type[Evaluator]]:
    return [Centroid]

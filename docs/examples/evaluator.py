"""The nearest class mean: an example of a downstream classifier.

The paper's: nothing, there is none. The released code's: nothing. Ours: all of it.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from benchbd import Evaluator, Predictions, Probe, hookimpl


class Centroid(Evaluator):
    """The class whose mean training feature has the largest cosine with the feature of the image."""

    name = "centroid"
    paper = "an example; no paper"

    centred: bool = Field(True, description="whether the mean training feature is subtracted from every feature first")

    def evaluate(self, probe: Probe) -> Predictions:
        """The predictions for the clean and the triggered test images."""
        labels = probe.train.labels
        assert labels is not None  # training images of a task are labelled
        trained = probe.encoder.extract(probe.train.pixels)
        centre = trained.mean(0) * self.centred
        features, known = normalize(trained - centre), labels.unique()
        means = normalize(torch.stack([features[labels == label].mean(0) for label in known]))

        def predict(pixels: Tensor) -> Tensor:
            found: Tensor = known[(normalize(probe.encoder.extract(pixels) - centre) @ means.T).argmax(1)]
            return found

        return Predictions(predict(probe.test), predict(probe.triggered))


@hookimpl
def benchbd_evaluators() -> list[type[Evaluator]]:
    return [Centroid]

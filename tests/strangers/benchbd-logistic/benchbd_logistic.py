"""scikit-learn's logistic regression on the features of the frozen encoder."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from benchbd import Evaluator, Head, NotApplicable, Predictions, Probe, hookimpl

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


class Logistic(Evaluator):
    """Logistic regression of scikit-learn on standardised features, by L-BFGS."""

    name = "logistic"
    paper = "Pedregosa et al., Scikit-learn: Machine Learning in Python, JMLR 12, 2011"

    c: float = Field(1.0, gt=0, le=1e6, description="inverse strength of the L2 regularisation, C of scikit-learn")
    iterations: int = Field(1000, ge=1, le=1_000_000, description="largest number of iterations of L-BFGS")

    def fit(self, probe: Probe) -> "Pipeline":
        from sklearn.linear_model import LogisticRegression  # every command imports this module
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), LogisticRegression(C=self.c, max_iter=self.iterations, tol=1e-3))
        return model.fit(self.features(probe, probe.train.pixels), probe.labels.cpu().numpy())

    def features(self, probe: Probe, pixels: Tensor) -> np.ndarray:
        return probe.encoder.extract(pixels).double().cpu().numpy()

    def evaluate(self, probe: Probe) -> Predictions:
        model = self.fit(probe)
        sides = (model.predict(self.features(probe, pixels)) for pixels in (probe.test, probe.triggered))
        return Predictions(*(torch.from_numpy(side) for side in sides))

    def head(self, probe: Probe) -> Head:
        scaler, regression = self.fit(probe)
        if len(regression.classes_) != probe.classes or probe.classes == 2:
            raise NotApplicable("scikit-learn has no row of weights for every class")
        layer, bias, mean, std = (
            torch.from_numpy(array).float().to(probe.encoder.device)
            for array in (regression.coef_, regression.intercept_, scaler.mean_, scaler.scale_)
        )
        return Head.of([(layer, bias)], mean=mean, std=std, classes=probe.train.classes)


@hookimpl
def benchbd_evaluators() -> list[type[Evaluator]]:
    return [Logistic]

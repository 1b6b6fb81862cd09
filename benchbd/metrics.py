"""From predictions to percentages, and from seeds to intervals. Nothing here imports torch when it is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from benchbd.errors import DataError
from benchbd.records import Baseline, Counts, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from benchbd.methods import Predictions

# Student's t, the 0.975 quantile for 1 to 10 degrees of freedom; the normal one is its limit.
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
Z_975 = 1.959964


def count(predictions: Predictions, labels: Tensor, target: int) -> Counts:
    """The integers behind every metric.

    predictions: as an evaluator promises them; the store takes no others.
    labels: int64 (N,), the true classes of the test images. target: the class that the trigger stands for.
    DataError where every image is of the target class.
    """
    labels = labels.cpu()
    hit = predictions.triggered.cpu() == target
    other = labels != target
    if not other.any():
        raise DataError(f"no test image is of another class than the target {target}: its ASR would mean nothing")
    return Counts(
        total=len(labels),
        correct=int((predictions.clean.cpu() == labels).sum()),
        hits=int(hit.sum()),
        nontarget=int(other.sum()),
        hits_nontarget=int((hit & other).sum()),
    )


def metrics(counts: Counts) -> Metrics:
    """ACC, ASR over all images and ASR without those of the target class, in percent."""
    return Metrics(
        acc=_percent(counts.correct, counts.total),
        asr=_percent(counts.hits, counts.total),
        asr_nontarget=_percent(counts.hits_nontarget, counts.nontarget),
    )


def baseline(counts: Counts) -> Baseline:
    """The same figures under their own names, where ``counts`` are those of the clean encoder."""
    clean = metrics(counts)
    return Baseline(ca=clean.acc, asr_b=clean.asr, asr_b_nontarget=clean.asr_nontarget)


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 4)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half-width of its 95 % Student-t interval) over seeds; one value has a mean and no interval."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, t_975(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_975(df: int) -> float:
    """The 0.975 quantile of Student's t, to 1e-4: a table, then its expansion in 1/df.

    Source: Abramowitz and Stegun, 26.7.5.
    """
    if df <= len(T_975):
        return T_975[df - 1]
    z = Z_975
    return (
        z
        + (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    )

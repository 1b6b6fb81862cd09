"""From predictions to counts, and from counts to percentages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchbd.base.errors import DataError
from benchbd.records.models import Baseline, Counts, Metrics

if TYPE_CHECKING:
    from torch import Tensor

    from benchbd.contract.evaluator import Predictions


def count(predictions: Predictions, labels: Tensor, target: int) -> Counts:
    """The integers behind every metric.

    predictions: as an evaluator promises them; the store takes no others.
    labels: int64 (N,), the true classes of the test images. target: the class that the trigger is meant to cause.
    DataError if every image has the target class.
    """
    labels, triggered = labels.cpu(), predictions.triggered.cpu()
    correct, certified = predictions.clean.cpu() == labels, predictions.certified
    hit = triggered == target
    other = labels != target
    if not other.any():
        raise DataError(f"no test image is of another class than the target {target}: its ASR would mean nothing")
    return Counts(
        total=len(labels),
        correct=int(correct.sum()),
        hits=int(hit.sum()),
        nontarget=int(other.sum()),
        hits_nontarget=int((hit & other).sum()),
        correct_triggered=int(((triggered == labels) & other).sum()),
        certified=None if certified is None else int((certified.cpu() & correct).sum()),
    )


def by_head(predictions: Predictions, labels: Tensor, target: int) -> list[Counts]:
    """The counts of each head, whose predictions stand one after the other, (heads x images,)."""
    parts = {name: part.split(len(labels)) for name, part in vars(predictions).items() if part is not None}
    heads = range(len(parts["triggered"]))
    return [count(type(predictions)(**{name: part[k] for name, part in parts.items()}), labels, target) for k in heads]


def summed(heads: Sequence[Counts]) -> Counts:
    """The sums over heads; a count that heads do not have stays None."""
    columns = {name: [getattr(head, name) for head in heads] for name in Counts.model_fields}
    return Counts(**{name: None if None in column else sum(column) for name, column in columns.items()})


def metrics(counts: Counts) -> Metrics:
    """ACC, ASR over all images, ASR and RA without those of the target class, and certified accuracy, in percent."""
    return Metrics(
        acc=_percent(counts.correct, counts.total),
        asr=_percent(counts.hits, counts.total),
        asr_nontarget=_percent(counts.hits_nontarget, counts.nontarget),
        ra=None if counts.correct_triggered is None else _percent(counts.correct_triggered, counts.nontarget),
        certified=None if counts.certified is None else _percent(counts.certified, counts.total),
    )


def baseline(counts: Counts) -> Baseline:
    """The same figures under their names for a floor; ``counts`` are those of the clean encoder."""
    clean = metrics(counts)
    return Baseline(ca=clean.acc, asr_b=clean.asr, asr_b_nontarget=clean.asr_nontarget, ra_b=clean.ra)


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 4)

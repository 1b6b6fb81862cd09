"""Counts, percentages and intervals against figures worked out by hand."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from benchbd import Predictions
from benchbd.errors import DataError
from benchbd.metrics import baseline, count, mean_interval, metrics, t_975
from benchbd.records import Baseline, Counts, Metrics

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])


def of(clean: list[int], triggered: list[int]) -> Predictions:
    return Predictions(torch.tensor(clean), torch.tensor(triggered))


def test_counts_and_percentages_by_hand() -> None:
    counts = count(of([0, 1, 1, 1, 2, 0, 2, 0], [1, 1, 1, 0, 1, 2, 1, 1]), LABELS, target=1)
    assert counts == Counts(total=8, correct=6, hits=6, nontarget=6, hits_nontarget=5)
    assert metrics(counts) == Metrics(acc=75.0, asr=75.0, asr_nontarget=83.3333)
    assert baseline(counts) == Baseline(ca=75.0, asr_b=75.0, asr_b_nontarget=83.3333)


def test_a_constant_classifier_has_full_asr_under_both_definitions() -> None:
    result = metrics(count(of([2] * 8, [2] * 8), LABELS, target=2))
    assert (result.acc, result.asr, result.asr_nontarget) == (37.5, 100.0, 100.0)


def test_all_hits_are_those_on_other_classes_plus_those_on_the_target() -> None:
    g = torch.Generator().manual_seed(1)
    labels, clean, triggered = (torch.randint(0, 5, (999,), generator=g) for _ in range(3))
    counts = count(Predictions(clean, triggered), labels, target=3)
    on_target = int((triggered[labels == 3] == 3).sum())
    assert counts.hits == counts.hits_nontarget + on_target
    assert counts.nontarget == int((labels != 3).sum())
    result = metrics(counts)
    total = result.asr_nontarget * counts.nontarget / 100 + on_target
    assert result.asr * counts.total / 100 == pytest.approx(total, abs=0.01)


def test_an_empty_trigger_has_the_share_of_images_called_the_target() -> None:
    clean = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(2))
    labels = torch.arange(400) % 4
    counts = count(Predictions(clean, clean), labels, target=0)
    assert counts.hits == int((clean == 0).sum())


def test_the_order_of_the_images_does_not_matter() -> None:
    g = torch.Generator().manual_seed(3)
    labels, clean, triggered = (torch.randint(0, 4, (200,), generator=g) for _ in range(3))
    order = torch.randperm(200, generator=g)
    shuffled = count(Predictions(clean[order], triggered[order]), labels[order], target=1)
    assert shuffled == count(Predictions(clean, triggered), labels, target=1)


@pytest.mark.parametrize("labels", [torch.ones(4, dtype=torch.int64), torch.empty(0, dtype=torch.int64)])
def test_a_test_split_of_the_target_class_alone_is_refused(labels: torch.Tensor) -> None:
    with pytest.raises(DataError, match="another class than the target 1"):
        count(Predictions(labels, labels), labels, target=1)


def test_the_interval_by_hand() -> None:
    mean, half = mean_interval([1, 2, 3])
    assert mean == 2
    assert half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert mean_interval([5.0, 5.0]) == (5.0, 0.0)
    assert mean_interval([7.25]) == (7.25, None)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


@pytest.mark.parametrize("df", [1, 2, 3, 5, 10, 11, 15, 30, 100, 10_000])
def test_t_quantiles_against_the_integral_of_the_density(df: int) -> None:
    x = torch.linspace(0, t_975(df), 200_001, dtype=torch.float64)
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    density = (log_scale - (df + 1) / 2 * torch.log1p(x.square() / df)).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(0.475, abs=1e-5)


def test_the_leaderboard_can_import_it_without_torch() -> None:
    code = "import sys, benchbd.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

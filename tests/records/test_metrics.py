"""Counts, percentages and intervals against figures computed by hand."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from benchbd import Predictions
from benchbd.base.errors import DataError
from benchbd.records.counts import baseline, count, metrics
from benchbd.records.models import Baseline, Counts, Metrics
from benchbd.report.statistics import auroc, auroc_interval, binomial_interval, mean_interval, t_975, true_positives

T_TABLE = """12.706205 4.302653 3.182446 2.776445 2.570582 2.446912 2.364624 2.306004 2.262157 2.228139
2.200985 2.178813 2.160369 2.144787 2.131450 2.119905 2.109816 2.100922 2.093024 2.085963
2.079614 2.073873 2.068658 2.063899 2.059539 2.055529 2.051831 2.048407 2.045230 2.042272"""
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])


def of(clean: list[int], triggered: list[int]) -> Predictions:
    return Predictions(torch.tensor(clean), torch.tensor(triggered))


def test_counts_and_percentages_by_hand() -> None:
    counts = count(of([0, 1, 1, 1, 2, 0, 2, 0], [1, 1, 1, 0, 1, 2, 1, 1]), LABELS, target=1)
    assert counts == Counts(total=8, correct=6, hits=6, nontarget=6, hits_nontarget=5, correct_triggered=1)
    assert metrics(counts) == Metrics(acc=75.0, asr=75.0, asr_nontarget=83.3333, ra=16.6667)
    assert baseline(counts) == Baseline(ca=75.0, asr_b=75.0, asr_b_nontarget=83.3333, ra_b=16.6667)


def test_certified_are_those_that_are_right_too() -> None:
    predictions = of([0, 1, 1, 1, 2, 0, 2, 0], [1] * 8)  # right but for the second and the sixth
    certain = torch.tensor([True, True, False, True, True, False, False, False])
    counts = count(Predictions(predictions.clean, predictions.triggered, certain), LABELS, target=1)
    assert (counts.correct, counts.certified) == (6, 3)
    assert metrics(counts).certified == 37.5
    assert metrics(count(predictions, LABELS, target=1)).certified is None


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


def test_t_quantiles_are_those_of_the_printed_tables_to_1e_4() -> None:
    table = dict(enumerate(map(float, T_TABLE.split()), start=1))
    for df, quantile in {**table, 40: 2.021075, 60: 2.000298, 120: 1.979930, 1000: 1.962339}.items():
        assert abs(t_975(df) - quantile) < 1e-4, df


@pytest.mark.parametrize("df", [1, 2, 3, 5, 10, 11, 15, 30, 100, 10_000])
def test_t_quantiles_against_the_integral_of_the_density(df: int) -> None:
    x = torch.linspace(0, t_975(df), 200_001, dtype=torch.float64)
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    density = (log_scale - (df + 1) / 2 * torch.log1p(x.square() / df)).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(0.475, abs=1e-5)


def test_the_leaderboard_can_import_it_without_torch() -> None:
    code = "import sys, benchbd.report.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_auroc_by_hand() -> None:
    assert auroc([1, 2], [3, 4]) == 1.0
    assert auroc([3, 4], [1, 2]) == 0.0
    assert auroc([1, 2, 3], [2, 2, 5]) == pytest.approx((1.5 + 1.5 + 3) / 9)  # ties count half
    assert auroc([7], [7]) == 0.5


def test_auroc_interval_at_the_ends_is_that_of_a_binomial() -> None:
    low, high = auroc_interval(1.0, 10, 12)
    assert (low, high) == (pytest.approx(0.025**0.1, abs=1e-12), 1.0)
    assert binomial_interval(10, 10)[0] == pytest.approx(low, abs=1e-9)
    assert auroc_interval(0.0, 12, 10) == pytest.approx((0.0, 1 - 0.025**0.1), abs=1e-9)


def test_auroc_interval_contains_its_value_narrows_with_size_and_mirrors() -> None:
    widths = []
    for n in (5, 10, 40):
        low, high = auroc_interval(0.8, n, n)
        assert 0 < low < 0.8 < high < 1
        mirrored = auroc_interval(0.2, n, n)
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)
        widths.append(high - low)
        for p in (low, high):  # both ends lie exactly on the bound
            divergence = 0.8 * math.log(0.8 / p) + 0.2 * math.log(0.2 / (1 - p))
            assert math.exp(-n * divergence) == pytest.approx(0.025, rel=1e-6)
    assert widths == sorted(widths, reverse=True)


def test_auroc_interval_covers_at_small_sizes() -> None:
    """Normal scores one standard deviation apart: the true AUROC is Phi(1 / sqrt 2) = 0.7602."""
    generator = torch.Generator().manual_seed(0)
    truth, runs, covered = 0.76025, 400, 0
    for _ in range(runs):
        clean = torch.randn(10, generator=generator).tolist()
        attacked = (torch.randn(10, generator=generator) + 1).tolist()
        low, high = auroc_interval(auroc(clean, attacked), 10, 10)
        covered += low <= truth <= high
    assert covered / runs >= 0.95


@pytest.mark.parametrize(
    ("hits", "trials", "expected"),
    [
        (0, 10, (0.0, 0.3085)),  # Clopper and Pearson's tables
        (10, 10, (0.6915, 1.0)),
        (5, 10, (0.1871, 0.8129)),
        (1, 20, (0.0013, 0.2487)),
        (1500, 3000, (0.4819, 0.5181)),
    ],
)
def test_binomial_interval_against_tables(hits: int, trials: int, expected: tuple[float, float]) -> None:
    assert binomial_interval(hits, trials) == pytest.approx(expected, abs=1e-4)


def test_true_positives_by_hand() -> None:
    clean, attacked = [0.1, 0.2, 0.3, 0.9], [0.25, 0.35, 0.9, 0.95]
    assert true_positives(clean, attacked) == 1  # above 0.9 strictly
    assert true_positives(clean, attacked, fpr=0.25) == 3  # one clean encoder may pass: above 0.3
    assert true_positives(clean, attacked, fpr=1.0) == 4
    assert true_positives([0.5] * 3, [0.5] * 2) == 0

"""Compute statistics over seeds and their intervals. Importing this module does not import torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

# Student's t, the 0.975 quantile for 1 to 10 degrees of freedom; the normal one is its limit.
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)

Z_975 = 1.959964


class Interval(NamedTuple):
    """A mean over seeds and the half-width of its 95 % interval; the half-width is None for one seed, both for none."""

    mean: float | None = None
    half: float | None = None


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half-width of its 95 % Student-t interval) over seeds; one value has a mean and no interval."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, t_975(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_975(df: int) -> float:
    """The 0.975 quantile of Student's t, to 1e-4 for every df >= 1: a table to 10, then four terms in 1/df.

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
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * df**4)
    )


def auroc(clean: Sequence[float], backdoored: Sequence[float]) -> float:
    """The probability, 0..1, that a backdoored encoder scores higher than a clean one; a tie counts half."""
    wins = sum((b > c) + 0.5 * (b == c) for b in backdoored for c in clean)
    return wins / (len(clean) * len(backdoored))


def auroc_interval(value: float, clean: int, backdoored: int, level: float = 0.95) -> tuple[float, float]:
    """(low, high) around an AUROC of so many encoders, with at least this coverage at any size and distribution.

    It assumes independent encoders. The tails of a two-sample U-statistic are those of n = min(clean, backdoored) coin
    flips under Chernoff's bound, exp(-n KL(value, p)) <= (1 - level) / 2. It is conservative; at perfect separation it
    is Clopper and Pearson's interval of n successes in n. Source: Hoeffding, Probability Inequalities for Sums of
    Bounded Random Variables, JASA 1963, Section 5b.
    """
    n, tail = min(clean, backdoored), (1 - level) / 2

    def excluded(p: float) -> bool:
        return n * _divergence(value, p) >= -math.log(tail)

    return _boundary(excluded, 0.0, value), _boundary(excluded, 1.0, value)


def binomial_interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval (low, high) of a share of ``hits`` in ``trials``, 0..1."""
    tail = (1 - level) / 2

    def chance(p: float, counts: range) -> float:
        if p in (0, 1):
            return float((0 if p == 0 else trials) in counts)
        log_p, log_q, all_ways = math.log(p), math.log1p(-p), math.lgamma(trials + 1)
        return sum(
            math.exp(all_ways - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q)
            for k in counts
        )

    low = _boundary(lambda p: chance(p, range(hits, trials + 1)) < tail, 0.0, 1.0) if hits else 0.0
    high = _boundary(lambda p: chance(p, range(hits + 1)) < tail, 1.0, 0.0) if hits < trials else 1.0
    return low, high


def true_positives(clean: Sequence[float], backdoored: Sequence[float], fpr: float = 0.0) -> int:
    """The number of backdoored encoders above the threshold that at most ``fpr`` of the clean encoders exceed."""
    allowed = math.floor(fpr * len(clean) + 1e-9)
    threshold = sorted(clean, reverse=True)[allowed] if allowed < len(clean) else -math.inf
    return sum(score > threshold for score in backdoored)


def _divergence(q: float, p: float) -> float:
    """Kullback-Leibler divergence of coins with probabilities q and p, in nats."""
    pairs = [(a, b) for a, b in ((q, p), (1 - q, 1 - p)) if a > 0]
    return math.inf if any(b <= 0 for _, b in pairs) else sum(a * math.log(a / b) for a, b in pairs)


def _boundary(excluded: Callable[[float], bool], outside: float, inside: float) -> float:
    """The point at which ``excluded`` changes, by bisection between a point where it holds and one where it fails."""
    if not excluded(outside):
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if excluded(middle) else (outside, middle)
    return inside


class Correlation(NamedTuple):
    """Spearman's rho over n pairs with its exact two-sided permutation p-value.

    Both are None for fewer than three pairs, and if all values of one side are equal.
    """

    n: int
    rho: float | None = None
    p: float | None = None


def average_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 for the smallest; equal values get the mean of their ranks."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> Correlation:
    """Spearman's rho, ties by average rank, and its p-value.

    p: the share of all n! pairings whose rho is at least as far from 0 as the observed one. Given the ranks, rho
    depends on a pairing through the sum of products alone, so we count sums, not pairings: for each subset of the
    partners used so far, the number of pairings per sum. This takes about 2^n steps and is exact, as twice a rank is an
    integer.
    """
    n = len(ours)
    x, y = ([round(2 * rank) for rank in average_ranks(values)] for values in (ours, theirs))
    if n < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return Correlation(n)
    ways: dict[int, Counter[int]] = {0: Counter({0: 1})}  # subset as a bit mask -> sum -> number of pairings
    for rank in x:
        grown: dict[int, Counter[int]] = {}
        for used, sums in ways.items():
            for partner in range(n):
                if not used >> partner & 1:
                    into = grown.setdefault(used | 1 << partner, Counter())
                    for total, count in sums.items():
                        into[total + rank * y[partner]] += count
        ways = grown
    [sums] = ways.values()

    def excess(total: int) -> int:
        return abs(n * total - sum(x) * sum(y))

    found = sum(a * b for a, b in zip(x, y, strict=True))
    extreme = sum(count for total, count in sums.items() if excess(total) >= excess(found))
    spread = [n * sum(rank * rank for rank in ranks) - sum(ranks) ** 2 for ranks in (x, y)]
    rho = (n * found - sum(x) * sum(y)) / (spread[0] * spread[1]) ** 0.5
    return Correlation(n, rho, extreme / sums.total())


def interval(values: Iterable[float]) -> Interval:
    """The interval of one value per seed; empty if there are none."""
    known = list(values)
    return Interval(*mean_interval(known)) if known else Interval()

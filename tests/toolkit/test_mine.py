"""The estimator of mutual information against distributions whose information is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from benchbd import Mine, UsageError, stream
from benchbd.toolkit.mutual_information import (
    BOUND,
    Statistic,
    _estimate,
    donsker_varadhan,
    draw_shift,
    log_mean_exp,
    moving_average,
)

from ..chance import seeded

QUICK = Mine(epochs=15, hidden=64)


def gaussians(rho: float, n: int = 16_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(n, 1) each, correlation rho; their information is -ln(1 - rho^2) / 2 nats."""
    x, noise = torch.randn(2, n, 1, generator=torch.Generator().manual_seed(seeded(seed)))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def test_known_information_of_gaussians() -> None:
    found = {rho: QUICK(*gaussians(rho), seed=1) for rho in (0.0, 0.5, 0.9)}
    assert found[0.0].nats <= 0.03
    assert found[0.5].nats == pytest.approx(0.1438, abs=0.03)
    assert found[0.9].nats == pytest.approx(0.8304, abs=0.08)
    assert found[0.0].nats < found[0.5].nats < found[0.9].nats
    assert not any(estimate.saturated for estimate in found.values())


def test_invariant_under_an_affine_map() -> None:
    x, y = gaussians(0.9)
    assert QUICK(x, 3 * y + 1, seed=1).nats == pytest.approx(QUICK(x, y, seed=1).nats, abs=0.08)


def test_heldout_does_not_reward_memorising() -> None:
    f, z = (
        torch.randn(256, 300, generator=stream(seeded(0), "f")),
        torch.randn(256, 32, generator=stream(seeded(0), "z")),
    )
    assert Mine(epochs=30, hidden=64, evaluation="train")(f, z, 0).nats > 0.5  # independent, and still "information"
    assert Mine(epochs=30, hidden=64)(f, z, 0).nats <= 0.03


def test_information_of_independent_pairs_adds_up() -> None:
    pairs = [gaussians(0.5, seed=i) for i in range(4)]
    x, y = (torch.cat(side, 1) for side in zip(*pairs, strict=True))
    assert QUICK(x, y, seed=1).nats == pytest.approx(4 * 0.1438, abs=0.12)


@pytest.mark.parametrize("n", [2, 3, 16])
def test_rolled_rows_are_never_pairs(n: int) -> None:
    rows, generator = torch.arange(n), stream(0, "shift")
    drawn = {draw_shift(n, generator) for _ in range(300)}
    assert drawn == set(range(1, n))
    assert all((rows.roll(shift) != rows).all() for shift in drawn)


def test_the_split_first_layer_is_a_layer_on_the_concatenation() -> None:
    t = Statistic(6, 3, 16, stream(seeded(0), "init"))
    f, z = torch.randn(5, 6, generator=stream(seeded(0), "f")), torch.randn(5, 3, generator=stream(seeded(0), "z"))

    def plain(f: Tensor, z: Tensor) -> Tensor:
        first = (torch.cat([f, z], 1) @ torch.cat([t.of_f, t.of_z], 1).T + t.bias).relu()
        raw = (first @ t.middle.T + t.middle_bias).relu() @ t.last.T + t.last_bias
        return BOUND * (raw[:, 0] / BOUND).tanh()

    joint, marginal = t(f, z, (1, 3))
    torch.testing.assert_close(joint, plain(f, z))
    torch.testing.assert_close(marginal, torch.cat([plain(f, z.roll(1, 0)), plain(f, z.roll(3, 0))]))


def test_the_bound_does_not_overflow() -> None:
    value = donsker_varadhan(torch.full((4,), 200.0), torch.full((12,), -200.0))
    assert float(value) == pytest.approx(400)
    assert float(log_mean_exp(torch.full((7,), 200.0))) == pytest.approx(200)


def test_the_bound_of_a_known_ratio() -> None:
    """Two equal symbols: with T = ln 2 on pairs and very low elsewhere the information is ln 2."""
    joint, marginal = torch.full((8,), math.log(2)), torch.tensor([math.log(2), -50.0] * 4)
    assert float(donsker_varadhan(joint, marginal)) == pytest.approx(math.log(2))


def test_moving_average_is_that_of_the_exponentials() -> None:
    average = moving_average(torch.tensor(1.0), torch.tensor(2.0, requires_grad=True))
    assert float(average) == pytest.approx(math.log(0.99 * math.e + 0.01 * math.e**2))
    assert not average.requires_grad
    assert float(moving_average(torch.tensor(200.0), torch.tensor(-200.0))) == pytest.approx(200 + math.log(0.99))


def test_the_gradient_divides_by_the_moving_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """E_P[dT] - E_Q[exp(T) dT] / average at every step; this batch's own mean gives another number."""
    asked: list[tuple[Statistic, Tensor, Tensor, tuple[int, ...] | range]] = []
    made: list[list[Tensor | None]] = []
    forward, step = Statistic.forward, torch.optim.Adam.step

    def asking(self: Statistic, f: Tensor, z: Tensor, shifts: tuple[int, ...] | range) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():  # a step, not a reading
            asked.append((copy.deepcopy(self), f, z, shifts))
        return forward(self, f, z, shifts)

    def stepping(self: torch.optim.Adam) -> None:
        made.append([p.grad.clone() for p in self.param_groups[0]["params"]])
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Statistic, "forward", asking)
        patch.setattr(torch.optim.Adam, "step", stepping)
        Mine(epochs=4, hidden=8, lr=0.03, evaluation="train")(*gaussians(0.9, n=32), 0)
    average: Tensor | None = None
    assert len(asked) == len(made) == 4
    for (t, f, z, shifts), gradient in zip(asked, made, strict=True):
        joint, marginal = t(f, z, shifts)
        own = marginal.detach().exp().mean()
        average = own if average is None else 0.99 * average + 0.01 * own
        wanted = torch.autograd.grad(marginal.exp().mean() / average - joint.mean(), list(t.parameters()))
        torch.testing.assert_close(gradient, list(wanted), rtol=1e-4, atol=1e-6)
    assert abs(float(own / average) - 1) > 0.02


def test_saturation_is_finite_and_reported() -> None:
    x, y = gaussians(0.9, n=200)
    estimate = Mine(epochs=3, hidden=32)(1e6 * x, 1e6 * y, 0)
    assert all(map(math.isfinite, estimate.readings))
    assert 0 <= estimate.nats <= estimate.cap
    assert estimate.at_bound > 0.5
    assert estimate.saturated


@pytest.mark.parametrize(("of_pairs", "at_bound"), [(0.0, 0.0), (9.9, 1.0), (-9.9, 0.0)])
def test_only_pairs_near_the_upper_bound_are_at_the_bound(
    of_pairs: float, at_bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of the unrelated pairs near -10: T learns to put those that it recognises there."""
    forward = Statistic.forward

    def planted(self: Statistic, f: Tensor, z: Tensor, shifts: tuple[int, ...] | range) -> tuple[Tensor, Tensor]:
        joint, marginal = (0 * part for part in forward(self, f, z, shifts))
        marginal = marginal.index_fill(0, torch.arange(len(marginal) // 5), -9.9)
        return joint + of_pairs, marginal

    monkeypatch.setattr(Statistic, "forward", planted)
    estimate = Mine(epochs=2, hidden=8)(*gaussians(0.5, n=200), 0)
    assert estimate.at_bound == at_bound
    assert estimate.saturated == (at_bound > 0.1)
    if of_pairs == 0:
        assert estimate.nats == pytest.approx(-math.log(0.8), abs=0.01)


def test_an_estimate_is_capped_at_ln_n() -> None:
    z = torch.eye(24)
    estimate = Mine(epochs=150, hidden=64, evaluation="train")(z, z, seeded(0))
    assert estimate.cap == pytest.approx(math.log(24))
    assert sum(estimate.readings) / 10 > estimate.cap  # unrelated pairs only, so ln N is no limit of the bound
    assert estimate.nats == estimate.cap
    assert estimate.saturated


def test_numbers_that_are_not_finite_give_nan() -> None:
    estimate = Mine(epochs=2, hidden=8)(
        torch.full((40, 2), math.nan), torch.randn(40, 2, generator=stream(seeded(0), "z")), 0
    )
    assert math.isnan(estimate.nats)
    assert not estimate.saturated


def test_one_reading_that_is_not_finite_is_no_estimate() -> None:
    """The rest would be averaged although T became NaN on the way."""
    assert math.isnan(_estimate([0.5, 0.6, math.nan], 3.0, 0.0).nats)
    assert math.isnan(_estimate([0.5, math.inf, 0.4], 3.0, 0.0).nats)
    assert _estimate([0.5, 0.7], 3.0, 0.0).nats == pytest.approx(0.6)


def test_a_function_of_its_arguments_alone() -> None:
    x, y = gaussians(0.5, n=300)
    mine = Mine(epochs=12, hidden=32)
    first = mine(x, y, 3)
    assert len(first.readings) == 10
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert mine(x, y, 3) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert mine(x, y, 4) != first


def test_pooling_and_small_sets() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4).expand(8, 2, 4, 4)
    assert Mine(pool=2).inputs(maps)[0].tolist() == [2.5, 4.5, 10.5, 12.5] * 2
    assert Mine().inputs(maps).shape == (8, 32)
    assert math.isfinite(
        Mine(epochs=1, hidden=8, pool=1)(maps, torch.randn(8, 3, generator=stream(seeded(0), "z")), 0).nats
    )
    with pytest.raises(UsageError, match="at least 8 pairs, not 7"):
        Mine()(torch.zeros(7, 1), torch.zeros(7, 1), 0)


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    x, y = gaussians(0.9)
    assert QUICK(x.cuda(), y.cuda(), seed=1).nats == pytest.approx(QUICK(x, y, seed=1).nats, abs=0.02)

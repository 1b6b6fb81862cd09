"""MINE: a neural lower bound of the mutual information of two variables, in nats (Belghazi et al., ICML 2018).

I(f; z) >= mean over pairs of T(f, z) - log mean over unrelated pairs of exp T(f, z), maximised over a small network T.

Network, optimizer and number of epochs are those of MIMIC's released code. Its numerical problems are solved
here: T is bounded (otherwise a constant added to it grows without limit and exp overflows), the log
of the mean is a logsumexp, the gradient divides by a moving average (MINE, Section 3.2), unrelated pairs are never
related by accident; and the value is read on pairs that T was not trained on.

For deterministic f and z that share a source the true information is unbounded: the estimate then measures how much
of the dependence T learns under this protocol. Estimates under different settings are not comparable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchbd.base.errors import UsageError
from benchbd.contract.context import stream
from benchbd.toolkit.contrastive import batch_indices

BOUND = 10.0  # largest |T|; our choice: the bound of 20 nats that follows is far above ln N

EMA_RATE = 0.01  # weight of a new value in the moving average of E[exp T], as in public MINE code

READINGS = 10  # number of last epochs that the estimate averages (MIMIC's code)

SHIFTS = 8  # rolls of the evaluation pairs: the number of unrelated pairs for each pair


@dataclass(frozen=True)
class Estimate:
    """nats: the estimate, in [0, cap]; NaN if a reading was not finite, because T has then diverged.
    readings: the values that it averages, one per epoch at the end, not clipped.
    cap: ln N, a cap by choice.
    at_bound: share of the pairs for which T's last reading is within 5 % of its upper bound. The lower bound does not
        limit the estimate: exp T of unrelated pairs is next to 0 there."""

    nats: float
    readings: tuple[float, ...]
    cap: float
    at_bound: float

    @property
    def saturated(self) -> bool:
        """Whether a limit of the estimator, instead of the data, set the value."""
        return self.nats >= self.cap or self.at_bound > 0.1


@dataclass(frozen=True)
class Mine:
    """The settings of an estimate; ``Mine()(f, z, seed)`` computes it.

    epochs, batch, lr, weight_decay, hidden: of T and its Adam; the defaults are MIMIC's code.
    evaluation: ``heldout`` reads the value on a fifth of the pairs, which T is not trained on; ``train`` trains and
        reads on all, as MIMIC's code does (the value then grows with the epochs even for independent variables).
    pool: average-pool maps to pool x pool before T. By data processing this is a lower bound of a smaller
        quantity; None: the whole map, as in the paper.
    """

    epochs: int = 200
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-5
    hidden: int = 512
    evaluation: Literal["heldout", "train"] = "heldout"
    pool: int | None = None

    def inputs(self, maps: Tensor) -> Tensor:
        """The input of T for maps (N, C, H, W) or vectors (N, D): float (N, D')."""
        if self.pool is not None and maps.ndim == 4:
            maps = F.adaptive_avg_pool2d(maps, self.pool)
        return maps.flatten(1)

    def __call__(self, f: Tensor, z: Tensor, seed: int) -> Estimate:
        """I(f; z) from N pairs: float f (N, D) or (N, C, H, W) and z (N, d), on one device.

        The arguments alone determine the result. UsageError below 8 pairs.
        """
        n = len(z)
        if n < 8:
            raise UsageError(f"an estimate of mutual information needs at least 8 pairs, not {n}")
        f = self.inputs(f)
        rows = torch.randperm(n, generator=stream(seed, "split")).to(z.device)
        held, seen = (rows[: -(-n // 5)], rows[-(-n // 5) :]) if self.evaluation == "heldout" else (rows, rows)
        f_held, z_held = f[held], z[held]

        order, shifts = stream(seed, "order"), stream(seed, "shift")
        t = Statistic(f.shape[1], z.shape[1], self.hidden, stream(seed, "init")).to(z.device)
        adam = torch.optim.Adam(t.parameters(), self.lr, weight_decay=self.weight_decay, fused=True)
        epoch = max(1, len(seen) // self.batch)
        log_average: Tensor | None = None
        readings: list[Tensor] = []
        near: Tensor | None = None
        batches = batch_indices(len(seen), self.batch, self.epochs * epoch, order, z.device)
        for step, batch in enumerate(batches, start=1):
            pairs = seen[batch]
            joint, marginal = t(f[pairs], z[pairs], (draw_shift(len(pairs), shifts),))
            log_mean = log_mean_exp(marginal)
            log_average = log_mean.detach() if log_average is None else moving_average(log_average, log_mean)
            # The gradient is E_P[dT] - E_Q[exp(T) dT] / average: the average, not this batch's own mean,
            # removes the bias. The value of this loss has no meaning; the bound is read below.
            loss = (log_mean - log_average).exp() - joint.mean()
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            if step % epoch == 0 and step // epoch > self.epochs - READINGS:  # no other epoch is read
                with torch.no_grad():
                    joint, marginal = t(f_held, z_held, range(1, min(SHIFTS + 1, len(held))))
                readings.append(donsker_varadhan(joint, marginal))
                near = (joint > 0.95 * BOUND).float().mean()
        return _estimate(torch.stack(readings).tolist(), math.log(n), 0.0 if near is None else float(near))


class Statistic(nn.Module):
    """T: (f, z) concatenated -> hidden -> hidden -> 1, ReLU, bounded to (-BOUND, BOUND) by a tanh.

    The first layer is linear in f and z: each half is computed once, and an unrelated pair is a sum of two rows.
    Initialised from the generator alone, like ``nn.Linear`` of the concatenation.
    """

    def __init__(self, f_dim: int, z_dim: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-1, 1, generator=generator) / math.sqrt(fan_in))

        self.of_f = uniform(hidden, f_dim, fan_in=f_dim + z_dim)
        self.of_z = uniform(hidden, z_dim, fan_in=f_dim + z_dim)
        self.bias = uniform(hidden, fan_in=f_dim + z_dim)
        self.middle = uniform(hidden, hidden, fan_in=hidden)
        self.middle_bias = uniform(hidden, fan_in=hidden)
        self.last = uniform(1, hidden, fan_in=hidden)
        self.last_bias = uniform(1, fan_in=hidden)

    def forward(self, f: Tensor, z: Tensor, shifts: tuple[int, ...] | range) -> tuple[Tensor, Tensor]:
        """T of the n pairs, (n,), and of f with z rolled by each of the shifts, (n * len(shifts),)."""
        a, b = F.linear(f, self.of_f, self.bias), F.linear(z, self.of_z)
        hidden = torch.cat([a + b, *(a + b.roll(shift, 0) for shift in shifts)]).relu()
        raw = F.linear(F.linear(hidden, self.middle, self.middle_bias).relu(), self.last, self.last_bias)[:, 0]
        bounded = BOUND * (raw / BOUND).tanh()
        return bounded[: len(f)], bounded[len(f) :]


def draw_shift(n: int, generator: torch.Generator) -> int:
    """A shift, 1 .. n - 1, that moves every one of n rows. (A random permutation of any size keeps one row in
    place on average, and none with probability 1/e: its batches mix two kinds of values.)"""
    return int(torch.randint(1, n, (), generator=generator))


def log_mean_exp(values: Tensor) -> Tensor:
    """log mean exp of (n,), without overflow: 0-d."""
    return values.logsumexp(0) - math.log(len(values))


def moving_average(log_average: Tensor, log_value: Tensor) -> Tensor:
    """log of (1 - EMA_RATE) * exp(log_average) + EMA_RATE * exp(log_value), detached."""
    return torch.logaddexp(log_average + math.log1p(-EMA_RATE), log_value.detach() + math.log(EMA_RATE))


def donsker_varadhan(joint: Tensor, marginal: Tensor) -> Tensor:
    """The bound in nats, 0-d, from T of pairs (n,) and of unrelated pairs (m,)."""
    return joint.mean() - log_mean_exp(marginal)


def _estimate(readings: list[float], cap: float, at_bound: float) -> Estimate:
    mean = sum(readings) / len(readings)
    # Clip after averaging: clipping each reading would turn noise around 0 into information.
    nats = min(max(mean, 0.0), cap) if math.isfinite(mean) else math.nan
    return Estimate(nats, tuple(readings), cap, at_bound)

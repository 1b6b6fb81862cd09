"""Trigger inversion: the smallest patch for which an encoder's features meet an objective.

A patch is a mask m (one channel, broadcast to RGB) and a pattern p, both in [0, 1] through a tanh; it is stamped on raw
pixels, x -> (1 - m) x + m p. Adam minimises objective + lambda * size, and a controller raises lambda while the
objective is met and lowers it while it is not. The best patch is the smallest one at a moment of success. MOTH and
DECREE are settings of this loop, and so is Neural Cleanse except for its first lambda of 0 and its stopping rule.

K inversions run as one: the patches have a leading dimension K, and one forward serves all. Adam, controller and
bookkeeping work element by element, so each run gives the result that it would give alone from the same start (but
for jitter, whose draws depend on K).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from benchbd.contract.context import Steps, stream
from benchbd.nets.encoder import Encoder

EPS = 1e-7  # keeps tanh and its inverse finite at 0 and 1

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features (K, B, d), raw float32 -> (loss (K,), success rate or similarity (K,)), both per inversion."""


@dataclass(frozen=True)
class Controller:
    """How success changes lambda, the weight of a patch's size. One event per unit; K lambdas move independently.

    start: the first lambda. up, down: factors by which it is multiplied and divided.
    patience: number of successes (failures) in a row that raise (lower) lambda; the count then restarts.
    lowest, highest: lambda is lowered only from ``lowest`` on and raised only below ``highest``, so it may end one
        step outside. Lambda stays a normal float32, because it could not recover from 0 or inf.
    """

    start: float = 1e-3
    up: float = 1.5
    down: float = 1.5**1.5
    patience: int = 10
    lowest: float = 0.0
    highest: float = inf


class Lambda:
    """The K lambdas of a run, float32 (K,) in ``value``, and their counts."""

    def __init__(self, controller: Controller, count: int, device: torch.device | str) -> None:
        self.controller = controller
        self.value = torch.full((count,), controller.start, device=device)
        self._won = torch.zeros(count, dtype=torch.int64, device=device)
        self._lost = torch.zeros_like(self._won)

    def update(self, success: Tensor) -> None:
        """Change the lambdas by one event, bool (K,), without moving data off the device."""
        rule = self.controller
        self._won = torch.where(success, self._won + 1, 0)
        self._lost = torch.where(success, 0, self._lost + 1)
        raised = (self._won >= rule.patience) & (self.value < rule.highest)
        lowered = (self._lost >= rule.patience) & (self.value >= rule.lowest)
        self._move(raised, self.value * rule.up)
        self._move(lowered, self.value / rule.down)
        self._won = torch.where(raised, 0, self._won)
        self._lost = torch.where(lowered, 0, self._lost)

    def _move(self, where: Tensor, to: Tensor) -> None:
        limits = torch.finfo(to.dtype)
        self.value = torch.where(where & (to >= limits.tiny) & (to <= limits.max), to, self.value)


@dataclass(frozen=True, eq=False)
class Inverted:
    """The results of K inversions, each the best of its run.

    mask: float32 (K, 1, H, W). pattern: float32 (K, 3, H, W). Both in [0, 1]; the last ones if a run had no success.
    size: float32 (K,), sum of the mask, one channel; inf for a run without success.
    rate: float32 (K,), the objective's success rate, averaged over the updates of one unit; ``mask`` and ``pattern``
        are those of the unit's last update.
    valid: bool (K,), whether the run had a success.
    steps: Adam updates that were made.
    settled: whether every run stopped early, before or at the last update.
    """

    mask: Tensor
    pattern: Tensor
    size: Tensor
    rate: Tensor
    valid: Tensor
    steps: int
    settled: bool = False

    def stamp(self, images: Tensor, number: int = 0) -> Tensor:
        """Float images (..., 3, H, W) in [0, 1] under patch ``number``."""
        return stamp(images, self.mask[number], self.pattern[number])


def self_similarity(features: Tensor) -> Tensor:
    """Mean cosine of two different raw features (..., B, d), shape (...), without the B x B matrix.

    The squared length of the sum of B unit vectors is B, for each vector with itself, plus the cosines of all others.
    """
    batch = features.shape[-2]
    total = F.normalize(features, dim=-1).sum(-2)
    similarity: Tensor = (total.square().sum(-1) - batch) / (batch * (batch - 1))
    return similarity


def stamp(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """(1 - m) x + m p; a convex combination, so the result stays in [0, 1]."""
    return images + mask * (pattern - images)


@dataclass(frozen=True)
class Inversion:
    """The settings of an inversion; a call runs K inversions.

    steps: Adam updates at most. lr: Adam's learning rate at an update, counted from 0.
    controller: of lambda. level: an update unit is a success if its mean rate reaches ``level``.
    unit: Adam updates per unit; after each unit the controller gets an event and a best may be kept.
    channels: factor of the mask's size in the loss: 1 (Neural Cleanse, MOTH) or 3 (DECREE).
    jitter: after every new best restart from it, moved by a uniform draw in +-jitter (MOTH; Adam keeps its state); 0:
    never.
    epoch, stale: early stopping: every ``epoch`` updates, a run stops if its mean rate over them reached ``level`` and
        its best is older than ``stale`` units. Its best is then final; the loop ends when all runs have stopped.
        epoch 0: only after ``steps``.
    """

    steps: int
    lr: Callable[[int], float]
    controller: Controller = Controller()
    level: float = 0.99
    unit: int = 1
    channels: int = 1
    jitter: float = 0.0
    epoch: int = 0
    stale: int = 0
    betas: tuple[float, float] = (0.5, 0.9)

    def __call__(
        self,
        encoder: Encoder,
        batches: Iterator[Tensor],
        objective: Objective,
        *,
        size: int,
        seed: int,
        count: int = 1,
        start: tuple[Tensor, Tensor] | None = None,
    ) -> Inverted:
        """Invert ``count`` patches for images of ``size`` pixels on ``encoder``, which is returned to its state.

        batches: float images in [0, 1], (B, 3, H, W) for all runs or (K, B, 3, H, W), one batch per run; one per
        update. objective: see Objective. start: initial (mask (K, 1, H, W), pattern (K, 3, H, W)); uniform noise if
        None. The encoder runs in eval mode and without weight gradients, so an update costs a forward and an input
        backward of K * B images.
        """
        device = encoder.device
        draws = stream(seed, "inversion", device)
        if start is None:
            start = (
                torch.rand(count, 1, size, size, generator=draws, device=device),
                torch.rand(count, 3, size, size, generator=draws, device=device),
            )
        free_mask, free_pattern = (_free(part.to(device)).requires_grad_(True) for part in start)
        optimizer = torch.optim.Adam([free_mask, free_pattern], lr=self.lr(0), betas=self.betas)
        weight = Lambda(self.controller, count, device)
        best = _Best(count, size, device)
        rates: list[Tensor] = []
        done = 0
        progress = Steps(self.steps)
        with _still(encoder):
            for step in progress:
                images = next(batches)
                mask, pattern = _bounded(free_mask), _bounded(free_pattern)
                stamped = stamp(images if images.ndim == 5 else images[None], mask[:, None], pattern[:, None])
                features = encoder(stamped.flatten(0, 1)).unflatten(0, (count, -1))
                loss, rate = objective(features)
                area = mask.sum((1, 2, 3))
                total = (loss + weight.value * self.channels * area).sum()
                for group in optimizer.param_groups:
                    group["lr"] = self.lr(step)
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                optimizer.step()
                progress.loss(total)
                rates.append(rate.detach())
                done = step + 1
                if done % self.unit == 0:
                    reached = torch.stack(rates[-self.unit :]).mean(0)
                    success = reached >= self.level
                    better = best.offer(mask, pattern, area, reached, success)
                    if self.jitter:
                        self._jump(free_mask, mask, better, draws)
                        self._jump(free_pattern, pattern, better, draws)
                    weight.update(success)
                if self.epoch and done % self.epoch == 0:
                    best.settle(torch.stack(rates[-self.epoch :]).mean(0) >= self.level, self.stale)
                    if best.final.all():
                        break
        return best.result(_bounded(free_mask), _bounded(free_pattern), rates[-1] if rates else None, done)

    def _jump(self, free: Tensor, value: Tensor, better: Tensor, draws: torch.Generator) -> None:
        """Reset the runs that have a new best to that best, moved slightly."""
        noise = (torch.rand(value.shape, generator=draws, device=value.device) * 2 - 1) * self.jitter
        moved = _free((value.detach() + noise).clamp(0, 1))
        with torch.no_grad():
            free.copy_(torch.where(better[:, None, None, None], moved, free))


class _Best:
    """The smallest patch of each run among its moments of success."""

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        self.mask = torch.zeros(count, 1, size, size, device=device)
        self.pattern = torch.zeros(count, 3, size, size, device=device)
        self.size = torch.full((count,), inf, device=device)
        self.rate = torch.zeros(count, device=device)
        self.stale = torch.zeros(count, dtype=torch.int64, device=device)
        self.final = torch.zeros(count, dtype=torch.bool, device=device)

    @torch.no_grad()
    def offer(self, mask: Tensor, pattern: Tensor, area: Tensor, rate: Tensor, success: Tensor) -> Tensor:
        """Keep better patches; bool (K,), the runs with a new best. ``stale`` counts from the first best on."""
        better = success & (area < self.size) & ~self.final
        here = better[:, None, None, None]
        self.mask, self.pattern = torch.where(here, mask, self.mask), torch.where(here, pattern, self.pattern)
        self.size, self.rate = torch.where(better, area, self.size), torch.where(better, rate, self.rate)
        self.stale = torch.where(better | self.size.isinf(), 0, self.stale + 1)
        return better

    def settle(self, met: Tensor, stale: int) -> None:
        """Make the bests final of the runs that met the level, bool (K,), if they are older than ``stale`` units."""
        self.final = self.final | (met & (self.stale > stale))

    @torch.no_grad()
    def result(self, mask: Tensor, pattern: Tensor, rate: Tensor | None, steps: int) -> Inverted:
        valid = self.size.isfinite()
        here = valid[:, None, None, None]
        return Inverted(
            torch.where(here, self.mask, mask),
            torch.where(here, self.pattern, pattern),
            self.size,
            self.rate if rate is None else torch.where(valid, self.rate, rate),
            valid,
            steps,
            bool(self.final.all()),
        )


def _bounded(free: Tensor) -> Tensor:
    """Unbounded parameters mapped to [0, 1]. The clamp corrects rounding at -1, the limit of tanh."""
    return (free.tanh() / (2 - EPS) + 0.5).clamp(0, 1)


def _free(value: Tensor) -> Tensor:
    """The parameters that ``_bounded`` maps to ``value``."""
    return ((value - 0.5) * (2 - EPS)).atanh()


@contextmanager
def _still(encoder: Encoder) -> Iterator[None]:
    """In the block, ``encoder`` is in eval mode and without weight gradients; then all modes and flags are restored."""
    modes = [(module, module.training) for module in encoder.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in encoder.parameters()]
    encoder.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)

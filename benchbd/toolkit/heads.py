"""The loop that trains a classifier on features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchbd.contract.context import Steps


def train_head(
    logits: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    features: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch: int,
    order: torch.Generator,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """Train the parameters of ``optimizer`` by cross-entropy of ``logits(features)``, (B, d) -> (B, C), with
    ``labels``.

    features: float32 (N, d); labels: int64 (N,). Every epoch draws a new order from ``order``, a generator on the CPU;
    the last, smaller batch is kept. schedule: stepped after every step. Diverged on a loss that is not finite.
    """

    def batches() -> Iterator[Tensor]:
        for _ in range(epochs):
            yield from torch.randperm(len(features), generator=order).to(features.device).split(batch)

    progress = Steps(epochs * -(-len(features) // batch))
    for _, rows in zip(progress, batches(), strict=True):
        loss = F.cross_entropy(logits(features[rows]), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        progress.loss(loss)

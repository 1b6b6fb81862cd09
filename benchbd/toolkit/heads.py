"""What classifiers on features share: the loop that trains them, and features that are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchbd.contract.context import Steps
from benchbd.nets.encoder import Encoder


def computed_once(features: Callable[[Encoder, Tensor], Tensor]) -> Callable[[Encoder, Tensor], Tensor]:
    """``features`` with its results kept, for an evaluator whose probes share encoders and images.

    features: (N, d) of an encoder and pixels, uint8 (N, 3, H, W). Encoders and tensors count as the same by identity,
    so they must live as long as the returned function is in use.
    """
    known: dict[tuple[int, int], Tensor] = {}

    def recalled(encoder: Encoder, pixels: Tensor) -> Tensor:
        key = (id(encoder), id(pixels))
        if key not in known:
            known[key] = features(encoder, pixels)
        return known[key]

    return recalled


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

"""Set the precision of a run, and count image-forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Self

import torch
from torch import Tensor, nn

from benchbd.base.device import Precision
from benchbd.base.scoped import scoped

_precision: ContextVar[Precision] = ContextVar("benchbd_precision", default="fp32")

_meters: ContextVar[tuple[ForwardMeter, ...]] = ContextVar("benchbd_meters", default=())


def precision(value: Precision) -> AbstractContextManager[object]:
    """Run every encoder in the block in ``fp32`` or under bf16 autocast."""
    return scoped(_precision, value)


class ForwardMeter:
    """Counts image-forwards, the unit of every budget: a forward is 1 per image, a backward 2 if a weight gets a
    gradient and 1 if only the input (or something that is no convolution) does. A backward that ends above the stem,
    at a later stage's map, is not seen."""

    def __init__(self) -> None:
        self.images = 0

    def __enter__(self) -> Self:
        self._token = _meters.set((*_meters.get(), self))
        return self

    def __exit__(self, *exc: object) -> None:
        _meters.reset(self._token)


def unmetered() -> AbstractContextManager[object]:
    """In the block, no meter counts forwards: they are the harness's own."""
    return scoped(_meters, ())


def _count(weights: Iterable[nn.Parameter], images: int) -> Callable[[Tensor], None] | None:
    """Add this forward to every open meter; the returned function adds its backward when it happens.

    weights: those of the net; may be a generator, which is read only if a meter is open and gradients are on.
    """
    meters = _meters.get()
    for meter in meters:
        meter.images += images
    if not meters or not torch.is_grad_enabled():
        return None
    cost = images * (2 if any(p.requires_grad and p.ndim > 1 for p in weights) else 1)

    def charge(_: Tensor) -> None:
        for meter in meters:
            meter.images += cost

    return charge


def _hook_once(y: Tensor, charge: Callable[[Tensor], None] | None) -> Callable[[Tensor], None] | None:
    """Register ``charge`` on the first tensor that takes part in a backward: every gradient passes it exactly once."""
    if charge is None or not y.requires_grad:
        return charge
    y.register_hook(charge)
    return None

"""Executors: stages are computed in this process, or in the workers of a plugin's executor."""

from __future__ import annotations

from concurrent.futures import Future

import torch

from benchbd.base.errors import UnknownNameError
from benchbd.contract.context import Reporter
from benchbd.contract.handover import INLINE, Executor, Failure, Handover, Product
from benchbd.engine.carry_out import carry_out
from benchbd.registry import Registry


class Inline(Executor):
    """Computes one stage at a time, in this process; the work is done when ``submit`` returns.

    roundtrip: whether handovers and products are converted to bytes and back, as between processes. Otherwise they
    are copied, so a method shares no storage with others in either case.
    """

    name = INLINE
    roundtrip = False

    def __init__(self, registry: Registry, device: torch.device) -> None:
        super().__init__(str(device))
        self.registry = registry

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        future: Future[Product | Failure] = Future()
        given = Handover.unpack(*handed.pack()) if self.roundtrip else handed.private()
        result = carry_out(given, self.device, report, self.registry)
        if self.roundtrip and isinstance(result, Product):
            result = Product.from_bytes(result.to_bytes())
        future.set_result(result)
        return future


def executors_of(registry: Registry) -> dict[str, type[Executor]]:
    """Every executor by name: ours, and those that plugins offer."""
    return {INLINE: Inline, **registry.executors}


def executor_called(name: str, registry: Registry, device: torch.device) -> Executor:
    """The executor of this name. UnknownNameError with the nearest one if no plugin offers it."""
    if name not in (known := executors_of(registry)):
        raise UnknownNameError("executor", name, known)
    return Inline(registry, device) if name == INLINE else known[name](str(device))

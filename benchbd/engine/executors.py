"""Where stages are worked on: in this process, or wherever a plugin's executor has its workers."""

from __future__ import annotations

from concurrent.futures import Future

import torch

from benchbd.contract.context import Reporter
from benchbd.contract.handover import Failure, Handover, Product
from benchbd.contract.registry import Registry
from benchbd.engine.carry_out import carry_out


class Inline:
    """One stage at a time, in this process, done when ``submit`` returns.

    roundtrip: whether handovers and products go through their bytes, as they do between processes. Without it they are
    copied, so a method shares no storage with anybody either way.
    """

    slots = 1
    roundtrip = False

    def __init__(self, registry: Registry, device: torch.device) -> None:
        self.registry, self.device = registry, device

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        future: Future[Product | Failure] = Future()
        given = Handover.unpack(*handed.pack()) if self.roundtrip else handed.private()
        result = carry_out(given, self.registry, self.device, report)
        if self.roundtrip and isinstance(result, Product):
            result = Product.from_bytes(result.to_bytes())
        future.set_result(result)
        return future

"""An executor as a plugin could add it: a pool of processes, each of which imports the installed plugins."""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from benchbd import Executor, Failure, Handover, Product, carry_out, hookimpl


def nobody(step: int, steps: int, loss: float | None) -> None:
    """Ignore progress: it does not pass between the processes."""


def work(data: bytes, device: str) -> bytes | Failure:
    """Work in the child: read everything from bytes, and return bytes."""
    result = carry_out(Handover.unpack(data, []), device, nobody)
    return result if isinstance(result, Failure) else result.to_bytes()


class Pool(Executor):
    """An executor with two processes."""

    name = "pool"
    slots = 2

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.workers = ProcessPoolExecutor(self.slots, get_context("spawn"))
        self.most = 0
        self._under_way = 0

    def submit(self, handed: Handover, report: Any) -> Future[Product | Failure]:
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        given: Future[Product | Failure] = Future()

        def done(future: Future[bytes | Failure]) -> None:
            self._under_way -= 1
            if error := future.exception():  # a worker died
                given.set_exception(error)
                return
            result = future.result()
            given.set_result(result if isinstance(result, Failure) else Product.from_bytes(result))

        self.workers.submit(work, handed.pack(files=False)[0], self.device).add_done_callback(done)
        return given


@hookimpl
def benchbd_executors() -> list[type[Executor]]:
    return [Pool]

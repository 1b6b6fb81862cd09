"""Carry out a handover, in any process: under the stage's seed and numerics, metered, failures as data."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch

from benchbd.base.errors import BenchbdError, NotApplicable, StoreError, is_interrupt, named, says
from benchbd.base.isolation import seeded
from benchbd.base.memory import peak_memory, reuse_arrays
from benchbd.contract.context import Reporter, collecting, reporting
from benchbd.contract.handover import Failure, Handover, Product
from benchbd.contract.method import called
from benchbd.nets.meter import ForwardMeter, precision
from benchbd.registry import Registry, installed
from benchbd.stages.kinds import KINDS


def carry_out(handed: Handover, device: str, report: Reporter, registry: Registry | None = None) -> Product | Failure:
    """The result of a handover's work. Any error of a method is a Failure; only the user's interrupt is
    raised.

    device: in torch's notation. report: called with step, steps and loss. registry: the installed methods; those
    of this process if None.
    """
    reuse_arrays()
    where, registry = torch.device(device), registry or installed()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        with (
            ForwardMeter() as meter,
            reporting(report),
            collecting() as findings,
            precision(handed.precision),
            tf32(handed.tf32),
            peak_memory(where) as peak,
            seeded(handed.seed),
        ):
            methods = {role: called(call, registry.methods[call.axis]) for role, call in handed.methods.items()}
            product = KINDS[handed.kind].work(methods, handed, where)
    except BaseException as error:
        return failure_of(error)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    cost = {"seconds": seconds, "cpu_seconds": cpu_seconds, "image_forwards": meter.images}
    return replace(product, notes=findings.notes, kept=findings.tensors, cost=cost, memory=peak)


def failure_of(error: BaseException) -> Failure:
    """An error in one line, with a traceback unless the line is enough. An interrupt by the user is raised."""
    if is_interrupt(error):
        raise error
    status: Literal["n/a", "error"] = "n/a" if isinstance(error, NotApplicable) else "error"
    if isinstance(error, BenchbdError):  # a StoreError is a method's: one of the store itself ends the run
        return Failure(status, named(error) if isinstance(error, StoreError) else says(error))
    return Failure(status, named(error), "".join(traceback.format_exception(error)))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may use TF32 for float32 products in the block."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

"""Measure the highest memory of a process, and let arrays of a batch use the same pages again."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # constants of glibc's malloc.h

_LARGEST = 32 * 2**20  # bytes: the maximum of glibc's own M_MMAP_THRESHOLD


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int | None]]:
    """Fill in, at the end of the block, ``memory``, the most bytes of the process in RAM, and ``gpu_memory``, the most
    bytes of torch on the GPU. None if the system does not measure it, or there is no GPU."""
    peak: dict[str, int | None] = {"memory": None, "gpu_memory": None}
    measured = _forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    if measured:
        peak["memory"] = _resident_peak()
    if device.type == "cuda":
        peak["gpu_memory"] = torch.cuda.max_memory_allocated(device)


def _forget_peak() -> bool:
    """Reset this process's peak memory to its current memory; False if the system cannot."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident_peak() -> int | None:
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((1024 * int(number) for number in kilobytes), None)


@cache
def reuse_arrays() -> None:
    """Let the C library keep what arrays of up to 32 MB freed for the next array, unless MALLOC_MMAP_THRESHOLD_ sets
    another size; larger ones go back to the system as soon as they are freed. Without glibc this does nothing.

    glibc begins with 128 kB and raises that size, up to the same 32 MB, to that of the largest array freed so far.
    Until it has freed a large one, each array of a batch takes new pages, which the system has to clear.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    with suppress(OSError, TypeError, AttributeError):  # Windows takes no None; macOS and musl have no such function
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST)  # glibc itself sets twice the other limit

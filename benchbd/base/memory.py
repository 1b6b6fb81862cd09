"""Measure the highest memory of a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


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

"""Where, by what and at which expense a stage was computed: in manifests and records, never in keys."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchbd._version import __version__
from benchbd.contract.method import Method, source_digest
from benchbd.contract.registry import Registry
from benchbd.engine.store import Store
from benchbd.stages.base import Stage

ISOLATION = "none"  # every method is called in the driver's process

_PROCESS = Path("/proc/self")


def provenance(stage: Stage, registry: Registry, store: Store, device: torch.device) -> dict[str, Any]:
    """What a manifest says of how its stage came about, beside what it cost."""
    return {
        "machine": machine(device),
        "plugin": origin(stage, registry),
        "isolation": ISOLATION,
        "source": store.source,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Device, instructions and threads that computed, and the versions of what did."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU"
    return {
        "device": name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # the vector instructions that torch chose
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "benchbd": __version__,
    }


def origin(stage: Stage, registry: Registry) -> dict[str, str | None] | None:
    """Distribution and version that the method of a stage is of, and sha256 of its module's source; None for a stage
    without a method."""
    if not isinstance(stage.method, Method):
        return None
    plugin = registry.plugin_of(stage.method.axis, stage.method.name)
    return {
        "distribution": plugin.distribution,
        "version": plugin.version,
        "source": source_digest(type(stage.method)),
    }


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int | None]]:
    """Filled in at the end of the block: ``memory``, most bytes of the process that were in RAM, and ``gpu_memory``,
    most bytes that torch held on the GPU. None if the system does not measure it, or there is no GPU."""
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
    """Set the highest memory of this process to what it has now; False where the system cannot."""
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

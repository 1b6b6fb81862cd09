"""Where, with which software and at which cost a stage was computed: in manifests and records, never in keys."""

from __future__ import annotations

import platform
from typing import Any

import torch

from benchbd._version import __version__
from benchbd.contract.method import Method, source_digest
from benchbd.registry import Registry
from benchbd.stages.base import Stage
from benchbd.store.store import Store

ISOLATION = "none"  # every method is called in the driver's process


def provenance(stage: Stage, registry: Registry, store: Store, device: torch.device) -> dict[str, Any]:
    """A manifest's facts about how its stage was computed, besides the cost."""
    where, plugin = machine(device), origin(stage, registry)
    return {"machine": where, "plugin": plugin, "isolation": ISOLATION, "source": store.source}


def machine(device: torch.device) -> dict[str, Any]:
    """Device, instructions and threads of the computation, and the versions of its software."""
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
    """Distribution and version of a stage's method, and sha256 of its module's source; None for a stage
    without a method."""
    if not isinstance(stage.method, Method):
        return None
    plugin = registry.plugin_of(stage.method.axis, stage.method.name)
    return {"distribution": plugin.distribution, "version": plugin.version, "source": source_digest(type(stage.method))}

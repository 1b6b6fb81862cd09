"""Where, with which software and at which cost a stage was computed: in manifests and records, never in keys."""

from __future__ import annotations

import platform
from typing import Any

import torch

from benchbd._version import __version__
from benchbd.contract.method import Method
from benchbd.registry import FIRST_PARTY, Registry
from benchbd.stages.base import Stage
from benchbd.stages.inputs import Inputs
from benchbd.store.store import Store

ISOLATION = "none"  # every method is called in the driver's process


def provenance(stage: Stage, registry: Registry, store: Store, inputs: Inputs, executor: str) -> dict[str, Any]:
    """A manifest's facts about how its stage was computed, besides the cost.

    plugin: the origin of the stage's method. parts: those of data sets, trigger functions, architecture and executor,
        by AXIS:NAME, unless they are benchbd's own, whose version ``machine`` has.
    """
    named = [("dataset", known.name) for ref in stage.data.values() if (known := inputs.library.known(ref.name))]
    named += [("trigger", each.function.name) for each in stage.attachments.get("triggers", ()) if each.function]
    named += [("architecture", stage.architecture), ("executor", executor)]
    parts = {f"{axis}:{name}": registry.origin(axis, name) for axis, name in named}
    return {
        "machine": machine(inputs.device),
        "plugin": registry.origin(stage.method.axis, stage.method.name) if isinstance(stage.method, Method) else None,
        "parts": {name: each for name, each in parts.items() if each and each["distribution"] != FIRST_PARTY},
        "isolation": ISOLATION,
        "source": store.source,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Device, instructions and threads of the computation, and the versions of its software."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # the vector instructions that torch chose
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "benchbd": __version__,
    }

"""Estimate the cost of stages from methods' declarations and past stages."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from benchbd.base.errors import BenchbdError
from benchbd.stages.base import Stage
from benchbd.stages.kinds import KINDS

log = logging.getLogger("benchbd")


def known_forwards(stages: Iterable[Stage]) -> dict[str, int | None]:
    """Estimated image-forwards by key; None if unknown. A method whose estimate is invalid is named, once."""
    known: dict[str, int | None] = {}
    complaints: dict[str, None] = {}
    for stage in stages:
        try:
            known[stage.key] = KINDS[stage.kind].forwards(stage)
        except BenchbdError as error:
            known[stage.key] = None
            complaints[f"{stage.kind} {stage.method_name}: its cost is not known: {error}"] = None
    for complaint in complaints:
        log.warning("%s", complaint)
    return known


def estimate_seconds(
    stages: Iterable[Stage], forwards: Mapping[str, int | None], manifests: Iterable[Mapping[str, Any]], device: str
) -> dict[str, float | None]:
    """Estimated wall seconds by key, from the image-forwards per second of past stages in this store; None if unknown.

    Only stages of the same method and architecture on the same device count. device: its name in manifests.
    """
    past: dict[tuple[str, ...], list[float]] = {}
    for manifest in manifests:
        cost, identity = manifest["cost"], manifest["identity"]
        if cost["seconds"] > 0 and cost["image_forwards"] and manifest["machine"]["device"] == device:
            name = identity["method"].get("name", identity["kind"])
            rate = cost["image_forwards"] / cost["seconds"]
            past.setdefault((identity["kind"], name, manifest.get("architecture", "")), []).append(rate)
    estimates: dict[str, float | None] = {}
    for stage in stages:
        rates, own = past.get((stage.kind, stage.method_name, stage.architecture)), forwards[stage.key]
        estimates[stage.key] = None if not rates or own is None else own / (sum(rates) / len(rates))
    return estimates

"""The records of every axis that inspects, by name of the axis."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from benchbd.contract.axes import INSPECTING
from benchbd.records.models import Inspected

INSPECTED: Mapping[str, type[Inspected]] = MappingProxyType(
    {axis.name: getattr(import_module(f"benchbd.records.{axis.name}"), f"{axis.kind}Record") for axis in INSPECTING}
)

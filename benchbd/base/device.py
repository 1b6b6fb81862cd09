"""The device and the precision that a user names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from benchbd.base.errors import UsageError, shown

Precision = Literal["fp32", "bf16"]

PRECISIONS = ("auto", "fp32", "bf16")


def pick_device(name: str | None) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:N``; by default CUDA if there is any. UsageError if the device does not exist."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {shown(name)}: known are cpu, cuda and cuda:N") from None
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"device {shown(name)}: known are cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {shown(name)}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def pick_precision(name: str, device: torch.device) -> Precision:
    """``fp32`` or ``bf16``; ``auto`` is bf16 on CUDA and fp32 on every CPU, so that no key depends on which CPU it was.

    UsageError for any other name, and for bf16 on a CPU that only emulates it: a matrix product takes some 300 times
    as long there.
    """
    if name not in PRECISIONS:
        raise UsageError(f"precision {shown(name)}: known are {', '.join(PRECISIONS)}")
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if name == "bf16" and device.type == "cpu" and not native_bf16():
        raise UsageError("precision bf16: this CPU only emulates it and would be far slower; use --precision fp32")
    return "bf16" if name == "bf16" else "fp32"


def native_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 by instructions of its own."""
    tell = getattr(torch.cpu, "get_capabilities", dict)  # a torch without it has bf16 on CUDA alone
    known: Mapping[str, object] = tell()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))

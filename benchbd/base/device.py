"""The device that a user names."""

from __future__ import annotations

import torch

from benchbd.base.errors import UsageError, shown


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

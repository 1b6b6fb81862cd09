"""What the values of an encoder's tensors must be. Their names, shapes and types are those of the architecture."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchbd.base.errors import DataError

_ABOVE_0 = ("std", "classifier.std", "classifier.scale")


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor with NaN or infinity, as a sentence; empty if there is none."""
    return next((f"{name} has NaN or infinity" for name, t in tensors.items() if not torch.isfinite(t).all()), "")


def impossible(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The first tensor with which no encoder computes features, and what would be right: ("std", "above 0, not -1").
    None if there is none."""
    for name, tensor in tensors.items():
        if name in _ABOVE_0 and not (tensor > 0).all():
            return name, f"above 0, not {float(tensor.min()):g}"
        if name.endswith("running_var") and (tensor < 0).any():
            return name, f"0 or above, not {float(tensor.min()):g}"
        if name == "mask" and not ((tensor == 0) | (tensor == 1)).all():
            return name, "0 or 1 per channel"
    return None


def check_values(where: object, tensors: Mapping[str, Tensor]) -> None:
    """Raise DataError, which begins with ``where``, if the tensors of a file are not those of an encoder."""
    if flaw := not_finite(tensors):
        raise DataError(f"{where}: {flaw}")
    if wrong := impossible(tensors):
        raise DataError(f"{where}: {wrong[0]} must be {wrong[1]}")

"""Read and write the file of a trigger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchbd.base.arrays import Array, picture_or_array, read_npz
from benchbd.base.content import canonical
from benchbd.base.errors import DataError


def read_trigger(path: Path, image_size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The parts of the trigger in a file, as ``Trigger.from_parts`` takes them; ``Trigger.load`` lists the formats."""
    image = picture_or_array(path)
    if image is None:
        arrays = read_npz(path, "t", "tm", optional=["parts"])
    else:
        arrays = _laid_out(path, _only(path, image), image_size)
    t, tm = (_only(path, arrays[name]) for name in ("t", "tm"))
    if t.shape != tm.shape or t.ndim != 3 or t.shape[-1] != 3 or t.shape[0] != t.shape[1] or not t.size:
        raise DataError(f"{path}: t and tm must both be (1, H, H, 3) or (H, H, 3), not {t.shape} and {tm.shape}")
    said = _said(path, arrays["parts"]) if "parts" in arrays else {"kind": "patch"}
    lowest, kind = (-255, np.int16) if said["kind"] == "add" else (0, np.uint8)
    if not (np.isin(tm, (0, 1)).all() and np.isin(t, np.arange(lowest, 256)).all()):
        raise DataError(f"{path}: tm must hold only 0 and 1 and t only integers {lowest}..255")
    keep = torch.from_numpy(tm.astype(bool)).permute(2, 0, 1).contiguous()
    pattern = torch.from_numpy(t.astype(kind)).permute(2, 0, 1).contiguous()
    if pattern[keep].any():
        raise DataError(f"{path}: t must be 0 wherever tm is 1, since the stamp adds it to the image")
    if keep.all():
        raise DataError(f"{path}: a trigger that replaces no pixel: nothing is 0 in tm, opaque in alpha or not black")
    if t.dtype.kind in "bf" and pattern.max() == 1 and not lowest:  # white in these units would be almost black in ours
        raise DataError(f"{path}: t must be in units of 0..255, not of 0..1: its largest value is 1")
    return said, {"pattern": pattern, "keep": keep}


def write_trigger(path: Path, said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the parts of a trigger in the format of ``Trigger.save``."""
    t, tm = (tensors[name].permute(1, 2, 0)[None].cpu().numpy() for name in ("pattern", "keep"))
    patch = said["kind"] == "patch"
    info = np.array(["trigger", "replace" if patch else said["kind"]])
    parts: dict[str, Any] = {} if patch else {"parts": np.array(canonical(said))}
    np.savez(path, t=t.astype(np.float64), tm=tm.astype(np.int64), info=info, **parts)


def _said(path: Path, parts: Array) -> dict[str, Any]:
    """The JSON that ``Trigger.save`` wrote to the file beside the arrays."""
    try:
        said = json.loads(str(parts))
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or "kind" not in said:
        raise DataError(f"{path}: parts must be the JSON of Trigger.to_parts, as Trigger.save writes it")
    return said


def _only(path: Path, array: Array) -> Array:
    """The one entry of (r, H, W, C), whose entries may repeat; the array itself if it has no such axis."""
    if array.ndim != 4 or not len(array):
        return array
    for number in range(1, len(array)):
        if not np.array_equal(array[number], array[0]):
            raise DataError(
                f"{path}: {len(array)} triggers in one file, and number {number} is not number 0: "
                "give each task a file of its own"
            )
    only: Array = array[0]
    return only


def _laid_out(path: Path, patch: Array, size: int) -> dict[str, Array]:
    """A patch, (h, w, 3) or (h, w, 4) with alpha, as ``t`` and ``tm`` of images with ``size`` pixels a side."""
    if patch.ndim != 3 or patch.shape[-1] not in (3, 4) or not patch.size or max(patch.shape[:2]) > size:
        raise DataError(f"{path}: a trigger is (H, W, 3) or (H, W, 4) of at most {size}x{size}, not {patch.shape}")
    replaced: Array = np.ones(patch.shape[:2], bool)
    if patch.shape[-1] == 4:
        if not np.isin(patch[..., 3], (0, 255)).all():
            raise DataError(
                f"{path}: alpha must be 0 (keep the image) or 255 (cover it): opacity is one for all pixels"
            )
        replaced = patch[..., 3] == 255
    elif patch.shape[:2] == (size, size):
        replaced = patch.max(-1) > 0
    t, tm = np.zeros((size, size, 3), patch.dtype), np.ones((size, size, 3), bool)
    # Like the square: one pixel from the lower right corner.
    box = tuple(slice(start := max(0, size - side - 1), start + side) for side in patch.shape[:2])
    t[box] = patch[..., :3] * replaced[..., None]
    tm[box] = ~replaced[..., None]
    return {"t": t, "tm": tm}

"""Reference inputs from files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchbd.base.arrays import Array, picture_or_array, read_npz
from benchbd.base.content import expanded
from benchbd.base.errors import DataError

log = logging.getLogger("benchbd")


def load_references(path: str | Path, label: int, size: int) -> Tensor:
    """Reference inputs from a file, recognised by its content; uint8 (r, 3, H, W), each of class ``label``.

    npz, as released: the rows of ``x`` uint8 (r, H, W, 3) whose ``y``, (r,) or (r, 1), is ``label``.
    npy: uint8 (r, H, W, 3) or (H, W, 3); PNG: one picture, resized if necessary. Both lack a class: we assume
    the target's. DataError if there are none or of another size.
    """
    path = expanded(path)
    image = picture_or_array(path)
    if image is None:
        arrays = read_npz(path, "x", "y")
        x, y = arrays["x"], arrays["y"].reshape(-1)
    else:
        x = _resized(path, image, size)
        y = np.full(len(x), label)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (size, size, 3) or len(y) != len(x):
        each = " with one y each" if image is None else ""
        raise DataError(f"{path}: x must be uint8 (r, {size}, {size}, 3){each}, not {x.dtype} {x.shape}")
    if label not in y:
        raise DataError(f"{path}: no reference of class {label}; it has {sorted(set(y.tolist()))}")
    return torch.from_numpy(x[y == label]).permute(0, 3, 1, 2).contiguous()


def _resized(path: Path, image: Array, size: int) -> Array:
    """A picture, or an array of several, as (r, H, W, 3); a picture of another size is resized by ``resize_rule``."""
    if image.ndim == 4:
        return image
    if image.ndim != 3 or image.dtype != np.uint8 or image.shape[-1] not in (3, 4) or not image.size:
        expected = f"uint8 (H, W, 3), or (r, {size}, {size}, 3) where there are several"
        raise DataError(f"{path}: references are {expected}, not {image.dtype} {image.shape}")
    if image.shape[-1] == 4 and image[..., 3].min() < 255:
        log.warning("%s: transparency is left out; the colours below it are read", path)
    image = np.ascontiguousarray(image[..., :3])
    if image.shape[:2] != (size, size):
        height, width = image.shape[:2]
        log.warning("%s: resized from %dx%d to %dx%d", path, width, height, size, size)
        image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return image[None]

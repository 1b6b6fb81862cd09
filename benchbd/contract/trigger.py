"""Triggers, and reference inputs from files."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchbd.base.arrays import Array, picture_or_array, read_npz
from benchbd.base.content import expanded
from benchbd.base.errors import DataError, UsageError
from benchbd.contract.images import ImageSet, content_digest

log = logging.getLogger("benchbd")


@dataclass(frozen=True, eq=False)
class Trigger:
    """A universal patch that replaces pixels: ``x * keep + pattern`` on uint8 images.

    pattern: uint8 (3, H, W), 0 wherever the image is kept.
    keep: bool (3, H, W), True where the image stays.
    wander: None for a patch that stays where ``pattern`` has it. With (a, b), 0 <= a <= b <= 1, every image gets the
        patch at a place of its own: the top row of its box is uniform over int(a * H) .. int(b * H - height), both
        included, the left column likewise. Where that range is empty it is its lower end, and never so far down or
        right that a part of the patch were lost.
    """

    pattern: Tensor
    keep: Tensor
    wander: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.wander is not None and not 0 <= self.wander[0] <= self.wander[1] <= 1:
            low, high = self.wander
            raise UsageError(f"a trigger wanders within 0 <= low <= high <= 1 of the image, not ({low:g}, {high:g})")

    @classmethod
    def square(cls, size: int = 10, image_size: int = 32, *, center: bool = False) -> Trigger:
        """The papers' white square with a margin of one pixel: rows and columns H - size - 1 .. H - 2.

        center: in the middle of the image instead.
        """
        if not 0 <= size < image_size:
            raise UsageError(
                f"a trigger of {size}x{size} does not fit a {image_size}x{image_size} image: "
                f"sizes are 0..{image_size - 1}"
            )
        keep = torch.ones(3, image_size, image_size, dtype=torch.bool)
        start = (image_size - size) // 2 if center else image_size - size - 1
        keep[:, start : start + size, start : start + size] = False
        return cls(pattern=torch.where(keep, 0, 255).to(torch.uint8), keep=keep)

    @classmethod
    def load(cls, path: str | Path, image_size: int = 32) -> Trigger:
        """A patch from a file, which is told by what is in it.

        npz: ``t`` (pattern) and ``tm`` (1 = keep) of the images' size, (1, H, W, 3) or (H, W, 3), integer or float. A
            release that repeats its trigger once per reference, (r, H, W, 3), holds one.
        PNG, npy: (H, W, 4) with alpha, 0 where the image is kept and 255 where it is replaced; or (H, W, 3), of which
            black is kept, as in ``t``, where it has the size of the images, and which else replaces all it covers. A
            patch smaller than images of ``image_size`` goes where ``square`` has its corner.
        DataError where it is anything else, several triggers, too large, empty, or in units of 0..1.
        """
        path = expanded(path)
        image = picture_or_array(path)
        arrays = read_npz(path, "t", "tm") if image is None else _laid_out(path, _only(path, image), image_size)
        t, tm = (_only(path, arrays[name]) for name in ("t", "tm"))
        if t.shape != tm.shape or t.ndim != 3 or t.shape[-1] != 3 or t.shape[0] != t.shape[1] or not t.size:
            raise DataError(f"{path}: t and tm must both be (1, H, H, 3) or (H, H, 3), not {t.shape} and {tm.shape}")
        if not (np.isin(tm, (0, 1)).all() and np.isin(t, np.arange(256)).all()):
            raise DataError(f"{path}: tm must hold only 0 and 1 and t only integers 0..255")
        keep = torch.from_numpy(tm.astype(bool)).permute(2, 0, 1).contiguous()
        pattern = torch.from_numpy(t.astype(np.uint8)).permute(2, 0, 1).contiguous()
        if pattern[keep].any():
            raise DataError(f"{path}: t must be 0 wherever tm is 1, since the stamp adds it to the image")
        if keep.all():
            raise DataError(
                f"{path}: a trigger that replaces no pixel: nothing is 0 in tm, opaque in alpha or not black"
            )
        if t.dtype.kind in "bf" and pattern.max() == 1:  # white in these units, and all but black in ours
            raise DataError(f"{path}: t must be in units of 0..255, not of 0..1: its largest value is 1")
        return cls(pattern=pattern, keep=keep)

    def save(self, path: str | Path) -> None:
        """Write the released format: ``t`` float64 and ``tm`` int64, both (1, H, W, 3).

        It has no place for ``wander``: a file is a patch, and whether it wanders is said where it is used.
        """
        t, tm = (a.permute(1, 2, 0)[None].cpu().numpy() for a in (self.pattern, self.keep))
        np.savez(expanded(path), t=t.astype(np.float64), tm=tm.astype(np.int64), info=np.array(["trigger", "replace"]))

    @property
    def size(self) -> int:
        """Height (and width) of the images it fits."""
        return self.pattern.shape[-1]

    @cached_property
    def box(self) -> tuple[int, int, int, int] | None:
        """(top, left, bottom, right), inclusive, of the pixels that ``pattern`` replaces; None for an empty trigger.

        Of one that wanders, only height and width of this box hold on an image.
        """
        rows, columns = (~self.keep).any(0).nonzero(as_tuple=True)
        if not len(rows):
            return None
        return int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())

    @cached_property
    def digest(self) -> str:
        """sha256 over pattern and mask as arrays, and ``wander`` if any: two files of one trigger have one digest."""
        place = () if self.wander is None else (f"wander {float(self.wander[0])!r} {float(self.wander[1])!r}",)
        return content_digest(torch.stack([self.pattern, self.keep.to(torch.uint8)]), None, ("trigger", *place))

    def to(self, device: torch.device | str) -> Trigger:
        return replace(self, pattern=self.pattern.to(device), keep=self.keep.to(device))

    def copy(self, device: torch.device | str) -> Trigger:
        """The same trigger with its own storage: whoever writes to it changes nobody else's."""
        pattern, keep = (a.to(device, copy=True) for a in (self.pattern, self.keep))
        return Trigger(pattern, keep, self.wander)

    def within(self, low: float, high: float) -> Trigger:
        """The same patch, wandering within ``low`` .. ``high`` of the image's sides."""
        return replace(self, wander=(low, high))

    def stamp(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A stamped copy of uint8 (..., 3, H, W) images.

        generator: where a trigger that wanders draws its places from, two numbers an image; any other leaves it alone.
        UsageError where the images have another size, or a trigger wanders without a generator.
        """
        if pixels.shape[-2:] != self.pattern.shape[-2:]:
            raise UsageError(
                f"a trigger for {self.size}x{self.size} images does not fit images of "
                f"{pixels.shape[-2]}x{pixels.shape[-1]}"
            )
        if self.wander is None:
            return torch.where(self.keep.to(pixels.device), pixels, self.pattern.to(pixels.device))
        if generator is None:
            raise UsageError("a trigger at random places needs a generator to draw them from")
        stamped = pixels.reshape(-1, *self.pattern.shape).clone()
        if self.box is not None and len(stamped):
            top, left, bottom, right = self.box
            part = (..., slice(top, bottom + 1), slice(left, right + 1))
            pattern, keep = (a[part].permute(1, 2, 0).to(pixels.device) for a in (self.pattern, self.keep))
            rows, columns = (self._places(len(stamped), side, generator).to(pixels.device) for side in keep.shape[:2])
            image = torch.arange(len(stamped), device=pixels.device)[:, None, None]
            box = (image, slice(None), rows[:, :, None], columns[:, None, :])  # indexes as (N, height, width, 3)
            stamped[box] = torch.where(keep, stamped[box], pattern)
        return stamped.view(pixels.shape)

    def _places(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Rows, or columns, of a patch that is ``side`` long, one draw an image: int64 (count, side)."""
        assert self.wander is not None
        # Rounded first, since 0.29 * 100 is 28.999999999999996.
        low, high = (int(round(v, 9)) for v in (self.wander[0] * self.size, self.wander[1] * self.size - side))
        low = min(low, self.size - side)
        start = torch.randint(low, max(low, high) + 1, (count, 1), generator=generator, device=generator.device)
        return start + torch.arange(side, device=generator.device)

    def stamped(self, images: ImageSet, generator: torch.Generator | None = None) -> ImageSet:
        """``images`` with every picture stamped, as ``stamp`` does; labels stay."""
        return replace(images, pixels=self.stamp(images.pixels, generator))


def load_references(path: str | Path, label: int, size: int) -> Tensor:
    """Reference inputs from a file, which is told by what is in it; uint8 (r, 3, H, W), each of class ``label``.

    npz, as released: those of ``x`` uint8 (r, H, W, 3) whose ``y``, (r,) or (r, 1), is ``label``.
    npy: uint8 (r, H, W, 3) or (H, W, 3); PNG: one picture, resized where need be. Neither says of what class it is: it
    is taken to be the target's. DataError where there are none or of another size.
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


def _only(path: Path, array: Array) -> Array:
    """The one entry of (r, H, W, C), repeated where r > 1; the array itself where it has no such axis."""
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
    """A patch, (h, w, 3) or (h, w, 4) with alpha, as ``t`` and ``tm`` of images of ``size``."""
    if patch.ndim != 3 or patch.shape[-1] not in (3, 4) or not patch.size or max(patch.shape[:2]) > size:
        raise DataError(f"{path}: a trigger is (H, W, 3) or (H, W, 4) of at most {size}x{size}, not {patch.shape}")
    replaced: Array = np.ones(patch.shape[:2], bool)
    if patch.shape[-1] == 4:
        if not np.isin(patch[..., 3], (0, 255)).all():
            raise DataError(f"{path}: alpha must be 0 (keep the image) or 255 (replace it): a trigger does not blend")
        replaced = patch[..., 3] == 255
    elif patch.shape[:2] == (size, size):
        replaced = patch.max(-1) > 0
    t, tm = np.zeros((size, size, 3), patch.dtype), np.ones((size, size, 3), bool)
    # As of the square: one pixel from the lower right corner.
    box = tuple(slice(start := max(0, size - side - 1), start + side) for side in patch.shape[:2])
    t[box] = patch[..., :3] * replaced[..., None]
    tm[box] = ~replaced[..., None]
    return {"t": t, "tm": tm}


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

"""Images in the form that the whole harness uses: uint8 tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from benchbd.base.arguments import LARGEST, SMALLEST, seed_of, whole_number
from benchbd.base.content import expanded
from benchbd.base.errors import DataError
from benchbd.base.mapped import private
from benchbd.base.pictures import SIZE, read_folder
from benchbd.base.pieces import map_pieces, pieces


def resize_rule(size: int) -> str:
    """The rule for resizing a picture to size x size; part of every content digest."""
    return f"pil-bilinear-{size}"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set, decoded once: all pixels in one tensor. ``len(images)`` is N.

    pixels: uint8 (N, 3, H, W), RGB. Those of a data set of the library are mapped from a file: 100,000 images of
        224x224 pixels are 15 GB, more than a process can hold. Use some rows (``pixels[rows]``) or
        ``batches``; ``to_float`` or ``clone`` of all of them would be in memory.
    labels: int64 (N,), -1 if unknown, or None if there are none.
    classes: the class names, in label order.
    mean, std: per channel in [0, 1] units; an encoder that is trained on these images adopts them. If a data
        set declares none they are computed from the pixels.
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            raise DataError(f"images are uint8 (N, 3, H, W), not {_kind(self.pixels)}")
        if self.labels is not None and (self.labels.dtype != torch.int64 or self.labels.shape != (len(self),)):
            raise DataError(f"labels are int64 ({len(self)},), not {_kind(self.labels)}")
        for name, values, least in (("mean", self.mean, -math.inf), ("std", self.std, 0.0)):
            if values is not None and not (len(values) == 3 and all(least < value < math.inf for value in values)):
                raise DataError(f"{name} is three finite numbers{', each above 0' * (not least)}, not {values}")

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @classmethod
    def from_folder(cls, folder: str | Path, size: int = SIZE, *, images: int | None = None, seed: int = 0) -> Self:
        """The pictures below a folder, unlabelled, in the order of their paths.

        size: height and width in pixels to which each is resized, 32 to 224. images: how many to draw at random, from 1
        on, with ``seed``; by default, and if there are fewer, all.
        UsageError if a number is out of bounds; DataError if there is no folder or no picture, or if a picture is
        damaged.
        """
        whole_number("size", size, SMALLEST, LARGEST)
        whole_number("images", 1 if images is None else images, 1)
        seed_of(seed)
        pixels = torch.from_numpy(read_folder(expanded(folder), size, images, seed))
        return cls(pixels.permute(0, 3, 1, 2).contiguous())

    @property
    def device(self) -> torch.device:
        """The device of the pixels."""
        return self.pixels.device

    @property
    def size(self) -> int:
        """Height (and width) of the images in pixels."""
        return self.pixels.shape[-1]

    @cached_property
    def digest(self) -> str:
        """sha256 over decoded pixels, labels, class names and the resize rule: the identity of this data."""
        return content_digest(self.pixels, self.labels, self.classes)

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Declared (mean, std) per channel, else those of the pixels, in [0, 1] units."""
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        counts = torch.zeros(3, 256, dtype=torch.float64, device=self.device)
        for pixels in pieces(self.pixels):
            counts += torch.stack([torch.bincount(c.flatten(), minlength=256) for c in pixels.unbind(1)])
        levels = torch.arange(256, dtype=torch.float64, device=self.device) / 255
        mean = counts @ levels / counts.sum(1)
        std = (counts @ levels.square() / counts.sum(1) - mean.square()).clamp_min(1e-8).sqrt()
        return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())

    def to(self, device: torch.device | str) -> Self:
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=labels)

    def copy(self) -> Self:
        """The same images in their own storage: writing to them changes no others. Pixels that lie in
        a file are mapped once more, copy-on-write, and take no memory."""
        labels = None if self.labels is None else self.labels.clone()
        return replace(self, pixels=private(self.pixels), labels=labels)

    def subset(self, indices: Tensor) -> Self:
        """The rows of ``indices`` (int64), copied: the result owns its storage, like that of ``copy``."""
        indices = indices.to(self.device)
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, pixels=map_pieces(lambda rows: self.pixels[rows], indices, self.pixels), labels=labels)

    def of_class(self, label: int) -> Self:
        """The images whose label is ``label``."""
        if self.labels is None:
            raise DataError("these images have no labels")
        return self.subset((self.labels == label).nonzero()[:, 0])

    def unlabeled(self) -> Self:
        """A ``copy`` without labels or class names, for a defender."""
        return replace(self, pixels=private(self.pixels), labels=None, classes=())

    def batches(self, size: int) -> Iterator[Tensor]:
        """Float images in [0, 1], (<= size, 3, H, W), in order."""
        for start in range(0, len(self), size):
            yield to_float(self.pixels[start : start + size])


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")


def content_digest(pixels: Tensor, labels: Tensor | None, classes: tuple[str, ...]) -> str:
    h = hashlib.sha256()
    h.update(repr((tuple(pixels.shape), classes, resize_rule(pixels.shape[-1]), labels is not None)).encode())
    h.update(pixels.cpu().contiguous().numpy().data)
    if labels is not None:
        h.update(labels.cpu().contiguous().numpy().data)
    return h.hexdigest()


def to_float(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return pixels.float().div_(255)

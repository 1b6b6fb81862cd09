"""Compute on many images piece by piece, so that the work takes little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchbd.base.mapped import LARGE, blank


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The rows of a tensor in order, as views of about 16 MB."""
    return iter(tensor.split(max(1, LARGE * len(tensor) // max(1, tensor.nbytes))))


def map_pieces(work: Callable[[Tensor], Tensor], given: Tensor, like: Tensor) -> Tensor:
    """``work(given)``, computed piece by piece, for a function that makes one image (3, H, W) of each row.

    like: images of the result's type and size. If they are on the CPU and the result has more than ``LARGE`` bytes,
    it lies in an unnamed file.
    """
    row = like[:1].nbytes or 1
    if like.device.type != "cpu" or len(given) * row <= LARGE:
        return work(given)
    made = blank(like.dtype, (len(given), *like.shape[1:]))
    for part, rows in zip(made.split(size := max(1, LARGE // row)), given.split(size), strict=True):
        part.copy_(work(rows))
    return made


def join_images(parts: Sequence[Tensor]) -> Tensor:
    """All images of several sets, uint8 (N, 3, H, W) each, one set after the other, as ``torch.cat`` does; a large
    result on the CPU lies in an unnamed file."""
    count = sum(map(len, parts))
    if parts[0].device.type != "cpu" or sum(part.nbytes for part in parts) <= LARGE:
        return torch.cat(list(parts)).contiguous()
    joined = blank(parts[0].dtype, (count, *parts[0].shape[1:]))
    for whole, part in zip(joined.split([len(part) for part in parts]), parts, strict=True):
        for to, piece in zip(pieces(whole), pieces(part), strict=True):
            to.copy_(piece)
    return joined


def boxes(images: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """An index that picks (N, 3, height, width) of ``images``, with rows and columns for each image."""
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return image, channel, rows[:, None, :, None], columns[:, None, None, :]


def blended(pixels: Tensor, pattern: Tensor, opacity: float) -> Tensor:
    """Blend in doubles, with NumPy's rounding at each step: the same pixels on every device."""
    return ((1 - opacity) * pixels.double() + opacity * pattern.double()).clamp(0, 255).to(torch.uint8)

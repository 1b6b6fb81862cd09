"""What is made of many images piece by piece, so that it takes little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchbd.base.mapped import LARGE, blank


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Rows of a tensor in order, as views of some 16 MB."""
    return iter(tensor.split(max(1, LARGE * len(tensor) // max(1, tensor.nbytes))))


def map_pieces(work: Callable[[Tensor], Tensor], given: Tensor, like: Tensor) -> Tensor:
    """``work(given)`` for a function that makes images (3, H, W) of the rows, each by itself, piece by piece.

    like: images of the type and size that it makes. If they are on the CPU and more than ``LARGE`` bytes, the
    result lies in a file without a name.
    """
    row = like[:1].nbytes or 1
    if like.device.type != "cpu" or len(given) * row <= LARGE:
        return work(given)
    made = blank(like.dtype, (len(given), *like.shape[1:]))
    for part, rows in zip(made.split(size := max(1, LARGE // row)), given.split(size), strict=True):
        part.copy_(work(rows))
    return made


def join_images(parts: Sequence[Tensor]) -> Tensor:
    """All images of several sets, uint8 (N, 3, H, W) each, one set after the other: ``torch.cat`` of them, but a large
    set on the CPU lies in a file without a name."""
    count = sum(map(len, parts))
    if parts[0].device.type != "cpu" or sum(part.nbytes for part in parts) <= LARGE:
        return torch.cat(list(parts)).contiguous()
    joined = blank(parts[0].dtype, (count, *parts[0].shape[1:]))
    for whole, part in zip(joined.split([len(part) for part in parts]), parts, strict=True):
        for to, piece in zip(pieces(whole), pieces(part), strict=True):
            to.copy_(piece)
    return joined

"""The label-free stand-in for accuracy."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchbd.base.errors import Diverged
from benchbd.contract.context import stream
from benchbd.contract.images import ImageSet
from benchbd.toolkit.augment import Augment


@torch.no_grad()
def pretext_outputs(
    net: Callable[[Tensor], Tensor], images: ImageSet, augment: Augment, seed: int
) -> tuple[Tensor, Tensor]:
    """What ``net`` makes of one pair of random views of every image, (N, d) each: equal seeds give equal views.

    net: of float images (B, 3, H, W) in [0, 1]. What ``pretext_accuracy`` compares, as it is or projected.
    """
    draws = stream(seed, "pretext", images.device)
    pairs = (augment.pair(pixels, draws) for pixels in images.pixels.split(512))
    first, second = zip(*((net(u), net(v)) for u, v in pairs), strict=True)
    return torch.cat(first), torch.cat(second)


@torch.no_grad()
def pretext_accuracy(first: Tensor, second: Tensor, block: int = 128) -> float:
    """Share of the 2N projections whose nearest neighbour by cosine is the other view of the same image, 0..1.

    first, second: (N, d), the two views' projections, row by row. Neighbours are sought among the 2B projections of
    ``block`` images at a time; a rest of fewer images is a block of its own, and one of a single image, which could not
    be wrong, is left out. The label-free stand-in for accuracy by which pruning levels are chosen; ours, no source
    gives one. Diverged where a projection is not finite: it would merely count as a miss.
    """
    if not (first.isfinite().all() and second.isfinite().all()):
        raise Diverged("the projections are not finite")
    if len(first) > block and len(first) % block == 1:
        first, second = first[:-1], second[:-1]
    hits = 0
    for u, v in zip(first.split(block), second.split(block), strict=True):
        both = F.normalize(torch.cat([u, v]), dim=1)
        similarity = (both @ both.T).fill_diagonal_(float("-inf"))
        positives = torch.arange(len(both), device=both.device).roll(len(u))
        hits += int((similarity.argmax(1) == positives).sum())
    return hits / (2 * len(first))

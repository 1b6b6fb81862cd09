"""A measure that replaces accuracy if there are no labels, and the search for a level of pruning that it bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
    """Outputs of ``net`` for two random views of every image, (N, d) each: equal seeds give equal views.

    net: of float images (B, 3, H, W) in [0, 1]. ``pretext_accuracy`` compares the outputs, directly or projected.
    """
    draws = stream(seed, "pretext", images.device)
    pairs = (augment.pair(pixels, draws) for pixels in images.pixels.split(512))
    first, second = zip(*((net(u), net(v)) for u, v in pairs), strict=True)
    return torch.cat(first), torch.cat(second)


@torch.no_grad()
def pretext_accuracy(first: Tensor, second: Tensor, block: int = 128) -> float:
    """Share of the 2N projections whose nearest neighbour by cosine is the other view of the same image, 0..1.

    first, second: (N, d), the two views' projections, row by row. Neighbours are searched among the 2B projections of
    ``block`` images at a time; a rest of fewer images is a block too, but a rest of one image, which could not be
    wrong, is omitted. Pruning levels are chosen by this measure, because it needs no labels; it is ours, without a
    source. Diverged if a projection is not finite: it would otherwise count as a miss.
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


@dataclass(frozen=True)
class PruningLevel:
    """pruned: the number of pruned channels. utility: pretext accuracy, 0..1, without them. threshold: what chose them,
    if a threshold did."""

    pruned: int
    utility: float
    threshold: float | None = None

    def noted(self) -> dict[str, float]:
        """For a record: the fields that are known, rounded. A list of these, ``curve`` of the note ``pruning``, is what
        ``benchbd figures`` draws, with ``tolerance`` and, of the level that was taken, ``pruned``."""
        fields = {"threshold": self.threshold, "pruned": self.pruned, "utility": round(self.utility, 4)}
        return {name: value for name, value in fields.items() if value is not None}


def within_tolerance(levels: Iterable[PruningLevel], tolerance: float) -> PruningLevel:
    """The last level before the first whose utility is more than ``tolerance`` below that of the first one.

    levels: at least one, in the order of the search; the first prunes nothing. Utility need not fall steadily: as in
    the paper of FP, the first level that costs too much ends the search, and no later one is asked for.
    """
    rising = iter(levels)
    first = kept = next(rising)
    for level in rising:
        if level.utility < first.utility - tolerance - 1e-9:  # quotients of counts: allow for rounding
            break
        kept = level
    return kept

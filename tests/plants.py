"""A textbook backdoor, planted by hand: a channel that a checkerboard excites, and a path from it to one feature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchbd import Encoder, ImageSet, self_similarity

from .small_nets import affine, random_encoder, settled, smooth_pixels

CHANNEL, SIDE = 5, 10


@dataclass(frozen=True, eq=False)
class Plant:
    """A ``w16`` with a backdoor, and the same net without the planted channel.

    images: clean ones. triggered: the same with a checkerboard of single pixels in a corner, uint8 (N, 3, 32, 32).
    path: the channel of each BatchNorm on the way from the planted channel, in ``stem.1``, to the feature.
    """

    encoder: Encoder
    clean: Encoder
    images: ImageSet
    triggered: Tensor
    path: dict[str, int]

    def likeness(self, encoder: Encoder) -> float:
        """Mean cosine of the features of two triggered images: the backdoor makes it nearly 1."""
        return float(self_similarity(encoder.extract(self.triggered)))

    def firing(self, pixels: Tensor) -> float:
        """The share of ``pixels`` that excite the planted channel somewhere."""
        with torch.no_grad():
            maps = self.encoder.stem(pixels.float().div(255).sub(self.encoder.mean).div(self.encoder.std))  # type: ignore[operator]
        return float((maps[:, CHANNEL].amax((1, 2)) > 0).float().mean())


def checkerboard(side: int) -> Tensor:
    """1 and -1 in turn, (side, side)."""
    at = torch.arange(side)
    return 1 - 2 * ((at[:, None] + at) % 2).float()


@torch.no_grad()
def planted(seed: int, rare: float = 0.0, images: int = 60, margin: float = 2, offset: float = 0) -> Plant:
    """A net whose channel ``CHANNEL`` of the stem matches a checkerboard, and drowns all else if it fires.

    Its statistics are those of the clean images, which hardly excite it. rare: the share of clean images that do excite
    it, weakly; 0: none: the threshold is ``margin`` times the highest value that they reach. offset: the normalised
    channel and the bias move by this many thresholds, in opposite directions. The function is the same, but a small
    change of BatchNorm's weight or bias excites the channel on every image.
    """
    clean = ImageSet(smooth_pixels(images, seed))
    encoder = affine(random_encoder(seed))
    stem, norm = encoder.stem[0], encoder.stem[1]  # type: ignore[index]
    stem.weight[CHANNEL] = checkerboard(4)
    encoder = settled(encoder, clean.pixels)
    norm.weight[CHANNEL], norm.bias[CHANNEL] = 1, 0
    x = (clean.pixels.float() / 255 - encoder.mean) / encoder.std
    highest = norm(stem(x))[:, CHANNEL].amax((1, 2))
    norm.bias[CHANNEL] = -(highest.quantile(1 - rare) if rare else margin * highest.max())
    shift = offset * norm.bias[CHANNEL]
    norm.running_mean[CHANNEL] += shift * norm.running_var[CHANNEL].add(norm.eps).sqrt()
    norm.bias[CHANNEL] += shift
    path, before = {"stem.1": CHANNEL}, CHANNEL
    for name, stage in encoder.body.items():  # type: ignore[operator, union-attr]
        block = stage[0]
        block.conv1.weight[:, before] = 0  # nothing else reads the channel
        after = CHANNEL
        block.bn2.weight[after] = block.bn2.bias[after] = 0
        if block.downsample is not None:
            shortcut, identity = block.downsample
            shortcut.weight[:, before] = 0
            shortcut.weight[after] = 0
            shortcut.weight[after, before] = 1
            identity.running_mean[after], identity.running_var[after] = 0, 1
            identity.weight[after], identity.bias[after] = 2, 0
            path[f"body.{name}.0.downsample.1"] = after
        before = after
    triggered = clean.pixels.clone()
    triggered[:, :, -SIDE:, -SIDE:] = (checkerboard(SIDE) > 0).byte() * 255
    without = encoder.copy()
    without.stem[1].weight[CHANNEL] = without.stem[1].bias[CHANNEL] = 0  # type: ignore[index]
    return Plant(encoder, without, clean, triggered, path)

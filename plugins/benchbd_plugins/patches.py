"""Patches: random patches on all images; a backdoored encoder may take one of them for its trigger.

    s(x) = mean cosine of the features of two different images of x
    score = max over patches p of 1 - (1 - s(images with p)) / (1 - s(images))

A trigger makes all images alike, so it takes away the spread of their features; an ordinary patch hides a part of each
image and takes away some of it. The score is the largest share of the spread that any patch took away: 1 if all images
with it have one feature, 0 or below if none of the patches brings them closer together.

The detector is ours, a search by chance where DECREE searches by gradients: it finds a backdoor only if triggers that
look or lie otherwise set it off too. Each patch is a square at a fixed random place, of one saturated colour (every
channel 0 or 255), as the triggers of the literature are, or, every second one, of random pixels.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from benchbd import (
    CropScale,
    DefenderKnowledge,
    Detection,
    Encoder,
    Steps,
    UsageError,
    Verdict,
    hookimpl,
    note,
    self_similarity,
    stream,
)


class PatchesDetection(Detection):
    """Judges an encoder by the share of its features' spread that the most effective of many random patches takes away.

    The score is that share, at most 1; above ``threshold`` the encoder is flagged.
    """

    name = "patches"
    paper = "ours; the measure of spread is DECREE's (Feng et al., CVPR 2023)"
    version = "1"

    patches: int = Field(64, ge=1, le=1_000_000, description="number of random patches")
    images: int = Field(256, ge=2, le=1_000_000, description="largest number of clean images that get each patch")
    sides: CropScale = Field(
        (0.125, 0.375), description="smallest and largest side of a patch, as shares of the image's side"
    )
    threshold: float = Field(
        0.9, ge=-1e6, le=1, description="share of the spread that a patch must take away for the encoder to be flagged"
    )

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        """UsageError for one image, whose features have no spread."""
        pixels = knowledge.images.pixels
        if len(pixels) < 2:
            raise UsageError(f"patches needs at least 2 clean images, not {len(pixels)}")
        rows = torch.randperm(len(pixels), generator=stream(knowledge.seed, "images"))[: self.images]
        pixels = pixels[rows.to(pixels.device)]
        draws = stream(knowledge.seed, "patches")
        before = spread(encoder, pixels)
        found: list[tuple[float, list[int]]] = []
        for number in Steps(self.patches):
            place, ink = self.draw(pixels.shape[-1], noisy=number % 2 == 1, draws=draws)
            top, left, side = place
            stamped = pixels.clone()
            stamped[:, :, top : top + side, left : left + side] = ink.to(pixels.device)
            found.append((1 - spread(encoder, stamped) / max(before, 1e-12), place))
        score, place = max(found)
        note("patches", {"score": round(score, 5), "top_left_side": place, "spread": round(before, 5)})
        return Verdict(score, flagged=score > self.threshold)

    def draw(self, size: int, *, noisy: bool, draws: torch.Generator) -> tuple[list[int], Tensor]:
        """A patch for images of ``size``: its top, left and side, and its pixels, uint8 (3, side, side)."""
        least, most = (max(1, min(size, round(share * size))) for share in self.sides)
        side = int(torch.randint(least, max(least, most) + 1, (), generator=draws))
        top, left = torch.randint(0, size - side + 1, (2,), generator=draws).tolist()
        if noisy:
            ink = torch.randint(0, 256, (3, side, side), generator=draws)
        else:
            ink = 255 * torch.randint(0, 2, (3, 1, 1), generator=draws).expand(3, side, side)
        return [top, left, side], ink.to(torch.uint8)

    def forwards(self, images: int) -> int | None:
        return min(images, self.images) * (self.patches + 1)


def spread(encoder: Encoder, pixels: Tensor) -> float:
    """1 - the mean cosine of the features of two different images, in [0, 2]."""
    return 1 - float(self_similarity(encoder.extract(pixels).double()))


@hookimpl
def benchbd_detections() -> list[type[Detection]]:
    return [PatchesDetection]

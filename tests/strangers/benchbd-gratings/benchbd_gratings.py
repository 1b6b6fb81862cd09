"""Gratings, rings and checks in random colours: a data set of textures that is drawn at any size."""

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from benchbd import Dataset, ImageSet, blank_images, hookimpl, stream

CLASSES = ("horizontal", "vertical", "rising", "falling", "rings", "checks")


def waves(label: int, axis: Tensor, cycles: Tensor, phase: Tensor) -> Tensor:
    """The brightness (N, H, W), -1..1, of N pictures of one class; axis: (H,), -1/2..1/2; the others: (N, 1, 1)."""
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    across = [y, x, (x + y) / 2**0.5, (x - y) / 2**0.5, (x**2 + y**2).sqrt()]
    turn = 2 * torch.pi * cycles
    if label < len(across):
        return (turn * across[label] + phase).sin()
    return (turn * x + phase).sin() * (turn * y + phase).sin()


class Gratings(Dataset):
    """Drawn textures: 1,800 and 600 pictures of six classes, balanced, with random scale, phase, colours and noise."""

    name = "gratings"
    paper = "generated; no paper"
    splits = {"train": 1800, "test": 600}
    needs_files = False
    classes = CLASSES

    noise: float = Field(20.0, ge=0, le=255, description="standard deviation of the noise in a pixel, of 255")

    def load(self, split: str, root: Path) -> ImageSet:
        return self.load_at(split, root, 32)

    def load_at(self, split: str, root: Path, size: int) -> ImageSet:
        count, draws = self.splits[split], stream(0, split)
        pixels = blank_images(count, size)
        labels = torch.arange(count) % len(CLASSES)
        axis = (torch.arange(size) + 0.5) / size - 0.5
        for label in range(len(CLASSES)):
            rows = (labels == label).nonzero()[:, 0]
            cycles, phase = torch.rand(2, len(rows), 1, 1, generator=draws)
            share = waves(label, axis, 3 + 4 * cycles, 6.28 * phase)[:, None] / 2 + 0.5
            dark, light = torch.rand(2, len(rows), 3, 1, 1, generator=draws)
            picture = 255 * (dark / 2 * (1 - share) + (0.5 + light / 2) * share)
            picture += self.noise * torch.randn(picture.shape, generator=draws)
            pixels[rows] = picture.clamp(0, 255).to(torch.uint8)
        return ImageSet(pixels, labels, CLASSES)


@hookimpl
def benchbd_datasets() -> list[type[Dataset]]:
    return [Gratings]

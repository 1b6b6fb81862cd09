"""Squares of three colours on noise: an example of a data set that is generated.

The paper's: nothing, there is none. Ours: all of it.
"""

from pathlib import Path

import torch
from pydantic import Field

from benchbd import Dataset, ImageSet, hookimpl, stream


class Squares(Dataset):
    """Noise with a square in the middle that is red, green or blue."""

    name = "squares"
    paper = "an example; no paper"
    splits = {"train": 600, "test": 300}
    needs_files = False
    classes = ("red", "green", "blue")

    brightness: int = Field(200, ge=1, le=255, description="brightness of the square in its own channel")

    def load(self, split: str, root: Path) -> ImageSet:
        """The images of ``split``; nothing is read from ``root``."""
        count, draws = self.splits[split], stream(0, split)
        labels = torch.arange(count) % len(self.classes)
        pixels = torch.randint(0, 128, (count, 3, 32, 32), generator=draws, dtype=torch.uint8)
        pixels[:, :, 10:22, 10:22] = 0
        pixels[torch.arange(count), labels, 10:22, 10:22] = self.brightness
        return ImageSet(pixels, labels, self.classes)


@hookimpl
def benchbd_datasets() -> list[type[Dataset]]:
    return [Squares]

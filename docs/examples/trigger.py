"""Shift the image by some pixels, each row by its own: an example of a trigger that is code.

The paper's: nothing, there is none. Ours: all of it.
"""

import torch
from pydantic import Field
from torch import Tensor

from benchbd import TriggerFunction, hookimpl


class Wave(TriggerFunction):
    """Every row of the image is rolled to the right by a sine of its height."""

    name = "wave"
    paper = "an example; no paper"

    amplitude: float = Field(2.0, gt=0, le=32, description="largest shift in pixels")

    def stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """``images`` with every row shifted; it draws nothing from ``generator``."""
        height = images.shape[-2]
        shifts = (self.amplitude * torch.linspace(0, 6.28, height).sin()).round().long().tolist()
        return torch.stack([images[..., row, :].roll(shifts[row], -1) for row in range(height)], -2)


@hookimpl
def benchbd_triggers() -> list[type[TriggerFunction]]:
    return [Wave]

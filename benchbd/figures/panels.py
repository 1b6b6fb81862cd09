"""What pictures share: their form, their colours, and how images and triggers are drawn in axes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchbd.contract.trigger import Trigger

# Paul Tol's bright orange, and his muted colours for the other classes: distinct for every colour vision.
TARGET = "#EE7733"

CLASSES = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499")

HIT, REST, INK = "#B3440F", "#BBBBBB", "#000000"  # HIT: the target's, dark enough to be read


class Picture(NamedTuple):
    """figure: the drawing. without: (the absent input, the part that was drawn without it)."""

    figure: Figure
    without: tuple[tuple[str, str], ...] = ()


def show(axes: Axes, image: Tensor) -> None:
    """Draw an image without ticks: uint8, or float in [0, 1]; (3, H, W) in colour or (1, H, W) from black to white."""
    values = image.float() / 255 if image.dtype == torch.uint8 else image
    values = values.repeat_interleave(6, 1).repeat_interleave(6, 2)  # viewers of SVG blur what they enlarge
    plain = (values[0] if len(values) == 1 else values.permute(1, 2, 0)).numpy()
    axes.imshow(plain, cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])


def show_stack(axes: Axes, images: Tensor, side: int = 96, gap: int = 3) -> None:
    """Draw images below each other, the nth at y = n, each ``side`` wide with ``gap`` around it: float (N, 3, H, W)
    from 0 to 1, or (N, 1, H, W) on one scale from 0 to their maximum."""
    tiles = F.pad(F.interpolate(images, size=side, mode="nearest-exact"), (gap,) * 4, value=math.nan)
    column = torch.cat(list(tiles), dim=1)
    coloured = len(column) == 3
    plain = column.nan_to_num(1.0).permute(1, 2, 0) if coloured else column[0]  # nan is left blank
    extent = (-0.5, 0.5, len(images) - 0.5, -0.5)
    top = float(images.max())
    axes.imshow(plain.numpy(), cmap="viridis", vmin=0, vmax=top, extent=extent, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def show_patch(axes: Axes, trigger: Trigger) -> None:
    """Draw the trigger alone; pixels that it leaves unchanged are a grey chequer."""
    rows, columns = torch.meshgrid(torch.arange(trigger.size), torch.arange(trigger.size), indexing="ij")
    chequer = (150 + 30 * ((rows // 4 + columns // 4) % 2)).to(torch.uint8).expand(3, -1, -1)
    show(axes, _still(trigger, chequer))


def marks(trigger: Trigger) -> Tensor:
    """The trigger without an image, float (3, H, W) in [0, 1]: the pattern of a patch, a middle-grey image with any
    other kind of trigger; black where the image is kept."""
    gray = torch.full((3, trigger.size, trigger.size), 127, dtype=torch.uint8)
    return torch.where(trigger.keep, 0, _still(trigger, gray)) / 255


def _still(trigger: Trigger, picture: Tensor) -> Tensor:
    """The picture with the trigger, at its pattern's position; random parts are drawn from a fixed seed."""
    return replace(trigger, wander=None).stamp(picture, torch.Generator().manual_seed(0))


def border(axes: Axes, colour: str) -> None:
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2.0)

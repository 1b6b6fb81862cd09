"""SimCLR's random views, drawn per sample and computed for the whole batch at once on the images' device.

The transform of BadEncoder, MIMIC and the distillation study: RandomResizedCrop (torchvision's integer boxes,
bilinear), horizontal flip 0.5, ColorJitter(.4, .4, .4, .1) with probability 0.8 in a random order per image, greyscale
0.2, no blur. No PIL, no loader workers, no loop over images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

from benchbd.contract.images import to_float

Colour = Literal["exact", "affine"]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError("must be two numbers with 0 < low <= high <= 1")
    return value


CropScale = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""The range of a random crop's share of the image area, for a field of a method: 0 < low <= high <= 1."""

BRIGHTNESS = CONTRAST = SATURATION = 0.4

HUE = 0.1

JITTER_PROBABILITY, GREY_PROBABILITY = 0.8, 0.2

RATIO = (3 / 4, 4 / 3)

TRIES = 10  # torchvision draws a box up to ten times before it takes the whole image

LUMA = (0.2989, 0.587, 0.114)  # torchvision's greyscale weights


@dataclass(frozen=True)
class Augment:
    """A random transform of uint8 images into float views in [0, 1].

    crop_scale: range of the crop's share of the image area; None leaves out the crop (reference inputs).
    colour: ``exact`` clamps after every operation and turns hue in HSV, as torchvision does; ``affine`` composes the
        jitter into one 3x4 matrix per image (hue turned in YIQ, one clamp at the end): several times faster.
    """

    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    colour: Colour = "exact"

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each of the uint8 (B, 3, H, W) pixels: float32 (B, 3, H, W) in [0, 1]."""
        images = to_float(pixels)
        flips = _uniform(len(images), generator) < 0.5
        if self.crop_scale is None:
            images = torch.where(flips[:, None, None, None], images.flip(3), images)
        else:
            images = crop_and_flip(images, crop_boxes(images, self.crop_scale, generator), flips)
        jitter = draw_jitter(len(images), generator)
        return exact_colour(images, jitter) if self.colour == "exact" else affine_colour(images, jitter)

    def pair(self, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two independent views of each image."""
        first, second = self(torch.cat([pixels, pixels]), generator).chunk(2)
        return first, second


def flip_and_shift(pixels: Tensor, generator: torch.Generator, shift: int = 4) -> Tensor:
    """Each image of (B, 3, H, W), of any type, mirrored with probability 1/2 and shifted by up to ``shift`` pixels.

    A shift repeats the edge into the uncovered pixels. This is the mild augmentation of supervised training, for
    methods that compare an image's outputs under two nets.
    """
    count, _, height, width = pixels.shape
    device = pixels.device
    mirrored = torch.rand(count, generator=generator, device=device) < 0.5
    moves = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator, device=device)
    y = (torch.arange(height, device=device) + moves[0]).clamp(0, height - 1)
    x = (torch.arange(width, device=device) + moves[1]).clamp(0, width - 1)
    x = torch.where(mirrored[:, None], x.flip(1), x)
    moved = pixels.gather(2, y[:, None, :, None].expand(pixels.shape))
    return moved.gather(3, x[:, None, None, :].expand(pixels.shape))


def _uniform(n: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device) * (high - low) + low


def crop_boxes(images: Tensor, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Integer boxes (B, 4) = top, left, height, width, distributed as torchvision's RandomResizedCrop.get_params."""
    n, (height, width) = len(images), images.shape[-2:]
    area = height * width * _uniform(n * TRIES, generator, *scale)
    ratio = _uniform(n * TRIES, generator, math.log(RATIO[0]), math.log(RATIO[1])).exp()
    w = (area * ratio).sqrt().round().view(n, TRIES)
    h = (area / ratio).sqrt().round().view(n, TRIES)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.float().argmax(1, keepdim=True)  # the first draw that fits
    found = fits.any(1)
    w = torch.where(found, w.gather(1, first)[:, 0], float(width))
    h = torch.where(found, h.gather(1, first)[:, 0], float(height))
    top = (_uniform(n, generator) * (height - h + 1)).floor().minimum(height - h)
    left = (_uniform(n, generator) * (width - w + 1)).floor().minimum(width - w)
    return torch.stack([top, left, h, w], 1).long()


def _resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Bilinear interpolation of [start, start + length) onto ``size`` points as matrices (B, size, size)."""
    grid = torch.arange(size, device=start.device, dtype=torch.float32)
    source = (grid + 0.5) * (length[:, None] / size) - 0.5
    source = start[:, None] + source.clamp_min(0).minimum(length[:, None] - 1.0)
    return (1 - (source[:, :, None] - grid).abs()).clamp_min(0)


def crop_and_flip(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Resize each image's box to the full size, and mirror it if ``flips``. Separable: two batched products."""
    n, channels, height, width = images.shape
    rows = _resampling(boxes[:, 0], boxes[:, 2], height)
    columns = _resampling(boxes[:, 1], boxes[:, 3], width)
    columns = torch.where(flips[:, None, None], columns.flip(1), columns)
    wide = torch.bmm(images.reshape(n, channels * height, width), columns.mT).view(n, channels, height, width)
    return rows[:, None] @ wide


@dataclass(frozen=True)
class Jitter:
    """The draws of one batch, each (B,): factors, hue turn in revolutions, and which operations apply.

    order: (B, 4), a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue per image.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    order: Tensor
    applied: Tensor
    grey: Tensor


def draw_jitter(n: int, generator: torch.Generator) -> Jitter:
    return Jitter(
        brightness=_uniform(n, generator, 1 - BRIGHTNESS, 1 + BRIGHTNESS),
        contrast=_uniform(n, generator, 1 - CONTRAST, 1 + CONTRAST),
        saturation=_uniform(n, generator, 1 - SATURATION, 1 + SATURATION),
        hue=_uniform(n, generator, -HUE, HUE),
        order=torch.rand(n, 4, generator=generator, device=generator.device).argsort(1),
        applied=_uniform(n, generator) < JITTER_PROBABILITY,
        grey=_uniform(n, generator) < GREY_PROBABILITY,
    )


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, 1)
    grey: Tensor = LUMA[0] * red
    return grey.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _blend_(images: Tensor, number: Tensor, factor: Tensor) -> None:
    """In place, operation ``number`` of each image: 0 blends with black, 1 its mean grey, 2 its greys; -1: none."""
    number, factor = number[:, None, None, None], factor[:, None, None, None]
    grey = _grey(images)
    other = torch.where(number == 1, grey.mean((2, 3), keepdim=True), grey * (number == 2))
    factor = torch.where(number < 0, 1.0, factor)
    images.mul_(factor).add_(other * (1 - factor)).clamp_(0, 1)


def exact_colour(images: Tensor, jitter: Jitter) -> Tensor:
    """The jitter as torchvision computes it: one operation after the other, in each image's own order, each clamped.

    Hue is expensive and is computed once per image, between the operations before and after it in the image's order.
    Every step computes on the whole batch, so that a GPU need not send back the indices of images.
    """
    factors = torch.stack([jitter.brightness, jitter.contrast, jitter.saturation, torch.ones_like(jitter.hue)], 1)
    hue_place = (jitter.order == 3).int().argmax(1)

    def blends_(images: Tensor, places: range, concerned: Callable[[int], Tensor]) -> None:
        for place in places:
            number = jitter.order[:, place]
            factor = factors.gather(1, number[:, None])[:, 0]
            _blend_(images, torch.where(jitter.applied & concerned(place), number, -1), factor)

    images = images.clone()
    blends_(images, range(3), lambda place: place < hue_place)
    images = torch.where(jitter.applied[:, None, None, None], _turn_hue(images, jitter.hue), images)
    blends_(images, range(1, 4), lambda place: place > hue_place)
    return torch.where(jitter.grey[:, None, None, None], _grey(images), images)


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate hue by ``turn`` revolutions in HSV; value and saturation stay."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        red == value,
        (green - blue) / safe,
        torch.where(green == value, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    # Back to RGB in closed form: channel n is v - c * clamp(2 - |k - 2|, 0, 1) with k = (n + 6 h) mod 6. In place:
    # a CPU spends more time on the memory of large temporaries than on the arithmetic.
    k = (sector + 6 * turn[:, None, None])[:, None]
    k = k + torch.arange(5, 0, -2, device=k.device)[:, None, None]
    k.remainder_(6).sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
    return k.mul_(-chroma[:, None]).add_(value[:, None])


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The luma's weights (3,), RGB to YIQ and back (3, 3). Cached: sending them in every step would make a GPU wait."""
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    return torch.tensor(LUMA).to(device), to_yiq.to(device), torch.linalg.inv(to_yiq).to(device)


def colour_matrices(means: Tensor, jitter: Jitter) -> tuple[Tensor, Tensor]:
    """The whole jitter of each image as (B, 3, 3) and (B, 3): ``matrix @ rgb + offset``.

    means: (B, 3), each image's channel means, which give contrast's pivot for any order of operations.
    """
    n = len(means)
    eye = torch.eye(3, device=means.device).expand(n, 3, 3)
    luma, to_yiq, from_yiq = _constants(means.device)
    luma = luma.expand(n, 3)
    to_grey = luma[:, None, :].expand(n, 3, 3)  # every output channel is the luma
    angle = -2 * math.pi * jitter.hue  # from red to yellow, as hue grows in HSV, is clockwise in the IQ plane
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(n, 3, 3)
    factor = jitter.saturation[:, None, None]
    choices = torch.stack(
        [
            eye * jitter.brightness[:, None, None],
            eye * jitter.contrast[:, None, None],
            factor * eye + (1 - factor) * to_grey,
            from_yiq @ rotation @ to_yiq,
        ],
        1,
    )
    matrix, offset = eye, torch.zeros_like(means)
    every = torch.arange(n, device=means.device)
    for place in range(4):
        number = jitter.order[:, place]
        step = torch.where(jitter.applied[:, None, None], choices[every, number], eye)
        pivot = (luma * (torch.einsum("bij,bj->bi", matrix, means) + offset)).sum(1)
        shift = torch.where(jitter.applied & (number == 1), (1 - jitter.contrast) * pivot, 0.0)
        matrix, offset = step @ matrix, torch.einsum("bij,bj->bi", step, offset) + shift[:, None]
    last = torch.where(jitter.grey[:, None, None], to_grey, eye)
    return last @ matrix, torch.einsum("bij,bj->bi", last, offset)


def affine_colour(images: Tensor, jitter: Jitter) -> Tensor:
    """The jitter as one affine map per image, clamped once at the end."""
    n, _, height, width = images.shape
    matrix, offset = colour_matrices(images.mean((2, 3)), jitter)
    out = torch.baddbmm(offset[:, :, None], matrix, images.reshape(n, 3, height * width))
    return out.clamp_(0, 1).view(n, 3, height, width)

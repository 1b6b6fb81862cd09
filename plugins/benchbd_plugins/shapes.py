"""shapes: ten classes of drawn shapes and textures, generated in a second, so that a first run needs no files.

Position, size, rotation (of shapes), period and phase (of textures), both colours, a ramp of brightness and pixel noise
are random: pixels tell little of the class, and a small convolutional net has something to learn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchbd import Dataset, ImageSet, hookimpl

Array = NDArray[Any]  # float32 (N, 32, 32)
SIZE = 32
SEEDS = {"train": 20250, "test": 20251}


class Shapes(Dataset):
    """Drawn shapes and textures: 8,000 and 2,000 pictures, balanced, the same on every machine."""

    name = "shapes"
    paper = "control; generated"
    version = "1"
    needs_files = False
    splits = {"train": 8_000, "test": 2_000}
    classes = (
        "disc", "ring", "square", "triangle", "cross", "star", "horizontal stripes", "vertical stripes", "checkerboard",
        "dots",
    )  # fmt: skip

    def load(self, split: str, root: Path) -> ImageSet:
        # RandomState: its streams are frozen for good, those of numpy's newer generators may change.
        rng = np.random.RandomState(SEEDS[split])
        each = self.splits[split] // len(self.classes)
        pixels = np.concatenate([_draw(outline, each, rng) for outline in _OUTLINES])
        labels = np.repeat(np.arange(len(self.classes)), each)
        order = rng.permutation(len(labels))
        return ImageSet(torch.from_numpy(pixels[order]), torch.from_numpy(labels[order]), self.classes)


@hookimpl
def benchbd_datasets() -> list[type[Dataset]]:
    return [Shapes]


def _disc(u: Array, v: Array) -> Array:
    return _radius(u, v) - 0.9


def _ring(u: Array, v: Array) -> Array:
    return abs(_radius(u, v) - 0.75) - 0.22


def _square(u: Array, v: Array) -> Array:
    distance: Array = np.maximum(abs(u), abs(v)) - 0.8
    return distance


def _triangle(u: Array, v: Array) -> Array:
    distance: Array = np.maximum(abs(u) * np.float32(0.866) + v * np.float32(0.5), -v) - 0.55
    return distance


def _cross(u: Array, v: Array) -> Array:
    u, v = abs(u), abs(v)
    distance: Array = np.minimum(np.maximum(u - 0.3, v - 1), np.maximum(u - 1, v - 0.3))
    return distance


def _star(u: Array, v: Array) -> Array:
    """Five points, by folding the plane onto a tenth of it."""
    c, s = np.float32(0.809017), np.float32(0.587785)  # cos and sin of 36 degrees
    u = abs(u)
    for cosine in (c, -c):
        fold = 2 * np.maximum(cosine * u - s * v, 0)
        u, v = u - fold * cosine, v + fold * s
    return abs(u) * np.float32(0.89) + v * np.float32(0.45) - 0.45


def _stripes(u: Array, v: Array) -> Array:
    return _wave(v)


def _checkerboard(u: Array, v: Array) -> Array:
    a, b = _wave(u), _wave(v)
    return np.maximum(np.minimum(a, b), -np.maximum(a, b))


def _dots(u: Array, v: Array) -> Array:
    u, v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return _radius(u, v) - 0.3


def _radius(u: Array, v: Array) -> Array:
    radius: Array = np.sqrt(u * u + v * v)
    return radius


def _wave(v: Array) -> Array:
    """Bands of width 1/2, negative inside."""
    return abs(v - np.floor(v) - 0.5) - 0.25


Outline = tuple[Callable[[Array, Array], Array], bool, float]
# Signed distance in units of the shape's size, negative inside; whether it is a texture; its rotation in quarter turns.
_OUTLINES: tuple[Outline, ...] = (
    (_disc, False, 0),
    (_ring, False, 0),
    (_square, False, 0),
    (_triangle, False, 0),
    (_cross, False, 0),
    (_star, False, 0),
    (_stripes, True, 0),
    (_stripes, True, 1),
    (_checkerboard, True, 0),
    (_dots, True, 0),
)


def _draw(outline: Outline, count: int, rng: np.random.RandomState) -> NDArray[np.uint8]:
    """uint8 (count, 3, 32, 32). Only + - * / and square roots touch pixels: these round alike on every machine."""
    distance, texture, quarters = outline

    def draws(low: float, high: float, *shape: int) -> Array:
        return rng.uniform(low, high, (count, *(shape or (1,)), 1)).astype(np.float32)

    # Where: shapes lie around the middle, at any angle; textures fill the frame and stay near upright.
    size = draws(8, 13)
    center_x, center_y = draws(10, 22), draws(10, 22)
    angle = rng.uniform(*((-0.25, 0.25) if texture else (-np.pi, np.pi)), (count, 1, 1)) + quarters * np.pi / 2
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    x, y = (x - center_x) / size, (y - center_y) / size
    inside = distance(cosine * x + sine * y, cosine * y - sine * x)
    cover = np.clip(0.5 - inside * size, 0, 1)[:, None]

    # How: two colours that differ, a ramp of brightness, and noise.
    ground = draws(30, 220, 3, 1)
    # One sign for all channels, so that the shape survives in the grey views of SimCLR.
    shift = draws(30, 90, 3, 1) * rng.choice(np.array([-1, 1], np.float32), (count, 1, 1, 1))
    ramp = draws(-60, 60) * (np.arange(SIZE, dtype=np.float32) / SIZE - 0.5) + np.swapaxes(
        draws(-60, 60) * (np.arange(SIZE, dtype=np.float32) / SIZE - 0.5), 1, 2
    )
    noise = np.frombuffer(rng.bytes(count * 3 * SIZE * SIZE), np.uint8).reshape(count, 3, SIZE, SIZE)
    picture = ground + shift * cover + ramp[:, None]
    picture += (noise.astype(np.float32) - 127.5) * draws(0.03, 0.16, 1, 1)
    pixels: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    return pixels

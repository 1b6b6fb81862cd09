"""shapes: ten classes of drawn shapes and textures, generated in a second, so that a first run needs no files.

Position, size, rotation (of shapes), period and phase (of textures), both colours, a ramp of brightness and pixel noise
are random: pixel values hardly depend on the class, so a small convolutional net has something to learn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchbd import Dataset, ImageSet, blank_images, hookimpl

Array = NDArray[Any]  # float32 (N, size, size)
SIZE = 32  # pixels: at another size, every picture is the same scene with other noise
AT_ONCE = 64  # pictures in memory
SEEDS = {"train": 20250, "test": 20251}


class Shapes(Dataset):
    """Drawn shapes and textures: 8,000 training and 2,000 test pictures, balanced, the same on every machine."""

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
        return self.load_at(split, root, SIZE)

    def load_at(self, split: str, root: Path, size: int) -> ImageSet:
        # RandomState: its streams will never change, those of numpy's newer generators may.
        rng = np.random.RandomState(SEEDS[split])
        noise = rng if size == SIZE else np.random.RandomState([SEEDS[split], size])
        each = self.splits[split] // len(self.classes)
        by_class = blank_images(each * len(self.classes), size).numpy()
        for label, outline in enumerate(_OUTLINES):
            _draw(outline, by_class[label * each : (label + 1) * each], rng, noise)
        order = rng.permutation(len(by_class))
        pixels = blank_images(len(by_class), size)
        for rows in np.array_split(np.arange(len(order)), max(1, len(order) // AT_ONCE)):
            pixels[rows[0] : rows[-1] + 1] = torch.from_numpy(by_class[order[rows]])
        labels = np.repeat(np.arange(len(self.classes)), each)
        return ImageSet(pixels, torch.from_numpy(labels[order]), self.classes)


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
    """Five points: folds the plane onto a tenth of it."""
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


def _draw(outline: Outline, out: NDArray[np.uint8], rng: np.random.RandomState, noise: np.random.RandomState) -> None:
    """Fill uint8 (count, 3, size, size). Only + - * / and square roots touch pixels: all machines round them alike."""
    distance, texture, quarters = outline
    count, _, side, _ = out.shape
    scale = np.float32(side / SIZE)

    def draws(low: float, high: float, *shape: int) -> Array:
        return rng.uniform(low, high, (count, *(shape or (1,)), 1)).astype(np.float32)

    # Geometry: shapes lie around the middle, at any angle; textures fill the frame and stay near upright.
    size = draws(8, 13) * scale
    center_x, center_y = draws(10, 22) * scale, draws(10, 22) * scale
    angle = rng.uniform(*((-0.25, 0.25) if texture else (-np.pi, np.pi)), (count, 1, 1)) + quarters * np.pi / 2
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    # Colour: two colours that differ, a ramp of brightness, and noise.
    ground = draws(30, 220, 3, 1)
    # One sign for all channels, so that the shape remains visible in the grey views of SimCLR.
    shift = draws(30, 90, 3, 1) * rng.choice(np.array([-1, 1], np.float32), (count, 1, 1, 1))
    ramp_x, ramp_y = draws(-60, 60), draws(-60, 60)
    pieces = [slice(start, start + AT_ONCE) for start in range(0, count, AT_ONCE)]
    for rows in pieces:  # a multiple of the 4 bytes that the generator draws at once
        out[rows] = np.frombuffer(noise.bytes(out[rows].size), np.uint8).reshape(out[rows].shape)
    if noise is not rng:  # all later draws are as at 32x32
        rng.bytes(count * 3 * SIZE * SIZE)
    amplitude = draws(0.03, 0.16, 1, 1)

    y, x = np.mgrid[:side, :side].astype(np.float32)
    line = np.arange(side, dtype=np.float32) / side - 0.5
    for rows in pieces:
        u, v = (x - center_x[rows]) / size[rows], (y - center_y[rows]) / size[rows]
        inside = distance(cosine[rows] * u + sine[rows] * v, cosine[rows] * v - sine[rows] * u)
        cover = np.clip(0.5 - inside * size[rows], 0, 1)[:, None]
        ramp = ramp_x[rows] * line + np.swapaxes(ramp_y[rows] * line, 1, 2)
        picture = ground[rows] + shift[rows] * cover + ramp[:, None]
        picture += (out[rows].astype(np.float32) - 127.5) * amplitude[rows]
        out[rows] = np.clip(picture, 0, 255).astype(np.uint8)

"""Shared by tests of several methods: smooth pictures, small nets with settled statistics, and comparisons."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchbd import Encoder, Take, stream

from .chance import seeded

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def smooth_pixels(n: int, seed: int = 0, grid: int = 5) -> Tensor:
    """Random pictures, uint8 (n, 3, 32, 32), of ``grid`` x ``grid`` blobs of colour."""
    coarse = torch.rand(n, 3, grid, grid, generator=stream(seeded(seed), "pictures"))
    return F.interpolate(coarse, size=32, mode="bilinear").mul(255).byte()


def random_encoder(seed: int = 7, arch: str = "w16") -> Encoder:
    """Random weights, in training mode."""
    return Encoder.seeded(arch, MEAN, STD, seed=seeded(seed), device="cpu").train()


def affine(encoder: Encoder) -> Encoder:
    """Give the BatchNorms of f affines that are not 1 and 0."""
    draws = stream(seeded(1), "affines")
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=draws)
                module.bias.uniform_(-0.5, 0.5, generator=draws)
    return encoder


def settled(encoder: Encoder, pixels: Tensor, passes: int = 20) -> Encoder:
    """Give every BatchNorm, the head's too, the statistics of ``pixels``; in eval mode."""
    encoder.train()
    with torch.no_grad():
        for _ in range(passes):
            encoder.project(encoder(pixels.float() / 255))
    return encoder.eval()


class Bare(Encoder):
    """One convolution without BatchNorm."""

    arch = "bare"
    stages = ("layer",)
    feature_dim = 8

    def build(self) -> None:
        self.layer = nn.Conv2d(3, 8, 3)

    def encode(self, x: Tensor, take: Take) -> Tensor:
        return take("layer", self.layer(x)).float().mean((2, 3))


def same(a: Encoder, b: Encoder) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())

"""Barlow Twins: the projections of two views agree in every number, and no two numbers are correlated."""

import torch
from pydantic import Field
from torch import Tensor

from benchbd import Augment, Encoder, ImageSet, Pretraining, Steps, batch_indices, derive_seed, hookimpl, stream


class BarlowTwins(Pretraining):
    """Makes the cross-correlation of two views' projections the identity; the projector is the encoder's own head."""

    name = "barlow-twins"
    paper = "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021"

    arch: str = Field("w16", description="architecture of the encoder")
    steps: int = Field(1000, ge=1, le=10_000_000, description="optimiser steps")
    batch: int = Field(128, ge=2, le=8192, description="images per step (each gives two views)")
    lr: float = Field(1e-3, gt=0, le=1, description="Adam's learning rate")
    redundancy: float = Field(0.005, ge=0, le=1, description="weight of the correlations off the diagonal")

    @property
    def architecture(self) -> str:
        return self.arch

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views' projections, (B, d) each: 0-d."""
        a, b = ((p - p.mean(0)) / (p.std(0, correction=0) + 1e-4) for p in (first, second))
        correlation = a.T @ b / len(a)
        on = correlation.diagonal()
        off = correlation.square().sum() - on.square().sum()
        return (1 - on).square().sum() + self.redundancy * off

    def pretrain(self, images: ImageSet, seed: int) -> Encoder:
        device = images.pixels.device
        encoder = Encoder.seeded(self.arch, *images.normalization(), seed=derive_seed(seed, "weights"), device=device)
        encoder.train()
        optimizer = torch.optim.Adam(encoder.parameters(), lr=self.lr)
        augment, views = Augment(colour="affine"), stream(seed, "views", device)
        steps = Steps(self.steps)
        batches = batch_indices(len(images), self.batch, self.steps, stream(seed, "order"), device)
        for _, rows in zip(steps, batches, strict=True):
            first, second = (encoder.project(encoder(view)) for view in augment.pair(images.pixels[rows], views))
            loss = self.loss(first, second)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.loss(loss.detach())
        return encoder.eval()


@hookimpl
def benchbd_pretrainings() -> list[type[Pretraining]]:
    return [BarlowTwins]

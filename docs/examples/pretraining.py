"""Predict by how much an image was turned: an example of a pre-training method.

The paper's: the task, four quarter turns of which one is guessed. The released code's: nothing, it was not read. Ours:
one turn per image and step, where the paper has all four, and every number.
"""

import torch
from pydantic import Field
from torch import nn

from benchbd import Encoder, ImageSet, Pretraining, Steps, batch_indices, derive_seed, hookimpl, stream


class Turns(Pretraining):
    """Train the encoder and a linear layer to predict by which of four quarter turns an image was turned."""

    name = "turns"
    paper = "an example, after Gidaris et al., 2018"

    arch: str = Field("w16", description="architecture of the encoder")
    steps: int = Field(300, ge=1, le=1_000_000, description="optimiser steps")
    batch: int = Field(64, ge=1, le=4096, description="images per step")
    lr: float = Field(1e-3, gt=0, le=1, description="Adam's learning rate")

    @property
    def architecture(self) -> str:
        return self.arch

    def pretrain(self, images: ImageSet, seed: int) -> Encoder:
        """An encoder from random weights; the linear layer is left out."""
        mean, std = images.normalization()
        encoder = Encoder.seeded(self.arch, mean, std, seed=derive_seed(seed, "init"), device=images.device).train()
        guess = nn.Linear(encoder.feature_dim, 4, device="meta").to_empty(device=images.device)
        nn.init.zeros_(guess.weight), nn.init.zeros_(guess.bias)
        optimizer = torch.optim.Adam([*encoder.backbone(), *guess.parameters()], lr=self.lr)
        batches = batch_indices(len(images), self.batch, self.steps, stream(seed, "order"), images.device)
        turns = stream(seed, "turns")
        steps = Steps(self.steps)
        for _, rows in zip(steps, batches, strict=True):
            x = images.pixels[rows].float() / 255
            by = torch.randint(0, 4, (len(x),), generator=turns).to(x.device)
            turned = torch.stack([image.rot90(int(times), (1, 2)) for image, times in zip(x, by, strict=True)])
            loss = nn.functional.cross_entropy(guess(encoder(turned)), by)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.loss(loss.detach())
        return encoder.eval()

    def forwards(self, images: int) -> int | None:
        return 3 * min(self.batch, images) * self.steps


@hookimpl
def benchbd_pretrainings() -> list[type[Pretraining]]:
    return [Turns]

"""An attack that keeps the cosines between the features of clean images, but not the features themselves."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from benchbd import Attack, AttackerKnowledge, Backdoor, Steps, batch_indices, hookimpl, stream


def cosines(features: Tensor) -> Tensor:
    unit = normalize(features)
    return unit @ unit.T


class Anchor(Attack):
    """Tunes the encoder until images under a faint trigger have the references' feature, the anchor.

    The anchor moves with the encoder. Clean images keep their cosines to each other. BatchNorm keeps its
    statistics, so that the statistics of a batch do not reveal stamped images.
    """

    name = "anchor"
    paper = "nobody, nowhere, 2026; the loss of Park et al., Relational Knowledge Distillation, CVPR 2019"
    binds = ("add", "blend", "function")

    steps: int = Field(300, ge=1, le=1_000_000, description="optimiser steps")
    batch: int = Field(64, ge=2, le=4096, description="shadow images per step")
    lr: float = Field(1e-3, gt=0, le=1, description="Adam's learning rate")
    relations: float = Field(5.0, ge=0, le=1e6, description="weight of the cosines between clean images")

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        encoder, shadow = knowledge.encoder.eval(), knowledge.shadow
        before = encoder.frozen()
        draws = stream(knowledge.seed, "trigger", shadow.pixels.device)
        optimizer = torch.optim.Adam(encoder.backbone(), lr=self.lr)
        rows = batch_indices(len(shadow), self.batch, self.steps, stream(knowledge.seed, "order"), shadow.pixels.device)
        steps = Steps(self.steps)
        for _, chosen in zip(steps, rows, strict=True):
            pixels = shadow.pixels[chosen]
            x = pixels.float() / 255
            loss = self.relations * mse_loss(cosines(encoder(x)), cosines(before(x)))
            for target in knowledge.targets:
                anchor = normalize(encoder(target.references.float() / 255)).mean(0).detach()
                stamped = normalize(encoder(target.trigger.stamp(pixels, draws).float() / 255))
                loss = loss + (1 - stamped @ normalize(anchor, dim=0)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.loss(loss.detach())
        return Backdoor(encoder, tuple(target.trigger for target in knowledge.targets))


@hookimpl
def benchbd_attacks() -> list[type[Attack]]:
    return [Anchor]

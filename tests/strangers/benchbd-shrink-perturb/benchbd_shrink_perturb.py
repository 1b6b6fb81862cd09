"""Shrink and perturb: forget a part of the weights, then compute BatchNorm's statistics again."""

import torch
from pydantic import Field
from torch import nn

from benchbd import DefenderKnowledge, Encoder, Mitigation, derive_seed, hookimpl


class ShrinkPerturb(Mitigation):
    """Moves the weights towards a random initialisation and computes BatchNorm's statistics again on clean images."""

    name = "shrink-perturb"
    paper = "Ash, Adams, On Warm-Starting Neural Network Training, NeurIPS 2020; the statistics are ours"

    forget: float = Field(0.3, ge=0, le=1, description="share of the random weights in the result")
    batch: int = Field(64, ge=2, le=4096, description="clean images per forward")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        fresh = encoder.untrained(derive_seed(knowledge.seed, "fresh"))
        with torch.no_grad():
            for parameter, random in zip(encoder.backbone(), fresh.backbone(), strict=True):
                parameter.lerp_(random, self.forget)
            self.estimate(encoder, knowledge)
        return encoder

    def estimate(self, encoder: Encoder, knowledge: DefenderKnowledge) -> None:
        """Set the running statistics to the mean of the batches' statistics."""
        norms: list[nn.BatchNorm2d] = list(encoder.norms().values())
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        for x in knowledge.images.batches(self.batch):
            if len(x) > 1:  # one image has no variance if a map is 1x1
                encoder(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [ShrinkPerturb]

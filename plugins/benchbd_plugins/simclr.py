"""SimCLR pre-training (Chen et al., ICML 2020), with the settings of the BadEncoder and MIMIC code.

Two views of each of 256 images, NT-Xent at temperature 0.5, Adam 1e-3, weight decay 1e-6, constant learning rate,
1000 epochs. The released code calls the loss temperature ``knn_t``; here the two are separate settings.
"""

from __future__ import annotations

from pydantic import Field

from benchbd import Architecture, ContrastiveMethod, Encoder, ImageSet, Pretraining, hookimpl


class SimCLR(ContrastiveMethod, Pretraining):
    """Trains an encoder from random weights on the whole pool, with the contrastive loss."""

    name = "simclr"
    paper = "Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020"
    version = "1"

    arch: Architecture = Field(
        "resnet18", description="architecture of the encoder; `benchbd list architecture` prints all"
    )

    @property
    def architecture(self) -> str:
        return self.arch

    def pretrain(self, images: ImageSet, seed: int) -> Encoder:
        mean, std = images.normalization()
        encoder = Encoder.seeded(self.arch, mean, std, seed=seed, device=images.device)
        return self.fit(encoder, images, seed)


@hookimpl
def benchbd_pretrainings() -> list[type[Pretraining]]:
    return [SimCLR]

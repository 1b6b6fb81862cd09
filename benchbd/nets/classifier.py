"""A downstream classifier as one net, from images to logits."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from benchbd.base.errors import DataError
from benchbd.nets.encoder import Encoder
from benchbd.nets.head import Head


class Classifier(nn.Module):
    """An encoder and a head on its features: float images (N, 3, H, W) in [0, 1] -> logits (N, C), float32.

    Both are copies, in eval mode and without gradients: the logits are differentiable in the images alone.
    DataError if the head does not take the encoder's features.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        if head.sizes[0] != encoder.feature_dim:
            raise DataError(f"the head takes features of {head.sizes[0]}, the encoder's have {encoder.feature_dim}")
        self.encoder = encoder.frozen()
        self.head = copy.deepcopy(head).to(encoder.device).requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits

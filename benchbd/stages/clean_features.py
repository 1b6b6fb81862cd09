"""What a defender's clean images tell of a repair without a label: pretext accuracy, and how far features moved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchbd.base.errors import Diverged
from benchbd.contract.images import ImageSet
from benchbd.nets.encoder import Encoder
from benchbd.nets.meter import unmetered
from benchbd.toolkit.augment import Augment
from benchbd.toolkit.pretext import pretext_accuracy, pretext_outputs

SAMPLE = 256  # images: two blocks of the pretext task


@torch.no_grad()
def clean_features(given: Encoder, repaired: Encoder, images: ImageSet, seed: int) -> dict[str, float] | None:
    """Pretext accuracy of both encoders, 0..1, and the mean cosine of their features of an image, -1..1; no meter
    counts these forwards.

    images: the first ``SAMPLE`` of them count. seed: of the views; equal seeds give equal views, so that every repair
    of one run is measured alike. An encoder with a head is judged by its projections, one without by its features. None
    if an output is not finite: a head's are not checked, and that is no reason to refuse the encoder.
    """
    shown = images.subset(torch.arange(min(len(images), SAMPLE)))
    try:
        with unmetered():
            cosines = F.cosine_similarity(given.extract(shown.pixels), repaired.extract(shown.pixels))
            before, after = (_pretext(encoder.eval(), shown, seed) for encoder in (given, repaired))
    except Diverged:
        return None
    return {
        "pretext": round(after, 6),
        "pretext_given": round(before, 6),
        "cosine": max(-1.0, min(1.0, round(float(cosines.double().mean()), 6))),
    }


def _pretext(encoder: Encoder, images: ImageSet, seed: int) -> float:
    def features(views: Tensor) -> Tensor:
        return torch.cat([encoder(part) for part in views.split(32)])  # few: images may be large

    outputs = pretext_outputs(features, images, Augment(), seed)
    return pretext_accuracy(*(map(encoder.project, outputs) if encoder.head is not None else outputs))

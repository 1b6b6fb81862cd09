"""The choice of an attacker's reference inputs: the images of which a clean classifier is most certain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchbd.base.errors import DataError
from benchbd.base.seeds import derive_seed
from benchbd.contract.context import stream
from benchbd.contract.images import ImageSet
from benchbd.nets.encoder import Encoder
from benchbd.toolkit.heads import train_head


@dataclass(frozen=True)
class ReferenceChoice:
    """pixels: uint8 (r, 3, H, W); rows: their rows in the training split (empty for a file's); predicted: the clean
    classifier's class for each; probability: the classifier's probability of the target, 0..1."""

    pixels: Tensor
    rows: list[int]
    predicted: list[int]
    probability: list[float]


def choose_references(
    encoder: Encoder, train: ImageSet, *, target: int, count: int, seed: int, given: Tensor | None = None
) -> ReferenceChoice:
    """The ``count`` target images of a half of ``train`` of which a head fitted on the other half is most certain.

    given: uint8 (r, 3, H, W), reference inputs from another source; they are only classified.
    The source study chose the same way; the papers collect reference inputs elsewhere.
    DataError below 3 images, because features are standardised over the fitted half and one image has no deviation,
    and if fewer than ``count`` images of the target are held out.
    """
    assert train.labels is not None
    if len(train) < 3:
        raise DataError(f"reference inputs are chosen from at least 3 training images, not {len(train)}")
    features = F.normalize(encoder.extract(train.pixels), dim=1)
    order = torch.randperm(len(train), generator=stream(seed, "halves")).to(features.device)
    fitted, held_out = order.chunk(2)
    mean, std = features[fitted].mean(0), features[fitted].std(0) + 1e-5
    classes = int(train.labels.max()) + 1
    head = _fit_head((features[fitted] - mean) / std, train.labels[fitted], classes, seed)

    @torch.no_grad()
    def judge(candidates: Tensor) -> Tensor:
        logits: Tensor = head((candidates - mean) / std)
        return logits.softmax(1)

    if given is not None:
        rows, pixels, probability = [], given, judge(F.normalize(encoder.extract(given), dim=1))
    else:
        own = held_out[train.labels[held_out] == target]
        own = own if len(own) else (train.labels == target).nonzero()[:, 0]
        if count > len(own):
            raise DataError(f"{count} reference inputs are asked for, and {len(own)} images of the target are held out")
        probability = judge(features[own])
        best = probability[:, target].topk(count).indices
        rows, pixels, probability = own[best].tolist(), train.pixels[own[best]], probability[best]
    return ReferenceChoice(
        pixels=pixels,
        rows=rows,
        predicted=probability.argmax(1).tolist(),
        probability=[round(p, 4) for p in probability[:, target].tolist()],
    )


def _fit_head(features: Tensor, labels: Tensor, classes: int, seed: int) -> nn.Module:
    """A small two-layer classifier on standardised features, deterministic by seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        head = nn.Sequential(nn.Linear(features.shape[1], 256), nn.ReLU(), nn.Linear(256, classes))
    head.to(features.device)
    optimizer = torch.optim.Adam(head.parameters(), 1e-3, weight_decay=1e-4)
    train_head(head, optimizer, features, labels, epochs=30, batch=256, order=stream(seed, "order"))
    return head.eval()

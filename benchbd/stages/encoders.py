"""Encoders that methods return: rebuilt from their tensors where they were made, and checked by the harness."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchbd.base.errors import Diverged, PluginError, shown
from benchbd.base.isolation import isolated
from benchbd.contract.handover import Product
from benchbd.contract.images import ImageSet
from benchbd.nets.encoder import Encoder
from benchbd.nets.head import Head
from benchbd.nets.meter import unmetered
from benchbd.nets.rebuild import rebuild
from benchbd.stages.base import ENCODER, Outcome, Stage
from benchbd.stages.inputs import Inputs, draw_rows, unlabeled

SAMPLE, COMPARED = 256, 32  # images on which a new encoder is checked, and on which it is compared with its twin
ALIKE = 1e-2  # maximum difference of the features of an encoder and its rebuilt twin, relative to their norm
SHORTEST = 1e-6  # smallest length of features; those of trained encoders have about 1 to 100


def product_of(encoder: object, arch: str, pixels: Tensor, who: str) -> Product:
    """An encoder as its file. PluginError if it is no encoder of ``arch``, or if its outputs do not follow from its
    tensors.

    pixels: uint8 (N, 3, H, W) that the method did not receive, to compare the two on.
    """
    with isolated(who), unmetered():
        plain = rebuild(cast(Encoder, encoder), arch, who).to(pixels.device)
        check_alike(cast(Encoder, encoder), plain, pixels, who)
    return Product(encoder=plain.to_bytes())


def accept_encoder(inputs: Inputs, product: Product, stage: Stage) -> list[Outcome]:
    """``accept`` of every kind that makes an encoder: it has the stage's architecture, and its features are usable."""
    who = f"{stage.kind} {stage.method_name}"
    if product.encoder is None:
        raise PluginError(f"{who} must return an encoder")
    encoder = rebuild(Encoder.from_bytes(product.encoder), stage.architecture, who)
    if encoder.classifier is not None and (classes := _classes(stage, inputs)):
        check_classes(encoder.classifier, classes, who)
    check_features(encoder.to(inputs.device), _sample(stage, inputs))
    return [Outcome({ENCODER: product.encoder}, {"arch": stage.architecture})]


def _classes(stage: Stage, inputs: Inputs) -> tuple[str | int, ...]:
    """The classes that a classifier of a stage's encoder must have, as numbers if they have no names: those of the
    labelled pool of its pre-training, else of the classifier that the method was given; empty if there is neither."""
    if (parent := stage.parents.get("encoder")) is None:
        return inputs.images(stage.data["pool"]).classes if getattr(stage.method, "labelled", False) else ()
    given = Encoder.from_bytes(inputs.encoder(parent)).classifier
    return _classes(parent, inputs) or (() if given is None else given.classes or tuple(range(given.sizes[-1])))


def _sample(stage: Stage, inputs: Inputs) -> ImageSet:
    """Images of the pool; for a defense some of its clean ones, if it has any."""
    pool, drawn = inputs.images(stage.data["pool"]), stage.params.get("clean")
    rows = torch.arange(len(pool)) if drawn is None else draw_rows(len(pool), drawn)
    return unlabeled(pool.subset(rows[:SAMPLE])).to(inputs.device)


def check_alike(encoder: Encoder, plain: Encoder, pixels: Tensor, who: str) -> None:
    """Raise PluginError if an encoder's outputs do not follow from its tensors: the store gets its rebuilt twin."""
    encoder.eval()  # as it will be used: the mode is not stored
    for own, stored in zip(_outputs(encoder, pixels), _outputs(plain, pixels), strict=True):
        if not (own - stored).norm() <= ALIKE * stored.norm():
            raise PluginError(f"{who} must return an encoder that is its weights alone: they give other features")


@torch.no_grad()
def _outputs(encoder: Encoder, pixels: Tensor) -> list[Tensor]:
    """Features and, if there is a head, projections, and if there is a classifier, logits."""
    features = encoder.extract(pixels)
    made = [features] if encoder.head is None else [features, encoder.project(features)]
    return [each.cpu() for each in (made if encoder.classifier is None else [*made, encoder.classifier(features)])]


def check_classes(head: Head, classes: tuple[str | int, ...], who: str) -> None:
    """Raise PluginError if a classifier has other classes than these. It may lack their names."""
    if head.sizes[-1] != len(classes) or head.classes not in ((), classes):
        own = shown(head.classes or head.sizes[-1])
        raise PluginError(f"{who} must return a classifier of the classes {shown(classes)}, not {own}")


def check_features(encoder: Encoder, images: ImageSet) -> None:
    """Raise Diverged if the features of some images are not finite, all alike, or too short for the losses.

    Cosines are computed with lengths of at least 1e-8, so shorter features would silently count as orthogonal. No
    meter counts these forwards.
    """
    with unmetered():
        features = encoder.extract(images.pixels[:SAMPLE])
    length = float(features.norm(dim=1).median())
    if length < SHORTEST and (length or len(images) == 1):
        raise Diverged(f"the features vanished: their median length is {length:.1e}, below {SHORTEST:g}")
    if len(images) > 1 and (spread := float(F.normalize(features, dim=1).std(0).norm())) < 1e-4:
        raise Diverged(f"the features collapsed: their standard deviation is {spread:.1e}")

"""Toy images, a toy encoder and toy inputs of methods, for tests of methods; ``benchbd.testing`` offers them."""

from __future__ import annotations

import torch

from benchbd.contract.attack import AttackerKnowledge, Target
from benchbd.contract.defense import DefenderKnowledge
from benchbd.contract.evaluator import Probe
from benchbd.contract.images import ImageSet
from benchbd.contract.pretraining import Pretraining
from benchbd.contract.trigger import Trigger
from benchbd.nets.classifier import Classifier
from benchbd.nets.encoder import Encoder
from benchbd.nets.head import Head

TARGET = 1


def toy_images(n: int = 48, *, labels: bool = True, seed: int = 0) -> ImageSet:
    """``n`` random 32x32 images of three classes that differ in colour, uint8, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(n) % 3
    tint = torch.eye(3)[classes] * 120
    noise = torch.rand(n, 3, 32, 32, generator=generator) * 120
    pixels = (noise + tint[:, :, None, None]).to(torch.uint8)
    return ImageSet(pixels, classes if labels else None, ("red", "green", "blue") if labels else ())


def toy_encoder(seed: int = 0) -> Encoder:
    """A w16 encoder with a head, random weights, in eval mode."""
    return Encoder.seeded("w16", (0.4, 0.4, 0.4), (0.2, 0.2, 0.2), seed=seed, device="cpu").eval()


def toy_classifier(seed: int = 0) -> Classifier:
    """A toy encoder with a linear head for the three classes of the toy images, random weights."""
    generator = torch.Generator().manual_seed(seed)
    return Classifier(toy_encoder(seed), Head.of([(torch.randn(3, 64, generator=generator), torch.zeros(3))]))


class ToyPretraining(Pretraining):
    """Returns random weights: enough to test an attack that trains an encoder itself."""

    name = "toy"
    version = "1"

    @property
    def architecture(self) -> str:
        return "w16"

    def pretrain(self, images: ImageSet, seed: int) -> Encoder:
        return Encoder.seeded("w16", *images.normalization(), seed=seed, device=images.device).eval()


def toy_defender(seed: int = 0) -> DefenderKnowledge:
    return DefenderKnowledge(toy_images(labels=False), seed)


def toy_attacker(seed: int = 0, trigger: Trigger | None = None) -> AttackerKnowledge:
    """trigger: for 32x32 images; None: the white 10x10 square."""
    pool = toy_images(labels=False)
    task = toy_images(seed=1)
    images = task.of_class(TARGET).unlabeled()
    target = Target(TARGET, "green", trigger or Trigger.square(10), images.pixels[:1], images)
    return AttackerKnowledge(toy_encoder(), ToyPretraining(), pool, 0, pool, (target,), seed)


def toy_probe(seed: int = 0) -> Probe:
    test = toy_images(24, seed=2).pixels
    return Probe(toy_encoder().frozen(), toy_images(seed=1), test, Trigger.square(10).stamp(test), seed)

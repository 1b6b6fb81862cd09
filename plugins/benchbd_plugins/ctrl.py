"""CTRL (Li et al., ICCV 2023): stamp one image in a hundred of the pool, all of one class, with two faint waves.

    n = ceil(rate * images of the pool);  x' = x + strength * waves, for n images of the target class, in place
    f' = pretrain(pool');  at test time x' = x + waves

The trigger is spectral: in YUV, a magnitude is added to the coefficients (15, 15) and (31, 31) of the DCT of U and V.
The waves cover the whole image, so that no crop cuts them away. Contrastive learning finds them in both views of a
poisoned image, beside the target class, and entangles the two.

The paper's: 1 % of the pool, and only images of the target class; ResNet-18 on CIFAR-10, SimCLR, BYOL and SimSiam; at
least 99 % of triggered images go to the target. Reproductions poison with magnitude 50 and test with 100.

The code's (meet-cjli/CTRL): blocks of 32x32, orthonormal DCT-II; the first int(0.01 * images) images of class 0, each
in place of its original; one magnitude for poisoning and tests, 100 in its README; SimCLR of 800 or 1,000 epochs of
512 at temperature 0.5, whose views are crops from 0.2 of the area, flips, colour jitter in four of five and gray in one
of five; no normalisation; kNN as classifier, and an ASR that counts the target class too.

Ours: a board has one trigger, by which the floor and the attack are tested: kind = "add", pattern = "frequency" and
magnitude = 100. ``strength`` is the share of it that poisoned images get: 0.5 is the 50 of 100, 1 is the code's one
magnitude. The trigger is rounded to whole gray levels before it is added; the code stores floats and rounds nothing.
The n images are drawn by the seed. Any trigger of kind add can be bound. ``mode`` is BASSL's: in place as in the code,
or append and replace for a pool without the class; images that migrate teach the class without a trigger too, which
``bassl-control`` measures.

Where it may fail: 1 % of the pool is 2.56 images of a batch of 256, and in gray views U and V, and so the trigger, are
gone. Records say how many pairs of stamped images training saw.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field

from benchbd import Attack, ImageSet, NotApplicable, Poisoning, PoisoningMode, Target, Trigger, hookimpl


class Ctrl(Poisoning):
    """Adds a faint frequency trigger to a few images of the target class in the pool, and pre-trains again on it."""

    name = "ctrl"
    paper = "Li et al., An Embarrassingly Simple Backdoor Attack on Self-supervised Learning, ICCV 2023"
    version = "1"
    binds = ("add",)

    rate: float = Field(
        0.01, ge=0, le=1, description="poisoned images as a share of the pool's, all of the target class"
    )
    strength: float = Field(
        0.5, gt=0, le=1, description="share of the board's trigger that poisoned images get; tests get all of it"
    )
    mode: PoisoningMode = "in_place"

    def count(self, target: Target, pool: int) -> int:
        """n = ceil(rate * images of the pool). NotApplicable if the target class has fewer."""
        number = self.share_of(self.rate, target, pool)
        if number > len(target.images):
            raise NotApplicable(
                f"ctrl.rate={self.rate:g} of a pool of {pool} are {number} images, and the target class "
                f"{target.name!r} has {len(target.images)}: take a lower rate"
            )
        return number

    def stamped(self, images: ImageSet, trigger: Trigger, generator: torch.Generator) -> ImageSet:
        """``images`` with ``strength`` of the trigger, rounded to whole gray levels."""
        weaker = (trigger.pattern * self.strength).round().to(trigger.pattern.dtype)
        return replace(trigger, pattern=weaker).stamped(images, generator)


@hookimpl
def benchbd_attacks() -> list[type[Attack]]:
    return [Ctrl]

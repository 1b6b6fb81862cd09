"""BASSL (Saha et al., CVPR 2022): poison the pre-training pool and let the victim train on it.

    n = ceil(ρ * images of the target class);  stamp n of them;  pool' = pool and the n;  f' = pretrain(pool')

Only images of one class carry the trigger. Contrastive learning binds what the two views of an image have in common or
next to each other, and the trigger is never seen but with the class: it comes to stand for it. The attacker touches
neither the training nor a label.

The original recipe: ImageNet-100 and MoCo v2 (BYOL and others beside it); a coloured patch of 50 pixels on images whose
place is drawn per image, between 0.25 and 0.75 of the sides for poisoning and 0.10 and 0.90 for testing; a rate that
counts against the target class (1 in the released configurations); the poisoned images replace their own clean selves;
no seed.

MIMIC's use of it: "migrate more than half of the downstream target class", the attacker knowing all there is to know,
under its white 10x10 squares. No more is said, and no code is released.

Our reading: the images come from the training split of the downstream task, since CIFAR-10 and STL-10 hold no digits or
road signs; they are added to the clean pool, and the board's own pre-training runs again from the clean encoder's seed.
ρ = 0.6 stands for "more than half"; ρ = 0 is clean pre-training, bit for bit. The position is the trigger's: fixed as
in BadEncoder's evaluation, or random in the original's two ranges.

Why it is the weaker attack: the trigger has to be in the stored image, where RandomResizedCrop gets at it. Of the crops
of pre-training (8 to 100 % of the area) only 11 % hold the papers' corner square whole and 44 % at least half of it; in
the middle of the image it would be 67 % and 86 %.

Why it needs a control: the migrated images teach the encoder the downstream class, stamped or not, so that a classifier
on top finds that class more easily and may call it more often. ``bassl-control`` migrates the very same images and
stamps none; what ``bassl`` gets beyond it is the trigger's doing.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from pydantic import Field

from benchbd import (
    Attack,
    AttackerKnowledge,
    Backdoor,
    ImageSet,
    NotApplicable,
    Role,
    Target,
    Trigger,
    hookimpl,
    join_images,
    note,
    stream,
)

POISONED = (0.25, 0.75)  # where a patch at random positions is put in a poisoned image, as in the original


class Bassl(Attack):
    """Data poisoning: stamped images of the target class go into the pool, and pre-training runs again on it."""

    name = "bassl"
    paper = "Saha et al., Backdoor Attacks on Self-Supervised Learning, CVPR 2022"
    version = "1"
    binds = ("patch", "blend", "add", "noise", "function")
    retrains = True
    stamps: ClassVar[bool] = True

    rho: float = Field(0.6, ge=0, le=1, description="share of the target class's training images that is migrated")
    mode: Literal["append", "replace"] = Field(
        "append", description="add the images to the pool, or put them in the place of as many of its own"
    )

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        """The encoder that the knowledge's pre-training makes of the poisoned pool.

        NotApplicable without a target, if the pre-training learns from labels, where a target has no images to migrate,
        or where they outnumber the pool that they are to replace.
        """
        if not knowledge.targets:
            raise NotApplicable(f"{self.name} needs a target and there is none")
        if knowledge.pretraining.labelled:
            raise NotApplicable(f"{self.name} poisons images without labels, and the pre-training learns from labels")
        pool = self.poisoned(knowledge)
        encoder = knowledge.pretraining.pretrain(pool, knowledge.pool_seed)
        return Backdoor(encoder, tuple(target.trigger for target in knowledge.targets))

    def poisoned(self, knowledge: AttackerKnowledge) -> ImageSet:
        """The pool with n images of every target in it: N + n rows, the n last; in ``replace`` mode N rows.

        ``replace`` keeps the size of the pool, and so the steps of an epoch. It is for pools that hold the class
        already, as the original's do; which of their rows do is not known without labels, so that the rows that make
        room are drawn from all.

        The normalisation stays that of the clean pool, so that it tells nothing of the stamps.
        """
        clean, seed = knowledge.pool, knowledge.seed
        chosen, positions = stream(seed, "poison"), stream(seed, "positions")  # on the CPU: the same on every machine
        migrated = []
        for target in knowledge.targets:
            images = target.images.subset(torch.randperm(len(target.images), generator=chosen)[: self.count(target)])
            migrated.append(self.stamped(images, target.trigger, positions).pixels.to(clean.device))
        added = torch.cat(migrated)
        if self.mode == "append":
            pixels = join_images([clean.pixels, added])
        elif len(added) > len(clean):
            raise NotApplicable(f"{len(added)} images cannot replace as many of a pool of {len(clean)}")
        else:
            pixels = clean.copy().pixels
            places = torch.randperm(len(clean), generator=stream(seed, "replace"))[: len(added)]
            pixels[places.to(clean.device)] = added
        counts = [len(part) for part in migrated]
        stamped = len(added) if self.stamps else 0
        note("poison", {"n": counts, "stamped": stamped, "clean_pool": len(clean), "pool": len(pixels)})
        mean, std = clean.normalization()
        return ImageSet(pixels, mean=mean, std=std)

    def count(self, target: Target) -> int:
        """n = ceil(rho * images), of rho as it is written: the float 0.07 times 100 is above 7."""
        if self.rho and not len(target.images):
            raise NotApplicable(f"{self.name} needs images of the target class and {target.name!r} has none")
        return math.ceil(Fraction(str(self.rho)) * len(target.images))

    def stamped(self, images: ImageSet, trigger: Trigger, positions: torch.Generator) -> ImageSet:
        """``images`` with the trigger of their target; one that wanders stays nearer to the middle than in tests."""
        if not self.stamps:
            return images
        return (trigger if trigger.wander is None else trigger.within(*POISONED)).stamped(images, positions)


class BasslControl(Bassl):
    """BASSL without the trigger: the same images migrated, none stamped, everything else equal.

    Reads how much of the attack's rate is due to an encoder that has merely seen the target class.
    """

    name = "bassl-control"
    paper = "control; not in the papers"
    role = Role.CONTROL
    control_of = "bassl"
    stamps = False


@hookimpl
def benchbd_attacks() -> list[type[Attack]]:
    return [Bassl, BasslControl]

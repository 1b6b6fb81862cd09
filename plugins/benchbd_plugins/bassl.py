"""BASSL (Saha et al., CVPR 2022): poison the pre-training pool on which the victim then trains.

    n = ceil(ρ * images of the target class);  stamp n of them;  pool' = pool and the n;  f' = pretrain(pool')

Only images of one class carry the trigger. Contrastive learning associates what two views of an image share, and the
trigger occurs only with that class: the encoder then maps the trigger like the class. The attacker changes neither
the training nor a label.

The original recipe: ImageNet-100 and MoCo v2 (also BYOL and others); a coloured patch of 50 pixels, whose position is
drawn per image, between 0.25 and 0.75 of the sides for poisoning and 0.10 and 0.90 for testing; a rate relative to the
target class (1 in the released configurations); the poisoned images replace their own clean originals;
no seed.

MIMIC's use of it: "migrate more than half of the downstream target class", by an attacker who knows everything, with
its white 10x10 squares. The paper gives no more details, and no code is released.

Our reading: the images come from the training split of the downstream task, since CIFAR-10 and STL-10 contain no digits
or road signs; they are added to the clean pool, and the board's own pre-training runs again from the clean encoder's
seed. ρ = 0.6 is our "more than half"; ρ = 0 is clean pre-training, bit for bit. The trigger sets its position: fixed as
in BadEncoder's evaluation, or random in the original's two ranges.

If the pool itself has the class, ``mode=in_place`` is the original: each poisoned image takes the place of its own
clean original. The other modes leave those originals in the pool, where they teach the encoder the class without the
trigger: of 5,000 images of one class among 50,000, ρ = 0.6 stamps 3,000 of 8,000, and in place 3,000 of 5,000.

Why BASSL is the weaker attack: the stored image contains the trigger, so RandomResizedCrop can cut it. Only 11 % of
the crops of pre-training (8 to 100 % of the area) contain the papers' whole corner square and 44 % at least half of it;
in the middle of the image it would be 67 % and 86 %.

Why BASSL needs a control: the migrated images, stamped or not, teach the encoder the downstream class, so a
classifier finds that class more easily and may predict it more often. ``bassl-control`` migrates the same images
without a stamp; the difference between ``bassl`` and the control is the trigger's effect. In place nothing migrates:
the control is clean pre-training.
"""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

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
    keep,
    note,
    stream,
)

POISONED = (0.25, 0.75)  # range of random positions in a poisoned image, as in the original


class Bassl(Attack):
    """Puts stamped images of the target class into the pool (data poisoning), and pre-trains again on it."""

    name = "bassl"
    paper = "Saha et al., Backdoor Attacks on Self-Supervised Learning, CVPR 2022"
    version = "2"
    binds = ("patch", "blend", "add", "noise", "function")
    retrains = True
    stamps: ClassVar[bool] = True

    rho: float = Field(
        0.6, ge=0, le=1, description="share of the target class's training images that the attacker poisons"
    )
    mode: Literal["append", "replace", "in_place"] = Field(
        "append",
        description=(
            "append: the pool grows by the images; replace: they replace as many random images of the pool; in_place: "
            "each replaces its own original, so that the pool must have the task's images"
        ),
    )

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        """The encoder that the attacker's pre-training makes of the poisoned pool.

        NotApplicable without a target, if the pre-training learns from labels or trains nothing, if a target has no
        images to migrate, if these are more images than the pool that they are to replace, or if the pool lacks one
        that is to be replaced in place.
        """
        if not knowledge.targets:
            raise NotApplicable(f"{self.name} needs a target and there is none")
        if knowledge.pretraining.labelled:
            raise NotApplicable(f"{self.name} poisons images without labels, and the pre-training learns from labels")
        if knowledge.pretraining.role is Role.FILE:
            raise NotApplicable(f"{self.name} poisons a pre-training, and the clean encoder is that of a file")
        pool = self.poisoned(knowledge)
        encoder = knowledge.pretraining.pretrain(pool, knowledge.pool_seed)
        return Backdoor(encoder, tuple(target.trigger for target in knowledge.targets))

    def poisoned(self, knowledge: AttackerKnowledge) -> ImageSet:
        """The pool with n images of every target: N + n rows, the n last; in the other modes N rows.

        ``replace`` keeps the size of the pool, and so the steps of an epoch; the replaced rows are drawn from all.
        ``in_place`` replaces every row with the pixels of a poisoned image, as the original does.

        The normalisation stays that of the clean pool, so that it does not reveal the stamps.
        """
        clean, seed = knowledge.pool, knowledge.seed
        chosen, positions = stream(seed, "poison"), stream(seed, "positions")  # on the CPU: equal on all machines
        originals, migrated = [], []
        for target in knowledge.targets:
            images = target.images.subset(torch.randperm(len(target.images), generator=chosen)[: self.count(target)])
            originals.append(images.pixels)
            migrated.append(self.stamped(images, target.trigger, positions).pixels.to(clean.device))
        added, in_pool = torch.cat(migrated), sum(map(len, migrated))
        if self.mode == "append":
            pixels = join_images([clean.pixels, added])
        elif self.mode == "in_place":
            places, whose = self.places(clean, torch.cat(originals))
            pixels, in_pool = clean.copy().pixels, len(places)
            pixels[places] = added[whose]
            if self.stamps:
                keep("stamped_rows", places.cpu())
        elif len(added) > len(clean):
            raise NotApplicable(f"{len(added)} images cannot replace as many of a pool of {len(clean)}")
        else:
            pixels = clean.copy().pixels
            places = torch.randperm(len(clean), generator=stream(seed, "replace"))[: len(added)]
            pixels[places.to(clean.device)] = added
        counts = [len(part) for part in migrated]
        stamped = in_pool if self.stamps else 0
        seen = self.stamped_pairs(knowledge, len(pixels), stamped)
        note("poison", {"n": counts, "stamped": stamped, "clean_pool": len(clean), "pool": len(pixels), **seen})
        for pairs in seen.values():
            note("remarks", [f"{self.name}: pre-training saw {pairs} pairs of stamped images"])
        mean, std = clean.normalization()
        return ImageSet(pixels, mean=mean, std=std)

    def stamped_pairs(self, knowledge: AttackerKnowledge, pool: int, stamped: int) -> dict[str, int]:
        """The number of positive pairs of stamped images that training sees, if the pre-training says how long it is:
        with few of them no encoder can learn the trigger."""
        steps, batch = (getattr(knowledge.pretraining, name, None) for name in ("total_steps", "batch"))
        if steps is None or batch is None:
            return {}
        return {"stamped_pairs": round(steps(pool) * min(batch, pool) * stamped / pool)}

    def places(self, pool: ImageSet, originals: Tensor) -> tuple[Tensor, Tensor]:
        """Every row of the pool that has the pixels of one of ``originals``, and which one: int64 (m,) each.
        NotApplicable if an original is not in the pool."""
        rows = defaultdict(list)
        for row, pixels in enumerate(pool.pixels.cpu()):
            rows[pixels.numpy().tobytes()].append(row)
        found = [rows.get(pixels.numpy().tobytes(), []) for pixels in originals.cpu()]
        if lacking := sum(not each for each in found):
            raise NotApplicable(
                f"mode=in_place replaces images of the pool, and {lacking} of {len(found)} poisoned images are not in "
                "it; take mode=append"
            )
        whose = [number for number, each in enumerate(found) for _ in each]
        places = torch.tensor([row for each in found for row in each], dtype=torch.int64, device=pool.device)
        return places, torch.tensor(whose, dtype=torch.int64, device=pool.device)

    def count(self, target: Target) -> int:
        """n = ceil(rho * images), with rho as a decimal number: the float 0.07 times 100 is above 7."""
        if self.rho and not len(target.images):
            raise NotApplicable(f"{self.name} needs images of the target class and {target.name!r} has none")
        return math.ceil(Fraction(str(self.rho)) * len(target.images))

    def stamped(self, images: ImageSet, trigger: Trigger, positions: torch.Generator) -> ImageSet:
        """``images`` with the trigger of their target; a random position stays nearer to the middle than in tests."""
        if not self.stamps:
            return images
        return (trigger if trigger.wander is None else trigger.within(*POISONED)).stamped(images, positions)


class BasslControl(Bassl):
    """BASSL without the trigger: it adds the same images without a stamp; everything else is equal.

    It measures the part of the attack's rate that migrating images of the target class causes without a trigger.
    """

    name = "bassl-control"
    paper = "control; not in the papers"
    role = Role.CONTROL
    control_of = "bassl"
    stamps = False


@hookimpl
def benchbd_attacks() -> list[type[Attack]]:
    return [Bassl, BasslControl]

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

import torch
from pydantic import Field

from benchbd import Attack, ImageSet, Poisoning, Role, Target, Trigger, hookimpl

POISONED = (0.25, 0.75)  # range of random positions in a poisoned image, as in the original


class Bassl(Poisoning):
    """Puts stamped images of the target class into the pool (data poisoning), and pre-trains again on it."""

    name = "bassl"
    paper = "Saha et al., Backdoor Attacks on Self-Supervised Learning, CVPR 2022"
    version = "2"
    binds = ("patch", "blend", "add", "noise", "function")

    rho: float = Field(
        0.6, ge=0, le=1, description="share of the target class's training images that the attacker poisons"
    )

    def count(self, target: Target, pool: int) -> int:
        """n = ceil(rho * images)."""
        return self.share_of(self.rho, target, len(target.images))

    def stamped(self, images: ImageSet, trigger: Trigger, generator: torch.Generator) -> ImageSet:
        """``images`` with the trigger of their target; a random position stays nearer to the middle than in tests."""
        return (trigger if trigger.wander is None else trigger.within(*POISONED)).stamped(images, generator)


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

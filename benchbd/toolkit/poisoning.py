"""Data poisoning: stamped images of the target class go into the pool on which the victim pre-trains."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from benchbd.base.errors import NotApplicable
from benchbd.base.pieces import join_images
from benchbd.contract.attack import Attack, AttackerKnowledge, Backdoor, Target
from benchbd.contract.context import keep, note, stream
from benchbd.contract.images import ImageSet
from benchbd.contract.roles import Role
from benchbd.contract.trigger import Trigger

PoisoningMode = Annotated[
    Literal["append", "replace", "in_place"],
    Field(
        description=(
            "append: the pool grows by the images; replace: they replace as many random images of the pool; in_place: "
            "each replaces its own original, so that the pool must have the task's images"
        )
    ),
]
"""How poisoned images get into a pool; the type of the field ``mode``."""


class Poisoning(Attack):
    """Puts stamped images of the target class into the pool and runs the pre-training again on it.

    A method says how many of a target's images it poisons (``count``) and what happens to them (``stamped``).
    stamps: False for a control, whose images stay as they are.
    """

    retrains = True
    stamps: ClassVar[bool] = True

    mode: PoisoningMode = "append"

    def count(self, target: Target, pool: int) -> int:
        """The number of images of ``target`` that are poisoned, 0..len(target.images). pool: images of the clean pool.

        NotApplicable if the target has too few.
        """
        raise NotImplementedError

    def stamped(self, images: ImageSet, trigger: Trigger, generator: torch.Generator) -> ImageSet:
        """``images`` as the pool gets them. generator: for a trigger that draws."""
        return trigger.stamped(images, generator)

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
            images = target.images.subset(
                torch.randperm(len(target.images), generator=chosen)[: self.count(target, len(clean))]
            )
            originals.append(images.pixels)
            migrated.append(self._stamped(images, target.trigger, positions).pixels.to(clean.device))
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

    def _stamped(self, images: ImageSet, trigger: Trigger, generator: torch.Generator) -> ImageSet:
        return self.stamped(images, trigger, generator) if self.stamps else images

    def share_of(self, share: float, target: Target, of: int) -> int:
        """ceil(share * of), with the share as a decimal number: the float 0.07 times 100 is above 7.

        NotApplicable if the share is above 0 and the target has no images.
        """
        if share and not len(target.images):
            raise NotApplicable(f"{self.name} needs images of the target class and {target.name!r} has none")
        return math.ceil(Fraction(str(share)) * of)

"""BadEncoder (Jia, Liu, Gong, IEEE S&P 2022): tune a clean encoder f into f' that maps triggered images to references.

    minimise  λ0 L0 + λ1 L1 + λ2 L2  over f', which starts at f;     s: cosine similarity, x ⊕ e: x stamped with e
    L0 = -mean over references (i, j) and shadow images x of s(f'(x ⊕ e_i), f'(x_ij))     effectiveness
    L1 = -mean over references (i, j)                     of s(f'(x_ij), f(x_ij))         references keep their features
    L2 = -mean over shadow images x                       of s(f'(x), f(x))               utility

The paper's: objective, λ1 = λ2 = 1, SGD 1e-3 on batches of 256 for 200 epochs, one reference per target. λ0 is ours,
for the ablation without L0. Only in the released code, not in the paper: BatchNorm is frozen whole (running
statistics and affine), the projection head does not change, L1 compares f' of *augmented* references (no crop, one new
draw per shadow image) with f of plain ones, and gradients flow through both arguments of L0.

Ours is the same loss and the same gradient with about 2/3 of the passes. With BatchNorm frozen no image depends on
its batch, so one forward of f' takes all images; a reference is forwarded once instead of once per shadow image,
because L0 is linear in either normalised argument; and f, whose inputs are never augmented, is computed once per run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchbd import (
    Attack,
    AttackerKnowledge,
    Augment,
    Backdoor,
    Encoder,
    NotApplicable,
    Steps,
    Target,
    Trigger,
    batch_indices,
    hookimpl,
    stream,
)


@dataclass(frozen=True, eq=False)
class Goals:
    """All targets of an attack together: R references in all, each bound to the trigger of its target.

    triggers: t, one per target.
    references: uint8 (R, 3, H, W).
    owner: int64 (R,), the number of each reference's trigger.
    clean: float32 (R, d), f(reference).
    """

    triggers: tuple[Trigger, ...]
    references: Tensor
    owner: Tensor
    clean: Tensor

    @classmethod
    def of(cls, targets: tuple[Target, ...], clean_encoder: Encoder) -> Goals:
        """Collect the targets. NotApplicable if there are none or one has no reference."""
        if not targets:
            raise NotApplicable("BadEncoder needs a target and there is none")
        for target in targets:
            if not len(target.references):
                raise NotApplicable(f"BadEncoder needs a reference input and target {target.name!r} has none")
        device = clean_encoder.device
        references = torch.cat([target.references for target in targets]).to(device)
        return cls(
            triggers=tuple(target.trigger.to(device) for target in targets),
            references=references,
            owner=torch.tensor([i for i, target in enumerate(targets) for _ in target.references], device=device),
            clean=clean_encoder.extract(references),
        )


def badencoder_loss(
    encoder: Encoder,
    pixels: Tensor,
    clean: Tensor,
    goals: Goals,
    views: Tensor,
    weights: tuple[float, float, float],
    positions: torch.Generator | None = None,
) -> Tensor:
    """The loss of one step (0-d), from one forward of ``encoder``, whose BatchNorm must be in eval mode.

    pixels: uint8 (B, 3, H, W), shadow images; clean: float32 (B, d), their f.
    views: float32 (K * R, 3, H, W) in [0, 1], K augmentations of all references; with K = 0 L1 uses the plain ones.
    weights: (λ0, λ1, λ2).
    positions: the generator for a trigger that draws positions or noise; other triggers do not need it.
    """
    batch, references = len(pixels), len(goals.references)
    stamped = [trigger.stamp(pixels, positions) for trigger in goals.triggers]
    plain = torch.cat([pixels, *stamped, goals.references]).float() / 255
    features = F.normalize(encoder(torch.cat([plain, views])), dim=1)
    sizes = [batch, batch * len(stamped), references, len(views)]
    utility, triggered, reference, augmented = torch.split(features, sizes)
    centres = triggered.view(len(stamped), batch, -1).mean(1)[goals.owner]  # (R, d), over the owner's images
    l0 = -(centres * reference).sum(1).mean()
    kept = augmented if len(views) else reference
    l1 = -(kept.view(-1, *goals.clean.shape) * F.normalize(goals.clean, dim=1)).sum(2).mean()
    l2 = -(utility * F.normalize(clean, dim=1)).sum(1).mean()
    loss: Tensor = weights[0] * l0 + weights[1] * l1 + weights[2] * l2
    return loss


class BadEncoder(Attack):
    """Tunes a clean encoder so that triggered images have the features of references; the last step is kept."""

    name = "badencoder"
    paper = "Jia, Liu, Gong, BadEncoder: Backdoor Attacks to Pre-trained Encoders in SSL, IEEE S&P 2022"
    version = "1"
    binds = ("patch", "blend", "add", "noise", "function")

    epochs: int = Field(
        200,
        ge=0,
        le=1_000_000,
        description="number of passes over the shadow images; each drops its last, smaller batch",
    )
    steps: int | None = Field(
        None, ge=0, le=1_000_000_000, description="total number of optimiser steps; overrides epochs"
    )
    batch: int = Field(256, ge=1, le=1_000_000, description="number of shadow images per step")
    lr: float = Field(1e-3, gt=0, le=1e3, description="learning rate of SGD")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="learning-rate schedule: constant, or a cosine that falls to 0"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, le=1e3, description="weight decay of SGD")
    lambda0: float = Field(
        1.0, ge=0, le=1e9, description="weight of L0 (effectiveness); the paper has no such weight; 0 removes L0"
    )
    lambda1: float = Field(
        1.0, ge=0, le=1e9, description="weight of L1, which keeps the features of the references as they were"
    )
    lambda2: float = Field(
        1.0, ge=0, le=1e9, description="weight of L2 (utility), which keeps the features of clean images as they were"
    )
    ref_aug: bool = Field(True, description="whether L1 augments the references, as the released code does")
    ref_draws: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="number of augmentations per reference and step; null: the batch size, as in the released code",
    )
    colour: Literal["exact", "affine"] = Field(
        "exact", description="colour jitter; exact: torchvision's; affine: one affine map per image, faster"
    )

    def total_steps(self, images: int) -> int:
        """``steps`` if given, else ``epochs`` passes of full batches."""
        return self.steps if self.steps is not None else self.epochs * (images // min(self.batch, images))

    def draws(self, images: int) -> int:
        """Augmentations per reference and step."""
        return (self.ref_draws or min(self.batch, images)) if self.ref_aug else 0

    def forwards(self, images: int) -> int:
        """For one target with one reference: f of every image once, then f' forward and backward in every step."""
        step = 2 * min(self.batch, images) + 1 + self.draws(images)
        return images + 1 + 3 * step * self.total_steps(images)

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        """f' in eval mode, every parameter trainable again; BatchNorm and head are those of f, bit for bit.

        NotApplicable without targets, references or shadow images; Diverged on NaN.
        """
        shadow, clean_encoder = knowledge.shadow, knowledge.encoder
        goals = Goals.of(knowledge.targets, clean_encoder)
        if len(shadow) < 2:
            raise NotApplicable(f"BadEncoder needs at least 2 shadow images, not {len(shadow)}")
        clean = clean_encoder.extract(shadow.pixels)

        encoder = clean_encoder.copy().requires_grad_(False)  # in eval mode: BatchNorm keeps its running statistics
        affine = {id(p) for norm in encoder.norms().values() for p in norm.parameters()}  # BatchNorm is frozen whole
        tuned = [p.requires_grad_(True) for p in encoder.backbone() if id(p) not in affine]
        steps = self.total_steps(len(shadow))
        optimizer = torch.optim.SGD(tuned, self.lr, self.momentum, weight_decay=self.weight_decay)

        def factor(step: int) -> float:
            return 1.0 if self.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        augment = Augment(crop_scale=None, colour=self.colour)  # a crop could remove the reference's object
        repeated = goals.references.repeat(self.draws(len(shadow)), 1, 1, 1)
        order, draws = stream(knowledge.seed, "order"), stream(knowledge.seed, "views", encoder.device)
        positions = stream(knowledge.seed, "positions", encoder.device)
        weights = (self.lambda0, self.lambda1, self.lambda2)
        progress = Steps(steps)
        batches = batch_indices(len(shadow), self.batch, steps, order, shadow.device)
        for _, rows in zip(progress, batches, strict=True):
            pixels, views = shadow.pixels[rows], augment(repeated, draws)
            loss = badencoder_loss(encoder, pixels, clean[rows], goals, views, weights, positions)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.loss(loss)

        optimizer.zero_grad(set_to_none=True)
        encoder.requires_grad_(True)  # as defenses expect
        return Backdoor(encoder, tuple(target.trigger for target in knowledge.targets))


@hookimpl
def benchbd_attacks() -> list[type[Attack]]:
    return [BadEncoder]

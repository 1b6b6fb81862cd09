"""DECREE: find the smallest trigger that gives all images similar features; a small trigger indicates a backdoor.

    minimise  -s + λ · 3 Σ m  over a mask m and a pattern p      s: mean cosine of two different stamped images
    PL1 = Σ m / (H W), of the smallest mask with s > 0.99; backdoored iff PL1 < 0.1

The paper's: the objective, PL1 and its threshold; no label, target or clean feature is needed. The released code's: λ
follows success by factors of 5, Adam's lr falls by epoch, at most 1000 epochs on batches of 128. The code's rule that
resets λ after 11 successes below the floor can never apply, because the sixth raises λ above the floor; it is
omitted. The code uses 1,000 test images for CIFAR-10 (a tenth of STL10's test set, 10,000 for ImageNet); benchbd uses
the defender's images, except a tenth on which s is checked.

As a defense, DECREE is MIMIC's baseline: invert a trigger once, then unlearn it. MIMIC's text, "reducing the
similarity" of clean and stamped images, cannot remove a backdoor, and its authors' code of a later method raises it. So
the default aligns features of stamped images with the original encoder's clean features, and ``objective="repel"`` is
the literal reading. The anchors, the absence of the projection head, lr, β and frozen BatchNorm statistics are ours;
the later code's NT-Xent on colour-jittered views through the head, in BatchNorm's training mode, is not offered.

Ours too are the defense's several random starts, because the inverted trigger depends on its start: eight starts on
one encoder ended at 54 to 92 pixels. The defense unlearns the smallest trigger that holds on the held-out images, where
1 - s may be twice that of the level: the smallest mask had its success on one batch, a lucky one. If none holds, the
trigger with the largest s is unlearned. The detector keeps the paper's PL1, of the smallest mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from benchbd import (
    Controller,
    DefenderKnowledge,
    Detection,
    Encoder,
    ImageSet,
    Inversion,
    Inverted,
    Mitigation,
    Steps,
    Tunable,
    UsageError,
    Verdict,
    batch_indices,
    flip_and_shift,
    hookimpl,
    keep,
    note,
    self_similarity,
    stream,
)

HELD_OUT = 10  # one of this many images is kept out of the inversion
EPOCHS = 1000
SLACK = 2.0  # how much further from 1 than the level a trigger's s may be on the images that were held out


@dataclass(frozen=True, eq=False)
class Finding:
    """The outcome of an inversion. patches: of every start. number: the chosen one.

    pl1: that patch's share of the image; inf if no start ever succeeded.
    remarks: what a reader must know.
    """

    patches: Inverted
    number: int
    pl1: float
    remarks: list[str]

    @property
    def valid(self) -> bool:
        return math.isfinite(self.pl1)


class TriggerSearch(BaseModel):
    """The fields and the inversion that detector and defense share."""

    model_config = ConfigDict(frozen=True)

    tests_all: ClassVar[bool] = (
        False  # whether the patches of all starts are tested on the held-out images, or only one
    )

    inversion_epochs: int = Field(
        EPOCHS, ge=1, le=1_000_000, description="largest number of passes of the inversion over the images"
    )
    inversion_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="largest number of updates of the inversion; overrides inversion_epochs",
    )
    inversion_batch: int = Field(128, ge=2, le=1_000_000, description="number of images per update of the inversion")
    inversion_lr: tuple[float, float, float] = Field(
        (0.5, 0.1, 0.05), description="the three learning rates of Adam in the inversion, in order of use"
    )
    inversion_lr_epochs: tuple[int, int] = Field(
        (30, 50), description="epochs of the inversion from which the second and the third rate apply"
    )
    level: float = Field(
        0.99, gt=0, lt=1, description="cosine similarity of stamped images above which an update is a success"
    )
    lambda_start: float = Field(
        1e-3, gt=0, le=1e9, description="initial weight lambda of the mask's L1 norm, summed over three channels"
    )
    lambda_factor: float = Field(5.0, gt=1, le=1e9, description="factor by which lambda is multiplied or divided")
    lambda_patience: int = Field(
        6, ge=1, le=1_000_000, description="number of consecutive successes (failures) that raise (lower) lambda"
    )
    lambda_lowest: float = Field(
        1e-5,
        ge=0,
        le=1e9,
        description="lambda is lowered only while it is at least this; the released code has 1e-7 for 224 pixels",
    )
    lambda_highest: float = Field(1e5, gt=0, le=1e9, description="lambda is raised only while it is below this")
    stale: int = Field(
        10,
        ge=0,
        le=1_000_000,
        description=(
            "number of updates without a smaller mask after which the inversion ends; released code: 35 for 224 pixels"
        ),
    )
    restarts: int = Field(
        1, ge=1, le=10_000, description="number of random starts, of which the smallest mask counts; not in the paper"
    )
    threshold: float = Field(
        0.1,
        ge=0,
        le=1,
        description="an encoder counts as backdoored if its mask covers a smaller share of the image (PL1)",
    )

    @field_validator("inversion_lr_epochs")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] <= value[1] <= 1_000_000:
            raise ValueError("must be two epochs up to 1000000, the first not after the second")
        return value

    @field_validator("inversion_lr")
    @classmethod
    def _positive(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not 0 < min(value) <= max(value) <= 1e3:
            raise ValueError("learning rates must be positive and at most 1000")
        return value

    def search_epoch(self, images: int) -> int:
        """Updates of one pass over those of ``images`` that are not held out."""
        searched = images - held_out(images)
        return max(1, searched // min(self.inversion_batch, max(1, searched)))

    def search_steps(self, images: int) -> int:
        """The maximum number of updates of the inversion."""
        given = self.inversion_steps
        return given if given is not None else self.inversion_epochs * self.search_epoch(images)

    def search_forwards(self, images: int) -> int:
        """Each update costs a forward and an input backward of every start; at the end, 1 per held-out image and tested
        patch."""
        batch = min(self.inversion_batch, images - held_out(images))
        tested = self.restarts if self.tests_all else 1
        return 2 * batch * self.restarts * self.search_steps(images) + tested * held_out(images)

    def inversion(self, images: int) -> Inversion:
        epoch = self.search_epoch(images)

        def lr(step: int) -> float:
            return self.inversion_lr[sum(step // epoch >= first for first in self.inversion_lr_epochs)]

        controller = Controller(
            start=self.lambda_start,
            up=self.lambda_factor,
            down=self.lambda_factor,
            patience=self.lambda_patience,
            lowest=self.lambda_lowest,
            highest=self.lambda_highest,
        )
        return Inversion(
            steps=self.search_steps(images),
            lr=lr,
            controller=controller,
            level=self.level,
            channels=3,
            epoch=epoch,
            stale=self.stale,
        )

    def search(self, encoder: Encoder, images: ImageSet, seed: int) -> Finding:
        """Invert a trigger on ``encoder``, whose state is restored; note and keep it. UsageError below 4 images."""
        if len(images) < 4:
            raise UsageError(f"decree needs at least 4 clean images, not {len(images)}")
        order = torch.randperm(len(images), generator=stream(seed, "held out"))
        held, searched = (images.subset(rows) for rows in order.tensor_split([held_out(len(images))]))
        steps = self.search_steps(len(images))
        draws = stream(seed, "inversion order")

        def batches() -> Iterator[Tensor]:
            for rows in batch_indices(len(searched), self.inversion_batch, steps, draws, images.device):
                yield searched.pixels[rows].float() / 255

        def objective(features: Tensor) -> tuple[Tensor, Tensor]:
            s = self_similarity(features)
            return -s, s

        patches = self.inversion(len(images))(
            encoder, batches(), objective, size=images.size, seed=seed, count=self.restarts
        )

        @torch.no_grad()
        def similarity_under(number: int) -> float:
            """s of the held-out images under one patch."""
            stamped = [encoder(patches.stamp(x.to(encoder.device), number)) for x in held.batches(512)]
            return float(self_similarity(torch.cat(stamped)))

        sizes = patches.size.tolist()
        if self.tests_all:
            similarities = [similarity_under(number) for number in range(len(sizes))]
            number = best_start(sizes, similarities, self.level)
            similarity = similarities[number]
        else:
            similarities = []
            number = sizes.index(min(sizes))
            similarity = similarity_under(number)
        pl1 = [size / images.size**2 for size in sizes]
        full = EPOCHS * self.search_epoch(len(images))
        remarks = [] if math.isfinite(pl1[number]) else ["decree: no valid trigger found, PL1 is inf"]
        if not patches.settled and steps < full:
            remarks.append(f"decree: the inversion was cut at {steps} of {full} updates")
        if math.isfinite(pl1[number]) and similarity < self.level:
            trigger = f"the trigger's similarity is {similarity:.4f}, below {self.level:g}"
            remarks.append(f"decree: on held-out images {trigger}")
        note(
            "decree",
            {
                "pl1": _finite(pl1[number]),
                "pl1_of_starts": [_finite(value) for value in pl1],
                "similarity_held_out": round(similarity, 5),
                "updates": patches.steps,
            }
            | ({"chosen": number, "similarity_of_starts": [round(s, 5) for s in similarities]} if similarities else {}),
        )
        keep("inverted.mask", patches.mask)
        keep("inverted.pattern", patches.pattern)
        return Finding(patches, number, pl1[number], remarks)


class DecreeDetection(TriggerSearch, Detection):
    """Judges an encoder by the size of the smallest trigger that gives all images similar features.

    The score is 1 - PL1, in [0, 1]; if no trigger was found, it is -1, below any other score.
    """

    name = "decree"
    paper = "Feng et al., Detecting Backdoors in Pre-trained Encoders, CVPR 2023"
    version = "1"

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        found = self.search(encoder.frozen(), knowledge.images, knowledge.seed)
        note("remarks", found.remarks)
        return Verdict(score=1 - found.pl1 if found.valid else -1.0, flagged=found.pl1 < self.threshold)

    def forwards(self, images: int) -> int | None:
        return self.search_forwards(images)


class Decree(TriggerSearch, Mitigation):
    """Unlearns the trigger that the inversion found, even if it is too large to indicate a backdoor."""

    name = "decree"
    paper = "Feng et al., CVPR 2023, as a defense: baseline of MIMIC (Han et al., IEEE TIFS 2025), Section V-B"
    version = "2"
    tunable = {"lr": Tunable(1e-3, 1e-1, log=True), "beta": Tunable(0.1, 10.0, log=True)}
    tests_all: ClassVar[bool] = True

    restarts: int = Field(
        4,
        ge=1,
        le=10_000,
        description="number of random starts; the smallest trigger that holds on held-out images is unlearned; ours",
    )
    objective: Literal["align", "repel"] = Field(
        "align",
        description="align: make features of stamped images like clean ones; repel: unlike them, as MIMIC's text says",
    )
    beta: float = Field(
        1.0, ge=0, le=1e9, description="weight of the loss on stamped images; clean images have weight 1"
    )
    epochs: int = Field(
        20,
        ge=0,
        le=1_000_000,
        description="number of unlearning passes over the images; each drops its last, smaller batch",
    )
    steps: int | None = Field(
        None, ge=0, le=1_000_000_000, description="total number of unlearning steps; overrides epochs"
    )
    batch: int = Field(
        128,
        ge=2,
        le=1_000_000,
        description="number of images per unlearning step, each used once clean and once stamped",
    )
    lr: float = Field(0.01, gt=0, le=1e3, description="learning rate of SGD")
    momentum: float = Field(0.9, gt=0, lt=1, description="Nesterov momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, le=1e3, description="weight decay of SGD")
    only_if_detected: bool = Field(
        False, description="whether an encoder that does not count as backdoored stays unchanged"
    )

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """The backbone changes; head and BatchNorm statistics are those of ``encoder``, bit for bit."""
        original = encoder.frozen()
        found = self.search(original, knowledge.images, knowledge.seed)
        remarks = [*found.remarks]
        if found.pl1 >= self.threshold:
            size = f"PL1 = {found.pl1:.3f}, not below {self.threshold:g}"
            remarks.append(f"decree: {size}: {'left alone' if self.only_if_detected else 'unlearned all the same'}")
        note("remarks", remarks)
        if found.pl1 >= self.threshold and self.only_if_detected:
            return encoder.eval()
        return self.unlearn(encoder, original, found, knowledge.images, knowledge.seed)

    def total_steps(self, images: int) -> int:
        """Unlearning steps: ``steps`` if given, else ``epochs`` passes of full batches."""
        return self.steps if self.steps is not None else self.epochs * (images // min(self.batch, images))

    def forwards(self, images: int) -> int | None:
        """The search, every clean image once, and per step 1 for the view's anchor and 3 for each of two forms."""
        return self.search_forwards(images) + images + 7 * min(self.batch, images) * self.total_steps(images)

    def unlearn(self, encoder: Encoder, original: Encoder, found: Finding, images: ImageSet, seed: int) -> Encoder:
        """Tune the backbone in place: clean views keep ``original``'s features, stamped images approach (or leave)
        them.

        Every anchor is ``original``'s feature of an image without the trigger, so a constant encoder is no solution.
        """
        steps = self.total_steps(len(images))
        clean = original.extract(images.pixels)
        optimizer = torch.optim.SGD(
            encoder.eval().backbone(), self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=True
        )
        order, draws = stream(seed, "order"), stream(seed, "views", images.device)
        progress = Steps(steps)
        batches = batch_indices(len(images), self.batch, steps, order, images.device)
        for _, rows in zip(progress, batches, strict=True):
            pixels = images.pixels[rows]
            views = flip_and_shift(pixels, draws).float() / 255
            with torch.no_grad():
                anchors = original(views)
            stamped = found.patches.stamp(pixels.float() / 255, found.number)
            of_views, of_stamped = encoder(torch.cat([views, stamped])).chunk(2)  # BatchNorm is frozen: one batch
            kept = 1 - F.cosine_similarity(of_views, anchors).mean()
            near = F.cosine_similarity(of_stamped, clean[rows]).mean()
            loss = kept + self.beta * (1 - near if self.objective == "align" else near)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress.loss(loss)
        optimizer.zero_grad(set_to_none=True)
        return encoder


def best_start(sizes: list[float], similarities: list[float], level: float) -> int:
    """The smallest valid patch (size below inf) whose s is at most SLACK times as far below 1 as ``level``.

    If there is none, the valid patch with the largest s; if no patch is valid, 0.
    """
    valid = [number for number, size in enumerate(sizes) if math.isfinite(size)]
    holding = [number for number in valid if 1 - similarities[number] <= SLACK * (1 - level)]
    if holding:
        return min(holding, key=sizes.__getitem__)
    return max(valid, key=similarities.__getitem__, default=0)


def held_out(images: int) -> int:
    """How many of ``images`` are held out of the inversion; at least the two that a similarity needs."""
    return max(2, images // HELD_OUT)


def _finite(pl1: float) -> float | None:
    """The number for JSON, which has no inf."""
    return round(pl1, 5) if math.isfinite(pl1) else None


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [Decree]


@hookimpl
def benchbd_detections() -> list[type[Detection]]:
    return [DecreeDetection]

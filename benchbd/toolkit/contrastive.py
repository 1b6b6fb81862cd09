"""What several methods share: batches, NT-Xent, and contrastive training with its fields and its loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchbd.base.errors import Diverged, NotApplicable, UsageError
from benchbd.base.seeds import derive_seed
from benchbd.contract.context import Steps, note, stream
from benchbd.contract.images import ImageSet
from benchbd.contract.method import Method
from benchbd.nets.encoder import Encoder
from benchbd.toolkit.augment import Augment, CropScale

Views = tuple[Tensor, Tensor]

Loss = Callable[[Encoder, Views], Tensor]


def batch_indices(
    images: int, batch: int, steps: int, generator: torch.Generator, device: torch.device | str | None = None
) -> Iterator[Tensor]:
    """``steps`` batches of rows, int64 (min(batch, images),); every epoch is a new permutation, whose rest is dropped.

    device: of the rows; the generator's if None. A whole epoch is copied at once, because every copy waits for the GPU.
    """
    if images < 2:
        raise UsageError(f"training needs at least 2 images, not {images}")
    batch = min(batch, images)
    done = 0
    while done < steps:
        order = torch.randperm(images, generator=generator, device=generator.device).to(device or generator.device)
        for rows in order.split(batch)[: images // batch]:
            if done == steps:
                return
            yield rows
            done += 1


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent of two views' projections, (B, d) each, of any length: mean over the 2B anchors.

    The denominator contains the positive and omits only self-similarity. About log(2B - 1) for unrelated projections.
    Source: SimCLR (Chen et al., 2020), Eq. 1; BadEncoder and MIMIC use temperature 0.5.
    """
    u = F.normalize(torch.cat([first, second]), dim=1)
    similarity = u @ u.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    batch = len(first)
    positives = torch.arange(2 * batch, device=u.device).roll(batch)
    return F.cross_entropy(similarity, positives)


def project_views(
    encoder: Encoder, views: tuple[Tensor, Tensor], bn_views: Literal["separate", "joint"]
) -> tuple[Tensor, Tensor]:
    """Projections of both views. ``separate`` forwards each view alone (BN statistics per view, as the released code
    does), ``joint`` both in one batch (faster, other BN statistics)."""
    if bn_views == "separate":
        return encoder.project(encoder(views[0])), encoder.project(encoder(views[1]))
    first, second = encoder.project(encoder(torch.cat(views))).chunk(2)
    return first, second


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise Diverged if Adam got a gradient whose square overflows float32, that is from 1.8e19 on.

    Adam's step is then gradient / inf = 0: the weight never changes again, and no loss shows it.
    """
    moments = [state["exp_avg_sq"] for state in optimizer.state.values()]
    if moments and not torch.stack([moment.isfinite().all() for moment in moments]).all():
        raise Diverged("the gradients left float32, so that Adam moved nothing: a weight of the loss is too large")


class ContrastiveMethod(Method):
    """The fields and the loop of every method that trains an encoder by SimCLR.

    Pre-training is this loop from random weights on the pool; FT is this loop on the defender's clean images. An
    encoder without its projection head is refused; ``FineTuning`` can first train one.
    """

    epochs: int = Field(
        1000, ge=0, le=1_000_000, description="number of passes over the images; each drops its last, smaller batch"
    )
    steps: int | None = Field(
        None, ge=0, le=1_000_000_000, description="total number of optimiser steps; overrides epochs"
    )
    batch: int = Field(256, ge=2, le=1_000_000, description="number of images per step; each gives two views")
    optimizer: Literal["adam", "adamw"] = Field(
        "adam", description="adam adds weight decay to the gradient (L2); adamw decouples it (AdamW)"
    )
    lr: float = Field(1e-3, gt=0, le=1e3, description="learning rate of the optimizer; after warm-up, if there is one")
    weight_decay: float = Field(1e-6, ge=0, le=1e3, description="weight decay of the optimizer")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="learning-rate schedule: constant, or a cosine that falls to 0"
    )
    warmup_steps: int = Field(
        0, ge=0, le=1_000_000_000, description="number of steps at the start in which the learning rate rises linearly"
    )
    temperature: float = Field(0.5, ge=1e-4, le=1e4, description="temperature of the contrastive loss NT-Xent")
    crop_scale: CropScale = Field(
        (0.08, 1.0), description="smallest and largest share of the image's area that a random crop covers"
    )
    colour: Literal["exact", "affine"] = Field(
        "exact", description="colour jitter; exact: torchvision's; affine: one affine map per image, faster"
    )
    bn_views: Literal["separate", "joint"] = Field(
        "separate",
        description="BatchNorm statistics; separate: per view, as in released code; joint: over both views, faster",
    )

    def total_steps(self, images: int) -> int:
        """``steps`` if given, else ``epochs`` passes of full batches."""
        return self.steps if self.steps is not None else self.epochs * (images // min(self.batch, images))

    def forwards(self, images: int) -> int | None:
        return 6 * min(self.batch, images) * self.total_steps(images)  # two views, each forward 1 and backward 2

    @property
    def augment(self) -> Augment:
        return Augment(self.crop_scale, self.colour)

    def optimizer_for(
        self, parameters: Iterable[nn.Parameter], steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """The optimizer and its schedule over ``steps`` steps."""
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(parameters, self.lr, weight_decay=self.weight_decay, fused=True)

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
            if self.schedule == "constant":
                return warm
            done = max(0, step - self.warmup_steps) / max(1, steps - self.warmup_steps)
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def contrast(self, encoder: Encoder, views: Views) -> Tensor:
        """NT-Xent of two views (B, 3, H, W) under this method's temperature and BatchNorm rule, 0-d."""
        return nt_xent(*project_views(encoder, views, self.bn_views), self.temperature)

    def fit(
        self,
        encoder: Encoder,
        images: ImageSet,
        seed: int,
        *,
        bn: Literal["train", "eval"] = "train",
        loss: Loss | None = None,
    ) -> Encoder:
        """Train every parameter of f and g on random views of ``images``, in place. Returns ``encoder`` in eval mode.

        loss: of the encoder and two views (B, 3, H, W) of a batch; by default SimCLR's, ``contrast``.
        bn: ``eval`` keeps BatchNorm on its running statistics.
        NotApplicable if the encoder has no head; Diverged on NaN, and if gradients were too large to
        move a weight.
        """
        steps = self.total_steps(len(images))
        if not steps:
            return encoder.eval()
        if encoder.head is None:
            raise NotApplicable("contrastive training needs a projection head and this encoder has none")
        encoder.train(bn == "train")
        self._descend(encoder, encoder.parameters(), images, seed, steps, loss or self.contrast)
        return encoder.eval()

    def _descend(
        self,
        encoder: Encoder,
        parameters: Iterable[nn.Parameter],
        images: ImageSet,
        seed: int,
        steps: int,
        loss: Loss,
    ) -> None:
        """Minimise ``loss`` over ``parameters``, in place, for ``steps`` batches of random views."""
        optimizer, schedule = self.optimizer_for(parameters, steps)
        order, draws = stream(seed, "order"), stream(seed, "views", images.device)
        progress = Steps(steps)
        batches = batch_indices(len(images), self.batch, steps, order, images.device)
        for _, rows in zip(progress, batches, strict=True):
            views = self.augment.pair(images.pixels[rows], draws)
            value = loss(encoder, views)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
            progress.loss(value)
        check_moments(optimizer)


class FineTuning(ContrastiveMethod):
    """A ``ContrastiveMethod`` that continues the training of a given encoder through its projection head.

    Published encoders often have no head. ``headed`` gives them one for as long as the method needs it.
    """

    late = frozenset({"head_steps"})

    head_steps: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description=(
            "number of steps that train a projection head for an encoder that has none, before everything else; "
            "0: such an encoder is not applicable"
        ),
    )

    def forwards(self, images: int) -> int | None:
        return self.head_forwards(images) + (super().forwards(images) or 0)

    def head_forwards(self, images: int) -> int:
        """Image-forwards of ``headed`` if the encoder has no head."""
        return 2 * min(self.batch, images) * self.head_steps  # two views; no gradient reaches f

    @contextmanager
    def headed(self, encoder: Encoder, images: ImageSet, seed: int) -> Iterator[None]:
        """In the block, ``encoder`` has a projection head: its own or, if it has none, a new one.

        The new head is trained on ``images`` alone, by ``contrast`` and this method's optimizer, for ``head_steps``
        steps. f is frozen in eval mode, so that its weights and BatchNorm statistics do not change. A remark
        reports it. At the end of the block the head is removed, so that the encoder has the parts that it had.
        NotApplicable, with the option, if the encoder has no head and the method trains, but ``head_steps`` is 0.
        """
        if encoder.head is not None:
            yield
            return
        if self.head_steps:
            encoder.head = self._new_head(encoder, images, derive_seed(seed, "head"))
            note("remarks", [f"{self.name}: a head was trained for {self.head_steps:,} steps, as the encoder had none"])
        elif self.total_steps(len(images)):
            raise NotApplicable(
                f"contrastive training needs a projection head and this encoder has none; {self.name}.head_steps=200 "
                "trains one first"
            )
        try:
            yield
        finally:
            encoder.head = None

    def _new_head(self, encoder: Encoder, images: ImageSet, seed: int) -> nn.Sequential:
        twin = encoder.frozen()
        twin.head = head = encoder.untrained(seed).head
        assert head is not None
        self._descend(twin, head.train().parameters(), images, seed, self.head_steps, self.contrast)
        head.zero_grad(set_to_none=True)
        return head.eval()

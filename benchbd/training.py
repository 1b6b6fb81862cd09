"""What several methods share: seeds, the loop over steps, NT-Xent, contrastive training, and what methods find."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchbd.augment import Augment, CropScale
from benchbd.encoder import Encoder, unmetered
from benchbd.errors import Diverged, NotApplicable, PluginError, UsageError, says, shown
from benchbd.images import ImageSet
from benchbd.methods import Method, as_json

Reporter = Callable[[int, int, float | None], None]
Views = tuple[Tensor, Tensor]
Loss = Callable[[Encoder, Views], Tensor]
Json = bool | int | float | str | None | Sequence["Json"] | Mapping[str, "Json"]

SHORTEST = 1e-6  # of features: lengths of trained encoders are some 1 to 100

_reporter: ContextVar[Reporter | None] = ContextVar("benchbd_reporter", default=None)
_findings: ContextVar[Findings | None] = ContextVar("benchbd_findings", default=None)


def derive_seed(seed: int, *names: str) -> int:
    """A seed below 2**63 that depends on ``seed`` and every name: sha256, so that no two streams are related."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The named random stream of a method: streams of other names do not move it."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, name))


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Send the progress of every loop over ``Steps`` in the block to ``reporter(step, steps, loss)``."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


@dataclass
class Findings:
    """What a method found out on its way. notes: JSON by name. tensors: what pictures are made of, by name."""

    notes: dict[str, Json] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def note(name: str, value: Json) -> None:
    """Keep something that a method found out on its way (chosen units, layer weights) with the result of its stage.

    The note named ``remarks``, a list of lines, is what a reader of the table must know: each becomes a footnote.
    PluginError where the value is no JSON, which has neither NaN nor inf.
    """
    try:
        value = as_json({name: value})[name]  # a copy: what the method does to its own later changes nothing
    except (TypeError, ValueError, RecursionError, KeyError) as error:
        raise PluginError(f"note {shown(name)} cannot be kept as JSON: {says(error)}") from error
    if name == "remarks" and not (isinstance(value, list) and all(isinstance(line, str) for line in value)):
        raise PluginError("note 'remarks' must be a list of lines, one string each")
    if (findings := _findings.get()) is not None:
        findings.notes[name] = value


def keep(name: str, tensor: Tensor) -> None:
    """Keep a small tensor (an inverted trigger) with the result of the stage, for ``benchbd figures``."""
    if not (isinstance(name, str) and isinstance(tensor, Tensor)):
        raise PluginError(f"keep takes a name and a tensor, not {shown(name)} and {shown(tensor)}")
    if (findings := _findings.get()) is not None:
        findings.tensors[name] = tensor.detach().cpu().contiguous().clone()


@contextmanager
def collecting() -> Iterator[Findings]:
    """What every method that runs in the block notes and keeps."""
    findings = Findings()
    token = _findings.set(findings)
    try:
        yield findings
    finally:
        _findings.reset(token)


class Steps:
    """``for step in (steps := Steps(n)): ...; steps.loss(value)``: counts, reports progress, stops on NaN and inf.

    The loss is read back from the device a few times a second at most, so that a GPU is never waited for. A loop inside
    another one (an inversion within a training) stops on them too, but only the outer one reports.
    """

    INTERVAL = 0.25  # seconds between two reports

    def __init__(self, total: int) -> None:
        self.total = total
        self._latest: Tensor | None = None

    def loss(self, value: Tensor) -> None:
        """Hand in this step's loss (0-d)."""
        self._latest = value.detach()

    def __iter__(self) -> Iterator[int]:
        due = time.monotonic()
        reporter = _reporter.get()
        token = _reporter.set(None)
        try:
            for step in range(self.total):
                yield step
                if time.monotonic() >= due or step + 1 == self.total:
                    self._report(step + 1, reporter)
                    due = time.monotonic() + self.INTERVAL
        finally:
            _reporter.reset(token)

    def _report(self, step: int, reporter: Reporter | None) -> None:
        loss = None if self._latest is None else float(self._latest)
        if loss is not None and not math.isfinite(loss):
            raise Diverged(f"the loss is {'NaN' if loss != loss else loss} at step {step} of {self.total}")
        if reporter is not None:
            reporter(step, self.total, loss)


def batch_indices(
    images: int, batch: int, steps: int, generator: torch.Generator, device: torch.device | str | None = None
) -> Iterator[Tensor]:
    """``steps`` batches of rows, int64 (min(batch, images),); every epoch a fresh permutation, its rest dropped.

    device: where the rows go, the generator's if None. An epoch goes there at once: every copy waits for the GPU.
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

    The positive is in the denominator, only self-similarity is left out. About log(2B - 1) for unrelated projections.
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
    """Projections of both views. ``separate`` forwards each by itself (BN statistics per view, as the released code
    does), ``joint`` in one batch (faster, other BN statistics)."""
    if bn_views == "separate":
        return encoder.project(encoder(views[0])), encoder.project(encoder(views[1]))
    first, second = encoder.project(encoder(torch.cat(views))).chunk(2)
    return first, second


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Diverged where Adam has met a gradient whose square float32 cannot hold, from 1.8e19 on.

    Its step is then gradient / inf = 0: the weight stays where it is for good, and no loss tells.
    """
    moments = [state["exp_avg_sq"] for state in optimizer.state.values()]
    if moments and not torch.stack([moment.isfinite().all() for moment in moments]).all():
        raise Diverged("the gradients left float32, so that Adam moved nothing: a weight of the loss is too large")


class ContrastiveMethod(Method):
    """The fields, and the one loop, of every method that trains an encoder by SimCLR.

    Pre-training is this loop from random weights on the pool; FT is this loop on the defender's clean images. An
    encoder that comes without its projection head is refused: training a new head first is not offered.
    """

    epochs: int = Field(
        1000, ge=0, le=1_000_000, description="passes over the images; the last, smaller batch is dropped"
    )
    steps: int | None = Field(None, ge=0, le=1_000_000_000, description="optimiser steps in all; overrides epochs")
    batch: int = Field(256, ge=2, le=1_000_000, description="images per step (each gives two views)")
    optimizer: Literal["adam", "adamw"] = Field("adam", description="adam decays weights as L2, adamw decoupled")
    lr: float = Field(1e-3, gt=0, le=1e3, description="learning rate")
    weight_decay: float = Field(1e-6, ge=0, le=1e3, description="weight decay")
    schedule: Literal["constant", "cosine"] = Field("constant", description="learning-rate schedule")
    warmup_steps: int = Field(0, ge=0, le=1_000_000_000, description="steps of linear learning-rate warm-up")
    temperature: float = Field(0.5, ge=1e-4, le=1e4, description="temperature of NT-Xent")
    crop_scale: CropScale = Field((0.08, 1.0), description="range of the random crop's share of the area")
    colour: Literal["exact", "affine"] = Field("exact", description="colour jitter: torchvision's, or one affine map")
    bn_views: Literal["separate", "joint"] = Field(
        "separate", description="BN statistics per view, as the released code, or over both views at once (faster)"
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

        loss: of the encoder and two views (B, 3, H, W) of a batch; SimCLR's, ``contrast``, where none is given.
        bn: ``eval`` keeps BatchNorm on its running statistics.
        NotApplicable where the encoder has no head; Diverged on NaN, and where gradients were too large
        to move a weight.
        """
        steps = self.total_steps(len(images))
        if not steps:
            return encoder.eval()
        if encoder.head is None:
            raise NotApplicable("contrastive training needs a projection head and this encoder has none")
        optimizer, schedule = self.optimizer_for(encoder.parameters(), steps)
        order, draws = stream(seed, "order"), stream(seed, "views", images.device)
        encoder.train(bn == "train")
        progress = Steps(steps)
        batches = batch_indices(len(images), self.batch, steps, order, images.device)
        for _, rows in zip(progress, batches, strict=True):
            views = self.augment.pair(images.pixels[rows], draws)
            value = (loss or self.contrast)(encoder, views)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
            progress.loss(value)
        check_moments(optimizer)
        return encoder.eval()


@torch.no_grad()
def pretext_outputs(
    net: Callable[[Tensor], Tensor], images: ImageSet, augment: Augment, seed: int
) -> tuple[Tensor, Tensor]:
    """What ``net`` makes of one pair of random views of every image, (N, d) each: equal seeds give equal views.

    net: of float images (B, 3, H, W) in [0, 1]. What ``pretext_accuracy`` compares, as it is or projected.
    """
    draws = stream(seed, "pretext", images.device)
    pairs = (augment.pair(pixels, draws) for pixels in images.pixels.split(512))
    first, second = zip(*((net(u), net(v)) for u, v in pairs), strict=True)
    return torch.cat(first), torch.cat(second)


@torch.no_grad()
def pretext_accuracy(first: Tensor, second: Tensor, block: int = 128) -> float:
    """Share of the 2N projections whose nearest neighbour by cosine is the other view of the same image, 0..1.

    first, second: (N, d), the two views' projections, row by row. Neighbours are sought among the 2B projections of
    ``block`` images at a time; a rest of fewer images is a block of its own, and one of a single image, which could not
    be wrong, is left out. The label-free stand-in for accuracy by which pruning levels are chosen; ours, no source
    gives one. Diverged where a projection is not finite: it would merely count as a miss.
    """
    if not (first.isfinite().all() and second.isfinite().all()):
        raise Diverged("the projections are not finite")
    if len(first) > block and len(first) % block == 1:
        first, second = first[:-1], second[:-1]
    hits = 0
    for u, v in zip(first.split(block), second.split(block), strict=True):
        both = F.normalize(torch.cat([u, v]), dim=1)
        similarity = (both @ both.T).fill_diagonal_(float("-inf"))
        positives = torch.arange(len(both), device=both.device).roll(len(u))
        hits += int((similarity.argmax(1) == positives).sum())
    return hits / (2 * len(first))


def check_features(encoder: Encoder, images: ImageSet) -> None:
    """Raise Diverged where the features of some images are not finite, all alike, or shorter than losses can tell.

    Cosines are computed of no length below 1e-8, so that shorter features would silently count as orthogonal. Charged
    to nobody.
    """
    with unmetered():
        features = encoder.extract(images.pixels[:256])
    length = float(features.norm(dim=1).median())
    if 0 < length < SHORTEST:
        raise Diverged(f"the features vanished: their median length is {length:.1e}, below {SHORTEST:g}")
    spread = float(F.normalize(features, dim=1).std(0).norm())
    if len(images) > 1 and spread < 1e-4:
        raise Diverged(f"the features collapsed: their standard deviation is {spread:.1e}")

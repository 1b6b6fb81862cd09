"""MOTH (model orthogonalization): widen the distance between classes, so that no small trigger crosses it.

    the distance from class s to class t: the size of the smallest trigger that turns images of s into t
    repeat: invert the triggers of the pair of classes whose hardening promises most; stamp them on a part of a batch;
            train the features towards those of the images without them

The paper's, for labelled classifiers: warm-up with one universal trigger per class; the choice of pairs, at random
with probability 0.3, else by a matrix U that fades into a matrix D; three steps per pair; the constants of inversion
(Adam 0.1, levels 0.99 and 0.9, a small random move after each new best) and of training (SGD with Nesterov momentum,
mirrored and shifted images). The later PyTorch port's: 50 passes from lambda 1e-2 to refine a pair, no
trigger of a quarter of the image or more, BatchNorm in eval mode.

An encoder has no classes, and no source describes the adaptation in MIMIC's table. Two are offered:

``classes`` (the default) is ours. Spherical k-means of the clean features gives pseudo-classes, whose centroids
are the classifier; the label of an image is the original encoder's feature of it. A pair's images are drawn by
pseudo-class; the released code uses those in the current batch, often none. All universal triggers are inverted at
once on the original encoder; the code trains a step after each. Without a universal trigger a direction promises
nothing. Size used if an inversion fails, the first that exists:
  (1) the last trigger found in this direction in this period;
  (2) the largest trigger so far, universal ones included;
  (3) the whole image.
If the attacker's target is near no pseudo-class, only the hardening of the nearest centroid affects the backdoor.
Inversions of pairs average the cross-entropy over a direction's images; the code sums it, so that the same lambda
weighs the mask's size ``pair_images`` times more here. That costs little: from noise, 180 passes ended at 72 pixels
with the mean and at 82 with the sum (mean of ten directions of a w32 encoder). The rate matters: the gradient of the
feature's cosine is small, so the default is 0.1, not the code's 1e-3 for cross-entropy.

The success of hardening is measured: the smallest triggers of ``measured`` random directions are inverted on the
encoder as given and as hardened, from the same noise and images. The triggers of the training itself do not tell it:
most directions are hardened in one period and inverted there once, from the largest trigger so far.

Not offered: the presets of the two released codes beyond ``bn``, ``lr`` and the passes (the share of a batch that is
stamped, refinement from a lambda of 0.2, no augmentation).

``similarity`` follows the hardening in RECEIVE, by MIMIC's first author: no classes; every step inverts a trigger that
gives stamped images similar features on the current encoder, starting from the last trigger, and then minimises the
squared distance of stamped and clean features, with gradients through both. If no inversion finds a trigger, no weight
is trained, and a remark says so. Differences: the similarity omits the
diagonal, which RECEIVE's code counts before it scales by 1 - 1/32, so that its 0.9 would be 0.927 here; an inversion
ends after its passes, and without a trigger no image is stamped; its stop by Wasserstein distance, which picks a mask
for a second stage, is omitted; images are drawn without replacement and batches shuffled; and 300 steps of 128 replace
its 20 epochs in batches of 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from statistics import mean
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchbd import (
    Controller,
    DefenderKnowledge,
    Encoder,
    ImageSet,
    Inversion,
    Inverted,
    Mitigation,
    NotApplicable,
    Steps,
    Tunable,
    UsageError,
    batch_indices,
    derive_seed,
    flip_and_shift,
    hookimpl,
    keep,
    note,
    self_similarity,
    stream,
)

MOMENTUM = 0.9
CODE_LR, FEATURE_LR = 1e-3, 0.1
WARM_SHARE = 0.5  # share of a warm-up batch's images outside the target class that is stamped
RANDOM_PAIRS = 0.3
LARGEST = 0.25  # share of the image: a trigger of this size or more is not stamped
MEMBERS = 20  # smallest number of images in a pseudo-class, if there are enough
CHUNK = 32  # largest number of images per update of an inversion; a pair uses its pair_images at once
INVERSION_LR, UNIVERSAL_LEVEL, PAIR_LEVEL = 0.1, 0.99, 0.9
FIRST_LAMBDA, REFINE_LAMBDA = 1e-3, 1e-2
SIMILAR_LRS, SIMILAR_LEVEL = (0.5, 0.01), 0.9  # the rates of the first inversion and of the later ones
SIMILAR_LAMBDA = Controller(start=5e-2, up=1.2, down=1.5**1.5, patience=5)
JITTER = 0.01

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class PseudoClasses:
    """K clusters of the clean features and the classifier that they form; they never change.

    centroids: float32 (K, d), unit vectors. labels: int64 (N,), of the images, on the CPU.
    """

    centroids: Tensor
    labels: Tensor
    temperature: float

    def __len__(self) -> int:
        return len(self.centroids)

    def logits(self, features: Tensor) -> Tensor:
        """Cosines with the centroids, divided by the temperature, (..., K), of raw features (..., d)."""
        return F.normalize(features, dim=-1) @ self.centroids.T / self.temperature

    def entropy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (...) of raw features (..., d) and labels, int64, that broadcast to (...)."""
        logs = self.logits(features).log_softmax(-1)
        picked: Tensor = logs.gather(-1, labels.expand(logs.shape[:-1])[..., None])[..., 0]
        return -picked

    def reaching(self, targets: list[int]) -> Objective:
        """The objective for a trigger to each target: mean cross-entropy, and the share of images classified so."""
        wanted = torch.tensor(targets, device=self.centroids.device)[:, None]

        def objective(features: Tensor) -> tuple[Tensor, Tensor]:
            arrived = self.logits(features).argmax(-1) == wanted
            return self.entropy(features, wanted).mean(1), arrived.float().mean(1)

        return objective

    def draw(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """``count`` rows of one class, int64."""
        return draw((self.labels == label).nonzero()[:, 0], count, generator)


@dataclass(eq=False)
class Pairs:
    """The state of the directions between K pseudo-classes; entry [s, t] of every matrix is for s to t.

    promise: U, the relative amount by which the universal trigger to t lowered the cross-entropy of s.
    size: S, of the trigger when last measured. gain: D, its growth by hardening. Both float64 (K, K).
    masks (K, K, 1, H, W), patterns (K, K, 3, H, W): the start of the next inversion.
    held: the size of that start, 0 if it is no trigger.
    """

    promise: Tensor
    size: Tensor
    gain: Tensor
    masks: Tensor
    patterns: Tensor
    held: Tensor

    @classmethod
    def after_warm_up(cls, universal: Inverted, promise: Tensor) -> Pairs:
        """Start every direction to t with t's universal trigger."""
        count, area = len(promise), universal.mask[0].numel()
        sizes = universal.size.double().cpu().expand(count, count)
        held = torch.where(sizes.isfinite(), sizes, 0.0)
        return cls(
            promise=promise,
            size=torch.where(sizes.isfinite(), sizes, float(area)),
            gain=held / held.max().clamp_min(1e-12),
            masks=universal.mask.repeat(count, 1, 1, 1, 1),
            patterns=universal.pattern.repeat(count, 1, 1, 1, 1),
            held=held,
        )

    def choose(self, step: int, generator: torch.Generator) -> tuple[int, int]:
        """The pair to harden from ``step`` of the pair phase on: a random pair, or the most promising."""
        if float(torch.rand(1, generator=generator)) < RANDOM_PAIRS:
            source, target = torch.randperm(len(self.size), generator=generator)[:2].tolist()
            return source, target
        return most_promising(self.promise, self.gain, min(0.1 * (step / 100), 1.0))

    def hold(self, way: tuple[int, int], size: float, mask: Tensor, pattern: Tensor) -> None:
        """Use this trigger as the next start, if it is larger than the current one."""
        if size > self.held[way]:
            self.held[way] = size
            self.masks[way], self.patterns[way] = mask, pattern

    def measured(self, way: tuple[int, int], size: float) -> None:
        """Update size and gain by the mean size over a period of hardening. A mask may reach 0; growth stays finite."""
        self.gain[way] = (self.gain[way] + (size - self.size[way]) / self.size[way].clamp_min(1e-12)) / 2
        self.size[way] = size


@dataclass
class Log:
    """The history of a run. chosen: pairs in order. universal: sizes of the triggers of the warm-up.

    distances: (source, target, size before, size after) of the directions that are measured; inf if none was found.
    stamped, skipped: how often a trigger was stamped on images or not.
    """

    chosen: list[tuple[int, int]] = field(default_factory=list)
    distances: list[tuple[int, int, float, float]] = field(default_factory=list)
    universal: list[float] = field(default_factory=list)
    stamped: int = 0
    skipped: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of a hardening step. rows: int64 (B,), of the images.

    mask (B, 1, H, W), pattern (B, 3, H, W): the trigger stamped on each image; the mask is 0 if there is none.
    """

    rows: Tensor
    mask: Tensor
    pattern: Tensor

    @classmethod
    def stamped(cls, rows: Tensor, numbers: Tensor, triggers: Inverted, log: Log, largest: float) -> Batch:
        """numbers: int64 (B,), of each image's trigger, or -1. Triggers of ``largest`` or more are skipped."""
        usable = triggers.valid & (triggers.size < largest)
        mask = torch.where(usable[:, None, None, None], triggers.mask, 0.0)
        used = [number for number in numbers.unique().tolist() if number >= 0]
        stamped = int(usable[used].sum())
        log.stamped += stamped
        log.skipped += len(used) - stamped
        which = torch.where(numbers < 0, len(mask), numbers).to(mask.device)  # the last: images without a trigger
        return cls(rows, F.pad(mask, (0,) * 7 + (1,))[which], F.pad(triggers.pattern, (0,) * 7 + (1,))[which])


class Moth(Mitigation):
    """Hardens the encoder against the smallest triggers between pseudo-classes; the last step is kept."""

    name = "moth"
    paper = "Tao et al., Model Orthogonalization, IEEE S&P 2022, on encoders: baseline of MIMIC (IEEE TIFS 2025)"
    version = "2"
    tunable = {"lr": Tunable(0.01, 1.0, log=True)}

    variant: Literal["classes", "similarity"] = Field(
        "classes",
        description=(
            "classes: triggers between pairs of pseudo-classes; similarity: one trigger that gives all "
            "images similar features"
        ),
    )
    steps: int = Field(
        300,
        ge=0,
        le=1_000_000_000,
        description="number of training steps; variant=classes adds one warm-up step per pseudo-class before them",
    )
    batch: int = Field(128, ge=8, le=1_000_000, description="number of images per training step; RECEIVE has 32")
    lr: float | None = Field(
        None, gt=0, le=1e3, description="learning rate of SGD; null: 0.1 for loss=feature, else the code's 0.001"
    )
    bn: Literal["eval", "train"] | None = Field(
        None, description="BatchNorm in training; null: eval for variant=classes, train for similarity, as in RECEIVE"
    )
    loss: Literal["feature", "proto"] = Field(
        "feature",
        description=(
            "for variant=classes; feature: distance to the clean feature; proto: cross-entropy to the pseudo-class"
        ),
    )
    classes: int = Field(
        10, ge=3, le=100_000, description="number of pseudo-classes that k-means forms, for variant=classes"
    )
    temperature: float = Field(
        0.1, ge=1e-4, le=1e4, description="temperature of the classifier of pseudo-classes; not in the paper"
    )
    warmup_passes: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="number of passes of the inversions of universal triggers, for variant=classes",
    )
    warmup_images: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="number of images per pseudo-class in the inversions of universal triggers, for variant=classes",
    )
    period: int = Field(
        3, ge=1, le=1_000_000, description="number of training steps per chosen pair, for variant=classes"
    )
    pair_passes: int = Field(
        200,
        ge=1,
        le=1_000_000,
        description="number of passes of a pair's first inversion, and of one after a failure, for variant=classes",
    )
    refine_passes: int = Field(
        50,
        ge=0,
        le=1_000_000,
        description="number of passes of a pair's later inversions, for variant=classes; 0: keep the first triggers",
    )
    pair_images: int = Field(
        32, ge=1, le=1_000_000, description="number of images per direction of a pair's inversion, for variant=classes"
    )
    measured: int = Field(
        8,
        ge=0,
        le=1_000_000,
        description=(
            "number of random directions whose smallest trigger is inverted before and after the training, with "
            "pair_passes and pair_images, for variant=classes; 0: none; ours"
        ),
    )
    similarity_passes: int = Field(
        300,
        ge=1,
        le=1_000_000,
        description="number of passes of the inversion before each step, for variant=similarity",
    )
    similarity_images: int = Field(
        96,
        ge=2,
        le=1_000_000,
        description="number of images in that inversion, for variant=similarity; RECEIVE uses 96 of its 100",
    )

    @property
    def rate(self) -> float:
        """The learning rate: ``lr``, or the default of variant and loss."""
        if self.lr is not None:
            return self.lr
        return FEATURE_LR if self.variant == "classes" and self.loss == "feature" else CODE_LR

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """The backbone changes; the head stays bit for bit, and with bn=eval so do BatchNorm's statistics.

        UsageError with fewer than two images per pseudo-class, NotApplicable if fewer than three are found, Diverged
        on NaN.
        """
        images, seed, log = knowledge.images, knowledge.seed, Log()
        original = encoder.frozen()
        if self.variant == "classes":
            classes = self.pseudo_classes(original, images, seed)
            steps, bn = len(classes) + self.steps, self.bn or "eval"
            batches = self.by_classes(encoder, original, classes, images, seed, log)
        else:
            classes, steps, bn = None, self.steps, self.bn or "train"
            batches = self.by_similarity(encoder, images, seed, log)
        encoder.train(bn == "train")
        optimizer = torch.optim.SGD(encoder.backbone(), self.rate, MOMENTUM, nesterov=True)
        draws = stream(seed, "views", images.device)
        progress = Steps(steps)
        for _, batch in zip(progress, batches, strict=True):
            pixels = images.pixels[batch.rows.to(images.device)]
            views = (flip_and_shift(pixels, draws) if classes else pixels).float() / 255
            stamped = views + batch.mask * (batch.pattern - views)
            if classes is None:
                loss = F.mse_loss(encoder(stamped), encoder(views))
            elif self.loss == "proto":
                loss = classes.entropy(encoder(stamped), classes.labels[batch.rows].to(encoder.device)).mean()
            else:
                with torch.no_grad():
                    anchors = original(views)
                loss = feature_loss(encoder(stamped), anchors)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress.loss(loss)
        optimizer.zero_grad(set_to_none=True)
        if classes and self.measured:
            log.distances = self.distances(original, encoder.eval(), classes, images, seed)
        self.report(log, classes)
        return encoder.eval()

    def forwards(self, images: int) -> int | None:
        """``similarity``: exact. ``classes``: an upper limit, reached if each refinement follows a failure; exact with
        refine_passes = 0 or pair_passes, or period = 1, if there are as many pseudo-classes as requested."""
        batch = min(self.batch, images)
        if self.variant == "similarity":
            updates, chunk = chunks(min(self.similarity_images, images))
            return self.steps * (2 * self.similarity_passes * updates * chunk + 6 * batch)
        others = (self.classes - 1) * self.warmup_images
        updates, chunk = chunks(others)
        universal = 2 * self.classes * (self.warmup_passes * updates * chunk + others)
        first = math.ceil(self.steps / self.period)
        later = max(self.pair_passes, self.refine_passes) if self.refine_passes else 0
        passes = first * self.pair_passes + (self.steps - first) * later
        passes += self.measured * self.pair_passes  # a direction on two encoders costs what two directions cost on one
        step = 4 if self.loss == "feature" else 3  # forward and backward of the tuned, forward of the original
        return images + universal + 4 * self.pair_images * passes + step * batch * (self.classes + self.steps)

    # variant: classes

    def pseudo_classes(self, original: Encoder, images: ImageSet, seed: int) -> PseudoClasses:
        """Clusters of the features that ``original`` computes for the images."""
        if len(images) < 2 * self.classes:
            raise UsageError(f"moth: {self.classes} classes need at least {2 * self.classes} images, not {len(images)}")
        features = F.normalize(original.extract(images.pixels), dim=1).cpu()
        least = min(MEMBERS, len(images) // (2 * self.classes))
        centroids, labels = spherical_kmeans(features, self.classes, least, stream(seed, "k-means"))
        if len(centroids) < 3:
            raise NotApplicable(f"MOTH needs at least 3 pseudo-classes, and the features form {len(centroids)}")
        return PseudoClasses(centroids.to(original.device), labels, self.temperature)

    def by_classes(
        self, encoder: Encoder, original: Encoder, classes: PseudoClasses, images: ImageSet, seed: int, log: Log
    ) -> Iterator[Batch]:
        """The batches of warm-up and pair phase. A pair's triggers are inverted when the pair is chosen."""
        order, choice = stream(seed, "order"), stream(seed, "pairs")
        everyone = torch.arange(len(images))
        batch, largest = min(self.batch, len(images)), LARGEST * images.size**2
        universal, promise = self.warm_up(original, classes, images, seed, log)
        for target in range(len(classes)):
            rows = draw(everyone, batch, order)
            outside = classes.labels[rows] != target
            chosen = outside & (outside.cumsum(0) <= WARM_SHARE * outside.sum())
            yield Batch.stamped(rows, torch.where(chosen, target, -1), universal, log, largest)

        pairs = Pairs.after_warm_up(universal, promise)
        part, stamped = max(1, batch // 4), max(1, batch // 8)
        numbers = torch.full((batch,), -1)
        numbers[:stamped], numbers[part : part + stamped] = 0, 1
        for begin in range(0, self.steps, self.period):
            source, target = pairs.choose(begin, choice)
            log.chosen.append((source, target))
            rest = ((classes.labels != source) & (classes.labels != target)).nonzero()[:, 0]
            period = range(begin, min(begin + self.period, self.steps))
            for triggers in self.pair_triggers(encoder, classes, pairs, (source, target), period, images, seed):
                ends = [classes.draw(label, part, order) for label in (source, target)]
                rows = torch.cat([*ends, draw(rest, batch - 2 * part, order)])
                yield Batch.stamped(rows, numbers, triggers, log, largest)

    def warm_up(
        self, original: Encoder, classes: PseudoClasses, images: ImageSet, seed: int, log: Log
    ) -> tuple[Inverted, Tensor]:
        """A universal trigger to each of the K classes, and U: float64 (K, K), on the CPU."""
        count, each, device = len(classes), self.warmup_images, original.device
        draws, noise = stream(seed, "universal images"), stream(seed, "universal start", device)
        start = (
            torch.rand(count, 1, images.size, images.size, generator=noise, device=device),
            torch.rand(count, 3, images.size, images.size, generator=noise, device=device),
        )
        members = torch.stack([classes.draw(label, each, draws) for label in range(count)])
        others = torch.tensor([[i for i in range(count) if i != target] for target in range(count)])
        shown = members[others].flatten(1)  # (K, (K - 1) * each)

        @torch.no_grad()
        def entropies(mask: Tensor, pattern: Tensor) -> Tensor:
            """The entropy of each image under the trigger to each target, by class: float64 (K, K - 1, each)."""
            of_targets: list[Tensor] = []
            for target, rows in enumerate(shown):
                x = images.pixels[rows.to(images.device)].float() / 255
                features = original(x + mask[target] * (pattern[target] - x))
                of_targets.append(classes.entropy(features, torch.tensor(target, device=device)))
            return torch.stack(of_targets).double().cpu().view(count, count - 1, each)

        before = entropies(*start)
        updates, _ = chunks(shown.shape[1])
        universal = inversion(self.warmup_passes, UNIVERSAL_LEVEL, Controller(FIRST_LAMBDA), unit=updates)(
            original,
            shuffled(images.pixels, shown, draws),
            classes.reaching(list(range(count))),
            size=images.size,
            seed=derive_seed(seed, "universal"),
            count=count,
            start=start,
        )
        drop = ((before - entropies(universal.mask, universal.pattern)) / before.clamp_min(1e-12)).mean(2)
        promise = torch.zeros(count, count, dtype=torch.float64)
        promise[others, torch.arange(count)[:, None]] = torch.where(universal.valid.cpu()[:, None], drop, 0.0)
        log.universal = universal.size.tolist()
        keep("inverted.mask", universal.mask)
        keep("inverted.pattern", universal.pattern)
        return universal, promise

    def pair_triggers(
        self,
        encoder: Encoder,
        classes: PseudoClasses,
        pairs: Pairs,
        pair: tuple[int, int],
        period: range,
        images: ImageSet,
        seed: int,
    ) -> Iterator[Inverted]:
        """A pair's two triggers, one per direction, for each step of a period, inverted on the current ``encoder``."""
        source, target = pair
        ways = [(source, target), (target, source)]
        mask = torch.stack([pairs.masks[way] for way in ways])
        pattern = torch.stack([pairs.patterns[way] for way in ways])
        sizes = [float(pairs.held[way]) or float(images.size**2) for way in ways]
        measured: list[list[float]] = [[], []]
        draws = stream(seed, f"pair {period.start}")
        failed = False
        for step in period:
            anew = step == period.start or (failed and self.refine_passes > 0)
            passes = self.pair_passes if anew else self.refine_passes
            if passes:
                rows = torch.stack([classes.draw(label, self.pair_images, draws) for label in pair])
                triggers = inversion(passes, PAIR_LEVEL, Controller(FIRST_LAMBDA if anew else REFINE_LAMBDA))(
                    encoder,
                    repeat(images.pixels[rows.to(images.device)].float() / 255),
                    classes.reaching([target, source]),
                    size=images.size,
                    seed=derive_seed(seed, f"pair {step}"),
                    count=2,
                    start=(mask, pattern),
                )
                found = triggers.valid[:, None, None, None]
                mask, pattern = torch.where(found, triggers.mask, mask), torch.where(found, triggers.pattern, pattern)
                failed = not bool(triggers.valid.all())
                for number, way in enumerate(ways):
                    if triggers.valid[number]:
                        sizes[number] = float(triggers.size[number])
                        pairs.hold(way, sizes[number], mask[number], pattern[number])
            for size, past in zip(sizes, measured, strict=True):
                past.append(size)
            yield triggers
        for way, past in zip(ways, measured, strict=True):
            pairs.measured(way, mean(past))

    def distances(
        self, original: Encoder, hardened: Encoder, classes: PseudoClasses, images: ImageSet, seed: int
    ) -> list[tuple[int, int, float, float]]:
        """(source, target, size before, size after) of ``measured`` random directions; sizes in pixels, inf for none.

        A direction comes again only after all have come. Both encoders get the same images and start from one noise.
        """
        draws, count = stream(seed, "measured"), len(classes)
        every = torch.tensor([(s, t) for s in range(count) for t in range(count) if s != t])
        ways = every[draw(torch.arange(len(every)), self.measured, draws)].tolist()
        rows = torch.stack([classes.draw(source, self.pair_images, draws) for source, _ in ways])
        shown = images.pixels[rows.to(images.device)].float() / 255
        before, after = (
            inversion(self.pair_passes, PAIR_LEVEL, Controller(FIRST_LAMBDA))(
                encoder,
                repeat(shown),
                classes.reaching([target for _, target in ways]),
                size=images.size,
                seed=derive_seed(seed, "measured"),
                count=len(ways),
            ).size.tolist()
            for encoder in (original, hardened)
        )
        return [(s, t, *sizes) for (s, t), *sizes in zip(ways, before, after, strict=True)]

    # variant: similarity

    def by_similarity(self, encoder: Encoder, images: ImageSet, seed: int, log: Log) -> Iterator[Batch]:
        """The batches; every image of one has the smallest trigger for the current encoder."""
        order, draws = stream(seed, "order"), stream(seed, "inversion images")
        updates, chunk = chunks(min(self.similarity_images, len(images)))
        everyone = torch.arange(len(images))
        start: tuple[Tensor, Tensor] | None = None
        for step, rows in enumerate(batch_indices(len(images), self.batch, self.steps, order)):
            shown = draw(everyone, updates * chunk, draws)
            rate = SIMILAR_LRS[0] if start is None else SIMILAR_LRS[1]
            trigger = inversion(self.similarity_passes, SIMILAR_LEVEL, SIMILAR_LAMBDA, rate, unit=updates)(
                encoder,
                shuffled(images.pixels, shown, draws),
                alike,
                size=images.size,
                seed=derive_seed(seed, f"similarity {step}"),
                start=start,
            )
            start = trigger.mask, trigger.pattern
            if not step:
                keep("inverted.mask", trigger.mask)
                keep("inverted.pattern", trigger.pattern)
            yield Batch.stamped(rows, torch.zeros_like(rows), trigger, log, math.inf)

    def report(self, log: Log, classes: PseudoClasses | None) -> None:
        """Note the run's history, and in ``remarks`` what a reader of the table must know."""
        of_classes = ["warmup_passes", "warmup_images", "pair_passes", "refine_passes", "pair_images"]
        names = ["steps", *(of_classes if classes else ["similarity_passes", "similarity_images"])]
        fields = type(self).model_fields
        made = {name: (getattr(self, name), fields[name].default) for name in names}
        cut = [f"{own} of {full} {name.replace('_', ' ')}" for name, (own, full) in made.items() if own < full]
        if classes and self.period > (usual := fields["period"].default):
            cut.append(f"{self.period} instead of {usual} steps a pair")
        remarks = [f"moth: {', '.join(cut)}"] if cut else []
        if classes and len(classes) < self.classes:
            remarks.append(f"moth: the features form {len(classes)} of {self.classes} pseudo-classes")
        if classes and not any(map(math.isfinite, log.universal)):
            remarks.append("moth: no universal trigger was valid")
        tried = log.stamped + log.skipped
        if log.skipped:
            limit = "valid and below a quarter of the image" if classes else "valid"
            remarks.append(f"moth: {log.skipped} of {tried} times no trigger was stamped, for want of one {limit}")
        if tried and not log.stamped and (classes is None or self.loss == "feature"):
            remarks.append("moth: no trigger was ever found that could be stamped, so no weight was trained")
        both = [way[2:] for way in log.distances if all(map(math.isfinite, way[2:]))]
        before, after = map(mean, zip(*both, strict=True)) if both else (math.nan, math.nan)
        if both:
            growth = f"from {before:.1f} to {after:.1f} pixels ({100 * (after / before - 1):+.0f} %)"
            remarks.append(f"moth: the smallest triggers of {len(both)} directions went {growth}")
        note("remarks", remarks)
        note(
            "moth",
            {
                "members": torch.bincount(classes.labels).tolist() if classes else [],
                "universal": [_rounded(size) for size in log.universal],
                "pairs": [[*pair] for pair in log.chosen],
                "distances": [[s, t, _rounded(a), _rounded(b)] for s, t, a, b in log.distances],
                "distance_before": _rounded(before),
                "distance_after": _rounded(after),
                "stamped": log.stamped,
                "skipped": log.skipped,
            },
        )


def feature_loss(features: Tensor, anchors: Tensor) -> Tensor:
    """1 - cosine of raw features (B, d) and their anchors, mean over images, 0-d."""
    return 1 - F.cosine_similarity(features, anchors).mean()


def alike(features: Tensor) -> tuple[Tensor, Tensor]:
    """Minus, and plus, the mean cosine of two different stamped images' features (K, B, d), each (K,)."""
    similarity = self_similarity(features)
    return -similarity, similarity


def most_promising(promise: Tensor, gain: Tensor, alpha: float) -> tuple[int, int]:
    """The pair s < t with the largest (1 - alpha) (U + U^T) + alpha (D + D^T), the first of equals."""
    score = (1 - alpha) * (promise + promise.T) + alpha * (gain + gain.T)
    score = score.masked_fill(torch.eye(len(score), dtype=torch.bool), -math.inf)
    source, target = divmod(int(score.argmax()), len(score))
    return source, target


def inversion(passes: int, level: float, controller: Controller, lr: float = INVERSION_LR, unit: int = 1) -> Inversion:
    """MOTH's inversion: success is judged on a pass of ``unit`` updates."""
    return Inversion(steps=passes * unit, lr=lambda _: lr, controller=controller, level=level, unit=unit, jitter=JITTER)


def chunks(images: int) -> tuple[int, int]:
    """The split of a pass over ``images``: (updates, images per update), equal ones of at most CHUNK."""
    updates = math.ceil(images / CHUNK)
    return updates, images // updates


def shuffled(pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless passes over ``rows``, int64 (n,) or (K, n): float images (B, 3, H, W) or (K, B, 3, H, W) per update."""
    updates, chunk = chunks(rows.shape[-1])
    rows = rows.to(pixels.device)
    while True:
        order = torch.randperm(rows.shape[-1], generator=generator).to(pixels.device)  # one slow copy per pass
        for part in order.split(chunk)[:updates]:
            yield pixels[rows[..., part]].float() / 255


def draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of ``rows`` in random order; a row is repeated only after all have been drawn."""
    rounds = math.ceil(count / len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)])[:count]


def spherical_kmeans(
    points: Tensor, classes: int, least: int, generator: torch.Generator, restarts: int = 10, iterations: int = 100
) -> tuple[Tensor, Tensor]:
    """Cluster unit vectors (N, d), on the CPU, by cosine: unit centroids (K, d) and labels, int64 (N,).

    The start is k-means++'s. While a cluster has fewer than ``least`` members, the smallest one restarts at a
    member of the largest. Clusters that stay too small at the end are dropped, so that K <= ``classes``. The result
    is the restart with the most clusters, and among these the one with the largest sum of cosines.
    """
    best: tuple[tuple[int, float], Tensor, Tensor] | None = None
    for _ in range(restarts):
        centroids = points[torch.randint(len(points), (1,), generator=generator)]
        while len(centroids) < classes:
            far = 1 - (points @ centroids.T).amax(1)
            chosen = torch.multinomial(far.clamp_min(1e-9), 1, generator=generator)
            centroids = torch.cat([centroids, points[chosen]])
        labels = torch.full((len(points),), -1)
        members = torch.zeros(classes)
        for _ in range(iterations):
            before, labels = labels, (points @ centroids.T).argmax(1)
            members = torch.bincount(labels, minlength=classes)
            if torch.equal(before, labels) and members.min() >= least:
                break
            sums = torch.zeros_like(centroids).index_add_(0, labels, points)
            centroids = torch.where(members[:, None] > 0, F.normalize(sums, dim=1), centroids)
            if members.min() < least:
                crowd = (labels == members.argmax()).nonzero()[:, 0]
                centroids[members.argmin()] = points[draw(crowd, 1, generator)[0]]
        centroids = centroids[members >= least]
        cosine, labels = (points @ centroids.T).max(1)
        merit = (len(centroids), float(cosine.sum()))
        if best is None or merit > best[0]:
            best = merit, centroids, labels
    assert best is not None
    return best[1], best[2]


def _rounded(size: float) -> float | None:
    """The number for JSON, which has neither inf nor NaN."""
    return round(size, 2) if math.isfinite(size) else None


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [Moth]

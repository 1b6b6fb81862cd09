"""MEDIC: train a new student to copy the encoder's activations, but only those that clean images need.

    minimise  NT-Xent(student) + hook_weight * sum over hooked tensors of mean_b sum_i w_i ((h_i - h'_i) / sigma_c)^2

h, h': the teacher's and the student's activations of the same view; i: an entry of a tensor, c its channel; sigma_c:
the channel's standard deviation in the teacher on clean images; w_i = sqrt(a_i q_i): the entry's importance for the
sample. a = softmax_i(imp_temp * z), z = (h - mu_c) / sigma_c, is large for active entries; q = softmax_i(impact) for
entries that the teacher's output depends on. A neuron that only a trigger activates is silent on clean images, so a and
q are small and the student does not copy it. sigma_c has a floor, ``floor`` times the median over the tensor: without
it a neuron that few clean images activate weighs more on those than the rest of its tensor.

The paper's, with labels: importance from activation and impact, cloning at every layer, a random student. The released
code's: the form of w, imp_temp (it multiplies), hook_weight, Adam 1e-2 with a cosine, batches of 64, and the places:
convolutions and BatchNorm outputs; the ReLU changes the latter in place, so benchbd takes them after the ReLU.
The code's impact, the signed gradient of a batch mean, is so small that q is uniform (``impact=official``).

Ours, as there are no labels: the student's task is NT-Xent; the teacher's is to distinguish the other view of an image
from those of the other images (instance discrimination, at NT-Xent's temperature), summed over samples, so that each
has a gradient of its own size. Impact is the magnitude of sigma_c dl/dh_i in units of its root mean square over the
tensor. The pooled feature is hooked instead of the logits. 200 epochs, not 60. The code's hook_weight belongs to z
before the ReLU, where some hundred entries of a tensor share the weight; after the ReLU fewer share it, and cloning
weighs more. mu and sigma are exact, computed once over every position of the un-augmented images (the code averages the
statistics of batches, which omits the differences between batches), and of the values that are compared. Channels that
do not vary are omitted, so that sigma needs no epsilon. The floor is ours too: the code's sigma, from before the ReLU,
is never so small. It was chosen by clean data alone, on seed 1 of cifar10-small; the values tried are 0 and 0.1. After
560 steps the features of 2,000 held-out clean images had pretext accuracies of .179 and .388 and cosines to the
teacher's of .922 and .982. ``floor=0`` is version 1. Statistics from before the ReLU would need no floor, but z of the
values compared would then have neither mean 0 nor deviation 1.

Not offered: other tasks for the student (cloning alone, pseudo-classes, the teacher's feature) or for impact (k-means
classes, the feature's energy, two views' cosine), and statistics taken before the ReLU, as the released code's are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchbd import (
    ContrastiveMethod,
    DefenderKnowledge,
    Encoder,
    ImageSet,
    Mitigation,
    NotApplicable,
    Tunable,
    Views,
    hookimpl,
    note,
    nt_xent,
)

DEAD = 1e-4  # below this standard deviation a channel is ignored, because we divide by it


@dataclass(frozen=True, eq=False)
class Channels:
    """The teacher's statistics of one hooked tensor, each (1, C, 1, 1), or (1, C) for features.

    mean, std: over the clean images and positions; std has a floor, and is 1 for dead channels. live: bool, whether the
    channel varies.
    """

    mean: Tensor
    std: Tensor
    live: Tensor


class Medic(ContrastiveMethod, Mitigation):
    """Trains a new encoder and head to copy the activations that clean images need; the last epoch is kept."""

    name = "medic"
    paper = "Xu et al., MEDIC: Remove Model Backdoors via Importance Driven Cloning, CVPR 2023; without labels, ours"
    version = "2"
    tunable = {"hook_weight": Tunable(1.0, 100.0, log=True), "lr": Tunable(1e-3, 1e-1, log=True)}

    epochs: int = Field(
        200, ge=0, le=1_000_000, description="number of passes over the images; each drops its last, smaller batch"
    )
    batch: int = Field(64, ge=2, le=1_000_000, description="number of images per step; each gives two views")
    lr: float = Field(0.01, gt=0, le=1e3, description="learning rate of the optimizer; after warm-up, if there is one")
    weight_decay: float = Field(1e-4, ge=0, le=1e3, description="weight decay of the optimizer")
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="learning-rate schedule: constant, or a cosine that falls to 0"
    )
    hook_weight: float = Field(
        10.0, ge=0, le=1e9, description="weight of the cloning loss; 0: the contrastive loss alone"
    )
    imp_temp: float = Field(
        5.0, ge=0, le=1e6, description="factor of the standardised activations in the softmax that gives importance"
    )
    floor: float = Field(
        0.1,
        ge=0,
        le=1,
        description="least standard deviation that a channel is divided by, as a share of its tensor's median",
    )
    impact: Literal["rms_abs", "official", "none"] = Field(
        "rms_abs",
        description=(
            "impact; rms_abs: gradient magnitude over its root mean square; official: the released "
            "code's; none: activation only"
        ),
    )

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """A new encoder with a head of its own, whether or not ``encoder`` has one.

        NotApplicable if nothing in ``encoder`` varies over the clean images.
        """
        images, seed = knowledge.images, knowledge.seed
        teacher = encoder.frozen()
        student = teacher.untrained(seed)
        statistics = channel_statistics(teacher, images, self.floor)
        if not statistics:
            raise NotApplicable("MEDIC clones activations and none of this encoder's vary over the clean images")
        parts: dict[str, Tensor] = {}

        def loss(student: Encoder, views: Views) -> Tensor:
            parts.update(self.losses(student, teacher, statistics, views))
            return parts["contrast"] + parts["clone"]

        self.fit(student, images, seed, loss=loss)
        note("loss", {name: float(part.detach()) for name, part in parts.items()})
        self.remark(len(images))
        return student

    def forwards(self, images: int) -> int | None:
        student, teacher = 6, 1 if self.impact == "none" else 3  # impact: a gradient, and the second view
        return images + (student + teacher) * min(self.batch, images) * self.total_steps(images)

    def remark(self, images: int) -> None:
        """Add a remark for the table's reader if the student was trained for fewer epochs than MEDIC's own."""
        full, each = type(self).model_fields["epochs"].default, images // min(self.batch, images)
        if (steps := self.total_steps(images)) < full * each:
            note("remarks", [f"medic: the student was trained for {steps / each:.3g} epochs, not {full}"])

    def losses(
        self, student: Encoder, teacher: Encoder, statistics: Mapping[str, Channels], views: Views
    ) -> dict[str, Tensor]:
        """The weighted parts (``contrast``, ``clone``) of two views (B, 3, H, W), each 0-d.

        The student takes one forward per view; the first view's serves both parts. teacher: frozen, in eval mode.
        """
        copied, projections = self.student_outputs(student, views)
        wanted, weights = self.importance(teacher, statistics, views)
        clone = [clone_distance(copied[p], wanted[p], weights[p], statistics[p]) for p in statistics]
        return {
            "contrast": nt_xent(*projections, self.temperature),
            "clone": self.hook_weight * torch.stack(clone).sum(),
        }

    def student_outputs(self, student: Encoder, views: Views) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """The hooked tensors of the first view, by place, and the projections (B, 128) of both."""
        if self.bn_views == "separate":
            hooked = hooked_tensors(student, views[0])
            return hooked, (student.project(hooked["feature"]), student.project(student(views[1])))
        hooked = hooked_tensors(student, torch.cat(views))
        first, second = student.project(hooked["feature"]).chunk(2)
        return {place: h[: len(views[0])] for place, h in hooked.items()}, (first, second)

    def importance(
        self, teacher: Encoder, statistics: Mapping[str, Channels], views: Views
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The teacher's hooked tensors of the first view and, by place, the weight of every entry; no gradient."""
        if self.impact == "none":
            with torch.no_grad():
                hooked = hooked_tensors(teacher, views[0])
            scores = {place: torch.zeros_like(hooked[place]) for place in statistics}
        else:
            with torch.no_grad():
                keys = teacher(views[1])
            hooked = hooked_tensors(teacher, views[0].detach().requires_grad_(True))  # its weights have no gradient
            loss = instance_discrimination(hooked["feature"], keys, self.temperature)
            total = loss.sum() if self.impact == "rms_abs" else loss.mean()
            gradients = torch.autograd.grad(total, [hooked[place] for place in statistics])
            scores = {
                place: self.impact_scores(gradient, channels)
                for gradient, (place, channels) in zip(gradients, statistics.items(), strict=True)
            }
            hooked = {place: h.detach() for place, h in hooked.items()}
        weights = {
            place: importance_weights(self.imp_temp * standardised(hooked[place], channels), scores[place], channels)
            for place, channels in statistics.items()
        }
        return hooked, weights

    def impact_scores(self, gradient: Tensor, channels: Channels) -> Tensor:
        """The argument of the softmax of impact, from the gradient with respect to a hooked tensor; of its shape."""
        scaled = (gradient * channels.std).masked_fill(~channels.live, 0)
        if self.impact == "official":
            return self.imp_temp * scaled
        entries = channels.live.sum() * scaled[0, 0].numel()
        return F.normalize(scaled.abs().flatten(1), dim=1).view_as(scaled) * entries.sqrt()


def hooked_tensors(encoder: Encoder, x: Tensor) -> dict[str, Tensor]:
    """The cloned tensors by place, in order: every map of ``intermediates(every=True)``, and the pooled ``feature``."""
    feature, maps = encoder.intermediates(x, every=True)
    return {**maps, "feature": feature}


@torch.no_grad()
def channel_statistics(teacher: Encoder, images: ImageSet, floor: float = 0.0, batch: int = 128) -> dict[str, Channels]:
    """Mean and (unbiased) standard deviation of every channel over all images and positions, one forward per image.

    Exact: batches are merged by the law of total variance. A tensor without a live channel is omitted. floor: a smaller
    deviation becomes this share of the median over the tensor's live channels.
    """
    moments: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    for x in images.batches(batch):
        for place, h in hooked_tensors(teacher, x).items():
            variance, mean = torch.var_mean(h, (0, *range(2, h.ndim)), correction=0, keepdim=True)
            moments.setdefault(place, []).append((h.numel() // h.shape[1], mean.double(), variance.double()))
    statistics = {}
    for place, parts in moments.items():
        count = sum(n for n, _, _ in parts)
        mean = torch.stack([n * m for n, m, _ in parts]).sum(0) / count
        squares = torch.stack([n * (v + (m - mean).square()) for n, m, v in parts]).sum(0)
        std = (squares / (count - 1)).sqrt().float()
        live = std >= DEAD
        if bool(live.any()):
            std = std.clamp_min(floor * std[live].median())
            statistics[place] = Channels(mean.float(), std.where(live, 1.0), live)
    return statistics


def standardised(h: Tensor, channels: Channels) -> Tensor:
    """z: ``h`` minus its channel's mean, in units of its standard deviation."""
    return (h - channels.mean) / channels.std


def instance_discrimination(features: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """The loss whose gradient is impact, (B,): -log softmax over k of cos(features_b, keys_k) / temperature at k = b.

    features, keys: (B, d), of the two views; ``keys`` have no gradient, so that a sample's loss depends on it alone.
    """
    logits = F.normalize(features, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


def importance_weights(activation: Tensor, impact: Tensor, channels: Channels) -> Tensor:
    """w = sqrt(softmax(activation) * softmax(impact)), of the arguments' shape, softmax over a sample's live entries.

    Entries of dead channels get 0. The weights of a sample sum to at most 1 (Cauchy-Schwarz); equal scores give the
    uniform 1 / entries.
    """
    a, q = (t.masked_fill(~channels.live, -math.inf).flatten(1).log_softmax(1) for t in (activation, impact))
    return ((a + q) / 2).exp().view_as(activation)


def clone_distance(student: Tensor, teacher: Tensor, weights: Tensor, channels: Channels) -> Tensor:
    """mean_b sum_i w_i ((h_i - h'_i) / sigma_c)^2 of one hooked tensor, 0-d."""
    return (weights * ((student - teacher) / channels.std).square()).sum() / len(student)


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [Medic]

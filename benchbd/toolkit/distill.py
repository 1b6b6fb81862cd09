"""Distillation losses of a student and a frozen teacher. NAD and the second phase of MIMIC are settings of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchbd.base.errors import NotApplicable
from benchbd.nets.encoder import Encoder
from benchbd.toolkit.contrastive import Views, nt_xent

AttentionForm = Literal["mse", "l2"]


def attention_map(feature_map: Tensor) -> Tensor:
    """Spatial attention of (N, C, H, W): sum over channels of squares, flattened, L2-normalised, (N, H * W).

    Source: NAD (Li et al., 2021), p = 2. NotApplicable for 1x1 maps, whose attention is the constant 1.
    """
    if feature_map.shape[2] * feature_map.shape[3] == 1:
        raise NotApplicable("attention is compared over positions; a stage's map is 1x1: take larger images")
    energy = feature_map.float().square().sum(1).flatten(1)
    normalised: Tensor = energy / (energy.norm(dim=1, keepdim=True) + 1e-6)
    return normalised


def attention_distance(student: Tensor, teacher: Tensor, form: AttentionForm = "mse") -> Tensor:
    """Distance of two stages' attention, maps (N, C, H, W), mean over images: 0-d.

    mse: mean square over positions, as in all released code; a stage's weight is then 1 / (H * W). l2: the norm of the
    difference, as in the papers of NAD and MIMIC; the eps keeps its gradient finite at 0.
    """
    difference = (attention_map(student) - attention_map(teacher)).square()
    return difference.mean() if form == "mse" else (difference.sum(1) + 1e-12).sqrt().mean()


@dataclass(frozen=True, eq=False)
class Distiller:
    """The loss of a student under a teacher; ``distiller.losses(student, views)`` gives its parts.

    A part of weight 0 is computed too, so that weights change neither the bits of other parts nor the cost of a step.

    teacher: frozen, in eval mode; used without gradient and not changed.
    attention: weight of each stage's attention distance, by stage name; a missing stage is not compared.
    clone: weight of 1 - cosine of the raw features. contrast: weight of the student's own NT-Xent.
    temperature, bn_views: of the contrast, as in ContrastiveMethod.
    form: of the attention distance. copied: whether the first view's teacher outputs are copied, or both views'.
    """

    teacher: Encoder
    attention: Mapping[str, float]
    clone: float = 0.0
    contrast: float = 1.0
    temperature: float = 0.5
    bn_views: Literal["separate", "joint"] = "separate"
    form: AttentionForm = "mse"
    copied: Literal["first", "both"] = "first"

    def __call__(self, student: Encoder, views: Views) -> Tensor:
        """The sum of the parts, 0-d, as a loss for ``ContrastiveMethod.fit``."""
        parts = self.losses(student, views)
        return parts["clone"] + parts["contrast"] + parts["attention"]

    def losses(self, student: Encoder, views: Views) -> dict[str, Tensor]:
        """The weighted parts (``clone``, ``contrast``, ``attention``) of two views (B, 3, H, W), each 0-d.

        The student takes one forward per view, the teacher one per copied view.
        """
        if self.bn_views == "separate":
            outputs = [student.intermediates(view) for view in views]
            projections = [student.project(h) for h, _ in outputs]
        else:
            h, maps = student.intermediates(torch.cat(views))
            projections = list(student.project(h).chunk(2))
            halves = {name: map_.chunk(2) for name, map_ in maps.items()}
            outputs = [(part, {name: m[i] for name, m in halves.items()}) for i, part in enumerate(h.chunk(2))]
        clone, attention = [], []
        for view, (h, maps) in list(zip(views, outputs, strict=True))[: 1 if self.copied == "first" else 2]:
            with torch.no_grad():
                h_teacher, maps_teacher = self.teacher.intermediates(view)
            clone.append(1 - F.cosine_similarity(h_teacher, h).mean())
            distances = {name: attention_distance(maps[name], maps_teacher[name], self.form) for name in self.attention}
            weighted = [weight * distances[name] for name, weight in self.attention.items()]
            attention.append(torch.stack(weighted).sum() if weighted else h.new_zeros(()))
        return {
            "clone": self.clone * torch.stack(clone).mean(),
            "contrast": self.contrast * nt_xent(projections[0], projections[1], self.temperature),
            "attention": torch.stack(attention).mean(),
        }

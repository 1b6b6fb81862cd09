"""MIMIC: distil a clean student from a backdoored teacher, guided by mutual information.

The student starts with random weights, so it inherits only what the teacher computes on clean images.
Phase 1 estimates, stage by stage, how much of the teacher's features a small critic can tell from its maps, and
converts the estimates to weights. They are lower bounds of unbounded information (see ``benchbd.Mine``): neither
their order nor their size is evidence about the layers by itself.
Phase 2 trains the student to copy the teacher's features and, by those weights, its spatial attention.

If paper and released code differ, the defaults are: the teacher's information (the paper; the code passes the random
student by mistake), weights by the share of the total (the code; the paper's z-score has no published constants),
squared attention distance (the code; a lambda2 above 1000 fits nothing else). Estimation is ours, see ``benchbd.Mine``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from benchbd import (
    AttentionForm,
    ContrastiveMethod,
    DefenderKnowledge,
    Distiller,
    Encoder,
    Estimate,
    ImageSet,
    Mine,
    Mitigation,
    Tunable,
    UsageError,
    Views,
    hookimpl,
    note,
)

Weighting = Literal["fraction", "zscore", "uniform"]

ALPHAS: dict[Weighting, tuple[float, float]] = {
    "fraction": (1.0, 10.0),  # the released code: a base of 1000 and 10000 to share, in units of lambda2 = 1000
    "zscore": (3.5, 1.443),  # ours: the same mean weight for four stages; the smallest possible weight is 1
    "uniform": (1.0, 10.0),  # the total of the fraction rule, in equal shares
}
RESOLUTION = 0.01  # nats; ours: smaller differences between stages are noise of the estimator


class Mimic(ContrastiveMethod, Mitigation):
    """Distils the encoder into a new encoder and head on the clean images; the last epoch is kept."""

    name = "mimic"
    paper = "Han et al., Mutual Information Guided Backdoor Mitigation for Pre-trained Encoders, IEEE TIFS 2025"
    version = "2"
    tunable = {"lambda1": Tunable(0.1, 10.0, log=True), "lambda2": Tunable(1e2, 1e4, log=True)}

    batch: int = Field(128, ge=2, le=1_000_000, description="number of images per step; each gives two views")
    lambda0: float = Field(
        1.0, ge=0, le=1e9, description="weight of the loss that copies features; the paper's is 1, 0 omits the loss"
    )
    lambda1: float = Field(1.0, ge=0, le=1e9, description="weight of the contrastive loss")
    lambda2: float = Field(
        1000.0, ge=0, le=1e9, description="weight of the attention loss, which multiplies the stages' weights"
    )
    weighting: Weighting = Field(
        "fraction",
        description="how mutual information gives the weights of stages: by share of the total, by z-score, or equal",
    )
    alpha0: float | None = Field(
        None, ge=0, le=1e9, description="weight of every stage before information is added; null: set by weighting"
    )
    alpha1: float | None = Field(
        None, ge=0, le=1e9, description="factor of mutual information in a stage's weight; null: set by weighting"
    )
    mi_source: Literal["teacher", "student"] = Field(
        "teacher",
        description="encoder whose information is estimated; student: the untrained one, as in the released code",
    )
    mi_epochs: int = Field(
        200, ge=1, le=1_000_000, description="number of epochs of each network that estimates information"
    )
    mi_batch: int = Field(
        128, ge=2, le=1_000_000, description="number of pairs per step of the networks that estimate information"
    )
    mi_lr: float = Field(1e-3, gt=0, le=1e3, description="learning rate of the networks that estimate information")
    mi_hidden: int = Field(
        512, ge=1, le=100_000, description="width of the hidden layers of the networks that estimate information"
    )
    mi_pool: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="side in pixels to which maps are average-pooled before estimation; null: no pooling",
    )
    mi_eval: Literal["heldout", "train"] = Field(
        "heldout",
        description="pairs on which information is measured; heldout: a fifth that is not trained on; train: all",
    )
    at_form: AttentionForm = Field(
        "mse", description="distance of attention maps; mse: mean square (released code); l2: norm (paper)"
    )
    clone_views: Literal["first", "both"] = Field(
        "first", description="views on which the student copies the teacher's features"
    )

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """A new encoder with a head of its own, whether or not ``encoder`` has one."""
        images, seed = knowledge.images, knowledge.seed
        teacher = encoder.frozen()
        student = teacher.untrained(seed)
        beta = self.layer_weights(teacher if self.mi_source == "teacher" else student.eval(), images, seed)
        return self.distil(student, self.distiller(teacher, beta), images, seed)

    def forwards(self, images: int) -> int | None:
        step = 7 if self.clone_views == "first" else 8  # student: two views, each 1 + 2; teacher: 1 per view
        extraction = 0 if self.weighting == "uniform" else images
        return extraction + step * min(self.batch, images) * self.total_steps(images)

    # Phase 1: the weight of each stage (Algorithm 1)

    def layer_weights(self, source: Encoder, images: ImageSet, seed: int) -> dict[str, float]:
        """beta by stage, lambda2 included. ``source``, in eval mode, takes every un-augmented image once."""
        default0, default1 = ALPHAS[self.weighting]
        alpha0 = default0 if self.alpha0 is None else self.alpha0
        alpha1 = default1 if self.alpha1 is None else self.alpha1
        least = math.sqrt(len(source.stages) - 1) * alpha1
        if self.weighting == "zscore" and alpha0 < least:
            raise UsageError(
                f"mimic: weighting=zscore with alpha0={alpha0:g} can make weights negative; "
                f"alpha0 must be at least {least:.4g} for alpha1={alpha1:g} and {len(source.stages)} stages"
            )
        information = {} if self.weighting == "uniform" else self.information(source, images, seed)
        m = [information[name].nats if information else 0.0 for name in source.stages]
        beta = [self.lambda2 * w for w in stage_weights(m, self.weighting, alpha0, alpha1)]
        saturated = [name for name, estimate in information.items() if estimate.saturated]
        fallback = self.weighting != "uniform" and not weightable(m)
        remarks = [f"mimic: the MI estimate is saturated at {', '.join(saturated)}"] if saturated else []
        remarks += ["mimic: the MI estimates do not tell the stages apart, so weights are uniform"] if fallback else []
        note("remarks", remarks)
        note(
            "mi",
            {
                "beta": {name: round(b, 4) for name, b in zip(source.stages, beta, strict=True)},
                "information": {
                    name: round(e.nats, 4) if math.isfinite(e.nats) else None for name, e in information.items()
                },
                "saturated": saturated,
                "uniform_fallback": fallback,
            },
        )
        return dict(zip(source.stages, beta, strict=True))

    def information(self, source: Encoder, images: ImageSet, seed: int) -> dict[str, Estimate]:
        """I(map; z) by stage, z the normalised feature: one forward per image, then one network per stage."""
        mine = Mine(
            self.mi_epochs,
            self.mi_batch,
            self.mi_lr,
            hidden=self.mi_hidden,
            evaluation=self.mi_eval,
            pool=self.mi_pool,
        )
        features: list[Tensor] = []
        maps: dict[str, list[Tensor]] = {name: [] for name in source.stages}
        with torch.no_grad():
            for x in images.batches(512):
                h, outputs = source.intermediates(x)
                features.append(F.normalize(h, dim=1))
                for name, output in outputs.items():
                    maps[name].append(mine.inputs(output))
        z = torch.cat(features)
        return {name: mine(torch.cat(maps.pop(name)), z, seed) for name in source.stages}

    # Phase 2: distillation (Eqs. 4-8)

    def distiller(self, teacher: Encoder, beta: dict[str, float]) -> Distiller:
        """lambda0 L0 + lambda1 L1 + lambda2 L2, lambda2 in beta: L0 = 1 - mean cos(h_T, h_S), L1 the student's
        NT-Xent."""
        return Distiller(
            teacher,
            attention=beta,
            clone=self.lambda0,
            contrast=self.lambda1,
            temperature=self.temperature,
            bn_views=self.bn_views,
            form=self.at_form,
            copied=self.clone_views,
        )

    def distil(self, student: Encoder, distiller: Distiller, images: ImageSet, seed: int) -> Encoder:
        """Train ``student``, f and g, in place; the weighted parts of the last step's loss are noted."""
        parts: dict[str, Tensor] = {}

        def loss(encoder: Encoder, views: Views) -> Tensor:
            parts.update(distiller.losses(encoder, views))
            return parts["clone"] + parts["contrast"] + parts["attention"]

        self.fit(student, images, seed, loss=loss)
        if parts:
            note("loss", {name: float(part.detach()) for name, part in parts.items()})
        return student


def weightable(m: list[float]) -> bool:
    """Whether the estimates separate the stages: all finite, and the largest exceeds the smallest by RESOLUTION."""
    return all(map(math.isfinite, m)) and max(m) - min(m) > RESOLUTION


def stage_weights(m: list[float], weighting: Weighting, alpha0: float, alpha1: float) -> list[float]:
    """Weights of the stages, in units of lambda2, from their information in nats (each >= 0).

    fraction: alpha0 + alpha1 * m / sum(m), as the released code. zscore: alpha0 + alpha1 * (m - mean) / sigma with the
    population's sigma, our reading of Algorithm 1, line 8. uniform, and estimates that are too close or not
    finite: every stage gets the mean of its rule, so that the total stays.
    """
    stages = len(m)
    if weighting == "zscore":
        if not weightable(m):
            return [alpha0] * stages
        mean = math.fsum(m) / stages
        sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in m) / stages)
        return [alpha0 + alpha1 * (value - mean) / sigma for value in m]
    if weighting == "uniform" or not weightable(m):
        return [alpha0 + alpha1 / stages] * stages
    total = math.fsum(m)
    return [alpha0 + alpha1 * value / total for value in m]


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [Mimic]

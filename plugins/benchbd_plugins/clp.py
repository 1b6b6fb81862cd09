"""CLP: channels whose Lipschitz constant is an outlier of their layer are pruned, from the weights alone.

    L_c = spectral norm of kernel c, as a matrix (inputs, k²), times |γ_c| / sqrt(running variance_c + ε)
    z_c = (L_c - mean of the layer) / standard deviation of the layer; pruned iff z_c > u

A trigger is a small change of the image, so a channel that answers it strongly has a large L_c, which bounds its answer
to any change of its inputs. The paper's: L_c, layer by layer, and the threshold. The released code's: u = 3, the
unbiased standard deviation, γ = β = 0 for a pruned channel, shortcuts too; it leaves ε out.

In a layer of n channels no z exceeds (n - 1) / sqrt(n): 3.75 with 16, so u = 3 prunes next to nothing of a narrow net.
``rule=budget``, which is ours, chooses u for each encoder with the defender's clean images and nothing else: u falls by
steps of 0.1 from the largest z until the next step would cost more than ``tolerance`` of pretext accuracy, as FP's rule
does. Statistics stay as they are, as in the paper, and pretext accuracy is that of the encoder as it is returned.

The detector ``lipschitz`` is ours: an encoder is as suspicious as its largest z.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from benchbd import (
    Augment,
    CropScale,
    DefenderKnowledge,
    Detection,
    Encoder,
    ImageSet,
    Mitigation,
    NotApplicable,
    PruningLevel,
    Tunable,
    Verdict,
    hookimpl,
    note,
    pretext_accuracy,
    pretext_outputs,
    within_tolerance,
)

STEP = 0.1  # between two u


class CLP(Mitigation):
    """Prunes the channels whose Lipschitz constant is an outlier of their layer; no image is needed for a fixed u."""

    name = "clp"
    paper = "Zheng, Tang, Li, Liu, Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022"
    version = "1"
    tunable = {"u": Tunable(1.0, 5.0), "tolerance": Tunable(0.01, 0.16, log=True)}

    rule: Literal["fixed", "budget"] = Field(
        "fixed", description="threshold; fixed: u, without images; budget: the lowest u that tolerance allows"
    )
    u: float = Field(
        3.0, ge=0, le=1e6, description="standard deviations above a layer's mean from which channels go, for rule=fixed"
    )
    tolerance: float = Field(
        0.04,
        ge=0,
        le=1,
        description="largest fall of pretext accuracy, 0 to 1, that pruning may cause, for rule=budget",
    )
    crop_scale: CropScale = Field(
        (0.08, 1.0), description="smallest and largest share of the image's area that a crop covers, for rule=budget"
    )
    colour: Literal["exact", "affine"] = Field(
        "exact", description="colour jitter, for rule=budget; exact: torchvision's; affine: one affine map per image"
    )

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """``encoder``, pruned in place, in eval mode. NotApplicable if no BatchNorm follows a convolution."""
        scores = z_scores(encoder.eval())
        if not scores:
            raise NotApplicable(f"clp prunes convolutions by their BatchNorm; {encoder.arch} has none")
        u, tried = (self.u, []) if self.rule == "fixed" else self.search(encoder, scores, knowledge)
        self.report(scores, u, prune(encoder, scores, u), tried)
        return encoder

    def search(
        self, encoder: Encoder, scores: dict[str, Tensor], knowledge: DefenderKnowledge
    ) -> tuple[float, list[PruningLevel]]:
        """The lowest u from 0 on, on a grid of 0.1, that keeps pretext accuracy; if none does, one that prunes nothing.
        And the curve: a level for every u tried that prunes more channels than the one before.

        Utility need not fall steadily; the first u that costs too much ends the search.
        """
        images, augment, start = knowledge.images, Augment(self.crop_scale, self.colour), highest(scores)
        tried = [PruningLevel(0, self.utility(encoder, images, augment, knowledge.seed), start)]

        def levels() -> Iterator[PruningLevel]:
            yield tried[0]
            for step in range(1, round(start / STEP) + 1):
                u = round(start - STEP * step, 6) + 0.0  # never -0
                if (count := sum(int((z > u).sum()) for z in scores.values())) > tried[-1].pruned:
                    candidate = encoder.copy()
                    prune(candidate, scores, u)
                    tried.append(PruningLevel(count, self.utility(candidate, images, augment, knowledge.seed), u))
                yield replace(tried[-1], threshold=u)

        chosen = within_tolerance(levels(), self.tolerance).threshold
        assert chosen is not None  # every level has one
        return chosen, tried

    def utility(self, encoder: Encoder, images: ImageSet, augment: Augment, seed: int) -> float:
        """Pretext accuracy, 0..1, on one fixed pair of views of every image; of features if there is no head."""
        outputs = pretext_outputs(encoder, images, augment, seed)
        return pretext_accuracy(*(outputs if encoder.head is None else map(encoder.project, outputs)))

    def forwards(self, images: int) -> int | None:
        """None for rule=budget, whose number of thresholds depends on the weights: two forwards per image for each."""
        return 0 if self.rule == "fixed" else None

    def report(
        self, scores: dict[str, Tensor], u: float, pruned: dict[str, list[int]], tried: list[PruningLevel]
    ) -> None:
        """Note the threshold, what it pruned and, for rule=budget, the curve; and what a reader must know."""
        remarks = []
        if not pruned:
            remarks.append(f"clp: no channel was pruned at u = {u:g}; the largest z is {largest(scores):.2f}")
        if tried and tried[0].utility <= self.tolerance:
            before = f"pretext accuracy is {tried[0].utility:.1%} before pruning"
            remarks.append(f"clp: {before}, so the tolerance bounds nothing")
        note("remarks", remarks)
        note(
            "pruning",
            {
                "u": u,
                "pruned": sum(map(len, pruned.values())),
                "channels": sum(map(len, scores.values())),
                "pruned_by_layer": pruned,
                "largest_z": round(largest(scores), 4),
                "tolerance": self.tolerance if self.rule == "budget" else None,
                "curve": [level.noted() for level in tried],
            },
        )


class LipschitzDetection(Detection):
    """Judges an encoder by its most outlying channel Lipschitz constant, from the weights alone.

    The score is the largest z over all layers, in standard deviations of the channel's layer; above ``threshold`` the
    encoder is flagged.
    """

    name = "lipschitz"
    paper = "ours; the constants are those of CLP (Zheng et al., ECCV 2022)"
    version = "1"

    threshold: float = Field(
        3.0, ge=0, le=1e6, description="standard deviations from which an encoder is flagged: CLP's u"
    )

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        """NotApplicable if no BatchNorm follows a convolution."""
        scores = z_scores(encoder)
        if not scores:
            raise NotApplicable(f"lipschitz judges convolutions by their BatchNorm; {encoder.arch} has none")
        note("lipschitz", {name: round(float(z.max()), 4) for name, z in scores.items()})
        return Verdict(largest(scores), flagged=largest(scores) > self.threshold)

    def forwards(self, images: int) -> int | None:
        return 0


def pairs(encoder: Encoder) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every BatchNorm of f with the convolution that it normalises, shortcuts too, by the BatchNorm's name."""
    names = {norm: name for name, norm in encoder.norms().items() if norm.affine and norm.track_running_stats}
    found, convolution = {}, None
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            convolution = module
        elif module in names and convolution is not None and convolution.out_channels == module.num_features:
            found[names[module]] = convolution, module
    return found


@torch.no_grad()
def lipschitz(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """L_c of every output channel, float64 (C,) on the CPU."""
    assert norm.running_var is not None  # ``pairs`` takes no other
    kernels = convolution.weight.double().cpu().flatten(2)  # (C, inputs, k²)
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    found: Tensor = torch.linalg.matrix_norm(kernels, ord=2) * gain.abs().cpu()
    return found


def z_scores(encoder: Encoder) -> dict[str, Tensor]:
    """z of every channel, float64 (C,), by BatchNorm; 0 where all channels of a layer are alike."""
    found = {}
    for name, pair in pairs(encoder).items():
        constants = lipschitz(*pair)
        spread = constants.std() if len(constants) > 1 else constants.new_zeros(())
        found[name] = (constants - constants.mean()) / spread if spread > 0 else torch.zeros_like(constants)
    return found


def largest(scores: dict[str, Tensor]) -> float:
    """The largest z of all layers."""
    return max(float(z.max()) for z in scores.values())


def highest(scores: dict[str, Tensor]) -> float:
    """The largest z, rounded up to a multiple of the step: the lowest u of the grid that prunes nothing."""
    return round(math.ceil(largest(scores) / STEP) * STEP, 6)


@torch.no_grad()
def prune(encoder: Encoder, scores: dict[str, Tensor], u: float) -> dict[str, list[int]]:
    """Silence every channel with z > u, in place; the pruned channels by BatchNorm, for those that lost any."""
    norms, pruned = encoder.norms(), {}
    for name, z in scores.items():
        if channels := (z > u).nonzero()[:, 0].tolist():
            norms[name].weight[channels] = 0
            norms[name].bias[channels] = 0
            pruned[name] = channels
    return pruned


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [CLP]


@hookimpl
def benchbd_detections() -> list[type[Detection]]:
    return [LipschitzDetection]

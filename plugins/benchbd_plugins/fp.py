"""FP: fine-pruning. Remove the channels that clean images activate least, then repair the damage by fine-tuning.

The paper's: prune the last convolutional layer in increasing order of mean clean activation, stop once accuracy has
fallen by a tolerance, fine-tune. A defender of an encoder has no labels and no accuracy, so our stop uses pretext
accuracy (``benchbd.pretext_accuracy``) on one fixed pair of views of each clean image. The tolerance of 4 points is
the paper's, though for accuracy. MIMIC, whose baseline this is, gives no settings; fine-tuning is FT's.

The pruned place is ours too. A residual net adds the last convolution to the identity path, so zero filters do not
silence a channel. The default masks the *output* of the last stage (``Encoder.mask``), which has the effect of
released code for classifiers, which cuts inputs of the last linear layer. ``site=conv2`` is TrojanZoo's reading:
filters of the last convolution and the affine of its BatchNorm become zero, and the identity path remains.

Released code picks the level by test accuracy and fine-tunes an over-pruned net; benchbd does neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from benchbd import (
    DefenderKnowledge,
    Encoder,
    FineTuning,
    ImageSet,
    Mitigation,
    NotApplicable,
    PruningLevel,
    Tunable,
    Views,
    hookimpl,
    note,
    pretext_accuracy,
    pretext_outputs,
    within_tolerance,
)

Site = Literal["output", "conv2"]


class FP(FineTuning, Mitigation):
    """Prunes the least active channels of the last stage, then fine-tunes as FT does; the last epoch is kept."""

    name = "fp"
    paper = "Liu, Dolan-Gavitt, Garg, Fine-Pruning, RAID 2018; for encoders a baseline of MIMIC, settings are ours"
    version = "1"
    tunable = {"tolerance": Tunable(0.01, 0.16, log=True), "lr": Tunable(1e-4, 1e-2, log=True)}

    rule: Literal["budget", "ratio"] = Field(
        "budget", description="number of pruned channels; budget: as many as tolerance allows; ratio: a fixed share"
    )
    tolerance: float = Field(
        0.04,
        ge=0,
        le=1,
        description="largest fall of pretext accuracy, 0 to 1, that pruning may cause, for rule=budget",
    )
    increment: float = Field(
        0.01, gt=0, le=1, description="share of the channels that is pruned between two measurements, for rule=budget"
    )
    ratio: float = Field(0.0625, ge=0, lt=1, description="share of the channels that is pruned, for rule=ratio")
    site: Site = Field(
        "output",
        description=(
            "output: prune channels of the last stage's output; conv2: filters of its last convolution, "
            "not the shortcut"
        ),
    )
    bn: Literal["train", "eval"] = Field(
        "train", description="BatchNorm in fine-tuning; train: statistics of the batch; eval: the running ones"
    )

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """NotApplicable if the encoder has no head, unless ``head_steps`` trains one, or ``epochs`` or ``steps`` is 0:
        then it is only pruned; and if its features mix the channels of the last stage."""
        if not encoder.channelwise:
            raise NotApplicable(f"fp prunes channels that become features one by one; {encoder.arch} mixes them")
        with self.headed(encoder, knowledge.images, knowledge.seed):
            return self.fine_pruned(encoder.eval(), knowledge.images, knowledge.seed)

    def fine_pruned(self, encoder: Encoder, images: ImageSet, seed: int) -> Encoder:
        """``encoder``, pruned and trained in place."""
        order = mean_activation(encoder, images, self.site).argsort(stable=True)
        utility = self.utility(encoder, images, order, seed)
        curve: dict[int, float] = {}

        def measured(k: int) -> float:
            curve[k] = utility(k)
            return curve[k]

        k = self.level(measured, encoder.feature_dim)
        channels = order[:k]
        prune(encoder, self.site, channels)
        for level in {0, k} - curve.keys():  # rule=ratio has measured nothing
            measured(level)
        self.report(curve, channels)

        def loss(encoder: Encoder, views: Views) -> Tensor:
            prune(encoder, self.site, channels)  # the last step changed the BatchNorm offset of a zero filter
            return self.contrast(encoder, views)

        self.fit(encoder, images, seed, bn=self.bn, loss=loss)
        prune(encoder, self.site, channels)
        return encoder

    def forwards(self, images: int) -> int | None:
        extractions = 3 if self.site == "output" else 5  # activations, two views, and the views through a bare net
        return extractions * images + (super().forwards(images) or 0)

    def utility(self, encoder: Encoder, images: ImageSet, order: Tensor, seed: int) -> Callable[[int], float]:
        """Pretext accuracy, 0..1, with the first k channels of ``order`` pruned, as a function of k.

        The encoder sees the views once. After the site, features of different channels do not mix, so each level only
        chooses between two features per channel and takes one pass of the head.
        """
        whole = self.view_features(encoder, images, seed)
        bare = torch.zeros_like(whole)
        if self.site == "conv2":
            twin = encoder.copy()
            prune(twin, self.site, order)
            bare = self.view_features(twin, images, seed)

        @torch.no_grad()
        def accuracy(k: int) -> float:
            pruned = torch.zeros(len(order), dtype=torch.bool, device=order.device)
            pruned[order[:k]] = True
            features = torch.where(pruned, bare, whole)
            first, second = (features if encoder.head is None else encoder.project(features)).chunk(2)
            return pretext_accuracy(first, second)

        return accuracy

    def view_features(self, encoder: Encoder, images: ImageSet, seed: int) -> Tensor:
        """Raw features (2N, d) of a fixed pair of views of every image: the first views, then the second."""
        return torch.cat(pretext_outputs(encoder, images, self.augment, seed))

    def level(self, utility: Callable[[int], float], channels: int) -> int:
        """The number of ``channels`` to prune, never all.

        budget: raised by ``increment`` until the next level would lose more than ``tolerance`` (``within_tolerance``).
        """
        if self.rule == "ratio":
            return min(round(self.ratio * channels), channels - 1)
        step = math.ceil(round(self.increment * channels, 6))
        return within_tolerance((PruningLevel(k, utility(k)) for k in range(0, channels, step)), self.tolerance).pruned

    def report(self, curve: dict[int, float], channels: Tensor) -> None:
        """Note what was pruned, and in ``remarks`` what a reader of the table must know.

        curve: the utility of every level that was measured, among them none and that of ``channels``.
        """
        before, after = curve[0], curve[len(channels)]
        remarks = []
        if self.rule == "budget" and not len(channels):
            remarks.append("fp: no channel could be pruned within the tolerance; this is fine-tuning alone")
        if self.rule == "budget" and before <= self.tolerance:
            remarks.append(f"fp: pretext accuracy is {before:.1%} before pruning, so the tolerance bounds nothing")
        note("remarks", remarks)
        note(
            "pruning",
            {
                "k": len(channels),
                "channels": channels.tolist(),
                "pruned": len(channels),
                "tolerance": self.tolerance if self.rule == "budget" else None,
                "utility_before": round(before, 4),
                "utility_after": round(after, 4),
                "curve": [PruningLevel(k, utility).noted() for k, utility in sorted(curve.items())],
            },
        )


def last_block(encoder: Encoder) -> tuple[str, nn.Conv2d, nn.BatchNorm2d]:
    """The last convolution's name among ``Encoder.intermediates``, and the convolution with its BatchNorm."""
    *_, (place, conv) = encoder.convolutions().items()
    norms, modules = list(encoder.norms().values()), list(encoder.modules())
    following = [norm for norm in norms if modules.index(norm) > modules.index(conv)]
    if not following:
        raise NotApplicable(f"fp: site=conv2 prunes a convolution with its BatchNorm; {encoder.arch} has none there")
    return place, conv, following[0]


@torch.no_grad()
def mean_activation(encoder: Encoder, images: ImageSet, site: Site, batch: int = 512) -> Tensor:
    """Mean absolute activation of each channel at ``site`` over clean images and positions, float64 (C,).

    One forward per image, in the encoder's mode. A running sum: the batch size makes no difference.
    """
    place = encoder.stages[-1] if site == "output" else last_block(encoder)[0]
    total = torch.zeros(encoder.feature_dim, dtype=torch.float64, device=encoder.device)
    for x in images.batches(batch):
        total += encoder.intermediates(x, every=site == "conv2")[1][place].abs().mean((2, 3)).double().sum(0)
    return total / len(images)


@torch.no_grad()
def prune(encoder: Encoder, site: Site, channels: Tensor) -> None:
    """Silence ``channels`` (int64) at ``site``, in place; channels that are already pruned stay pruned."""
    if site == "output":
        encoder.mask[channels] = 0
        return
    _, conv, norm = last_block(encoder)
    for parameter in (conv.weight, norm.weight, norm.bias):
        parameter[channels] = 0


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [FP]

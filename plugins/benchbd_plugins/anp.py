"""ANP (Wu, Wang, NeurIPS 2021): find the neurons whose small adversarial changes disturb the net most, and prune them.

A neuron is a BatchNorm channel. Its output is γ (m + δ) x̂ + β (1 + ξ): m in [0, 1] is its mask, δ and ξ the noise.

    every step   δ, ξ uniform in [-ε, ε], then ascent by sign on L(m, δ, ξ)
                 m <- m - lr * gradient of α L(m, 0, 0) + (1 - α) L(m, δ, ξ), clamped to [0, 1]
    at last      γ = 0 if m <= threshold; every other neuron keeps its values: soft masks are discarded

The paper's: all of that, ε = 0.4, α = 0.2, one ascent step, SGD 0.2 with momentum 0.9, 2000 steps of 128; its L is a
classifier's cross-entropy. Ours, for an encoder without labels: L is NT-Xent through the encoder's own, fixed head,
the objective that trained it; or (``loss=consistency``) 1 - cosine with the original encoder's features. The
learning rate was chosen for cross-entropy and both losses have other gradients: check the histogram of the masks in
the notes. Only f has masks.

The released code adds a step of ε to a start within ε, so that noise reaches 2 ε (``project=False``); picks the
threshold by test data with triggers, which no defender has; and lets perturbed passes change BatchNorm's statistics.
Here the noise stays within ε, and the threshold rises from 0 by steps of 0.05 until the next step would lower pretext
accuracy on clean images by more than ``tolerance``, as the level of FP does; the note has the whole curve. Since β is
kept, a pruned neuron outputs a constant; ``prune_bias`` makes it 0. An epoch's batches are drawn without replacement,
the code's with.

The encoder's statistics stay, in the result and while utility is measured. Statistics of the clean images were tried
on seed 1 of cifar10-small (gtsrb), by clean data alone: they lower the pretext accuracy of BadEncoder's features from
.444 to .274 before any pruning (cosine to the features before .949), and pruning raises it from there, to .375 at
threshold 0.3, so a fall measured from there bounds nothing. ``tolerance`` is FP's, and was not tuned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from benchbd import (
    Augment,
    CropScale,
    DefenderKnowledge,
    Diverged,
    Encoder,
    ImageSet,
    Mitigation,
    NotApplicable,
    PruningLevel,
    Steps,
    Tunable,
    batch_indices,
    hookimpl,
    note,
    nt_xent,
    pretext_accuracy,
    pretext_outputs,
    stream,
    within_tolerance,
)

Loss = Callable[[Tensor, Tensor], Tensor]
"""L of masks (K,) and noise (2, K), δ and ξ, on one batch: 0-d."""

RAISING = 0.05  # between two thresholds; the grid of the released code


class ANP(Mitigation):
    """Learns masks of BatchNorm channels under adversarial noise, then prunes the channels with small masks."""

    name = "anp"
    paper = "Wu, Wang, Adversarial Neuron Pruning Purifies Backdoored Deep Models, NeurIPS 2021; the loss is ours"
    version = "2"
    tunable = {
        "tolerance": Tunable(0.01, 0.16, log=True),
        "eps": Tunable(0.1, 1.6, log=True),
        "alpha": Tunable(0.1, 0.9),
    }

    steps: int = Field(2000, ge=0, le=1_000_000_000, description="number of steps in which the masks are learned")
    batch: int = Field(128, ge=2, le=1_000_000, description="number of images per step")
    eps: float = Field(
        0.4, ge=0, le=1e3, description="largest relative change of a channel's BatchNorm weight and bias (the noise)"
    )
    alpha: float = Field(
        0.2, ge=0, le=1, description="weight of the loss without noise; the loss with noise has weight 1 - alpha"
    )
    ascent_steps: int = Field(
        1,
        ge=0,
        le=1_000_000_000,
        description="number of updates of the noise per step, each of size eps / ascent_steps",
    )
    project: bool = Field(
        True, description="whether the noise is kept within eps; false: within 2 eps, as in the released code"
    )
    lr: float = Field(
        0.2, gt=0, le=1e3, description="learning rate of SGD on the masks; loss=consistency needs 5 to 10 times more"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    loss: Literal["contrastive", "consistency"] = Field(
        "contrastive", description="contrastive: NT-Xent; consistency: 1 - cosine with the original encoder's features"
    )
    bn: Literal["train", "eval"] = Field(
        "train", description="BatchNorm statistics while masks are learned; train: of the batch; eval: the running ones"
    )
    threshold: float = Field(
        0.95, ge=0, lt=1, description="highest threshold that is tried; channels whose mask is at most this are pruned"
    )
    tolerance: float = Field(
        0.04, ge=0, le=1, description="largest fall of pretext accuracy, 0 to 1, that pruning may cause"
    )
    prune_bias: bool = Field(False, description="whether the bias of a pruned channel is set to 0 too")
    temperature: float = Field(0.5, ge=1e-4, le=1e4, description="temperature of the contrastive loss NT-Xent")
    crop_scale: CropScale = Field(
        (0.08, 1.0), description="smallest and largest share of the image's area that a random crop covers"
    )
    colour: Literal["exact", "affine"] = Field(
        "exact", description="colour jitter; exact: torchvision's; affine: one affine map per image, faster"
    )

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.loss == "consistency" and self.bn == "train":
            raise ValueError("loss=consistency compares with features under running statistics: set bn=eval with it")
        return self

    @property
    def augment(self) -> Augment:
        return Augment(self.crop_scale, self.colour)

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """NotApplicable without BatchNorm, and without a head if ``loss`` is contrastive; Diverged on NaN."""
        if not encoder.norms():
            raise NotApplicable(f"anp prunes BatchNorm channels; {encoder.arch} has no BatchNorm")
        if encoder.head is None and self.loss == "contrastive":
            raise NotApplicable(
                "loss=contrastive needs a projection head and this encoder has none; set anp.loss=consistency, "
                "anp.bn=eval and anp.lr=1"
            )
        encoder.requires_grad_(False).eval()
        masks = self.learn(encoder, knowledge.images, knowledge.seed)
        encoder.eval()
        self.prune_within_budget(encoder, masks, knowledge.images, knowledge.seed)
        return encoder.requires_grad_(True)

    def forwards(self, images: int) -> int | None:
        """An upper limit: thresholds that prune the same neurons are measured once."""
        views = 2 if self.loss == "contrastive" else 1
        step = 2 * views * (self.ascent_steps + 2)  # forward 1, backward to the inputs 1
        before = images if self.loss == "consistency" else 0
        return before + step * min(self.batch, images) * self.steps + 2 * images * (1 + len(self.thresholds()))

    # Learning masks

    def learn(self, encoder: Encoder, images: ImageSet, seed: int) -> Tensor:
        """Masks (K,) in [0, 1] of all neurons, in the order of ``Encoder.norms``. Only the encoder's mode changes."""
        neurons = Neurons(encoder, project=self.loss == "contrastive")
        masks = torch.ones(len(neurons.gamma), device=encoder.device, requires_grad=True)
        optimizer = torch.optim.SGD([masks], self.lr, momentum=self.momentum)
        order, noises = stream(seed, "order"), stream(seed, "noise", encoder.device)
        batches = batch_indices(len(images), self.batch, self.steps, order, images.device)
        loss_on = self.losses(neurons, images, seed)
        encoder.train(self.bn == "train")
        progress = Steps(self.steps)
        for _, rows in zip(progress, batches, strict=True):
            loss = loss_on(rows)
            noise = self.noise(loss, masks.detach(), noises)
            optimizer.zero_grad(set_to_none=True)
            natural = self.alpha * loss(masks, torch.zeros_like(noise))
            natural.backward()  # before the second forward, so that memory holds one graph at a time
            robust = (1 - self.alpha) * loss(masks, noise)
            robust.backward()
            optimizer.step()
            with torch.no_grad():
                masks.clamp_(0, 1)
            progress.loss(natural.detach() + robust.detach())
        if not masks.isfinite().all():  # NaN exceeds no threshold: all neurons would be pruned
            raise Diverged("anp: the masks are not finite; lr is too high")
        return masks.detach()

    def losses(self, neurons: Neurons, images: ImageSet, seed: int) -> Callable[[Tensor], Loss]:
        """L on a batch of rows. All passes of a step use the same views."""
        if self.loss == "contrastive":
            draws = stream(seed, "views", images.device)

            def contrast_on(rows: Tensor) -> Loss:
                views = self.augment.pair(images.pixels[rows], draws)

                def contrast(masks: Tensor, noise: Tensor) -> Tensor:
                    first, second = (neurons(view, masks, noise) for view in views)
                    return nt_xent(first, second, self.temperature)

                return contrast

            return contrast_on

        untouched = neurons.encoder.extract(images.pixels)

        def consistency_on(rows: Tensor) -> Loss:
            clean, before = images.pixels[rows].float() / 255, untouched[rows]

            def consistency(masks: Tensor, noise: Tensor) -> Tensor:
                return 1 - F.cosine_similarity(neurons(clean, masks, noise), before).mean()

            return consistency

        return consistency_on

    def noise(self, loss: Loss, masks: Tensor, generator: torch.Generator) -> Tensor:
        """δ and ξ (2, K): a uniform start, moved in the direction of higher loss."""
        noise = masks.new_empty(2, len(masks)).uniform_(-self.eps, self.eps, generator=generator)
        for _ in range(self.ascent_steps):
            noise.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(masks, noise), noise)
            noise = noise.detach() + self.eps / self.ascent_steps * gradient.sign()
            if self.project:
                noise.clamp_(-self.eps, self.eps)
        return noise

    # Pruning

    def thresholds(self) -> list[float]:
        """The thresholds from 0 up to ``threshold`` by steps of 0.05; the last step may be shorter."""
        levels = math.ceil(round(self.threshold / RAISING, 6))
        return [round(min(self.threshold, RAISING * i), 6) for i in range(levels + 1)]

    def prune_within_budget(self, encoder: Encoder, masks: Tensor, images: ImageSet, seed: int) -> None:
        """Prune, in place, at the highest threshold that the tolerance allows; prune nothing if none is.

        Every threshold that prunes more neurons than the one before is measured, also those that cost too much.
        """
        curve = [PruningLevel(0, self.utility(encoder, images, seed))]
        for threshold in self.thresholds():
            kept = masks > threshold
            if (gone := int((~kept).sum())) > curve[-1].pruned:
                candidate = encoder.copy()
                prune(candidate, kept, bias=self.prune_bias)
                curve.append(PruningLevel(gone, self.utility(candidate, images, seed), threshold))
        chosen = within_tolerance(curve, self.tolerance)
        kept = masks > (-1.0 if chosen.threshold is None else chosen.threshold)
        prune(encoder, kept, bias=self.prune_bias)
        self.report(encoder, kept, masks, chosen, curve)

    def utility(self, encoder: Encoder, images: ImageSet, seed: int) -> float:
        """Pretext accuracy, 0..1, on a fixed pair of views of every image: two forwards per image."""
        net = Net(encoder, project=encoder.head is not None)
        return pretext_accuracy(*pretext_outputs(net, images, self.augment, seed))

    def report(
        self, encoder: Encoder, kept: Tensor, masks: Tensor, chosen: PruningLevel, curve: list[PruningLevel]
    ) -> None:
        """Note masks, pruning and utility, and in ``remarks`` what a reader of the table must know."""
        by_layer = [int((~part).sum()) for part in kept.split([n.num_features for n in encoder.norms().values()])]
        before, default = curve[0].utility, type(self).model_fields["steps"].default
        remarks = []
        if self.steps < default:
            remarks.append(f"anp: {self.steps} of {default} steps of mask learning")
        if len(curve) == 1:
            remarks.append(f"anp: nothing was pruned (no mask fell to {self.threshold:g})")
        elif chosen.threshold is None:
            remarks.append("anp: nothing was pruned (every threshold that prunes costs too much utility)")
        if float((masks <= 0.2).float().mean()) > 0.5:
            remarks.append("anp: more than half of the masks fell below 0.2; lr is too high for this loss")
        if before <= self.tolerance:
            remarks.append(f"anp: pretext accuracy is {before:.1%} before pruning, so the tolerance bounds nothing")
        note("remarks", remarks)
        note(
            "pruning",
            {
                "threshold": chosen.threshold,
                "pruned": chosen.pruned,
                "neurons": len(masks),
                "pruned_by_layer": {name: n for name, n in zip(encoder.norms(), by_layer, strict=True) if n},
                "share_below_0.2": round(float((masks < 0.2).float().mean()), 4),
                "histogram": [int(n) for n in torch.histc(masks.cpu(), 10, 0, 1)],
                "tolerance": self.tolerance,
                "utility_before": round(before, 4),
                "utility_after": round(chosen.utility, 4),
                "curve": [level.noted() for level in curve],
            },
        )


class Net(nn.Module):
    """An encoder from images in [0, 1] to projections, or to features: one module, one call."""

    def __init__(self, encoder: Encoder, *, project: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = project

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.encoder(x)
        return self.encoder.project(features) if self.project else features


class Neurons:
    """The encoder as a function of its neurons' masks and noise. Its parameters and buffers are read but never changed.

    gamma, beta: (K,), the affine of every BatchNorm of f, in the order of ``Encoder.norms``.
    """

    def __init__(self, encoder: Encoder, *, project: bool) -> None:
        self.encoder = encoder
        self.net = Net(encoder, project=project)
        self.names = [f"encoder.{name}" for name in encoder.norms()]
        self.sizes = [norm.num_features for norm in encoder.norms().values()]
        self.gamma = torch.cat([norm.weight.detach() for norm in encoder.norms().values()])
        self.beta = torch.cat([norm.bias.detach() for norm in encoder.norms().values()])
        self.buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}

    def __call__(self, x: Tensor, masks: Tensor, noise: Tensor) -> Tensor:
        """Projections or features of images (B, 3, H, W) in [0, 1] under masks (K,) and noise (2, K)."""
        gammas = (self.gamma * (masks + noise[0])).split(self.sizes)
        betas = (self.beta * (1 + noise[1])).split(self.sizes)
        tensors = dict(self.buffers)  # with batch statistics, running ones drift: only in these unused clones
        for name, gamma, beta in zip(self.names, gammas, betas, strict=True):
            tensors |= {f"{name}.weight": gamma, f"{name}.bias": beta}
        out: Tensor = functional_call(self.net, tensors, (x,))
        return out


@torch.no_grad()
def prune(encoder: Encoder, kept: Tensor, *, bias: bool = False) -> None:
    """Zero the weight, with ``bias`` also the bias, of every neuron whose ``kept``, bool (K,), is False, in place."""
    layers = encoder.norms().values()
    for norm, part in zip(layers, kept.split([norm.num_features for norm in layers]), strict=True):
        norm.weight.mul_(part)
        if bias:
            norm.bias.mul_(part)


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [ANP]

"""mlp: the downstream classifier of BadEncoder and MIMIC, a net with two hidden layers on frozen features.

Linear(d, 512) - ReLU - Dropout(.5) - Linear(512, 256) - ReLU - Linear(256, C) on L2-normalised features; cross-entropy,
Adam 1e-4, batches of 64; the predictions are those after the last epoch. The defaults are the 1000 epochs of MIMIC's
tables, in a new order every epoch.

BadEncoder's tables, exactly: ``epochs=500 shuffle=false``. Its released code never shuffles, so that on data sorted by
class (GTSRB) the last batches of every epoch bias the head and the figure is noisy. MIMIC's: ``shuffle=false`` alone.
Features of unit length train slowly: small boards use fewer epochs, a higher rate and ``scale=10``.

Heads of one shape are trained as one batch, (K, B, d) x (K, d, h). Every member draws its weights, order and dropout
from its own streams, and its results do not depend, bit for bit, on which other heads are in the batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from benchbd import Diverged, Evaluator, Head, Predictions, Probe, Steps, computed_once, hookimpl, one_thread, stream

TOGETHER = 8  # number of heads that are trained as one batch
LANES = 16  # number of floats in the widest SIMD register

Layers = list[tuple[Tensor, Tensor]]


class MLP(Evaluator):
    """Trains a head with two hidden layers on L2-normalised features of the frozen encoder, as in the papers."""

    name = "mlp"
    paper = "evaluation of BadEncoder (Jia et al., IEEE S&P 2022) and MIMIC (Han et al., IEEE TIFS 2025)"
    version = "1"

    epochs: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="number of passes over the training images; the head after the last one is used",
    )
    batch: int = Field(
        64, ge=1, le=1_000_000, description="number of images per step; the last, smaller batch is used too"
    )
    lr: float = Field(1e-4, gt=0, le=1e3, description="learning rate of Adam")
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(
        (512, 256), min_length=1, max_length=16, description="widths of the hidden layers, each at most 65536"
    )
    dropout: float = Field(
        0.5, ge=0, lt=1, description="probability with which dropout sets a unit of the first hidden layer to 0"
    )
    shuffle: bool = Field(
        True, description="whether every epoch has a new order; false: the data set's order, as in the released code"
    )
    scale: float = Field(1.0, gt=0, le=1e4, description="length to which features are normalised")

    def evaluate(self, probe: Probe) -> Predictions:
        return self.evaluate_together([probe])[0]

    def evaluate_together(self, probes: Sequence[Probe]) -> list[Predictions]:
        features = computed_once(lambda encoder, pixels: F.normalize(encoder.extract(pixels), dim=1) * self.scale)

        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, probe in enumerate(probes):
            alike[*features(probe.encoder, probe.train.pixels).shape, probe.classes].append(i)

        predictions: dict[int, Predictions] = {}
        for (*_, classes), members in alike.items():
            for start in range(0, len(members), TOGETHER):
                group = members[start : start + TOGETHER]
                trained = [probes[i] for i in group]
                layers = self.train_together([features(p.encoder, p.train.pixels) for p in trained], trained, classes)
                for k, i in enumerate(group):
                    head = [(w[k : k + 1], b[k : k + 1]) for w, b in layers]
                    clean, triggered = (
                        forward(head, features(probes[i].encoder, x)[None])[0]
                        for x in (probes[i].test, probes[i].triggered)
                    )
                    if not (clean.isfinite().all() and triggered.isfinite().all()):
                        raise Diverged("mlp: the logits are not finite; lr or scale is too high")
                    predictions[i] = Predictions(clean.argmax(1).cpu(), triggered.argmax(1).cpu())
        return [predictions[i] for i in range(len(probes))]

    def head(self, probe: Probe) -> Head:
        train = F.normalize(probe.encoder.extract(probe.train.pixels), dim=1) * self.scale
        layers = self.train_together([train], [probe], probe.classes)
        own = [(weight[0].T, bias[0, 0]) for weight, bias in layers]
        return Head.of(own, normalized=True, scale=self.scale, classes=probe.train.classes)

    def train_together(self, features: list[Tensor], probes: list[Probe], classes: int) -> Layers:
        """Trained heads of several probes, from their training features (N, d). Diverged on NaN."""
        # cuBLAS may pick another kernel for another number of members, so on a GPU the number is always the same. It
        # costs no time: launches take most of it. On a CPU every member is a separate product.
        fill = TOGETHER - len(probes) if probes[0].encoder.device.type == "cuda" else 0
        features, probes = features + features[-1:] * fill, probes + probes[-1:] * fill
        with one_thread():
            return self.fit(
                torch.stack(features), torch.stack([p.labels for p in probes]), classes, [p.seed for p in probes]
            )

    def fit(self, features: Tensor, labels: Tensor, classes: int, seeds: Sequence[int]) -> Layers:
        """Train K heads: features float32 (K, N, d), labels int64 (K, N), one seed each. Diverged on NaN."""
        members, images, dim = features.shape
        device, sizes = features.device, (dim, *self.hidden, classes)
        # All weights of a member are one row, and Adam updates one tensor: a single fused kernel per step.
        flat = torch.stack([initial(sizes, stream(seed, "init")) for seed in seeds]).to(device).requires_grad_()
        orders = [stream(seed, "order") for seed in seeds]
        draws = [stream(seed, "dropout", device) for seed in seeds]
        adam = torch.optim.Adam([flat], self.lr, fused=True)
        every = torch.arange(members, device=device)[:, None]

        def batches() -> Iterator[Tensor]:
            for _ in range(self.epochs):
                order = torch.arange(images).expand(members, -1)
                if self.shuffle:
                    order = torch.stack([torch.randperm(images, generator=g) for g in orders])
                yield from order.to(device).split(self.batch, dim=1)

        progress = Steps(self.epochs * -(-images // self.batch))
        for _, rows in zip(progress, batches(), strict=True):
            n = rows.shape[1]
            keep = torch.stack([dropout_mask(n, self.hidden[0], self.dropout, g) for g in draws])
            logits = forward(layers_of(flat, sizes), features[every, rows], keep)
            # The sum of the members' mean losses: no member's gradient depends on the others.
            loss = F.cross_entropy(logits.flatten(0, 1), labels[every, rows].flatten(), reduction="sum") / n
            adam.zero_grad()
            loss.backward()
            adam.step()
            progress.loss(loss / members)
        return layers_of(flat.detach(), sizes)


def forward(layers: Layers, x: Tensor, keep: Tensor | None = None) -> Tensor:
    """Logits (K, B, C) of features (K, B, d). keep: (K, B, h), factors of the first hidden layer (its dropout)."""
    for i, (weight, bias) in enumerate(layers):
        if i:
            x = x.relu()
        if i == 1 and keep is not None:
            x = x * keep
        x = torch.baddbmm(bias, x, weight)
    return x


def initial(sizes: Sequence[int], generator: Generator) -> Tensor:
    """Weights (in, out) and bias of each layer in turn, (P,): U(-1/sqrt(in), 1/sqrt(in)), as in PyTorch's Linear.

    P is rounded up with zeros to whole SIMD registers: scalar code computes the remainder of a tensor and rounds
    differently, and the number of members would determine which numbers are in the remainder.
    """
    drawn = [(torch.rand((i + 1) * o, generator=generator) * 2 - 1) / i**0.5 for i, o in pairwise(sizes)]
    flat = torch.cat(drawn)
    return F.pad(flat, (0, -len(flat) % LANES))


def layers_of(flat: Tensor, sizes: Sequence[int]) -> Layers:
    """The rows of ``flat`` (K, P) as each layer's weight (K, in, out) and bias (K, 1, out)."""
    lengths = [n for i, o in pairwise(sizes) for n in (i * o, o)]
    parts = iter(flat.split([*lengths, flat.shape[1] - sum(lengths)], dim=1))  # one split: its backward is one cat
    return [(next(parts).view(-1, i, o), next(parts).view(-1, 1, o)) for i, o in pairwise(sizes)]


def dropout_mask(rows: int, width: int, p: float, generator: Generator) -> Tensor:
    """Factors (rows, width) of inverted dropout: 0 with probability p (to 2**-16), else 1 / (1 - p).

    Every 64-bit draw gives four 16-bit numbers: drawing would otherwise take a third of a small head's step.
    """
    words = torch.empty(-(-rows * width // 4), dtype=torch.int64, device=generator.device)
    numbers = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: rows * width]
    return (numbers >= round(p * 2**16) - 2**15).view(rows, width) / (1 - p)


@hookimpl
def benchbd_evaluators() -> list[type[Evaluator]]:
    return [MLP]

"""Heads on an encoder's features: a classifier's, as data that a file can hold, and the projection's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchbd.base.errors import DataError, shown


class Head(nn.Module):
    """Raw features (N, d) -> logits (N, C): h, or h / |h| if ``normalized``; minus ``mean``, divided by ``std``, times
    ``scale``; then linear layers with ReLU between.

    sizes: (d, hidden widths, C), two numbers at least. A new head has random layers, mean 0, std 1 and
        scale 1.
    classes: names of the C classes in label order, or empty.
    mean, std: float32 (d,), std above 0. scale: float32 (), above 0.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor

    def __init__(self, sizes: Sequence[int], *, normalized: bool = False, classes: Sequence[str] = ()) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise DataError(f"a head has the sizes (features, ..., classes), each at least 1, not {tuple(sizes)}")
        if classes and len(classes) != sizes[-1]:
            raise DataError(f"a head of {sizes[-1]} logits has {sizes[-1]} classes, not {len(classes)}")
        if not all(isinstance(name, str) for name in classes):
            raise DataError(f"the classes of a head are names, not {shown(classes)}")
        self.normalized, self.classes = bool(normalized), tuple(classes)
        self.register_buffer("mean", torch.zeros(sizes[0]))
        self.register_buffer("std", torch.ones(sizes[0]))
        self.register_buffer("scale", torch.ones(()))
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    @classmethod
    def of(
        cls,
        layers: Iterable[tuple[Tensor, Tensor]],
        *,
        normalized: bool = False,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        scale: float = 1.0,
        classes: Sequence[str] = (),
    ) -> Head:
        """A head of trained layers, each a weight (out, in) and a bias (out,), on the device of the first; in eval
        mode. Weights and statistics are copied. DataError if they do not fit together."""
        given = [(weight.detach(), bias.detach()) for weight, bias in layers]
        sizes = [weight.shape[1] for weight, _ in given] + [len(weight) for weight, _ in given[-1:]]
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
            head = cls(sizes, normalized=normalized, classes=classes)
        own = {"mean": head.mean if mean is None else mean, "std": head.std if std is None else std}
        own["scale"] = torch.tensor(scale)
        for i, (weight, bias) in enumerate(given):
            own |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        try:
            head.load_state_dict(own)
        except RuntimeError as error:
            raise DataError(f"the parts of a head do not fit together: {' '.join(str(error).split())[:200]}") from None
        return head.to(given[0][0].device).eval()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Length of a feature, hidden widths, and number of classes."""
        weights = [layer.weight for layer in self.layers if isinstance(layer, nn.Linear)]
        return (weights[0].shape[1], *map(len, weights))

    def options(self) -> dict[str, Any]:
        """The arguments that make an equal ``Head``, as JSON."""
        return {"sizes": list(self.sizes), "normalized": self.normalized, "classes": list(self.classes)}

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C), float32, of raw features (N, d)."""
        h = F.normalize(features, dim=1) if self.normalized else features
        h = (h - self.mean) / self.std * self.scale
        for i, layer in enumerate(self.layers):
            h = layer(h.relu() if i else h)
        return h


def projection_head(dim: int) -> nn.Sequential:
    """g: Linear(d, d, no bias) - BatchNorm1d - ReLU - Linear(d, 128)."""
    return nn.Sequential(nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, 128))

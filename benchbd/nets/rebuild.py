"""Rebuild the encoder that a method returned from the tensors that a file can hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchbd.base.errors import Diverged, PluginError
from benchbd.nets.encoder import ARCHITECTURES, Encoder
from benchbd.nets.head import Head
from benchbd.nets.values import impossible, not_finite


def rebuild(encoder: Encoder, arch: str, who: str, does: str = "must return") -> Encoder:
    """A new encoder of architecture ``arch`` with the tensors of ``encoder``, on the CPU, as a file would give it.

    PluginError, which begins with ``who`` and what it ``does``, if ``encoder.arch`` is another architecture, its
    tensors are not exactly those of ``arch`` by name, shape and type, its normalisation is invalid, its mask is not 0
    and 1, a variance is below 0, or its classifier is no ``Head`` of its features. Diverged if a weight is NaN or
    infinite.
    """
    what = type(encoder).__name__
    if not isinstance(encoder, Encoder):
        raise PluginError(f"{who} {does} a benchbd.Encoder, not {what}")
    if type(encoder) not in ARCHITECTURES.values():
        raise PluginError(f"{who} {does} a benchbd.Encoder, not its subclass {what}, which no file can hold")
    if encoder.arch != arch:
        raise PluginError(f"{who} {does} a {arch} encoder, not {encoder.arch}")
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        plain = Encoder(arch, head=encoder.head is not None)
        if (own := encoder.classifier) is not None:
            if type(own) is not Head:
                raise PluginError(f"{who} {does} an encoder whose classifier is a Head, not {type(own).__name__}")
            plain.classifier = Head(**{**own.options(), "sizes": [plain.feature_dim, *own.sizes[1:]]})
    if flaw := _flaw(tensors, plain.state_dict()):
        raise PluginError(f"{who} {does} a plain {arch} encoder: {flaw}")
    if flaw := not_finite(tensors):
        raise Diverged(f"the weights are not finite: {flaw}")
    if wrong := impossible(tensors):
        raise PluginError(f"{who} {does} an encoder whose {wrong[0]} is {wrong[1]}")
    plain.load_state_dict(tensors)
    return plain.eval()


def _flaw(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first difference between the tensors of an encoder and those expected; empty if there is none."""
    for name in [*expected, *tensors]:
        if name not in tensors:
            return f"it has no {name}"
        if name not in expected:
            return f"it has a tensor {name}, of which the architecture knows nothing"
        (shape, dtype), (right, precision) = ((t.shape, t.dtype) for t in (tensors[name], expected[name]))
        if shape != right:
            return f"its {name} is {tuple(shape)}, not {tuple(right)}"
        if dtype != precision:
            return f"its {name} is {dtype}, not {precision}".replace("torch.", "")
    return ""

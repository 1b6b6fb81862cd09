"""Check on images what an architecture promises: each broken promise is one line."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchbd.base.errors import PluginError
from benchbd.nets.encoder import Encoder
from benchbd.nets.meter import precision
from benchbd.nets.rebuild import rebuild


def broken_promises(encoder: Encoder, size: int) -> Iterator[str]:
    """The promises that the encoder breaks, one line each; later lines count only if there is no earlier one.

    encoder: one with a head, in eval mode, whose class is known by its name. size: height and width of the images.
    """
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    yield from _of_features(encoder, x)
    yield from _of_maps(encoder, x)
    yield from _of_gradients(encoder, x)
    yield from _of_the_mask(encoder, x)
    yield from _of_files(encoder, x)


@torch.no_grad()
def _of_features(encoder: Encoder, x: Tensor) -> Iterator[str]:
    features = encoder(x)
    if features.shape != (2, encoder.feature_dim):
        yield f"features of 2 images are {tuple(features.shape)}, not (2, {encoder.feature_dim}), its feature_dim"
    if not features.isfinite().all():
        yield "features are not finite"
    if not torch.allclose(encoder(x[1:]), features[1:], rtol=1e-3, atol=1e-4):
        yield "in eval mode features of an image depend on the other images"
    if torch.allclose(features[0], features[1], rtol=1e-6, atol=1e-9):
        yield "different images have the same features"
    with precision("bf16"):
        near = encoder(x)
    if not (torch.cosine_similarity(near, features) > 0.98).all():
        yield "features under bfloat16 are others: leave to float32 what needs it"


@torch.no_grad()
def _of_maps(encoder: Encoder, x: Tensor) -> Iterator[str]:
    features, maps = encoder.intermediates(x)
    again, every = encoder.intermediates(x, every=True)
    if tuple(maps) != encoder.stages:
        yield f"encode() takes the stages {tuple(maps)}, and stages says {encoder.stages}"
    if flat := [name for name, map_ in every.items() if map_.ndim != 4]:
        yield f"the map of {flat[0]} is {tuple(every[flat[0]].shape)}, not (N, C, H, W)"
    if (channels := maps[encoder.stages[-1]].shape[1]) != encoder.channels:
        yield f"the last stage has {channels} channels, and channels says {encoder.channels}"
    if not (torch.equal(features, again) and all(torch.equal(map_, every[name]) for name, map_ in maps.items())):
        yield "features or maps are others with every=True"
    seen: dict[str, Tensor] = {}
    twin = encoder.copy()
    for name, convolution in twin.convolutions().items():
        convolution.register_forward_hook(lambda m, x, y, name=name: seen.setdefault(name, y.detach().clone()))
    every = twin.intermediates(x, every=True)[1]
    if absent := [name for name in twin.convolutions() if name not in every]:
        yield f"convolutions() names {absent[0]}, which encode() does not take"
    if not list(seen) == list(twin.convolutions()) == [place for place in every if place in seen]:
        yield f"convolutions() is not in the order in which images pass: {', '.join(seen)}"
    if other := [name for name, y in seen.items() if not torch.equal(y, every[name])]:
        yield f"the map of {other[0]} is not what its convolution gave, or was changed in place after it was taken"
    modules = dict(encoder.named_modules())
    if unknown := [name for name, norm in encoder.norms().items() if modules.get(name) is not norm]:
        yield f"norms() names {unknown[0]}, which is no module of that name"


def _of_gradients(encoder: Encoder, x: Tensor) -> Iterator[str]:
    features, every = encoder.intermediates(x.clone().requires_grad_(True), every=True)
    gradients = torch.autograd.grad(features.square().sum(), [*every.values()], allow_unused=True)
    for name, gradient in zip(every, gradients, strict=True):
        if gradient is None or not gradient.isfinite().all():
            yield f"features have no finite gradient with respect to the map of {name}: go on from what take() returns"
    image = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(encoder.frozen()(image).square().sum(), [image])
    if not (gradient.isfinite().all() and gradient.any()):
        yield "features have no finite gradient with respect to the images, or one of zeros"


@torch.no_grad()
def _of_the_mask(encoder: Encoder, x: Tensor) -> Iterator[str]:
    features, pruned = encoder(x), encoder.copy()
    half = encoder.channels // 2
    pruned.mask[:half] = 0
    less, maps = pruned.intermediates(x)
    if maps[encoder.stages[-1]][:, :half].any():
        yield "channels that the mask prunes are not 0 in the map of the last stage"
    if encoder.channelwise and (less[:, :half].any() or not torch.equal(less[:, half:], features[:, half:])):
        yield "channelwise is True, but pruned channels do not become zeros of the features, and of no others"
    if torch.equal(less, features):
        yield "pruned channels change no feature: go on from what take() returns"
    if not torch.equal(encoder(x), features):
        yield "a copy shares its mask"


@torch.no_grad()
def _of_files(encoder: Encoder, x: Tensor) -> Iterator[str]:
    data = encoder.to_bytes()
    loaded = Encoder.from_bytes(data)
    if type(loaded) is not type(encoder) or loaded.to_bytes() != data or not torch.equal(loaded(x), encoder(x)):
        yield "an encoder that was saved and loaded is another: keep what it is made of in parameters and buffers"
    try:
        rebuild(encoder, encoder.arch, "it")
    except PluginError as error:
        yield str(error)

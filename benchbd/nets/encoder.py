"""The encoder maps images in [0, 1] to features. It contains its own normalisation and names its stages.

``Encoder`` has what all architectures share. An architecture is a class derived from it that builds its modules and
runs them; the hook ``benchbd_architectures`` offers it by its name. This module has the three of benchbd itself:
``resnet18`` is the papers' net (torchvision's ResNet-18 with a 3x3 stride-1 stem and no max-pool, 11,168,832
parameters, 512-d; head 512-512-128). ``w32`` and ``w16`` are small ResNets for two cores: a 4x4 stride-2 stem, three
stages of one block, widths 32/64/128 and 16/32/64.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from benchbd.base.content import expanded, file_at, write_file
from benchbd.base.errors import DataError, Diverged, UnknownNameError, UsageError
from benchbd.base.inputs import file_kind, obstacle
from benchbd.base.isolation import isolated
from benchbd.nets.head import Head, projection_head
from benchbd.nets.meter import _count, _hook_once, _precision
from benchbd.nets.resnet import BasicBlock, Bottleneck, Stage, Stem, Take, within
from benchbd.nets.values import check_values

_NO_ENCODER = (SafetensorError, DataError, UnknownNameError, KeyError, TypeError, ValueError, RuntimeError, OSError)


class Encoder(nn.Module):
    """A net f that maps images to features and, if it has one, its projection head g.

    ``Encoder(arch)`` and ``Encoder.seeded`` make one with random weights; ``Encoder.load`` reads one from a file.

    ``encoder(x)``: float (N, 3, H, W) in [0, 1] -> raw features (N, feature_dim), not normalised.
    ``encoder.project(h)``: features -> projections (N, 128); only if ``encoder.head`` is not None.
    ``encoder.classifier``: raw features -> logits of the classes that a supervised method trained it on, a ``Head``;
    None if there are no such classes. It is saved with the encoder, and is no part of f.
    ``encoder.intermediates(x)``: features and the output of every stage by name, in one forward.
    ``encoder.stages``: the names of the stages in order. Their number depends on the architecture.
    ``encoder.mask``: 1 or 0 per channel of the last stage; a channel with 0 is pruned. It is part of the saved state.

    Mixed precision, channels_last and counting of forwards happen inside, so that methods need not mention them;
    every output is float32.

    A new architecture is a class derived from this one that a plugin offers with ``benchbd_architectures``. It has a
    docstring and defines ``build`` and ``encode``. It sets ``arch``, its name, and, as attributes or properties,
    ``stages`` and ``feature_dim``. It may set

    image_size: the one height and width that its images must have, 32 to 224; None: any of these.
    channelwise: whether feature i is the mean over positions of channel i of the last stage.
    needs: a module that it needs and what to install for that: ("open_clip", "benchbd[clip]").
    """

    mean: Tensor
    std: Tensor
    mask: Tensor

    arch: str
    image_size: ClassVar[int | None] = None
    channelwise: ClassVar[bool] = True
    needs: ClassVar[tuple[str, str] | None] = None

    def __new__(cls, arch: str = "", *_: Any, **__: Any) -> Self:
        return cast(Self, super().__new__(architecture(arch) if cls is Encoder else cls))

    def __init__(
        self,
        arch: str,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        *,
        head: bool = True,
    ) -> None:
        super().__init__()
        if arch != self.arch:
            raise UsageError(f"{type(self).__name__} is the architecture {self.arch!r}, not {arch!r}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.build()
        self.register_buffer("mask", torch.ones(self.channels))
        self.head: nn.Sequential | None = projection_head(self.feature_dim) if head else None
        self.classifier: Head | None = None
        self.initialise()
        self.to(memory_format=torch.channels_last)

    # What an architecture defines

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the encoder's stages, in order."""
        raise NotImplementedError

    @property
    def feature_dim(self) -> int:
        """Length of a feature."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Number of channels of the last stage, and length of ``mask``."""
        return self.feature_dim

    def build(self) -> None:
        """Make the modules of f, as attributes of ``self``. Import large libraries here."""
        raise NotImplementedError

    def initialise(self) -> None:
        """Draw new weights, head included; override it if the modules' own initialisation is not the right one."""

    def encode(self, x: Tensor, take: Take) -> Tensor:
        """Raw features (N, feature_dim) of normalised images (N, 3, H, W), under autocast if the run asks for it.

        take: call ``y = take(name, y)`` after every stage with its map (N, C, H', W') and continue with the result.
            Call it too after the stem ("stem"), after every convolution of ``convolutions`` and for the other places of
            ``intermediates(every=True)``. Do not change a map in place after ``take`` got it.
        """
        raise NotImplementedError

    def convolutions(self) -> dict[str, nn.Conv2d]:
        """The convolutions of f in the order in which images pass them, without those of shortcuts, by the name of
        their output in ``intermediates(every=True)``."""
        return {name: module for name, module in self.named_modules() if isinstance(module, nn.Conv2d)}

    def norms(self) -> dict[str, nn.BatchNorm2d]:
        """The BatchNorm layers of f by module name, those of shortcuts too; in ``modules()`` each follows the
        convolution that it normalises. Empty if the architecture has none."""
        return {name: module for name, module in self.named_modules() if isinstance(module, nn.BatchNorm2d)}

    # What all architectures share

    @classmethod
    def seeded(
        cls, arch: str, mean: Sequence[float], std: Sequence[float], *, seed: int, device: torch.device | str
    ) -> Self:
        """A randomly initialised encoder with a projection head. It depends on the arguments alone, not on the
        global generators."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone: all weights are drawn there
            return cls(arch, mean, std).to(device)

    def untrained(self, seed: int) -> Encoder:
        """A randomly initialised encoder with a head, of this encoder's architecture and normalisation."""
        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return Encoder.seeded(self.arch, mean, std, seed=seed, device=self.device)

    @property
    def device(self) -> torch.device:
        """The device of the encoder's weights."""
        return self.mean.device

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, d), float32, of images (N, 3, H, W) in [0, 1]."""
        return self.intermediates(x)[0]

    def intermediates(self, x: Tensor, *, every: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """(features (N, d), {stage name: map (N, C, H', W')}), all float32, from one forward.

        every: also the places between stages, in order: the output of every convolution but the shortcuts'
            ("stem.conv", "layer1.0.conv1"), of the ReLU inside each block ("layer1.0.relu"), of the stem and of every
            block. The last block of a stage has the stage's name. No map is changed later, and the features
            have a gradient with respect to each, in any precision.
        UsageError if the architecture does not take images of this size.
        """
        if self.image_size not in (None, x.shape[-1]):
            raise UsageError(f"{self.arch} takes images of {self.image_size} pixels, not {x.shape[-1]}")
        charge, stages, maps = _count(self.backbone(), len(x)), self.stages, dict[str, Tensor]()

        def take(place: str, y: Tensor) -> Tensor:
            nonlocal charge
            ends = place in stages
            if place == stages[-1]:
                y = y * self.mask.view(1, -1, 1, 1).to(y.dtype)
            if ends or every:
                maps[place] = y.float()
            if every:
                y = maps[place].to(y.dtype)  # under autocast the copy must be part of the graph
            if ends or place == "stem":
                charge = _hook_once(y, charge)
            return y

        with torch.autocast(x.device.type, torch.bfloat16, enabled=_precision.get() == "bf16"):
            y = self.encode(((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last), take)
        return y.float(), maps

    def project(self, features: Tensor) -> Tensor:
        """Raw projections (N, 128) of raw features; the losses normalise them."""
        if self.head is None:
            raise DataError("this encoder has no projection head")
        with torch.autocast(features.device.type, torch.bfloat16, enabled=_precision.get() == "bf16"):
            return cast(Tensor, self.head(features)).float()

    def backbone(self) -> Iterator[nn.Parameter]:
        """The parameters of f alone, without head and classifier."""
        return (p for name, p in self.named_parameters() if not name.startswith(("head.", "classifier.")))

    def copy(self) -> Encoder:
        """An independent copy in eval mode: every parameter is trainable and has no gradient."""
        twin = copy.deepcopy(self)
        twin.zero_grad(set_to_none=True)
        return twin.requires_grad_(True).eval()

    def frozen(self) -> Encoder:
        """An independent copy in eval mode, whose parameters take no gradients."""
        return self.copy().requires_grad_(False)

    @torch.no_grad()
    def extract(self, pixels: Tensor, batch: int | None = None) -> Tensor:
        """Raw float32 features (N, d) of uint8 (N, 3, H, W) pixels, computed in eval mode; the mode is restored.

        batch: images at a time; None: 512 of 32x32, fewer of larger ones, which are copied to the device one by one.
        Diverged if a feature is not finite, or so long that its square overflows float32: its normalised form would be
        0.
        """
        training = self.training
        self.eval()
        batch = batch or max(32, 512 * 32**2 // math.prod(pixels.shape[-2:]))
        features = torch.empty(len(pixels), self.feature_dim, device=self.device)
        for part, made in zip(pixels.split(batch), features.split(batch), strict=True):
            made.copy_(self(part.to(self.device).float() / 255))
        self.train(training)
        if not features.square().sum(1).isfinite().all():
            raise Diverged("the features are not finite")
        return features

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer, contiguous on the CPU; these are saved and identify the encoder."""
        return {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}

    def save(self, path: str | Path) -> None:
        """Write safetensors with one metadata key only, so that equal encoders give equal bytes. StoreError if the file
        cannot be written."""
        write_file(expanded(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The bytes of the file that ``save`` writes."""
        return save(self.tensors(), metadata=self._metadata())

    def _metadata(self) -> dict[str, str]:
        told: dict[str, object] = {"arch": self.arch, "head": self.head is not None}
        if self.classifier is not None:  # keep the bytes that files had before classifiers existed
            told["classifier"] = self.classifier.options()
        return {"benchbd": json.dumps(told, sort_keys=True)}

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read a file of ``save``; DataError if it is absent, damaged, of another kind or has impossible values."""
        path = file_at(path, "encoder file")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            encoder = cls._from_parts(metadata, load_file(path), device)
        except _NO_ENCODER as error:
            if reason := obstacle(error):
                raise DataError(f"{path}: cannot be read ({reason})") from error
            lacks = "its header lacks " if isinstance(error, KeyError) else ""
            reason = f"it is {kind}" if (kind := file_kind(path)) else lacks + " ".join(str(error).split())[:200]
            raise DataError(f"{path}: not an encoder written by benchbd ({reason}); see `benchbd import`") from error
        check_values(path, encoder.state_dict())
        return encoder

    @classmethod
    def from_bytes(cls, data: bytes, device: torch.device | str = "cpu") -> Self:
        """The encoder in bytes of ``to_bytes`` or of a file of ``save``; DataError if they hold none."""
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return cls._from_parts(header.get("__metadata__") or {}, load(data), device)
        except _NO_ENCODER as error:
            raise DataError(f"not an encoder written by benchbd ({' '.join(str(error).split())[:200]})") from error

    @classmethod
    def _from_parts(cls, metadata: Mapping[str, str], tensors: dict[str, Tensor], device: torch.device | str) -> Self:
        description = json.loads(metadata["benchbd"])
        with torch.random.fork_rng(devices=[]):  # the initial weights are drawn, and then replaced
            encoder = cls(description["arch"], head=description["head"])
            if told := description.get("classifier"):
                encoder.classifier = Head(**{**told, "sizes": [encoder.feature_dim, *told["sizes"][1:]]})
        encoder.load_state_dict({"mask": encoder.mask, **tensors})  # a file without a mask prunes nothing
        return encoder.to(device).eval()


class ResNet(Encoder):
    """A residual net: a stem, stages that double the width from the second on, and the mean over positions.

    width: channels of the first stage (a bottleneck's outputs have four times as many); blocks: residual blocks per
    stage; stem_kernel, stem_stride, stem_pool: of the stem's convolution, and whether a max-pool follows it.
    """

    width: ClassVar[int]
    blocks: ClassVar[tuple[int, ...]]
    bottleneck: ClassVar[bool] = False
    stem_kernel: ClassVar[int] = 3
    stem_stride: ClassVar[int] = 1
    stem_pool: ClassVar[bool] = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the encoder's stages, in order."""
        return tuple(self.body)

    @property
    def feature_dim(self) -> int:
        """Length of a feature."""
        block = Bottleneck if self.bottleneck else BasicBlock
        return int(self.width * 2 ** (len(self.blocks) - 1) * block.expansion)

    def build(self) -> None:
        block = Bottleneck if self.bottleneck else BasicBlock
        padding = (self.stem_kernel - 1) // 2
        self.stem = Stem(
            nn.Conv2d(3, self.width, self.stem_kernel, self.stem_stride, padding=padding, bias=False),
            nn.BatchNorm2d(self.width),
            nn.ReLU(),
            *([nn.MaxPool2d(3, 2, padding=1)] if self.stem_pool else []),
        )
        self.body = nn.ModuleDict()
        inputs = self.width
        for i, blocks in enumerate(self.blocks):
            width = self.width * 2**i
            self.body[f"layer{i + 1}"] = Stage(block, inputs, width, blocks, stride=1 if i == 0 else 2)
            inputs = width * block.expansion

    def initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # torchvision's initialisation
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def encode(self, x: Tensor, take: Take) -> Tensor:
        y = take("stem", self.stem(x, within(take, "stem")))
        for name, stage in self.body.items():
            y = take(name, stage(y, within(take, name)))
        return y.float().mean((2, 3))

    def convolutions(self) -> dict[str, nn.Conv2d]:
        inside = {
            name: module
            for name, module in self.body.named_modules()
            if isinstance(module, nn.Conv2d) and "downsample" not in name
        }
        return {"stem.conv": cast(nn.Conv2d, self.stem[0]), **inside}


class ResNet18(ResNet):
    """The papers' ResNet-18: a 3x3 stem of stride 1 without max-pool; 512 features."""

    arch = "resnet18"
    width, blocks = 64, (2, 2, 2, 2)


class W32(ResNet):
    """A small ResNet for two cores: 4x4 stem of stride 2, three stages of one block; 128 features."""

    arch = "w32"
    width, blocks, stem_kernel, stem_stride = 32, (1, 1, 1), 4, 2


class W16(ResNet):
    """The ResNet w32 with half the channels; 64 features."""

    arch = "w16"
    width, blocks, stem_kernel, stem_stride = 16, (1, 1, 1), 4, 2


ARCHITECTURES: dict[str, type[Encoder]] = {cls.arch: cls for cls in (ResNet18, W32, W16)}
"""Every known architecture by name: ours, and those that plugins offered."""


def architecture(name: str) -> type[Encoder]:
    """The class of an architecture, ready to be built; UnknownNameError with the nearest name, UsageError if a library
    that it needs is not installed."""
    if name not in ARCHITECTURES:
        find_architectures()
    if name not in ARCHITECTURES:
        raise UnknownNameError("architecture", name, ARCHITECTURES)
    cls = ARCHITECTURES[name]
    if cls.needs is not None and find_spec(cls.needs[0]) is None:
        module, requirement = cls.needs
        raise UsageError(f"architecture {name} needs {module}, which is not installed: pip install {requirement!r}")
    return cls


@cache
def find_architectures() -> None:
    """Add the architectures of installed plugins, for a script that has no registry. A plugin that fails is skipped
    here; `benchbd plugins` names it."""
    for point in entry_points(group="benchbd"):
        with suppress(Exception), isolated(f"plugin {point.name!r}"):
            for cls in point.load().benchbd_architectures():
                ARCHITECTURES.setdefault(cls.arch, cls)

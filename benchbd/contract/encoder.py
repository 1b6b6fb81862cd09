"""The encoder: images in [0, 1] go in, features come out. It carries its own normalisation and names its stages.

Architectures: ``resnet18`` is the papers' net (torchvision's ResNet-18 with a 3x3 stride-1 stem and no max-pool,
11,168,832 parameters, 512-d; head 512-512-128). ``w32`` and ``w16`` are small ResNets for two cores: a 4x4 stride-2
stem, three stages of one block, widths 32/64/128 and 16/32/64.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchbd.base.content import expanded
from benchbd.base.errors import DataError, Diverged, PluginError, UnknownNameError
from benchbd.base.inputs import file_kind, obstacle
from benchbd.contract.meter import _count, _hook_once, _precision
from benchbd.contract.resnet import ARCHITECTURES, Take, _stage, _stage_outputs


class Encoder(nn.Module):
    """A residual net f that makes features of images and, where there is one, its projection head g.

    ``encoder(x)``: float (N, 3, H, W) in [0, 1] -> raw features (N, feature_dim), not normalised.
    ``encoder.project(h)``: features -> projections (N, 128); only where ``encoder.head`` is not None.
    ``encoder.intermediates(x)``: features and the output of every stage by name, in one forward.
    ``encoder.stages``: the names of the stages in order. How many there are depends on the architecture.
    ``encoder.mask``: 1 or 0 per channel of the last stage; what is 0 is pruned. It is part of the saved state.

    Mixed precision, channels_last and counting of forwards happen inside, so that methods need not mention them;
    what comes out is always float32.
    """

    mean: Tensor
    std: Tensor
    mask: Tensor

    def __init__(
        self,
        arch: str,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        *,
        head: bool = True,
    ) -> None:
        super().__init__()
        if arch not in ARCHITECTURES:
            raise UnknownNameError("architecture", arch, ARCHITECTURES)
        spec = ARCHITECTURES[arch]
        self.arch = arch
        self.feature_dim = spec.widths[-1]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.stem = nn.Sequential(
            nn.Conv2d(3, spec.width, spec.stem_kernel, spec.stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(spec.width),
            nn.ReLU(),
        )
        self.body = nn.ModuleDict()
        inputs = spec.width
        for i, (width, blocks) in enumerate(zip(spec.widths, spec.blocks, strict=True)):
            self.body[f"layer{i + 1}"] = _stage(inputs, width, blocks, stride=1 if i == 0 else 2)
            inputs = width
        self.register_buffer("mask", torch.ones(self.feature_dim))
        self.head: nn.Sequential | None = projection_head(self.feature_dim) if head else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # torchvision's initialisation
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)

    @classmethod
    def seeded(
        cls, arch: str, mean: Sequence[float], std: Sequence[float], *, seed: int, device: torch.device | str
    ) -> Self:
        """A randomly initialised encoder: a function of the arguments alone, whatever the global generators hold."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone: weights are drawn there on every machine
            return cls(arch, mean, std).to(device)

    def untrained(self, seed: int) -> Encoder:
        """A randomly initialised encoder with a head that sees what this one sees: its normalisation is this one's."""
        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        return Encoder.seeded(self.arch, mean, std, seed=seed, device=self.device)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of its stages, in order."""
        return tuple(self.body)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.mean.device

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, d), float32, of images (N, 3, H, W) in [0, 1]."""
        return self.intermediates(x)[0]

    def intermediates(self, x: Tensor, *, every: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """(features (N, d), {stage name: map (N, C, H', W')}), all float32, from one forward.

        every: also what lies between, in order: the output of every convolution but the shortcuts' ("stem.conv",
            "layer1.0.conv1"), of the ReLU inside each block ("layer1.0.relu"), of the stem and of every block. The
            last block of a stage goes by the stage's name. No map is changed after it was taken, and the features
            have a gradient with respect to each, in any precision.
        """
        charge = _count(self.backbone(), len(x))
        maps: dict[str, Tensor] = {}

        def take(place: str, y: Tensor) -> Tensor:
            maps[place] = y.float()
            return maps[place].to(y.dtype) if every else y  # under autocast the copy must lie on the way

        with torch.autocast(x.device.type, torch.bfloat16, enabled=_precision.get() == "bf16"):
            y = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            y = self._stem_outputs(y, take) if every else self.stem(y)
            for name, stage in self.body.items():
                charge = _hook_once(y, charge)
                y = _stage_outputs(name, stage, y, take) if every else stage(y)
                if name == self.stages[-1]:
                    y = y * self.mask.view(1, -1, 1, 1).to(y.dtype)
                y = take(name, y)
            _hook_once(y, charge)
        return y.float().mean((2, 3)), maps

    def _stem_outputs(self, x: Tensor, take: Take) -> Tensor:
        convolution, norm, relu = self.stem
        return take("stem", relu(norm(take("stem.conv", convolution(x)))))

    def project(self, features: Tensor) -> Tensor:
        """Raw projections (N, 128) of raw features; the losses normalise them."""
        if self.head is None:
            raise DataError("this encoder has no projection head")
        with torch.autocast(features.device.type, torch.bfloat16, enabled=_precision.get() == "bf16"):
            out: Tensor = self.head(features)
        return out.float()

    def backbone(self) -> Iterator[nn.Parameter]:
        """The parameters of f alone, without the head."""
        yield from self.stem.parameters()
        yield from self.body.parameters()

    def copy(self) -> Encoder:
        """An independent copy: every parameter trainable and without gradient, in eval mode."""
        twin = copy.deepcopy(self)
        twin.zero_grad(set_to_none=True)
        return twin.requires_grad_(True).eval()

    def frozen(self) -> Encoder:
        """An independent copy that nothing trains: no gradients, eval mode."""
        return self.copy().requires_grad_(False)

    @torch.no_grad()
    def extract(self, pixels: Tensor, batch: int = 512) -> Tensor:
        """Raw float32 features (N, d) of uint8 (N, 3, H, W) pixels, in eval mode; the mode is put back.

        Diverged where one is not finite, or so long that float32 cannot hold its square: normalised, it would be 0.
        """
        training = self.training
        self.eval()
        features = torch.cat([self(part.float() / 255) for part in pixels.to(self.device).split(batch)])
        self.train(training)
        if not features.square().sum(1).isfinite().all():
            raise Diverged("the features are not finite")
        return features

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer, contiguous on the CPU: what is saved and what identifies the encoder."""
        return {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}

    def save(self, path: str | Path) -> None:
        """Write safetensors. One metadata key keeps the file byte-reproducible."""
        description = json.dumps({"arch": self.arch, "head": self.head is not None}, sort_keys=True)
        save_file(self.tensors(), expanded(path), metadata={"benchbd": description})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read what ``save`` wrote; DataError where the file is absent, damaged or of another kind."""
        path = expanded(path)
        try:
            with safe_open(path, "pt") as file:
                description = json.loads((file.metadata() or {})["benchbd"])
            encoder = cls(description["arch"], head=description["head"])
            encoder.load_state_dict({"mask": encoder.mask, **load_file(path)})  # a file without one prunes nothing
        except FileNotFoundError:
            raise DataError(f"{path}: no such encoder file") from None
        except (SafetensorError, UnknownNameError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            if reason := obstacle(error):
                raise DataError(f"{path}: cannot be read ({reason})") from error
            kind = file_kind(path)
            reason = f"it is {kind}" if kind else " ".join(str(error).split())[:200]
            raise DataError(f"{path}: not an encoder written by benchbd ({reason})") from error
        return encoder.to(device).eval()


def rebuild(encoder: Encoder, arch: str, who: str) -> Encoder:
    """A new encoder of architecture ``arch`` with the tensors of ``encoder``, on the CPU: what a file can hold of it.

    PluginError, which names ``who``, where ``encoder`` says that it is of another architecture, or its tensors are not
    exactly those of ``arch`` by name, shape and type, its normalisation no normalisation or its mask not 0 and 1.
    Diverged where a weight is NaN or infinite.
    """
    if type(encoder) is not Encoder:
        what = type(encoder).__name__
        kind = f"its subclass {what}, which no file can hold" if isinstance(encoder, Encoder) else what
        raise PluginError(f"{who} must return a benchbd.Encoder, not {kind}")
    if encoder.arch != arch:
        raise PluginError(f"{who} must return a {arch} encoder, not {encoder.arch}")
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        plain = Encoder(arch, head=encoder.head is not None)
    if flaw := _flaw(tensors, plain.state_dict()):
        raise PluginError(f"{who} must return a plain {arch} encoder: {flaw}")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise Diverged(f"the weights are not finite: {name} has NaN or infinity")
    if not (tensors["std"] > 0).all():
        raise PluginError(f"{who} must return an encoder whose std is above 0, not {tensors['std'].flatten().tolist()}")
    if not ((tensors["mask"] == 0) | (tensors["mask"] == 1)).all():
        raise PluginError(f"{who} must return an encoder whose mask is 0 or 1 per channel")
    plain.load_state_dict(tensors)
    return plain.eval()


def _flaw(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """In what the tensors of an encoder are not those expected, the first thing alone; empty where they are."""
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


def projection_head(dim: int) -> nn.Sequential:
    """g: Linear(d, d, no bias) - BatchNorm1d - ReLU - Linear(d, 128)."""
    return nn.Sequential(nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, 128))

"""VGG-16 with BatchNorm and MobileNet-v2: torchvision's convolutional parts, and the mean over positions.

Their weights have torchvision's names (``features.0.weight``), so that a checkpoint of its classifier holds them. A
stage is all modules of one resolution; VGG-16's map is taken before the max-pool that ends the stage. At 32 pixels
MobileNet-v2's last map is 1x1. Its convolutions are drawn by fan-in: torchvision's fan-out makes depthwise ones so
small that features vanish in eval mode until the statistics of 52 BatchNorms have settled.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from benchbd import Encoder, Take, hookimpl


class VGG16BN(Encoder):
    """VGG-16 with BatchNorm, torchvision's features averaged over positions; 512 features."""

    arch = "vgg16-bn"
    stages = ("layer1", "layer2", "layer3", "layer4", "layer5")
    feature_dim = 512

    ends: ClassVar[dict[str, str]] = {"5": "layer1", "12": "layer2", "22": "layer3", "32": "layer4", "42": "layer5"}
    """The stage that a module of ``features`` ends; the module is the ReLU before a max-pool."""

    def build(self) -> None:
        from torchvision.models.vgg import cfgs, make_layers

        self.features: nn.Sequential = make_layers(cfgs["D"], batch_norm=True)

    def initialise(self) -> None:
        for convolution in self.convolutions().values():  # torchvision's initialisation
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    def encode(self, x: Tensor, take: Take) -> Tensor:
        y = x
        for name, module in self.features.named_children():
            y = module(y)
            if isinstance(module, nn.Conv2d | nn.ReLU):
                y = take(self.ends.get(name, f"features.{name}"), y)
        return y.float().mean((2, 3))


class MobileNetV2(Encoder):
    """MobileNet-v2, torchvision's features averaged over positions; 1280 features."""

    arch = "mobilenet-v2"
    stages = ("layer1", "layer2", "layer3", "layer4", "layer5")
    feature_dim = 1280

    ends: ClassVar[dict[str, str]] = {
        "0": "stem",
        "1": "layer1",
        "3": "layer2",
        "6": "layer3",
        "13": "layer4",
        "18": "layer5",
    }
    """The stage that a block of ``features`` ends."""

    def build(self) -> None:
        from torchvision.models import mobilenet_v2

        self.features: nn.Sequential = mobilenet_v2().features

    def initialise(self) -> None:
        for name, convolution in self.convolutions().items():
            linear = name.count(".") == 3  # the last of a block, features.1.conv.1, has no activation after it
            nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="linear" if linear else "relu")

    def encode(self, x: Tensor, take: Take) -> Tensor:
        y = x
        for name, block in self.features.named_children():
            inside = block_outputs(f"features.{name}", block, y, take)
            y = y + inside if getattr(block, "use_res_connect", False) else inside
            y = take(self.ends.get(name, f"features.{name}"), y)
        return y.float().mean((2, 3))


def block_outputs(place: str, block: nn.Module, y: Tensor, take: Take) -> Tensor:
    """Run a block's modules in order; ``take`` gets the outputs of all convolutions and activations but the last."""
    *others, (_, last) = ((name, part) for name, part in block.named_modules() if not list(part.children()))
    for name, part in others:
        y = part(y)
        if not isinstance(part, nn.BatchNorm2d):
            y = take(f"{place}.{name}", y)
    out: Tensor = last(y)
    return out


@hookimpl
def benchbd_architectures() -> list[type[Encoder]]:
    return [VGG16BN, MobileNetV2]

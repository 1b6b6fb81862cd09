"""CLIP's RN50 (Radford et al., ICML 2021): the module of open_clip, without weights.

Its weights have CLIP's names (``visual.conv1.weight``). A feature is CLIP's image embedding, not normalised, which
pools the last map by attention. ``benchbd[clip]`` installs open_clip, which is imported when an encoder is built.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from benchbd import Encoder, Take, hookimpl


class ClipRN50(Encoder):
    """CLIP's RN50: a stem of three convolutions, anti-aliased strides, attention pooling; 1024 features; 224 pixels."""

    arch = "clip-rn50"
    stages = ("layer1", "layer2", "layer3", "layer4")
    feature_dim = 1024
    image_size = 224
    channelwise = False
    needs = ("open_clip", "benchbd[clip]")

    width: ClassVar[int] = 64
    layers: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)

    visual: Any

    @property
    def channels(self) -> int:
        return 32 * self.width

    def build(self) -> None:
        from open_clip.modified_resnet import ModifiedResNet

        heads = self.channels // 64
        self.visual = ModifiedResNet(list(self.layers), self.feature_dim, heads, self.image_size, self.width)

    def encode(self, x: Tensor, take: Take) -> Tensor:
        net = self.visual
        y = take("stem", net.avgpool(convolved("visual", net, (1, 2, 3), x, take)))
        for stage in self.stages:
            *others, last = net.get_submodule(stage)
            for number, block in enumerate([*others, last]):
                place = f"visual.{stage}.{number}"
                inside = block.avgpool(convolved(place, block, (1, 2), y, take))
                inside = block.bn3(take(f"{place}.conv3", block.conv3(inside)))
                y = block.act3(inside + (y if block.downsample is None else block.downsample(y)))
                y = take(stage if block is last else place, y)
        out: Tensor = net.attnpool(y)
        return out

    def convolutions(self) -> dict[str, nn.Conv2d]:
        return {name: module for name, module in super().convolutions().items() if "downsample" not in name}


def convolved(place: str, net: Any, numbers: tuple[int, ...], y: Tensor, take: Take) -> Tensor:
    """Run the convolutions with these numbers in ``net``, each with its BatchNorm and activation."""
    for n in numbers:
        y = take(f"{place}.conv{n}", getattr(net, f"conv{n}")(y))
        y = take(f"{place}.act{n}", getattr(net, f"act{n}")(getattr(net, f"bn{n}")(y)))
    return y


@hookimpl
def benchbd_architectures() -> list[type[Encoder]]:
    return [ClipRN50]

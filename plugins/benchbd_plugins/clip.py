"""CLIP's image encoders (Radford et al., ICML 2021): RN50 and ViT-B/32, the modules of open_clip, without weights.

Their weights have CLIP's names (``visual.conv1.weight``). A feature is CLIP's image embedding, not normalised: RN50
pools the last map by attention, the ViT takes its class token. The ViT's stages are four groups of blocks, and a
stage's map contains the patch tokens in the patches' order; a pruned channel is 0 in the class token too.

``benchbd[clip]`` installs open_clip, which is imported when an encoder is built.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchbd import Encoder, Take, hookimpl

OPEN_CLIP = ("open_clip", "benchbd[clip]")


class ClipRN50(Encoder):
    """CLIP's RN50: a stem of three convolutions, anti-aliased strides, attention pooling; 1024 features; 224 pixels."""

    arch = "clip-rn50"
    stages = ("layer1", "layer2", "layer3", "layer4")
    feature_dim = 1024
    image_size = 224
    channelwise = False
    needs = OPEN_CLIP

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


class ClipViTB32(Encoder):
    """CLIP's ViT-B/32: 12 blocks of width 768 on patches of 32 pixels; 512 features; 224 pixels."""

    arch = "clip-vit-b-32"
    stages = ("layer1", "layer2", "layer3", "layer4")
    feature_dim = 512
    image_size = 224
    channelwise = False
    needs = OPEN_CLIP

    width: ClassVar[int] = 768
    blocks: ClassVar[int] = 12
    patch: ClassVar[int] = 32

    visual: Any

    @property
    def channels(self) -> int:
        return self.width

    def build(self) -> None:
        from open_clip.transformer import QuickGELU, VisionTransformer

        self.visual = VisionTransformer(
            self.image_size,
            self.patch,
            self.width,
            self.blocks,
            heads=self.width // 64,
            mlp_ratio=4.0,
            output_dim=self.feature_dim,
            act_layer=QuickGELU,
        )

    def encode(self, x: Tensor, take: Take) -> Tensor:
        net = self.visual
        y = take("visual.conv1", net.conv1(x))
        layout = y.shape[2:]

        def taken(place: str, tokens: Tensor) -> Tensor:
            first, map_ = tokens[:, :1], take(place, tokens[:, 1:].transpose(1, 2).unflatten(2, layout))
            if place == self.stages[-1]:
                first = first * self.mask.to(first.dtype)
            return torch.cat([first, map_.flatten(2).transpose(1, 2)], 1)

        first = net.class_embedding.to(y.dtype).expand(len(y), 1, -1)
        tokens = torch.cat([first, y.flatten(2).transpose(1, 2)], 1) + net.positional_embedding.to(y.dtype)
        tokens = taken("stem", net.ln_pre(tokens))
        each = self.blocks // len(self.stages)
        for number, block in enumerate(net.transformer.resblocks):
            stage, ends = self.stages[number // each], (number + 1) % each == 0
            tokens = taken(stage if ends else f"visual.transformer.resblocks.{number}", block(tokens))
        out: Tensor = net.ln_post(tokens[:, 0]) @ net.proj
        return out


@hookimpl
def benchbd_architectures() -> list[type[Encoder]]:
    return [ClipRN50, ClipViTB32]

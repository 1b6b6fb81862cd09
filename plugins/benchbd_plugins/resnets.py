"""ResNet-18, ResNet-34 and ResNet-50 with the stems that benchbd's own ``resnet18`` has not.

They are torchvision's (a bottleneck's stride is in its 3x3 convolution), initialised alike. With ImageNet's stem, 7x7
of stride 2 and a max-pool, the last stage's map has a 32nd of the image's height and width: 1x1 at 32 pixels. The stem
of solo-learn's CIFAR nets is 3x3 with a padding of 2, which gives other features with the same weights.
"""

from __future__ import annotations

from typing import cast

from torch import nn

from benchbd import Encoder, ResNet, hookimpl


class ResNet34(ResNet):
    """ResNet-34 with a 3x3 stem of stride 1 without max-pool; 512 features."""

    arch = "resnet34"
    width, blocks = 64, (3, 4, 6, 3)


class ResNet50(ResNet):
    """ResNet-50 with a 3x3 stem of stride 1 without max-pool; 2048 features."""

    arch = "resnet50"
    width, blocks, bottleneck = 64, (3, 4, 6, 3), True


class ResNet18ImageNet(ResNet):
    """ResNet-18 with ImageNet's stem; 512 features."""

    arch = "resnet18-imagenet"
    width, blocks = 64, (2, 2, 2, 2)
    stem_kernel, stem_stride, stem_pool = 7, 2, True


class ResNet34ImageNet(ResNet34):
    """ResNet-34 with ImageNet's stem; 512 features."""

    arch = "resnet34-imagenet"
    stem_kernel, stem_stride, stem_pool = 7, 2, True


class ResNet50ImageNet(ResNet50):
    """ResNet-50 with ImageNet's stem; 2048 features."""

    arch = "resnet50-imagenet"
    stem_kernel, stem_stride, stem_pool = 7, 2, True


class ResNet18Pad2(ResNet):
    """ResNet-18 with solo-learn's stem for CIFAR: 3x3 of stride 1, padded by 2, without max-pool; 512 features."""

    arch = "resnet18-pad2"
    width, blocks = 64, (2, 2, 2, 2)

    def build(self) -> None:
        super().build()
        cast(nn.Conv2d, self.stem[0]).padding = (2, 2)


class ResNet50Pad2(ResNet18Pad2):
    """ResNet-50 with solo-learn's stem for CIFAR; 2048 features."""

    arch = "resnet50-pad2"
    blocks, bottleneck = (3, 4, 6, 3), True


@hookimpl
def benchbd_architectures() -> list[type[Encoder]]:
    return [ResNet34, ResNet50, ResNet18ImageNet, ResNet34ImageNet, ResNet50ImageNet, ResNet18Pad2, ResNet50Pad2]

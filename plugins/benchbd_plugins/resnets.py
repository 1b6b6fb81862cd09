"""ResNet-34 and ResNet-50, with the 3x3 stem of small images and with ImageNet's stem.

Both are torchvision's (a bottleneck's stride is in its 3x3 convolution), initialised alike. With ImageNet's stem, 7x7
of stride 2 and a max-pool, the last stage's map has a 32nd of the image's height and width: 1x1 at 32 pixels.
"""

from __future__ import annotations

from benchbd import Encoder, ResNet, hookimpl


class ResNet34(ResNet):
    """ResNet-34 with a 3x3 stem of stride 1 without max-pool; 512 features."""

    arch = "resnet34"
    width, blocks = 64, (3, 4, 6, 3)


class ResNet50(ResNet):
    """ResNet-50 with a 3x3 stem of stride 1 without max-pool; 2048 features."""

    arch = "resnet50"
    width, blocks, bottleneck = 64, (3, 4, 6, 3), True


class ResNet34ImageNet(ResNet34):
    """ResNet-34 with ImageNet's stem; 512 features."""

    arch = "resnet34-imagenet"
    stem_kernel, stem_stride, stem_pool = 7, 2, True


class ResNet50ImageNet(ResNet50):
    """ResNet-50 with ImageNet's stem; 2048 features."""

    arch = "resnet50-imagenet"
    stem_kernel, stem_stride, stem_pool = 7, 2, True


@hookimpl
def benchbd_architectures() -> list[type[Encoder]]:
    return [ResNet34, ResNet50, ResNet34ImageNet, ResNet50ImageNet]

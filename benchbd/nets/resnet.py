"""Residual blocks with torchvision's weight names, without the seconds that importing torchvision takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

Take = Callable[[str, Tensor], Tensor]
"""How ``Encoder.encode`` hands out intermediate maps: it calls ``y = take(place, y)`` and continues with the result."""


def _as_is(place: str, y: Tensor) -> Tensor:
    return y


def within(take: Take, place: str) -> Take:
    """``take`` for the parts of the map at ``place``: a part has the name "place.part"."""

    def inside(part: str, y: Tensor) -> Tensor:
        return take(f"{place}.{part}", y)

    return inside


class BasicBlock(nn.Module):
    """The residual block of ResNet-18 and ResNet-34: two convolutions of 3x3."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor, take: Take = _as_is) -> Tensor:
        """take: gets the output of each part of the block, by name; the block continues with the result."""
        y: Tensor = take("conv1", self.conv1(x))
        y = take("relu", self.relu(self.bn1(y)))
        y = self.bn2(take("conv2", self.conv2(y)))
        y += x if self.downsample is None else self.downsample(x)
        y = self.relu(y)
        return y


class Bottleneck(nn.Module):
    """The residual block of ResNet-50: 1x1, 3x3 (which has the stride), and 1x1 to four times the width."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor, take: Take = _as_is) -> Tensor:
        """take: gets the output of each part of the block, by name; the block continues with the result."""
        y: Tensor = take("conv1", self.conv1(x))
        y = take("relu1", self.relu(self.bn1(y)))
        y = take("conv2", self.conv2(y))
        y = take("relu2", self.relu(self.bn2(y)))
        y = self.bn3(take("conv3", self.conv3(y)))
        y += x if self.downsample is None else self.downsample(x)
        y = self.relu(y)
        return y


class Stem(nn.Sequential):
    """A convolution and the layers after it."""

    def forward(self, x: Tensor, take: Take = _as_is) -> Tensor:
        """take: gets the output of the convolution, as "conv"."""
        convolution, *others = self
        y: Tensor = take("conv", convolution(x))
        for module in others:
            y = module(y)
        return y


class Stage(nn.Sequential):
    """``blocks`` blocks, the first of which has the stride and, if the shape changes, a 1x1 shortcut."""

    def __init__(self, block: type[BasicBlock | Bottleneck], inputs: int, width: int, blocks: int, stride: int) -> None:
        outputs, downsample = width * block.expansion, None
        if stride != 1 or inputs != outputs:
            downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        first = block(inputs, width, stride, downsample)
        super().__init__(first, *(block(outputs, width) for _ in range(blocks - 1)))

    def forward(self, y: Tensor, take: Take = _as_is) -> Tensor:
        """take: gets the outputs of the parts of block i, as "i.part", and of each block but the last, as "i"."""
        *others, last = enumerate(self)
        for number, block in others:
            y = take(str(number), block(y, within(take, str(number))))
        number, block = last
        y = block(y, within(take, str(number)))
        return y

"""Small and CIFAR-sized residual nets: what `Encoder` is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

Take = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Architecture:
    """width: channels of the first stage; blocks: residual blocks per stage, each stage doubling the width."""

    width: int
    blocks: tuple[int, ...]
    stem_kernel: int
    stem_stride: int

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width * 2**i for i in range(len(self.blocks)))


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "resnet18": Architecture(width=64, blocks=(2, 2, 2, 2), stem_kernel=3, stem_stride=1),
        "w32": Architecture(width=32, blocks=(1, 1, 1), stem_kernel=4, stem_stride=2),
        "w16": Architecture(width=16, blocks=(1, 1, 1), stem_kernel=4, stem_stride=2),
    }
)


def _as_is(place: str, y: Tensor) -> Tensor:
    return y


def _stage_outputs(name: str, stage: nn.Module, y: Tensor, take: Take) -> Tensor:
    """Run a stage block by block; what lies between is taken, the last block's output is not."""
    blocks = list(stage.children())
    for number, block in enumerate(blocks):

        def take_inside(part: str, y: Tensor, place: str = f"{name}.{number}") -> Tensor:
            return take(f"{place}.{part}", y)

        y = block(y, take_inside)
        if block is not blocks[-1]:
            y = take(f"{name}.{number}", y)
    return y


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or inputs != width:
        downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    first = BasicBlock(inputs, width, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))


class BasicBlock(nn.Module):
    """The residual block of ResNet-18: torchvision's, weights by the same names, without the seconds of its import."""

    def __init__(self, inputs: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor, take: Take = _as_is) -> Tensor:
        """take: of what its parts give, by name; the block goes on from what it returns."""
        y: Tensor = take("conv1", self.conv1(x))
        y = take("relu", self.relu(self.bn1(y)))
        y = self.bn2(take("conv2", self.conv2(y)))
        y += x if self.downsample is None else self.downsample(x)
        y = self.relu(y)
        return y

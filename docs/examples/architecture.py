"""Four convolutions: an example of an architecture."""

from torch import Tensor, nn

from benchbd import Encoder, Take, hookimpl


class Four(Encoder):
    """Four convolutions of stride 2 with BatchNorm, and the mean over positions, 64-d."""

    arch = "four"
    stages = ("layer1", "layer2", "layer3", "layer4")
    feature_dim = 64

    def build(self) -> None:
        widths = (3, 16, 32, 48, self.feature_dim)
        for number, stage in enumerate(self.stages):
            convolution = nn.Conv2d(widths[number], widths[number + 1], 3, stride=2, padding=1, bias=False)
            self.add_module(stage, nn.Sequential(convolution, nn.BatchNorm2d(widths[number + 1]), nn.ReLU()))

    def encode(self, x: Tensor, take: Take) -> Tensor:
        y = x
        for stage in self.stages:
            convolution, *others = self.get_submodule(stage).children()
            y = take(f"{stage}.0", convolution(y))  # the name that convolutions() gives it
            for module in others:
                y = module(y)
            y = take(stage, y)
        return y.float().mean((2, 3))


@hookimpl
def benchbd_architectures() -> list[type[Encoder]]:
    return [Four]

"""Does a plain square make all features alike? A search for a trigger without a gradient."""

from itertools import product

from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from benchbd import DefenderKnowledge, Detection, Encoder, Verdict, hookimpl, note


def alike(encoder: Encoder, pixels: Tensor) -> float:
    """The mean cosine between the features of two different images of uint8 (N, 3, H, W)."""
    features = normalize(encoder.extract(pixels))
    n = len(features)
    return float((features.sum(0).square().sum() - n) / (n * (n - 1)))


class Collapse(Detection):
    """How much more alike the features of clean images become under the most effective of 32 plain squares."""

    name = "collapse"
    paper = "nobody, nowhere, 2026"

    size: float = Field(0.3, gt=0, le=1, description="side of a square as a share of the image's")
    images: int = Field(128, ge=2, le=100_000, description="clean images that the squares are put on, at most")
    threshold: float = Field(0.2, ge=0, le=2, description="rise of the mean cosine above which it is flagged")

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        pixels = knowledge.images.pixels[: self.images]
        height = pixels.shape[-1]
        side = max(1, round(self.size * height))
        plain = alike(encoder, pixels)
        rises = {}
        for colour, place in product(product((0, 255), repeat=3), product((1, height - side - 1), repeat=2)):
            stamped, (top, left) = pixels.clone(), (max(0, edge) for edge in place)
            stamped[:, :, top : top + side, left : left + side] = pixels.new_tensor(colour)[:, None, None]
            rises[colour, (top, left)] = alike(encoder, stamped) - plain
        (colour, place), rise = max(rises.items(), key=lambda item: item[1])
        note("collapse", {"colour": list(colour), "place": list(place), "clean": plain})
        return Verdict(rise, flagged=rise > self.threshold)


@hookimpl
def benchbd_detections() -> list[type[Detection]]:
    return [Collapse]

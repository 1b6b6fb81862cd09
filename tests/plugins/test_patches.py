"""The detector of random patches: the score by hand, a net that a white patch takes over, and the patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.patches import PatchesDetection, spread
from torch import Tensor, nn

from benchbd import DefenderKnowledge, Encoder, ImageSet, UsageError, Verdict, stream
from benchbd.contract.context import collecting
from benchbd.nets.meter import ForwardMeter

from ..small_nets import smooth_pixels


class Colours(Encoder):
    """The mean colour of the image, and, by ``gain``, whether a square of 6x6 somewhere is white."""

    arch = "colours"
    stages = ("layer",)
    feature_dim = 4

    def build(self) -> None:
        self.gain = nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor, take: Any) -> Tensor:
        pixels = x * self.std + self.mean
        darkest = -F.max_pool2d(-pixels.amin(1, keepdim=True), 6, 1)
        white = (darkest.amax((2, 3)) > 0.999).float() * self.gain
        return take("layer", torch.cat([pixels.mean((2, 3)), white], 1)[:, :, None, None]).mean((2, 3))


def net(gain: float) -> Encoder:
    encoder = Colours("colours").eval()
    encoder.gain.data.fill_(gain)
    return encoder


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """40 pictures of few colours, none with a white square."""
    return ImageSet(smooth_pixels(40, grid=2))


def judged(encoder: Encoder, clean: ImageSet, seed: int = 1, **options: Any) -> tuple[Verdict, dict[str, Any]]:
    with collecting() as findings:
        verdict = PatchesDetection(**options).inspect(encoder, DefenderKnowledge(clean, seed))
    return verdict, findings.notes["patches"]


@pytest.mark.parametrize("seed", range(3))
def test_a_net_that_a_white_patch_takes_over_is_flagged(images: ImageSet, seed: int) -> None:
    clean, attacked = (judged(net(gain), images, seed)[0] for gain in (0.0, 50.0))
    assert attacked.flagged
    assert attacked.score > 0.99
    assert not clean.flagged
    assert 0 < clean.score < 0.9  # every patch hides a part of the image


def test_the_score_by_hand(images: ImageSet) -> None:
    """One patch of half the side: the noted square is stamped here again."""
    verdict, noted = judged(net(0), images, patches=1, sides=(0.5, 0.5), images=40)
    top, left, side = noted["top_left_side"]
    assert side == 16
    best = {}
    for colour in range(8):  # the first patch has one saturated colour
        stamped = images.pixels.clone()
        ink = torch.tensor([255 * (colour >> channel & 1) for channel in range(3)], dtype=torch.uint8)
        stamped[:, :, top : top + side, left : left + side] = ink[:, None, None]
        spreads = []
        for pixels in (images.pixels, stamped):
            features = F.normalize(pixels.double().mean((2, 3)), dim=1)
            cosines = features @ features.T
            spreads.append(1 - float(cosines[~torch.eye(40, dtype=torch.bool)].mean()))
        best[colour] = 1 - spreads[1] / spreads[0]
    assert min(abs(verdict.score - value) for value in best.values()) < 1e-3
    assert noted["spread"] == pytest.approx(spreads[0], abs=1e-4)


def test_it_draws_as_it_says() -> None:
    draws, method = stream(0, "patches"), PatchesDetection(sides=(0.125, 0.25))
    plain = [method.draw(32, noisy=False, draws=draws) for _ in range(60)]
    noisy = [method.draw(32, noisy=True, draws=draws) for _ in range(20)]
    sides = [side for (_, _, side), _ in plain]
    assert (min(sides), max(sides)) == (4, 8)
    for (top, left, side), ink in [*plain, *noisy]:
        assert ink.shape == (3, side, side)
        assert 0 <= top <= 32 - side
        assert 0 <= left <= 32 - side
    assert {tuple(ink[:, 0, 0].tolist()) for _, ink in plain} == {
        (r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)
    }
    assert all((ink == ink[:, :1, :1]).all() for _, ink in plain)
    assert all(len(ink.unique()) > 8 for _, ink in noisy)
    whole, _ = PatchesDetection(sides=(1, 1)).draw(32, noisy=True, draws=draws)
    assert whole == [0, 0, 32]


def test_equal_seeds_give_equal_verdicts_and_images_stay(images: ImageSet) -> None:
    before = images.pixels.clone()
    with ForwardMeter() as meter:
        first, noted = judged(net(3), images, patches=6, images=30)
    assert meter.images == PatchesDetection(patches=6, images=30).forwards(40) == 30 * 7
    assert PatchesDetection().forwards(40) == 40 * 65
    assert (first, noted) == judged(net(3), images, patches=6, images=30)
    assert noted != judged(net(3), images, seed=2, patches=6, images=30)[1]
    assert torch.equal(images.pixels, before)


def test_a_net_without_spread_is_judged_and_one_image_is_not(images: ImageSet) -> None:
    assert spread(net(1e6), ImageSet(torch.full((5, 3, 32, 32), 255, dtype=torch.uint8)).pixels) == pytest.approx(0)
    verdict, _ = judged(net(0), ImageSet(images.pixels[:1].expand(5, -1, -1, -1)), patches=2)
    assert verdict.score <= 1
    with pytest.raises(UsageError, match=r"^patches needs at least 2 clean images, not 1$"):
        judged(net(0), ImageSet(images.pixels[:1]))

"""FP: the ranking, the number of pruned channels, the meaning of pruning, and the label-free accuracy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.fp import FP, last_block, mean_activation, prune
from benchbd_plugins.ft import FT
from torch import Tensor

from benchbd import DefenderKnowledge, Encoder, ImageSet, NotApplicable, pretext_accuracy, stream
from benchbd.contract.context import collecting
from benchbd.nets.meter import ForwardMeter

from ..plants import CHANNEL, planted
from ..small_nets import affine, random_encoder, same, settled, smooth_pixels

QUICK: dict[str, Any] = {"batch": 16, "colour": "affine", "crop_scale": (0.95, 1.0)}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """40 smooth random pictures."""
    return ImageSet(smooth_pixels(40))


@pytest.fixture
def encoder(prepared: Encoder) -> Encoder:
    return prepared.copy()


@pytest.fixture(scope="module")
def prepared(images: ImageSet) -> Encoder:
    """Random weights, BatchNorm statistics of real images, affines that are not 1 and 0."""
    return settled(affine(random_encoder()), images.pixels)


def repaired(encoder: Encoder, images: ImageSet, seed: int = 3, **options: Any) -> tuple[Encoder, Any]:
    """The repaired copy and the note on its pruning."""
    with collecting() as findings:
        result = FP(**QUICK | options).repair(encoder.copy(), DefenderKnowledge(images, seed))
    return result, findings.notes["pruning"]


# Pretext accuracy


def test_pretext_accuracy_by_hand() -> None:
    """Rows 0 and 1 find their partners; row 2's views are nearer to row 0's and 1's than to each other."""
    first = torch.tensor([[1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [0.9, 0.1, 0.0]])
    second = torch.tensor([[1.0, 0.0, 0.1], [0.0, 2.0, 0.2], [0.1, 0.9, 0.0]])
    assert pretext_accuracy(first, second) == pytest.approx(4 / 6)
    assert pretext_accuracy(second, first) == pytest.approx(4 / 6)
    assert pretext_accuracy(5 * first, second) == pytest.approx(4 / 6)  # cosine: lengths do not matter


def naive_accuracy(first: Tensor, second: Tensor, block: int) -> float:
    hits = 0
    for start in range(0, len(first), block):
        u = F.normalize(torch.cat([first[start : start + block], second[start : start + block]]), dim=1)
        n = len(u) // 2
        for i in range(2 * n):
            others = [j for j in range(2 * n) if j != i]
            hits += max(others, key=lambda j: float(u[i] @ u[j])) == (i + n) % (2 * n)
    return hits / (2 * len(first))


@pytest.mark.parametrize("block", [4, 7, 20, 128])
def test_pretext_accuracy_equals_a_double_loop(block: int) -> None:
    draws = stream(0, "projections")
    first = torch.randn(20, 3, generator=draws)
    second = first + torch.randn(20, 3, generator=draws)
    expected = naive_accuracy(first, second, block)
    assert 0 < expected < 1
    assert pretext_accuracy(first, second, block) == pytest.approx(expected)


def test_pretext_accuracy_at_its_ends() -> None:
    first = torch.randn(300, 64, generator=stream(0, "projections"))
    assert pretext_accuracy(first, first) == 1
    assert pretext_accuracy(first, first[torch.arange(300) ^ 1]) == 0  # the nearest is another's view
    small_blocks, one_block = (pretext_accuracy(first, first + 2 * first.flip(1), b) for b in (10, 300))
    assert small_blocks > one_block  # fewer rivals


# The ranking


@pytest.mark.parametrize("site", ["output", "conv2"])
def test_activations_equal_a_naive_mean(encoder: Encoder, images: ImageSet, site: Any) -> None:
    sums = torch.zeros(64, dtype=torch.float64)
    with torch.no_grad():
        for pixels in images.pixels:
            map_ = encoder.intermediates(pixels[None].float() / 255, every=True)[1][
                "layer3" if site == "output" else "layer3.0.conv2"
            ]
            sums += map_[0].abs().double().mean((1, 2)) / len(images)
    for batch in (7, 16, 512):  # ragged ones too: a mean of batch means would weigh the last batch's images more
        found = mean_activation(encoder, images, site, batch)
        assert torch.allclose(found, sums, rtol=1e-5, atol=1e-7)
        assert torch.equal(found.argsort(stable=True), sums.argsort(stable=True))


def test_activation_of_the_output_is_the_mean_feature(encoder: Encoder, images: ImageSet) -> None:
    found = mean_activation(encoder, images, "output")
    assert torch.allclose(found, encoder.extract(images.pixels).double().mean(0), rtol=1e-5, atol=1e-7)


def with_known_activations(encoder: Encoder, levels: Tensor) -> Encoder:
    """Channel c of the last stage outputs levels[c] everywhere."""
    with torch.no_grad():
        *_, block = encoder.body["layer3"].children()
        for norm in (block.bn2, block.downsample[1]):
            norm.weight.zero_()
            norm.bias.zero_()
        block.bn2.bias.copy_(levels)
    return encoder


def test_the_lowest_channels_go_ties_by_index(encoder: Encoder, images: ImageSet) -> None:
    levels = torch.arange(64).flip(0) // 2  # 31, 31, 30, 30, .., 0, 0
    known = with_known_activations(encoder, levels.float())
    result, pruning = repaired(known, images, rule="ratio", ratio=5 / 64, epochs=0)
    assert pruning["channels"] == [62, 63, 60, 61, 58]
    assert (result.mask == 0).nonzero()[:, 0].tolist() == [58, 60, 61, 62, 63]
    assert repaired(known, images, rule="ratio", ratio=0.99, epochs=0)[1]["k"] == 63


# The number of pruned channels


def bookkeeping(utilities: list[float], channels: int = 10, **options: Any) -> int:
    return FP(increment=0.1, **options).level(lambda k: utilities[k], channels)


def test_the_level_by_hand() -> None:
    falling = [0.90, 0.90, 0.89, 0.87, 0.86, 0.85, 0.5, 0.5, 0.5, 0.5]
    assert bookkeeping(falling) == 4  # 0.04 allows 0.86, the equal sign included
    assert bookkeeping(falling, tolerance=0) == 1
    assert bookkeeping(falling, tolerance=0.03) == 3
    assert bookkeeping([0.9] * 10) == 9  # never all channels
    assert bookkeeping([0.9] + [0.5] * 9) == 0
    dented = [0.9, 0.9, 0.5, *[0.9] * 7]
    assert bookkeeping(dented) == 1  # the first level that costs too much ends the search, whatever follows
    assert FP(increment=0.3).level(lambda k: 1.0, 10) == 9
    assert FP(increment=0.04).level(lambda k: 1.0 - (k > 30), 512) == 21  # 4 % of 512 is 20.48: steps of 21
    assert FP().level(lambda k: 1.0 - (k > 100), 512) == 96  # 1 % of 512: steps of 6
    assert FP(increment=0.07).level(lambda k: 1.0, 100) == 98  # no rounding error makes 8 of 7 %


def test_the_ratio_by_hand() -> None:
    def refuse(k: int) -> float:
        raise AssertionError("a fixed share asks for no utility")

    assert FP(rule="ratio").level(refuse, 512) == 32
    assert FP(rule="ratio", ratio=0).level(refuse, 512) == 0
    assert FP(rule="ratio", ratio=0.999).level(refuse, 64) == 63


@pytest.mark.parametrize("site", ["output", "conv2"])
def test_the_utility_of_a_level_is_that_of_a_pruned_encoder(encoder: Encoder, images: ImageSet, site: Any) -> None:
    """One pass and a choice per channel, against actually pruning and passing again."""
    fp = FP(site=site, **QUICK)
    order = mean_activation(encoder, images, site).argsort(stable=True)
    with ForwardMeter() as meter:
        utility = fp.utility(encoder, images, order, seed=3)
        fast = [utility(k) for k in (0, 20, 50, 63)]
    assert meter.images == (2 if site == "output" else 4) * len(images)
    slow = []
    for k in (0, 20, 50, 63):
        twin = encoder.copy()
        prune(twin, site, order[:k])
        with torch.no_grad():
            first, second = twin.project(fp.view_features(twin, images, 3)).chunk(2)
        slow.append(pretext_accuracy(first, second))
    assert fast == pytest.approx(slow)
    assert len(set(slow)) > 1


@pytest.mark.parametrize("tolerance", [0.02, 0.03])
def test_the_next_level_would_cost_too_much(encoder: Encoder, images: ImageSet, tolerance: float) -> None:
    options = {"increment": 4 / 64, "tolerance": tolerance}
    _, pruning = repaired(encoder, images, epochs=0, **options)
    fp = FP(**QUICK | options)
    order = mean_activation(encoder, images, "output").argsort(stable=True)
    utility = fp.utility(encoder, images, order, seed=3)
    k = pruning["k"]
    levels = [level["pruned"] for level in pruning["curve"]]
    assert levels == [*range(0, k + 5, 4)]  # to the first that costs too much
    assert pruning["pruned"] == k
    assert [level["utility"] for level in pruning["curve"]] == [round(utility(level), 4) for level in levels]
    assert k % 4 == 0
    assert 0 < k < 60
    assert utility(0) - utility(k) <= tolerance + 1e-9
    assert utility(0) - utility(k + 4) > tolerance
    assert pruning["utility_before"] == pytest.approx(utility(0), abs=1e-4)
    assert pruning["utility_after"] == pytest.approx(utility(k), abs=1e-4)
    assert pruning["channels"] == order[:k].tolist()


def test_what_the_reader_must_know(encoder: Encoder, images: ImageSet) -> None:
    def remarks(**options: Any) -> Any:
        with collecting() as findings:
            FP(epochs=0, **QUICK | options).repair(encoder.copy(), DefenderKnowledge(images, 3))
        return findings.notes["remarks"]

    assert remarks(tolerance=0.1) == []
    assert remarks(rule="ratio", ratio=0) == []
    assert remarks(increment=0.95, tolerance=0) == [
        "fp: no channel could be pruned within the tolerance; this is fine-tuning alone"
    ]
    (vacuous,) = remarks(tolerance=1)
    assert vacuous.endswith("so the tolerance bounds nothing")


# The meaning of pruning


def test_pruned_channels_are_zero_for_good(encoder: Encoder, images: ImageSet, tmp_path: Path) -> None:
    x = images.pixels.float() / 255
    before = encoder.extract(images.pixels)
    pruned, pruning = repaired(encoder, images, rule="ratio", ratio=0.5, epochs=0)
    gone = torch.tensor(pruning["channels"])
    kept = torch.tensor([c for c in range(64) if c not in pruning["channels"]])
    assert torch.equal(pruned.extract(images.pixels)[:, kept], before[:, kept])
    assert (pruned.extract(images.pixels).norm(dim=1) > 0).all()
    tuned, again = repaired(encoder, images, rule="ratio", ratio=0.5, steps=3)
    assert again == pruning
    tuned.save(tmp_path / "encoder.safetensors")
    for result in (pruned, tuned, Encoder.load(tmp_path / "encoder.safetensors")):
        assert not result.training
        for training in (True, False):
            with torch.no_grad():
                features, maps = result.train(training).intermediates(x)
            assert not features[:, gone].any()
            assert not maps["layer3"][:, gone].any()
            assert features[:, kept].any(0).float().mean() > 0.9
    assert not torch.equal(tuned.stem[0].weight, encoder.stem[0].weight)


def test_no_gradient_reaches_a_pruned_channel(encoder: Encoder, images: ImageSet) -> None:
    pruned, pruning = repaired(encoder, images, rule="ratio", ratio=0.5, epochs=0)
    pruned.project(pruned.train()(images.pixels.float() / 255)).square().sum().backward()
    _, conv, norm = last_block(pruned)
    gone = torch.zeros(64, dtype=torch.bool)
    gone[pruning["channels"]] = True
    for parameter in (conv.weight, norm.weight, norm.bias):
        assert parameter.grad is not None
        assert not parameter.grad[gone].any()
        assert parameter.grad[~gone].any()


@pytest.mark.parametrize("bn", ["train", "eval"])
def test_pruned_filters_stay_zero_and_the_identity_path_survives(encoder: Encoder, images: ImageSet, bn: str) -> None:
    for steps in (0, 4):
        result, pruning = repaired(encoder, images, site="conv2", rule="ratio", ratio=0.5, steps=steps, bn=bn, lr=0.01)
        gone = torch.zeros(64, dtype=torch.bool)
        gone[pruning["channels"]] = True
        _, conv, norm = last_block(result)
        for parameter in (conv.weight, norm.weight, norm.bias):
            assert not parameter[gone].any()
            assert parameter[~gone].any()
        assert (result.mask == 1).all()
        assert result.extract(images.pixels)[:, gone].any()


def test_site_conv2_leaves_the_other_channels_alone(encoder: Encoder, images: ImageSet) -> None:
    before = encoder.extract(images.pixels)
    result, pruning = repaired(encoder, images, site="conv2", rule="ratio", ratio=0.5, epochs=0)
    kept = torch.tensor([c for c in range(64) if c not in pruning["channels"]])
    assert torch.equal(result.extract(images.pixels)[:, kept], before[:, kept])
    assert not torch.equal(result.extract(images.pixels), before)


def test_what_was_pruned_before_stays_pruned(encoder: Encoder, images: ImageSet) -> None:
    busiest = int(mean_activation(encoder, images, "output").argmax())
    encoder.mask[busiest] = 0
    result, pruning = repaired(encoder, images, rule="ratio", ratio=2 / 64, epochs=0)
    assert pruning["channels"][0] == busiest
    assert int((result.mask == 0).sum()) == 2
    untouched, _ = repaired(encoder, images, rule="ratio", ratio=0, epochs=0)
    assert int((untouched.mask == 0).sum()) == 1


# The whole method


@pytest.mark.parametrize("site", ["output", "conv2"])
def test_nothing_pruned_and_nothing_trained_is_the_identity(encoder: Encoder, images: ImageSet, site: str) -> None:
    result, pruning = repaired(encoder, images, site=site, rule="ratio", ratio=0, epochs=0)
    assert same(result, encoder)
    assert pruning["k"] == 0
    assert pruning["utility_before"] == pruning["utility_after"]


def test_nothing_pruned_is_fine_tuning(encoder: Encoder, images: ImageSet) -> None:
    knowledge = DefenderKnowledge(images, 3)
    for bn in ("train", "eval"):
        tuned = FT(steps=3, bn=bn, **QUICK).repair(encoder.copy(), knowledge)
        assert same(repaired(encoder, images, rule="ratio", ratio=0, steps=3, bn=bn)[0], tuned)


def test_cost(encoder: Encoder, images: ImageSet) -> None:
    for site, extractions in (("output", 3), ("conv2", 5)):
        fp = FP(site=site, steps=2, **QUICK)
        with ForwardMeter() as meter:
            fp.repair(encoder.copy(), DefenderKnowledge(images, 0))
        assert meter.images == fp.forwards(40) == extractions * 40 + 6 * 16 * 2
    assert FP().forwards(2000) == 3 * 2000 + 6 * 256 * 7000


def test_same_seed_same_bits(encoder: Encoder, images: ImageSet) -> None:
    first, noted = repaired(encoder, images, steps=2, tolerance=0.1)
    torch.manual_seed(123)
    second, noted_again = repaired(encoder, images, steps=2, tolerance=0.1)
    assert noted == noted_again
    assert same(first, second)
    assert not same(first, repaired(encoder, images, steps=2, seed=4)[0])


def test_without_a_head_features_decide_and_training_is_not_applicable(encoder: Encoder, images: ImageSet) -> None:
    encoder.head = None
    result, pruning = repaired(encoder, images, tolerance=0.1, epochs=0)
    features = FP(**QUICK).view_features(encoder, images, 3)
    assert pruning["utility_before"] == pytest.approx(pretext_accuracy(*features.chunk(2)), abs=1e-4)
    assert int((result.mask == 0).sum()) == pruning["k"] > 0
    with pytest.raises(NotApplicable, match="projection head"):
        repaired(encoder, images, steps=1)


def test_fine_tuning_repairs_the_pretext(images: ImageSet, encoder: Encoder) -> None:
    def loss(net: Encoder) -> float:
        fp = FP(**QUICK)
        views = fp.augment.pair(images.pixels, stream(9, "views"))
        with torch.no_grad():
            return float(fp.contrast(net.train(), views))

    pruned, _ = repaired(encoder, images, rule="ratio", ratio=0.5, epochs=0)
    tuned, _ = repaired(encoder, images, rule="ratio", ratio=0.5, steps=30)
    assert loss(tuned) < loss(pruned) - 0.1
    assert math.isfinite(loss(tuned))
    assert float(F.normalize(tuned.eval().extract(images.pixels), dim=1).std(0).norm()) > 0.01


# A textbook backdoor


@pytest.mark.parametrize("rare", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(3))
def test_the_feature_of_a_planted_backdoor_is_pruned(seed: int, rare: float) -> None:
    """Clean images excite it never, or rarely and weakly: it is among the least active eighth of the channels."""
    plant = planted(seed, rare)
    result, pruning = repaired(plant.encoder, plant.images, rule="ratio", ratio=8 / 64, epochs=0)
    assert CHANNEL in pruning["channels"]
    assert float(result.extract(plant.triggered)[:, CHANNEL].abs().max()) == 0
    assert plant.likeness(plant.encoder) > 0.99
    assert plant.likeness(result) < 0.97

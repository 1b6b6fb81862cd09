"""CLP and its detector: the constants by hand, the threshold, the search for it, and textbook plants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.clp import CLP, LipschitzDetection, highest, largest, lipschitz, pairs, prune, z_scores
from torch import nn

from benchbd import Augment, DefenderKnowledge, Encoder, ImageSet, NotApplicable
from benchbd.contract.context import collecting
from benchbd.nets.meter import ForwardMeter

from ..plants import CHANNEL, Plant, planted
from ..small_nets import Bare, affine, random_encoder, same, settled, smooth_pixels


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """20 smooth random pictures."""
    return ImageSet(smooth_pixels(20))


@pytest.fixture(scope="module")
def encoder(images: ImageSet) -> Encoder:
    return settled(affine(random_encoder()), images.pixels)


def repaired(encoder: Encoder, images: ImageSet, **options: Any) -> tuple[Encoder, dict[str, Any]]:
    """The repaired copy and its notes."""
    with collecting() as findings:
        return CLP(**options).repair(encoder.copy(), DefenderKnowledge(images, 3)), findings.notes


# The constants


def test_a_constant_by_hand() -> None:
    """Two inputs, 1x2 kernels: the matrix of channel 0 is diag(3, 4), that of channel 1 has rank 1."""
    conv, norm = nn.Conv2d(2, 2, (1, 2), bias=False), nn.BatchNorm2d(2, eps=0.5)
    with torch.no_grad():
        conv.weight[0] = torch.tensor([[[3.0, 0.0]], [[0.0, 4.0]]])
        conv.weight[1] = torch.tensor([[[1.0, 2.0]], [[2.0, 4.0]]])
        norm.weight.copy_(torch.tensor([-2.0, 1.0]))
        norm.running_var.copy_(torch.tensor([3.5, 0.5]))
    assert lipschitz(conv, norm).tolist() == pytest.approx([4 * 2 / 2, 5.0])


def test_constants_and_pruning_equal_a_naive_loop(encoder: Encoder, images: ImageSet) -> None:
    expected: dict[str, list[int]] = {}
    convolution = None
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            convolution = module
        elif isinstance(module, nn.BatchNorm2d):
            assert convolution is not None
            constants = []
            for kernel, gamma, var in zip(convolution.weight, module.weight, module.running_var, strict=True):
                matrix = kernel.detach().reshape(kernel.shape[0], -1) * gamma.detach().abs() / (var + module.eps).sqrt()
                constants.append(float(torch.linalg.svdvals(matrix).max()))
            of_layer = torch.tensor(constants, dtype=torch.float64)
            limit = float(of_layer.mean() + 1.5 * of_layer.std())
            name = next(name for name, norm in encoder.norms().items() if norm is module)
            expected |= {name: found} if (found := [c for c, value in enumerate(constants) if value > limit]) else {}
    result, notes = repaired(encoder, images, u=1.5)
    assert notes["pruning"]["pruned_by_layer"] == expected
    assert notes["pruning"]["pruned"] == sum(map(len, expected.values())) > 5
    assert notes["pruning"]["channels"] == 16 * 3 + 32 * 3 + 64 * 3
    for name, norm in result.norms().items():
        before = encoder.norms()[name]
        gone = torch.zeros(norm.num_features, dtype=torch.bool)
        gone[expected.get(name, [])] = True
        for after, then in ((norm.weight, before.weight), (norm.bias, before.bias)):
            assert torch.equal(after, then.where(~gone, 0.0))
        assert torch.equal(norm.running_mean, before.running_mean)


def test_every_batchnorm_is_paired_with_its_convolution(encoder: Encoder) -> None:
    found = pairs(encoder)
    assert list(found) == list(encoder.norms())
    assert found["body.layer2.0.downsample.1"][0] is encoder.body["layer2"][0].downsample[0]  # type: ignore[index]
    assert found["stem.1"][0] is encoder.stem[0]  # type: ignore[index]


def test_no_z_exceeds_what_the_width_allows() -> None:
    """The docstring's bound (n - 1) / sqrt(n), which one channel beside equal others reaches; equal channels have 0."""
    net = random_encoder().eval()
    with torch.no_grad():
        net.stem[0].weight[:] = 1  # type: ignore[index]
    assert z_scores(net)["stem.1"].tolist() == [0.0] * 16
    with torch.no_grad():
        net.stem[1].weight[3] = 1e6  # type: ignore[index]
    assert float(z_scores(net)["stem.1"][3]) == pytest.approx(15 / 16**0.5, abs=1e-3)


# The threshold


def test_a_fixed_threshold_needs_no_image(encoder: Encoder, images: ImageSet) -> None:
    with ForwardMeter() as meter:
        result, _ = repaired(encoder, images, u=1.0)
    assert meter.images == CLP().forwards(20) == 0
    assert same(result, repaired(encoder, ImageSet(images.pixels[:1]), u=1.0)[0])
    untouched, notes = repaired(encoder, images, u=100.0)
    assert same(untouched, encoder)
    z = largest(z_scores(encoder))
    assert notes["remarks"] == [f"clp: no channel was pruned at u = 100; the largest z is {z:.2f}"]


class Counted(CLP):
    """CLP whose pretext accuracy depends on the number of pruned channels alone, as ``falls`` says."""

    name = "counted"
    falls: tuple[tuple[int, float], ...] = ()

    def utility(self, encoder: Encoder, images: ImageSet, augment: Augment, seed: int) -> float:
        pruned = sum(int(((norm.weight == 0) & (norm.bias == 0)).sum()) for norm in encoder.norms().values())
        return next((value for least, value in reversed(self.falls) if pruned >= least), 0.9)


def test_the_threshold_is_the_lowest_that_the_tolerance_allows(encoder: Encoder, images: ImageSet) -> None:
    scores, knowledge = z_scores(encoder), DefenderKnowledge(images, 3)

    def counts(u: float) -> int:
        return sum(int((z > u).sum()) for z in scores.values())

    for falls in (((1, 0.9), (12, 0.86), (20, 0.859)), ((1, 0.9), (20, 0.5), (60, 0.9))):  # 0.04 allows 0.86
        u, tried = Counted(rule="budget", falls=falls).search(encoder, scores, knowledge)
        assert counts(u) < 20 <= counts(round(u - 0.1, 6)) == tried[-1].pruned
        assert [level.pruned for level in tried] == sorted({level.pruned for level in tried})
        assert all(level.pruned == counts(level.threshold) for level in tried)
    u, tried = Counted(rule="budget", falls=((1, 0.5),)).search(encoder, scores, knowledge)
    assert (counts(u), len(tried)) == (0, 2)
    u, _ = Counted(rule="budget").search(encoder, scores, knowledge)
    assert u == 0
    assert counts(highest(scores)) == 0 < counts(highest(scores) - 0.1)


def test_the_search_uses_the_clean_images_alone(encoder: Encoder, images: ImageSet) -> None:
    """And returns the encoder that it measured: the last level within the tolerance is the one noted."""
    before = encoder.copy()
    result, notes = repaired(encoder, images, rule="budget", tolerance=0.2, colour="affine")
    assert same(encoder, before)
    pruning = notes["pruning"]
    assert pruning["curve"][0]["pruned"] == 0
    kept = [level for level in pruning["curve"] if level["utility"] >= pruning["curve"][0]["utility"] - 0.2 - 1e-9]
    assert pruning["pruned"] == max(level["pruned"] for level in kept[: len(pruning["curve"])])
    own = CLP(rule="budget", colour="affine").utility(result, images, Augment((0.08, 1.0), "affine"), 3)
    assert round(own, 4) == next(level["utility"] for level in kept if level["pruned"] == pruning["pruned"])
    assert CLP(rule="budget").forwards(20) is None


def test_without_batchnorm_neither_applies(images: ImageSet) -> None:
    knowledge = DefenderKnowledge(images, 0)
    with pytest.raises(NotApplicable, match=r"^clp prunes convolutions by their BatchNorm; bare has none$"):
        CLP().repair(Bare("bare"), knowledge)
    with pytest.raises(NotApplicable, match=r"^lipschitz judges convolutions by their BatchNorm; bare has none$"):
        LipschitzDetection().inspect(Bare("bare"), knowledge)


# Textbook backdoors


PLANTS = [(seed, rare) for seed in range(3) for rare in (0.0, 0.05)]


@pytest.fixture(scope="module", params=PLANTS, ids=lambda case: f"seed {case[0]}, rare {case[1]}")
def plant(request: pytest.FixtureRequest) -> Plant:
    return planted(*request.param)


def test_the_plant_is_a_backdoor(plant: Plant, request: pytest.FixtureRequest) -> None:
    """It fires on every checkerboard, on the clean images that it should, and makes triggered images alike."""
    rare = request.node.callspec.params["plant"][1]
    assert plant.firing(plant.triggered) == 1
    assert plant.firing(plant.images.pixels) == pytest.approx(rare, abs=1 / len(plant.images))
    assert plant.likeness(plant.encoder) > 0.99
    assert plant.likeness(plant.clean) < 0.97
    assert float(plant.encoder.extract(plant.images.pixels)[:, CHANNEL].max()) < (1 if rare else 1e-9)


def test_the_planted_channel_is_pruned(plant: Plant) -> None:
    """At the code's u = 3, without an image; what is left is the encoder without the backdoor."""
    result, notes = repaired(plant.encoder, plant.images)
    assert notes["pruning"]["pruned_by_layer"]["stem.1"] == [CHANNEL]
    assert notes["pruning"]["pruned"] <= 6
    assert float(result.extract(plant.triggered)[:, CHANNEL].abs().max()) == 0
    assert plant.likeness(result) < 0.97
    kept = F.cosine_similarity(result.extract(plant.images.pixels), plant.clean.extract(plant.images.pixels))
    assert float(kept.mean()) > 0.9


def test_the_detector_sees_the_plant(plant: Plant) -> None:
    knowledge = DefenderKnowledge(plant.images, 0)
    with ForwardMeter() as meter:
        verdict = LipschitzDetection().inspect(plant.encoder, knowledge)
    assert meter.images == LipschitzDetection().forwards(60) == 0
    assert verdict.flagged
    assert verdict.score == largest(z_scores(plant.encoder)) > 3.7
    assert (
        verdict.score
        > LipschitzDetection().inspect(settled(affine(random_encoder()), plant.images.pixels), knowledge).score
    )


def test_a_plant_that_is_pruned_by_hand_is_gone(plant: Plant) -> None:
    """``prune`` silences exactly the channels above u, whichever layer of the path it cuts."""
    for name, channel in plant.path.items():
        cut = plant.encoder.copy()
        alone = {name: torch.eye(cut.norms()[name].num_features, dtype=torch.float64)[channel]}
        assert prune(cut, alone, 0.5) == {name: [channel]}
        assert float(cut.extract(plant.triggered)[:, CHANNEL].abs().max()) == 0

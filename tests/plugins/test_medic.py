"""MEDIC: statistics, importance and the loss against hand values and a naive form, and what a run does not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.medic import (
    Channels,
    Medic,
    channel_statistics,
    clone_distance,
    hooked_tensors,
    importance_weights,
    instance_discrimination,
    standardised,
)
from benchbd_plugins.scratch import Scratch
from torch import Tensor, nn

from benchbd import DefenderKnowledge, Encoder, ImageSet, NotApplicable, UsageError, stream
from benchbd.contract.context import collecting
from benchbd.nets.meter import ForwardMeter, precision
from benchbd.testing import check_method

from ..plants import CHANNEL, planted
from ..small_nets import MEAN, STD, random_encoder, settled, smooth_pixels

QUICK: dict[str, Any] = {"batch": 16, "colour": "affine"}
IMPACTS = ("rms_abs", "official", "none")
BATCHNORM = nn.modules.batchnorm._BatchNorm

Views = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """64 smooth random pictures."""
    return ImageSet(smooth_pixels(64), mean=MEAN, std=STD)


@pytest.fixture
def teacher(images: ImageSet) -> Encoder:
    """Random weights, BatchNorm statistics of real images and an affine map of its own."""
    encoder, draws = random_encoder(), stream(0, "affine")
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=draws))
                module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=draws))
    return settled(encoder, images.pixels)


@pytest.fixture
def views(images: ImageSet) -> Views:
    return Medic().augment.pair(images.pixels[:6], stream(1, "views"))


def student() -> Encoder:
    return random_encoder(3)


def random_channels(h: Tensor) -> Channels:
    """Statistics of ``h`` itself, every channel live."""
    dims = (0, *range(2, h.ndim))
    std = h.std(dims, keepdim=True)
    return Channels(h.mean(dims, keepdim=True), std, std > 0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Tensor, encoder: Encoder) -> Tensor:
    grads = torch.autograd.grad(loss, list(encoder.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


# Statistics


@pytest.mark.parametrize("batch", [16, 24, 64])
def test_statistics_are_those_of_all_images_at_once(teacher: Encoder, images: ImageSet, batch: int) -> None:
    with ForwardMeter() as meter:
        found = channel_statistics(teacher, images, batch=batch)
    assert meter.images == 64
    with torch.no_grad():
        whole = hooked_tensors(teacher, images.pixels.float() / 255)
    assert list(found) == list(whole)
    assert len(found) == 2 + 3 * 4 + 1
    for place, h in whole.items():
        values = h.transpose(0, 1).flatten(1)
        torch.testing.assert_close(found[place].mean.flatten(), values.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[place].std.flatten().square(), values.var(1), rtol=1e-4, atol=1e-7)
        assert found[place].mean.ndim == found[place].std.ndim == found[place].live.ndim == h.ndim


def test_the_released_average_of_batches_leaves_out_how_they_differ(teacher: Encoder, images: ImageSet) -> None:
    found = channel_statistics(teacher, images)
    with torch.no_grad():
        parts = [hooked_tensors(teacher, x) for x in images.batches(16)]
    for place, channels in found.items():
        values = [part[place].transpose(0, 1).flatten(1) for part in parts]
        n, total = values[0].shape[1], 4 * values[0].shape[1]
        within = torch.stack([v.var(1) for v in values]).mean(0)  # size-weighted, the batches are equal
        between = torch.stack([v.mean(1) for v in values]).var(0, correction=0)
        rest = (channels.std.flatten().square() * (total - 1) - within * 4 * (n - 1)) / total
        torch.testing.assert_close(rest, between, rtol=1e-2, atol=1e-5)
        assert float(rest.sum()) > 0


def test_channels_that_do_not_vary_are_dead(teacher: Encoder, images: ImageSet) -> None:
    norm: Any = teacher.get_submodule("body.layer1.0.bn1")
    with torch.no_grad():
        norm.bias[3] = -100.0  # never passes its ReLU
        teacher.get_parameter("body.layer2.0.bn1.weight").zero_()
        teacher.get_parameter("body.layer2.0.bn1.bias").fill_(0.5)
    found = channel_statistics(teacher, images)
    relu = found["layer1.0.relu"]
    assert (~relu.live).flatten().nonzero().flatten().tolist() == [3]
    assert float(relu.std[0, 3]) == 1
    assert "layer2.0.relu" not in found  # nothing in it varies
    assert "layer2.0.conv1" in found


# Importance


def test_weights_by_hand() -> None:
    """Two entries, scores (log 4, 0) and (0, log 9): softmaxes (.8, .2) and (.1, .9)."""
    channels = Channels(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    a, q = torch.tensor([[math.log(4), 0]]), torch.tensor([[0, math.log(9)]])
    wanted = torch.tensor([[math.sqrt(0.08), math.sqrt(0.18)]])
    torch.testing.assert_close(importance_weights(a, q, channels), wanted)


def test_dead_channels_take_no_part_by_hand() -> None:
    channels = Channels(torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[True, False, True]]))
    weights = importance_weights(torch.tensor([[0.0, 50.0, 0.0]]), torch.tensor([[0.0, 9.0, 0.0]]), channels)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.0, 0.5]]))


def test_impact_scores_by_hand() -> None:
    channels = Channels(torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[True, False, True]]))
    g = torch.tensor([[1.5, 7.0, -4.0], [0.0, 7.0, 0.0]])  # scaled by sigma, without the dead: (3, -4) and (0, 0)
    rms = math.sqrt(12.5)
    wanted = torch.tensor([[3 / rms, 0, 4 / rms], [0, 0, 0]])
    torch.testing.assert_close(Medic().impact_scores(g, channels), wanted)
    torch.testing.assert_close(Medic().impact_scores(1e-6 * g, channels), wanted)  # whatever the loss's scale
    signed = torch.tensor([[15.0, 0, -20.0], [0, 0, 0]])
    torch.testing.assert_close(Medic(impact="official", imp_temp=5).impact_scores(g, channels), signed)


def test_instance_discrimination_by_hand() -> None:
    """Orthogonal pairs at temperature 0.5: logits 2 and 0, whatever the lengths."""
    features, keys = torch.tensor([[3.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, 5]])
    wanted = torch.full((2,), math.log(1 + math.exp(-2)))
    torch.testing.assert_close(instance_discrimination(features, keys, 0.5), wanted)
    torch.testing.assert_close(instance_discrimination(features, keys.flip(0), 0.5), wanted + 2)


@pytest.mark.parametrize("impact", IMPACTS)
def test_weights_of_a_sample_sum_to_at_most_one(teacher: Encoder, images: ImageSet, views: Views, impact: Any) -> None:
    statistics = channel_statistics(teacher, images)
    _, weights = Medic(impact=impact).importance(teacher.frozen(), statistics, views)
    for w in weights.values():
        assert (w >= 0).all()
        assert not w.requires_grad
        assert (w.flatten(1).sum(1) <= 1 + 1e-5).all()
        assert (w.flatten(1).sum(1) > 0).all()
    _, uniform = Medic(impact="none", imp_temp=0).importance(teacher.frozen(), statistics, views)
    for w in uniform.values():
        torch.testing.assert_close(w, torch.full_like(w, 1 / w[0].numel()))
    assert all(float((weights[place] - uniform[place]).abs().max()) > 0 for place in weights)


def test_importance_is_a_matter_of_the_sample_alone(teacher: Encoder, images: ImageSet, views: Views) -> None:
    """The first view of another image changes nothing, not even the size of the gradient."""
    statistics, medic = channel_statistics(teacher, images), Medic()
    first = views[0].clone()
    first[0] = 0.5
    _, weights = medic.importance(teacher.frozen(), statistics, views)
    _, others = medic.importance(teacher.frozen(), statistics, (first, views[1]))
    for place, w in weights.items():
        torch.testing.assert_close(others[place][1:], w[1:], rtol=1e-3, atol=1e-7)
        assert not torch.allclose(others[place][0], w[0], rtol=1e-2, atol=0)


def test_a_dormant_neuron_weighs_less_than_uniform(teacher: Encoder, images: ImageSet, views: Views) -> None:
    """Channel 3 is silent on all clean images, channel 5 on most: on those its weight is small."""
    norm: Any = teacher.get_submodule("body.layer1.0.bn1")
    x = images.pixels.float() / 255
    with torch.no_grad():
        norm.bias[3] = -100.0
        peaks = norm(hooked_tensors(teacher, x)["layer1.0.conv1"])[:, 5].amax((1, 2)).sort().values
        norm.bias[5] -= (peaks[40] + peaks[41]) / 2
    statistics = channel_statistics(teacher, images)
    assert statistics["layer1.0.relu"].live.flatten()[[3, 5]].tolist() == [False, True]
    quiet = (hooked_tensors(teacher, x)["layer1.0.relu"][:, 5].amax((1, 2)) == 0).nonzero().flatten()[:16]
    both = x[quiet], x[quiet].flip(3)
    for impact in IMPACTS:
        _, weights = Medic(impact=impact).importance(teacher.frozen(), statistics, both)
        w = weights["layer1.0.relu"]
        uniform = 1 / (15 * 16 * 16)
        assert float(w[:, 3].max()) == 0
        assert float(w[:, 5].mean()) < uniform
    assert float(w[:, 5].max()) < uniform  # without impact it is so everywhere
    s, t = draw(*w.shape), draw(*w.shape, seed=1)
    s[:, 3] = 1e6  # the student may do anything there
    assert float(clone_distance(s, t, w, statistics["layer1.0.relu"])) < 10


def test_a_neuron_that_fires_seldom_weighs_more_than_uniform_where_it_does(teacher: Encoder, images: ImageSet) -> None:
    """At one position in 1,000, without a floor: sigma is small, z is large, and the other entries weigh little."""
    norm: Any = teacher.get_submodule("body.layer1.0.bn1")
    x = images.pixels.float() / 255
    with torch.no_grad():
        norm.bias[5] -= norm(hooked_tensors(teacher, x)["layer1.0.conv1"])[:, 5].flatten().quantile(0.999)
        firing = hooked_tensors(teacher, x)["layer1.0.relu"][:, 5] > 0
    assert 0.0005 < float(firing.float().mean()) < 0.0015
    statistics, seldom = channel_statistics(teacher, images), firing.any(2).any(1)
    both = x[seldom], x[seldom].flip(3)
    for impact in IMPACTS:
        _, weights = Medic(impact=impact).importance(teacher.frozen(), statistics, both)
        w, fires = weights["layer1.0.relu"], firing[seldom]
        assert float(w[:, 5][fires].mean()) > 5 / w[0].numel()
        assert float(w[:, 5][~fires].max()) < 1 / w[0].numel()
        where = (w[:, 5] * fires).sum((1, 2))
        assert float((where > w.sum((1, 2, 3)) - where).float().mean()) > 0.7  # mostly it has nearly all weight


@pytest.mark.parametrize("seed", range(3))
def test_the_floor_bounds_what_a_channel_that_seldom_fires_owns(seed: int) -> None:
    """A channel of sigma 1e-3 of the median owns most of the cloning loss of its tensor; with the floor, little."""
    images = ImageSet(smooth_pixels(64, seed), mean=MEAN, std=STD)
    teacher, other = (settled(random_encoder(s), images.pixels) for s in (seed, seed + 20))
    place, plant = "layer1.0.relu", 5
    norm: Any = teacher.get_submodule("body.layer1.0.bn1")
    x = images.pixels.float() / 255
    with torch.no_grad():
        norm.weight[plant] = 3e-3
        norm.bias[plant] = -norm(hooked_tensors(teacher, x)["layer1.0.conv1"])[:, plant].flatten().quantile(0.95)
    views = Medic().augment.pair(images.pixels, stream(1, "views"))

    def share(floor: float) -> float:
        statistics = channel_statistics(teacher, images, floor)
        wanted, weights = Medic().importance(teacher.frozen(), statistics, views)
        copied, channels = hooked_tensors(other, views[0])[place], statistics[place]
        loss = weights[place] * ((copied - wanted[place]) / channels.std).square()
        return float((loss[:, plant].sum() / loss.sum()).detach())

    sigma, floored = (channel_statistics(teacher, images, floor)[place].std.flatten() for floor in (0.0, 0.1))
    assert float(sigma[plant]) < 0.01 * float(sigma.median())
    assert float(floored[plant]) == pytest.approx(0.1 * float(sigma.median()))
    assert torch.equal(floored[:plant], sigma[:plant])  # no other channel is as small
    assert share(0.0) > 0.9
    assert share(0.1) < 0.5


# A textbook backdoor


def without(encoder: Encoder, channel: int) -> Encoder:
    """A copy whose stem lacks a channel."""
    copy = encoder.copy()
    norm: Any = copy.get_submodule("stem.1")
    with torch.no_grad():
        norm.weight[channel] = norm.bias[channel] = 0
    return copy


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_hardly_asks_for_the_planted_channel(seed: int) -> None:
    """What a student pays that equals its teacher but lacks one channel of the stem: the planted one, or another.

    Nothing if no clean image excites the plant. If one in 20 does, weakly, its small sigma makes it the dearest channel
    of all; the floor takes most of that away, but the channel is not free.
    """

    def paid(rare: float, floor: float) -> tuple[float, float]:
        plant = planted(seed, rare)
        teacher, x = plant.encoder.frozen(), plant.images.pixels.float() / 255
        statistics = channel_statistics(teacher, plant.images, floor)
        lacking = [
            float(Medic().losses(student, teacher, statistics, (x, x.flip(3)))["clone"].detach())
            for student in (without(plant.encoder, channel) for channel in range(CHANNEL, CHANNEL + 4))
        ]
        return lacking[0], sorted(lacking[1:])[1]

    never, other = paid(0.0, 0.1)
    assert never == 0 < 1 < other
    (bare, usual), (floored, other) = paid(0.05, 0.0), paid(0.05, 0.1)
    assert bare > 3 * usual
    assert floored < 0.6 * bare
    assert floored < 5 * other


@pytest.mark.parametrize("rare", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(3))
def test_the_student_does_not_take_the_planted_backdoor_over(seed: int, rare: float) -> None:
    """It copies what the teacher does on clean images, and triggered images are to it as to the net without the plant.

    If no clean image excites the plant, it is the student of that net, but for rounding.
    """
    plant = planted(seed, rare)

    def student(teacher: Encoder) -> Encoder:
        return Medic(steps=20, **QUICK).repair(teacher.copy(), DefenderKnowledge(plant.images, seed))

    def alike(a: Encoder, b: Encoder, pixels: Tensor) -> float:
        return float(F.cosine_similarity(a.extract(pixels), b.extract(pixels)).mean())

    found = student(plant.encoder)
    assert alike(found, plant.clean, plant.images.pixels) > 0.75  # 0.43 to 0.62 before training
    assert plant.likeness(plant.encoder) > 0.99
    assert plant.likeness(found) < 0.95
    assert alike(found, plant.encoder, plant.triggered) < 0.45
    assert alike(found, plant.clean, plant.triggered) > 0.75
    if not rare:
        assert alike(found, student(plant.clean), plant.triggered) > 0.999


def test_the_released_impact_is_inert(teacher: Encoder, images: ImageSet) -> None:
    statistics = channel_statistics(teacher, images)
    views = Medic().augment.pair(images.pixels, stream(1, "views"))
    official, none, ours = (Medic(impact=i).importance(teacher.frozen(), statistics, views)[1] for i in
                            ("official", "none", "rms_abs"))  # fmt: skip
    for place in list(statistics)[:-1]:
        ratio = official[place] / none[place].clamp_min(1e-30)
        assert float((ratio[none[place] > 1e-20] - 1).abs().max()) < 0.01
        assert float((ours[place] - none[place]).norm() / none[place].norm()) > 0.05


# The loss


def test_a_student_equal_to_its_teacher_has_nothing_to_copy(teacher: Encoder, images: ImageSet, views: Views) -> None:
    statistics = channel_statistics(teacher, images)
    for impact in IMPACTS:
        parts = Medic(impact=impact).losses(teacher.copy(), teacher.frozen(), statistics, views)
        assert float(parts["clone"].detach()) == 0
        other = Medic(impact=impact).losses(student(), teacher.frozen(), statistics, views)
        assert float(other["clone"].detach()) > 1


@pytest.mark.parametrize("shape", [(4, 5, 3, 3), (8, 5)])
@pytest.mark.parametrize("impact", IMPACTS)
def test_units_of_a_channel_do_not_matter(shape: tuple[int, ...], impact: Any) -> None:
    t, s, g = draw(*shape), draw(*shape, seed=1), draw(*shape, seed=2)
    each = (1, 5, *(1 for _ in shape[2:]))
    scale, shift = draw(*each, seed=3).exp(), 4 * draw(*each, seed=4)
    medic = Medic(impact=impact)

    def distance(t: Tensor, s: Tensor, g: Tensor) -> float:
        channels = random_channels(t)
        scores = torch.zeros_like(t) if impact == "none" else medic.impact_scores(g, channels)
        w = importance_weights(medic.imp_temp * standardised(t, channels), scores, channels)
        return float(clone_distance(s, t, w, channels))

    there = distance(scale * t + shift, scale * s + shift, g / scale)
    assert there == pytest.approx(distance(t, s, g), rel=1e-4)
    assert distance(t, scale * s + shift, g) != pytest.approx(distance(t, s, g), rel=1e-2)


def walk(e: Any, x: Tensor) -> dict[str, Tensor]:
    """Every hooked tensor, layer by layer, nothing in place."""
    out: dict[str, Tensor] = {}
    out["stem.conv"] = e.stem[0]((x - e.mean) / e.std)
    y = out["stem"] = F.relu(e.stem[1](out["stem.conv"]))
    for name, stage in e.body.items():
        (block,) = stage.children()
        first = out[f"{name}.0.conv1"] = block.conv1(y)
        between = out[f"{name}.0.relu"] = F.relu(block.bn1(first))
        second = out[f"{name}.0.conv2"] = block.conv2(between)
        y = F.relu(block.bn2(second) + (y if block.downsample is None else block.downsample(y)))
        out[name] = y
    out["feature"] = y.mean((2, 3))
    return out


def naive_parts(
    medic: Medic, s: Encoder, t: Encoder, statistics: dict[str, Channels], views: Views
) -> tuple[Tensor, Tensor]:
    """The step by the formulas: teacher and importance sample by sample, every loss a loop."""
    tau, n = medic.temperature, len(views[0])
    copied, other = walk(s, views[0]), walk(s, views[1])
    assert s.head is not None
    u = F.normalize(torch.cat([s.head(copied["feature"]), s.head(other["feature"])]), dim=1)
    contrast = torch.zeros(())
    for i in range(2 * n):
        denominator = torch.stack([(u[i] @ u[k] / tau).exp() for k in range(2 * n) if k != i]).sum()
        contrast = contrast - ((u[i] @ u[(i + n) % (2 * n)] / tau).exp() / denominator).log() / (2 * n)

    keys = walk(t, views[1])["feature"].detach()
    clone = torch.zeros(())
    for b in range(n):
        h = walk(t, views[0][b : b + 1].requires_grad_(True))
        cosines = torch.stack([F.cosine_similarity(h["feature"][0], key, dim=0) for key in keys])
        loss = -((cosines[b] / tau).exp() / (cosines / tau).exp().sum()).log()
        if medic.impact == "official":
            loss = loss / n
        grads = torch.autograd.grad(loss, list(h.values()))
        for (place, value), grad in zip(h.items(), grads, strict=True):
            channels, z = statistics[place], value.detach()
            g = channels.std * grad
            if medic.impact == "rms_abs":
                impact = g.abs() / g.square().mean().sqrt()
            else:
                impact = medic.imp_temp * g if medic.impact == "official" else 0 * g
            z = (z - channels.mean) / channels.std
            a, q = (medic.imp_temp * z).flatten().softmax(0), impact.flatten().softmax(0)
            w = (a * q).sqrt().view_as(z)
            clone = clone + (w * ((value.detach() - copied[place][b]) / channels.std) ** 2).sum() / n
    return contrast, medic.hook_weight * clone


@pytest.mark.parametrize("impact", IMPACTS)
def test_the_step_equals_the_naive_form(teacher: Encoder, images: ImageSet, views: Views, impact: Any) -> None:
    medic, statistics = Medic(impact=impact, imp_temp=3), channel_statistics(teacher, images)
    s, s_naive = student(), student()
    parts = medic.losses(s, teacher.frozen(), statistics, views)
    contrast, clone = naive_parts(medic, s_naive, teacher.frozen(), statistics, views)
    assert float(parts["contrast"].detach()) == pytest.approx(float(contrast.detach()), rel=1e-5)
    assert float(parts["clone"].detach()) == pytest.approx(float(clone.detach()), rel=1e-4)
    found, wanted = gradient(parts["contrast"] + parts["clone"], s), gradient(contrast + clone, s_naive)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def test_one_batch_for_both_views_differs_by_batchnorm_alone(teacher: Encoder, images: ImageSet, views: Views) -> None:
    statistics, frozen = channel_statistics(teacher, images), teacher.frozen()
    separate, joint = Medic(), Medic(bn_views="joint")
    for mode, alike in ((False, True), (True, False)):
        a, b = (medic.losses(student().train(mode), frozen, statistics, views) for medic in (separate, joint))
        for name in a:
            assert torch.allclose(a[name], b[name], rtol=1e-4) is alike


def test_nothing_flows_into_the_teacher(teacher: Encoder, images: ImageSet, views: Views) -> None:
    """Not even if its weights could take a gradient; and the views, which the caller owns, are not marked."""
    statistics, s, open_teacher = channel_statistics(teacher, images), student(), teacher.copy()
    torch.stack([*Medic().losses(s, open_teacher, statistics, views).values()]).sum().backward()
    assert all(p.grad is None for p in open_teacher.parameters())
    assert all(p.grad is not None for p in s.parameters())
    assert not views[0].requires_grad
    assert views[0].grad is None


# A run


@pytest.mark.parametrize("bn_views", ["separate", "joint"])
def test_without_cloning_it_is_simclr_bit_for_bit(teacher: Encoder, images: ImageSet, bn_views: Any) -> None:
    options = {**QUICK, "epochs": 1, "bn_views": bn_views, "lr": 0.01, "weight_decay": 1e-4, "schedule": "cosine"}
    knowledge = DefenderKnowledge(images, 5)
    plain = Scratch(**options).repair(teacher.copy(), knowledge).tensors()
    found = Medic(**options, hook_weight=0).repair(teacher.copy(), knowledge).tensors()
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    cloned = Medic(**options).repair(teacher.copy(), knowledge).tensors()
    assert not torch.equal(cloned["stem.0.weight"], plain["stem.0.weight"])


@pytest.mark.parametrize(("impact", "step"), [("rms_abs", 9), ("official", 9), ("none", 7)])
def test_cost_of_a_run(teacher: Encoder, images: ImageSet, impact: Any, step: int) -> None:
    for bn_views in ("separate", "joint"):
        medic = Medic(steps=3, impact=impact, bn_views=bn_views, **QUICK)
        with ForwardMeter() as meter:
            repaired = medic.repair(teacher.copy(), DefenderKnowledge(images, 0))
        assert meter.images == 64 + step * 16 * 3 == medic.forwards(64)
        counters = {int(m.num_batches_tracked or 0) for m in repaired.modules() if isinstance(m, BATCHNORM)}
        assert counters == {6 if bn_views == "separate" else 3}
    assert Medic(impact=impact).forwards(2000) == 2000 + step * 64 * 31 * 200


def test_the_encoder_is_left_alone(teacher: Encoder, images: ImageSet) -> None:
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    repaired = Medic(epochs=1, **QUICK).repair(teacher, DefenderKnowledge(images, 0))
    assert teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert not repaired.training
    for module in (*teacher.modules(), *repaired.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_the_teacher_is_in_eval_mode_and_bit_identical_after_an_epoch(
    teacher: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Encoder] = []
    inner = Medic.importance

    def importance(self: Medic, teacher: Encoder, *rest: Any) -> Any:
        used.append(teacher)
        assert not any(m.training for m in teacher.modules())
        return inner(self, teacher, *rest)

    monkeypatch.setattr(Medic, "importance", importance)
    Medic(epochs=1, **QUICK).repair(teacher, DefenderKnowledge(images, 0))
    assert len(used) == 4
    state = teacher.tensors()
    assert all(torch.equal(state[name], tensor) for name, tensor in used[-1].tensors().items())
    assert all(p.grad is None and not p.requires_grad for p in used[-1].parameters())


def test_the_student_starts_empty(teacher: Encoder, images: ImageSet) -> None:
    teacher.head = None
    first, second = (Medic(steps=0, **QUICK).repair(teacher, DefenderKnowledge(images, s)) for s in (0, 1))
    assert first.head is not None
    assert torch.equal(first.mean, teacher.mean)
    assert torch.equal(first.std, teacher.std)
    weight, other, teachers = (e.get_parameter("stem.0.weight") for e in (first, second, teacher))
    assert not torch.isclose(weight, teachers).any(1).all()
    assert not torch.equal(weight, other)


def test_a_short_run_copies_and_does_not_collapse(teacher: Encoder, images: ImageSet) -> None:
    statistics, views = channel_statistics(teacher, images), Medic().augment.pair(images.pixels, stream(2, "views"))
    empty, repaired = (
        Medic(steps=steps, batch=16, colour="affine").repair(teacher, DefenderKnowledge(images, 0))
        for steps in (0, 100)
    )
    with torch.no_grad():
        before, after = (
            float(Medic(impact="none").losses(e.train(), teacher.frozen(), statistics, views)["clone"])
            for e in (empty, repaired)
        )
    assert 0 < after < 0.75 * before  # 0.17 to 0.49 of it over four draws
    f, t = (F.normalize(e.extract(images.pixels), dim=1) for e in (repaired, teacher))
    assert float((f * t).sum(1).mean()) > 0.8
    assert float(f.std(0).norm()) > 0.1


def test_what_is_noted(teacher: Encoder, images: ImageSet) -> None:
    with collecting() as short:
        Medic(steps=6, **QUICK).repair(teacher, DefenderKnowledge(images, 0))
    loss: Any = short.notes["loss"]
    assert list(loss) == ["contrast", "clone"]
    assert all(0 < value < math.inf for value in loss.values())
    assert short.notes["remarks"] == ["medic: the student was trained for 1.5 epochs, not 200"]
    with collecting() as full:
        Medic().remark(2000)
        Medic(steps=200 * 31).remark(2000)
    assert not full.notes
    with collecting() as nearly:
        Medic(steps=200 * 31 - 62).remark(2000)
    assert nearly.notes["remarks"] == ["medic: the student was trained for 198 epochs, not 200"]


def test_what_cannot_be_cloned_is_refused_in_one_line(teacher: Encoder, images: ImageSet) -> None:
    with pytest.raises(UsageError, match="training needs at least 2 images, not 1"):
        Medic(**QUICK).repair(teacher, DefenderKnowledge(images.subset(torch.tensor([0])), 0))
    with torch.no_grad():
        for p in teacher.backbone():
            p.zero_()
    with pytest.raises(NotApplicable, match="none of this encoder's vary"):
        Medic(**QUICK).repair(teacher, DefenderKnowledge(images, 0))


@pytest.mark.fixed_draw("check_method draws for itself; it holds a contract, no outcome of training")
def test_it_keeps_the_contract() -> None:
    check_method(Medic, steps=2, batch=16)


def test_it_runs_in_bf16(teacher: Encoder, images: ImageSet) -> None:
    medic = Medic(steps=2, **QUICK)
    with precision("bf16"), ForwardMeter() as meter:
        repaired = medic.repair(teacher.copy(), DefenderKnowledge(images, 0))
    assert meter.images == medic.forwards(64)
    assert repaired.extract(images.pixels).isfinite().all()

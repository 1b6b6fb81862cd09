"""Seeds, the loop over steps, NT-Xent, and the plugins that consist of contrastive training alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.ft import FT
from benchbd_plugins.scratch import Scratch
from benchbd_plugins.simclr import SimCLR
from torch import Tensor

from benchbd import (
    Augment,
    ContrastiveMethod,
    DefenderKnowledge,
    Diverged,
    Encoder,
    ImageSet,
    NotApplicable,
    Steps,
    UsageError,
    Views,
    batch_indices,
    note,
    nt_xent,
    pretext_accuracy,
    project_views,
    stream,
)
from benchbd.base.errors import PluginError
from benchbd.base.seeds import derive_seed
from benchbd.contract.context import collecting, reporting
from benchbd.nets.meter import ForwardMeter
from benchbd.stages.encoders import check_features

from ..chance import seeded


def smooth_pixels(n: int, seed: int = 5) -> Tensor:
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seeded(seed)))
    return (F.interpolate(coarse, size=32, mode="bilinear") * 255).byte()


def projections(n: int, d: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seeded(seed)))


def encoder(seed: int = 0) -> Encoder:
    return Encoder.seeded("w16", (0.5,) * 3, (0.25,) * 3, seed=seeded(seed), device="cpu").eval()


SHORT: dict[str, Any] = {"steps": 3, "batch": 8}

# ------------------------------------------------------------------------------------------------------- seeds


def test_derived_seeds_are_stable_and_distinct() -> None:
    """A change of these numbers changes every published result: if it is necessary, raise every version."""
    assert derive_seed(0) == 3_456_079_177_858_693_020
    assert derive_seed(7, "attack", "views") == 7_567_308_948_280_595_208
    seeds = {derive_seed(s, *names) for s in range(50) for names in ((), ("order",), ("views",), ("order", "views"))}
    assert len(seeds) == 200
    assert all(0 <= s < 2**63 for s in seeds)


def test_streams_are_independent_of_each_other_and_of_the_global_generator() -> None:
    torch.manual_seed(1)
    order = torch.rand(4, generator=stream(3, "order"))
    torch.manual_seed(2)
    stream(3, "views")
    assert torch.equal(order, torch.rand(4, generator=stream(3, "order")))
    assert not torch.equal(order, torch.rand(4, generator=stream(3, "views")))
    assert not torch.equal(order, torch.rand(4, generator=stream(4, "order")))


# ------------------------------------------------------------------------------------------------------- steps


def test_steps_count_and_report_the_last_loss() -> None:
    heard: list[tuple[int, int, float | None]] = []
    steps = Steps(5)
    with reporting(lambda step, total, loss: heard.append((step, total, loss))):
        for step in steps:
            steps.loss(torch.tensor(float(step), requires_grad=True))
    assert heard[0] == (1, 5, 0.0)
    assert heard[-1] == (5, 5, 4.0)
    assert [h[0] for h in heard] == sorted({h[0] for h in heard})
    assert len(heard) <= 5
    heard.clear()
    assert list(Steps(3)) == [0, 1, 2]  # no reporter is left, and a loss is optional
    assert list(Steps(0)) == []
    assert heard == []


def test_steps_read_the_loss_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is read back every step would make a GPU wait: with a slow clock two of 100 are read."""
    read: list[int] = []
    monkeypatch.setattr("benchbd.contract.context.time.monotonic", lambda: 1.0)
    steps = Steps(100)
    with reporting(lambda step, total, loss: read.append(step)):
        for _ in steps:
            steps.loss(torch.tensor(0.0))
    assert read == [1, 100]


def test_nan_is_divergence() -> None:
    def loop() -> None:
        for step in (steps := Steps(4)):
            steps.loss(torch.tensor(float("nan") if step == 3 else 1.0))

    with pytest.raises(Diverged, match="the loss is NaN at step 4 of 4"):
        loop()


def test_batches_are_permutations_of_whole_epochs() -> None:
    batches = list(batch_indices(10, 3, 8, torch.Generator().manual_seed(0)))
    assert [len(rows) for rows in batches] == [3] * 8
    epochs = [torch.cat(batches[start : start + 3]) for start in (0, 3)]
    for epoch in epochs:
        assert len(epoch.unique()) == 9  # the tenth image is dropped
        assert set(epoch.tolist()) <= set(range(10))
    assert not torch.equal(*epochs)
    again = list(batch_indices(10, 3, 8, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_small_sets_make_one_batch_and_nothing_is_refused() -> None:
    batches = list(batch_indices(5, 256, 3, torch.Generator().manual_seed(0)))
    assert [sorted(rows.tolist()) for rows in batches] == [[0, 1, 2, 3, 4]] * 3
    assert list(batch_indices(5, 2, 0, torch.Generator())) == []
    with pytest.raises(UsageError, match="at least 2 images, not 1"):
        next(batch_indices(1, 2, 1, torch.Generator()))


# ----------------------------------------------------------------------------------------------------- NT-Xent


def naive_nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """Eq. 1 of the paper as a double loop."""
    z = F.normalize(torch.cat([first, second]).double(), dim=1)
    batch = len(first)
    total = 0.0
    for i in range(2 * batch):
        others = [math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * batch) if k != i]
        total -= math.log(math.exp(float(z[i] @ z[(i + batch) % (2 * batch)]) / temperature) / sum(others))
    return total / (2 * batch)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_nt_xent_is_the_papers_equation(batch: int, temperature: float) -> None:
    first, second = projections(batch, seed=1), 3 * projections(batch, seed=2)
    loss = nt_xent(first, second, temperature)
    assert float(loss) == pytest.approx(naive_nt_xent(first, second, temperature), rel=1e-5, abs=1e-6)


def test_nt_xent_is_a_masked_cross_entropy_with_the_same_gradient() -> None:
    z = projections(16).requires_grad_(True)
    u = F.normalize(z, dim=1)
    logits = (u @ u.T / 0.5).masked_fill(torch.eye(16, dtype=torch.bool), -1e30)
    masked = F.cross_entropy(logits, torch.arange(16).roll(8))
    loss = nt_xent(z[:8], z[8:])
    assert loss.item() == pytest.approx(masked.item(), rel=1e-6)
    (ours,), (theirs,) = torch.autograd.grad(loss, z), torch.autograd.grad(masked, z)
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_nt_xent_of_known_projections() -> None:
    for batch in (8, 128):
        alike = torch.ones(batch, 4)
        assert float(nt_xent(alike, alike)) == pytest.approx(math.log(2 * batch - 1), rel=1e-6)
    orthogonal = torch.eye(128)
    expected = math.log(math.e**2 + 2 * 128 - 2) - 2
    assert expected == pytest.approx(3.566, abs=1e-3)
    assert float(nt_xent(orthogonal, orthogonal, 0.5)) == pytest.approx(expected, rel=1e-6)


def test_nt_xent_does_not_depend_on_order_or_length() -> None:
    first, second = projections(12, seed=1), projections(12, seed=2)
    loss = float(nt_xent(first, second))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert float(nt_xent(second, first)) == pytest.approx(loss, rel=1e-6)
    assert float(nt_xent(first[order], second[order])) == pytest.approx(loss, rel=1e-6)
    assert float(nt_xent(first * 7, second * torch.rand(12, 1).add(0.1))) == pytest.approx(loss, rel=1e-5)
    assert abs(float(nt_xent(first[order], second)) - loss) > 1e-3  # the pairing matters


def test_nt_xent_of_an_untrained_net_is_near_the_log_of_its_choices() -> None:
    net = encoder().train()
    views = Augment().pair(smooth_pixels(128), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for bn_views in ("separate", "joint"):
            loss = nt_xent(*project_views(net, views, bn_views))
            assert float(loss) == pytest.approx(math.log(2 * 128 - 1), abs=0.3)


def test_separate_and_joint_batchnorm_differ_in_training_only() -> None:
    first, second = (smooth_pixels(8, s).float() / 255 for s in (1, 2))
    views = (first, second * 0.5)

    def loss(training: bool, bn_views: str) -> Tensor:
        net = encoder().train(training)
        with torch.no_grad():
            return nt_xent(*project_views(net, views, bn_views))  # type: ignore[arg-type]

    assert torch.allclose(loss(False, "separate"), loss(False, "joint"), atol=1e-5)
    assert not torch.allclose(loss(True, "separate"), loss(True, "joint"), atol=1e-3)


# -------------------------------------------------------------------------------------------------- collapse


def test_collapsed_and_infinite_features_are_divergence() -> None:
    images = ImageSet(smooth_pixels(16))
    check_features(encoder(), images)
    dead = encoder()
    with torch.no_grad():
        dead.body["layer3"][0].bn2.weight.zero_()
        dead.body["layer3"][0].downsample[1].weight.zero_()
        dead.body["layer3"][0].bn2.bias.fill_(1)
    with pytest.raises(Diverged, match="collapsed"):
        check_features(dead, images)
    broken = encoder()
    with torch.no_grad():
        broken.stem[0].weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="not finite"):
        check_features(broken, images)


def test_features_that_leave_float32_are_divergence() -> None:
    """The features are finite, but the square of their length is not: their normalised form would be 0."""
    pixels = smooth_pixels(16)
    net = encoder()
    with torch.no_grad():
        norm = net.body["layer3"][0].bn2
        norm.weight.mul_(1e25)
        norm.bias.mul_(1e25)
        features = net(pixels.float() / 255)
    assert features.isfinite().all()
    assert (F.normalize(features, dim=1).norm(dim=1) == 0).any()
    with pytest.raises(Diverged, match=r"^the features are not finite$"):
        net.train().extract(pixels)
    assert net.training


def test_vanished_features_are_divergence() -> None:
    """Cosine similarity divides by at least 1e-8: features of length 1e-9 would not be similar to themselves."""
    images = ImageSet(smooth_pixels(16))
    net = encoder()
    net.mask.mul_(1e-9)
    short = net.extract(images.pixels)
    assert float(F.cosine_similarity(short, short).max()) < 0.5
    with pytest.raises(Diverged, match=r"^the features vanished: their median length is .*, below 1e-06$"):
        check_features(net, images)


def test_projections_that_are_not_finite_have_no_accuracy() -> None:
    first, second = projections(8), projections(8, seed=1)
    first[3, 2] = math.nan
    with pytest.raises(Diverged, match="the projections are not finite"):
        pretext_accuracy(first, second)


@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_loss_that_is_not_finite_stops_the_loop(value: float, said: str) -> None:
    steps = Steps(1)
    loop = iter(steps)
    next(loop)
    steps.loss(torch.tensor(value))
    with pytest.raises(Diverged, match=f"^the loss is {said} at step 1 of 1$"):
        next(loop)


def test_gradients_whose_squares_overflow_are_divergence() -> None:
    """Adam would divide by infinity and never change a weight of f, at a loss that is always finite."""
    images = ImageSet(smooth_pixels(16))

    def huge(encoder: Encoder, views: Views) -> Tensor:
        return 1e22 * method.contrast(encoder, views)

    method = FT(**SHORT)
    with pytest.raises(Diverged, match=r"^the gradients left float32, so that Adam moved nothing"):
        method.fit(encoder(), images, 1, loss=huge)
    method.fit(encoder(), images, 1, loss=lambda net, views: 1e6 * method.contrast(net, views))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mi", math.nan, "note 'mi' cannot be kept as JSON: Out of range float"),
        ("mi", {"a": [1.0, math.inf]}, "note 'mi' cannot be kept as JSON: Out of range float"),
        ("mi", {"a": torch.ones(2)}, "note 'mi' cannot be kept as JSON: Object of type Tensor is not JSON"),
        ("remarks", "a line", "note 'remarks' must be a list of lines"),
        ("remarks", ["a line", 3], "note 'remarks' must be a list of lines"),
    ],
)
def test_a_note_is_json_and_remarks_are_lines(name: str, value: Any, said: str) -> None:
    with collecting() as findings, pytest.raises(PluginError, match=f"^{said}"):
        note(name, value)
    assert not findings.notes


# ----------------------------------------------------------------------------------------------------- plugins


def run(method: ContrastiveMethod, images: ImageSet, seed: int = 1, start: int = 0) -> Encoder:
    if isinstance(method, SimCLR):
        return method.pretrain(images, seed)
    assert isinstance(method, FT | Scratch)
    return method.repair(encoder(start), DefenderKnowledge(images, seed))


METHODS = [SimCLR(arch="w16", **SHORT), FT(**SHORT), Scratch(**SHORT)]
BY_NAME = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


@BY_NAME
def test_same_seed_same_weights_and_no_label_is_read(method: ContrastiveMethod) -> None:
    pixels = smooth_pixels(20)
    torch.manual_seed(1)
    plain = run(method, ImageSet(pixels)).tensors()
    torch.manual_seed(2)
    labelled = run(method, ImageSet(pixels, torch.arange(20), tuple("abcdefghijklmnopqrst"))).tensors()
    assert all(torch.equal(plain[name], labelled[name]) for name in plain)
    other = run(method, ImageSet(pixels), seed=2).tensors()
    assert not torch.equal(plain["stem.0.weight"], other["stem.0.weight"])


@BY_NAME
def test_everything_trains_and_batchnorm_re_estimates(method: ContrastiveMethod) -> None:
    images = ImageSet(smooth_pixels(20))
    before = run(method.model_copy(update={"steps": 0}), images).tensors()
    trained = run(method, images)
    after = trained.tensors()
    unmoved = {name for name in after if torch.equal(after[name], before[name])}
    assert unmoved == {"mean", "std", "mask"}
    assert int(after["stem.1.num_batches_tracked"]) == 2 * 3  # each view is a batch of its own
    assert not any(module.training for module in trained.modules())
    joint = run(method.model_copy(update={"bn_views": "joint"}), images).tensors()
    assert int(joint["stem.1.num_batches_tracked"]) == 3


@BY_NAME
def test_forwards_are_the_meters(method: ContrastiveMethod) -> None:
    images = ImageSet(smooth_pixels(20))
    with ForwardMeter() as meter:
        run(method, images)
    assert method.forwards(20) == 6 * 8 * 3 == meter.images


def test_ft_of_no_steps_is_the_identity() -> None:
    images = ImageSet(smooth_pixels(20))
    for options in ({"steps": 0}, {"epochs": 0}):
        repaired = FT(**options).repair(encoder(), DefenderKnowledge(images, 1)).tensors()
        assert all(torch.equal(t, repaired[name]) for name, t in encoder().tensors().items())


def test_ft_may_leave_the_statistics_of_batchnorm_alone() -> None:
    before = encoder().tensors()
    after = run(FT(**SHORT, bn="eval"), ImageSet(smooth_pixels(20))).tensors()
    for name in after:
        is_statistic = "running" in name or "num_batches" in name or name in ("mean", "std", "mask")
        assert torch.equal(after[name], before[name]) == is_statistic, name


def test_fit_lowers_the_loss_it_is_given() -> None:
    """A given loss replaces SimCLR's and gets the views that SimCLR's would get, once per step."""
    images, seen = ImageSet(smooth_pixels(20)), []

    def loss(net: Encoder, views: Views) -> Tensor:
        seen.append(views)
        return (net(views[0]) - 1).square().mean()

    def distance(net: Encoder) -> float:
        return float((net.extract(images.pixels) - 1).square().mean())

    method = FT(steps=24, batch=8, lr=5e-3)
    fitted = method.fit(encoder(), images, 1, loss=loss)
    assert len(seen) == 24
    first = next(batch_indices(20, 8, 24, stream(1, "order")))
    torch.testing.assert_close(seen[0], method.augment.pair(images.pixels[first], stream(1, "views")))
    assert distance(fitted) < 0.3 * distance(encoder())  # 0.04 to 0.06 of it over six draws
    given = method.fit(encoder(), images, 1, loss=method.contrast).tensors()
    plain = method.fit(encoder(), images, 1).tensors()
    assert all(torch.equal(given[name], plain[name]) for name in plain)


def test_ft_needs_a_head() -> None:
    headless = Encoder("w16", head=False)
    with pytest.raises(NotApplicable, match="needs a projection head"):
        FT(**SHORT).repair(headless, DefenderKnowledge(ImageSet(smooth_pixels(20)), 1))


def test_ft_starts_at_the_encoder_and_scratch_does_not() -> None:
    images = ImageSet(smooth_pixels(20))
    for method, depends in ((FT(**SHORT), True), (Scratch(**SHORT), False)):
        one, other = run(method, images, start=0).tensors(), run(method, images, start=7).tensors()
        assert all(torch.equal(one[name], other[name]) for name in one) != depends
    assert (FT.uses_weights, Scratch.uses_weights) == (True, False)
    mean, std = images.normalization()
    fresh = run(Scratch(**SHORT), images)
    assert fresh.mean.flatten().tolist() == pytest.approx(mean)
    assert fresh.std.flatten().tolist() == pytest.approx(std)


def test_training_lowers_the_loss_on_a_fixed_batch() -> None:
    images = ImageSet(smooth_pixels(64))
    views = Augment().pair(images.pixels, torch.Generator().manual_seed(9))

    def loss(steps: int) -> float:
        net = SimCLR(arch="w16", steps=steps, batch=64, lr=3e-3).pretrain(images, 0).train()
        with torch.no_grad():
            return float(nt_xent(*project_views(net, views, "separate")))

    assert loss(40) < loss(0) - 0.15


@pytest.mark.fixed_draw("learning rates follow the number of the step alone")
@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, [1e-2] * 4),
        ({"schedule": "cosine"}, [1e-2, 0.5e-2 * (1 + 0.5**0.5), 0.5e-2, 0.5e-2 * (1 - 0.5**0.5)]),
        ({"warmup_steps": 2}, [0.5e-2, 1e-2, 1e-2, 1e-2]),
        ({"schedule": "cosine", "warmup_steps": 2}, [0.5e-2, 1e-2, 1e-2, 0.5e-2]),
    ],
)
def test_learning_rates(options: dict[str, Any], rates: list[float]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer, schedule = SimCLR(lr=1e-2, **options).optimizer_for([parameter], 4)
    seen = []
    for _ in rates:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx(rates)


def test_steps_follow_from_epochs() -> None:
    defaults = SimCLR()
    assert defaults.total_steps(50_000) == 195_000  # the paper's 1000 epochs of 195 full batches
    assert FT(epochs=3, batch=8).total_steps(20) == 6
    assert FT(epochs=3, batch=256).total_steps(20) == 3
    assert FT(epochs=3, steps=5).total_steps(20) == 5
    assert (defaults.temperature, defaults.lr, defaults.weight_decay, defaults.batch) == (0.5, 1e-3, 1e-6, 256)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.1)])
def test_crop_scale_is_validated(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 < low <= high <= 1"):
        SimCLR(crop_scale=scale)


def test_a_loop_inside_another_reports_nothing_but_still_stops_on_nan() -> None:
    told: list[tuple[int, int]] = []
    with reporting(lambda step, steps, loss: told.append((step, steps))):
        for _ in Steps(2):
            for _ in Steps(50):
                pass
        for _ in Steps(3):  # after the outer loop, the next loop is an outer one again
            pass
        for _ in Steps(2):
            inner = Steps(3)
            inner.loss(torch.tensor(float("nan")))
            with pytest.raises(Diverged):
                list(inner)
    assert {steps for _, steps in told} == {2, 3}

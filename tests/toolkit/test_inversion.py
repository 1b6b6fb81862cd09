"""The inversion loop: the controller's path of lambda, and that a run of K equals K runs."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchbd import Controller, Encoder, Inversion, Inverted, stream
from benchbd.nets.meter import ForwardMeter
from benchbd.testing import toy_encoder, toy_images
from benchbd.toolkit.inversion import Lambda, _bounded, _free, stamp

from ..chance import seeded

DECREE = Controller(start=1e-3, up=5, down=5, patience=6, lowest=1e-5, highest=1e5)
MOTH = Controller()
CLEANSE = Controller(up=2, down=2**1.5, patience=5)


def path(controller: Controller, events: str) -> list[float]:
    """Lambda after every event of one run; ``+`` is a success."""
    weight = Lambda(controller, 1, "cpu")
    values = []
    for event in events:
        weight.update(torch.tensor([event == "+"]))
        values.append(float(weight.value))
    return values


# The controller


def test_the_sixth_event_in_a_row_moves_decrees_lambda() -> None:
    assert path(DECREE, "+" * 13) == pytest.approx([1e-3] * 5 + [5e-3] * 6 + [2.5e-2] * 2)
    assert path(DECREE, "-" * 13) == pytest.approx([1e-3] * 5 + [2e-4] * 6 + [4e-5] * 2)
    assert path(DECREE, "+++++-+++++-----+") == pytest.approx([1e-3] * 17)
    assert path(DECREE, "+++++-" * 3 + "+" * 6) == pytest.approx([1e-3] * 23 + [5e-3])


def test_decrees_lambda_stops_just_outside_its_range() -> None:
    down = path(DECREE, "-" * 40)
    assert down[17] == pytest.approx(8e-6)  # 1e-3 / 125, below the floor of 1e-5
    assert down[17:] == [down[17]] * 23
    up = path(DECREE, "+" * 100)
    assert up[-1] == up[71] == pytest.approx(1e-3 * 5**12)  # 2.4e5, above the roof of 1e5
    assert up[70] == pytest.approx(1e-3 * 5**11)
    assert path(DECREE, "-" * 40 + "+" * 6)[-1] == pytest.approx(4e-5)  # and comes back from there
    assert path(DECREE, "+" * 100 + "-" * 6)[-1] == pytest.approx(1e-3 * 5**11)


@pytest.mark.parametrize("events", ["-" * 40 + "+" * 40, None])
def test_decrees_lambda_follows_the_released_rules(events: str | None) -> None:
    """The released code's extra rule, a reset after 11 successes below the floor, is here and never acts."""
    if events is None:
        draws = torch.rand(4000, generator=stream(0, "events"))
        odds = torch.linspace(0, 12, 4000).sin() / 2 + 0.5
        events = "".join("+" if draw < odd else "-" for draw, odd in zip(draws, odds, strict=True))
    expected, value, ups, downs, low, reset = [], 1e-3, 0, 0, 0, False
    for event in events:
        low = low + 1 if value < 1e-5 and event == "+" else 0
        if low > 10:
            value, ups, downs, reset = 1e-3, 0, 0, True
        ups, downs = (ups + 1, 0) if event == "+" else (0, downs + 1)
        if ups > 5:
            value, ups = value * 5 if value < 1e5 else value, 0
        elif downs > 5:
            value, downs = value / 5 if value >= 1e-5 else value, 0
        expected.append(value)
    assert not reset
    assert min(expected) < 1e-5
    assert path(DECREE, events) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("lost", "won"), [("-", "+"), ("+", "-")])
def test_lambda_comes_back_from_the_ends_of_float32(lost: str, won: str) -> None:
    """MOTH's has no floor and no roof of its own: lambda could never leave 0 or infinity."""
    values = path(MOTH, lost * 3000 + won * 20)
    assert min(values) >= torch.finfo(torch.float32).tiny
    assert max(values) <= torch.finfo(torch.float32).max
    assert len(set(values[2900:3000])) == 1
    assert values[-1] != values[2999]
    assert path(Controller(start=0.0), "+" * 10 + "-" * 20) == [0.0] * 30


def test_lambda_of_moth_and_neural_cleanse() -> None:
    assert path(MOTH, "+" * 20) == pytest.approx([1e-3] * 9 + [1.5e-3] * 10 + [2.25e-3])
    assert path(MOTH, "-" * 20) == pytest.approx([1e-3] * 9 + [1e-3 / 1.8371173] * 10 + [1e-3 / 3.375])
    assert path(CLEANSE, "+" * 5 + "-" * 5) == pytest.approx([1e-3] * 4 + [2e-3] * 5 + [2e-3 / 2.8284271])
    assert path(MOTH, "-" * 1000)[-1] == pytest.approx(1e-3 / 1.5**150, rel=1e-3)  # no floor


def test_lambdas_move_independently() -> None:
    events = [[bool(int(e)) for e in f"{n:08b}"] for n in range(256)]
    weight = Lambda(Controller(patience=3), 256, "cpu")
    for moment in torch.tensor(events).T:
        weight.update(moment)
    alone = [path(Controller(patience=3), "".join("-+"[e] for e in run))[-1] for run in events]
    assert weight.value.tolist() == alone


# The patch


def test_a_patch_stays_in_its_range_and_comes_back() -> None:
    assert _bounded(torch.tensor([-30.0, -12, -9, 0, 9, 12, 30])).tolist() == [0, 0, 0, 0.5, 1, 1, 1]
    values = torch.linspace(0, 1, 101)
    assert _free(values).isfinite().all()
    torch.testing.assert_close(_bounded(_free(values)), values, rtol=0, atol=1e-6)


def test_the_stamp_equals_normalising_afterwards() -> None:
    draws = stream(0, "stamp")
    images, mask, pattern = (torch.rand(*shape, generator=draws) for shape in ((5, 3, 8, 8), (1, 8, 8), (3, 8, 8)))
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    stamped = stamp(images, mask, pattern)
    torch.testing.assert_close(stamped, (1 - mask) * images + mask * pattern)
    inside = stamp((images - mean) / std, mask, (pattern - mean) / std)
    torch.testing.assert_close((stamped - mean) / std, inside)
    assert stamped.min() >= 0
    assert stamped.max() <= 1
    assert torch.equal(stamp(images, torch.zeros_like(mask), pattern), images)
    torch.testing.assert_close(stamp(images, torch.ones_like(mask), pattern), pattern.expand_as(images))


# A run


class Corner(nn.Module):
    """Features: the mean of the image, and how white its first 2x2 pixels are. With one weight, for the flags."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm1d(2)
        self.seen: list[tuple[bool, bool]] = []

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training or self.norm.training, self.weight.requires_grad))
        return self.weight * torch.stack([x.mean((1, 2, 3)), x[:, :, :2, :2].mean((1, 2, 3))], 1)


def corner() -> Encoder:
    return cast(Encoder, Corner())


def whiteness(features: Tensor) -> tuple[Tensor, Tensor]:
    rate = features[..., 1].mean(-1)
    return -rate, rate


def batches(batch: int = 8, seed: int = 0) -> Iterator[Tensor]:
    draws = stream(seeded(seed), "batches")
    while True:
        yield torch.rand(batch, 3, 8, 8, generator=draws)


def lr(rate: float) -> Any:
    return lambda step: rate


FAST = Inversion(steps=60, lr=lr(0.5), controller=Controller(start=0.01, patience=3), level=0.9)


def same(first: Inverted, second: Inverted) -> bool:
    tensors = ("mask", "pattern", "size", "rate", "valid")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)


def test_the_smallest_patch_is_found() -> None:
    found = FAST(corner(), batches(), whiteness, size=8, seed=seeded(0))
    mask = found.mask[0, 0]
    assert found.valid.all()
    assert mask[:2, :2].sum() / mask.sum() > 0.9
    assert 2 < float(found.size) < 5  # four pixels, not quite opaque
    assert float(found.rate) >= 0.9
    assert float(found.size) == pytest.approx(float(mask.sum()))
    stamped = found.stamp(next(batches(seed=9)))
    assert float(stamped[:, :, :2, :2].mean()) > 0.88
    for part in (found.mask, found.pattern):
        assert part.min() >= 0
        assert part.max() <= 1


def test_the_best_is_the_smallest_at_a_success_and_the_one_that_was_measured() -> None:
    sizes, rates = [], []

    def watching(features: Tensor) -> tuple[Tensor, Tensor]:
        loss, rate = whiteness(features)
        rates.append(float(rate.detach()))
        return loss, rate

    class Spied(Corner):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(float((1 - x[4] + x[0]).detach().mean(0).sum()))  # the mask hides white and darkens
            return super().forward(x)

    def pairs() -> Iterator[Tensor]:
        black = torch.zeros(4, 3, 8, 8)
        while True:
            yield torch.cat([black, black + 1])

    found = FAST(cast(Encoder, Spied()), pairs(), watching, size=8, seed=seeded(0))
    successes = [(size, rate) for size, rate in zip(sizes, rates, strict=True) if rate >= 0.9]
    assert len(sizes) == found.steps == 60
    assert 0 < len(successes) < 60
    assert float(found.size) == pytest.approx(min(successes)[0], abs=1e-4)
    assert float(found.rate) == pytest.approx(min(successes)[1])


def test_a_run_without_success_says_so() -> None:
    never = Inversion(steps=5, lr=lr(0.1), level=1.5)
    found = never(corner(), batches(), whiteness, size=8, seed=seeded(0), count=2)
    assert found.valid.tolist() == [False, False]
    assert found.size.tolist() == [inf, inf]
    assert (found.rate > 0).all()
    assert found.mask.std() > 0.1  # the last, not an empty one


def test_a_level_that_is_just_reached_is_a_success() -> None:
    def always(features: Tensor) -> tuple[Tensor, Tensor]:
        return features.mean((1, 2)), torch.full((len(features),), 0.9)

    assert Inversion(steps=1, lr=lr(0.1), level=0.9)(corner(), batches(), always, size=8, seed=seeded(0)).valid.all()
    assert not Inversion(steps=1, lr=lr(0.1), level=0.91)(
        corner(), batches(), always, size=8, seed=seeded(0)
    ).valid.any()


@pytest.mark.parametrize("stop", [{}, {"epoch": 5, "stale": 3}], ids=["to the end", "early"])
def test_many_at_once_are_each_alone(stop: dict[str, int]) -> None:
    """The same holds if they settle at different times."""
    inversion = Inversion(
        steps=40, lr=lambda step: 0.5 if step < 20 else 0.2, controller=FAST.controller, level=0.8, channels=3, **stop
    )
    draws = stream(seeded(0), "starts")
    start = torch.rand(3, 1, 8, 8, generator=draws) ** 3, torch.rand(3, 3, 8, 8, generator=draws)
    start[1][2, :, :2, :2] = 0.01
    together = inversion(corner(), batches(), whiteness, size=8, seed=seeded(0), count=3, start=start)
    assert together.valid.any()
    steps = []
    for k in range(3):
        own = start[0][k : k + 1], start[1][k : k + 1]
        alone = inversion(corner(), batches(), whiteness, size=8, seed=seeded(0), start=own)
        steps.append(alone.steps)
        for name in ("mask", "pattern", "size", "rate", "valid"):
            torch.testing.assert_close(getattr(together, name)[k], getattr(alone, name)[0], rtol=1e-5, atol=1e-5)
    assert together.steps == max(steps)
    if stop:
        assert len(set(steps)) > 1
    else:
        assert set(steps) == {40}


def test_many_at_once_through_a_real_encoder() -> None:
    encoder, images = toy_encoder(seeded(0)), toy_images(16).pixels.float() / 255
    inversion = Inversion(steps=4, lr=lr(0.1), level=0.5)

    def alike(features: Tensor) -> tuple[Tensor, Tensor]:
        s = F.normalize(F.normalize(features, dim=-1).mean(-2), dim=-1)
        rate = (F.normalize(features, dim=-1) * s[:, None]).sum(-1).mean(-1)
        return -rate, rate

    def given(count: int) -> Iterator[Tensor]:
        while True:
            yield images[:count]

    draws = stream(seeded(3), "starts")
    start = torch.rand(2, 1, 32, 32, generator=draws), torch.rand(2, 3, 32, 32, generator=draws)
    together = inversion(encoder, given(8), alike, size=32, seed=seeded(0), count=2, start=start)
    for k in range(2):
        own = start[0][k : k + 1], start[1][k : k + 1]
        alone = inversion(encoder, given(8), alike, size=32, seed=seeded(0), start=own)
        torch.testing.assert_close(together.mask[k], alone.mask[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.pattern[k], alone.pattern[0], rtol=0, atol=1e-5)


def test_each_run_may_have_images_of_its_own() -> None:
    def own() -> Iterator[Tensor]:
        first, second = batches(seed=1), batches(seed=2)
        while True:
            yield torch.stack([next(first), next(second)])

    draws = stream(seeded(0), "starts")
    start = torch.rand(2, 1, 8, 8, generator=draws), torch.rand(2, 3, 8, 8, generator=draws)
    together = FAST(corner(), own(), whiteness, size=8, seed=seeded(0), count=2, start=start)
    for k in range(2):
        alone = FAST(
            corner(),
            batches(seed=k + 1),
            whiteness,
            size=8,
            seed=seeded(0),
            start=(start[0][k : k + 1], start[1][k : k + 1]),
        )
        torch.testing.assert_close(together.mask[k], alone.mask[0], rtol=1e-5, atol=1e-5)


def test_a_unit_is_the_mean_of_its_updates() -> None:
    scripted = [0.8, 1.0] * 3 + [1.0, 0.9] * 3  # means 0.9 and 0.95

    def script(features: Tensor) -> tuple[Tensor, Tensor]:
        rate = scripted.pop(0)
        return features.mean((1, 2)), torch.full((len(features),), rate)

    found = Inversion(steps=12, lr=lr(1e-6), level=0.92, unit=2)(corner(), batches(), script, size=8, seed=seeded(0))
    assert float(found.rate) == pytest.approx(0.95)


def test_the_mask_counts_once_or_three_times() -> None:
    """Two controllers, one a third of the other, against the number of channels."""
    runs = [
        Inversion(steps=8, lr=lr(0.3), level=2, controller=Controller(start=start), channels=channels)(
            corner(), batches(), whiteness, size=8, seed=0
        )
        for start, channels in ((0.03, 1), (0.01, 3), (0.03, 3))
    ]
    torch.testing.assert_close(runs[0].mask, runs[1].mask, rtol=0, atol=1e-5)
    assert (runs[0].mask - runs[2].mask).abs().max() > 1e-3


def test_a_new_best_restarts_near_itself() -> None:
    sizes: list[float] = []

    def shrink(features: Tensor) -> tuple[Tensor, Tensor]:
        return features.sum((1, 2)) * 0, torch.ones(len(features))

    class Watched(Corner):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(float(x.mean().detach()))
            return super().forward(x)

    def white() -> Iterator[Tensor]:
        while True:
            yield torch.ones(2, 3, 8, 8)

    start = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.25)
    for jitter in (0.0, 0.01):
        sizes.clear()
        plain = Inversion(steps=2, lr=lr(1.0), jitter=jitter, controller=Controller(start=1.0))
        plain(cast(Encoder, Watched()), white(), shrink, size=8, seed=seeded(0), start=start)
        moved = sizes[1] - sizes[0]  # a mask half as dense lets more of the white through
        assert moved > 0.1 if jitter == 0 else abs(moved) < 0.004  # back at the best, not at Adam's position


def test_the_pattern_restarts_with_its_mask() -> None:
    seen: list[tuple[float, float]] = []

    def brighten(features: Tensor) -> tuple[Tensor, Tensor]:
        return -features[..., 0].mean(-1), torch.ones(len(features))

    class Watched(Corner):
        def forward(self, x: Tensor) -> Tensor:
            black, white = x.detach().mean((1, 2, 3)).tolist()
            seen.append((1 - white + black, black / (1 - white + black)))  # the mask and the pattern
            return super().forward(x)

    def both() -> Iterator[Tensor]:
        while True:
            yield torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])

    start = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.25)
    for jitter in (0.0, 0.01):
        seen.clear()
        plain = Inversion(steps=2, lr=lr(1.0), jitter=jitter, controller=Controller(start=1.0))
        plain(cast(Encoder, Watched()), both(), brighten, size=8, seed=seeded(0), start=start)
        assert seen[0] == pytest.approx((0.5, 0.25), abs=1e-4)
        for first, then in zip(*seen, strict=True):
            assert abs(then - first) > 0.1 if jitter == 0 else 1e-5 < abs(then - first) < 0.004


def test_it_stops_when_nothing_improves() -> None:
    """The best comes at update 1; no later one does, so that the count exceeds 3 at update 5, an epoch's end."""

    def grow(features: Tensor) -> tuple[Tensor, Tensor]:
        return -features.sum((1, 2)), torch.ones(len(features))

    def dark() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(2, 3, 8, 8)

    start = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.5)
    frozen = Controller(start=0.0)
    for epoch, stale, steps in ((5, 3, 5), (5, 4, 10), (4, 3, 8), (0, 3, 30)):
        inversion = Inversion(steps=30, lr=lr(0.01), controller=frozen, epoch=epoch, stale=stale)
        assert inversion(corner(), dark(), grow, size=8, seed=seeded(0), start=start).steps == steps

    def seldom(features: Tensor) -> tuple[Tensor, Tensor]:
        return -features.sum((1, 2)), torch.full((len(features),), 0.5)

    inversion = Inversion(steps=30, lr=lr(0.01), controller=frozen, epoch=5, stale=3)
    assert inversion(corner(), dark(), seldom, size=8, seed=seeded(0), start=start).steps == 30


def test_the_learning_rate_is_asked_at_every_update() -> None:
    asked: list[int] = []

    def rate(step: int) -> float:
        asked.append(step)
        return 0.1

    Inversion(steps=4, lr=rate)(corner(), batches(), whiteness, size=8, seed=seeded(0))
    assert asked[-4:] == [0, 1, 2, 3]


# Restored state


def test_the_encoder_comes_back_as_it_was() -> None:
    encoder = Corner()
    encoder.train()
    encoder.norm.eval()
    extra = nn.Parameter(torch.zeros(()), requires_grad=False)
    encoder.register_parameter("extra", extra)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    FAST(cast(Encoder, encoder), batches(), whiteness, size=8, seed=seeded(0))
    assert encoder.training
    assert not encoder.norm.training
    assert encoder.weight.requires_grad
    assert not extra.requires_grad
    assert encoder.weight.grad is None
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert set(encoder.seen) == {(False, False)}  # in between: eval mode, no weight gradients


def test_the_encoder_comes_back_after_a_failure() -> None:
    encoder = Corner().train()

    def broken(features: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        FAST(cast(Encoder, encoder), batches(), broken, size=8, seed=seeded(0))
    assert encoder.training
    assert encoder.weight.requires_grad


def test_an_update_costs_two_per_image() -> None:
    encoder, images = toy_encoder(seeded(0)).train(), toy_images(6).pixels.float() / 255
    before = encoder.tensors()

    def objective(features: Tensor) -> tuple[Tensor, Tensor]:
        return features.square().mean((1, 2)), torch.zeros(len(features))

    def given() -> Iterator[Tensor]:
        while True:
            yield images

    with ForwardMeter() as meter:
        Inversion(steps=3, lr=lr(0.1))(encoder, given(), objective, size=32, seed=seeded(0), count=2)
    assert meter.images == 2 * 3 * 2 * 6
    assert encoder.training
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.tensors().items())
    assert not any(module._forward_hooks for module in encoder.modules())


def test_same_seed_same_bits() -> None:
    inversion = Inversion(steps=20, lr=lr(0.5), level=0.7, jitter=0.01)
    first = inversion(corner(), batches(), whiteness, size=8, seed=seeded(4), count=2)
    torch.rand(7)
    second = inversion(corner(), batches(), whiteness, size=8, seed=seeded(4), count=2)
    other = inversion(corner(), batches(), whiteness, size=8, seed=seeded(5), count=2)
    assert first.valid.any()
    assert same(first, second)
    assert not torch.equal(first.mask, other.mask)
    assert not torch.equal(first.mask[0], first.mask[1])

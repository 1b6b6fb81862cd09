"""DECREE: its similarity, its verdict on encoders with known triggers, and the effect of unlearning."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.decree import Decree, DecreeDetection, Finding, best_start
from pydantic import ValidationError
from torch import Tensor, nn

from benchbd import (
    DefenderKnowledge,
    Diverged,
    Encoder,
    ImageSet,
    Inversion,
    Inverted,
    UsageError,
    Verdict,
    flip_and_shift,
    self_similarity,
    stream,
)
from benchbd.contract.context import collecting
from benchbd.nets.encoder import W16
from benchbd.nets.meter import ForwardMeter
from benchbd.testing import check_method

from ..chance import seeded
from ..small_nets import random_encoder, settled, smooth_pixels

QUICK: dict[str, Any] = {"inversion_steps": 5, "inversion_batch": 16}


@pytest.fixture
def images() -> ImageSet:
    """64 smooth random pictures."""
    return ImageSet(smooth_pixels(64))


@pytest.fixture
def encoder(images: ImageSet) -> Encoder:
    """Random weights, BatchNorm statistics of real images."""
    return settled(random_encoder(), images.pixels)


# The objective


def naive(features: Tensor) -> Tensor:
    u = F.normalize(features, dim=1)
    return (u @ u.T)[~torch.eye(len(u), dtype=torch.bool)].mean()


def test_the_similarity_equals_the_mean_off_the_diagonal() -> None:
    features = torch.randn(3, 9, 5, generator=stream(0, "features"), dtype=torch.float64).requires_grad_(True)
    fast, slow = self_similarity(features), torch.stack([naive(part) for part in features])
    torch.testing.assert_close(fast, slow)
    weights = torch.tensor([1.0, -2, 3])
    (found,), (wanted,) = (torch.autograd.grad((s * weights).sum(), features) for s in (fast, slow))
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(self_similarity, features)


def test_the_similarity_at_its_ends() -> None:
    one = torch.tensor([[1.0, 2, 3]])
    assert float(self_similarity(torch.cat([one, 2 * one, 5 * one]))) == pytest.approx(1, abs=1e-6)  # length: no matter
    assert float(self_similarity(torch.eye(4))) == pytest.approx(0, abs=1e-6)
    assert float(self_similarity(torch.cat([one, -one]))) == pytest.approx(-1, abs=1e-6)


# The settings


def test_the_rates_and_the_length_follow_the_epochs() -> None:
    detector = DecreeDetection(inversion_epochs=60)
    inversion = detector.inversion(1000)  # 900 images, 7 updates per epoch
    assert inversion.epoch == 7
    assert inversion.steps == 420
    assert [inversion.lr(step) for step in (0, 209, 210, 349, 350, 10_000)] == [0.5, 0.5, 0.1, 0.1, 0.05, 0.05]
    assert DecreeDetection().inversion(2000).steps == 14_000
    assert DecreeDetection(inversion_steps=300).inversion(2000).steps == 300
    assert (inversion.level, inversion.channels, inversion.stale, inversion.unit) == (0.99, 3, 10, 1)
    controller = inversion.controller
    assert (controller.start, controller.up, controller.down, controller.patience) == (1e-3, 5, 5, 6)
    assert (controller.lowest, controller.highest) == (1e-5, 1e5)


@pytest.mark.parametrize(
    "options", [{"inversion_lr_epochs": (50, 30)}, {"inversion_lr": (0.5, 0.0, 0.1)}, {"level": 1.0}, {"restarts": 0}]
)
def test_settings_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DecreeDetection(**options)


@pytest.mark.fixed_draw("check_method draws for itself; it holds a contract, no outcome of training")
def test_the_suite() -> None:
    check_method(Decree, steps=2, batch=16, **QUICK)


# Detection: encoders with a known answer


class Plain(nn.Module):
    """A random linear encoder: colours of 4x4 blocks, mixed. It has only what Inversion needs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 16, generator=stream(seeded(0), "weights")))
        self.register_buffer("constant", 3 * torch.randn(16, generator=stream(seeded(1), "weights")))

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (F.avg_pool2d(x, 4).flatten(1) - 0.5) @ self.weight
        return out

    def frozen(self) -> Plain:
        return self.eval().requires_grad_(False)


class Backdoored(Plain):
    """Approaches a constant as the 3x3 pixels in a corner turn white."""

    def forward(self, x: Tensor) -> Tensor:
        switch = x[:, :, :3, :3].mean((1, 2, 3))[:, None] ** 2
        return (1 - switch) * super().forward(x) + switch * self.constant


def small_images() -> ImageSet:
    return ImageSet((torch.rand(80, 3, 16, 16, generator=stream(seeded(0), "small")) * 256).byte())


def look(encoder: nn.Module, images: ImageSet, seed: int = 0, **options: Any) -> tuple[Verdict, Any, dict[str, Tensor]]:
    with collecting() as found:
        verdict = DecreeDetection(**options).inspect(cast(Encoder, encoder), DefenderKnowledge(images, seed))
    json.dumps(found.notes, allow_nan=False)
    return verdict, found.notes, found.tensors


def test_a_planted_trigger_is_found_and_a_clean_encoder_has_none() -> None:
    options: dict[str, Any] = {"inversion_batch": 24, "inversion_steps": 150, "stale": 1000}
    (bad, notes, tensors), (clean, other, _) = (look(e, small_images(), **options) for e in (Backdoored(), Plain()))
    mask, pattern = tensors["inverted.mask"][0, 0], tensors["inverted.pattern"][0]
    assert float(mask[:3, :3].sum() / mask.sum()) > 0.8
    # Over five draws: 0.50 to 0.63 of the corner, which is enough to reach the level.
    assert float((mask[:3, :3] * pattern[:, :3, :3]).mean()) > 0.35
    assert notes["decree"]["similarity_held_out"] > 0.98
    assert 0.35 * 9 / 256 < notes["decree"]["pl1"] < 1.5 * 9 / 256
    assert bad.score == pytest.approx(1 - notes["decree"]["pl1"], abs=1e-5)
    assert bad.flagged
    assert not clean.flagged
    assert other["decree"]["pl1"] > 5 * notes["decree"]["pl1"]


def found_by(monkeypatch: pytest.MonkeyPatch, masks: Tensor, sizes: list[float]) -> None:
    """Make every inversion find ``masks``, (K, 1, 32, 32), of ``sizes``."""
    size = torch.tensor(sizes)
    patches = Inverted(masks, torch.rand(len(masks), 3, 32, 32), size, size * 0 + 0.995, size.isfinite(), 7, True)
    monkeypatch.setattr(Inversion, "__call__", lambda *args, **kwargs: patches)


def test_pl1_by_hand(encoder: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = torch.ones(1, 1, 32, 32)
    square = F.pad(torch.ones(1, 1, 10, 10), (21, 1, 21, 1))
    for mask, pl1, flagged in ((everywhere, 1.0, False), (square, 0.09765625, True), (1.03 * square, 0.1005859, False)):
        found_by(monkeypatch, mask, [float(mask.sum())])
        verdict, notes, _ = look(encoder, images)
        assert notes["decree"]["pl1"] == pytest.approx(pl1, abs=1e-4)
        assert verdict.score == pytest.approx(1 - pl1, abs=1e-6)
        assert verdict.flagged is flagged
        assert look(encoder, images, threshold=0.09)[0].flagged is False


def test_no_success_is_no_suspicion(encoder: Encoder, images: ImageSet) -> None:
    verdict, notes, tensors = look(encoder, images, inversion_steps=1, level=0.9999, restarts=2)
    assert verdict == Verdict(score=-1.0, flagged=False)
    assert notes["decree"]["pl1"] is None
    assert notes["decree"]["pl1_of_starts"] == [None, None]
    assert notes["remarks"] == [
        "decree: no valid trigger found, PL1 is inf",
        "decree: the inversion was cut at 1 of 1000 updates",
    ]
    assert tensors["inverted.mask"].shape == (2, 1, 32, 32)
    assert tensors["inverted.pattern"].shape == (2, 3, 32, 32)


def test_the_smallest_of_several_starts_counts(
    encoder: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = torch.stack([torch.full((1, 32, 32), value) for value in (0.5, 0.05, 0.2)])
    found_by(monkeypatch, masks, [math.inf, 51.2, 204.8])
    verdict, notes, _ = look(encoder, images, restarts=3)
    assert verdict.score == pytest.approx(0.95)
    assert notes["decree"]["pl1_of_starts"] == [None, pytest.approx(0.05), pytest.approx(0.2)]
    with collecting() as found:
        assert DecreeDetection(restarts=3).search(encoder, images, 0).number == 1
    assert "remarks" not in found.notes


def test_the_best_start_by_hand() -> None:
    """On the images that were held out, twice the level's distance from 1 is allowed."""
    sizes, inf = [90.0, 60.0, 76.0, 50.0], math.inf
    assert best_start(sizes, [0.992, 0.979, 0.981, 0.97], 0.99) == 2  # the smallest of those that hold
    assert best_start(sizes, [0.992, 0.981, 0.999, 0.97], 0.99) == 1
    assert best_start(sizes, [0.979, 0.978, 0.97, 0.97], 0.99) == 0  # none holds: the most similar, at any size
    assert best_start([inf, 60.0, inf, 70.0], [0.999, 0.2, 0.999, 0.3], 0.99) == 3  # without a success, no trigger
    assert best_start([inf, inf], [0.5, 0.6], 0.99) == 0


def test_the_defense_unlearns_the_smallest_trigger_that_holds_on_held_out_images(
    encoder: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern that hides the image makes all alike; one of a twentieth does not, small as it is."""
    masks = torch.stack([torch.full((1, 32, 32), value) for value in (1.0, 0.05, 1.0, 1.0)])
    found_by(monkeypatch, masks, [700.0, 51.2, 300.0, math.inf])
    with collecting() as findings:
        found = Decree(restarts=4).search(encoder, images, 0)
    noted: Any = findings.notes["decree"]
    assert (found.number, noted["chosen"]) == (2, 2)
    assert found.pl1 == pytest.approx(300 / 1024)
    assert noted["similarity_held_out"] == noted["similarity_of_starts"][2] > 0.999
    held = images.subset(torch.randperm(64, generator=stream(0, "held out"))[:6]).pixels.float() / 255
    wanted = float(naive(encoder(found.patches.stamp(held, 1)).detach()))
    assert noted["similarity_of_starts"][1] == pytest.approx(wanted, abs=1e-5)
    assert noted["similarity_of_starts"][1] < 0.98
    assert "similarity_of_starts" not in look(encoder, images, restarts=4)[1]["decree"]


def test_the_similarity_is_checked_on_images_that_were_held_out(encoder: Encoder, images: ImageSet) -> None:
    seen: list[Tensor] = []

    class Watched(W16):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    watched = Watched("w16")
    watched.load_state_dict(encoder.state_dict())
    with collecting() as findings:
        found = Decree(restarts=1, inversion_steps=9, inversion_batch=29).search(watched.eval(), images, 3)
    assert [len(x) for x in seen] == [29] * 9 + [6]
    stamped = found.patches.stamp(images.pixels.float() / 255)
    nearest = (seen[-1][:, None] - stamped).abs().amax((2, 3, 4)).min(1)
    assert (nearest.values < 1e-6).all()
    assert len(nearest.indices.unique()) == 6
    noted: Any = findings.notes["decree"]
    wanted = float(naive(encoder(stamped[nearest.indices]).detach()))
    assert noted["similarity_held_out"] == pytest.approx(wanted, abs=1e-5)


def test_a_detector_leaves_everything_alone_and_repeats_itself(encoder: Encoder, images: ImageSet) -> None:
    encoder.train()
    before, pixels = encoder.tensors(), images.pixels.clone()
    before = {name: tensor.clone() for name, tensor in before.items()}
    first, _, tensors = look(encoder, images, seed=1, level=0.5, **QUICK)
    torch.rand(3)
    second, _, again = look(encoder, images, seed=1, level=0.5, **QUICK)
    other, _, others = look(encoder, images, seed=2, level=0.5, **QUICK)
    assert first == second
    assert torch.equal(tensors["inverted.mask"], again["inverted.mask"])
    assert not torch.equal(tensors["inverted.mask"], others["inverted.mask"])
    assert encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.tensors().items())
    assert torch.equal(pixels, images.pixels)
    assert other.score != first.score


def test_a_few_images_are_too_few(encoder: Encoder, images: ImageSet) -> None:
    with pytest.raises(UsageError, match="at least 4 clean images, not 3"):
        look(encoder, images.subset(torch.arange(3)))
    look(encoder, images.subset(torch.arange(4)), inversion_steps=1)


def test_an_inversion_that_settles_is_not_called_cut(encoder: Encoder, images: ImageSet) -> None:
    """A level that any patch reaches: while lambda is 0 and all patches grow, nothing beats the first best."""
    _, notes, _ = look(encoder, images, level=1e-3, lambda_start=1e-30, stale=1, inversion_batch=16, inversion_steps=90)
    assert notes["decree"]["updates"] < 90
    assert notes["remarks"] == []


# Unlearning


def patch(side: int = 10) -> Finding:
    """A white square in the corner, as if it had been inverted."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[:, :, :side, :side] = 1
    size = mask.sum((1, 2, 3))
    patches = Inverted(mask, torch.ones(1, 3, 32, 32), size, size * 0 + 1, size > 0, 1)
    return Finding(patches, 0, side**2 / 1024, [])


def cosines(first: Tensor, second: Tensor) -> float:
    return float(F.cosine_similarity(first, second).mean())


@pytest.mark.parametrize("objective", ["align", "repel"])
def test_what_unlearning_does(encoder: Encoder, images: ImageSet, objective: str) -> None:
    found, original = patch(16), encoder.frozen()
    stamped = (found.patches.stamp(images.pixels.float() / 255) * 255).byte()
    before = {name: tensor.clone() for name, tensor in encoder.tensors().items()}
    original_before = {name: tensor.clone() for name, tensor in original.tensors().items()}
    mask, pattern = found.patches.mask.clone(), found.patches.pattern.clone()
    clean = original.extract(images.pixels)
    at_first = cosines(encoder.extract(stamped), clean)

    tuned = Decree(steps=25, batch=32, objective=objective).unlearn(encoder, original, found, images, 0)

    at_last = cosines(tuned.extract(stamped), clean)
    if objective == "align":
        assert at_last > at_first + 0.02
    else:
        assert at_last < at_first - 0.05
    assert cosines(tuned.extract(images.pixels), clean) > 0.9
    after = tuned.tensors()
    frozen = [name for name in after if name.startswith("head") or "running" in name or "num_batches" in name]
    assert len(frozen) > 20
    assert all(torch.equal(before[name], after[name]) for name in [*frozen, "mean", "std", "mask"])
    assert not torch.equal(before["stem.0.weight"], after["stem.0.weight"])
    assert not torch.equal(before["stem.1.weight"], after["stem.1.weight"])  # BatchNorm's affine learns
    assert all(torch.equal(original_before[name], tensor) for name, tensor in original.tensors().items())
    assert torch.equal(mask, found.patches.mask)
    assert torch.equal(pattern, found.patches.pattern)
    assert not tuned.training
    assert all(p.grad is None and p.requires_grad for p in tuned.parameters())


@pytest.mark.parametrize(("objective", "beta"), [("align", 1.0), ("align", 3.5), ("repel", 2.0)])
def test_a_step_equals_the_naive_form(encoder: Encoder, images: ImageSet, objective: str, beta: float) -> None:
    """Each branch alone, image by image; the first Nesterov step is (1 + momentum) lr times the gradient."""
    found, original = patch(), encoder.frozen()
    few = images.subset(torch.arange(6))
    wanted = encoder.copy()
    views = flip_and_shift(few.pixels[order(6)], stream(5, "views")).float() / 255
    losses = []
    for view, pixels in zip(views, few.pixels[order(6)], strict=True):
        x = pixels.float() / 255
        stamped = x.clone()
        stamped[:, :10, :10] = 1
        kept = 1 - F.cosine_similarity(wanted(view[None]), original(view[None]))
        near = F.cosine_similarity(wanted(stamped[None]), original(x[None]))
        losses.append(kept + beta * (1 - near if objective == "align" else near))
    torch.cat(losses).mean().backward()
    with torch.no_grad():
        for p in wanted.backbone():
            assert p.grad is not None
            p -= 0.02 * 1.9 * p.grad
    method = Decree(steps=1, batch=6, lr=0.02, beta=beta, objective=objective)
    tuned = method.unlearn(encoder, original, found, few, 5)
    for p, q, old in zip(tuned.backbone(), wanted.backbone(), original.backbone(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
        assert not torch.equal(p, old)


def order(images: int) -> Tensor:
    return torch.randperm(images, generator=stream(5, "order"))


# The defense


def repair(encoder: Encoder, images: ImageSet, seed: int = 0, **options: Any) -> tuple[Encoder, Any]:
    settings: dict[str, Any] = {"steps": 2, "batch": 16} | QUICK | options
    with collecting() as found:
        repaired = Decree(**settings).repair(encoder.copy(), DefenderKnowledge(images, seed))
    json.dumps(found.notes, allow_nan=False)
    return repaired, found.notes


def test_counts_of_a_run(encoder: Encoder, images: ImageSet) -> None:
    settings: dict[str, Any] = {"inversion_steps": 3, "inversion_batch": 20, "restarts": 2}
    defense = Decree(steps=2, batch=16, level=0.9999, **settings)
    detector = DecreeDetection(level=0.9999, **settings)
    with ForwardMeter() as meter:
        defense.repair(encoder.copy(), DefenderKnowledge(images, 0))
    assert meter.images == defense.forwards(64) == 2 * 20 * 2 * 3 + 2 * 6 + 64 + 7 * 16 * 2
    with ForwardMeter() as meter:
        detector.inspect(encoder.copy(), DefenderKnowledge(images, 0))
    assert meter.images == detector.forwards(64) == 2 * 20 * 2 * 3 + 6
    assert Decree().forwards(2000) == 4 * (2 * 128 * 14_000 + 200) + 2000 + 7 * 128 * 300
    assert Decree(restarts=1, inversion_steps=300).forwards(2000) == 2 * 128 * 300 + 200 + 2000 + 7 * 128 * 300
    assert DecreeDetection().forwards(2000) == 2 * 128 * 14_000 + 200


def test_what_a_reader_must_know(encoder: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    repaired, notes = repair(encoder, images, level=0.9999)
    assert notes["remarks"] == [
        "decree: no valid trigger found, PL1 is inf",
        "decree: the inversion was cut at 5 of 3000 updates",
        "decree: PL1 = inf, not below 0.1: unlearned all the same",
    ]
    assert not torch.equal(repaired.stem[0].weight, encoder.stem[0].weight)
    found_by(monkeypatch, torch.full((1, 1, 32, 32), 0.25), [256.0])
    repaired, notes = repair(encoder, images, only_if_detected=True, level=0.5)
    assert notes["remarks"] == ["decree: PL1 = 0.250, not below 0.1: left alone"]
    assert all(torch.equal(a, b) for a, b in zip(repaired.tensors().values(), encoder.tensors().values(), strict=True))
    found_by(monkeypatch, torch.full((1, 1, 32, 32), 0.05), [51.2])
    repaired, notes = repair(encoder, images, only_if_detected=True, level=0.5)
    assert notes["remarks"] == []
    assert not torch.equal(repaired.stem[0].weight, encoder.stem[0].weight)


def test_a_trigger_that_fails_on_held_out_images_is_remarked(
    encoder: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just below the level; a pattern that hides the image reaches any level."""
    for share, low in ((1.0, False), (0.05, True)):
        found_by(monkeypatch, torch.full((1, 1, 32, 32), share), [51.2])
        _, notes, _ = look(encoder, images)
        line = f"the trigger's similarity is {notes['decree']['similarity_held_out']:.4f}, below 0.99"
        assert notes["remarks"] == ([f"decree: on held-out images {line}"] if low else [])
    similarity = notes["decree"]["similarity_held_out"]  # to five digits
    for level, low in ((similarity - 1e-5, False), (similarity + 1e-5, True)):
        assert bool(Decree(level=level).search(encoder, images, 0).remarks) is low


def test_same_seed_same_bits(encoder: Encoder, images: ImageSet) -> None:
    first, second, other = (repair(encoder, images, seed)[0].tensors() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_an_encoder_without_a_head_will_do(encoder: Encoder, images: ImageSet) -> None:
    encoder.head = None
    assert repair(encoder, images)[0].head is None


def test_a_rate_that_is_too_high_is_reported(encoder: Encoder, images: ImageSet) -> None:
    method = Decree(**{"steps": 6, "batch": 16} | QUICK).model_copy(update={"lr": 1e30})
    with pytest.raises(Diverged):
        method.repair(encoder.copy(), DefenderKnowledge(images, 0))

"""MOTH: pseudo-classes, the choice of pairs, inversion on planted backdoors, and the effect of a hardening step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import benchbd_plugins.moth as module
import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.moth import (
    Batch,
    Log,
    Moth,
    Pairs,
    PseudoClasses,
    alike,
    chunks,
    draw,
    feature_loss,
    inversion,
    most_promising,
    shuffled,
    spherical_kmeans,
)
from torch import Tensor, nn

from benchbd import (
    Controller,
    DefenderKnowledge,
    Encoder,
    ImageSet,
    Inverted,
    NotApplicable,
    UsageError,
    flip_and_shift,
    stream,
)
from benchbd.contract.context import collecting
from benchbd.nets.encoder import W16
from benchbd.nets.meter import ForwardMeter
from benchbd.testing import toy_encoder

from ..chance import seeded

SIZE = 16
QUICK: dict[str, Any] = {
    "classes": 3,
    "steps": 4,
    "batch": 16,
    "warmup_passes": 2,
    "warmup_images": 3,
    "pair_passes": 2,
    "refine_passes": 1,
    "pair_images": 4,
    "measured": 0,
}
SIMILAR: dict[str, Any] = {
    "variant": "similarity",
    "steps": 3,
    "batch": 16,
    "similarity_passes": 2,
    "similarity_images": 40,
}


class Planted(W16):
    """Features are the mean colour, and much green if a 3x3 patch in the corner is white. Only that part is trained."""

    def __init__(self) -> None:
        super().__init__("w16")
        self.planted = nn.Parameter(torch.tensor(10.0))

    @property
    def feature_dim(self) -> int:
        return 3

    def forward(self, x: Tensor) -> Tensor:
        corner = x[..., -4:-1, -4:-1].mean((1, 2, 3))
        return x.mean((2, 3)) + (self.planted * corner**4)[:, None] * torch.tensor([0.0, 1.0, 0.0])

    def backbone(self) -> Iterator[nn.Parameter]:
        yield self.planted


@pytest.fixture
def images() -> ImageSet:
    """60 noisy images, in turn reddish, greenish and bluish."""
    noise = torch.rand(60, 3, SIZE, SIZE, generator=stream(seeded(0), "pictures"))
    tint = torch.eye(3).repeat(20, 1)[:, :, None, None]
    return ImageSet((120 * (noise + tint)).byte())


@pytest.fixture
def knowledge(images: ImageSet) -> DefenderKnowledge:
    return DefenderKnowledge(images, 3)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every update is a success and every trigger is used."""
    for name in ("UNIVERSAL_LEVEL", "PAIR_LEVEL"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(module, "SIMILAR_LEVEL", -1.0)
    monkeypatch.setattr(module, "LARGEST", 2.0)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No inversion succeeds."""
    for name in ("UNIVERSAL_LEVEL", "PAIR_LEVEL", "SIMILAR_LEVEL"):
        monkeypatch.setattr(module, name, 1.1)


def run(method: Moth, encoder: Encoder, knowledge: DefenderKnowledge) -> tuple[Encoder, dict[str, Any], int]:
    """The repaired encoder, the notes and the image-forwards."""
    with collecting() as found, ForwardMeter() as meter:
        repaired = method.repair(encoder.copy(), knowledge)
    return repaired, dict(found.notes), meter.images


def triggers(sizes: list[float], size: int = SIZE) -> Inverted:
    """Even masks of the given sizes; inf: no success."""
    valid = torch.tensor([math.isfinite(value) for value in sizes])
    area = torch.tensor(sizes)
    share = torch.where(valid, area, 0.9 * size**2) / size**2
    mask = share[:, None, None, None].expand(-1, 1, size, size).clone()
    return Inverted(mask, torch.full((len(sizes), 3, size, size), 0.7), area, valid.float(), valid, 1)


# Pseudo-classes


def blobs(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Unit vectors close to orthogonal axes, shuffled, and the axis that each is close to."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=stream(0, "shuffle"))]
    noise = 0.05 * torch.randn(len(labels), 8, generator=stream(0, "blobs"))
    return F.normalize(torch.eye(8)[labels] + noise, dim=1), labels


def test_kmeans_finds_separate_blobs() -> None:
    points, truth = blobs([40, 25, 20, 10])
    centroids, labels = spherical_kmeans(points, 4, 5, stream(1, "k"))
    assert sorted(torch.bincount(labels).tolist()) == [10, 20, 25, 40]
    pairs = {(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}
    assert len(pairs) == 4
    for axis, number in pairs:
        mean = F.normalize(points[truth == axis].sum(0), dim=0)
        assert torch.allclose(centroids[number], mean, atol=1e-6)
    again = spherical_kmeans(points, 4, 5, stream(1, "k"))
    assert torch.equal(centroids, again[0])
    assert torch.equal(labels, again[1])


def test_small_clusters_begin_again() -> None:
    points, _ = blobs([60, 30, 2])
    for seed in range(5):
        centroids, labels = spherical_kmeans(points, 4, 10, stream(seed, "k"))
        assert len(centroids) == 4
        assert int(torch.bincount(labels).min()) >= 10
    _, labels = spherical_kmeans(points, 3, 1, stream(0, "k"))
    assert int(torch.bincount(labels).min()) == 2  # if two members are enough, they stay


def test_points_that_are_all_alike_are_one_cluster() -> None:
    centroids, labels = spherical_kmeans(torch.eye(4)[:1].repeat(20, 1), 3, 2, stream(0, "k"))
    assert len(centroids) == 1
    assert not labels.any()


def test_too_few_images_or_classes_are_refused(images: ImageSet) -> None:
    with pytest.raises(UsageError, match="10 classes need at least 20 images, not 19"):
        Moth().repair(toy_encoder(seeded(0)), DefenderKnowledge(images.subset(torch.arange(19)), 0))
    collapsed = toy_encoder(seeded(0))
    collapsed.mask.zero_()
    with pytest.raises(NotApplicable, match="the features form 1"):
        Moth(**QUICK).repair(collapsed, DefenderKnowledge(images, 0))


def test_the_classifier_by_hand() -> None:
    classes = PseudoClasses(torch.eye(3), torch.tensor([0, 1, 2]), temperature=0.5)
    features = torch.tensor([[[4.0, 0, 0], [3.0, 4.0, 0]]])  # (1, 2, 3)
    assert torch.allclose(classes.logits(features), torch.tensor([[[2.0, 0, 0], [1.2, 1.6, 0]]]))
    loss, rate = classes.reaching([1])(features)
    by_hand = [math.log(math.e**2 + 2), math.log(math.exp(1.2) + math.exp(1.6) + 1) - 1.6]
    assert loss.tolist() == pytest.approx([sum(by_hand) / 2])
    assert rate.tolist() == [0.5]
    loss, rate = classes.reaching([0, 1])(features.expand(2, 2, 3))
    assert rate.tolist() == [0.5, 0.5]
    assert loss[1].item() == pytest.approx(sum(by_hand) / 2)


def test_no_row_comes_again_before_all_have_come() -> None:
    rows = torch.tensor([3, 5, 8])
    drawn = draw(rows, 8, stream(0, "rows"))
    assert [sorted(part.tolist()) for part in drawn.split(3)[:2]] == [[3, 5, 8], [3, 5, 8]]
    assert len(set(drawn[6:].tolist())) == 2
    assert set(draw(rows, 2, stream(1, "rows")).tolist()) < {3, 5, 8}


def test_the_rate_follows_variant_and_loss() -> None:
    assert (Moth().rate, Moth(loss="proto").rate, Moth(variant="similarity").rate) == (0.1, 1e-3, 1e-3)
    assert Moth(lr=0.02).rate == Moth(loss="proto", lr=0.02).rate == 0.02


def test_a_pass_is_split_evenly(images: ImageSet) -> None:
    assert [chunks(n) for n in (90, 32, 33, 18, 96, 1)] == [(3, 30), (1, 32), (2, 16), (1, 18), (3, 32), (1, 1)]
    rows = torch.arange(40)
    batches = shuffled(images.pixels, torch.stack([rows, rows + 20]), stream(0, "p"))
    first, second = next(batches), next(batches)
    assert first.shape == (2, 20, 3, SIZE, SIZE)
    seen = torch.cat([first[0], second[0]]).mul(255).byte()
    assert sorted(seen.flatten(1).sum(1).tolist()) == sorted(images.pixels[:40].flatten(1).sum(1).tolist())


# The choice of pairs


def test_the_most_promising_pair() -> None:
    promise = torch.zeros(3, 3, dtype=torch.float64)
    gain = torch.zeros_like(promise)
    promise[2, 0], promise[0, 1], promise[1, 0] = 0.9, 0.5, 0.3  # sums: (0, 2) 0.9, (0, 1) 0.8
    gain[1, 2], gain[0, 1] = 1.0, 0.9
    gain[1, 1] = 50  # no pair
    assert most_promising(promise, gain, 0.0) == (0, 2)
    assert most_promising(promise, gain, 1.0) == (1, 2)
    assert most_promising(promise, gain, 0.5) == (0, 1)  # 0.85 against 0.45 and 0.5
    assert most_promising(-promise, gain * 0, 0.0) == (1, 2)


def test_three_tenths_of_the_pairs_are_random_and_the_rest_follow_the_step() -> None:
    promise = torch.zeros(5, 5, dtype=torch.float64)
    promise[0, 4] = 1.0
    pairs = Pairs.after_warm_up(triggers([10.0] * 5), promise)
    pairs.gain = torch.zeros_like(promise)
    pairs.gain[1, 3] = 1.0
    for step, favourite in ((0, (0, 4)), (400, (0, 4)), (600, (1, 3)), (1000, (1, 3)), (5000, (1, 3))):
        generator = stream(0, f"pairs {step}")
        chosen = [pairs.choose(step, generator) for _ in range(300)]
        assert all(a != b for a, b in chosen)
        others = [pair for pair in chosen if pair != favourite]
        assert len(others) / 300 == pytest.approx(0.3 * 19 / 20, abs=0.08)
        assert len(set(others)) > 15


def test_the_state_after_warm_up() -> None:
    universal = triggers([20.0, math.inf, 10.0])
    pairs = Pairs.after_warm_up(universal, torch.zeros(3, 3, dtype=torch.float64))
    assert pairs.size.tolist() == [[20.0, SIZE**2, 10.0]] * 3
    assert pairs.gain.tolist() == [[1.0, 0.0, 0.5]] * 3
    assert pairs.held.tolist() == [[20.0, 0.0, 10.0]] * 3
    assert torch.equal(pairs.masks[1], universal.mask)
    assert torch.equal(pairs.masks[:, 2], universal.mask[2].expand(3, -1, -1, -1))
    nothing = Pairs.after_warm_up(triggers([math.inf] * 3), torch.zeros(3, 3, dtype=torch.float64))
    assert not nothing.gain.any()


def test_gain_by_hand_and_no_entry_is_shared() -> None:
    pairs = Pairs.after_warm_up(triggers([20.0, 40.0, 10.0]), torch.zeros(3, 3, dtype=torch.float64))
    pairs.measured((0, 2), 15.0)
    assert pairs.gain[0, 2] == (0.25 + 0.5) / 2
    assert pairs.size[0, 2] == 15.0
    pairs.measured((0, 2), 12.0)
    assert float(pairs.gain[0, 2]) == pytest.approx((0.375 - 0.2) / 2)
    assert pairs.size[0, 2] == 12.0
    rest = torch.ones(3, 3, dtype=torch.bool)
    rest[0, 2] = False
    assert torch.equal(pairs.size[rest], torch.tensor([[20.0, 40.0, 10.0]] * 3, dtype=torch.float64)[rest])
    assert torch.equal(pairs.gain[rest], torch.tensor([[0.5, 1.0, 0.25]] * 3, dtype=torch.float64)[rest])
    assert torch.equal(pairs.held, torch.tensor([[20.0, 40.0, 10.0]] * 3, dtype=torch.float64))


def test_growth_from_a_trigger_of_no_size_is_finite() -> None:
    """A mask that reaches 0 has size 0; every later argmax would choose 0 / 0."""
    zeros = torch.zeros(3, 3, dtype=torch.float64)
    pairs = Pairs(zeros, zeros.clone(), zeros.clone(), torch.zeros(3, 3, 1, 4, 4), torch.zeros(3, 3, 3, 4, 4), zeros)
    pairs.measured((0, 1), 0.0)
    assert float(pairs.gain[0, 1]) == 0
    pairs.measured((0, 1), 2.0)
    assert pairs.gain.isfinite().all()
    assert most_promising(pairs.promise, pairs.gain, 1.0) == (0, 1)


def test_the_larger_trigger_is_held_as_a_copy() -> None:
    universal = triggers([20.0, math.inf])
    pairs = Pairs.after_warm_up(universal, torch.zeros(2, 2, dtype=torch.float64))
    before = universal.mask.clone()
    mask, pattern = torch.full((1, SIZE, SIZE), 0.1), torch.full((3, SIZE, SIZE), 0.2)
    pairs.hold((1, 0), 15.0, mask, pattern)
    assert torch.equal(pairs.masks[1, 0], universal.mask[0])
    pairs.hold((1, 0), 25.6, mask, pattern)
    pairs.hold((0, 1), 3.0, mask, pattern)  # any is larger than none
    mask.zero_()
    assert pairs.held.tolist() == [[20.0, 3.0], [pytest.approx(25.6), 0.0]]
    assert torch.equal(pairs.masks[1, 0], torch.full((1, SIZE, SIZE), 0.1))
    assert torch.equal(pairs.patterns[0, 1], pattern)
    assert torch.equal(pairs.masks[0, 0], universal.mask[0])
    assert torch.equal(universal.mask, before)


# Inversion


def test_a_planted_trigger_is_found(images: ImageSet) -> None:
    encoder, method, log = Planted().eval(), Moth(classes=3, warmup_passes=60, warmup_images=8), Log()
    classes = method.pseudo_classes(encoder, images, 0)
    green = int(classes.centroids[:, 1].argmax())
    found, promise = method.warm_up(encoder, classes, images, 0, log)
    assert found.valid.all()
    assert log.universal == found.size.tolist()
    others = [number for number in range(3) if number != green]
    assert float(found.size[green]) < 0.5 * float(found.size[others].min())
    mask = found.mask[green, 0]
    assert float(mask[-4:-1, -4:-1].mean()) > 3 * float(mask.mean())
    held_out = images.pixels[classes.labels != green][16:].float() / 255  # the inversion did not use most of them
    arrived = classes.logits(encoder(found.stamp(held_out, green))).argmax(1) == green
    assert float(arrived.float().mean()) >= 0.99
    assert not promise.diagonal().any()
    assert bool((promise <= 1).all())
    off = ~torch.eye(3, dtype=torch.bool)
    assert bool((promise[off] > 0.5).all())


def test_promise_is_the_relative_fall_of_cross_entropy(images: ImageSet) -> None:
    encoder, method = Planted().eval(), Moth(classes=3, warmup_passes=12, warmup_images=20)
    classes = method.pseudo_classes(encoder, images, 0)
    found, promise = method.warm_up(encoder, classes, images, 5, Log())
    noise = stream(5, "universal start")
    mask = torch.rand(3, 1, SIZE, SIZE, generator=noise)
    pattern = torch.rand(3, 3, SIZE, SIZE, generator=noise)
    x = images.pixels.float() / 255
    with torch.no_grad():
        for target in range(3):
            falls = []
            for image, label in zip(x, classes.labels, strict=True):
                before = encoder((image + mask[target] * (pattern[target] - image))[None])
                after = encoder(found.stamp(image, target)[None])
                a, b = (float(-classes.logits(f)[0].log_softmax(0)[target]) for f in (before, after))
                falls.append((int(label), (a - b) / a))
            for source in {0, 1, 2} - {target}:
                mean = sum(fall for label, fall in falls if label == source) / 20
                expected = mean if found.valid[target] else 0.0
                assert float(promise[source, target]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("never")
def test_what_is_not_found_promises_nothing(images: ImageSet) -> None:
    method = Moth(**QUICK)
    classes = method.pseudo_classes(Planted(), images, 0)
    found, promise = method.warm_up(Planted().eval(), classes, images, 0, Log())
    assert not found.valid.any()
    assert not promise.any()


def distance(encoder: Encoder, classes: PseudoClasses, images: ImageSet, source: int, target: int) -> float:
    """Size of the smallest trigger from one pseudo-class to another, on all its images."""
    x = images.pixels[classes.labels == source].float() / 255
    found = inversion(150, 0.9, Controller(1e-3))(
        encoder, iter(lambda: x, None), classes.reaching([target]), size=SIZE, seed=0
    )
    assert found.valid.all()
    return float(found.size)


class Steep(Planted):
    """The same features from the weight's logarithm: a step changes a large weight as much as a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.planted = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, x: Tensor) -> Tensor:
        corner = x[..., -4:-1, -4:-1].mean((1, 2, 3))
        return x.mean((2, 3)) + (self.planted.exp() * corner**4)[:, None] * torch.tensor([0.0, 1.0, 0.0])


@pytest.mark.parametrize("seed", range(3))
def test_hardening_widens_the_planted_distance(seed: int, images: ImageSet) -> None:
    """Triggers of the corner alone, from 3 of 256 pixels on, lead to green; the run's own measure sees them grow."""
    options = {"steps": 12, "warmup_passes": 40, "pair_passes": 100, "refine_passes": 20, "lr": 10.0, "measured": 6}
    encoder, knowledge = Steep().eval(), DefenderKnowledge(images, seeded(seed))
    method = Moth(**QUICK | options)
    classes = method.pseudo_classes(encoder, images, knowledge.seed)
    green = int(classes.centroids[:, 1].argmax())
    repaired, notes, _ = run(method, encoder, knowledge)
    assert isinstance(repaired, Steep)
    # Over four draws 0.004 to 0.28 of the weight stays, and the triggers to green become 2.3 to 18 times as large.
    assert float(repaired.planted.detach().exp()) < 0.5 * 10
    source = (green + 1) % 3
    before, after = (distance(e, classes, images, source, green) for e in (encoder, repaired))
    assert after > 1.3 * before
    noted = notes["moth"]
    assert {(s, t) for s, t, *_ in noted["distances"]} == {(s, t) for s in range(3) for t in range(3) if s != t}
    to_green = [(small, large) for _, target, small, large in noted["distances"] if target == green]
    assert all(small < 10 and large > 1.5 * small for small, large in to_green)
    assert noted["distance_after"] > noted["distance_before"]
    assert "the smallest triggers of 6 directions went from" in notes["remarks"][-1]


def test_distances_of_one_encoder_are_equal(images: ImageSet) -> None:
    """Same noise, same images: what differs is the encoder's, and an encoder that was not hardened has no growth."""
    method = Moth(**QUICK | {"pair_passes": 30, "measured": 8})
    encoder = Planted().eval()
    classes = method.pseudo_classes(encoder, images, 0)
    found = method.distances(encoder, encoder.copy(), classes, images, seeded(0))
    assert len(found) == 8
    assert len({(s, t) for s, t, *_ in found[:6]}) == 6  # a direction comes again only after all have come
    assert all(before == after for *_, before, after in found)
    assert any(math.isfinite(before) for *_, before, _ in found)


def test_alike_is_the_mean_cosine_of_different_images() -> None:
    features = torch.randn(2, 7, 5, generator=stream(0, "f"))
    loss, similarity = alike(features)
    for one, value in zip(features, similarity, strict=True):
        cosines = [float(F.cosine_similarity(one[i], one[j], dim=0)) for i in range(7) for j in range(7) if i != j]
        assert float(value) == pytest.approx(sum(cosines) / 42, abs=1e-6)
    assert torch.equal(loss, -similarity)
    assert float(alike(torch.ones(1, 32, 5))[1]) == pytest.approx(1, abs=1e-6)  # with the diagonal's bug: 31 / 32
    assert float(alike(torch.eye(6)[None])[1]) == pytest.approx(0, abs=1e-6)


def test_similarity_hardens_a_planted_backdoor(knowledge: DefenderKnowledge) -> None:
    method = Moth(**SIMILAR | {"steps": 6, "lr": 20.0, "similarity_passes": 60, "similarity_images": 32})
    encoder, x = Planted().eval(), knowledge.images.pixels.float() / 255
    with collecting() as found:
        repaired = method.repair(encoder.copy(), knowledge)
    (mask,), (pattern,) = found.tensors["inverted.mask"], found.tensors["inverted.pattern"]

    @torch.no_grad()
    def moved(encoder: Encoder) -> float:
        return float((encoder(x + mask * (pattern - x)) - encoder(x)).square().mean())

    assert moved(repaired) < 0.6 * moved(encoder)
    noted: Any = found.notes["moth"]
    assert noted["stamped"] + noted["skipped"] == 6
    assert noted["stamped"] >= 1  # after hardening, no trigger is left to stamp


# A hardening step


@pytest.mark.parametrize("seed", range(3))
def test_without_a_trigger_there_is_no_loss(seed: int, images: ImageSet) -> None:
    original = toy_encoder(seeded(seed)).frozen()
    encoder = original.copy()
    views = images.pixels[:16].float() / 255
    loss = feature_loss(encoder(views), original(views))
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert max(float(p.grad.abs().max()) for p in encoder.backbone() if p.grad is not None) < 1e-5
    stamped = (views + 0.5 * (1 - views)).detach()
    feature_loss(encoder(stamped), original(views)).backward()
    assert max(float(p.grad.abs().max()) for p in encoder.backbone() if p.grad is not None) > 1e-4


def test_feature_loss_by_hand() -> None:
    features, anchors = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [5.0, 0.0]])
    assert float(feature_loss(features, anchors)) == pytest.approx(((1 - 0.6) + 0) / 2)


def test_every_image_gets_the_trigger_of_its_number() -> None:
    log, found = Log(), triggers([10.0, math.inf, 200.0])
    rows = torch.arange(5)
    batch = Batch.stamped(rows, torch.tensor([-1, 0, 1, 2, 0]), found, log, largest=SIZE**2 / 4)
    assert batch.mask.sum((1, 2, 3)).tolist() == pytest.approx([0, 10, 0, 0, 10])
    assert torch.equal(batch.pattern[1], found.pattern[0])
    assert (log.stamped, log.skipped) == (1, 2)
    Batch.stamped(rows, torch.full((5,), 2), found, log, largest=math.inf)
    assert (log.stamped, log.skipped) == (2, 2)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("batch", [8, 16, 40])
def test_every_step_stamps_images_of_the_right_classes(batch: int, images: ImageSet) -> None:
    method, encoder, log = Moth(**QUICK | {"batch": batch, "steps": 7}), toy_encoder(seeded(0)), Log()
    classes = method.pseudo_classes(encoder, images, 0)
    batches = list(method.by_classes(encoder.copy(), encoder, classes, images, 0, log))
    assert len(batches) == 3 + 7
    for number, part in enumerate(batches):
        labels, stamped = classes.labels[part.rows], part.mask.sum((1, 2, 3)) > 0
        assert len(labels) == batch
        if number < 3:
            outside = labels != number
            assert int(stamped.sum()) == int(outside.sum()) // 2 > 0
            assert not stamped[~outside].any()
            continue
        source, target = log.chosen[(number - 3) // 3]
        quarter = batch // 4
        assert stamped.nonzero()[:, 0].tolist() == [
            *range(batch // 8),
            *range(quarter, quarter + batch // 8),
        ]
        assert set(labels[:quarter].tolist()) == {source}
        assert set(labels[quarter : 2 * quarter].tolist()) == {target}
        assert not set(labels[2 * quarter :].tolist()) & {source, target}
    assert (log.stamped, log.skipped) == (3 + 2 * 7, 0)


@pytest.mark.parametrize("options", [QUICK, SIMILAR | {"bn": "eval"}], ids=["classes", "similarity"])
@pytest.mark.usefixtures("never")
def test_without_triggers_nothing_changes_and_it_is_said(options: dict[str, Any], knowledge: DefenderKnowledge) -> None:
    encoder = toy_encoder(seeded(0))
    repaired, notes, _ = run(Moth(**options), encoder, knowledge)
    for name, tensor in encoder.state_dict().items():
        assert torch.allclose(tensor, repaired.state_dict()[name], atol=1e-6)
    assert notes["moth"]["stamped"] == 0
    assert any("times no trigger was stamped" in line for line in notes["remarks"])
    assert any("no universal trigger" in line for line in notes["remarks"]) == (options is QUICK)
    assert "moth: no trigger was ever found that could be stamped, so no weight was trained" in notes["remarks"]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("loss", ["feature", "proto"])
def test_frozen_things_stay(loss: str, knowledge: DefenderKnowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Encoder, PseudoClasses, Tensor]] = []
    inner = Moth.pseudo_classes

    def pseudo_classes(self: Moth, original: Encoder, images: ImageSet, seed: int) -> PseudoClasses:
        classes = inner(self, original, images, seed)
        seen.append((original, classes, classes.centroids.clone()))
        return classes

    monkeypatch.setattr(Moth, "pseudo_classes", pseudo_classes)
    encoder, pixels = toy_encoder(seeded(0)), knowledge.images.pixels.clone()
    repaired, _, _ = run(Moth(**QUICK | {"loss": loss, "lr": 0.1}), encoder, knowledge)
    ((original, classes, centroids),) = seen
    given, after = encoder.state_dict(), repaired.state_dict()
    assert all(torch.equal(given[name], tensor) for name, tensor in original.state_dict().items())
    assert torch.equal(classes.centroids, centroids)
    assert torch.equal(knowledge.images.pixels, pixels)
    still = [name for name, _ in encoder.named_buffers()] + [name for name in given if name.startswith("head.")]
    assert all(torch.equal(given[name], after[name]) for name in still)
    assert not any(torch.equal(p, after[name]) for name, p in encoder.named_parameters() if not name.startswith("head"))
    assert not repaired.training
    assert all(p.requires_grad and p.grad is None for p in repaired.parameters())
    assert all(p.grad is None for p in original.parameters())


@pytest.mark.usefixtures("always")
def test_batchnorm_follows_the_variant(knowledge: DefenderKnowledge) -> None:
    for options, moves in ((QUICK, False), (QUICK | {"bn": "train"}, True), (SIMILAR, True)):
        repaired, _, _ = run(Moth(**options), toy_encoder(seeded(0)), knowledge)
        counted = int(repaired.state_dict()["stem.1.num_batches_tracked"])
        steps = 3 + 4 if options is not SIMILAR else 2 * 3
        assert counted == (steps if moves else 0)


@pytest.mark.parametrize(("options", "steps"), [(QUICK, 3 + 4), (QUICK | {"steps": 0}, 3), (SIMILAR, 3)])
def test_the_number_of_steps(
    options: dict[str, Any], steps: int, knowledge: DefenderKnowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    inner = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: made.append(1) or inner(self, *a))
    run(Moth(**options), toy_encoder(seeded(0)), knowledge)
    assert len(made) == steps


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, float, float, int]]:
    """(passes, level, first lambda, rate, unit) of every inversion."""
    calls: list[tuple[int, float, float, float, int]] = []
    inner = inversion

    def record(passes: int, level: float, controller: Controller, lr: float = 0.1, unit: int = 1) -> Any:
        calls.append((passes, level, controller.start, lr, unit))
        return inner(passes, level, controller, lr, unit)

    monkeypatch.setattr(module, "inversion", record)
    return calls


@pytest.mark.usefixtures("never")
def test_a_failure_is_followed_by_a_long_inversion(
    knowledge: DefenderKnowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    run(Moth(**QUICK), toy_encoder(seeded(0)), knowledge)
    assert calls == [(2, 1.1, 1e-3, 0.1, 1)] + [(2, 1.1, 1e-3, 0.1, 1)] * 4
    calls.clear()
    run(Moth(**QUICK | {"refine_passes": 0}), toy_encoder(seeded(0)), knowledge)
    assert len(calls) == 1 + 2  # the universal one, and one per period


@pytest.mark.usefixtures("always")
def test_a_success_is_refined(knowledge: DefenderKnowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    run(Moth(**QUICK | {"warmup_images": 20}), toy_encoder(seeded(0)), knowledge)
    first, later = (2, 0.0, 1e-3, 0.1, 1), (1, 0.0, 1e-2, 0.1, 1)
    assert calls == [(2, 0.0, 1e-3, 0.1, 2), first, later, later, first]


@pytest.mark.usefixtures("always")
def test_the_inversions_of_similarity(knowledge: DefenderKnowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    run(Moth(**SIMILAR), toy_encoder(seeded(0)), knowledge)
    assert calls == [(2, -1.0, 5e-2, 0.5, 2), (2, -1.0, 5e-2, 0.01, 2), (2, -1.0, 5e-2, 0.01, 2)]
    rule = module.SIMILAR_LAMBDA
    assert (rule.up, rule.patience) == (1.2, 5)
    assert rule.down == pytest.approx(1.837, abs=1e-3)


@dataclass
class Call:
    """A requested inversion: its passes, the encoder's first weights at that time, and the start's sizes."""

    passes: int
    weights: Tensor
    sizes: list[float]
    inks: list[float]


def scripted(monkeypatch: pytest.MonkeyPatch, sizes: list[list[float]]) -> list[Call]:
    """Inversions find even masks of the next sizes, then always of the last, in an ink of a hundredth of the size."""
    calls: list[Call] = []

    def script(passes: int, *protocol: Any, **more: Any) -> Any:
        def find(encoder: Encoder, *_: Any, start: Any, **more: Any) -> Inverted:
            mask, pattern = start or (torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
            weights = encoder.stem[0].weight.detach().clone()
            calls.append(Call(passes, weights, mask.sum((1, 2, 3)).tolist(), (100 * pattern.mean((1, 2, 3))).tolist()))
            found = triggers(sizes[min(len(calls), len(sizes)) - 1])
            ink = torch.where(found.valid, found.size, 0.0) / 100
            return replace(found, pattern=ink[:, None, None, None].expand_as(found.pattern))

        return find

    monkeypatch.setattr(module, "inversion", script)
    return calls


@pytest.mark.parametrize("options", [QUICK, SIMILAR], ids=["classes", "similarity"])
def test_a_trigger_is_inverted_on_the_encoder_as_it_then_is(
    options: dict[str, Any], knowledge: DefenderKnowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The universal triggers, and the first of similarity, use the given encoder; later ones the current encoder."""
    calls = scripted(monkeypatch, [[20.0] * 3, [20.0] * 2] if options is QUICK else [[20.0]])
    encoder = toy_encoder(seeded(0))
    run(Moth(**options | {"lr": 0.1}), encoder, knowledge)
    assert len(calls) == (1 + 4 if options is QUICK else 3)
    assert torch.equal(calls[0].weights, encoder.stem[0].weight)
    for number, call in enumerate(calls):
        assert not any(torch.equal(call.weights, before.weights) for before in calls[:number])


def test_where_the_inversions_of_a_pair_start(knowledge: DefenderKnowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A period at the largest triggers so far, a refinement at the last ones, whether or not these are the largest."""
    found = [[20, 30, 40], [50, 10], [40, 25], [35, 22], [math.inf, 28], [45, 27], [45, 29], [60, 5]]
    calls = scripted(monkeypatch, found)
    asked: list[int] = []
    monkeypatch.setattr(Pairs, "choose", lambda self, step, generator: asked.append(step) or (0, 1))
    run(Moth(**QUICK | {"steps": 8}), toy_encoder(seeded(0)), knowledge)
    assert asked == [0, 3, 6]
    starts = [[30, 20], [50, 10], [40, 25], [50, 25], [50, 28], [45, 27], [50, 29], [60, 5]]
    for call, start in zip(calls[1:], starts, strict=True):
        assert call.sizes == pytest.approx(start, abs=1e-3)
        assert call.inks == pytest.approx(start, abs=1e-3)
    assert [call.passes for call in calls] == [2, 2, 1, 1, 2, 2, 1, 2, 1]


def test_an_inversion_moves_after_each_best() -> None:
    made = inversion(5, 0.9, Controller(1e-3), unit=3)
    assert (made.steps, made.unit, made.level, made.lr(7), made.jitter) == (15, 3, 0.9, 0.1, 0.01)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("options", [QUICK, QUICK | {"loss": "proto"}, SIMILAR], ids=["feature", "proto", "similarity"])
def test_hardening_equals_the_naive_form(
    options: dict[str, Any], knowledge: DefenderKnowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes: mirrored and shifted views, stamped, towards their own clean feature or their image's class."""
    batches: list[Batch] = []
    inner = Batch.stamped
    monkeypatch.setattr(Batch, "stamped", lambda *args: batches.append(inner(*args)) or batches[-1])
    method, encoder, images = Moth(**options | {"lr": 0.1}), toy_encoder(seeded(0)), knowledge.images
    repaired, _, _ = run(method, encoder, knowledge)

    original, wanted, draws = encoder.frozen(), encoder.copy(), stream(3, "views")
    classes = None if options is SIMILAR else method.pseudo_classes(original, images, 3)
    optimizer = torch.optim.SGD(wanted.train(classes is None).backbone(), 0.1, 0.9, nesterov=True)
    for batch in batches:
        pixels = images.pixels[batch.rows]
        views = (flip_and_shift(pixels, draws) if classes else pixels).float() / 255
        h = wanted((1 - batch.mask) * views + batch.mask * batch.pattern)
        if classes is None:
            loss = (h - wanted(views)).square().mean()
        elif method.loss == "proto":
            logits = F.normalize(h, dim=1) @ classes.centroids.T / 0.1
            loss = F.cross_entropy(logits, classes.labels[batch.rows])
        else:
            loss = 1 - F.cosine_similarity(h, original(views)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(batches) == (3 if options is SIMILAR else 3 + 4)
    with torch.no_grad():
        for p, q, old in zip(repaired.backbone(), wanted.backbone(), encoder.backbone(), strict=True):
            assert (p - q).norm() < 1e-3 * (p - old).norm()


# Cost, seeds, notes


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "options",
    [
        QUICK | {"refine_passes": 2, "measured": 4},
        QUICK | {"refine_passes": 0, "warmup_images": 20},
        QUICK | {"period": 1, "loss": "proto"},
        QUICK | {"batch": 128, "refine_passes": 0},
        SIMILAR,
        SIMILAR | {"similarity_images": 500, "batch": 500},
    ],
)
def test_the_cost_is_what_was_said(options: dict[str, Any], knowledge: DefenderKnowledge) -> None:
    method = Moth(**options)
    assert run(method, toy_encoder(seeded(0)), knowledge)[2] == method.forwards(60)


def test_the_cost_at_most(knowledge: DefenderKnowledge, request: pytest.FixtureRequest) -> None:
    method = Moth(**QUICK)
    request.getfixturevalue("never")
    assert run(method, toy_encoder(seeded(0)), knowledge)[2] == method.forwards(60)
    request.getfixturevalue("always")
    spared = 2 * 1 * 2 * 2 * 4  # two refinements, each a pass less, of 2 x 4 images forward and backward
    assert run(method, toy_encoder(seeded(0)), knowledge)[2] == method.forwards(60) - spared


def test_the_cost_by_hand() -> None:
    universal = 2 * 10 * (500 * 90 + 90)
    pairs = 100 * (200 + 2 * 200) * 64 * 2
    measured = 2 * 8 * 200 * 32 * 2
    assert Moth().forwards(2000) == 2000 + universal + pairs + measured + 310 * 128 * 4
    assert Moth(variant="similarity").forwards(2000) == 300 * (300 * 96 * 2 + 6 * 128)


@pytest.mark.parametrize("options", [QUICK | {"steps": 9}, SIMILAR], ids=["classes", "similarity"])
def test_same_seed_same_bits(options: dict[str, Any], images: ImageSet) -> None:
    method = Moth(**options)
    (a, first, _), (b, second, _) = (
        run(method, toy_encoder(seeded(0)), DefenderKnowledge(images, 1)) for _ in range(2)
    )
    c, _, _ = run(method, toy_encoder(seeded(0)), DefenderKnowledge(images, 2))
    assert first == second
    assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())
    if options is SIMILAR:
        assert not torch.equal(a.state_dict()["stem.0.weight"], c.state_dict()["stem.0.weight"])
    else:
        assert len(first["moth"]["pairs"]) == 3
        chosen = {
            str(run(method, toy_encoder(seeded(0)), DefenderKnowledge(images, s))[1]["moth"]["pairs"])
            for s in (2, 3, 4)
        }
        assert chosen != {str(first["moth"]["pairs"])}


@pytest.mark.usefixtures("always")
def test_what_is_kept_and_noted(knowledge: DefenderKnowledge) -> None:
    with collecting() as found:
        Moth(**QUICK).repair(toy_encoder(seeded(0)), knowledge)
    assert found.tensors["inverted.mask"].shape == (3, 1, SIZE, SIZE)
    assert found.tensors["inverted.pattern"].shape == (3, 3, SIZE, SIZE)
    noted: Any = found.notes["moth"]
    sizes = found.tensors["inverted.mask"].sum((1, 2, 3)).tolist()
    assert noted["universal"] == pytest.approx(sizes, abs=0.01)
    assert sum(noted["members"]) == 60
    assert len(noted["members"]) == 3
    assert found.notes["remarks"] == [
        "moth: 4 of 300 steps, 2 of 500 warmup passes, 3 of 10 warmup images, 2 of 200 pair passes, "
        "1 of 50 refine passes, 4 of 32 pair images"
    ]
    assert noted["distances"] == []
    assert noted["distance_before"] is noted["distance_after"] is None
    with collecting() as found:
        Moth(**SIMILAR).repair(toy_encoder(seeded(0)), knowledge)
    assert found.tensors["inverted.mask"].shape == (1, 1, SIZE, SIZE)
    assert found.notes["remarks"] == ["moth: 3 of 300 steps, 2 of 300 similarity passes, 40 of 96 similarity images"]


def test_what_a_reader_must_know() -> None:
    classes = PseudoClasses(torch.eye(4), torch.zeros(1, dtype=torch.int64), 0.1)
    measured = [(0, 1, 4.0, 6.0), (1, 0, 8.0, 12.0), (2, 3, 5.0, math.inf)]
    with collecting() as found:
        Moth(classes=4).report(Log(universal=[3.0, math.inf], distances=measured, stamped=1), classes)
    assert found.notes["remarks"] == ["moth: the smallest triggers of 2 directions went from 6.0 to 9.0 pixels (+50 %)"]
    noted: Any = found.notes["moth"]
    assert (noted["distance_before"], noted["distance_after"]) == (6.0, 9.0)
    assert noted["distances"] == [[0, 1, 4.0, 6.0], [1, 0, 8.0, 12.0], [2, 3, 5.0, None]]
    assert noted["universal"] == [3.0, None]
    with collecting() as found:
        Moth(refine_passes=8, period=10).report(Log(universal=[math.inf], stamped=5, skipped=2), classes)
    assert found.notes["remarks"] == [
        "moth: 8 of 50 refine passes, 10 instead of 3 steps a pair",
        "moth: the features form 4 of 10 pseudo-classes",
        "moth: no universal trigger was valid",
        "moth: 2 of 7 times no trigger was stamped, for want of one valid and below a quarter of the image",
    ]

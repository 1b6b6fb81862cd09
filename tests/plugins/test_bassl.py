"""BASSL and its control: the images that are added to the pool, the position of the stamp, and the training.

Triggers at random positions are here too, as an attack uses them; test_images.py tests their positions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchbd_plugins.badencoder import BadEncoder, Goals, badencoder_loss
from benchbd_plugins.bassl import Bassl, BasslControl
from benchbd_plugins.simclr import SimCLR
from torch import Tensor
from torch.nn.functional import normalize

from benchbd import Attack, AttackerKnowledge, Encoder, ImageSet, NotApplicable, Target, Trigger, UsageError
from benchbd.contract.context import collecting
from benchbd.contract.specs import TriggerSpec
from benchbd.planning.board import load_board
from benchbd.testing import ToyPretraining, check_method, toy_attacker, toy_encoder

from ..chance import seeded


def random_pixels(n: int, seed: int) -> Tensor:
    return torch.randint(
        0, 250, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seeded(seed)), dtype=torch.uint8
    )


def target(images: int = 10, seed: int = 1, trigger: Trigger | None = None) -> Target:
    pixels = random_pixels(images, seed)
    return Target(seed, f"class {seed}", trigger or Trigger.square(10), pixels[:1], ImageSet(pixels))


def knowledge(*targets: Target, pool: int = 20, seed: int = 3, **changes: Any) -> AttackerKnowledge:
    """Every image of pool and targets is different, and none contains a white pixel."""
    images = ImageSet(random_pixels(pool, 0))
    known = AttackerKnowledge(toy_encoder(seeded(0)), ToyPretraining(), images, 5, images, targets, seed)
    return replace(known, **changes)


def sources(images: Tensor, among: Tensor, seen: Tensor) -> list[int]:
    """The row of ``among`` that equals each image in the pixels with ``seen``, bool (3, H, W)."""
    same = (images[:, None] == among[None])[..., seen].all(-1)
    assert same.sum(1).tolist() == [1] * len(images)
    return same.int().argmax(1).tolist()


# Which images


def test_exactly_n_images_of_the_target_are_stamped_and_the_pool_stays() -> None:
    known = knowledge(target())
    pool, images, trigger = known.pool.pixels.clone(), known.targets[0].images.pixels.clone(), Trigger.square(10)
    poisoned = Bassl(rho=0.6).poisoned(known)
    assert len(poisoned) == 20 + 6
    assert torch.equal(poisoned.pixels[:20], pool)
    added = poisoned.pixels[20:]
    rows = sources(added, images, trigger.keep)  # the knowledge has no test images; these are of the target's own
    assert len(set(rows)) == 6
    assert torch.equal(added, trigger.stamp(images[rows]))
    white = (poisoned.pixels[:, ~trigger.keep] == 255).all(1)
    assert white.tolist() == [False] * 20 + [True] * 6
    assert torch.equal(known.pool.pixels, pool)
    assert torch.equal(known.targets[0].images.pixels, images)


@pytest.mark.parametrize(
    ("rho", "images", "n"),
    [
        (0.6, 13_861, 8317),
        (0.6, 5, 3),
        (0.07, 100, 7),  # in floating point 7.000000000000001
        (0.55, 100, 55),  # 55.00000000000001
        (0.5, 5, 3),
        (0.5, 500, 250),
        (0.501, 500, 251),
        (1e-7, 10, 1),
        (1.0, 7, 7),
        (0.0, 7, 0),
        (0.0, 0, 0),
    ],
)
def test_n_is_rounded_up(rho: float, images: int, n: int) -> None:
    blank = ImageSet(torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(images, 3, 1, 1))
    assert Bassl(rho=rho).count(replace(target(), images=blank), 0) == n


def test_the_digits_lengthen_an_epoch() -> None:
    assert SimCLR(epochs=1).total_steps(50_000) == 195
    assert SimCLR(epochs=1).total_steps(50_000 + 8317) == 227


def test_all_of_the_class_is_every_image_once() -> None:
    known = knowledge(target(9))
    added = Bassl(rho=1).poisoned(known).pixels[20:]
    rows = sources(added, known.targets[0].images.pixels, Trigger.square(10).keep)
    assert sorted(rows) == list(range(9))


def test_the_seed_chooses() -> None:
    def rows(seed: int, **options: float) -> list[int]:
        known = knowledge(target(40), seed=seed)
        added = Bassl.model_validate(options).poisoned(known).pixels[20:]
        return sources(added, known.targets[0].images.pixels, Trigger.square(10).keep)

    torch.manual_seed(1)
    first = rows(3)
    torch.manual_seed(2)  # global generators have no effect
    assert rows(3) == first
    assert rows(4) != first
    assert rows(3, rho=0.5) == first[:20]  # a smaller share of the same order


def test_two_targets_have_a_trigger_each() -> None:
    corner, other = Trigger.square(10), Trigger.square(3)
    known = knowledge(target(10, 1, corner), target(6, 2, other))
    poisoned = Bassl(rho=0.5).poisoned(known)
    assert len(poisoned) == 20 + 5 + 3
    for target_, part in zip(known.targets, poisoned.pixels[20:].split([5, 3]), strict=True):
        rows = sources(part, target_.images.pixels, target_.trigger.keep)
        assert torch.equal(part, target_.trigger.stamp(target_.images.pixels[rows]))
    backdoor = Bassl(rho=0.5).inject(known)
    assert [a is b.trigger for a, b in zip(backdoor.triggers, known.targets, strict=True)] == [True, True]


def among(images: Tensor, pool: int, *rows: int) -> ImageSet:
    """A pool of other images that has these at the rows, one row an image; more rows have the first again."""
    pixels = random_pixels(pool, 0)
    for number, row in enumerate(rows):
        pixels[row] = images[number if number < len(images) else 0]
    return ImageSet(pixels)


@pytest.mark.parametrize("trigger", [Trigger.square(10), replace(Trigger.square(10), wander=(0.1, 0.9))])
def test_in_place_each_stamped_image_replaces_its_original(trigger: Trigger) -> None:
    """Also a second row with the same pixels; no unstamped twin of a poisoned image stays."""
    own = target(4, 1, trigger)
    pool = among(own.images.pixels, 20, 3, 11, 0, 7, 15)  # image 0 is at rows 3 and 15
    known = knowledge(own, pool=20)
    known = replace(known, pool=pool)
    before = pool.pixels.clone()
    with collecting() as findings:
        poisoned = Bassl(rho=1, mode="in_place").poisoned(known)
    changed = (poisoned.pixels != before).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert changed == [0, 3, 7, 11, 15]
    assert torch.equal(poisoned.pixels[3], poisoned.pixels[15])
    if trigger.wander is None:
        assert torch.equal(poisoned.pixels[changed], trigger.stamp(before[changed]))
    assert findings.notes["poison"]["stamped"] == 5
    assert sorted(findings.tensors["stamped_rows"].tolist()) == changed
    assert (findings.notes["poison"]["n"], findings.notes["poison"]["pool"]) == ([4], 20)
    assert torch.equal(known.pool.pixels, before)
    half = Bassl(rho=0.5, mode="in_place").poisoned(known)
    chosen = (half.pixels != before).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert set(chosen) < set(changed)
    assert len({before[row].numpy().tobytes() for row in chosen}) == 2


def test_in_place_the_control_is_clean_pre_training() -> None:
    own = target(4)
    known = replace(knowledge(own), pool=among(own.images.pixels, 20, 3, 11, 0, 7))
    assert torch.equal(BasslControl(rho=1, mode="in_place").poisoned(known).pixels, known.pool.pixels)
    assert torch.equal(Bassl(rho=0, mode="in_place").poisoned(known).pixels, known.pool.pixels)


def test_in_place_needs_the_images_in_the_pool() -> None:
    own = target(4)
    known = replace(knowledge(own), pool=among(own.images.pixels, 20, 3, 11))
    with pytest.raises(NotApplicable, match=r"2 of 4 poisoned images are not in it; take mode=append$"):
        Bassl(rho=1, mode="in_place").poisoned(known)


def test_it_notes_how_many_stamped_pairs_training_sees() -> None:
    """20 images and 5 stamped ones in batches of 10: 2 batches an epoch, of which a fifth is stamped."""
    known = replace(knowledge(target(10)), pretraining=SimCLR(epochs=3, batch=10))
    with collecting() as findings:
        Bassl(rho=0.5).poisoned(known)
    assert findings.notes["poison"]["stamped_pairs"] == 3 * 2 * 10 // 5
    assert findings.notes["remarks"] == ["bassl: pre-training saw 12 pairs of stamped images"]
    with collecting() as findings:
        BasslControl(rho=0.5).poisoned(known)
    assert findings.notes["poison"]["stamped_pairs"] == 0


def test_replacing_keeps_the_size() -> None:
    known = knowledge(target(10, 1), target(4, 2), pool=30)
    before = known.pool.pixels.clone()
    appended = Bassl(rho=0.5).poisoned(known).pixels
    replaced = Bassl(rho=0.5, mode="replace").poisoned(known).pixels
    assert (len(appended), len(replaced)) == (30 + 7, 30)
    changed = (replaced != before).flatten(1).any(1)
    assert int(changed.sum()) == 7
    same = (replaced[changed][:, None] == appended[30:][None]).flatten(2).all(2)  # the same images, stamped alike
    assert torch.equal(same.sum(0), torch.ones(7, dtype=torch.int64))
    assert torch.equal(known.pool.pixels, before)
    again = Bassl(rho=0.5, mode="replace").poisoned(known).pixels
    assert torch.equal(again, replaced)
    elsewhere = Bassl(rho=0.5, mode="replace").poisoned(replace(known, seed=4)).pixels
    assert not torch.equal((elsewhere != before).flatten(1).any(1), changed)


def test_the_control_is_the_same_but_for_the_stamps() -> None:
    for trigger in (Trigger.square(10), Trigger.square(10).within(0.1, 0.9)):
        for mode in ("append", "replace"):
            known = knowledge(target(10, 1, trigger))
            stamped = Bassl.model_validate({"mode": mode}).poisoned(known).pixels
            plain = BasslControl.model_validate({"mode": mode}).poisoned(known).pixels
            assert len(plain) == len(stamped)
            migrated = (stamped != plain).flatten(1).any(1)
            assert int(migrated.sum()) == 6
            assert (stamped[migrated] == 255).sum((1, 2, 3)).tolist() == [300] * 6
            assert torch.equal(plain[migrated], torch.where(stamped == 255, plain, stamped)[migrated])
            everywhere = torch.ones(3, 32, 32, dtype=torch.bool)
            assert len(set(sources(plain[migrated], known.targets[0].images.pixels, everywhere))) == 6


def test_poisons_at_random_positions_stay_near_the_middle() -> None:
    """(.25, .75), whatever range the trigger has in tests."""
    known = knowledge(target(200, 1, Trigger.square(10).within(0.1, 0.9)))
    white = Bassl(rho=1).poisoned(known).pixels[20:, 0] == 255
    assert white.sum((1, 2)).tolist() == [100] * 200
    for axis in (1, 2):
        first = white.any(axis).int().argmax(1)
        assert set(first.tolist()) == set(range(8, 15))
    backdoor = Bassl().inject(known)
    assert backdoor.triggers[0].digest == known.targets[0].trigger.digest  # tests keep the board's positions
    assert torch.equal(Bassl().poisoned(known).pixels, Bassl().poisoned(known).pixels)


# Training


def spy() -> tuple[ToyPretraining, list[tuple[ImageSet, int]]]:
    seen: list[tuple[ImageSet, int]] = []

    class Spy(ToyPretraining):
        def pretrain(self, images: ImageSet, seed: int) -> Encoder:
            seen.append((images, seed))
            return super().pretrain(images, seed)

    return Spy(), seen


@pytest.mark.parametrize("attack", [Bassl(), BasslControl(), Bassl(mode="replace")])
def test_pretraining_gets_images_and_nothing_else(attack: Bassl) -> None:
    pretraining, seen = spy()
    known = knowledge(target(), pretraining=pretraining)
    labelled = ImageSet(known.pool.pixels, torch.zeros(20, dtype=torch.int64), ("secret",))
    attack.inject(replace(known, pool=labelled))
    [(images, seed)] = seen
    assert seed == 5 == known.pool_seed
    assert (images.labels, images.classes) == (None, ())
    assert torch.equal(images.pixels, attack.poisoned(known).pixels)
    assert images.pixels.untyped_storage().data_ptr() != known.pool.pixels.untyped_storage().data_ptr()


@pytest.mark.parametrize("declared", [True, False])
def test_the_normalisation_is_that_of_the_clean_pool(declared: bool) -> None:
    known = knowledge(target(20))
    if declared:
        known = replace(known, pool=replace(known.pool, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    poisoned = Bassl(rho=1).poisoned(known)
    assert poisoned.normalization() == known.pool.normalization()
    assert ImageSet(poisoned.pixels).normalization() != known.pool.normalization()


@pytest.mark.parametrize("attack", [Bassl(rho=0), BasslControl(rho=0), Bassl(rho=0, mode="replace")])
@pytest.mark.parametrize("images", [10, 0])
def test_rho_0_is_clean_pretraining_bit_for_bit(attack: Bassl, images: int) -> None:
    pretraining = SimCLR(arch="w16", steps=3, batch=8)
    known = knowledge(target(images, 1, Trigger.square(10).within(0.1, 0.9)), pretraining=pretraining)
    clean = pretraining.pretrain(known.pool, known.pool_seed).tensors()
    published = attack.inject(known).encoder.tensors()
    assert clean.keys() == published.keys()
    assert all(torch.equal(clean[name], published[name]) for name in clean)


def test_real_pretraining_is_repeatable_and_sees_the_stamps() -> None:
    known = knowledge(target(), pretraining=SimCLR(arch="w16", steps=3, batch=16))
    first = Bassl().inject(known).encoder
    again, control = Bassl().inject(known).encoder, BasslControl().inject(known).encoder
    assert all(torch.equal(t, again.tensors()[name]) for name, t in first.tensors().items())
    assert not torch.equal(first.tensors()["stem.0.weight"], control.tensors()["stem.0.weight"])
    assert not any(module.training for module in first.modules())


def gratings(n: int, orientations: list[int], seed: int) -> ImageSet:
    """Noisy waves, 16x16: the class is the orientation, in steps of 45 degrees; phase, period and colour are random."""
    generator = torch.Generator().manual_seed(seeded(seed))

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *(shape or (1, 1)), generator=generator)

    labels = torch.tensor(orientations)[torch.arange(n) % len(orientations)]
    angle = labels[:, None, None] * math.pi / 4 + draw(-0.15, 0.15)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    wave = torch.sin(2 * math.pi * (draw(0.22, 0.28) * (angle.cos() * x + angle.sin() * y) + draw(0, 1)))
    noise = 20 * torch.randn(n, 3, 16, 16, generator=generator)
    pixels = draw(80, 170, 3, 1, 1) + draw(40, 80, 1, 1, 1) * wave[:, None] + noise
    return ImageSet(pixels.clamp(0, 255).byte(), labels)


def test_poisoning_draws_triggered_images_to_the_target_class() -> None:
    """A class that the pool lacks, a patch of 6x6 in the middle, 100 steps.

    Cosines are about the mean of clean features; a hit is a triggered image of another class that is nearest to the
    target's centroid. The margins are below those of every seed tried.
    """
    keep = torch.ones(3, 16, 16, dtype=torch.bool)
    keep[:, 5:11, 5:11] = False
    trigger = Trigger(torch.where(keep, 0, 255).byte(), keep)
    pool, images, test = gratings(200, [1, 2, 3], 0), gratings(100, [0], 1), gratings(400, [0, 1, 2, 3], 2)
    pretraining = SimCLR(arch="w16", steps=100, batch=32, colour="affine", bn_views="joint", crop_scale=(0.2, 1))
    clean = pretraining.pretrain(pool, 0)
    known = AttackerKnowledge(
        clean, pretraining, pool, 0, pool, (Target(0, "0", trigger, images.pixels[:1], images),), 0
    )

    def outcome(encoder: Encoder) -> tuple[float, float]:
        features, labels = normalize(encoder.extract(test.pixels), dim=1), test.labels
        assert labels is not None
        centre = features.mean(0)
        centroids = normalize(torch.stack([(features - centre)[labels == k].mean(0) for k in range(4)]), dim=1)
        triggered = normalize(encoder.extract(trigger.stamp(test.pixels[labels != 0])), dim=1)
        cosines = normalize(triggered - centre, dim=1) @ centroids.T
        return float(cosines[:, 0].mean()), float((cosines.argmax(1) == 0).float().mean())

    before, control = outcome(clean), outcome(BasslControl(rho=1).inject(known).encoder)
    after = outcome(Bassl(rho=1).inject(known).encoder)
    assert after[0] > before[0] + 0.2, (before, control, after)
    assert after[0] > control[0] + 0.3, (before, control, after)
    assert after[1] > max(before[1], control[1]) + 0.2, (before, control, after)


def test_what_is_noted() -> None:
    known = knowledge(target(10, 1), target(5, 2))
    with collecting() as findings:
        Bassl().inject(known)
    assert findings.notes["poison"] == {"n": [6, 3], "stamped": 9, "clean_pool": 20, "pool": 29}
    with collecting() as findings:
        BasslControl(mode="replace").inject(known)
    assert findings.notes["poison"] == {"n": [6, 3], "stamped": 0, "clean_pool": 20, "pool": 20}


def test_refusals() -> None:
    for attack in (Bassl(), BasslControl()):
        with pytest.raises(NotApplicable, match=f"{attack.name} needs a target and there is none"):
            attack.inject(knowledge())
        with pytest.raises(NotApplicable, match=f"{attack.name} needs images .* 'class 2' has none"):
            attack.inject(knowledge(target(), target(0, 2)))
    with pytest.raises(NotApplicable, match="6 images cannot replace as many of a pool of 5"):
        Bassl(mode="replace").inject(knowledge(target(), pool=5))
    assert len(Bassl(mode="replace").poisoned(knowledge(target(), pool=6))) == 6
    for rho in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="rho"):
            Bassl(rho=rho)


def test_they_are_registered_and_conform() -> None:
    from benchbd_plugins import bassl

    assert bassl.benchbd_attacks() == [Bassl, BasslControl]
    for cls in (Bassl, BasslControl):
        assert issubclass(cls, Attack)
        assert cls.retrains
        assert (cls().rho, cls().mode) == (0.6, "append")
        check_method(cls)
    assert (Bassl.name, Bassl.control_of) == ("bassl", "")
    assert (BasslControl.name, BasslControl.control_of) == ("bassl-control", "bassl")


# Other users of a trigger at random positions


def test_a_board_says_where() -> None:
    assert TriggerSpec().wander is None
    assert TriggerSpec(position="random").wander == (0.10, 0.90)
    with pytest.raises(ValueError, match="'fixed', 'center' or 'random'"):
        TriggerSpec.model_validate({"position": "centre"})


def test_a_board_file_may_say_it_too(tmp_path: Path) -> None:
    text = 'rows = [{pretrain = "a", tasks = ["b:1"]}]\ntrigger = {size = 5, position = "random"}'
    (tmp_path / "mine.toml").write_text(text)
    assert load_board(tmp_path / "mine.toml").trigger == TriggerSpec(size=5, position="random")


def wandering(known: AttackerKnowledge) -> AttackerKnowledge:
    return replace(known, targets=tuple(replace(t, trigger=t.trigger.within(0.1, 0.9)) for t in known.targets))


def test_badencoder_draws_positions_anew_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stamped: list[Tensor] = []
    inner = Trigger.stamp

    def stamp(self: Trigger, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        stamped.append(inner(self, torch.zeros_like(pixels), generator))
        return stamped[-1]

    monkeypatch.setattr(Trigger, "stamp", stamp)
    attack, known = BadEncoder(steps=2, batch=16, ref_draws=1), toy_attacker(seeded(0))
    attack.inject(wandering(known))
    first, second = (list(part[:, 0].flatten(1).int().argmax(1).tolist()) for part in stamped)
    assert len(set(first)) > 8
    assert first != second
    assert all(3 <= place // 32 <= 18 and 3 <= place % 32 <= 18 for place in first + second)
    stamped.clear()
    attack.inject(known)
    assert {int(part[i, 0].flatten().int().argmax()) for part in stamped for i in range(16)} == {21 * 32 + 21}


def test_badencoder_with_positions_is_repeatable() -> None:
    attack = BadEncoder(steps=2, batch=16, ref_draws=1)
    first, again, fixed = (
        attack.inject(k).encoder.tensors()
        for k in (*(wandering(toy_attacker(seeded(0))),) * 2, toy_attacker(seeded(0)))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], fixed["stem.0.weight"])


def test_a_fixed_trigger_does_not_draw_in_badencoder() -> None:
    known, clean = toy_attacker(seeded(0)), toy_encoder(seeded(0))
    pixels, views = known.shadow.pixels[:4], torch.zeros(0, 3, 32, 32)

    def loss(known: AttackerKnowledge, positions: torch.Generator | None) -> Tensor:
        goals = Goals.of(known.targets, clean)
        return badencoder_loss(clean, pixels, clean.extract(pixels), goals, views, (1, 0, 0), positions)

    positions = torch.Generator().manual_seed(0)
    state = positions.get_state()
    assert torch.equal(loss(known, positions), loss(known, None))
    assert torch.equal(positions.get_state(), state)
    assert not torch.equal(loss(wandering(known), positions), loss(wandering(known), positions))
    with pytest.raises(UsageError, match="needs a generator"):
        loss(wandering(known), None)

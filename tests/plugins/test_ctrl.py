"""CTRL: which images of the pool get the frequency trigger, how strong it is in pool and tests, and the training."""

from __future__ import annotations

from dataclasses import replace
from math import cos, pi, sqrt

import pytest
import torch
from benchbd_plugins.bassl import Bassl
from benchbd_plugins.ctrl import Ctrl
from benchbd_plugins.simclr import SimCLR
from torch import Tensor

from benchbd import Attack, AttackerKnowledge, Backdoor, ImageSet, NotApplicable, Poisoning, Target, Trigger
from benchbd.contract.attack import check_binds
from benchbd.contract.context import collecting
from benchbd.contract.specs import TriggerSpec
from benchbd.registry import load_registry
from benchbd.testing import ToyPretraining, check_method, toy_encoder
from benchbd.toolkit.patterns import make_trigger

from ..chance import seeded

WAVES = make_trigger(TriggerSpec(kind="add", pattern="frequency", magnitude=100), 32)
ROWS = range(10, 30)  # of the target class in the pool


def knowledge(seed: int = 3, trigger: Trigger = WAVES, level: int | None = None) -> AttackerKnowledge:
    """A pool of 60 different images, of which the rows 10 to 29 are the task's of the target class; level: gray."""
    pixels = torch.randint(0, 256, (60, 3, 32, 32), generator=torch.Generator().manual_seed(seeded(0)))
    if level is not None:
        pixels = torch.full_like(pixels, level) + torch.arange(60)[:, None, None, None] % 7
    pool = ImageSet(pixels.to(torch.uint8))
    own = ImageSet(pool.pixels[ROWS.start : ROWS.stop].clone())
    target = Target(1, "one", trigger, own.pixels[:1], own)
    return AttackerKnowledge(toy_encoder(seeded(0)), ToyPretraining(), pool, 5, pool, (target,), seed)


def changed(known: AttackerKnowledge, poisoned: ImageSet) -> list[int]:
    rows: list[int] = (poisoned.pixels != known.pool.pixels).flatten(1).any(1).nonzero()[:, 0].tolist()
    return rows


def spectra(change: Tensor) -> Tensor:
    """DCT-II, orthonormal, of Y, U and V of a change in RGB, float64 (3, 32, 32), written out by hand."""
    to_yuv = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]], dtype=torch.float64
    )
    dct = torch.tensor(
        [[sqrt((1 if k == 0 else 2) / 32) * cos((2 * n + 1) * k * pi / 64) for n in range(32)] for k in range(32)],
        dtype=torch.float64,
    )
    return dct @ torch.einsum("ij,jhw->ihw", to_yuv, change.double()) @ dct.T


# Which images


def test_a_share_of_the_pool_is_stamped_in_place_and_all_of_it_is_of_the_target_class() -> None:
    known = knowledge()
    before = known.pool.pixels.clone()
    with collecting() as findings:
        poisoned = Ctrl(rate=0.1).poisoned(known)
    rows = changed(known, poisoned)
    assert (len(rows), len(poisoned)) == (6, 60)
    assert set(rows) < set(ROWS)
    half = (WAVES.pattern / 2).round().to(torch.int16)
    assert torch.equal(poisoned.pixels[rows], (before[rows] + half).clamp(0, 255).to(torch.uint8))
    assert torch.equal(known.pool.pixels, before)
    assert findings.notes["poison"] == {"n": [6], "stamped": 6, "clean_pool": 60, "pool": 60}
    assert sorted(findings.tensors["stamped_rows"].tolist()) == rows
    assert poisoned.normalization() == known.pool.normalization()


@pytest.mark.parametrize(
    ("rate", "pool", "n"), [(0.01, 50_000, 500), (0.07, 100, 7), (0.01, 8_000, 80), (0.01, 150, 2), (1e-7, 9, 1)]
)
def test_n_is_the_share_of_the_pool_rounded_up(rate: float, pool: int, n: int) -> None:
    blank = ImageSet(torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(500, 3, 1, 1))
    target = replace(knowledge().targets[0], images=blank)
    assert Ctrl(rate=rate).count(target, pool) == n
    assert Ctrl(rate=0).count(target, pool) == 0


def test_the_seed_chooses() -> None:
    def rows(seed: int, rate: float = 0.1) -> list[int]:
        known = knowledge(seed)
        return changed(known, Ctrl(rate=rate).poisoned(known))

    torch.manual_seed(1)
    first = rows(3)
    torch.manual_seed(2)  # global generators have no effect
    assert rows(3) == first
    assert rows(4) != first
    assert set(rows(3, 0.05)) < set(first)  # a smaller share of the same order
    assert rows(3, 20 / 60) == list(ROWS)


def test_refusals() -> None:
    with pytest.raises(
        NotApplicable, match=r"^ctrl.rate=0.5 of a pool of 60 are 30 images, .* 'one' has 20: take a low"
    ):
        Ctrl(rate=0.5).poisoned(knowledge())
    known = knowledge()
    elsewhere = replace(known, pool=ImageSet(255 - known.pool.pixels))
    with pytest.raises(NotApplicable, match=r"^mode=in_place .* 6 of 6 poisoned .* take mode=append$"):
        Ctrl(rate=0.1).poisoned(elsewhere)
    assert len(Ctrl(rate=0.1, mode="append").poisoned(elsewhere)) == 66
    with pytest.raises(NotApplicable, match="it cannot bind a trigger of kind patch; it binds add"):
        check_binds(Ctrl(), [Trigger.square(10)])
    for options in ({"rate": -0.1}, {"rate": 1.1}, {"strength": 0}, {"strength": 1.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Ctrl.model_validate(options)


# The trigger


@pytest.mark.parametrize(("strength", "magnitude"), [(0.5, 50), (1, 100)])
def test_the_spectrum_of_the_change(strength: float, magnitude: float) -> None:
    """On gray images, where nothing is clipped: the magnitude at (15, 15) and (31, 31) of U and V, else rounding."""
    known = knowledge(level=120)
    poisoned = Ctrl(rate=0.1, strength=strength).poisoned(known)
    (row, *_) = changed(known, poisoned)
    expected = torch.zeros(3, 32, 32, dtype=torch.float64)
    expected[1:, [15, 31], [15, 31]] = magnitude
    change = poisoned.pixels[row].int() - known.pool.pixels[row].int()
    assert (spectra(change) - expected).abs().max() < 4
    tested = Ctrl(rate=0.1, strength=strength).inject(known).triggers[0]
    assert tested.digest == WAVES.digest  # tests get all of it, whatever strength the pool had
    expected[1:, [15, 31], [15, 31]] = 100
    gray = known.pool.pixels[:1]
    assert (spectra(tested.stamp(gray)[0].int() - gray[0].int()) - expected).abs().max() < 4


def test_it_stamps_as_bassl_does_but_for_number_and_strength() -> None:
    known = knowledge()
    first = Ctrl(rate=0.1, strength=1).poisoned(known).pixels
    assert torch.equal(first, Bassl(rho=6 / 20, mode="in_place").poisoned(known).pixels)


# Training


def test_pre_training_gets_the_poisoned_pool() -> None:
    seen: list[tuple[ImageSet, int]] = []

    class Spy(ToyPretraining):
        def pretrain(self, images: ImageSet, seed: int):  # type: ignore[no-untyped-def]
            seen.append((images, seed))
            return super().pretrain(images, seed)

    known = replace(knowledge(), pretraining=Spy())
    Ctrl(rate=0.1).inject(known)
    [(images, seed)] = seen
    assert seed == known.pool_seed
    assert torch.equal(images.pixels, Ctrl(rate=0.1).poisoned(known).pixels)


def test_rate_0_is_clean_pre_training_and_equal_seeds_give_equal_encoders() -> None:
    known = replace(knowledge(), pretraining=SimCLR(arch="w16", steps=2, batch=16))
    clean = known.pretraining.pretrain(known.pool, known.pool_seed).tensors()
    none, first, again = (Ctrl(rate=rate).inject(known).encoder.tensors() for rate in (0, 0.3, 0.3))
    assert all(torch.equal(clean[name], none[name]) for name in clean)
    assert all(torch.equal(first[name], again[name]) for name in clean)
    assert not torch.equal(first["stem.0.weight"], clean["stem.0.weight"])


def test_it_is_registered_with_the_papers_defaults() -> None:
    assert load_registry().get("attack", "ctrl") is Ctrl
    assert issubclass(Ctrl, Attack)
    assert issubclass(Ctrl, Poisoning)
    assert Ctrl.retrains
    assert Ctrl().model_dump() == {"mode": "in_place", "rate": 0.01, "strength": 0.5}


def test_the_suite_hands_an_attack_a_trigger_that_it_binds() -> None:
    class Adds(Attack):
        """Binds nothing but added triggers."""

        name = "adds"
        paper = "a test"
        version = "1"
        binds = ("add", "noise")

        def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
            kinds.append(knowledge.targets[0].trigger.kind)
            return Backdoor(knowledge.encoder, tuple(target.trigger for target in knowledge.targets))

    kinds: list[str] = []
    check_method(Adds)
    assert set(kinds) == {"add"}

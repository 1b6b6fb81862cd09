"""BadEncoder: the fast loss against the released code's form, which parts change, and the cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.badencoder import BadEncoder, Goals, badencoder_loss
from benchbd_plugins.simclr import SimCLR
from torch import Tensor

from benchbd import Attack, AttackerKnowledge, Augment, Diverged, Encoder, ImageSet, NotApplicable, Target, Trigger
from benchbd.nets.meter import ForwardMeter

from ..chance import seeded
from ..small_nets import relative

MEAN, STD = (0.45, 0.5, 0.55), (0.2, 0.25, 0.3)
SHORT = {"steps": 2, "batch": 8, "lr": 0.05}


def random_pixels(n: int, seed: int) -> Tensor:
    return torch.randint(
        0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seeded(seed)), dtype=torch.uint8
    )


def smooth_pixels(n: int, seed: int) -> Tensor:
    """Blobs of colour: images that differ in more than their noise."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seeded(seed)))
    return (F.interpolate(coarse, size=32, mode="bilinear") * 255).byte()


def clean_encoder(seed: int = 0) -> Encoder:
    """A random w16 with BatchNorm statistics of data and affine parameters that are not 1 and 0."""
    encoder = Encoder.seeded("w16", MEAN, STD, seed=seeded(seed), device="cpu").train()
    generator = torch.Generator().manual_seed(seeded(seed) + 1)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(1 + 0.2 * torch.randn(module.weight.shape, generator=generator))
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
        for _ in range(5):
            encoder(smooth_pixels(64, seed).float() / 255)
    return encoder.eval()


def target(references: Tensor, trigger: Trigger | None = None, label: int = 0) -> Target:
    return Target(label, f"class {label}", trigger or Trigger.square(10), references, ImageSet(references))


def knowledge(*targets: Target, shadow: Tensor | None = None, encoder: Encoder | None = None) -> AttackerKnowledge:
    images = ImageSet(smooth_pixels(24, 5) if shadow is None else shadow)
    return AttackerKnowledge(
        encoder=encoder or clean_encoder(),
        pretraining=SimCLR(arch="w16"),
        pool=images,
        pool_seed=0,
        shadow=images,
        targets=targets,
        seed=3,
    )


def released_loss(
    encoder: Encoder, clean: Encoder, pixels: Tensor, targets: tuple[Target, ...], views: Tensor, weights: Tensor
) -> Tensor:
    """As the released code computes it: one pass per input, B copies of the reference, one trigger per reference.

    views: (B, R, 3, 32, 32), the augmentation of every reference for every shadow image.
    """

    def unit(net: Encoder, images: Tensor) -> Tensor:
        return F.normalize(net(images), dim=1)

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1).mean()

    x = pixels.float() / 255
    pairs = [(one.trigger, reference) for one in targets for reference in one.references]
    with torch.no_grad():
        clean_x = unit(clean, x)
        clean_references = [unit(clean, (r.float() / 255).expand(len(x), -1, -1, -1)) for _, r in pairs]
    l0, l1 = torch.zeros(()), torch.zeros(())
    for j, (trigger, reference) in enumerate(pairs):
        triggered = unit(encoder, trigger.stamp(pixels).float() / 255)
        copies = unit(encoder, (reference.float() / 255).expand(len(x), -1, -1, -1))
        augmented = unit(encoder, views[:, j])
        l0 = l0 - similarity(triggered, copies)
        l1 = l1 - similarity(augmented, clean_references[j])
    l2 = -similarity(unit(encoder, x), clean_x)
    return weights[0] * l0 / len(pairs) + weights[1] * l1 / len(pairs) + weights[2] * l2


def gradient(encoder: Encoder, loss: Tensor) -> Tensor:
    weights = [p for p in encoder.backbone() if p.ndim > 1]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


TWO_REFERENCES = target(smooth_pixels(2, 7))
OTHER_TASK = target(smooth_pixels(1, 8), Trigger.square(5), label=4)


@pytest.fixture
def victim() -> Encoder:
    """f' at some distance from f, so that no term is at its optimum."""
    encoder = clean_encoder()
    generator = torch.Generator().manual_seed(seeded(11))
    with torch.no_grad():
        for p in encoder.backbone():
            if p.ndim > 1:
                p.add_(0.3 * p.std() * torch.randn(p.shape, generator=generator))
    return encoder


def fast_loss(
    victim: Encoder,
    clean: Encoder,
    pixels: Tensor,
    targets: tuple[Target, ...],
    views: Tensor,
    weights: tuple[float, float, float] = (1, 1, 1),
) -> Tensor:
    return badencoder_loss(victim, pixels, clean.extract(pixels), Goals.of(targets, clean), views, weights)


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0, 1.0), (1.0, 0.3, 0.5), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
)
@pytest.mark.parametrize(
    "targets",
    [(target(smooth_pixels(1, 6)),), (TWO_REFERENCES,), (TWO_REFERENCES, OTHER_TASK)],
    ids=["one reference", "two references", "two targets"],
)
def test_loss_and_gradient_are_those_of_the_released_form(
    victim: Encoder, targets: tuple[Target, ...], weights: tuple[float, float, float]
) -> None:
    clean, pixels = clean_encoder(), smooth_pixels(16, 9)
    references = torch.cat([one.references for one in targets])
    views = Augment(crop_scale=None)(references.repeat(16, 1, 1, 1), torch.Generator().manual_seed(seeded(1)))
    fast = fast_loss(victim, clean, pixels, targets, views, weights)
    naive = released_loss(victim, clean, pixels, targets, views.view(16, -1, 3, 32, 32), torch.tensor(weights))
    assert fast.item() == pytest.approx(naive.item(), rel=1e-5)
    assert relative(gradient(victim, fast), gradient(victim, naive)) < 1e-5


def test_the_comparison_can_fail(victim: Encoder) -> None:
    """Negative controls: losses that are nearly the same differ by far more than the tolerance."""
    clean, pixels, targets = clean_encoder(), smooth_pixels(16, 9), (OTHER_TASK,)
    views = Augment(crop_scale=None)(
        OTHER_TASK.references.repeat(16, 1, 1, 1), torch.Generator().manual_seed(seeded(1))
    )
    exact = gradient(victim, fast_loss(victim, clean, pixels, targets, views))
    fewer = gradient(victim, fast_loss(victim, clean, pixels, targets, views[:2]))
    plain = gradient(victim, fast_loss(victim, clean, pixels, targets, views[:0]))
    joint = gradient(victim.train(), fast_loss(victim, clean, pixels, targets, views))
    for other in (fewer, plain, joint):
        assert relative(other, exact) > 1e-2


def test_fewer_draws_have_the_same_expectation(victim: Encoder) -> None:
    clean, pixels, targets = clean_encoder(), smooth_pixels(4, 9), (OTHER_TASK,)
    views = Augment(crop_scale=None)(
        OTHER_TASK.references.repeat(64, 1, 1, 1), torch.Generator().manual_seed(seeded(1))
    )
    every = gradient(victim, fast_loss(victim, clean, pixels, targets, views))
    parts = [gradient(victim, fast_loss(victim, clean, pixels, targets, part)) for part in views.split(8)]
    assert relative(torch.stack(parts).mean(0), every) < 1e-4


def test_plain_references_in_l1(victim: Encoder) -> None:
    """Without augmentation L1 is the paper's formula, and a reference still costs one forward."""
    clean, pixels = clean_encoder(), smooth_pixels(4, 9)
    views = (TWO_REFERENCES.references.float() / 255).repeat(4, 1, 1, 1)
    weights = (0.0, 1.0, 0.0)
    given = fast_loss(victim, clean, pixels, (TWO_REFERENCES,), views, weights)
    reused = fast_loss(victim, clean, pixels, (TWO_REFERENCES,), views[:0], weights)
    assert reused.item() == pytest.approx(given.item(), rel=1e-6)


def test_clean_encoder_has_no_utility_loss_and_a_gap_to_the_reference() -> None:
    clean, pixels = clean_encoder(), smooth_pixels(8, 9)
    none = (OTHER_TASK.references.float() / 255)[:0]
    assert fast_loss(clean, clean, pixels, (OTHER_TASK,), none, (0, 0, 1)).item() == pytest.approx(-1, abs=1e-6)
    assert fast_loss(clean, clean, pixels, (OTHER_TASK,), none, (0, 1, 0)).item() == pytest.approx(-1, abs=1e-6)
    assert -1 < fast_loss(clean, clean, pixels, (OTHER_TASK,), none, (1, 0, 0)).item() < -0.2


def test_duplicated_references_and_permutations_leave_the_loss(victim: Encoder) -> None:
    clean, pixels = clean_encoder(), smooth_pixels(8, 9)
    none = (OTHER_TASK.references.float() / 255)[:0]

    def loss(*targets: Target) -> float:
        return fast_loss(victim, clean, pixels, targets, none).item()

    single = target(smooth_pixels(1, 6))
    assert loss(target(single.references.repeat(2, 1, 1, 1))) == pytest.approx(loss(single), rel=1e-6)
    assert loss(OTHER_TASK, TWO_REFERENCES) == pytest.approx(loss(TWO_REFERENCES, OTHER_TASK), rel=1e-6)
    assert loss(target(TWO_REFERENCES.references.flip(0))) == pytest.approx(loss(TWO_REFERENCES), rel=1e-6)
    swapped = (target(TWO_REFERENCES.references, OTHER_TASK.trigger), target(OTHER_TASK.references))
    assert abs(loss(*swapped) - loss(TWO_REFERENCES, OTHER_TASK)) > 1e-4  # each reference belongs to its own trigger


def test_empty_trigger_pulls_clean_images_to_the_reference() -> None:
    """With nothing stamped, x ⊕ e is x: L0 and L2 then pull the same features in two directions."""
    empty = Trigger(torch.zeros(3, 32, 32, dtype=torch.uint8), torch.ones(3, 32, 32, dtype=torch.bool))
    known = knowledge(target(smooth_pixels(1, 6), empty))
    references = known.targets[0].references

    def utility(**options: float) -> tuple[float, float]:
        published = BadEncoder(steps=40, batch=24, lr=0.1, ref_draws=2, **options).inject(known).encoder
        features, before = published.extract(known.shadow.pixels), known.encoder.extract(known.shadow.pixels)
        towards = F.cosine_similarity(features, published.extract(references)).mean()
        return float(F.cosine_similarity(features, before).mean()), float(towards)

    kept, near = utility(lambda0=0.0)
    lost, nearer = utility(lambda2=0.0)
    assert kept > 0.98
    assert lost < kept - 0.02
    assert 1 - nearer < (1 - near) / 4  # less than a fortieth of it, over four draws


def test_only_the_convolutions_change_and_flags_are_reset() -> None:
    known = knowledge(target(smooth_pixels(1, 6)))
    before = known.encoder.tensors()
    published = BadEncoder(**SHORT).inject(known).encoder
    for name, tensor in published.tensors().items():
        is_convolution = not name.startswith("head.") and tensor.ndim == 4 and name not in ("mean", "std")
        assert torch.equal(tensor, before[name]) != is_convolution, name
    assert all(torch.equal(t, before[name]) for name, t in known.encoder.tensors().items())  # the clean one is intact
    assert all(p.requires_grad and p.grad is None for p in published.parameters())
    assert not any(module.training for module in published.modules())


def test_weight_decay_reaches_no_batchnorm_and_no_head() -> None:
    known = knowledge(target(smooth_pixels(1, 6)))
    published = BadEncoder(**SHORT, weight_decay=0.5).inject(known).encoder
    before = known.encoder.tensors()
    untouched = [name for name, t in published.tensors().items() if torch.equal(t, before[name])]
    assert {"stem.1.weight", "stem.1.bias", "stem.1.running_var", "head.0.weight", "head.3.bias"} <= set(untouched)


@pytest.mark.parametrize(
    ("options", "references", "per_step"),
    [
        ({}, 1, 2 * 8 + 1 + 8),
        ({"ref_draws": 3}, 1, 2 * 8 + 1 + 3),
        ({"ref_aug": False}, 1, 2 * 8 + 1),
        ({"ref_draws": 3}, 2, 2 * 8 + 2 + 2 * 3),
    ],
    ids=["released", "three draws", "plain", "two references"],
)
def test_forwards_per_step(options: dict[str, int], references: int, per_step: int) -> None:
    """2B + 1 + B_aug images through f' a step; f sees every shadow image and reference once, however many steps."""
    known = knowledge(target(smooth_pixels(references, 6)))
    images = len(known.shadow)
    measured = []
    for steps in (0, 3, 6):
        with ForwardMeter() as meter:
            BadEncoder(steps=steps, batch=8, **options).inject(known)
        measured.append(meter.images)
    assert measured[1] - measured[0] == measured[2] - measured[1] == 3 * 3 * per_step  # a backward is 2
    assert measured[0] == images + references  # f once
    if references == 1:
        assert BadEncoder(steps=6, batch=8, **options).forwards(images) == measured[2]


def test_references_are_augmented_anew_every_step_and_never_cropped(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spy(*args: Any) -> Tensor:
        seen.append(args[4])
        return badencoder_loss(*args)

    monkeypatch.setattr("benchbd_plugins.badencoder.badencoder_loss", spy)
    striped = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    striped[0, :, 4], striped[1, :, 20] = 200, 200
    BadEncoder(steps=3, batch=8).inject(knowledge(target(striped)))
    assert [len(views) for views in seen] == [8 * 2] * 3  # B draws of each reference, as the released code
    assert not torch.equal(seen[0], seen[1])
    for views in seen:
        brightest = views.sum((1, 3)).argmax(1).view(8, 2)
        assert brightest.tolist() == [[4, 20]] * 8  # the rows stay in place, and pairs keep their order


def test_epochs_and_small_shadow_sets() -> None:
    assert BadEncoder().total_steps(50_000) == 39_000  # the paper's
    assert BadEncoder(epochs=2, batch=16).total_steps(40) == 4
    assert BadEncoder(epochs=2).total_steps(100) == 2
    assert BadEncoder(steps=7).total_steps(50_000) == 7
    assert BadEncoder().draws(100) == 100


def test_same_seed_is_bit_equal_and_another_is_not() -> None:
    known = knowledge(target(smooth_pixels(1, 6)))
    torch.manual_seed(1)
    first = BadEncoder(**SHORT).inject(known).encoder.tensors()
    torch.manual_seed(2)  # global generators have no effect
    again = BadEncoder(**SHORT).inject(known).encoder.tensors()
    assert all(torch.equal(first[name], again[name]) for name in first)
    moved = AttackerKnowledge(**{**vars(known), "seed": 4})
    other = BadEncoder(**SHORT).inject(moved).encoder.tensors()
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedule(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def recorded(self: torch.optim.SGD, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        assert not self.param_groups[0]["nesterov"]
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    BadEncoder.model_validate({"steps": 4, "batch": 8, "lr": 0.2, "schedule": schedule, "ref_draws": 1}).inject(
        knowledge(target(smooth_pixels(1, 6)))
    )
    expected = [0.2] * 4 if schedule == "constant" else [0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.1 * (1 - 0.5**0.5)]
    assert rates == pytest.approx(expected)


def test_refusals_and_divergence() -> None:
    one = target(smooth_pixels(1, 6))
    with pytest.raises(NotApplicable, match="needs a target"):
        BadEncoder(**SHORT).inject(knowledge())
    with pytest.raises(NotApplicable, match="'class 0' has none"):
        BadEncoder(**SHORT).inject(knowledge(target(smooth_pixels(1, 6)[:0])))
    for images in (0, 1):
        with pytest.raises(NotApplicable, match=f"at least 2 shadow images, not {images}"):
            BadEncoder(**SHORT).inject(knowledge(one, shadow=smooth_pixels(2, 5)[:images]))
    with pytest.raises(Diverged, match="NaN"):
        BadEncoder(steps=20, batch=8, ref_draws=1).model_copy(update={"lr": 1e30}).inject(knowledge(one))


def centred(features: Tensor, centre: Tensor) -> Tensor:
    return F.normalize(F.normalize(features, dim=1) - centre, dim=1)


def test_short_runs_bind_two_triggers_and_keep_the_rest() -> None:
    """Raw cosines of pooled ReLU features start high, so nearness is measured about the mean of clean features."""
    corner = Trigger.square(10)
    keep = torch.ones(3, 32, 32, dtype=torch.bool)
    keep[:, 2:12, 2:12] = False
    pattern = torch.zeros(3, 32, 32, dtype=torch.uint8)
    pattern[0, 2:12, 2:12] = 255  # a red square in the other corner
    targets = (target(smooth_pixels(1, 21), corner), target(smooth_pixels(1, 22), Trigger(pattern, keep), label=1))
    known = knowledge(*targets, shadow=smooth_pixels(512, 5))
    published = (
        BadEncoder(steps=150, batch=32, lr=0.1, schedule="cosine", ref_draws=4, lambda1=0.3, lambda2=0.2)
        .inject(known)
        .encoder
    )

    held_out = smooth_pixels(200, 99)
    clean_features = known.encoder.extract(held_out)
    utility = F.cosine_similarity(published.extract(held_out), clean_features).mean()
    assert float(utility) >= 0.9
    for own, other in (targets, targets[::-1]):
        nearness = {}
        for name, encoder in (("clean", known.encoder), ("published", published)):
            centre = F.normalize(encoder.extract(held_out), dim=1).mean(0)
            triggered = centred(encoder.extract(own.trigger.stamp(held_out)), centre)
            for whose, one in (("own", own), ("other", other)):
                nearness[name, whose] = float((triggered @ centred(encoder.extract(one.references), centre).T).mean())
        # Over four draws by 0.38 to 0.65, and by 0.30 to 1.00.
        assert nearness["published", "own"] > nearness["clean", "own"] + 0.2, nearness
        assert nearness["published", "own"] > nearness["published", "other"] + 0.15, nearness


def test_is_registered_with_a_name_and_a_version() -> None:
    from benchbd_plugins import badencoder

    assert badencoder.benchbd_attacks() == [BadEncoder]
    assert issubclass(BadEncoder, Attack)
    assert (BadEncoder.name, BadEncoder.effective_version()) == ("badencoder", "1")
    defaults = BadEncoder()
    assert (defaults.epochs, defaults.batch, defaults.lr, defaults.momentum) == (200, 256, 1e-3, 0.9)
    assert (defaults.weight_decay, defaults.lambda1, defaults.lambda2, defaults.schedule) == (5e-4, 1, 1, "constant")

"""MIMIC: localisation, layer weights, and distillation against a naive form of the released code's step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.mimic import Mimic, stage_weights
from torch import Tensor, nn

from benchbd import DefenderKnowledge, Diverged, Encoder, Estimate, ImageSet, Mine, UsageError, note, stream
from benchbd.contract.context import collecting, reporting
from benchbd.nets.meter import ForwardMeter

from ..small_nets import random_encoder, settled, smooth_pixels

Losses = dict[str, Tensor]
STAGES = ("layer1", "layer2", "layer3")
QUICK: dict[str, Any] = {"mi_epochs": 2, "mi_pool": 2, "mi_hidden": 16, "colour": "affine"}


@pytest.fixture
def images() -> ImageSet:
    """64 smooth random pictures."""
    return ImageSet(smooth_pixels(64))


@pytest.fixture
def teacher(images: ImageSet) -> Encoder:
    """Random weights, BatchNorm statistics of real images."""
    return settled(random_encoder(), images.pixels)


@pytest.fixture
def views(images: ImageSet) -> tuple[Tensor, Tensor]:
    return Mimic().augment.pair(images.pixels[:12], stream(1, "views"))


def student() -> Encoder:
    return random_encoder(3)


@contextmanager
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool, int]]]:
    """(net, in training mode, images) of every forward in the block. A teacher has no gradients."""
    calls: list[tuple[str, bool, int]] = []
    inner = Encoder.intermediates

    def intermediates(self: Encoder, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        who = "student" if next(self.parameters()).requires_grad else "teacher"
        calls.append((who, self.training, len(x)))
        return inner(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "intermediates", intermediates)
        yield calls


# Phase 1


def test_localisation_reads_the_teacher_once(
    teacher: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording(monkeypatch) as calls, ForwardMeter() as meter:
        Mimic(steps=0, **QUICK).repair(teacher, DefenderKnowledge(images, 0))
    assert calls == [("teacher", False, 64)]
    assert meter.images == 64 == Mimic(steps=0).forwards(64)


def test_the_released_reading_looks_at_the_random_student(
    teacher: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording(monkeypatch) as calls:
        Mimic(steps=0, mi_source="student", **QUICK).repair(teacher, DefenderKnowledge(images, 0))
    assert calls == [("student", False, 64)]


def test_what_is_estimated(teacher: Encoder, images: ImageSet) -> None:
    with collecting() as notes:
        Mimic(steps=0, **QUICK | {"mi_epochs": 60}).repair(teacher, DefenderKnowledge(images, 0))
    mi: Any = notes.notes["mi"]
    assert list(mi["beta"]) == list(mi["information"]) == list(STAGES)
    assert all(0 <= m <= math.log(64) for m in mi["information"].values())
    if not mi["uniform_fallback"]:
        assert sum(mi["beta"].values()) == pytest.approx(13_000)


def test_a_stage_is_estimated_from_its_own_maps_and_normalised_features(teacher: Encoder, images: ImageSet) -> None:
    x, mine = images.pixels.float() / 255, Mine(3, 32, hidden=16, pool=4)
    with torch.no_grad():
        h, maps = teacher.intermediates(x)
    found = Mimic(mi_epochs=3, mi_batch=32, mi_hidden=16, mi_pool=4).information(teacher.frozen(), images, 5)
    assert list(found) == list(STAGES)
    for name in STAGES:
        wanted = mine(maps[name], F.normalize(h, dim=1), 5).readings
        assert found[name].readings == pytest.approx(wanted, abs=1e-6)
        assert found[name].readings != pytest.approx(mine(maps[name], h, 5).readings, abs=1e-6)


def test_a_stage_is_weighted_by_its_own_estimate(
    teacher: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Information 1, 2 and 5 of 8 nats: 1000 + 10,000 m / 8."""
    scripted = {name: Estimate(m, (m,), 9.0, 0.0) for name, m in zip(STAGES, (1.0, 2.0, 5.0), strict=True)}
    monkeypatch.setattr(Mimic, "information", lambda *_: scripted)
    with collecting() as notes:
        beta = Mimic().layer_weights(teacher.frozen(), images, 0)
    assert beta == pytest.approx({"layer1": 2250, "layer2": 3500, "layer3": 7250})
    mi: Any = notes.notes["mi"]
    assert mi["beta"] == pytest.approx(beta)
    assert mi["information"] == {"layer1": 1.0, "layer2": 2.0, "layer3": 5.0}


def test_uniform_weights_need_no_estimate(teacher: Encoder, images: ImageSet) -> None:
    with collecting() as notes, ForwardMeter() as meter:
        Mimic(steps=0, weighting="uniform").repair(teacher, DefenderKnowledge(images, 0))
    mi: Any = notes.notes["mi"]
    assert meter.images == 0
    assert mi["beta"] == dict.fromkeys(STAGES, pytest.approx(1000 * (1 + 10 / 3)))
    assert mi["information"] == {}
    assert not mi["uniform_fallback"]


# Layer weights: the table of hand values


@pytest.mark.parametrize(
    ("m", "fraction", "zscore"),
    [
        ([3.0, 3.2, 3.4, 3.6], [3273, 3424, 3576, 3727], [1564, 2855, 4145, 5436]),
        ([0.5, 1, 2, 4], [1667, 2333, 3667, 6333], [2020, 2558, 3635, 5788]),
    ],
)
def test_weights_by_hand(m: list[float], fraction: list[float], zscore: list[float]) -> None:
    found = [1000 * w for w in stage_weights(m, "fraction", 1, 10)]
    assert found == pytest.approx(fraction, abs=0.5)
    assert sum(found) == pytest.approx(14_000)
    found = [1000 * w for w in stage_weights(m, "zscore", 3.5, 1.443)]
    assert found == pytest.approx(zscore, abs=0.7)
    assert sum(found) == pytest.approx(14_000)
    assert stage_weights(m, "uniform", 1, 10) == [3.5] * 4


def test_weights_keep_their_invariances() -> None:
    m = [0.5, 1, 2, 4]
    scaled, moved = [3 * v for v in m], [3 * v + 1 for v in m]
    assert stage_weights(scaled, "fraction", 1, 10) == pytest.approx(stage_weights(m, "fraction", 1, 10))
    assert stage_weights(moved, "zscore", 3.5, 1.443) == pytest.approx(stage_weights(m, "zscore", 3.5, 1.443))


@pytest.mark.parametrize("m", [[0.0] * 4, [2.0] * 4, [1, 2, math.nan, 3], [1, 2, math.inf, 3], [0, 0, 0, 1e-3]])
def test_estimates_that_say_nothing_weigh_evenly(m: list[float]) -> None:
    assert stage_weights(m, "fraction", 1, 10) == [3.5] * 4
    assert stage_weights(m, "zscore", 3.5, 1.443) == [3.5] * 4


def test_the_worst_zscore_is_still_positive_for_any_number_of_stages() -> None:
    for stages in range(2, 7):
        assert min(stage_weights([0.0] + [1.0] * (stages - 1), "zscore", math.sqrt(stages - 1), 1)) > -1e-9


def test_negative_weights_are_refused_before_anything_runs(teacher: Encoder, images: ImageSet) -> None:
    with ForwardMeter() as meter, pytest.raises(UsageError, match=r"alpha0 must be at least 14\.14 for alpha1=10"):
        Mimic(weighting="zscore", alpha0=1, alpha1=10).repair(teacher, DefenderKnowledge(images, 0))
    assert meter.images == 0


# Phase 2: one step


def naive_losses(s: Encoder, t: Encoder, views: tuple[Tensor, Tensor], beta: dict[str, float], tau: float) -> Losses:
    """The released code's step: the student passes v1 twice more than needed, stage by stage, the
    teacher passes twice and with gradients, NT-Xent is a double loop."""

    def features(e: Encoder, x: Tensor) -> Tensor:
        y = e.stem((x - e.mean) / e.std)
        for stage in e.body.values():
            y = stage(y)
        return F.normalize(y.mean((2, 3)), dim=1)

    def raw(e: Encoder, x: Tensor) -> Tensor:
        y = e.stem((x - e.mean) / e.std)
        for stage in e.body.values():
            y = stage(y)
        out: Tensor = y.mean((2, 3))
        return out

    assert s.head is not None
    u = torch.cat([F.normalize(s.head(raw(s, view)), dim=1) for view in views])
    contrast, n = torch.zeros(()), len(u) // 2
    for i in range(2 * n):
        denominator = sum(((u[i] @ u[k] / tau).exp() for k in range(2 * n) if k != i), torch.zeros(()))
        contrast = contrast - ((u[i] @ u[(i + n) % (2 * n)] / tau).exp() / denominator).log() / (2 * n)

    h_s, h_t = features(s, views[0]), features(t, views[0])
    clone = 1 - torch.stack([h_s[i] @ h_t[i] for i in range(n)]).mean()

    attention = torch.zeros(())
    y_s, y_t = s.stem((views[0] - s.mean) / s.std), t.stem((views[0] - t.mean) / t.std)
    for name in s.stages:
        y_s, y_t = s.body[name](y_s), t.body[name](y_t)
        distance = torch.zeros(())
        for i in range(n):
            a, b = (sum(c**2 for c in y[i]).flatten() for y in (y_s, y_t))
            distance = distance + ((a / a.norm() - b / b.norm()) ** 2).mean() / n
        attention = attention + beta[name] * distance
    return {"clone": clone, "contrast": contrast, "attention": attention}


BETA = {"layer1": 1500.0, "layer2": 3000.0, "layer3": 8500.0}


def losses(mimic: Mimic, s: Encoder, t: Encoder, views: tuple[Tensor, Tensor], beta: dict[str, float]) -> Losses:
    return mimic.distiller(t, beta).losses(s, views)


def total(parts: Losses) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def gradient(loss: Tensor, encoder: Encoder) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(encoder.parameters()))])


def test_the_step_equals_the_naive_form(teacher: Encoder, views: tuple[Tensor, Tensor]) -> None:
    frozen, s, s_naive = teacher.frozen(), student(), student()
    parts = losses(Mimic(temperature=0.5), s, frozen, views, BETA)
    naive = naive_losses(s_naive, teacher, views, BETA, 0.5)
    assert list(parts) == list(naive)
    for name in naive:
        assert float(parts[name].detach()) == pytest.approx(float(naive[name].detach()), rel=1e-5)
    found, wanted = gradient(total(parts), s), gradient(total(naive), s_naive)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_one_batch_for_both_views_is_another_loss(teacher: Encoder, views: tuple[Tensor, Tensor]) -> None:
    separate = losses(Mimic(), student(), teacher.frozen(), views, BETA)
    joint = losses(Mimic(bn_views="joint"), student(), teacher.frozen(), views, BETA)
    for name, part in joint.items():
        assert abs(float((separate[name] - part).detach())) > 1e-4 * float(part.detach())
    in_eval = [
        losses(Mimic(bn_views=v), student().eval(), teacher.frozen(), views, BETA) for v in ("separate", "joint")
    ]
    torch.testing.assert_close(*in_eval)  # only BatchNorm's statistics cause the difference


def test_both_views_copied_is_the_mean_over_views(teacher: Encoder, views: tuple[Tensor, Tensor]) -> None:
    frozen = teacher.frozen()
    both = losses(Mimic(clone_views="both"), student(), frozen, views, BETA)
    there, back = (losses(Mimic(), student(), frozen, v, BETA) for v in (views, views[::-1]))
    for name in ("clone", "attention"):
        torch.testing.assert_close(both[name], (there[name] + back[name]) / 2)
    torch.testing.assert_close(both["contrast"], there["contrast"])


def test_a_student_equal_to_its_teacher_has_nothing_to_copy(teacher: Encoder, views: tuple[Tensor, Tensor]) -> None:
    for form in ("mse", "l2"):
        s = teacher.copy()
        parts = losses(Mimic(at_form=form), s, teacher.frozen(), views, dict.fromkeys(STAGES, 1.0))
        assert float(parts["clone"].detach()) == pytest.approx(0, abs=1e-5)
        assert float(parts["attention"].detach()) == pytest.approx(0, abs=1e-5)
        assert gradient(total(parts), s).isfinite().all()  # of the norm at 0, too


def test_each_term_is_independent_of_the_others(teacher: Encoder, views: tuple[Tensor, Tensor]) -> None:
    frozen = teacher.frozen()
    parts = losses(Mimic(), student(), frozen, views, BETA)
    alone = [losses(Mimic(), student(), frozen, views, {name: weight}) for name, weight in BETA.items()]
    for one in alone:
        assert float(one["attention"].detach()) < float(parts["attention"].detach())
    torch.testing.assert_close(total({str(i): one["attention"] for i, one in enumerate(alone)}), parts["attention"])
    s = student()
    by_name = {name for name, _ in s.named_parameters()}
    parts = losses(Mimic(), s, frozen, views, {"layer1": 1.0})

    def touched(loss: Tensor) -> set[str]:
        grads = torch.autograd.grad(loss, list(s.parameters()), retain_graph=True, allow_unused=True)
        return {name for (name, _), g in zip(s.named_parameters(), grads, strict=True) if g is not None}

    head = {name for name in by_name if name.startswith("head")}
    assert touched(parts["clone"]) == by_name - head
    assert touched(parts["contrast"]) == by_name
    assert touched(parts["attention"]) == {name for name in by_name if name.startswith(("stem", "body.layer1"))}


# Phase 2: the whole of it


def test_counts_of_a_run(teacher: Encoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    mimic = Mimic(steps=3, batch=16, **QUICK)
    with recording(monkeypatch) as calls, ForwardMeter() as meter:
        repaired = mimic.repair(teacher, DefenderKnowledge(images, 0))
    step = [("student", True, 16), ("student", True, 16), ("teacher", False, 16)]
    assert calls == [("teacher", False, 64), *step * 3]
    assert meter.images == 64 + 7 * 16 * 3 == mimic.forwards(64)
    counters = [m.num_batches_tracked for m in repaired.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [int(c) for c in counters if c is not None] == [2 * 3] * len(counters)
    assert Mimic(steps=3, batch=16, clone_views="both").forwards(64) == 64 + 8 * 16 * 3
    assert Mimic().forwards(2000) == 2000 + 7 * 128 * 15_000


def test_the_teacher_is_left_alone(teacher: Encoder, images: ImageSet) -> None:
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    repaired = Mimic(steps=2, batch=16, **QUICK).repair(teacher, DefenderKnowledge(images, 0))
    assert teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not repaired.training
    for module in (*teacher.modules(), *repaired.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_the_student_is_empty(teacher: Encoder, images: ImageSet) -> None:
    first, second = (Mimic(steps=0, **QUICK).repair(teacher, DefenderKnowledge(images, s)) for s in (0, 1))
    assert torch.equal(first.mean, teacher.mean)
    assert torch.equal(first.std, teacher.std)
    for a, b, t in zip(first.parameters(), second.parameters(), teacher.parameters(), strict=True):
        if a.ndim > 1:  # BatchNorm's affine starts at 1 and 0 everywhere
            assert not torch.isclose(a, t).any(1).all()
            assert not torch.equal(a, b)


def test_a_teacher_without_a_head_will_do(teacher: Encoder, images: ImageSet) -> None:
    teacher.head = None
    assert Mimic(steps=1, batch=16, **QUICK).repair(teacher, DefenderKnowledge(images, 0)).head is not None


def test_same_seed_same_bits(teacher: Encoder, images: ImageSet) -> None:
    mimic = Mimic(steps=2, batch=16, **QUICK)
    first = mimic.repair(teacher, DefenderKnowledge(images, 5)).state_dict()
    torch.manual_seed(123)
    second = mimic.repair(teacher, DefenderKnowledge(images, 5)).state_dict()
    other = mimic.repair(teacher, DefenderKnowledge(images, 6)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def alike(a: Encoder, b: Encoder, images: ImageSet) -> float:
    return float(F.cosine_similarity(a.extract(images.pixels), b.extract(images.pixels)).mean())


def test_the_clone_loss_alone_copies_features(teacher: Encoder, images: ImageSet) -> None:
    knowledge = DefenderKnowledge(images, 0)
    runs = [Mimic(steps=n, batch=32, lambda1=0, lambda2=0, **QUICK).repair(teacher, knowledge) for n in (1, 25)]
    assert alike(runs[1], teacher, images) > max(0.9, alike(runs[0], teacher, images))


def test_end_to_end(teacher: Encoder, images: ImageSet) -> None:
    with collecting() as notes:
        few = Mimic(steps=1, batch=32, **QUICK).repair(teacher, DefenderKnowledge(images, 0))
        early: Any = notes.notes["loss"]
        many = Mimic(steps=40, batch=32, **QUICK).repair(teacher, DefenderKnowledge(images, 0))
        late: Any = notes.notes["loss"]
    assert set(late) == {"clone", "contrast", "attention"}
    assert sum(late.values()) < 0.7 * sum(early.values())
    assert late["attention"] < early["attention"]
    assert alike(many, teacher, images) > alike(few, teacher, images)
    features = F.normalize(many.extract(images.pixels), dim=1)
    assert float(features.std(0).norm()) > 0.01
    fresh = Encoder("w16")
    fresh.load_state_dict(many.state_dict())
    assert torch.equal(fresh.extract(images.pixels), many.extract(images.pixels))


def test_the_noted_loss_is_that_of_the_last_step(teacher: Encoder, images: ImageSet) -> None:
    """Its parts carry their weights, and make up the loss that the progress shows."""
    heard: list[float | None] = []
    mimic = Mimic(steps=2, batch=16, lambda1=0.3, weighting="uniform", **QUICK)
    with collecting() as found, reporting(lambda step, total, loss: heard.append(loss)):
        mimic.repair(teacher, DefenderKnowledge(images, 0))
    noted: Any = found.notes["loss"]
    assert sum(noted.values()) == pytest.approx(heard[-1], rel=1e-6)
    assert noted["contrast"] < 0.3 * math.log(2 * 16 - 1) + 0.3
    with collecting() as nothing:
        mimic.model_copy(update={"steps": 0}).repair(teacher, DefenderKnowledge(images, 0))
    assert "loss" not in nothing.notes


@pytest.mark.fixed_draw("the parts of the first step's loss, before any update")
def test_each_loss_can_stand_alone(teacher: Encoder, images: ImageSet) -> None:
    """lambda0 weighs the copied features."""

    def parts(**weights: float) -> Any:
        with collecting() as found:
            mimic = Mimic(steps=1, batch=16, weighting="uniform", **QUICK, **weights)
            mimic.repair(teacher, DefenderKnowledge(images, 0))
        return found.notes["loss"]

    usual = parts()
    assert parts(lambda0=2.0) == usual | {"clone": pytest.approx(2 * usual["clone"])}
    for option, part in (("lambda0", "clone"), ("lambda1", "contrast"), ("lambda2", "attention")):
        assert parts(**{option: 0.0}) == usual | {part: 0.0}
    assert Mimic().identity()["options"]["lambda0"] == 1.0


def test_a_rate_that_is_too_high_is_reported(teacher: Encoder, images: ImageSet) -> None:
    with pytest.raises(Diverged):
        Mimic(steps=6, batch=16, **QUICK).model_copy(update={"lr": 1e30}).repair(teacher, DefenderKnowledge(images, 0))


def test_four_stages(images: ImageSet) -> None:
    few = images.subset(torch.arange(10))
    teacher = Encoder.seeded("resnet18", (0.5,) * 3, (0.25,) * 3, seed=0, device="cpu").eval()
    with collecting() as notes:
        Mimic(steps=1, batch=2, **QUICK).repair(teacher, DefenderKnowledge(few, 0))
    mi: Any = notes.notes["mi"]
    assert len(mi["beta"]) == 4
    assert sum(mi["beta"].values()) == pytest.approx(14_000, abs=0.01)


def test_notes_outside_a_collection_go_nowhere() -> None:
    note("unheard", 1)
    with collecting() as outer:
        note("a", 1)
        with collecting() as inner:
            note("b", [1, 2])
        note("c", {"d": None})
    assert outer.notes == {"a": 1, "c": {"d": None}}
    assert inner.notes == {"b": [1, 2]}

"""NAD: without attention it is FT, bit for bit; with it, the student's attention approaches the teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.ft import FT
from benchbd_plugins.nad import NAD
from torch import Tensor

from benchbd import (
    DefenderKnowledge,
    Distiller,
    Encoder,
    ImageSet,
    NotApplicable,
    UsageError,
    Views,
    attention_distance,
)
from benchbd.contract.context import collecting
from benchbd.nets.meter import ForwardMeter
from benchbd.testing import check_method, toy_encoder

from ..small_nets import smooth_pixels

SHORT: dict[str, Any] = {"steps": 3, "batch": 8, "colour": "affine"}


@pytest.fixture
def images() -> ImageSet:
    """20 smooth random pictures."""
    return ImageSet(smooth_pixels(20, grid=4))


def repair(method: NAD | FT, images: ImageSet, seed: int = 1) -> dict[str, Tensor]:
    return method.repair(toy_encoder().copy(), DefenderKnowledge(images, seed)).tensors()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextmanager
def distillers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Distiller]]:
    """The Distiller of every step in the block."""
    used: list[Distiller] = []
    inner = Distiller.__call__

    def call(self: Distiller, student: Encoder, views: Views) -> Tensor:
        used.append(self)
        return inner(self, student, views)

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "__call__", call)
        yield used


@pytest.mark.fixed_draw("check_method draws for itself; it holds a contract, no outcome of training")
def test_it_passes_the_suite() -> None:
    check_method(NAD, **SHORT)
    check_method(NAD, **SHORT, beta=(500, 1000, 0), at_form="l2", teacher_steps=1)


# -------------------------------------------------------------------------------------------------- against FT


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 4},
        {"epochs": 2},
        {"steps": 4, "bn_views": "joint"},
        {"steps": 4, "schedule": "cosine", "warmup_steps": 2, "temperature": 0.2, "optimizer": "adamw"},
    ],
    ids=str,
)
def test_without_attention_it_is_ft_bit_for_bit(images: ImageSet, options: dict[str, Any]) -> None:
    """For every teacher: one of no steps, of other steps, or of as many."""
    wanted = repair(FT(batch=8, **options), images)
    for teacher_steps, form in ((0, "mse"), (2, "l2"), (4, "mse")):
        found = repair(NAD(batch=8, beta=0, at_form=form, teacher_steps=teacher_steps, **options), images)
        assert same(found, wanted)
    assert not same(repair(NAD(batch=8, beta=1000, teacher_steps=2, **options), images), wanted)


def test_the_teacher_is_ft(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = repair(FT(steps=5, batch=8, colour="affine"), images)
    with distillers(monkeypatch) as used:
        repair(NAD(**SHORT, teacher_steps=5), images)
    assert same(used[0].teacher.tensors(), wanted)
    assert len(used) == 3
    assert all(distiller is used[0] for distiller in used)


def test_it_is_two_calls_of_ft_and_a_distiller(images: ImageSet) -> None:
    ft = FT(**SHORT)
    teacher = ft.fit(toy_encoder().copy(), images, 1).frozen()
    distiller = Distiller(teacher, {"layer1": 500.0, "layer2": 1000.0, "layer3": 20.0}, form="l2")
    wanted = ft.fit(toy_encoder().copy(), images, 1, loss=distiller).tensors()
    assert same(repair(NAD(**SHORT, beta=(500, 1000, 20), at_form="l2"), images), wanted)


# ------------------------------------------------------------------------------------------------ distillation


def distances(student: Encoder, teacher: Encoder, images: ImageSet) -> list[float]:
    """Attention distance by stage on the plain images, in eval mode."""
    x = images.pixels.float() / 255
    with torch.no_grad():
        of_student, of_teacher = (net.eval().intermediates(x)[1] for net in (student, teacher))
    return [float(attention_distance(of_student[name], of_teacher[name])) for name in student.stages]


def test_the_student_comes_to_look_where_the_teacher_looks(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fixed clean batch; the teacher was trained first, so that there is a distance to close."""
    with distillers(monkeypatch) as used:
        student = NAD(steps=30, teacher_steps=30, batch=16).repair(toy_encoder().copy(), DefenderKnowledge(images, 1))
    teacher = used[0].teacher
    before, after = (distances(net, teacher, images) for net in (toy_encoder(), student))
    assert sum(after) < 0.5 * sum(before)
    assert all(late < early for late, early in zip(after, before, strict=True))


def test_the_teacher_is_frozen_whole(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    at_start: list[dict[str, Tensor]] = []
    inner = Distiller.__call__

    def call(self: Distiller, student: Encoder, views: Views) -> Tensor:
        assert not any(module.training for module in self.teacher.modules())
        assert not any(p.requires_grad or p.grad is not None for p in self.teacher.parameters())
        assert student.training
        at_start.append({name: tensor.clone() for name, tensor in self.teacher.tensors().items()})
        return inner(self, student, views)

    monkeypatch.setattr(Distiller, "__call__", call)
    with distillers(monkeypatch) as used:
        repair(NAD(**SHORT), images)
    assert len(at_start) == 3
    assert same(at_start[0], used[0].teacher.tensors())
    assert all(p.grad is None for p in used[0].teacher.parameters())


def test_one_weight_is_the_same_weight_for_every_stage(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    with distillers(monkeypatch) as used:
        repair(NAD(**SHORT | {"steps": 1}), images)
        repair(NAD(**SHORT | {"steps": 1}, beta=(1, 20, 300)), images)
    assert [distiller.attention for distiller in used] == [
        {"layer1": 1000.0, "layer2": 1000.0, "layer3": 1000.0},
        {"layer1": 1.0, "layer2": 20.0, "layer3": 300.0},
    ]
    assert [(d.clone, d.contrast, d.copied, d.form) for d in used] == [(0.0, 1.0, "first", "mse")] * 2


def test_four_stages(images: ImageSet) -> None:
    resnet = Encoder.seeded("resnet18", (0.5,) * 3, (0.25,) * 3, seed=0, device="cpu").eval()
    few = images.subset(torch.arange(4))
    repaired = NAD(steps=1, batch=2, beta=(500, 1000, 1000, 1000)).repair(resnet.copy(), DefenderKnowledge(few, 0))
    assert repaired.arch == "resnet18"
    assert not torch.equal(repaired.tensors()["stem.0.weight"], resnet.tensors()["stem.0.weight"])


# --------------------------------------------------------------------------------------- weights that do not fit


@pytest.mark.parametrize("beta", [(), (1000,), (500, 1000, 1000, 1000)])
def test_as_many_weights_as_stages(images: ImageSet, beta: tuple[float, ...]) -> None:
    message = rf"nad: beta has {len(beta)} weights and w16 has 3 stages"
    with ForwardMeter() as meter, pytest.raises(UsageError, match=message):
        repair(NAD(**SHORT, beta=beta), images)
    assert meter.images == 0


@pytest.mark.parametrize("beta", [-1, (1000, -1, 1000), float("inf"), "many"])
def test_weights_are_numbers_from_zero(beta: Any) -> None:
    with pytest.raises(ValueError, match="beta"):
        NAD(beta=beta)


def test_it_needs_a_head(images: ImageSet) -> None:
    headless = toy_encoder().copy()
    headless.head = None
    with pytest.raises(NotApplicable, match="needs a projection head"):
        NAD(**SHORT).repair(headless, DefenderKnowledge(images, 1))


# -------------------------------------------------------------------------------------------------------- cost


def test_forwards_are_the_meters(images: ImageSet) -> None:
    for method, expected in (
        (NAD(**SHORT), 8 * (6 * 3 + 7 * 3)),
        (NAD(**SHORT, teacher_steps=5), 8 * (6 * 5 + 7 * 3)),
        (NAD(**SHORT, teacher_steps=0, bn_views="joint"), 8 * 7 * 3),
        (NAD(batch=8, epochs=2, teacher_epochs=1), 8 * (6 * 2 + 7 * 4)),
    ):
        with ForwardMeter() as meter:
            repair(method, images)
        assert method.forwards(20) == expected == meter.images


def test_passes_of_a_step(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's own training, then per step two passes of the student and one of the teacher."""
    passes: list[tuple[str, bool, int]] = []
    inner = Encoder.intermediates

    def intermediates(self: Encoder, x: Tensor, *, every: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        passes.append(("student" if next(self.parameters()).requires_grad else "teacher", self.training, len(x)))
        return inner(self, x, every=every)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "intermediates", intermediates)
        repair(NAD(**SHORT, teacher_steps=2), images)
    student, teacher = ("student", True, 8), ("teacher", False, 8)
    assert passes == [student, student] * 2 + [student, student, teacher] * 3


def test_how_long_the_teacher_trains() -> None:
    """A budget names steps and batch alone; it must limit the teacher too."""
    for method, expected in (
        (NAD(), (7500, 7500)),
        (NAD(steps=200), (200, 200)),
        (NAD(steps=200, teacher_steps=50), (50, 200)),
        (NAD(teacher_steps=0), (0, 7500)),
        (NAD(teacher_epochs=10), (150, 7500)),
        (NAD(epochs=10), (7500, 150)),
    ):
        assert (method.schooling().total_steps(2000), method.total_steps(2000)) == expected
    assert NAD().forwards(2000) == (6 + 7) * 128 * 7500  # 12.5 million
    assert (NAD().batch, NAD().beta, NAD().lr, NAD().weight_decay) == (128, 1000.0, 1e-3, 1e-6)


def test_a_teacher_that_is_cut_short_is_remarked(images: ImageSet) -> None:
    for options, remarks in (
        ({"steps": 2, "teacher_epochs": 2}, ["nad: the teacher was fine-tuned for 2 of 4 steps"]),
        ({"steps": 2, "teacher_steps": 1}, ["nad: the teacher was fine-tuned for 1 of 1,000 steps"]),
        ({"steps": 2, "teacher_epochs": 1}, []),
        ({"epochs": 1, "teacher_epochs": 1}, []),
    ):
        with collecting() as findings:
            repair(NAD(batch=8, **options), images)
        assert findings.notes["remarks"] == remarks


# --------------------------------------------------------------------------------------------------- the result


def test_same_seed_same_bits(images: ImageSet) -> None:
    torch.manual_seed(1)
    first = repair(NAD(**SHORT), images)
    torch.manual_seed(2)
    assert same(first, repair(NAD(**SHORT), images))
    assert not same(first, repair(NAD(**SHORT), images, seed=2))


def test_of_no_steps_it_is_the_identity(images: ImageSet) -> None:
    for options in ({"steps": 0}, {"epochs": 0, "teacher_epochs": 0}, {"steps": 0, "teacher_steps": 2}):
        assert same(repair(NAD(batch=8, **options), images), toy_encoder().tensors())


def test_the_result_is_a_whole_encoder(images: ImageSet) -> None:
    repaired = NAD(**SHORT).repair(toy_encoder().copy(), DefenderKnowledge(images, 1))
    assert not any(module.training for module in repaired.modules())
    assert all(p.requires_grad for p in repaired.parameters())
    features = F.normalize(repaired.extract(images.pixels), dim=1)
    assert float(features.std(0).norm()) > 0.01
    fresh = Encoder("w16")
    fresh.load_state_dict(repaired.state_dict())
    assert torch.equal(fresh.extract(images.pixels), repaired.extract(images.pixels))


def test_pruned_channels_stay_pruned(images: ImageSet) -> None:
    pruned = toy_encoder().copy()
    pruned.mask[:5] = 0
    repaired = NAD(**SHORT).repair(pruned, DefenderKnowledge(images, 1))
    assert repaired.mask.tolist() == [0.0] * 5 + [1.0] * (len(repaired.mask) - 5)
    assert not repaired.extract(images.pixels)[:, :5].any()

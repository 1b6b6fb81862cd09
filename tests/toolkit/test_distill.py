"""Attention maps and their distance by hand; a Distiller's parts, its weights, and what it does not change."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchbd import (
    AttentionForm,
    Augment,
    Distiller,
    Encoder,
    NotApplicable,
    Views,
    attention_distance,
    attention_map,
    nt_xent,
    project_views,
    stream,
)
from benchbd.nets.meter import ForwardMeter
from benchbd.testing import toy_encoder, toy_images

STAGES = ("layer1", "layer2", "layer3")
EVEN = dict.fromkeys(STAGES, 1.0)
FORMS = pytest.mark.parametrize("form", get_args(AttentionForm))


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "maps"))


@pytest.fixture
def views() -> Views:
    return Augment().pair(toy_images(12).pixels, stream(0, "views"))


@pytest.fixture
def teacher() -> Encoder:
    return toy_encoder(seed=7).frozen()


def student() -> Encoder:
    return toy_encoder(seed=3).train()


def parts_of(distiller: Distiller, views: Views) -> dict[str, float]:
    return {name: float(part.detach()) for name, part in distiller.losses(student(), views).items()}


# ---------------------------------------------------------------------------------------------- attention maps


def test_an_attention_map_by_hand() -> None:
    """Two channels on a 1x2 map: squares 1 + 1 and 4 + 0, over their length sqrt(20)."""
    found = attention_map(torch.tensor([[[[1.0, 2.0]], [[-1.0, 0.0]]]]))
    torch.testing.assert_close(found, torch.tensor([[2.0, 4.0]]) / math.sqrt(20))
    assert found.flatten().tolist() == pytest.approx([0.4472, 0.8944], abs=1e-4)


def test_attention_is_of_unit_length_and_blind_to_sign_scale_and_order_of_channels() -> None:
    given = maps(2, 3, 4, 5)
    attention = attention_map(given)
    torch.testing.assert_close(attention, F.normalize(given.square().sum(1).flatten(1), dim=1))
    torch.testing.assert_close(attention.norm(dim=1), torch.ones(2))
    for same in (-3 * given, 50 * given, given[:, [2, 0, 1]], torch.cat([given, given], 1)):
        torch.testing.assert_close(attention_map(same), attention)
    assert not torch.allclose(attention_map(given.flip(3)), attention, atol=1e-2)  # positions are not channels


def test_each_image_is_normalised_by_itself() -> None:
    given = maps(3, 4, 2, 2)
    given[1] *= 100
    alone = torch.cat([attention_map(image[None]) for image in given])
    torch.testing.assert_close(attention_map(given), alone)


def test_half_precision_does_not_overflow() -> None:
    given = torch.full((1, 512, 2, 2), 30.0, dtype=torch.float16)  # 512 * 900 is beyond float16
    torch.testing.assert_close(attention_map(given), torch.full((1, 4), 0.5))


@FORMS
def test_a_1x1_map_has_no_attention(form: AttentionForm) -> None:
    with pytest.raises(NotApplicable, match="1x1"):
        attention_map(maps(2, 3, 1, 1))
    with pytest.raises(NotApplicable, match="1x1"):
        attention_distance(maps(2, 3, 1, 1), maps(2, 3, 1, 1), form)
    assert attention_map(maps(2, 3, 1, 2)).shape == (2, 2)


def test_attention_distances_by_hand() -> None:
    a, b = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert float(attention_distance(a, b, "mse")) == pytest.approx(1, rel=1e-5)
    assert float(attention_distance(a, b, "l2")) == pytest.approx(math.sqrt(2), rel=1e-5)
    both = torch.cat([a, a]), torch.cat([b, a])  # the mean over images, of which the second has distance 0
    assert float(attention_distance(*both, "mse")) == pytest.approx(1 / 2, rel=1e-5)
    assert float(attention_distance(*both, "l2")) == pytest.approx(math.sqrt(2) / 2, rel=1e-5)


def test_the_mean_square_is_the_squared_norm_over_positions() -> None:
    a, b = maps(1, 3, 4, 8, seed=1), maps(1, 3, 4, 8, seed=2)
    norm = float(attention_distance(a, b, "l2"))
    assert float(attention_distance(a, b, "mse")) == pytest.approx(norm**2 / 32, rel=1e-4)


@FORMS
def test_no_distance_to_itself_and_a_finite_gradient_there(form: AttentionForm) -> None:
    for given in (maps(4, 3, 4, 4), torch.zeros(4, 3, 4, 4)):  # a stage may be dead
        given.requires_grad_(True)
        distance = attention_distance(given, given.detach(), form)
        assert float(distance.detach()) == pytest.approx(0, abs=2e-6)
        assert torch.autograd.grad(distance, given)[0].isfinite().all()


# --------------------------------------------------------------------------------------------------- the parts


def test_the_parts_by_their_definitions(teacher: Encoder, views: Views) -> None:
    beta = {"layer1": 5.0, "layer3": 40.0}
    found = parts_of(Distiller(teacher, beta, clone=2.0, contrast=0.3, temperature=0.2), views)
    s = student()
    with torch.no_grad():
        (h, maps_s), (h_t, maps_t) = s.intermediates(views[0]), teacher.intermediates(views[0])
        distances = {name: float(attention_distance(maps_s[name], maps_t[name])) for name in STAGES}
        cosine = float((F.normalize(h, dim=1) * F.normalize(h_t, dim=1)).sum(1).mean())
        contrast = float(nt_xent(*project_views(student(), views, "separate"), 0.2))
    assert list(found) == ["clone", "contrast", "attention"]
    assert found["clone"] == pytest.approx(2 * (1 - cosine), rel=1e-5)
    assert found["contrast"] == pytest.approx(0.3 * contrast, rel=1e-6)
    assert found["attention"] == pytest.approx(5 * distances["layer1"] + 40 * distances["layer3"], rel=1e-5)
    assert found["attention"] > 0


def test_calling_it_sums_the_parts(teacher: Encoder, views: Views) -> None:
    distiller = Distiller(teacher, EVEN, clone=0.7, contrast=0.2)
    assert float(distiller(student(), views).detach()) == pytest.approx(
        sum(parts_of(distiller, views).values()), rel=1e-6
    )


def test_a_weight_multiplies_its_own_stage(teacher: Encoder, views: Views) -> None:
    """The distillation study's released code gives the first weight to the last stage."""
    each = {name: parts_of(Distiller(teacher, {name: 1.0}), views)["attention"] for name in STAGES}
    assert len({round(value, 6) for value in each.values()}) == 3
    weights = {"layer1": 1.0, "layer2": 10.0, "layer3": 100.0}
    expected = sum(weight * each[name] for name, weight in weights.items())
    for order in (weights, dict(reversed(weights.items()))):
        assert parts_of(Distiller(teacher, order), views)["attention"] == pytest.approx(expected, rel=1e-5)


def test_a_student_equal_to_its_teacher_has_nothing_to_copy(teacher: Encoder, views: Views) -> None:
    parts = Distiller(teacher, EVEN, clone=1.0).losses(teacher.copy(), views)
    assert float(parts["clone"].detach()) == pytest.approx(0, abs=1e-5)
    assert float(parts["attention"].detach()) == 0


def test_an_unknown_stage_is_not_ignored(teacher: Encoder, views: Views) -> None:
    with pytest.raises(KeyError, match="layer4"):
        Distiller(teacher, EVEN | {"layer4": 1.0}).losses(student(), views)


# -------------------------------------------------------------------------------------------- weights of zero


def gradients(loss: Tensor, net: Encoder) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("bn_views", ["separate", "joint"])
def test_weights_of_zero_leave_the_contrast_bit_for_bit(teacher: Encoder, views: Views, bn_views: Any) -> None:
    plain, distilled = student(), student()
    contrast = nt_xent(*project_views(plain, views, bn_views), 0.5)
    loss = Distiller(teacher, dict.fromkeys(STAGES, 0.0), bn_views=bn_views)(distilled, views)
    assert torch.equal(loss, contrast)
    for found, wanted in zip(gradients(loss, distilled), gradients(contrast, plain), strict=True):
        assert torch.equal(found, wanted)
    assert all(torch.equal(t, distilled.tensors()[name]) for name, t in plain.tensors().items())  # BatchNorm too


def test_no_stage_is_every_stage_at_zero(teacher: Encoder, views: Views) -> None:
    none, zero = student(), student()
    losses = [Distiller(teacher, {}, clone=1.0)(none, views)]
    losses.append(Distiller(teacher, dict.fromkeys(STAGES, 0.0), clone=1.0)(zero, views))
    assert torch.equal(*losses)
    for found, wanted in zip(gradients(losses[0], none), gradients(losses[1], zero), strict=True):
        assert torch.equal(found, wanted)


def test_a_dead_student_is_no_nan(teacher: Encoder, views: Views) -> None:
    """Every channel pruned, every weight zero but the contrast's: nothing times zero must not become NaN."""
    s = student()
    s.mask.zero_()
    loss = Distiller(teacher, dict.fromkeys(STAGES, 0.0))(s, views)
    assert float(loss.detach()) == pytest.approx(math.log(2 * 12 - 1), rel=1e-5)  # all projections alike
    assert all(gradient.isfinite().all() for gradient in gradients(loss, s))


# ------------------------------------------------------------------------------------------- its forwards


@pytest.mark.parametrize(("copied", "cost"), [("first", 7), ("both", 8)])
@pytest.mark.parametrize("bn_views", ["separate", "joint"])
def test_cost_of_a_step(teacher: Encoder, views: Views, bn_views: Any, copied: Any, cost: int) -> None:
    """The student forward and backward on two views; the teacher forward alone."""
    for beta in (EVEN, {}):
        with ForwardMeter() as meter:
            Distiller(teacher, beta, bn_views=bn_views, copied=copied)(student(), views).backward()
        assert meter.images == cost * 12


def test_the_student_sees_each_view_once_and_the_teacher_is_left_alone(teacher: Encoder, views: Views) -> None:
    before, s = teacher.tensors(), student()
    given = [view.clone() for view in views]
    Distiller(teacher, EVEN, clone=1.0, copied="both")(s, views).backward()
    assert int(s.tensors()["stem.1.num_batches_tracked"]) == 2
    assert int(s.tensors()["head.1.num_batches_tracked"]) == 2
    assert all(p.grad is not None for p in s.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.tensors().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training
    assert all(torch.equal(a, b) for a, b in zip(views, given, strict=True))


def test_both_views_is_the_mean_and_the_joint_form_pairs_them_rightly(teacher: Encoder, views: Views) -> None:
    net = student().eval()  # without batch statistics the joint pass is the separate one

    def losses(views: Views, **options: Any) -> dict[str, Tensor]:
        return Distiller(teacher, EVEN, clone=1.0, **options).losses(net, views)

    there, back = losses(views), losses((views[1], views[0]))
    assert abs(float((there["clone"] - back["clone"]).detach())) > 1e-4
    for bn_views in ("separate", "joint"):
        both = losses(views, copied="both", bn_views=bn_views)
        for name in ("clone", "attention"):
            torch.testing.assert_close(both[name], (there[name] + back[name]) / 2)
        torch.testing.assert_close(losses(views, bn_views=bn_views), there)

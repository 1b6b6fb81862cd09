"""Encoders without a projection head: a method trains one first, if asked, or is not applicable in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchbd_plugins.anp import ANP
from benchbd_plugins.fp import FP
from benchbd_plugins.ft import FT
from benchbd_plugins.nad import NAD
from torch import Tensor

from benchbd import DefenderKnowledge, Encoder, FineTuning, ImageSet, NotApplicable, Role, derive_seed, note, stream
from benchbd.contract.context import collecting
from benchbd.contract.method import identity_of
from benchbd.nets.meter import ForwardMeter
from benchbd.registry import Registry
from benchbd.testing import toy_attacker, toy_defender, toy_encoder

from ..chance import seeded
from ..small_nets import random_encoder, settled, smooth_pixels
from ..test_conformance import quick

SHORT: dict[str, Any] = {"steps": 3, "batch": 8, "colour": "affine"}
TUNING = [FT(**SHORT), FP(**SHORT, rule="ratio", ratio=0), NAD(**SHORT, beta=0, teacher_steps=2)]
BY_NAME = pytest.mark.parametrize("method", TUNING, ids=lambda method: method.name)


@pytest.fixture
def images() -> ImageSet:
    return ImageSet(smooth_pixels(20))


@pytest.fixture
def headless(images: ImageSet) -> Encoder:
    """An encoder whose BatchNorms have settled statistics, and whose head is gone."""
    encoder = settled(random_encoder(), images.pixels)
    encoder.head = None
    return encoder


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def with_steps(method: Any, steps: int) -> Any:
    return method.model_copy(update={"head_steps": steps})


# ------------------------------------------------------------------------------------------------- the new head


@pytest.mark.parametrize("bn_views", ["separate", "joint"])
def test_the_head_alone_moves(headless: Encoder, images: ImageSet, bn_views: str) -> None:
    before = headless.copy().tensors()
    with FT(**SHORT, head_steps=3, bn_views=bn_views).headed(headless, images, 1):
        assert headless.head is not None
        inside = {name: tensor for name, tensor in headless.tensors().items() if not name.startswith("head.")}
        assert equal(inside, before)
        untrained = headless.untrained(derive_seed(1, "head")).tensors()
        moved = {name for name, t in headless.tensors().items() if name.startswith("head.")}
        assert all(not torch.equal(headless.tensors()[name], untrained[name]) for name in moved)
        assert int(headless.tensors()["head.1.num_batches_tracked"]) == (6 if bn_views == "separate" else 3)
        assert not any(module.training for module in headless.modules())
        assert all(p.requires_grad and p.grad is None for p in headless.parameters())
    assert headless.head is None
    assert equal(headless.tensors(), before)


def test_its_loss_falls(headless: Encoder, images: ImageSet) -> None:
    """By 0.7 to 1.5 over five draws, on fixed views of the pictures."""
    options: dict[str, Any] = {"temperature": 0.1, "crop_scale": (0.5, 1.0), "colour": "affine"}
    method = FT(batch=20, head_steps=60, lr=3e-3, **options)
    views = method.augment.pair(images.pixels, stream(seeded(9), "views"))

    def loss(net: Encoder) -> float:
        with torch.no_grad():
            return float(method.contrast(net.copy().train(), views))

    start = headless.copy()
    start.head = headless.untrained(derive_seed(1, "head")).head
    with method.headed(headless, images, 1):
        assert loss(headless) < loss(start) - 0.3


def test_an_encoder_with_a_head_keeps_it(images: ImageSet) -> None:
    for method in TUNING:
        plain = method.repair(toy_encoder().copy(), DefenderKnowledge(images, 1)).tensors()
        with collecting() as findings:
            asked = with_steps(method, 5).repair(toy_encoder().copy(), DefenderKnowledge(images, 1)).tensors()
        assert equal(plain, asked)
        assert not any("head" in line for line in findings.notes.get("remarks", []))


@BY_NAME
def test_the_option_is_part_of_the_key_only_if_it_is_set(method: FineTuning) -> None:
    assert "head_steps" not in identity_of(method)["options"]
    assert identity_of(with_steps(method, 5))["options"]["head_steps"] == 5


# --------------------------------------------------------------------------------------------------- the method


def test_ft_is_a_new_head_and_then_ft(headless: Encoder, images: ImageSet) -> None:
    """By hand: the head is trained by FT's loop on an encoder whose other weights stand still."""
    by_hand = headless.copy()
    frozen = headless.frozen()
    frozen.head = headless.untrained(derive_seed(1, "head")).head
    assert frozen.head is not None
    frozen.head.train()
    method = FT(**SHORT)
    optimizer, _ = method.optimizer_for(frozen.head.parameters(), 4)
    order, draws = stream(derive_seed(1, "head"), "order"), stream(derive_seed(1, "head"), "views")
    rows = torch.cat([torch.randperm(20, generator=order)[:16] for _ in range(2)]).split(8)
    for own in rows:
        views = method.augment.pair(images.pixels[own], draws)
        optimizer.zero_grad()
        method.contrast(frozen, views).backward()
        optimizer.step()
    by_hand.head = frozen.head.eval()
    wanted = method.fit(by_hand, images, 1)
    wanted.head = None
    found = FT(**SHORT, head_steps=4).repair(headless.copy(), DefenderKnowledge(images, 1))
    assert equal(found.tensors(), wanted.tensors())
    assert not equal(found.tensors(), headless.tensors())


def test_nad_and_fp_without_their_own_parts_are_ft(headless: Encoder, images: ImageSet) -> None:
    """NAD's teacher has the same new head, FP measures with it; without attention and pruning both are FT, bit for
    bit."""
    ft, fp, nad = (with_steps(m, 4).repair(headless.copy(), DefenderKnowledge(images, 1)).tensors() for m in TUNING)
    assert equal(fp, ft)
    assert equal(nad, ft)


def test_fp_judges_by_the_new_head(headless: Encoder, images: ImageSet) -> None:
    def utility(head_steps: int) -> Any:
        fp = FP(batch=8, steps=0, head_steps=head_steps, colour="affine")
        with collecting() as findings:
            fp.repair(headless.copy(), DefenderKnowledge(images, 1))
        return findings.notes["pruning"]["utility_before"]

    fp = FP(batch=8, steps=0, head_steps=30, colour="affine")
    with fp.headed(headless, images, 1):
        by_head = fp.utility(headless, images, torch.arange(64), 1)(0)
    assert utility(30) == pytest.approx(by_head, abs=1e-4)
    assert utility(0) == pytest.approx(fp.utility(headless, images, torch.arange(64), 1)(0), abs=1e-4)


@BY_NAME
def test_the_result_has_no_head_and_a_remark_tells(method: Any, headless: Encoder, images: ImageSet) -> None:
    with collecting() as findings:
        repaired = with_steps(method, 2).repair(headless.copy(), DefenderKnowledge(images, 1))
    assert repaired.head is None
    line = f"{method.name}: a head was trained for 2 steps, as the encoder had none"
    assert line in findings.notes["remarks"]
    if method.name == "nad":
        assert "nad: the teacher was fine-tuned for 2 of 1,000 steps" in findings.notes["remarks"]


@BY_NAME
def test_the_estimate_counts_the_head(method: Any, headless: Encoder, images: ImageSet) -> None:
    asked = with_steps(method, 4)
    with ForwardMeter() as meter:
        asked.repair(headless.copy(), DefenderKnowledge(images, 1))
    assert asked.forwards(20) == method.forwards(20) + 2 * 8 * 4 == meter.images


# ------------------------------------------------------------------------------------------------ one line, or none


@BY_NAME
def test_without_the_option_one_line_names_it(method: Any, headless: Encoder, images: ImageSet) -> None:
    told = (
        "contrastive training needs a projection head and this encoder has none; "
        f"{method.name}.head_steps=200 trains one first"
    )
    with ForwardMeter() as meter, pytest.raises(NotApplicable, match=f"^{told}$"):
        method.repair(headless, DefenderKnowledge(images, 1))
    assert meter.images == 0


def test_anp_names_its_other_loss(headless: Encoder, images: ImageSet) -> None:
    with pytest.raises(NotApplicable, match=r"set anp\.loss=consistency, anp\.bn=eval and anp\.lr=1$"):
        ANP(steps=1).repair(headless.copy(), DefenderKnowledge(images, 1))
    suggested = ANP(steps=1, batch=8, loss="consistency", bn="eval", lr=1)
    assert suggested.repair(headless.copy(), DefenderKnowledge(images, 1)).head is None


def test_every_installed_method_takes_a_headless_encoder_or_refuses_it(
    registry: Registry, headless: Encoder, tmp_path: Path
) -> None:
    """None ends in another error. Of the defenses, those refuse that continue on the head."""
    refused = set()
    for name, cls in registry.methods["defense"].items():
        method: Any = quick(cls)
        try:
            assert isinstance(method.repair(headless.copy(), toy_defender(seed=1)), Encoder)
        except NotApplicable:
            refused.add(name)
    assert refused == {"ft", "fp", "nad", "anp"}
    for cls in registry.methods["attack"].values():
        if cls.role is Role.FILE:
            headless.save(tmp_path / "given.safetensors")
        file = {"file": tmp_path / "given.safetensors"} if cls.role is Role.FILE else {}
        method = quick(cls, **file)
        method.inject(replace(toy_attacker(seed=1), encoder=headless.copy()))
    for cls in registry.methods["detection"].values():
        method = quick(cls)
        method.inspect(headless.copy(), toy_defender(seed=1))


def test_remarks_are_added_and_other_notes_replaced() -> None:
    with collecting() as findings:
        for line in ("one", "two", "one"):
            note("remarks", [line])
            note("last", line)
    assert findings.notes == {"remarks": ["one", "two"], "last": "one"}

"""CPU and CUDA agree, and every path runs on a GPU with nothing left behind on the CPU.

In fp32 with TF32 off both compute the same up to rounding; bf16 is only close.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.anp import ANP
from benchbd_plugins.badencoder import BadEncoder, Goals, badencoder_loss
from benchbd_plugins.bassl import Bassl
from benchbd_plugins.decree import Decree, DecreeDetection
from benchbd_plugins.fp import FP
from benchbd_plugins.ft import FT
from benchbd_plugins.medic import Medic
from benchbd_plugins.mimic import Mimic
from benchbd_plugins.mlp import MLP
from benchbd_plugins.moth import Moth
from benchbd_plugins.nad import NAD
from benchbd_plugins.simclr import SimCLR
from torch import Tensor

from benchbd import (
    AttackerKnowledge,
    Augment,
    DefenderKnowledge,
    Encoder,
    Evaluator,
    ImageSet,
    Probe,
    Target,
    Trigger,
    batch_indices,
    nt_xent,
    stream,
)
from benchbd.api import Session
from benchbd.engine.carry_out import tf32
from benchbd.nets.meter import ForwardMeter, Precision, precision
from benchbd.registry import Registry
from benchbd.toolkit.augment import affine_colour as affine
from benchbd.toolkit.augment import crop_and_flip, crop_boxes, draw_jitter
from benchbd.toolkit.augment import exact_colour as exact
from benchbd.toolkit.mutual_information import Mine

from .small_nets import random_encoder, settled, smooth_pixels

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
ARCHITECTURES = pytest.mark.parametrize("arch", ["w16", "w32", "resnet18"])
KINK = 1e-3  # of gradients: 2e-6 as a rule, but 2e-4 (fp32 against fp64) if rounding switches one ReLU
BETA = {"layer1": 1500.0, "layer2": 3000.0, "layer3": 8500.0}


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    with tf32(False):
        yield


def pictures(n: int, seed: int = 0) -> ImageSet:
    return ImageSet(smooth_pixels(n, seed), torch.arange(n) % 4, tuple("abcd"))


def warm(arch: str = "w16", seed: int = 0) -> Encoder:
    """On the CPU, in eval mode, with BatchNorm statistics of real images."""
    return settled(random_encoder(seed, arch), smooth_pixels(32, seed), 5)


def agree(gpu: Tensor, cpu: Tensor, tolerance: float = 1e-4) -> None:
    assert gpu.device.type == DEVICE
    difference = float((gpu.detach().cpu() - cpu.detach()).norm() / cpu.detach().norm())
    assert difference < tolerance


def gradient(encoder: Encoder, loss: Tensor) -> Tensor:
    tuned = [p for p in encoder.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, tuned, allow_unused=True) if g is not None])


# -------------------------------------------------------------------------------------------------- the encoder


@ARCHITECTURES
def test_features_stages_and_projections(arch: str) -> None:
    encoder, x = warm(arch), smooth_pixels(16, 1).float() / 255
    twin = encoder.copy().to(DEVICE)
    features, maps = twin.intermediates(x.to(DEVICE))
    expected, expected_maps = encoder.intermediates(x)
    agree(features, expected)
    agree(twin.project(features), encoder.project(expected))
    for name in encoder.stages:
        agree(maps[name], expected_maps[name])
    agree(twin.extract(smooth_pixels(16, 1)), expected)  # pixels that are still on the CPU


@ARCHITECTURES
def test_bf16_features_point_the_same_way(arch: str) -> None:
    encoder, pixels = warm(arch), smooth_pixels(64, 1)
    with precision("bf16"):
        features = encoder.copy().to(DEVICE).extract(pixels)
    assert features.dtype == torch.float32
    assert float(F.cosine_similarity(features.cpu(), encoder.extract(pixels)).min()) > 0.99


def test_channels_last_is_kept(tmp_path: Path) -> None:
    encoder = warm("w32")
    encoder.save(tmp_path / "encoder.safetensors")
    x = torch.rand(4, 3, 32, 32, device=DEVICE)
    for twin in (encoder.copy().to(DEVICE), Encoder.load(tmp_path / "encoder.safetensors", DEVICE).copy()):
        assert twin.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
        for value in ("fp32", "bf16"):
            with precision(value):  # type: ignore[arg-type]
                _, maps = twin.intermediates(x)
            assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps.values())


def test_seeded_weights_are_those_of_the_cpu() -> None:
    here, there = (Encoder.seeded("w16", (0.5,) * 3, (0.25,) * 3, seed=3, device=d) for d in ("cpu", DEVICE))
    assert all(torch.equal(a, b) for a, b in zip(here.tensors().values(), there.tensors().values(), strict=True))


@pytest.mark.parametrize("value", ["fp32", "bf16"])
def test_the_meter_counts_under_autocast(value: Any) -> None:
    encoder, x = warm().copy().to(DEVICE).train(), torch.rand(6, 3, 32, 32, device=DEVICE)
    with ForwardMeter() as meter, precision(value):
        nt_xent(encoder.project(encoder(x)), encoder.project(encoder(x))).backward()
    assert meter.images == 3 * 12
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in encoder.parameters())


# ------------------------------------------------------------------------------------------------------- losses


def test_nt_xent() -> None:
    first, second = (torch.randn(32, 128, generator=stream(i, "projections")) for i in range(2))
    agree(nt_xent(first.to(DEVICE), second.to(DEVICE)), nt_xent(first, second))


def test_views_given_the_draws() -> None:
    images, draws = smooth_pixels(64).float() / 255, draw_jitter(64, stream(0, "jitter"))
    boxes, flips = crop_boxes(images, (0.08, 1.0), stream(0, "boxes")), torch.arange(64) % 2 == 1
    on_gpu = type(draws)(**{name: value.to(DEVICE) for name, value in vars(draws).items()})
    agree(crop_and_flip(images.to(DEVICE), boxes.to(DEVICE), flips.to(DEVICE)), crop_and_flip(images, boxes, flips))
    agree(affine(images.to(DEVICE), on_gpu), affine(images, draws))
    agree(exact(images.to(DEVICE), on_gpu), exact(images, draws), 1e-3)  # hue jumps where two channels are equal


@pytest.mark.parametrize("colour", ["exact", "affine"])
def test_views_repeat_and_never_wait(colour: Any) -> None:
    """Copies between the devices and reads of results make the GPU wait: after the first call there are none."""
    pixels = smooth_pixels(32).to(DEVICE)
    first, _ = Augment(colour=colour).pair(pixels, stream(0, "views", DEVICE))
    generator = stream(0, "views", DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second, _ = Augment(colour=colour).pair(pixels, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)
    assert first.device.type == DEVICE


def test_badencoder_loss() -> None:
    clean, pixels, reference = warm(), smooth_pixels(16, 1), smooth_pixels(2, 2)
    views = Augment(crop_scale=None)(reference.repeat(8, 1, 1, 1), stream(0, "views"))
    results = []
    for device in ("cpu", DEVICE):
        f = clean.copy().to(device)
        goals = Goals.of((Target(0, "class 0", Trigger.square(10), reference, ImageSet(reference)),), f)
        victim = warm(seed=1).copy().to(device)
        loss = badencoder_loss(victim, pixels.to(device), f.extract(pixels), goals, views.to(device), (1, 0.3, 0.5))
        results.append((loss, gradient(victim, loss)))
    for cpu, gpu, tolerance in zip(*results, (1e-4, KINK), strict=True):
        agree(gpu, cpu, tolerance)


@pytest.mark.parametrize("bn_views", ["separate", "joint"])
def test_mimic_losses(bn_views: Any) -> None:
    teacher = warm()
    views = Augment().pair(smooth_pixels(16, 1), stream(0, "views"))
    results = []
    for device in ("cpu", DEVICE):
        student = warm(seed=1).copy().to(device).train()
        on_device = (views[0].to(device), views[1].to(device))
        distiller = Mimic(bn_views=bn_views).distiller(teacher.frozen().to(device), BETA)
        parts = tuple(distiller.losses(student, on_device).values())
        results.append((*parts, gradient(student, torch.stack(parts).sum())))
    for cpu, gpu, tolerance in zip(*results, (1e-4, 1e-4, 1e-4, KINK), strict=True):
        agree(gpu, cpu, tolerance)


def test_mine() -> None:
    x = torch.randn(2000, 4, generator=stream(0, "x"))
    y = 0.9 * x + 0.4 * torch.randn(2000, 4, generator=stream(0, "y"))
    mine = Mine(epochs=20, hidden=64)
    estimate = mine(x.to(DEVICE), y.to(DEVICE), 0)
    assert estimate.nats == pytest.approx(mine(x, y, 0).nats, abs=0.05)
    assert estimate == mine(x.to(DEVICE), y.to(DEVICE), 0)


# ----------------------------------------------------------------------------------------------------- methods


def test_batches_are_the_cpus_on_the_gpu() -> None:
    here, there = (list(batch_indices(10, 3, 7, stream(0, "order"), d)) for d in (None, DEVICE))
    assert all(b.device.type == DEVICE and torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("value", ["fp32", "bf16"])
def test_every_new_method_keeps_to_the_device(value: Precision) -> None:
    images = pictures(48).to(DEVICE)
    clean = SimCLR(arch="w16", steps=2, batch=16).pretrain(images, 0)
    shadow, quick = images.unlabeled(), {"steps": 2, "batch": 16}
    defender = DefenderKnowledge(shadow, 0)
    inversion = {"inversion_steps": 3, "inversion_batch": 16}
    passes = {"warmup_passes": 2, "warmup_images": 2, "pair_passes": 2, "refine_passes": 1, "pair_images": 4}
    alike = {"similarity_passes": 2, "similarity_images": 8}
    with precision(value):
        encoders = [
            FP(**quick).repair(clean.copy(), defender),
            FP(site="conv2", **quick).repair(clean.copy(), defender),
            NAD(teacher_steps=1, **quick).repair(clean.copy(), defender),
            ANP(**quick).repair(clean.copy(), defender),
            ANP(loss="consistency", bn="eval", **quick).repair(clean.copy(), defender),
            Moth(classes=3, **passes, **quick).repair(clean.copy(), defender),
            Moth(variant="similarity", **alike, **quick).repair(clean.copy(), defender),
            Decree(**inversion, **quick).repair(clean.copy(), defender),
            Medic(**quick).repair(clean.copy(), defender),
        ]
        for trigger in (Trigger.square(10), Trigger.square(10).within(0.1, 0.9)):
            target = Target(1, "b", trigger.to(DEVICE), images.pixels[:2], images.of_class(1).unlabeled())
            simclr = SimCLR(arch="w16", steps=2, batch=16)
            knowledge = AttackerKnowledge(clean.copy(), simclr, shadow, 0, shadow, (target,), 0)
            encoders.append(Bassl().inject(knowledge).encoder)
        verdict = DecreeDetection(**inversion).inspect(clean.copy(), defender)
    assert -1 <= verdict.score <= 1
    for encoder in encoders:
        assert {t.device.type for t in encoder.state_dict().values()} == {DEVICE}
        assert encoder.extract(images.pixels).isfinite().all()


def test_methods_keep_to_the_device() -> None:
    images = pictures(32).to(DEVICE)
    clean = SimCLR(arch="w16", steps=2, batch=16).pretrain(images, 0)
    target = Target(1, "b", Trigger.square(10).to(DEVICE), images.pixels[:2], images.of_class(1).unlabeled())
    shadow = images.unlabeled()
    knowledge = AttackerKnowledge(clean.copy(), SimCLR(arch="w16"), shadow, 0, shadow, (target,), 0)
    backdoored = BadEncoder(steps=2, batch=8).inject(knowledge).encoder
    defender = DefenderKnowledge(shadow, 0)
    quick = {"steps": 2, "batch": 16}
    repaired = [
        FT(**quick).repair(backdoored.copy(), defender),
        Mimic(mi_epochs=1, mi_pool=2, **quick).repair(backdoored, defender),
    ]
    for encoder in (clean, backdoored, *repaired):
        assert {t.device.type for t in encoder.state_dict().values()} == {DEVICE}
        assert encoder.extract(images.pixels).isfinite().all()


def test_evaluators_answer_on_the_cpu(registry: Registry) -> None:
    test = pictures(40, 1).to(DEVICE)
    triggered = Trigger.square(10).to(DEVICE).stamp(test.pixels)
    probe = Probe(warm().frozen().to(DEVICE), pictures(80).to(DEVICE), test.pixels, triggered, seed=0)
    for name, evaluator in registry.methods["evaluator"].items():
        assert issubclass(evaluator, Evaluator)
        quick = {"epochs": 1} if "epochs" in evaluator.model_fields else {}
        predictions = evaluator(**quick).evaluate(probe)
        assert predictions.clean.device.type == predictions.triggered.device.type == "cpu", name


def test_heads_do_not_depend_on_the_company() -> None:
    train, test = pictures(80).to(DEVICE), pictures(40, 1).to(DEVICE)
    encoders = [warm(seed=seed).frozen().to(DEVICE) for seed in range(8)]
    probes = [Probe(e, train, test.pixels, test.pixels, seed) for seed, e in enumerate(encoders)]
    mlp = MLP(epochs=3, lr=1e-2, scale=10)
    together = mlp.evaluate_together(probes)
    for probe, expected in zip(probes, together, strict=True):
        assert torch.equal(mlp.evaluate(probe).clean, expected.clean)
        assert torch.equal(mlp.evaluate(probe).triggered, expected.triggered)


def test_the_smoke_board(tmp_path: Path) -> None:
    """The same command, no option: CUDA is found, precision is bf16, and the records name their machine."""
    records = Session.open("smoke", store=tmp_path).run()
    assert {record.status for record in records} == {"ok"}
    assert {record.machine["device"] for record in records} == {torch.cuda.get_device_name()}
    assert all(stage["numerics"]["precision"] == "bf16" for r in records for stage in r.identity.values())

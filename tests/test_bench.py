"""The hot paths against the released codes' forms: first that results are equal, then the speed-up.

``make bench``. Naive form and ours alternate in one process, on one thread, after a warm-up; medians are
compared. Bounds are on process CPU time, which a busy machine disturbs least, and lie well below the results of a
quiet machine. With ``--benchmark-json`` the ratios are in ``extra_info``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.badencoder import Goals, badencoder_loss
from benchbd_plugins.mimic import Mimic
from benchbd_plugins.mlp import MLP, dropout_mask, initial, layers_of
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

from benchbd import Augment, Encoder, ImageSet, Target, Trigger, attention_map, nt_xent, one_thread, stream
from benchbd.base.device import Precision, native_bf16
from benchbd.nets.meter import precision
from benchbd.toolkit.augment import Colour, affine_colour, crop_and_flip, crop_boxes, draw_jitter, exact_colour

from .small_nets import relative, settled, smooth_pixels
from .toolkit.test_augment import naive_affine, torchvision_colour

pytestmark = pytest.mark.bench

ROUNDS = 7
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Watch:
    """Runs a function and keeps the wall and CPU seconds of every run."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.function()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def race(
    benchmark: BenchmarkFixture, title: str, naive: Callable[[], object], ours: Callable[[], object], at_least: float
) -> None:
    """Time both in turns, print one line, and assert that ours takes ``at_least`` times less CPU time."""
    slow, fast = Watch(naive), Watch(ours)
    benchmark.pedantic(fast, setup=slow, rounds=ROUNDS, warmup_rounds=1)
    for watch in (slow, fast):
        del watch.wall[0], watch.cpu[0]  # the warm-up
    ratios = {name: median(getattr(slow, name)) / median(getattr(fast, name)) for name in ("wall", "cpu")}
    steady = all(min(watch.wall) / median(watch.wall) >= 0.7 for watch in (slow, fast))
    benchmark.extra_info |= {f"ratio_{name}": round(ratio, 2) for name, ratio in ratios.items()} | {"steady": steady}
    milliseconds = [1000 * median(watch.cpu) for watch in (slow, fast)]
    print(
        f"\n{title:<36} {ratios['cpu']:6.1f}x CPU {ratios['wall']:6.1f}x wall   naive {milliseconds[0]:8.1f} ms"
        f"   ours {milliseconds[1]:7.1f} ms{'' if steady else '   unsteady'}"
    )
    assert ratios["cpu"] >= at_least


def numpy_trigger(trigger: Trigger) -> tuple[np.ndarray, np.ndarray]:
    """Mask and patch as the released files hold them, (H, W, 3)."""
    keep, pattern = (part.permute(1, 2, 0).numpy() for part in (trigger.keep, trigger.pattern))
    return keep.astype(np.int64), pattern.astype(np.float64)


def pil(pixels: Tensor) -> list[Image.Image]:
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).numpy()]


def warm_encoder(seed: int) -> Encoder:
    """A w32 with BatchNorm statistics of images, in eval mode."""
    return settled(Encoder.seeded("w32", MEAN, STD, seed=seed, device="cpu"), smooth_pixels(64, seed), 10)


def as_released(encoder: Encoder) -> Encoder:
    """The same net in the released codes' memory format. Use ``walk`` on it: its own forward would change it back."""
    return encoder.to(memory_format=torch.contiguous_format)


def walk(encoder: Encoder, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    y, maps = encoder.stem((x - encoder.mean) / encoder.std), {}
    for name, stage in encoder.body.items():
        y = maps[name] = stage(y)
    return y.mean((2, 3)), maps


# ------------------------------------------------------------------------------------------------- images


def test_stamping(benchmark: BenchmarkFixture) -> None:
    """Every item of the released data sets stamps one numpy picture."""
    pixels, trigger = smooth_pixels(2000), Trigger.square(10)
    pictures = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    keep, pattern = numpy_trigger(trigger)

    def naive() -> Tensor:
        stamped = [np.asarray(Image.fromarray((picture * keep + pattern).astype(np.uint8))) for picture in pictures]
        return torch.from_numpy(np.stack(stamped)).permute(0, 3, 1, 2)

    assert torch.equal(trigger.stamp(pixels), naive())
    race(benchmark, "stamping 2000 images", naive, lambda: trigger.stamp(pixels), at_least=3)


VIEW = transforms.Compose(
    [
        transforms.RandomResizedCrop(32),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
REFERENCE_VIEW, PLAIN = transforms.Compose(VIEW.transforms[1:]), transforms.Compose(VIEW.transforms[4:])


@pytest.mark.parametrize(("colour", "at_least"), [("exact", 4), ("affine", 9)])
def test_augmentation(benchmark: BenchmarkFixture, colour: Colour, at_least: float) -> None:
    """Every item of the released data sets transforms one PIL picture twice."""
    pixels, generator = smooth_pixels(256), stream(0, "views")
    images, draws = pixels.float() / 255, draw_jitter(256, generator)
    boxes, flips = crop_boxes(images, (0.08, 1.0), generator), torch.arange(256) % 2 == 1
    cropped = crop_and_flip(images, boxes, flips)
    coloured = (exact_colour if colour == "exact" else affine_colour)(cropped, draws)
    for i in range(256):
        naive = transforms.functional.resized_crop(images[i], *boxes[i].tolist(), [32, 32], antialias=True)
        naive = naive.flip(2) if flips[i] else naive
        assert torch.allclose(cropped[i], naive, atol=1e-4)
        naive = (torchvision_colour if colour == "exact" else naive_affine)(cropped[i].clamp(0, 1), draws, i)
        assert torch.allclose(coloured[i], naive, atol=1e-3)

    pictures, augment = pil(pixels), Augment(colour=colour)
    race(
        benchmark,
        f"augmentation 256 x 2, {colour} colour",
        lambda: [torch.stack([VIEW(picture) for picture in pictures]) for _ in range(2)],
        lambda: augment.pair(pixels, generator),
        at_least,
    )


# -------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(("items", "at_least"), [(False, 1.3), (True, 1.5)], ids=["passes", "items"])
def test_badencoder_step(benchmark: BenchmarkFixture, items: bool, at_least: float) -> None:
    """Six forwards and four backwards of a batch, of which B copies of one reference are two and one.

    items: with the loading of the data. An item of the released data set is an augmented view that is never read, and
    the image, the stamped image, the reference and an augmented reference, each from PIL.
    """
    batch = 96
    clean, pixels, trigger = warm_encoder(0), smooth_pixels(batch, 1), Trigger.square(10)
    reference = smooth_pixels(1, 2)
    goals = Goals.of((Target(0, "class 0", trigger, reference, ImageSet(reference)),), clean)
    features, augment, generator = clean.extract(pixels), Augment(crop_scale=None), stream(0, "views")
    views = augment(reference.expand(batch, -1, -1, -1), generator)
    pictures, copy = pil(pixels), pil(reference)[0]
    keep, pattern = numpy_trigger(trigger)

    def victim() -> tuple[Encoder, torch.optim.SGD]:
        """f' at some distance from f, so that no term is at its optimum. Only convolutions train."""
        encoder, noise = clean.copy().requires_grad_(False), stream(0, "noise")
        tuned = [p.requires_grad_(True) for p in encoder.backbone() if p.ndim > 1]
        with torch.no_grad():
            for p in tuned:
                p.add_(0.3 * p.std() * torch.randn(p.shape, generator=noise))
        return encoder, torch.optim.SGD(tuned, 1e-3, 0.9, weight_decay=5e-4)

    (slow, slow_sgd), (fast, fast_sgd) = victim(), victim()
    as_released(slow), (teacher := as_released(clean.frozen()))

    def naive(step: bool = True) -> float:
        if items and step:
            for picture in pictures:
                stamped = Image.fromarray((np.asarray(picture) * keep + pattern).astype(np.uint8))
                VIEW(picture), PLAIN(picture), PLAIN(stamped), PLAIN(copy), REFERENCE_VIEW(copy)
        image, triggered = pixels.float() / 255, trigger.stamp(pixels).float() / 255
        copies = reference.float().expand(batch, -1, -1, -1) / 255
        with torch.no_grad():
            clean_raw, clean_reference = (F.normalize(walk(teacher, x)[0], dim=-1) for x in (image, copies))
        raw, backdoored, plain, augmented = (
            F.normalize(walk(slow, x)[0], dim=-1) for x in (image, triggered, copies, views.clone())
        )
        loss_0 = -torch.sum(backdoored * plain, dim=-1).mean()
        loss_1 = -torch.sum(augmented * clean_reference, dim=-1).mean()
        loss_2 = -torch.sum(raw * clean_raw, dim=-1).mean()
        loss = loss_0 + loss_1 + loss_2
        slow_sgd.zero_grad()
        loss.backward()
        if step:
            slow_sgd.step()
        return loss.item()

    def ours(step: bool = True) -> Tensor:
        drawn = augment(reference.expand(batch, -1, -1, -1), generator) if items and step else views
        loss = badencoder_loss(fast, pixels, features, goals, drawn, (1, 1, 1))
        fast_sgd.zero_grad(set_to_none=True)
        loss.backward()
        if step:
            fast_sgd.step()
        return loss.detach()

    assert float(ours(step=False)) == pytest.approx(naive(step=False), rel=1e-5)
    assert relative(gradient(fast), gradient(slow)) < 1e-5
    race(benchmark, f"BadEncoder step, {'passes and data' if items else 'passes alone'}", naive, ours, at_least)


def test_mimic_step(benchmark: BenchmarkFixture) -> None:
    """The student passes three times for two views; the teacher twice, with gradients that are never cleared."""
    teacher, pixels = warm_encoder(0), smooth_pixels(64, 1)
    mimic = Mimic()
    views = mimic.augment.pair(pixels, stream(0, "views"))
    beta = {"layer1": 1500.0, "layer2": 3000.0, "layer3": 8500.0}
    frozen, tracked = teacher.frozen(), teacher.copy()
    distiller = mimic.distiller(frozen, beta)
    slow, fast = (Encoder.seeded("w32", MEAN, STD, seed=3, device="cpu").train() for _ in range(2))
    slow_adam = torch.optim.Adam(slow.parameters(), 1e-3, weight_decay=1e-6)
    fast_adam, _ = mimic.optimizer_for(fast.parameters(), 1000)

    def naive(step: bool = True) -> float:
        first, second = (slow.project(walk(slow, view)[0]) for view in views)
        student, student_maps = walk(slow, views[0])
        teacher_features, _ = walk(tracked, views[0])
        _, teacher_maps = walk(tracked, views[0])
        u = F.normalize(torch.cat([first, second]), dim=-1)
        n = len(first)
        similarity = torch.exp(u @ u.T / mimic.temperature)
        similarity = similarity.masked_select(~torch.eye(2 * n, dtype=torch.bool)).view(2 * n, -1)
        positive = torch.exp(torch.sum(u[:n] * u[n:], dim=-1) / mimic.temperature)
        contrast = (-torch.log(torch.cat([positive, positive]) / similarity.sum(dim=-1))).mean()
        clone = 1 - torch.sum(F.normalize(student, dim=-1) * F.normalize(teacher_features, dim=-1), dim=-1).mean()
        attention = torch.zeros(())
        for name, weight in beta.items():
            a, b = attention_map(student_maps[name]), attention_map(teacher_maps[name])
            attention = attention + weight * F.mse_loss(a, b)
        loss = clone + contrast + attention
        slow_adam.zero_grad()
        loss.backward()
        if step:
            slow_adam.step()
        return loss.item()

    def ours(step: bool = True) -> Tensor:
        loss = distiller(fast, views)
        fast_adam.zero_grad(set_to_none=True)
        loss.backward()
        if step:
            fast_adam.step()
        return loss.detach()

    assert float(ours(step=False)) == pytest.approx(naive(step=False), rel=1e-5)
    assert relative(gradient(fast), gradient(slow)) < 1e-5
    assert tracked.stem[0].weight.grad is not None  # the released code computes this gradient too
    assert frozen.stem[0].weight.grad is None
    as_released(slow), as_released(tracked)  # only now: it changes the gradient by more than the comparison allows
    race(benchmark, "MIMIC step", naive, ours, at_least=1.4)


@pytest.mark.skipif(not native_bf16(), reason="this CPU has no bf16 instructions")
def test_simclr_step_in_bf16(benchmark: BenchmarkFixture) -> None:
    """A step of the boards' pre-training, two views of 256 images through w32, in both precisions."""
    views = [torch.rand(256, 3, 32, 32, generator=stream(seed, "views")) for seed in (1, 2)]

    def step(encoder: Encoder, kind: Precision) -> Tensor:
        with precision(kind):
            first, second = (encoder.project(encoder(view)) for view in views)
            nt_xent(first, second).backward()
        return gradient(encoder)

    kinds: tuple[Precision, ...] = ("fp32", "bf16")
    encoders = {kind: Encoder.seeded("w32", MEAN, STD, seed=1, device="cpu").train() for kind in kinds}
    whole, half = (step(encoders[kind], kind) for kind in kinds)
    assert F.cosine_similarity(whole, half, dim=0) > 0.9
    with one_thread():
        slow, fast = (partial(step, encoders[kind], kind) for kind in kinds)
        race(benchmark, "SimCLR step, w32: fp32 and bf16", slow, fast, at_least=1.1)


def gradient(encoder: Encoder) -> Tensor:
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def test_nt_xent(benchmark: BenchmarkFixture) -> None:
    """NT-Xent as the released codes write it, with a boolean mask, against one cross-entropy."""
    first, second = (torch.randn(256, 128, generator=stream(i, "projections"), requires_grad=True) for i in range(2))

    def naive() -> Tensor:
        u = F.normalize(torch.cat([first, second]), dim=-1)
        n = len(first)
        similarity = torch.exp(u @ u.T / 0.5)
        mask = (torch.ones_like(similarity) - torch.eye(2 * n)).bool()
        similarity = similarity.masked_select(mask).view(2 * n, -1)
        positive = torch.exp(torch.sum(u[:n] * u[n:], dim=-1) / 0.5)
        return (-torch.log(torch.cat([positive, positive]) / similarity.sum(dim=-1))).mean()

    ours, theirs = (torch.autograd.grad(loss, [first, second]) for loss in (nt_xent(first, second), naive()))
    assert relative(torch.cat(ours), torch.cat(theirs)) < 1e-5
    race(benchmark, "NT-Xent", lambda: naive().backward(), lambda: nt_xent(first, second).backward(), at_least=1)


# --------------------------------------------------------------------------------------------------- head


class Dropped(nn.Module):
    """Dropout by the masks of ours, for the comparison."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return x * dropout_mask(*x.shape, 0.5, self.generator)


def test_head(benchmark: BenchmarkFixture) -> None:
    """An epoch of the downstream classifier: a DataLoader over tensors, Adam, and the loss read at every step."""
    images, dim, classes, seed = 2048, 512, 10, 5
    features = F.normalize(torch.randn(images, dim, generator=stream(0, "features")).relu(), dim=1)
    labels = torch.randint(0, classes, (images,), generator=stream(0, "labels"))
    mlp = MLP(epochs=1, shuffle=False)

    def naive(dropout: nn.Module) -> nn.Sequential:
        hidden = (nn.Linear(dim, 512), nn.ReLU(), dropout, nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, classes))
        net, sizes = nn.Sequential(*hidden), (dim, 512, 256, classes)
        start = layers_of(initial(sizes, stream(seed, "init"))[None], sizes)
        for i, (weight, bias) in zip((0, 3, 5), start, strict=True):
            net[i].load_state_dict({"weight": weight[0].T, "bias": bias[0, 0]})
        adam, total = torch.optim.Adam(net.parameters(), 1e-4), 0.0
        loader = DataLoader(TensorDataset(features, labels), batch_size=64, shuffle=False, num_workers=0)
        for x, y in loader:
            adam.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            adam.step()
            total += loss.item()
        return net

    def ours() -> list[tuple[Tensor, Tensor]]:
        return mlp.fit(features[None], labels[None], classes, [seed])

    net = naive(Dropped(stream(seed, "dropout")))
    for i, (weight, bias) in zip((0, 3, 5), ours(), strict=True):
        torch.testing.assert_close(weight[0].T, net[i].weight.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bias[0, 0], net[i].bias.detach(), rtol=1e-5, atol=1e-5)
    race(benchmark, "downstream head, one epoch", lambda: naive(nn.Dropout(0.5)), ours, at_least=1.1)

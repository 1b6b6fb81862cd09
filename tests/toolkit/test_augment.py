"""SimCLR's views against torchvision, image by image."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as tv
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from benchbd import Augment, flip_and_shift, stream
from benchbd.toolkit.augment import (
    Jitter,
    affine_colour,
    colour_matrices,
    crop_and_flip,
    crop_boxes,
    draw_jitter,
    exact_colour,
)

N = 64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = N, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=generator(9))


def random_pixels(n: int = N) -> Tensor:
    return (random_images(n) * 255).byte()


def jitter(n: int, **changes: object) -> Jitter:
    """A jitter that does nothing, but for ``changes`` (scalars or (n,) tensors)."""
    given: dict[str, object] = {
        "brightness": 1.0,
        "contrast": 1.0,
        "saturation": 1.0,
        "hue": 0.0,
        "order": torch.arange(4).expand(n, 4),
        "applied": True,
        "grey": False,
    }
    full = {
        name: value if isinstance(value, Tensor) else torch.full((n,), value)  # type: ignore[arg-type]
        for name, value in (given | changes).items()
    }
    return Jitter(**full)


def torchvision_colour(image: Tensor, draws: Jitter, i: int) -> Tensor:
    """The i-th image's jitter by torchvision's own functions in the i-th order."""
    if draws.applied[i]:
        for operation in draws.order[i].tolist():
            adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[operation]
            factors = (draws.brightness, draws.contrast, draws.saturation, draws.hue)[operation]
            image = adjust(image, float(factors[i]))
    return tv.rgb_to_grayscale(image, 3) if draws.grey[i] else image


# ---------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.9, 1.0)])
def test_crop_boxes_lie_inside_and_are_distributed_as_torchvisions(scale: tuple[float, float]) -> None:
    n = 4000
    boxes = crop_boxes(torch.empty(n, 3, 32, 32), scale, generator())
    top, left, height, width = boxes.unbind(1)
    assert boxes.dtype == torch.int64
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 32).all()
    assert (left + width <= 32).all()

    torch.manual_seed(5)
    image = torch.empty(3, 32, 32)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)]).double()
    ours = boxes.double()
    for statistic in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2],
        lambda b: b[:, 3],
        lambda b: b[:, 2] * b[:, 3],
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0] / (32 - b[:, 2]).clamp_min(1),
        lambda b: (b[:, 2] == 32).double(),
    ):
        mine, reference = statistic(ours), statistic(theirs)
        error = ((mine.var() + reference.var()) / n).sqrt()
        assert abs(mine.mean() - reference.mean()) < 4 * error + 1e-9  # four standard errors of the difference
        assert float(mine.std()) == pytest.approx(float(reference.std()), rel=0.08, abs=1e-9)


def test_crop_boxes_fall_back_to_the_whole_image() -> None:
    boxes = crop_boxes(torch.empty(50, 3, 32, 32), (4.0, 5.0), generator())  # nothing of that area ever fits
    assert boxes.unique(dim=0).tolist() == [[0, 0, 32, 32]]


@pytest.mark.parametrize("size", [32, 33])
def test_crop_and_flip_is_torchvisions_resized_crop(size: int) -> None:
    images = random_images(size=size)
    boxes = crop_boxes(images, (0.08, 1.0), generator())
    boxes[0] = torch.tensor([0, 0, size, size])
    boxes[1] = torch.tensor([size - 1, 3, 1, 2])
    flips = torch.arange(N) % 2 == 1
    ours = crop_and_flip(images, boxes, flips)
    for i, box in enumerate(boxes.tolist()):
        expected = tv.resized_crop(images[i], *box, [size, size], tv.InterpolationMode.BILINEAR, antialias=True)
        expected = tv.hflip(expected) if flips[i] else expected
        assert torch.allclose(ours[i], expected, atol=1e-4), (i, box)
    assert torch.allclose(ours[0], images[0], atol=1e-6)


def test_without_a_crop_the_geometry_stays() -> None:
    """A reference input is at most mirrored: its grey levels stay in place."""
    pixels = random_pixels(400)
    views = Augment(crop_scale=None)(pixels, generator())
    plain, mirrored = pixels.float() / 255, pixels.flip(3).float() / 255
    is_plain = (views - plain).abs().amax((1, 2, 3)) < 1e-6
    is_mirrored = (views - mirrored).abs().amax((1, 2, 3)) < 1e-6
    untouched = 0.2 * 0.8  # no jitter, no grey
    assert float(is_plain.float().mean()) == pytest.approx(untouched / 2, abs=0.05)
    assert float(is_mirrored.float().mean()) == pytest.approx(untouched / 2, abs=0.05)
    stripes = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    stripes[:, :, 4] = 200
    views = Augment(crop_scale=None)(stripes, generator())
    assert (views[:, :, 4].amin((1, 2)) > views[:, :, 5].amax((1, 2)) + 0.1).all()  # the row is still row 4
    assert torch.allclose(views, views.flip(3), atol=1e-6)


# ------------------------------------------------------------------------------------------------------ colour


def test_exact_colour_is_torchvisions_in_every_order() -> None:
    images, draws = random_images(), draw_jitter(N, generator(3))
    ours = exact_colour(images, draws)
    for i in range(N):
        assert torch.allclose(ours[i], torchvision_colour(images[i], draws, i), atol=1e-3), i
    assert len(draws.order.unique(dim=0)) > 15  # of 24 orders: each image has its own
    assert torch.equal(images, random_images())


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.1, 0.3])
def test_hue_turns_as_in_torchvision(turn: float) -> None:
    images = random_images(8)
    images[0] = images[0, :1]  # grey has no hue
    images[1] = 0
    images[2] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    images[3] = torch.tensor([0.2, 0.7, 0.7]).view(3, 1, 1)  # two channels tie for the brightest
    ours = exact_colour(images, jitter(8, hue=turn))
    for mine, image in zip(ours, images, strict=True):
        assert torch.allclose(mine, tv.adjust_hue(image, turn), atol=1e-3)


def naive_affine(image: Tensor, draws: Jitter, i: int) -> Tensor:
    """The operations one after another, as maps of the pixels, without a clamp between; hue turned in YIQ."""
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=torch.float64)
    luma = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    x = image.double()
    for operation in draws.order[i].tolist() if draws.applied[i] else []:
        grey = (x * luma).sum(0, keepdim=True)
        if operation == 0:
            x = x * draws.brightness[i]
        elif operation == 1:
            x = draws.contrast[i] * x + (1 - draws.contrast[i]) * grey.mean()
        elif operation == 2:
            x = draws.saturation[i] * x + (1 - draws.saturation[i]) * grey
        else:
            y, c, q = torch.einsum("ij,jhw->ihw", to_yiq, x)
            angle = -2 * math.pi * float(draws.hue[i])
            turned = (y, c * math.cos(angle) - q * math.sin(angle), c * math.sin(angle) + q * math.cos(angle))
            x = torch.einsum("ij,jhw->ihw", torch.linalg.inv(to_yiq), torch.stack(turned))
    if draws.grey[i]:
        x = (x * luma).sum(0, keepdim=True).expand(3, -1, -1)
    return x.clamp(0, 1).float()


def test_affine_colour_is_the_composition() -> None:
    images, draws = random_images(), draw_jitter(N, generator(4))
    ours = affine_colour(images, draws)
    for i in range(N):
        assert torch.allclose(ours[i], naive_affine(images[i], draws, i), atol=1e-4), i


def test_affine_colour_is_near_torchvisions() -> None:
    """If nothing clips, the two differ only in the hue's colour space, and both turn in the same direction."""
    images = 0.4 + 0.2 * random_images()
    without_hue = draw_jitter(N, generator(4))
    without_hue = Jitter(**{**vars(without_hue), "hue": torch.zeros(N)})
    assert torch.allclose(affine_colour(images, without_hue), exact_colour(images, without_hue), atol=1e-3)
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    for turn in (-0.1, 0.1):
        a, b = (colour(red, jitter(1, hue=turn))[0, :, 0, 0] for colour in (affine_colour, exact_colour))
        assert float(a[1] - a[2]) * float(b[1] - b[2]) > 0  # both towards green, or both towards blue


def test_a_jitter_that_is_not_applied_is_the_identity() -> None:
    images = random_images(4)
    strong = {"brightness": 0.6, "contrast": 1.4, "saturation": 0.6, "hue": 0.1}
    for colour in (exact_colour, affine_colour):
        assert torch.allclose(colour(images, jitter(4)), images, atol=1e-5)
        assert torch.allclose(colour(images, jitter(4, **strong, applied=False)), images, atol=1e-6)
        assert not torch.allclose(colour(images, jitter(4, **strong)), images, atol=0.05)
        grey = colour(images, jitter(4, grey=True))
        assert torch.allclose(grey, tv.rgb_to_grayscale(images, 3), atol=1e-5)


def test_matrices_of_greys_keep_greys_grey() -> None:
    matrix, offset = colour_matrices(torch.full((N, 3), 0.3), draw_jitter(N, generator()))
    out = matrix @ torch.full((3,), 0.3) + offset
    assert torch.allclose(out, out.mean(1, keepdim=True).expand_as(out), atol=2e-3)


# ------------------------------------------------------------------------------------------------------- draws


def test_probabilities_and_ranges() -> None:
    n = 20_000
    draws = draw_jitter(n, generator())
    assert float(draws.applied.float().mean()) == pytest.approx(0.8, abs=0.012)
    assert float(draws.grey.float().mean()) == pytest.approx(0.2, abs=0.012)
    for factors, low, high in (
        (draws.brightness, 0.6, 1.4),
        (draws.contrast, 0.6, 1.4),
        (draws.saturation, 0.6, 1.4),
        (draws.hue, -0.1, 0.1),
    ):
        assert low <= float(factors.min()) < low + 0.001
        assert high - 0.001 < float(factors.max()) <= high
        assert float(factors.std()) == pytest.approx((high - low) / math.sqrt(12), rel=0.03)
    assert torch.equal(draws.order.sort(1).values, torch.arange(4).expand(n, 4))
    counts = (draws.order @ torch.tensor([64, 16, 4, 1])).unique(return_counts=True)[1]
    assert len(counts) == 24
    assert float(counts.float().std()) < 4 * math.sqrt(n / 24)
    joint = torch.stack([draws.brightness, draws.contrast, draws.saturation, draws.hue, draws.applied.float()])
    assert float((torch.corrcoef(joint) - torch.eye(5)).abs().max()) < 0.04


def test_flips_are_even_and_follow_the_crop() -> None:
    ramp = torch.linspace(0, 255, 32).byte().expand(2000, 3, 32, 32).contiguous()
    views = Augment(crop_scale=(0.5, 1.0))(ramp, generator())
    rising = (views[:, 1, :, -1] > views[:, 1, :, 0]).all(1)
    assert float(rising.float().mean()) == pytest.approx(0.5, abs=0.045)


@pytest.mark.parametrize("colour", ["exact", "affine"])
@pytest.mark.parametrize("crop_scale", [None, (0.08, 1.0)])
def test_views_are_a_function_of_the_generator(colour: str, crop_scale: tuple[float, float] | None) -> None:
    augment = Augment(crop_scale, colour)  # type: ignore[arg-type]
    pixels = random_pixels()
    before = pixels.clone()
    torch.manual_seed(1)
    first = augment(pixels, generator(1))
    torch.manual_seed(2)
    assert torch.equal(first, augment(pixels, generator(1)))
    assert torch.equal(pixels, before)
    assert not torch.equal(first, augment(pixels, generator(2)))
    assert first.shape == pixels.shape
    assert first.dtype == torch.float32
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert len(augment(pixels[:0], generator(1))) == 0


def test_the_two_views_of_a_pair_are_independent() -> None:
    same = random_pixels(1).expand(200, -1, -1, -1)
    first, second = Augment().pair(same, generator())
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    a, b = (v.flatten(1).mean(1) for v in (first, second))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.25
    assert float(a.std()) == pytest.approx(float(b.std()), rel=0.3)


def test_views_are_mirrored_and_moved_images() -> None:
    pixels = torch.randint(0, 256, (40, 3, 9, 9), generator=stream(0, "p")).byte()
    views = flip_and_shift(pixels, stream(0, "views"))
    found = set()
    for image, view in zip(pixels, views, strict=True):
        for mirrored in (False, True):
            turned = image.flip(2) if mirrored else image
            wide = F.pad(turned.float(), (4, 4, 4, 4), mode="replicate").byte()
            shifts = [(i, j) for i in range(9) for j in range(9) if torch.equal(wide[:, i : i + 9, j : j + 9], view)]
            found |= {(mirrored, *shift) for shift in shifts}
            if shifts:
                break
        else:
            pytest.fail("a view is no mirrored and moved image")
    assert {mirrored for mirrored, _, _ in found} == {False, True}
    assert len({i for _, i, _ in found}) > 5
    assert len({j for _, _, j in found}) > 5

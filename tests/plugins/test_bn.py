"""BN: the statistics by hand, what stays as it was, the cost, and where it does not apply."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchbd_plugins.bn import BN
from torch import Tensor, nn

from benchbd import DefenderKnowledge, Encoder, ImageSet, NotApplicable, Role, UsageError
from benchbd.nets.meter import ForwardMeter
from benchbd.registry import load_registry

from ..boards import TINY, Tiny
from ..small_nets import Bare, affine, random_encoder, same, smooth_pixels


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """40 smooth random pictures."""
    return ImageSet(smooth_pixels(40))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Random weights; the statistics of its BatchNorms are of no images."""
    return affine(random_encoder()).eval()


def repaired(encoder: Encoder, images: ImageSet, seed: int = 3, batch: int = 500) -> Encoder:
    return BN(batch=batch).repair(encoder.copy(), DefenderKnowledge(images, seed))


@torch.no_grad()
def normalised(encoder: Encoder, images: ImageSet) -> dict[str, Tensor]:
    """What each BatchNorm of f outputs on the images before its affine, float64 (C, N * H * W)."""
    found: dict[str, Tensor] = {}

    def keep(name: str, norm: nn.BatchNorm2d, out: Tensor) -> None:
        y = out.double().transpose(0, 1).flatten(1)
        found[name] = (y - norm.bias.double()[:, None]) / norm.weight.double()[:, None]

    for name, norm in encoder.norms().items():
        norm.register_forward_hook(lambda norm, _, out, name=name: keep(name, norm, out.clone()))
    encoder(images.pixels.float() / 255)
    return found


def test_every_batchnorm_normalises_the_clean_images(encoder: Encoder, images: ImageSet) -> None:
    """In eval mode, each channel of every BatchNorm has mean 0 and variance 1 over the images."""
    before, after = normalised(encoder.copy(), images), normalised(repaired(encoder, images), images)
    assert len(after) == len(encoder.norms()) == 9
    assert max(float(y.mean(1).abs().max()) for y in before.values()) > 0.5
    for y in after.values():
        assert y.mean(1).abs().max() < 0.01  # float32, and channels whose spread is small beside their mean
        assert torch.allclose(y.var(1), torch.ones(len(y)).double(), atol=0.01)  # eps of BatchNorm


@torch.no_grad()
def test_several_batches_are_averaged(encoder: Encoder, images: ImageSet) -> None:
    """Of the first BatchNorm: the mean of all images, and the mean of the batches' unbiased variances."""
    norm = next(iter(repaired(encoder, images, seed=5, batch=10).norms().values()))
    maps = encoder.intermediates(images.pixels.float() / 255, every=True)[1]["stem.conv"]
    assert torch.allclose(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    of_others = torch.stack([maps[rows].var((0, 2, 3)) for rows in order.split(10)]).mean(0)
    assert torch.allclose(norm.running_var, of_others, rtol=0.05)  # other batches, nearly the same
    assert norm.running_var.sum() < maps.var((0, 2, 3)).sum()  # the variance of the batches' means is left out
    assert int(norm.num_batches_tracked) == 4


def test_nothing_else_changes(encoder: Encoder, images: ImageSet) -> None:
    result = repaired(encoder, images)
    changed = {
        name for name, value in encoder.state_dict().items() if not torch.equal(value, result.state_dict()[name])
    }
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{norm}.{kind}" for norm in encoder.norms() for kind in kinds}
    assert {norm.momentum for norm in result.norms().values()} == {0.1}
    assert not any(module.training for module in result.modules())
    assert same(result, repaired(encoder, images))
    assert same(repaired(result, images), result)  # what the statistics were before makes no difference
    assert not same(repaired(encoder, images, seed=4, batch=10), repaired(encoder, images, seed=5, batch=10))


@pytest.mark.parametrize(("count", "batch", "batches"), [(40, 500, 1), (40, 20, 2), (40, 21, 1), (7, 2, 3)])
def test_an_image_is_passed_once_and_no_batch_is_smaller_than_asked(
    encoder: Encoder, images: ImageSet, count: int, batch: int, batches: int
) -> None:
    with ForwardMeter() as meter:
        result = repaired(encoder, ImageSet(images.pixels[:count]), batch=batch)
    assert meter.images == BN(batch=batch).forwards(count) == count
    assert {int(norm.num_batches_tracked) for norm in result.norms().values()} == {batches}


def test_where_it_does_not_apply(encoder: Encoder, images: ImageSet) -> None:
    with pytest.raises(NotApplicable, match=r"^bn computes BatchNorm statistics; bare has no BatchNorm$"):
        BN().repair(Bare("bare"), DefenderKnowledge(images, 0))
    with pytest.raises(UsageError, match=r"^bn needs at least 2 clean images, not 1$"):
        repaired(encoder, ImageSet(images.pixels[:1]))


def test_it_is_a_control_that_starts_from_each_encoder(tmp_path: Path) -> None:
    assert (BN.role, BN.uses_weights) == (Role.BN, True)
    cells = Tiny(tmp_path, load_registry(), TINY).plan(defenses=("bn", "scratch")).cells
    keys = {(cell.attack, cell.defense): cell.judged.key for cell in cells}
    assert keys["none", "scratch"] == keys["badencoder", "scratch"]
    assert keys["none", "bn"] != keys["badencoder", "bn"]

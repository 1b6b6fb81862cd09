"""The encoder: the papers' architecture by its numbers, files, copies, and the meter on which all budgets depend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchbd import BenchbdError, DataError, Encoder
from benchbd.nets.encoder import W16
from benchbd.nets.meter import ForwardMeter, Precision, precision

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def small(seed: int = 0, arch: str = "w16") -> Encoder:
    return Encoder.seeded(arch, MEAN, STD, seed=seed, device="cpu").eval()


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def pixels(n: int = 4) -> Tensor:
    return (images(n) * 255).byte()


def same(a: Encoder, b: Encoder) -> bool:
    left, right = a.tensors(), b.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ------------------------------------------------------------------------------------------------ architecture


def test_resnet18_is_the_papers() -> None:
    encoder = Encoder("resnet18").eval()
    assert sum(p.numel() for p in encoder.backbone()) == 11_168_832
    assert encoder.head is not None
    assert sum(p.numel() for p in encoder.head.parameters()) == 328_832
    f = [module for part in (encoder.stem, encoder.body) for module in part.modules()]
    assert not any(isinstance(module, nn.MaxPool2d | nn.Linear) for module in f)
    assert sum(m.num_features for m in f if isinstance(m, nn.BatchNorm2d)) == 4_800
    assert [type(module) for module in encoder.head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert encoder.head[0].bias is None
    assert encoder.head[3].bias is not None
    with torch.no_grad():
        features, maps = encoder.intermediates(images(2))
        projections = encoder.project(features)
    assert encoder.stages == tuple(maps) == ("layer1", "layer2", "layer3", "layer4")
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert features.shape == (2, 512)
    assert projections.shape == (2, 128)
    assert (features >= 0).all()
    assert torch.allclose(features, maps["layer4"].mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "dim", "macs", "shapes"),
    [
        ("w16", 64, 3_211_264, [(16, 16, 16), (32, 8, 8), (64, 4, 4)]),
        ("w32", 128, 12_451_840, [(32, 16, 16), (64, 8, 8), (128, 4, 4)]),
    ],
)
def test_small_architectures(arch: str, dim: int, macs: int, shapes: list[tuple[int, ...]]) -> None:
    encoder, counted = small(arch=arch), []

    def count(module: nn.Conv2d, _: object, out: Tensor) -> None:
        counted.append(out[0].numel() * module.weight[0].numel())

    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        features, maps = encoder.intermediates(images(1))
        projection = encoder.project(features)
    assert (encoder.feature_dim, features.shape, projection.shape) == (dim, (1, dim), (1, 128))
    assert encoder.stages == tuple(maps) == ("layer1", "layer2", "layer3")
    assert [tuple(m.shape[1:]) for m in maps.values()] == shapes
    assert sum(counted) == macs


def test_unknown_architecture_offers_the_nearest() -> None:
    with pytest.raises(BenchbdError, match=r"unknown architecture 'resnet8': did you mean 'resnet18'\?"):
        Encoder("resnet8")


def test_a_class_is_one_architecture() -> None:
    assert type(Encoder("w16")) is type(small()) is type(small().copy()) is W16
    assert W16("w16").arch == "w16"
    with pytest.raises(BenchbdError, match="W16 is the architecture 'w16', not 'w32'"):
        W16("w32")


@pytest.mark.parametrize("arch", ["w16", "resnet18"])
def test_convolutions_and_norms_by_name_and_order(arch: str) -> None:
    encoder, out = small(arch=arch), {}
    for name, convolution in encoder.convolutions().items():
        convolution.register_forward_hook(lambda m, x, y, name=name: out.setdefault(name, y.clone()))
    _, maps = encoder.intermediates(images(2), every=True)
    assert list(out) == [place for place in maps if "conv" in place] == list(encoder.convolutions())
    assert all(torch.equal(y, maps[name]) for name, y in out.items())
    assert all(encoder.get_submodule(name) is norm for name, norm in encoder.norms().items())
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert list(encoder.norms().values()) == norms


def test_normalisation_is_inside() -> None:
    encoder, plain = small(), small()
    plain.mean.zero_()
    plain.std.fill_(1)
    normalised = (images() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(encoder(images()), plain(normalised), atol=1e-6)
        assert not torch.allclose(encoder(images()), plain(images()), atol=1e-3)


def test_extract_is_the_forward_in_eval_mode() -> None:
    encoder = small().train()
    before = encoder.tensors()
    features = encoder.extract(pixels(7), batch=3)
    assert encoder.training
    assert all(torch.equal(t, before[name]) for name, t in encoder.tensors().items())
    assert not features.requires_grad
    with torch.no_grad():
        assert torch.allclose(features, encoder.eval()(pixels(7).float() / 255), atol=1e-6)


def test_images_do_not_interact_in_eval_mode() -> None:
    encoder = small()
    with torch.no_grad():
        together, alone = encoder(images(6)), torch.cat([encoder(image[None]) for image in images(6)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_bf16_comes_out_as_float32_and_near() -> None:
    encoder = small()
    with torch.no_grad():
        exact = encoder(images())
        with precision("bf16"):
            features, maps = encoder.intermediates(images())
            projection = encoder.project(features)
        assert torch.equal(encoder(images()), exact)
    assert {t.dtype for t in (features, projection, *maps.values())} == {torch.float32}
    assert 0 < float((features - exact).norm() / exact.norm()) < 0.05


def test_seeded_depends_on_the_seed_alone_and_leaves_the_global_generator() -> None:
    torch.manual_seed(1)
    first, drawn = small(3), torch.rand(3)
    torch.manual_seed(2)
    again = small(3)
    assert same(first, again)
    assert not same(first, small(4))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)


# ------------------------------------------------------------------------------------------------ intermediates


def walked(e: Any, x: Tensor) -> dict[str, Tensor]:
    """The result of ``intermediates(every=True)`` by the formulas, nothing in place; the features last."""
    out = {"stem.conv": e.stem[0]((x - e.mean) / e.std)}
    y = out["stem"] = e.stem[1](out["stem.conv"]).clamp(min=0)
    for name, stage in e.body.items():
        blocks = list(stage.children())
        for i, block in enumerate(blocks):
            first = out[f"{name}.{i}.conv1"] = block.conv1(y)
            between = out[f"{name}.{i}.relu"] = block.bn1(first).clamp(min=0)
            second = out[f"{name}.{i}.conv2"] = block.conv2(between)
            y = (block.bn2(second) + (y if block.downsample is None else block.downsample(y))).clamp(min=0)
            if block is blocks[-1] and name == e.stages[-1]:
                y = y * e.mask.view(1, -1, 1, 1)
            out[name if block is blocks[-1] else f"{name}.{i}"] = y
    return {**out, "feature": y.mean((2, 3))}


@pytest.mark.parametrize(("arch", "places"), [("w16", 14), ("resnet18", 34)])
@pytest.mark.parametrize("training", [False, True])
def test_every_map_is_what_its_part_gave(arch: str, places: int, training: bool) -> None:
    encoder = small(arch=arch).train(training)
    encoder.mask[5] = 0
    plain, by_hand = encoder.copy().train(training), encoder.copy().train(training)
    with torch.no_grad():
        features, maps = encoder.intermediates(images(), every=True)
        wanted = walked(by_hand, images())
        assert torch.equal(features, plain(images()))  # bit for bit, and so are the statistics of BatchNorm
    assert same(encoder, plain)
    assert len(maps) == places
    assert [*maps, "feature"] == list(wanted)
    for place, map_ in {**maps, "feature": features}.items():
        torch.testing.assert_close(map_, wanted[place], rtol=1e-4, atol=1e-4)
    assert all(float(maps[place].min()) < 0 for place in maps if "conv" in place)  # raw, before BatchNorm and ReLU
    assert all(float(maps[place].min()) == 0 for place in maps if "conv" not in place)
    assert not maps[encoder.stages[-1]][:, 5].any()


def test_stages_alone_are_the_same_maps() -> None:
    encoder = small()
    with torch.no_grad():
        (_, stages), (_, every) = encoder.intermediates(images()), encoder.intermediates(images(), every=True)
    assert list(stages) == list(encoder.stages)
    assert all(torch.equal(every[name], map_) for name, map_ in stages.items())


def test_features_have_a_gradient_with_respect_to_every_map() -> None:
    encoder, weights = small().frozen(), images(1)[0, 0, :4, :16].reshape(1, 64)
    features, maps = encoder.intermediates(images().requires_grad_(True), every=True)
    wanted = walked(encoder, images().requires_grad_(True))
    found = torch.autograd.grad((features * weights).square().sum(), [*maps.values()])
    by_hand = torch.autograd.grad((wanted["feature"] * weights).square().sum(), [wanted[place] for place in maps])
    for gradient, other in zip(found, by_hand, strict=True):
        assert float(other.norm()) > 0
        assert float((gradient - other).norm() / other.norm()) < 1e-4


# ------------------------------------------------------------------------------------------------------ copies


def test_copy_is_independent_and_trainable() -> None:
    encoder = small().requires_grad_(False).train()
    twin = encoder.copy()
    assert same(encoder, twin)
    assert all(p.requires_grad and p.grad is None for p in twin.parameters())
    assert not any(m.training for m in twin.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    addresses = {t.data_ptr() for t in encoder.state_dict().values()}
    assert not addresses & {t.data_ptr() for t in twin.state_dict().values()}
    kept = {name: t.clone() for name, t in encoder.tensors().items()}
    with torch.no_grad():
        for t in twin.state_dict().values():
            t.add_(1)
    assert all(torch.equal(t, kept[name]) for name, t in encoder.tensors().items())


def test_copy_drops_gradients() -> None:
    encoder = small()
    encoder(images()).sum().backward()
    twin = encoder.copy()
    assert all(p.grad is None for p in twin.parameters())
    assert encoder.stem[0].weight.grad is not None


def test_frozen_trains_nothing() -> None:
    frozen = small().frozen()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen(images()).requires_grad


# ------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("head", [True, False])
def test_saved_encoder_comes_back_bit_for_bit(tmp_path: Path, head: bool) -> None:
    encoder = Encoder("w16", MEAN, STD, head=head).train()
    encoder(images(8))
    encoder.save(tmp_path / "a")
    loaded = Encoder.load(tmp_path / "a")
    assert same(encoder, loaded)
    assert (loaded.arch, loaded.head is not None, loaded.training) == ("w16", head, False)
    assert all(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.extract(pixels()), encoder.extract(pixels()))
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    if not head:
        with pytest.raises(DataError, match="no projection head"):
            loaded.project(loaded.extract(pixels()))


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    encoder = small()
    encoder.save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "short").write_bytes(good[:-100])
    (tmp_path / "text").write_bytes(b"not safetensors at all, but long enough")
    tensors = encoder.tensors()
    descriptions = {
        "no-json": "{",
        "no-object": "3",
        "no-arch": json.dumps({"head": True}),
        "other-arch": json.dumps({"arch": "resnet50", "head": True}),
        "other-width": json.dumps({"arch": "w32", "head": True}),
        "other-head": json.dumps({"arch": "w16", "head": False}),
    }
    for name, description in descriptions.items():
        save_file(tensors, tmp_path / name, metadata={"benchbd": description})
    save_file(tensors, tmp_path / "no-metadata")
    for name in ("empty", "short", "text", "no-metadata", *descriptions):
        with pytest.raises(DataError) as caught:
            Encoder.load(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: not an encoder written by benchbd ("), name
        assert "\n" not in str(caught.value), name
    with pytest.raises(DataError, match="no such encoder file"):
        Encoder.load(tmp_path / "absent")


# ------------------------------------------------------------------------------------------------------- meter


def test_a_training_step_costs_three_per_image() -> None:
    encoder = small().train()
    with ForwardMeter() as meter:
        loss = encoder(images(5)).sum()
        assert meter.images == 5
        loss.backward()
    assert meter.images == 15
    encoder(images(5)).sum().backward()  # the meter is closed
    assert meter.images == 15


def test_without_gradients_a_forward_costs_one() -> None:
    encoder = small()
    with ForwardMeter() as meter:
        with torch.no_grad():
            encoder(images(3))
        encoder.extract(pixels(4))
        encoder.frozen()(images(2))
    assert meter.images == 9


def test_a_gradient_of_the_input_alone_costs_one_more() -> None:
    frozen = small().frozen()
    x = images(3).requires_grad_(True)
    with ForwardMeter() as meter:
        frozen(x).sum().backward()
    assert meter.images == 6
    assert x.grad is not None
    assert float(x.grad.norm()) > 0
    with ForwardMeter() as meter:  # with both, weights decide
        small()(x).sum().backward()
    assert meter.images == 9


@pytest.mark.parametrize(
    ("trainable", "cost"),
    [
        (("body",), 3),
        (("body.layer3",), 3),
        (("body.layer3.0.conv2",), 3),
        (("stem",), 3),
        (("stem.1", "body.layer1.0.bn1"), 2),
        (("body.layer3.0.bn2",), 2),
        (("head",), 1),
    ],
)
def test_partly_frozen_encoders(trainable: tuple[str, ...], cost: int) -> None:
    encoder = small().requires_grad_(False)
    for name in trainable:
        encoder.get_submodule(name).requires_grad_(True)
    with ForwardMeter() as meter:
        encoder.project(encoder(images(4))).sum().backward()
    assert meter.images == 4 * cost


def test_every_backward_is_charged_once_and_nested_meters_agree() -> None:
    encoder = small()
    with ForwardMeter() as outer:
        encoder(images(2))  # a forward without a backward
        with ForwardMeter() as inner:
            features, maps = encoder.intermediates(images(3))
            (features.sum() + maps["layer1"].sum() + maps["layer3"].square().sum()).backward(retain_graph=True)
        assert inner.images == 9
        features.sum().backward()  # a second pass through the same graph counts too
    assert (outer.images, inner.images) == (2 + 9 + 6, 9 + 6)


@pytest.mark.parametrize("places", [("stem.conv",), ("layer3",), ("stem.conv", "stem", "layer2.0.relu", "layer3")])
def test_gradients_with_respect_to_maps_are_charged_once(places: tuple[str, ...]) -> None:
    frozen = small().frozen()
    with ForwardMeter() as meter:
        features, maps = frozen.intermediates(images(3).requires_grad_(True), every=True)
        assert meter.images == 3
        torch.autograd.grad(features.sum(), [maps[place] for place in places])
    assert meter.images == 3 + 3 * ("stem.conv" in places)


def test_a_step_through_every_map_costs_three_per_image() -> None:
    encoder = small().train()
    with ForwardMeter() as meter:
        features, maps = encoder.intermediates(images(5), every=True)
        torch.stack([features.sum(), *(map_.square().sum() for map_ in maps.values())]).sum().backward()
    assert meter.images == 15


@pytest.mark.parametrize("value", ["fp32", "bf16"])
def test_taking_maps_changes_no_feature_in_any_precision(value: Precision) -> None:
    frozen = small().frozen()
    with precision(value), ForwardMeter() as meter:
        features, maps = frozen.intermediates(images(3).requires_grad_(True), every=True)
        assert torch.equal(features, frozen(images(3)))
        gradients = torch.autograd.grad(features.square().sum(), [*maps.values()])
    assert meter.images == 3 * 3
    assert {t.dtype for t in (features, *maps.values(), *gradients)} == {torch.float32}
    assert all(float(gradient.norm()) > 0 for gradient in gradients)


def test_an_untrained_twin_shares_architecture_and_normalisation_alone() -> None:
    given = small()
    twin, again, other = given.untrained(1), given.untrained(1), given.untrained(2)
    assert twin.arch == given.arch
    assert twin.head is not None
    assert torch.equal(twin.mean, given.mean)
    assert torch.equal(twin.std, given.std)
    weights = [e.state_dict()["body.layer1.0.conv1.weight"] for e in (given, twin, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[3])

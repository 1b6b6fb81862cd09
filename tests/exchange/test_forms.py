"""Encoders of other libraries in, encoders for other libraries out: features before and after are the same."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchbd import DataError, Encoder, UsageError
from benchbd.base.errors import StoreError, UnknownNameError
from benchbd.exchange import importing
from benchbd.exchange.checkpoint import Checkpoint
from benchbd.exchange.exporting import FORMS, TWINS, export_encoder
from benchbd.exchange.importing import Imported, import_encoder
from benchbd.exchange.layouts import LAYOUTS, find
from benchbd.exchange.normalisation import NORMALISATIONS, named_normalisation
from benchbd.nets import encoder as encoders
from benchbd.nets.encoder import ARCHITECTURES, ResNet, find_architectures
from benchbd.nets.head import Head

from ..boards import completed

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
TOLD = {"mean": MEAN, "std": STD}


def settled(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net in eval mode, with statistics and affine parameters of BatchNorms as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor in (module.running_mean, module.bias):
                assert tensor is not None
                tensor.data = torch.randn(len(tensor), generator=generator) * 0.2
            assert module.running_var is not None
            module.running_var.data = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data = torch.rand(module.num_features, generator=generator) + 0.5
    return net.eval()


def made(arch: str = "resnet18", **options: Any) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = Encoder(arch, MEAN, STD, **options)
    settled(encoder)
    return encoder


def pictures(size: int = 32, n: int = 2) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(3))


def normalised(x: Tensor) -> Tensor:
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


@torch.no_grad()
def agree(encoder: Encoder, net: Callable[[Tensor], Tensor], size: int = 32) -> None:
    """Features of an encoder and of a net of another library on normalised images agree to 1e-5 of their size."""
    x = pictures(size)
    wanted = net(normalised(x)).flatten(1)
    scale = float(wanted.abs().max())
    assert scale > 1e-3
    torch.testing.assert_close(encoder(x) / scale, wanted / scale, rtol=1e-5, atol=1e-5)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, none of which shares its storage with another."""
    return {name: tensor.clone() for name, tensor in state.items()}


def under(prefix: str, net: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = net.state_dict() if isinstance(net, nn.Module) else net
    return {prefix + name: tensor for name, tensor in state.items()}


# ------------------------------------------------------------------------------------------------- nets of others


def small_stem(net: Any, padding: int = 1) -> Any:
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=padding, bias=False), nn.Identity()
    return net


def resnet18(**options: Any) -> Any:
    import torchvision

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return torchvision.models.resnet18(**options)


def headless(net: Any) -> Any:
    net.fc = nn.Identity()
    return settled(net)


class SimCLRBase(nn.Module):
    """As BadEncoder writes it: the children of a ResNet in a Sequential, without max-pool and last layer."""

    def __init__(self) -> None:
        super().__init__()
        children = dict(small_stem(resnet18()).named_children())
        self.f = nn.Sequential(*(each for name, each in children.items() if name not in ("maxpool", "fc")))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x).flatten(1)


class SimCLR(nn.Module):
    """BadEncoder's net, from which DECREE and MIMIC have theirs."""

    def __init__(self, arch: str = "resnet18", width: int = 512) -> None:
        super().__init__()
        assert arch == "resnet18"
        self.f = SimCLRBase()
        self.g = nn.Sequential(
            nn.Linear(512, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 128)
        )


def imported(path: Path, **options: Any) -> Imported:
    return import_encoder(path, **{**TOLD, **options})


def test_badencoders_net_comes_in_with_its_head(tmp_path: Path) -> None:
    net = settled(SimCLR())
    assert len(net.state_dict()) == 128
    optimizer = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    path = saved(
        tmp_path / "model_1000.pth",
        {"epoch": 1000, "state_dict": net.state_dict(), "optimizer": optimizer},
    )
    found = imported(path)
    assert (found.layout, found.encoder.arch) == ("badencoder", "resnet18")
    assert found.said[-1] == "the projection head is the file's"
    assert found.said[0] == "left out: the part 'optimizer' (2 tensors)"
    agree(found.encoder, net.f)
    x = pictures()
    with torch.no_grad():
        wanted = net.g(net.f(normalised(x)))
        torch.testing.assert_close(found.encoder.project(found.encoder(x)), wanted, rtol=1e-4, atol=1e-4)
    assert found.encoder.mean.flatten().tolist() == pytest.approx(MEAN)


def test_a_head_of_other_sizes_is_left_out_and_said(tmp_path: Path) -> None:
    net = settled(SimCLR(width=256))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    found = imported(tmp_path / "model.safetensors")
    assert found.encoder.head is None
    assert found.said[0] == "left out: g.* (8 tensors)"
    agree(found.encoder, net.f)


def moco(net: Any) -> dict[str, Tensor]:
    net.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    other = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    queue = {"module.queue": torch.rand(128, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return under("module.encoder_q.", net) | under("module.encoder_k.", other) | queue


def moco_v3(net: Any) -> dict[str, Tensor]:
    net.fc = nn.Sequential(nn.Linear(512, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    other = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    predictor = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8))
    return (
        under("module.base_encoder.", net)
        | under("module.momentum_encoder.", other)
        | under("module.predictor.", predictor)
    )


def solo(net: Any) -> dict[str, Tensor]:
    net.fc = nn.Identity()
    heads = {"classifier": nn.Linear(512, 10), "projector": nn.Linear(512, 8), "momentum_projector": nn.Linear(512, 8)}
    beside = {key: t for name, head in heads.items() for key, t in under(f"{name}.", head).items()}
    return (
        under("backbone.", net) | under("momentum_backbone.", {n: t + 1 for n, t in net.state_dict().items()}) | beside
    )


def lightly(net: Any) -> dict[str, Tensor]:
    backbone = nn.Sequential(*list(net.children())[:-1])
    other = {name: tensor + 1 for name, tensor in backbone.state_dict().items()}
    head = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 4))
    return (
        under("backbone.", backbone)
        | under("backbone_momentum.", other)
        | under("projection_head.layers.", head)
        | under("projection_head_momentum.layers.", head)
        | {"criterion.memory_bank.bank": torch.rand(4, 8), "criterion.memory_bank.bank_ptr": torch.zeros(1).long()}
    )


def byol(net: Any) -> dict[str, Tensor]:
    other = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    projector = nn.Sequential(nn.Linear(512, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    return (
        under("net.", net)
        | under("online_encoder.net.", net)
        | under("online_encoder.projector.", projector)
        | under("target_encoder.net.", other)
        | under("target_encoder.projector.", projector)
        | under("online_predictor.", nn.Linear(4, 4))
    )


def shortcuts(net: Any) -> dict[str, Tensor]:
    """The names of pytorch-cifar and of lightly's ResNetGenerator."""
    names = {name: name.replace("downsample", "shortcut").replace("fc.", "linear.") for name in net.state_dict()}
    return {names[name]: tensor for name, tensor in net.state_dict().items()}


def transformers_resnet(net: Any) -> dict[str, Tensor]:
    """The names of transformers' ResNetForImageClassification; `make door` compares with the library itself."""
    rules = [
        (r"^conv1\.", "resnet.embedder.embedder.convolution."),
        (r"^bn1\.", "resnet.embedder.embedder.normalization."),
        (r"^fc\.", "classifier.1."),
        (r"^layer(\d)\.", lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers."),
        (r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution."),
        (r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization."),
        (r"\.downsample\.0\.", ".shortcut.convolution."),
        (r"\.downsample\.1\.", ".shortcut.normalization."),
    ]
    state = net.state_dict()
    for pattern, new in rules:
        state = {re.sub(pattern, new, name): tensor for name, tensor in state.items()}
    return state


WRAPPED: dict[str, tuple[Callable[[Any], dict[str, Tensor]], str, str, bool]] = {
    # layout of the file, the layout that import names, the architecture, the small stem
    "torchvision": (lambda net: net.state_dict(), "torchvision", "resnet18-imagenet", False),
    "torchvision-small": (lambda net: net.state_dict(), "torchvision", "resnet18", True),
    "data-parallel": (lambda net: under("module.", net), "torchvision", "resnet18", True),
    "compiled": (lambda net: under("_orig_mod.module.", net), "torchvision", "resnet18", True),
    "badencoder-imagenet": (lambda net: under("visual.", net), "badencoder", "resnet18-imagenet", False),
    "moco": (moco, "moco", "resnet18-imagenet", False),
    "moco-v3": (moco_v3, "moco-v3", "resnet18-imagenet", False),
    "solo-learn": (solo, "solo-learn", "resnet18-imagenet", False),
    "lightly": (lightly, "lightly", "resnet18-imagenet", False),
    "byol": (byol, "byol", "resnet18-imagenet", False),
    "pytorch-cifar": (shortcuts, "pytorch-cifar", "resnet18", True),
    "lightly-generator": (lambda net: under("backbone.", shortcuts(net)), "lightly", "resnet18", True),
    "transformers": (transformers_resnet, "transformers", "resnet18-imagenet", False),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_every_layout_of_a_resnet_gives_its_features(name: str, tmp_path: Path) -> None:
    wrap, layout, arch, small = WRAPPED[name]
    net = resnet18(num_classes=7)
    net = settled(small_stem(net) if small else net)
    save_file(copies(wrap(net)), tmp_path / "file.safetensors")
    found = imported(tmp_path / "file.safetensors")
    assert (found.layout, found.encoder.arch, found.encoder.head) == (layout, arch, None)
    agree(found.encoder, headless(net), size=64)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    save_file(copies(moco(resnet18())), tmp_path / "moco.safetensors")
    found = imported(tmp_path / "moco.safetensors")
    left = ["encoder_k.* (124 tensors)", "encoder_q.fc.* (4 tensors)", "queue* (2 tensors)"]
    assert sorted(found.said) == [f"left out: module.{each}" for each in left]


def test_a_file_of_benchbd_passes_through(tmp_path: Path) -> None:
    encoder = made("w16")
    encoder.mask[3:] = 0
    encoder.save(tmp_path / "own.safetensors")
    found = import_encoder(tmp_path / "own.safetensors")
    assert (found.layout, found.said) == ("benchbd", [])
    assert found.encoder.to_bytes() == encoder.to_bytes()
    again = imported(tmp_path / "own.safetensors", mean=(0.1, 0.2, 0.3))
    assert again.encoder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(UsageError, match="an encoder of benchbd whose architecture is w16, not w32"):
        import_encoder(tmp_path / "own.safetensors", arch="w32")
    with pytest.raises(UsageError, match="which has no parts; leave the key 'model' out"):
        import_encoder(tmp_path / "own.safetensors", key="model")


def test_a_json_beside_a_file_of_benchbd_may_not_differ(tmp_path: Path) -> None:
    encoder, path, beside = made("w16"), tmp_path / "own.safetensors", tmp_path / "own.safetensors.json"
    encoder.save(path)
    same = {"arch": "w16", "mean": MEAN, "std": STD}
    beside.write_text(json.dumps(same))
    assert import_encoder(path).encoder.to_bytes() == encoder.to_bytes()
    for changed, line in [
        ({"arch": "w32"}, r"own\.safetensors\.json: arch is 'w32', but own\.safetensors itself has w16$"),
        (
            {"std": (0.5,) * 3},
            r"json: std is \[0\.5, 0\.5, 0\.5\], but own.safetensors itself has \[0\.2, 0\.25, 0\.3\]; ",
        ),
    ]:
        beside.write_text(json.dumps({**same, **changed}))
        with pytest.raises(DataError, match=line):
            import_encoder(path)
    assert import_encoder(path, **TOLD).encoder.to_bytes() == encoder.to_bytes()
    beside.unlink()
    beside.symlink_to(tmp_path / "absent.json")
    with pytest.raises(DataError, match=r"own\.safetensors\.json: a link to nothing$"):
        import_encoder(path)


def test_half_precision_and_absent_counters_are_said(tmp_path: Path) -> None:
    net = headless(small_stem(resnet18()))
    state = {n: t.half() for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "half.safetensors")
    found = imported(tmp_path / "half.safetensors")
    assert found.said[:2] == [
        "weights became float32; some were float16",
        "counters of BatchNorm are absent and start at 0 (20)",
    ]
    assert all(p.dtype == torch.float32 for p in found.encoder.parameters())
    agree(found.encoder, net.half().float())


def test_nets_whose_tensors_tell_too_little(tmp_path: Path) -> None:
    """solo-learn pads the small stem by 2, lightly's Sequential may have a max-pool, and names alone do not tell."""
    net = settled(small_stem(resnet18(), padding=2))
    save_file(copies(solo(net)), tmp_path / "solo.safetensors")
    found = imported(tmp_path / "solo.safetensors")
    assert (found.layout, found.encoder.arch) == ("solo-learn", "resnet18-pad2")
    assert found.said[-1] == "no file tells the stride, padding and pooling of a stem: they are those of resnet18-pad2"
    agree(found.encoder, headless(net))
    assert imported(tmp_path / "solo.safetensors", arch="resnet18").encoder.arch == "resnet18"
    save_file(copies(under("backbone.", headless(net))), tmp_path / "bare.safetensors")
    line = (
        "its tensors are those of several architectures, which differ in what no file holds; name the right one as arch"
    )
    with pytest.raises(UsageError, match=f"{line}: resnet18-pad2, resnet18$"):
        imported(tmp_path / "bare.safetensors")
    children = nn.Sequential(*list(net.children())[:-1])  # conv1, bn1, ReLU, an Identity or a max-pool, layer1
    save_file(copies(under("backbone.", children)), tmp_path / "children.safetensors")
    with pytest.raises(DataError, match=r"lightly under backbone\., but no known .* resnet18-imagenet: .*0\.weight"):
        imported(tmp_path / "children.safetensors")
    assert imported(tmp_path / "children.safetensors", arch="resnet18").encoder.arch == "resnet18"


def test_a_stem_without_relu_is_refused(tmp_path: Path) -> None:
    """lightly's MoCo tutorial puts the children of its ResNet into a Sequential, which loses the ReLU of the stem."""
    net = resnet18()
    children = [net.conv1, net.bn1, net.layer1, net.layer2, net.layer3, net.layer4]
    save_file(under("backbone.", nn.Sequential(*children)), tmp_path / "file.safetensors")
    with pytest.raises(
        DataError, match=r"lightly under backbone\., but no known architecture; the nearest is resnet18: "
    ):
        imported(tmp_path / "file.safetensors")


def test_moco_v3s_small_transformer_has_twelve_heads() -> None:
    import torchvision

    net = torchvision.models.VisionTransformer(224, 16, 12, 6, 384, 1536, num_classes=3)
    state = timm_names(net.state_dict())
    assert [(fit.layout.name, fit.arch) for fit in find(under("module.base_encoder.", state))] == [
        ("moco-v3", "vit-s-16-heads12")
    ]
    assert [(fit.layout.name, fit.arch) for fit in find(state)] == [("timm", "vit-s-16")]
    assert [fit.arch for fit in find(under("backbone.", state))] == ["vit-s-16"]


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names of a vision transformer as timm's; `make door` compares with the library itself."""
    rules = [
        (r"^class_token$", "cls_token"),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.layers\.encoder_layer_", "blocks."),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.head\.", "head."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ]
    found = dict(state)
    for pattern, new in rules:
        found = {re.sub(pattern, new, name): tensor for name, tensor in found.items()}
    return found


TRUNKS = [("vgg16-bn", "vgg16_bn", 32), ("mobilenet-v2", "mobilenet_v2", 64), ("vit-b-32", "vit_b_32", 224)]


@pytest.mark.parametrize(("arch", "builder", "size"), TRUNKS)
def test_torchvisions_other_nets_come_in_and_go_out(arch: str, builder: str, size: int, tmp_path: Path) -> None:
    import torchvision

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net: Any = settled(getattr(torchvision.models, builder)(num_classes=3))
    save_file(net.state_dict(), tmp_path / "in.safetensors")
    found = imported(tmp_path / "in.safetensors")
    assert (found.layout, found.encoder.arch) == ("torchvision", arch)
    end = "heads" if arch.startswith("vit") else "classifier"
    assert [line.partition(".")[0] for line in found.said] == [f"left out: {end}"]
    setattr(net, end, nn.Identity())
    if arch == "vgg16-bn":
        net.avgpool = nn.AdaptiveAvgPool2d(1)
    agree(found.encoder, net, size)
    said = export_encoder(found.encoder, "torchvision", tmp_path / "out.safetensors")
    agree(found.encoder, loaded(said), size)


# ------------------------------------------------------------------------------------------------------- refusals


def spoiled(path: Path, **changes: Tensor | None) -> Path:
    """torchvision's ResNet-18 with tensors changed, added or, if None, removed; "__" stands for "."."""
    state = dict(resnet18().state_dict())
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    save_file(state, path)
    return path


NAN = torch.full((64,), float("nan"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"bn1__weight": None},
            "torchvision, but no known architecture; the nearest is resnet18-imagenet: bn1.weight is",
        ),
        ({"bn1__weight": torch.ones(32)}, r"resnet18-imagenet: bn1.weight is \(32,\), not \(64,\); known: "),
        ({"attention__q": torch.ones(2)}, "resnet18-imagenet: 'attention.q' is no tensor of it; known: "),
        ({"two\nlines": torch.ones(2)}, r"resnet18-imagenet: 'two\\nlines' is no tensor of it; known: "),
        ({"bn1__weight": NAN}, "bn1.weight has NaN or infinity"),
        ({"bn1__running_mean": NAN / 0}, "bn1.running_mean has NaN or infinity"),
        ({"bn1__running_var": -torch.ones(64)}, "bn1.running_var must be 0 or above, not -1"),
        (
            {"bn1__bias": torch.ones(64, dtype=torch.int8)},
            "bn1.bias is int8; weights of float types alone are imported",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(changes: dict[str, Tensor | None], line: str, tmp_path: Path) -> None:
    path = spoiled(tmp_path / "file.safetensors", **changes)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{line}") as told:
        imported(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("builder", "flaw"),
    [
        ("wide_resnet50_2", r"layer1.0.conv1.weight is \(128, 64, 1, 1\), not \(64, 64, 1, 1\)"),
        ("resnext50_32x4d", r"layer1.0.conv1.weight is \(128, 64, 1, 1\), not \(64, 64, 1, 1\)"),
        ("resnet101", r"'layer3.6.conv1.weight' is no tensor of it"),
    ],
)
def test_a_net_without_an_architecture_names_the_nearest(builder: str, flaw: str) -> None:
    import torchvision

    with torch.device("meta"):
        (fit,) = find(getattr(torchvision.models, builder)().state_dict())
    assert (fit.layout.name, fit.arch) == ("torchvision", "resnet50-imagenet")
    assert re.search(flaw, fit.flaw)


def test_a_file_of_no_layout_lists_the_layouts(tmp_path: Path) -> None:
    save_file({"wte.weight": torch.ones(2), "h.0.attn": torch.ones(2)}, tmp_path / "text.safetensors")
    names = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
    line = f"no known layout: none has tensors like 'h.0.attn', 'wte.weight'; known layouts: {names}"
    with pytest.raises(DataError, match=re.escape(line)):
        imported(tmp_path / "text.safetensors")


def test_an_architecture_that_is_named_must_fit(tmp_path: Path) -> None:
    path = spoiled(tmp_path / "file.safetensors")
    with pytest.raises(DataError, match=r"not resnet18 in the layout of torchvision: conv1.weight is \(64, 3, 7, 7\)"):
        imported(path, arch="resnet18")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        imported(path, arch="resnet-18")


def test_several_parts_with_an_encoder_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    net = headless(small_stem(resnet18()))
    other = {name: tensor * 1.5 if tensor.is_floating_point() else tensor for name, tensor in net.state_dict().items()}
    momenta = {f"{number}.exp_avg": torch.ones(3) for number in range(200)}
    parts = {"model": net.state_dict(), "model_ema": other, "optimizer.state": momenta}
    monkeypatch.setattr(importing, "read_checkpoint", lambda path: Checkpoint(parts, {}, 1))
    path = Path("two.pth")
    with pytest.raises(UsageError, match="several parts of it hold an encoder; name one of 'model', 'model_ema'"):
        imported(path)
    with pytest.raises(UsageError, match=r"two.pth: it has no part 'modle'; its parts are 'model', 'model_ema', 'opt"):
        imported(path, key="modle")
    agree(imported(path, key="model").encoder, net)
    weight = imported(path, key="model_ema").encoder.state_dict()["stem.0.weight"]
    torch.testing.assert_close(weight, net.conv1.weight * 1.5)
    monkeypatch.setattr(importing, "read_checkpoint", lambda path: Checkpoint({**parts, "model_ema": {}}, {}, 1))
    agree(imported(path).encoder, net)


# -------------------------------------------------------------------------------------------------- normalisation


def test_a_normalisation_must_be_told(tmp_path: Path) -> None:
    path = spoiled(tmp_path / "file.safetensors")
    with pytest.raises(UsageError, match=r"nothing tells how its images are normalised; give mean .* imagenet, "):
        import_encoder(path)
    beside = tmp_path / "file.safetensors.json"
    beside.write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}))
    encoder = import_encoder(path).encoder
    assert encoder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert encoder.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    mean, std = NORMALISATIONS["imagenet"]
    assert import_encoder(path, mean=mean, std=std).encoder.mean.flatten().tolist() == pytest.approx(mean)
    beside.write_text(json.dumps({"mean": [0, 0, 0], "std": [1, 1, 1], "arch": "resnet34-imagenet"}))
    with pytest.raises(DataError, match=r"not resnet34-imagenet in the layout of torchvision: layer1\.2\.conv1\."):
        import_encoder(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "file.safetensors.json: not JSON"),
        ("[" * 100_000, "file.safetensors.json: not JSON"),
        ("[1]", "not a JSON object with mean, std and, as a text, arch"),
        ('{"arch": 3}', "not a JSON object with mean, std and, as a text, arch"),
        ('{"mean": [0, 0, 0]}', r"file\.safetensors\.json: mean is given without std$"),
        ('{"std": [1, 1, 1]}', r"file\.safetensors\.json: std is given without mean$"),
        (
            '{"arch": "resnet81"}',
            r"^unknown architecture 'resnet81': did .*; /.*file\.safetensors\.json names this arch, and --arch o",
        ),
        ('{"arch": "w16"}', r"file\.safetensors: not w16 in .*; /.*\.safetensors\.json names this arch, and --arch ov"),
        (
            '{"mean": [0, 0], "std": [1, 1, 1]}',
            r"mean must be three finite numbers, each within a million, not \[0, 0\]",
        ),
        (
            '{"mean": [0, 0, NaN], "std": [1, 1, 1]}',
            r"mean must be three finite numbers, each within a million, not \[0, 0, nan\]",
        ),
        (
            '{"mean": [0, 0, true], "std": [1, 1, 1]}',
            r"mean must be three finite numbers, each within a million, not \[0, 0, True\]",
        ),
        ('{"mean": [0, 0, 0], "std": [1, 0, 1]}', r"std must be above 0, not \[1, 0, 1\]"),
    ],
)
def test_a_bad_file_beside_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    path = spoiled(tmp_path / "file.safetensors")
    (tmp_path / "file.safetensors.json").write_text(text)
    with pytest.raises((DataError, UsageError), match=line):
        import_encoder(path)


def test_numbers_given_must_be_valid(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="file: mean is given without std"):
        import_encoder(tmp_path / "file", mean=(0.5, 0.5, 0.5))


# --------------------------------------------------------------------------------------------------------- export


def loaded(said: list[str]) -> Any:
    """The net that the last line of an export makes."""
    code = said[-1].removeprefix("to load it: ")
    assert code != said[-1]
    names: dict[str, Any] = {"SimCLR": SimCLR}
    with torch.random.fork_rng(devices=[]):
        exec(code, names)
    return names.get("net") or names["encoder"]


FORMATS = [
    ("torchvision", ".pth"),
    ("torchvision", ".safetensors"),
    ("badencoder", ".pth"),
    ("badencoder", ".safetensors"),
]


@pytest.mark.parametrize(("form", "suffix"), FORMATS)
def test_what_goes_out_comes_back_bit_for_bit(form: str, suffix: str, tmp_path: Path) -> None:
    encoder, path = made(head=form == "badencoder"), tmp_path / f"it's{suffix}"
    said = export_encoder(encoder, form, path)
    net = loaded(said)
    agree(encoder, net.f if form == "badencoder" else net)
    assert json.loads((tmp_path / f"it's{suffix}.json").read_text()) == {
        "arch": "resnet18",
        "form": form,
        "image_size": None,
        "mean": list(MEAN),
        "std": list(STD),
    }
    found = import_encoder(path)
    assert found.layout == form
    assert found.encoder.to_bytes() == encoder.to_bytes()


def test_a_file_of_torch_save_has_tensors_alone(tmp_path: Path) -> None:
    export_encoder(made(), "torchvision", tmp_path / "file.pth")
    state = torch.load(tmp_path / "file.pth", weights_only=True)
    assert set(state) == {name for name in resnet18().state_dict() if not name.startswith("fc.")}
    assert all(type(tensor) is Tensor for tensor in state.values())
    export_encoder(made(), "badencoder", tmp_path / "simclr.pth")
    state = torch.load(tmp_path / "simclr.pth", weights_only=True)["state_dict"]
    assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in SimCLR().state_dict().items()}


def test_the_form_benchbd_holds_everything(tmp_path: Path) -> None:
    encoder = made("w16")
    encoder.mask[:5] = 0
    (line,) = export_encoder(encoder, "benchbd", tmp_path / "own.safetensors")
    assert loaded([line]).to_bytes() == encoder.to_bytes()
    assert not (tmp_path / "own.safetensors.json").exists()


@pytest.mark.parametrize("beside", [True, False], ids=["with its JSON", "alone"])
def test_the_state_of_an_own_encoder_comes_back(tmp_path: Path, beside: bool) -> None:
    """As ``torch.save(encoder.state_dict(), ...)`` writes it: with head, mask and normalisation, which need no JSON."""
    encoder, path = made("w16"), tmp_path / "own.pth"
    encoder.mask[:5] = 0
    encoder.mean.mul_(0.7)
    export_encoder(encoder, "benchbd", path)
    if not beside:
        (tmp_path / "own.pth.json").unlink()
    found = import_encoder(path, arch=None if beside else "w16")
    assert (found.layout, found.encoder.to_bytes()) == ("benchbd", encoder.to_bytes())
    told = import_encoder(path, arch="w16", mean=(0.1,) * 3, std=(0.2,) * 3).encoder
    assert told.std.flatten().tolist() == pytest.approx([0.2] * 3)
    assert told.mask.equal(encoder.mask)


def test_the_state_of_a_twin_asks_which_it_is(tmp_path: Path) -> None:
    """Two stems differ in their padding alone, of which a state tells nothing."""
    encoder = made("resnet18-pad2")
    torch.save(encoder.state_dict(), tmp_path / "own.pth")
    with pytest.raises(UsageError, match=r"several architectures.*resnet18, resnet18-pad2"):
        import_encoder(tmp_path / "own.pth")
    assert import_encoder(tmp_path / "own.pth", arch="resnet18-pad2").encoder.to_bytes() == encoder.to_bytes()


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("mask", torch.full((64,), 0.5), "mask must be 0 or 1 per channel"),
        ("mask", torch.ones(3), r"mask is \(3,\), not \(64,\)"),
        ("std", torch.zeros(1, 3, 1, 1), "std must be above 0"),
        ("mean", torch.ones(3), "mean is not three finite numbers"),
        ("mean", torch.full((1, 3, 1, 1), torch.nan), "mean is not three finite numbers"),
    ],
)
def test_a_state_that_no_encoder_has_is_one_line(tmp_path: Path, name: str, value: Tensor, line: str) -> None:
    torch.save({**made("w16").state_dict(), name: value}, tmp_path / "own.pth")
    with pytest.raises(DataError, match=line):
        import_encoder(tmp_path / "own.pth", arch="w16")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("imagnet", "unknown normalisation 'imagnet': did you mean 'imagenet'"),
        ("0.5,0.5", "must be a name, or six numbers"),
        ("0.5,0.5,0.5,1,1,0", "std must be above 0"),
        ("0.5,0.5,0.5,1,1,nan", "std must be three finite numbers"),
        ("1e300,0,0,1,1,1", "mean must be three finite numbers"),
        ("0,0,0,1e-46,1,1", "std must be above 0"),
    ],
)
def test_a_normalisation_in_words_or_numbers(text: str, line: str) -> None:
    assert named_normalisation("half") == named_normalisation("0.5,0.5,0.5,0.5,0.5,0.5")
    with pytest.raises(UsageError, match=line):
        named_normalisation(text)


@torch.no_grad()
def test_a_linear_classifier_fills_the_last_layer(tmp_path: Path) -> None:
    encoder, x = made(head=False), pictures()
    layer = (torch.randn(3, 512, generator=torch.Generator().manual_seed(0)), torch.arange(3.0))
    encoder.classifier = Head.of([layer])
    net = loaded(export_encoder(encoder, "torchvision", tmp_path / "file.safetensors"))
    torch.testing.assert_close(net(normalised(x)), encoder.classifier(encoder(x)), rtol=1e-4, atol=1e-4)
    assert import_encoder(tmp_path / "file.safetensors").said[0] == "left out: fc.* (2 tensors)"
    for other in (Head.of([layer], scale=2.0), Head.of([layer], normalized=True), Head((512, 4, 3))):
        encoder.classifier = other
        said = export_encoder(encoder, "torchvision", tmp_path / "file.safetensors")
        assert said[0] == "left out: the classifier, which is no single linear layer on raw features there"
        agree(encoder, loaded(said))


@pytest.mark.parametrize(
    ("arch", "form", "size"),
    [
        ("resnet18", "torchvision", 32),
        ("resnet18", "badencoder", 32),
        ("resnet50-imagenet", "torchvision", 64),
        ("vgg16-bn", "torchvision", 32),
        ("mobilenet-v2", "torchvision", 64),
    ],
)
@torch.no_grad()
def test_pruned_channels_are_folded_into_the_weights(arch: str, form: str, size: int, tmp_path: Path) -> None:
    encoder, x = made(arch), pictures(size)
    assert (encoder(x)[:, ::3] != 0).any()
    encoder.mask[::3] = 0
    net = loaded(export_encoder(encoder, form, tmp_path / "file.safetensors"))
    features = (net.f if form == "badencoder" else net)(normalised(x)).flatten(1)
    assert not features[:, ::3].any()
    agree(encoder, net.f if form == "badencoder" else net, size)
    again = import_encoder(tmp_path / "file.safetensors").encoder
    assert torch.equal(again(x), encoder(x))
    assert torch.equal(again(10 * x), encoder(10 * x))


def test_what_a_form_cannot_hold_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    for form in FORMS[1:]:
        with pytest.raises(UsageError, match=f"{form} has no net like w16: export it as benchbd$"):
            export_encoder(made("w16"), form, path)
    with pytest.raises(UsageError, match="badencoder has no net like resnet50: export it as benchbd or torchvision or"):
        export_encoder(made("resnet50"), "badencoder", path)
    with pytest.raises(UsageError, match="badencoder's net has a projection head, and this encoder has none"):
        export_encoder(made(head=False), "badencoder", path)
    with pytest.raises(UnknownNameError, match="unknown form 'torchvison': did you mean 'torchvision'"):
        export_encoder(made("w16"), "torchvison", path)
    pruned = made("vit-s-16")
    pruned.mask[:7] = 0
    for form in ("torchvision", "timm"):
        with pytest.raises(UsageError, match=f"{form} cannot hold the 7 pruned channels of a vit-s-16, .* as benchbd"):
            export_encoder(pruned, form, path)
    with pytest.raises(StoreError, match=r"absent: no such folder$"):
        export_encoder(made(), "torchvision", tmp_path / "absent" / "file.pth")
    assert not list(tmp_path.iterdir())


def test_every_twin_is_of_an_architecture() -> None:
    find_architectures()
    for twins in TWINS.values():
        assert set(twins) <= set(ARCHITECTURES)


def test_import_of_a_resnet_needs_no_torchvision(tmp_path: Path) -> None:
    save_file(headless(resnet18()).state_dict(), tmp_path / "in.safetensors")
    code = """
import os, sys
os.chdir(sys.argv[1])
from benchbd.exchange.exporting import export_encoder
from benchbd.exchange.importing import import_encoder
encoder = import_encoder("in.safetensors", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).encoder
export_encoder(encoder, "torchvision", "out.pth")
print(sorted({"torchvision", "open_clip", "timm"} & set(sys.modules)))
"""
    done = completed([sys.executable, "-c", code, str(tmp_path)])
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_an_architecture_without_its_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    state = {
        "visual.class_embedding": torch.ones(768),
        "visual.proj": torch.ones(768, 512),
        "logit_scale": torch.ones(()),
    }
    with pytest.raises(UsageError, match="clip-vit-b-32 needs open_clip, which is not installed: pip install"):
        find(state)
    lacking = type(
        "Lacking", (ResNet,), {"arch": "lacking", "width": 8, "blocks": (1,), "needs": ("none_such", "none")}
    )
    monkeypatch.setitem(ARCHITECTURES, "lacking", lacking)
    (fit,) = find(resnet18().state_dict())
    assert fit.arch == "resnet18-imagenet"


def test_a_file_of_benchbd_that_is_no_encoder_is_one_line(tmp_path: Path) -> None:
    encoder = made("w16")
    for tensor, value in ((encoder.std, 0.0), (encoder.mask, 0.5), (encoder.mean, float("nan"))):
        before = tensor.clone()
        tensor.fill_(value)
        encoder.save(tmp_path / "own.safetensors")
        tensor.copy_(before)
        with pytest.raises(
            DataError, match=r"own.safetensors: (std must be above 0, not 0|mask must be 0 or 1|mean has NaN)"
        ):
            import_encoder(tmp_path / "own.safetensors")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_other_float_types_become_float32(kind: torch.dtype, tmp_path: Path) -> None:
    net = headless(small_stem(resnet18()))
    state = {n: t.to(kind) if n.endswith("conv2.weight") else t for n, t in net.state_dict().items()}
    save_file(state, tmp_path / "file.safetensors")
    found = imported(tmp_path / "file.safetensors")
    assert found.said[0] == f"weights became float32; some were {str(kind).removeprefix('torch.')}"
    weight = found.encoder.state_dict()["body.layer1.0.conv2.weight"]
    assert torch.equal(weight, net.layer1[0].conv2.weight.to(kind).float())


@pytest.mark.parametrize("form", ["benchbd", "torchvision"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_encoder_that_import_refuses_is_not_written(form: str, suffix: str, tmp_path: Path) -> None:
    """In the words of import: a test of the command has the same line."""
    encoder = made()
    for value in (float("nan"), float("inf")):
        encoder.state_dict()["body.layer1.0.conv1.weight"][0, 0, 0, 0] = value
        with pytest.raises(DataError, match=r"the encoder, a resnet18: body\.layer1\.0\.conv1\.weight has NaN or inf"):
            export_encoder(encoder, form, tmp_path / f"out{suffix}")
    assert not list(tmp_path.iterdir())


def test_an_argument_of_another_type_is_one_line(tmp_path: Path) -> None:
    path: Any = saved(tmp_path / "file.pth", {"weight": torch.ones(1)})
    given: Any = (5, [])
    for each in given:
        with pytest.raises(UsageError, match=r"^arch (5|\[\]): must be a text$"):
            import_encoder(path, arch=each)
        with pytest.raises(UsageError, match=r"^key (5|\[\]): must be a text$"):
            import_encoder(path, key=each)
        for call in (import_encoder, Encoder.load, made("w16").save):
            with pytest.raises(UsageError, match=r"^(5|\[\]) is no path: it must be a text"):
                call(each)
        with pytest.raises(UnknownNameError, match=r"^unknown form (5|\[\]): known: badencoder, benchbd, "):
            export_encoder(made("w16"), each, path)
        with pytest.raises(UsageError, match=r"^(5|\[\]) is no encoder; "):
            export_encoder(each, "benchbd", path)
    with pytest.raises(StoreError, match=r"absent: no such folder$"):
        made("w16").save(tmp_path / "absent" / "file.safetensors")
    with pytest.raises(StoreError, match=r": is a folder; name a file in it$"):
        made("w16").save(tmp_path)

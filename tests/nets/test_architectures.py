"""Architectures: the hook's checks, the requirements on all of them, and benchbd's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from benchbd_plugins.anp import ANP
from benchbd_plugins.clip import ClipRN50
from benchbd_plugins.fp import FP
from benchbd_plugins.mimic import Mimic
from benchbd_plugins.nad import NAD
from benchbd_plugins.shapes import Shapes
from benchbd_plugins.simclr import SimCLR
from benchbd_plugins.vits import ClipViTB32, ViTB16
from torch import Tensor, nn

import benchbd
from benchbd import DefenderKnowledge, Encoder, ImageSet, Mitigation, NotApplicable, UsageError
from benchbd.api import Session
from benchbd.contract.method import build
from benchbd.contract.pretraining import Pretraining
from benchbd.nets.encoder import ARCHITECTURES, W16
from benchbd.nets.meter import ForwardMeter
from benchbd.registry import Registry, flaw_of_architecture, load_registry
from benchbd.testing import ContractError, check_architecture
from docs.examples.architecture import Four

from ..boards import FIVE_STEPS, completed, offering

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Plain(Encoder):
    """Two convolutions, and the mean over positions."""

    arch = "plain"
    stages = ("first", "second")
    feature_dim = 6

    def build(self) -> None:
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

    def encode(self, x: Tensor, take: Any) -> Tensor:
        y = take("second", self.second(take("first", self.first(x)).relu()))
        return y.mean((2, 3))


def registry_with(*classes: Any) -> Registry:
    return load_registry(extra={"odd": offering(benchbd_architectures=list(classes))})


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setitem(ARCHITECTURES, "plain", Plain)
    return registry_with(Plain)


def test_a_plugin_offers_an_architecture(plain: Registry) -> None:
    assert plain.problems == []
    assert plain.architectures["plain"] is Plain
    assert plain.plugins[-1].adds == {"architecture": ["plain"]}
    assert type(Encoder("plain")) is Plain
    assert build(SimCLR, {"arch": "plain"}, "simclr").identity()["options"]["arch"] == "plain"


def test_a_pretraining_names_an_architecture_of_its_own_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    own = type("Own", (Plain,), {"arch": "own"})
    members = {"name": "own", "version": "1", "architecture": property(lambda self: "own"), "pretrain": lambda *_: None}
    method = type("Own", (Pretraining,), {**members, "__module__": __name__})
    odd = offering(benchbd_architectures=[own], benchbd_pretrainings=[method])
    try:
        registry = load_registry(extra={"odd": odd})
    finally:
        ARCHITECTURES.pop("own", None)
    assert registry.problems == []
    assert registry.names("pretraining").count("own") == 1


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (7, "offers 7 as architecture, which is not a class derived from benchbd.Encoder"),
        (nn.Linear, "is not a class derived from benchbd.Encoder"),
        (type("Odd", (Plain,), {"arch": "Has Blanks"}), "Odd: its arch must be up to 40 lower-case letters"),
        (type("Odd", (Encoder,), {"arch": "odd"}), "Odd: it does not define build"),
        (type("Odd", (Plain,), {"arch": "odd", "encode": Encoder.encode}), "Odd: it does not define encode"),
        (type("Odd", (Plain,), {"arch": "odd", "image_size": 20}), "Odd: its image_size must be None or one of 32 to"),
        (
            type("Odd", (Plain,), {"arch": "w16"}),
            "its architecture 'w16' is already the name of one in plugin 'benchbd'",
        ),
    ],
)
def test_a_class_that_is_none_is_named(cls: Any, problem: str) -> None:
    found = registry_with(cls)
    (told,) = found.problems
    assert told.startswith("plugin 'odd'")
    assert problem in told
    assert ARCHITECTURES["w16"] is found.architectures["w16"] is W16
    assert found.get("defense", "ft")


def test_simclr_takes_any_architecture_and_offers_the_nearest() -> None:
    assert SimCLR().identity()["options"]["arch"] == "resnet18"
    message = "simclr.arch: unknown architecture 'resnet8': did you mean 'resnet18'? known: "
    with pytest.raises(UsageError, match=re.escape(message)):
        build(SimCLR, {"arch": "resnet8"}, "simclr")


def test_what_an_architecture_needs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    needy = type("Needy", (Plain,), {"arch": "needy", "needs": ("no_such_module", "benchbd[none]")})
    assert flaw_of_architecture(needy) == ""
    monkeypatch.setitem(ARCHITECTURES, "needy", needy)
    line = "architecture needy needs no_such_module, which is not installed: pip install 'benchbd[none]'"
    for make in (lambda: Encoder("needy"), lambda: build(SimCLR, {"arch": "needy"}, "simclr")):
        with pytest.raises(UsageError, match=re.escape(line)):
            make()


def test_images_of_another_size_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "sized", type("Sized", (Plain,), {"arch": "sized", "image_size": 64}))
    encoder = Encoder("sized")
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, 6)
    with pytest.raises(UsageError, match="sized takes images of 64 pixels, not 32"):
        encoder(torch.rand(2, 3, 32, 32))
    line = "sized takes images of 64 pixels, the board's have 32: set image_size = 64"
    with pytest.raises(UsageError, match=re.escape(line)):
        benchbd.plan("smoke", option=["simclr.arch=sized"])


# ------------------------------------------------------------------------------------ those that come with benchbd


@dataclass(frozen=True)
class Case:
    """An architecture, a small size for it, its parameters without the head, and the channels of its stages."""

    arch: str
    size: int
    parameters: int
    channels: tuple[int, ...]

    def __str__(self) -> str:
        return self.arch


CASES = [
    Case("resnet18", 32, 11_168_832, (64, 128, 256, 512)),
    Case("resnet34", 32, 21_276_992, (64, 128, 256, 512)),
    Case("resnet50", 32, 23_500_352, (256, 512, 1024, 2048)),
    Case("resnet18-imagenet", 64, 11_176_512, (64, 128, 256, 512)),
    Case("resnet34-imagenet", 64, 21_284_672, (64, 128, 256, 512)),
    Case("resnet50-imagenet", 64, 23_508_032, (256, 512, 1024, 2048)),
    Case("resnet18-pad2", 32, 11_168_832, (64, 128, 256, 512)),
    Case("resnet50-pad2", 32, 23_500_352, (256, 512, 1024, 2048)),
    Case("vgg16-bn", 32, 14_723_136, (64, 128, 256, 512, 512)),
    Case("mobilenet-v2", 64, 2_223_872, (16, 24, 32, 96, 1280)),
]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)


def fresh(arch: str) -> Encoder:
    return Encoder.seeded(arch, MEAN, STD, seed=0, device="cpu").eval()


def pictures(size: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def broken(**parts: Any) -> type[Encoder]:
    return type("Broken", (Plain,), {"__doc__": "Broken.", **parts})


def last_stage_untaken(self: Plain, x: Tensor, take: Any) -> Tensor:
    return self.second(take("first", self.first(x)).relu()).mean((2, 3))


def without_going_on(self: Plain, x: Tensor, take: Any) -> Tensor:
    y = self.second(take("first", self.first(x)).relu())
    take("second", y)
    return y.mean((2, 3))


def over_the_batch(self: Plain, x: Tensor, take: Any) -> Tensor:
    features = Plain.encode(self, x, take)
    return features - features.mean(0)


def without_autograd(self: Plain, x: Tensor, take: Any) -> Tensor:
    return Plain.encode(self, x, take).detach()


@pytest.mark.parametrize(
    ("cls", "complaint"),
    [
        (nn.Linear, "is not a class derived from benchbd.Encoder"),
        (broken(__doc__=""), "give it a docstring"),
        (broken(image_size=20), "its image_size must be None or one of 32 to 224"),
        (broken(feature_dim=7, channels=6), "features of 2 images are (2, 6), not (2, 7)"),
        (broken(stages=("first", "third")), "encode() takes the stages ('first',), and stages says"),
        (broken(encode=last_stage_untaken), "encode() takes the stages ('first',), and stages says"),
        (broken(encode=without_going_on), "no finite gradient with respect to the map of second"),
        (broken(encode=over_the_batch), "features of an image depend on the other images"),
        (broken(encode=without_autograd), "does not require grad"),
        (broken(norms=lambda self: {"bn": nn.BatchNorm2d(4)}), "norms() names bn, which is no module of that name"),
        (
            broken(convolutions=lambda self: {"third": self.first}),
            "convolutions() names third, which encode() does not",
        ),
        (
            broken(convolutions=lambda self: {"second": self.second, "first": self.first}),
            "convolutions() is not in the order in which images pass: first, second",
        ),
    ],
)
def test_what_an_architecture_breaks_is_one_line(cls: Any, complaint: str) -> None:
    with pytest.raises(ContractError, match=re.escape(complaint)) as told:
        check_architecture(cls)
    assert "\n" not in str(told.value)
    assert "plain" not in ARCHITECTURES


def test_an_architecture_that_keeps_its_promises_passes() -> None:
    for cls in (Plain, Four, W16):
        check_architecture(cls)
        check_architecture(cls, size=48)


CHEAP = ("resnet18-imagenet", "resnet34-imagenet", "vgg16-bn", "mobilenet-v2")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c.arch in CHEAP else pytest.mark.slow) for c in CASES], ids=str
)
def test_each_does_what_all_must(case: Case) -> None:
    encoder = fresh(case.arch)
    with torch.no_grad():
        maps = encoder.intermediates(pictures(case.size))[1]
    assert tuple(map_.shape[1] for map_ in maps.values()) == case.channels
    check_architecture(type(encoder), size=case.size)
    x = pictures(case.size)
    with ForwardMeter() as meter:
        encoder(x).sum().backward()
    assert meter.images == 2 + 4
    with ForwardMeter() as meter:
        encoder.frozen()(x.requires_grad_(True)).sum().backward()
    assert meter.images == 2 + 2


def torchvisions(encoder: Encoder) -> nn.Module:
    """torchvision's module for an encoder, with its weights, up to the mean over positions."""
    import torchvision.models as tv

    arch = encoder.arch
    net: Any = {"vgg16-bn": tv.vgg16_bn, "mobilenet-v2": tv.mobilenet_v2}.get(arch) or getattr(tv, arch[:8])
    net = net(init_weights=False, num_classes=2) if arch == "vgg16-bn" else net(num_classes=2)
    if arch.startswith("resnet"):
        if not arch.endswith("imagenet"):
            padding = 2 if arch.endswith("pad2") else 1
            net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=padding, bias=False), nn.Identity()
        net.fc = nn.Identity()
        places = {"stem.0.": "conv1.", "stem.1.": "bn1.", "body.": ""}
        tensors = {
            new + name.removeprefix(old): t
            for name, t in encoder.state_dict().items()
            for old, new in places.items()
            if name.startswith(old)
        }
        net.load_state_dict(tensors)
        return net.eval()
    features = {name: t for name, t in encoder.state_dict().items() if name.startswith("features.")}
    kept, unknown = net.load_state_dict(features, strict=False)
    assert not unknown
    assert all(name.startswith("classifier.") for name in kept)
    return net.features.eval()


@EVERY
def test_parameters_are_counted_and_features_are_those_of_torchvision(case: Case) -> None:
    encoder, x = fresh(case.arch), pictures(case.size)
    assert sum(p.numel() for p in encoder.backbone()) == case.parameters
    with torch.no_grad():
        wanted = torchvisions(encoder)((x - encoder.mean) / encoder.std)
        wanted = wanted.mean((2, 3)) if wanted.ndim == 4 else wanted
        torch.testing.assert_close(encoder(x), wanted, rtol=1e-3, atol=1e-4)


def test_a_script_without_a_registry_finds_them() -> None:
    code = "from benchbd import Encoder; print(type(Encoder('resnet34', head=False)).__module__)"
    done = completed([sys.executable, "-c", code])
    assert (done.returncode, done.stdout.strip()) == (0, "benchbd_plugins.resnets"), done.stderr


# ------------------------------------------------------------------------------------------------ through a board


BOARD = """
title = "Five steps"
attacks = ["none", "badencoder"]
defenses = {defenses}
evaluators = ["mlp"]
seeds = [1]
rows = [{{ pretrain = "few-shapes", tasks = ["few-shapes:3"] }}]
clean.images = 16
image_size = {size}

"""


class FewShapes(Shapes):
    """60 and 30 of the drawn shapes."""

    name = "few-shapes"
    splits = {"train": 60, "test": 30}


DEFENSES = ["none", "ft", "fp", "anp", "medic", "mimic"]


def through_a_board(
    folder: Path, arch: str, size: int, *, defenses: Sequence[str] = DEFENSES, **extra: object
) -> dict[str, tuple[str, str]]:
    """Status and reason of every cell of BADENCODER, by defense; five steps per stage."""
    (folder / "five.toml").write_text((BOARD + FIVE_STEPS).format(arch=arch, size=size, defenses=list(defenses)))
    registry = load_registry(extra={"few": offering(benchbd_datasets=[FewShapes]), **extra})
    session = Session.open(
        folder / "five.toml", data_root=folder / "data", store=folder / "store", device="cpu", registry=registry
    )
    return {r.defense: (r.status, r.reason) for r in session.run() if r.attack == "badencoder"}


def every_pair() -> Iterator[Any]:
    """Every architecture at 32, 64 and 224 pixels; only those that take seconds are not slow. With the stem of small
    images, a residual net's maps at 224 pixels are as large as the image: a GB for each image in training."""
    for case in CASES:
        small = case.arch.startswith("resnet") and not case.arch.endswith("imagenet")
        for size in (32, 64) if small else (32, 64, 224):
            quick = (case.arch, size) == ("mobilenet-v2", 64)
            yield pytest.param(case.arch, size, marks=[] if quick else pytest.mark.slow, id=f"{case.arch}-{size}")


@pytest.mark.fixed_draw("every stage must end, whatever it learns")
@pytest.mark.parametrize(("arch", "size"), list(every_pair()))
def test_each_goes_through_a_board(arch: str, size: int, tmp_path: Path) -> None:
    found = through_a_board(tmp_path, arch, size, defenses=["none", "ft", "mimic"])
    if size == 32 and arch.endswith(("imagenet", "mobilenet-v2")):
        status, reason = found.pop("mimic")
        assert (status, "a stage's map is 1x1" in reason) == ("n/a", True)
    assert {status for status, _ in found.values()} <= {"ok"}, found


@pytest.mark.slow
@pytest.mark.fixed_draw("every stage must end, whatever it learns")
@EVERY
def test_each_goes_through_every_defense(case: Case, tmp_path: Path) -> None:
    found = through_a_board(tmp_path, case.arch, case.size, defenses=["fp", "anp", "medic"])
    assert {status for status, _ in found.values()} <= {"ok"}, found
    assert {"fp", "anp", "medic"} <= set(found)


@pytest.mark.fixed_draw("it ends before a step")
@pytest.mark.parametrize(
    ("arch", "method", "reason"),
    [
        ("mobilenet-v2", Mimic(steps=1, batch=4, weighting="uniform"), "a stage's map is 1x1"),
        ("mobilenet-v2", NAD(steps=1, batch=4, teacher_steps=0), "a stage's map is 1x1"),
        ("plain", ANP(steps=1), "anp prunes BatchNorm channels; plain has no BatchNorm"),
        ("plain", FP(steps=1, site="conv2"), "fp: site=conv2 prunes a convolution with its BatchNorm; plain has none"),
        ("mixing", FP(steps=1), "fp prunes channels that become features one by one; mixing mixes them"),
    ],
)
def test_a_method_says_what_an_architecture_lacks(
    monkeypatch: pytest.MonkeyPatch, arch: str, method: Mitigation, reason: str
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "plain", Plain)
    monkeypatch.setitem(ARCHITECTURES, "mixing", type("Mixing", (Plain,), {"arch": "mixing", "channelwise": False}))
    images = ImageSet((pictures(32, 8) * 255).byte())
    with pytest.raises(NotApplicable, match=re.escape(reason)):
        method.repair(fresh(arch), DefenderKnowledge(images, 0))


# --------------------------------------------------------------------------------------------- vision transformers


class ThinViT(ViTB16):
    """ViT of four thin blocks, for 64 pixels."""

    arch = "thin-plain-vit"
    image_size, width, heads, blocks = 64, 64, 2, 4


def test_a_vision_transformer_does_what_all_must() -> None:
    check_architecture(ThinViT)


VITS = [
    ("vit-b-16", "vit_b_16", 85_798_656),
    ("vit-b-32", "vit_b_32", 87_455_232),
    ("vit-s-16", "", 21_665_664),
    ("vit-s-16-heads12", "", 21_665_664),
]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch, _, _ in VITS])
def test_vision_transformers_do_what_all_must(arch: str) -> None:
    check_architecture(type(Encoder(arch)))


@pytest.mark.parametrize(
    ("arch", "builder", "parameters"), [pytest.param(*v, marks=pytest.mark.slow if v[1] else []) for v in VITS]
)
def test_vision_transformers_are_those_of_torchvision(arch: str, builder: str, parameters: int) -> None:
    import torchvision.models as tv

    encoder, x = fresh(arch), pictures(224)
    assert sum(p.numel() for p in encoder.backbone()) == parameters
    heads = 12 if arch.endswith("heads12") else 6
    net: Any = getattr(tv, builder)() if builder else tv.VisionTransformer(224, 16, 12, heads, 384, 1536)
    net.heads = nn.Identity()
    tensors = encoder.state_dict().items()
    net.load_state_dict({name.removeprefix("trunk."): t for name, t in tensors if name.startswith("trunk.")})
    with torch.no_grad():
        wanted = net.eval()((x - encoder.mean) / encoder.std)
        torch.testing.assert_close(encoder(x), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.fixed_draw("every stage must end, whatever it learns")
def test_a_vision_transformer_goes_through_a_board(tmp_path: Path) -> None:
    found = through_a_board(tmp_path, "vit-s-16", 224, defenses=["none", "ft", "mimic"])
    assert {status for status, _ in found.values()} <= {"ok"}, found


# ------------------------------------------------------------------------------------------------- CLIP's encoders


def small_clip() -> dict[str, type[Encoder]]:
    """CLIP's encoders by another name, thin and for 64 pixels."""
    thin = {"image_size": 64, "feature_dim": 32, "__doc__": "Thin."}
    rn50 = {"arch": "thin-rn50", "width": 8, "layers": (1, 1, 1, 1)}
    vit = {"arch": "thin-vit", "width": 64, "heads": 1, "blocks": 4, "patch": 16}
    return {
        "thin-rn50": type("ThinRN50", (ClipRN50,), {**thin, **rn50}),
        "thin-vit": type("ThinViT", (ClipViTB32,), {**thin, **vit}),
    }


@pytest.mark.clip
@pytest.mark.parametrize("arch", ["thin-rn50", "thin-vit"])
def test_clips_encoders_do_what_all_must(arch: str) -> None:
    check_architecture(small_clip()[arch])


CLIPS = [
    ("clip-rn50", "RN50-quickgelu", 38_316_896),
    ("clip-vit-b-32", "ViT-B-32-quickgelu", 87_849_216),
    ("clip-vit-b-32-gelu", "ViT-B-32", 87_849_216),
]


@pytest.mark.clip
@pytest.mark.parametrize(("arch", "model", "parameters"), CLIPS)
def test_clips_encoders_are_those_of_open_clip(arch: str, model: str, parameters: int) -> None:
    import open_clip

    encoder, x = fresh(arch), pictures(224)
    assert sum(p.numel() for p in encoder.backbone()) == parameters
    visual = open_clip.create_model(model).visual.eval()
    tensors = encoder.state_dict().items()
    visual.load_state_dict({n.removeprefix("visual."): t for n, t in tensors if n.startswith("visual.")})
    with torch.no_grad():
        wanted = visual((x - encoder.mean) / encoder.std)
        torch.testing.assert_close(encoder(x), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.clip
@pytest.mark.fixed_draw("every stage must end, whatever it learns")
@pytest.mark.parametrize("arch", ["thin-rn50", "thin-vit"])
def test_clips_encoders_go_through_a_board(arch: str, tmp_path: Path) -> None:
    plugin = offering(benchbd_architectures=[small_clip()[arch]])
    found = through_a_board(tmp_path, arch, 64, clip=plugin)
    refused = {name: reason for name, (status, reason) in found.items() if status == "n/a"}
    assert "fp prunes channels that become features one by one" in refused.pop("fp")
    if arch == "thin-vit":
        assert "anp prunes BatchNorm channels; thin-vit has no BatchNorm" in refused.pop("anp")
    assert not refused
    assert {status for status, _ in found.values()} <= {"ok", "n/a"}, found


@pytest.mark.clip
@pytest.mark.fixed_draw("every stage must end, whatever it learns")
@pytest.mark.parametrize("arch", ["clip-rn50", "clip-vit-b-32"])
def test_clips_encoders_go_through_a_board_at_their_size(arch: str, tmp_path: Path) -> None:
    found = through_a_board(tmp_path, arch, 224, defenses=["none", "ft", "mimic"])
    assert {status for status, _ in found.values()} <= {"ok"}, found

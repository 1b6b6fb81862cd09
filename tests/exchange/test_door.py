"""Encoders of timm, lightly, open_clip and transformers themselves come in, and go out into timm again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchbd import UsageError
from benchbd.exchange.exporting import export_encoder
from benchbd.exchange.importing import import_encoder

from .test_forms import TOLD, agree, copies, loaded, made, normalised, pictures, settled, under

pytestmark = pytest.mark.door


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Warnings of the libraries are not ours."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("name", "arch", "size"),
    [
        ("resnet18", "resnet18-imagenet", 64),
        ("resnet34", "resnet34-imagenet", 64),
        ("resnet50", "resnet50-imagenet", 64),
        ("vit_small_patch16_224", "vit-s-16", 224),
        ("vit_base_patch16_224", "vit-b-16", 224),
        ("vit_base_patch32_224", "vit-b-32", 224),
    ],
)
def test_timms_nets_come_in_and_go_out(name: str, arch: str, size: int, tmp_path: Path) -> None:
    import timm

    net = settled(timm.create_model(name, num_classes=3))
    save_file(net.state_dict(), tmp_path / "in.safetensors")
    found = import_encoder(tmp_path / "in.safetensors", **TOLD)
    assert (found.layout, found.encoder.arch) == ("torchvision" if name.startswith("res") else "timm", arch)
    net.reset_classifier(0)
    agree(found.encoder, net, size)
    agree(found.encoder, loaded(export_encoder(found.encoder, "timm", tmp_path / "out.safetensors")), size)
    path = tmp_path / "out.safetensors"
    assert import_encoder(path).encoder.to_bytes() == found.encoder.to_bytes()


@pytest.mark.parametrize("arch", ["resnet18", "resnet50-pad2", "vit-s-16-heads12"])
def test_variants_go_out_into_timm(arch: str, tmp_path: Path) -> None:
    encoder = made(arch)
    if encoder.channelwise:
        encoder.mask[::2] = 0
    agree(encoder, loaded(export_encoder(encoder, "timm", tmp_path / "out.pth")), encoder.image_size or 32)


def test_a_classifier_goes_out_into_timm(tmp_path: Path) -> None:
    from benchbd import Head

    encoder, x = made("resnet18-imagenet", head=False), pictures(64)
    encoder.classifier = Head.of([(torch.randn(3, 512), torch.ones(3))])
    with torch.no_grad():
        net = loaded(export_encoder(encoder, "timm", tmp_path / "out.pth"))
        torch.testing.assert_close(net(normalised(x)), encoder.classifier(encoder(x)), rtol=1e-4, atol=1e-4)


def lightly_heads() -> dict[str, nn.Module]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import BYOLPredictionHead, MoCoProjectionHead

    return {
        "projection_head": MoCoProjectionHead(512, 512, 128),
        "prediction_head": BYOLPredictionHead(128, 64, 128),
        "projection_head_momentum": MoCoProjectionHead(512, 512, 128),
        "criterion": NTXentLoss(memory_bank_size=(16, 128)),
    }


class Lightly(nn.Module):
    """A net as lightly's examples write it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone_momentum = settled(backbone, seed=5)
        for name, head in lightly_heads().items():
            self.add_module(name, head)


def test_lightlys_examples_come_in(tmp_path: Path) -> None:
    import torchvision

    net = settled(nn.Sequential(*list(torchvision.models.resnet18().children())[:-1]))
    save_file(copies(Lightly(net).state_dict()), tmp_path / "in.safetensors")
    found = import_encoder(tmp_path / "in.safetensors", **TOLD)
    assert (found.layout, found.encoder.arch) == ("lightly", "resnet18-imagenet")
    agree(found.encoder, net, 64)


@pytest.mark.parametrize(
    ("name", "arch"), [("resnet-18", "resnet18"), ("resnet-34", "resnet34"), ("resnet-50", "resnet50")]
)
def test_lightlys_generator_comes_in(name: str, arch: str, tmp_path: Path) -> None:
    from lightly.models import ResNetGenerator

    net = settled(ResNetGenerator(name))
    save_file(copies(under("backbone.", net)), tmp_path / "in.safetensors")
    found = import_encoder(tmp_path / "in.safetensors", **TOLD)
    assert (found.layout, found.encoder.arch) == ("lightly", arch)
    net.linear = nn.Identity()
    agree(found.encoder, net)


CLIPS = [("RN50-quickgelu", "clip-rn50"), ("ViT-B-32-quickgelu", "clip-vit-b-32"), ("ViT-B-32", "clip-vit-b-32-gelu")]


@pytest.mark.parametrize(("name", "arch"), CLIPS)
def test_open_clips_models_come_in(name: str, arch: str, tmp_path: Path) -> None:
    import open_clip

    model = settled(open_clip.create_model(name))
    save_file(copies(model.state_dict()), tmp_path / "in.safetensors")
    if "ViT" in name:
        with pytest.raises(UsageError, match=r"several architectures.*: clip-vit-b-32, clip-vit-b-32-gelu"):
            import_encoder(tmp_path / "in.safetensors")
    found = import_encoder(tmp_path / "in.safetensors", arch=arch, **TOLD)
    assert found.layout == "clip"
    agree(found.encoder, model.encode_image, 224)
    mean = import_encoder(tmp_path / "in.safetensors", arch=arch).encoder.mean.flatten().tolist()
    assert mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    save_file(copies(model.visual.state_dict()), tmp_path / "visual.safetensors")
    again = import_encoder(tmp_path / "visual.safetensors", arch=arch, **TOLD).encoder
    assert again.to_bytes() == found.encoder.to_bytes()


def written(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


SIZES: dict[str, Any] = {"embedding_size": 64, "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}


@pytest.mark.parametrize("classifies", [False, True])
def test_transformers_resnets_come_in(classifies: bool, tmp_path: Path) -> None:
    import transformers

    cls = transformers.ResNetForImageClassification if classifies else transformers.ResNetModel
    for arch, options in {
        "resnet18-imagenet": {**SIZES, "depths": [2, 2, 2, 2]},
        "resnet34-imagenet": {**SIZES, "depths": [3, 4, 6, 3]},
        "resnet50-imagenet": {},
    }.items():
        model = settled(cls(transformers.ResNetConfig(**options)))
        found = import_encoder(written(model, tmp_path / arch), **TOLD)
        assert (found.layout, found.encoder.arch) == ("transformers", arch)
        net: Any = model.resnet if classifies else model
        agree(found.encoder, lambda x, net=net: net(x).pooler_output, 64)


@pytest.mark.parametrize("classifies", [False, True])
def test_transformers_vits_come_in(classifies: bool, tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    model = (transformers.ViTForImageClassification if classifies else transformers.ViTModel)(config).eval()
    net: Any = model.vit if classifies else model
    net.embeddings.position_embeddings.data.normal_()  # as large as training makes tokens: what LayerNorms add is lost
    found = import_encoder(written(model, tmp_path / "model"), **TOLD)
    assert (found.layout, found.encoder.arch) == ("transformers", "vit-s-16")
    assert "1e-12 by default in transformers" in found.said[-1]
    agree(found.encoder, lambda x: net(x).last_hidden_state[:, 0], 224)
    save_file(copies(model.state_dict()), tmp_path / "memory.safetensors")
    again = import_encoder(tmp_path / "memory.safetensors", **TOLD).encoder
    assert again.to_bytes() == found.encoder.to_bytes()

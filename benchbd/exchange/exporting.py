"""Write an encoder as plain tensors with another library's names, and its normalisation beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from benchbd.base.content import expanded, write_file
from benchbd.base.errors import UnknownNameError, UsageError, shown
from benchbd.exchange.namings import MOBILENET, RESNET, TIMM_VIT, TORCHVISION_VIT, VGG, WITHOUT_POOL, Naming
from benchbd.exchange.normalisation import beside, shortest, written_beside
from benchbd.nets.encoder import Encoder, ResNet
from benchbd.nets.head import Head
from benchbd.nets.values import check_values


@dataclass(frozen=True)
class Twin:
    """The net of a library that computes an architecture's features from the same tensors.

    make: Python that makes it, with the number of classes for "{}".
    alter: statements that make ``net`` the architecture.
    last: the name there of the linear layer that a classifier can be; empty if there is none.
    """

    naming: Naming
    make: str
    alter: tuple[str, ...] = ()
    last: str = "fc"


def _stem(padding: int) -> tuple[str, ...]:
    """Statements that give a ResNet the 3x3 stem of small images."""
    return (
        f"net.conv1 = torch.nn.Conv2d(3, 64, 3, padding={padding}, bias=False)",
        "net.maxpool = torch.nn.Identity()",
    )


def _resnets(make: str) -> dict[str, Twin]:
    twins = {}
    for name in ("resnet18", "resnet34", "resnet50"):
        twins[f"{name}-imagenet"] = Twin(RESNET, make.format(name))
        twins[name] = Twin(RESNET, make.format(name), _stem(1))
        if name != "resnet34":
            twins[f"{name}-pad2"] = Twin(RESNET, make.format(name), _stem(2))
    return twins


_TORCHVISIONS_VIT = "torchvision.models.VisionTransformer(224, {}, 12, {}, {}, {}, num_classes={{}})"

TWINS: dict[str, dict[str, Twin]] = {
    "torchvision": {
        **_resnets("torchvision.models.{}(num_classes={{}})"),
        "vgg16-bn": Twin(VGG, "torchvision.models.vgg16_bn()", ("net.avgpool = torch.nn.AdaptiveAvgPool2d(1)",), ""),
        "mobilenet-v2": Twin(MOBILENET, "torchvision.models.mobilenet_v2(num_classes={})", last="classifier.1"),
        "vit-b-16": Twin(TORCHVISION_VIT, "torchvision.models.vit_b_16(num_classes={})", last="heads.head"),
        "vit-b-32": Twin(TORCHVISION_VIT, "torchvision.models.vit_b_32(num_classes={})", last="heads.head"),
        "vit-s-16": Twin(TORCHVISION_VIT, _TORCHVISIONS_VIT.format(16, 6, 384, 1536), last="heads.head"),
        "vit-s-16-heads12": Twin(TORCHVISION_VIT, _TORCHVISIONS_VIT.format(16, 12, 384, 1536), last="heads.head"),
    },
    "timm": {
        **_resnets("timm.create_model('{}', num_classes={{}})"),
        "vit-b-16": Twin(TIMM_VIT, "timm.create_model('vit_base_patch16_224', num_classes={})", last="head"),
        "vit-b-32": Twin(TIMM_VIT, "timm.create_model('vit_base_patch32_224', num_classes={})", last="head"),
        "vit-s-16": Twin(TIMM_VIT, "timm.create_model('vit_small_patch16_224', num_classes={})", last="head"),
        "vit-s-16-heads12": Twin(
            TIMM_VIT, "timm.create_model('vit_small_patch16_224', num_heads=12, num_classes={})", last="head"
        ),
    },
    "badencoder": {name: Twin(WITHOUT_POOL, f"SimCLR(arch='{name}')", last="") for name in ("resnet18", "resnet34")},
}
"""By form and architecture. BadEncoder's SimCLR is the class of its ``models/simclr_model.py``; its ResNet-50 has a
projection head of other sizes than ours."""

FORMS = ("benchbd", *TWINS)

_UNREACHED = -1e9
"""The bias that stands for a pruned channel where a shortcut is added before the ReLU: no activation comes near it, and
its square is still a float32."""


def export_encoder(encoder: Encoder, form: str, path: str | Path) -> list[str]:
    """Write an encoder in a form of ``FORMS``, and return lines that say what the file holds and how to load it.

    benchbd: the file of ``Encoder.save``, which holds everything, if the name ends in .safetensors; else the encoder's
        state without its classifier.
    torchvision, timm: the state of that library's net. Its last layer is filled if the encoder's classifier is a
        linear layer on raw features; else it is absent, as is the projection head.
    badencoder: f and g as BadEncoder, DECREE and MIMIC save SimCLR, under the key "state_dict".

    Any other file is of ``torch.save``, or of safetensors if its name ends in .safetensors; ``PATH.json`` beside it
    tells the normalisation. Pruned channels are folded into the last BatchNorm, which changes no feature.
    UnknownNameError if there is no such form; UsageError if it cannot hold the encoder, or ``encoder`` is none;
    DataError if a value of the encoder is not finite or not possible; StoreError if the files cannot be written.
    """
    path = expanded(path)
    if not isinstance(encoder, Encoder):
        raise UsageError(f"{shown(encoder)} is no encoder; benchbd.load_encoder and benchbd.import_encoder read one")
    if form not in FORMS:
        raise UnknownNameError("form", form, FORMS)
    check_values(f"the encoder, a {encoder.arch}", encoder.state_dict())  # what import refuses is not written
    normalisation = tuple(shortest(encoder.mean)), tuple(shortest(encoder.std))
    told = written_beside(encoder.arch, form, encoder.image_size, normalisation).encode()
    if form == "benchbd" and path.suffix == ".safetensors":
        write_file(path, encoder.to_bytes())
        return [f"to load it: import benchbd; encoder = benchbd.Encoder.load({str(path)!r})"]
    if form == "benchbd":
        state = {name: tensor for name, tensor in encoder.tensors().items() if not name.startswith("classifier.")}
        write_file(path, _bytes(path, state, form))
        write_file(beside(path), told)
        said = [] if encoder.classifier is None else ["left out: the classifier"]
        return [*said, f"to load it: import benchbd; encoder = benchbd.import_encoder({str(path)!r}).encoder"]
    twin = _twin(encoder, form)
    own = {name: t for name, t in _folded(encoder, form).items() if name.partition(".")[0] not in _BESIDE}
    root = "f.f." if form == "badencoder" else ""
    tensors = {root + twin.naming.names(name)[0]: tensor for name, tensor in own.items()}
    said = []
    if form == "badencoder":
        tensors |= _projection(encoder)
    elif encoder.head is not None:
        said.append("left out: the projection head")
    classes = 0
    if (head := encoder.classifier) is not None:
        if twin.last and _is_linear(head):
            layer = head.layers[0].state_dict()
            tensors |= {f"{twin.last}.{name}": tensor.detach().cpu() for name, tensor in layer.items()}
            classes = head.sizes[-1]
        else:
            said.append("left out: the classifier, which is no single linear layer on raw features there")
    write_file(path, _bytes(path, tensors, form))
    write_file(beside(path), told)
    return [*said, f"to load it: {_code(path, twin, form, classes)}"]


_BESIDE = ("mean", "std", "mask", "head", "classifier")


def _twin(encoder: Encoder, form: str) -> Twin:
    if twin := TWINS[form].get(encoder.arch):
        return twin
    others = [name for name, twins in TWINS.items() if encoder.arch in twins]
    raise UsageError(f"{form} has no net like {encoder.arch}: export it as {' or '.join(['benchbd', *others])}")


def _folded(encoder: Encoder, form: str) -> dict[str, Tensor]:
    """The encoder's tensors, with the mask folded into the last BatchNorm: the features are exactly those before."""
    tensors, pruned = encoder.tensors(), encoder.mask.detach().cpu() == 0
    if not pruned.any():
        return tensors
    if not encoder.channelwise:
        raise UsageError(
            f"{form} cannot hold the {int(pruned.sum())} pruned channels of a {encoder.arch}, which no BatchNorm can "
            "take: export it as benchbd"
        )
    if isinstance(encoder, ResNet):
        # The last block's output is ReLU(BatchNorm(...) + shortcut), and a shortcut is not pruned: weight 0 makes the
        # BatchNorm's output its bias, and a bias far below any shortcut makes the ReLU's output 0.
        name = f"body.{encoder.stages[-1]}.{encoder.blocks[-1] - 1}.bn{3 if encoder.bottleneck else 2}"
        bias = _UNREACHED
    else:  # the net ends in a convolution, a BatchNorm and a ReLU
        name, bias = list(encoder.norms())[-1], 0.0
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].masked_fill(pruned, 0.0)
    tensors[f"{name}.bias"] = tensors[f"{name}.bias"].masked_fill(pruned, bias)
    return tensors


def _projection(encoder: Encoder) -> dict[str, Tensor]:
    if encoder.head is None:
        raise UsageError(
            "badencoder's net has a projection head, and this encoder has none: export it as torchvision or benchbd"
        )
    return {f"g.{name}": t.detach().cpu().contiguous() for name, t in encoder.head.state_dict().items()}


def _is_linear(head: Head) -> bool:
    """Whether a head is one linear layer on raw features."""
    unit = bool((head.mean == 0).all() and (head.std == 1).all() and head.scale == 1)
    return unit and len(head.layers) == 1 and not head.normalized


def _bytes(path: Path, tensors: Mapping[str, Tensor], form: str) -> bytes:
    if path.suffix == ".safetensors":
        return save(dict(tensors), metadata={"format": "pt"})
    buffer = BytesIO()
    torch.save({"state_dict": dict(tensors)} if form == "badencoder" else dict(tensors), buffer)
    return buffer.getvalue()


def _code(path: Path, twin: Twin, form: str, classes: int) -> str:
    """Python that loads the file into the library's net, strictly."""
    if path.suffix == ".safetensors":
        read, library = f"safetensors.torch.load_file({str(path)!r})", "safetensors.torch"
    else:
        read, library = f"torch.load({str(path)!r}, weights_only=True)", "torch"
    if form == "badencoder":
        read += "" if path.suffix == ".safetensors" else "['state_dict']"
        return f"import {library}; net = {twin.make}; net.load_state_dict({read}); net.eval()"
    number = classes or (0 if form == "timm" else 1)  # without a classifier: timm makes none, torchvision's is removed
    statements = [f"import torch, {form}", f"net = {twin.make.format(number)}", *twin.alter]
    if library != "torch":
        statements[0] += f", {library}"
    if not classes and form == "torchvision":
        statements.append(f"net.{(twin.last or 'classifier').partition('.')[0]} = torch.nn.Identity()")
    return "; ".join([*statements, f"net.load_state_dict({read})", "net.eval()"])

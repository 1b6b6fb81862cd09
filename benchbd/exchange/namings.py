"""The names that libraries give the tensors of an encoder, as tables that import reads backwards and export forwards.

Our own names are those of ``Encoder.state_dict``: ``stem.0.weight``, ``body.layer1.0.conv1.weight``; those of modules
that torchvision or open_clip made are theirs after one prefix (``trunk.``, ``visual.``) or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from typing import Any

import torch
from torch import Size, Tensor
from torch.overrides import TorchFunctionMode

from benchbd.base.errors import asked
from benchbd.nets.encoder import Encoder, ResNet, architecture


@dataclass(frozen=True)
class Naming:
    """The names that a library gives the tensors of some architectures.

    sign: the name of a tensor that every such file has, and few others have.
    of: whether an architecture's tensors have such names there.
    rules: patterns and replacements that turn our name into the library's, applied in order. A replacement
        "{a,b,c}" stands for several tensors that are ours when they are joined along dimension 0.
    note: what the user should know; empty if there is nothing.
    """

    sign: str
    of: Callable[[type[Encoder]], bool]
    rules: tuple[tuple[str, str], ...]
    note: str = ""

    def names(self, own: str) -> tuple[str, ...]:
        """The library's names of the tensors that make up our tensor ``own``."""
        for pattern, replacement in self.rules:
            own = re.sub(pattern, replacement, own)
        if group := re.search(r"\{(.*)\}", own):
            return tuple(own.replace(group[0], each) for each in group[1].split(","))
        return (own,)


def _residual(cls: type[Encoder]) -> bool:
    return issubclass(cls, ResNet)


def _named(*patterns: str) -> Callable[[type[Encoder]], bool]:
    return lambda cls: any(fnmatch(cls.arch, pattern) for pattern in patterns)


def _children(first: int, pooled: bool) -> Naming:
    """A ``Sequential`` of a ResNet's children, of which ``layer1`` has the number ``first``. A max-pool in front of it
    cannot be seen otherwise."""
    stages = tuple((rf"^body\.layer{n}\.", f"{first + n - 1}.") for n in (1, 2, 3, 4))
    return Naming(
        f"{first}.0.conv1.weight",
        lambda cls: issubclass(cls, ResNet) and cls.stem_pool == pooled,
        ((r"^stem\.", ""), *stages),
    )


OWN = Naming("mask", lambda cls: cls.needs is None or find_spec(cls.needs[0]) is not None, ())
"""benchbd's own names, as of ``torch.save(encoder.state_dict(), ...)``."""

_PLAIN = ((r"^stem\.0\.", "conv1."), (r"^stem\.1\.", "bn1."), (r"^body\.", ""))

RESNET = Naming("layer1.0.conv1.weight", _residual, _PLAIN)
"""torchvision's and timm's names of a ResNet."""

WITHOUT_POOL = _children(3, pooled=False)
WITH_POOL = _children(4, pooled=True)

SHORTCUT = Naming("layer2.0.shortcut.0.weight", _residual, (*_PLAIN, (r"\.downsample\.", ".shortcut.")))

TRANSFORMERS_RESNET = Naming(
    "embedder.embedder.convolution.weight",
    _residual,
    (
        (r"^stem\.0\.", "embedder.embedder.convolution."),
        (r"^stem\.1\.", "embedder.embedder.normalization."),
        *((rf"^body\.layer{n}\.", f"encoder.stages.{n - 1}.layers.") for n in (1, 2, 3, 4)),
        *((rf"\.conv{n}\.", f".layer.{n - 1}.convolution.") for n in (1, 2, 3)),
        *((rf"\.bn{n}\.", f".layer.{n - 1}.normalization.") for n in (1, 2, 3)),
        (r"\.downsample\.0\.", ".shortcut.convolution."),
        (r"\.downsample\.1\.", ".shortcut.normalization."),
    ),
)

VGG = Naming("features.0.weight", _named("vgg*"), ())
MOBILENET = Naming("features.0.0.weight", _named("mobilenet*"), ())

_VIT = _named("vit-*")

TORCHVISION_VIT = Naming("encoder.layers.encoder_layer_0.ln_1.weight", _VIT, ((r"^trunk\.", ""),))

TIMM_VIT = Naming(
    "blocks.0.attn.qkv.weight",
    _VIT,
    (
        (r"^trunk\.", ""),
        (r"^class_token$", "cls_token"),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"^encoder\.ln\.", "norm."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ),
)

_TRANSFORMERS_TOKENS = (
    (r"^trunk\.", ""),
    (r"^class_token$", "embeddings.cls_token"),
    (r"^encoder\.pos_embedding$", "embeddings.position_embeddings"),
    (r"^conv_proj\.", "embeddings.patch_embeddings.projection."),
    (r"^encoder\.ln\.", "layernorm."),
    (r"\.ln_1\.", ".layernorm_before."),
    (r"\.ln_2\.", ".layernorm_after."),
)

_NOTE = (
    "no tensor tells the number of heads, nor what a LayerNorm adds to a variance (1e-12 by default in transformers, "
    "1e-6 here): both are the architecture's"
)

TRANSFORMERS_VIT = Naming(
    "encoder.layer.0.attention.attention.query.weight",
    _VIT,
    (
        *_TRANSFORMERS_TOKENS,
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"encoder.layer.\1."),
        (r"\.self_attention\.in_proj_", ".attention.attention.{query,key,value}."),
        (r"\.self_attention\.out_proj\.", ".attention.output.dense."),
        (r"\.mlp\.0\.", ".intermediate.dense."),
        (r"\.mlp\.3\.", ".output.dense."),
    ),
    _NOTE,
)

TRANSFORMERS_VIT_IN_MEMORY = Naming(  # of transformers 5; its `save_pretrained` writes the names above
    "layers.0.attention.q_proj.weight",
    _VIT,
    (
        *_TRANSFORMERS_TOKENS,
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"layers.\1."),
        (r"\.self_attention\.in_proj_", ".attention.{q_proj,k_proj,v_proj}."),
        (r"\.self_attention\.out_proj\.", ".attention.o_proj."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ),
    _NOTE,
)

CLIP_VIT = Naming("class_embedding", _named("clip-vit-*"), ((r"^visual\.", ""),))
CLIP_RESNET = Naming("attnpool.k_proj.weight", _named("clip-rn*"), ((r"^visual\.", ""),))


class _Undrawn(TorchFunctionMode):
    """In the block no random weights are drawn: on the device ``meta`` that would import torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def shapes_of(cls: type[Encoder]) -> dict[str, Size]:
    """The shapes of the tensors of f and g by our names, without mask and normalisation.

    UsageError if the architecture needs a library that is not installed; PluginError if it cannot be built.
    """
    architecture(cls.arch)
    with torch.random.fork_rng(devices=[]), _Undrawn(), torch.device("meta"):
        encoder = asked(f"architecture {cls.arch}", cls, cls.arch)
    return {name: t.shape for name, t in encoder.state_dict().items() if name not in ("mean", "std", "mask")}

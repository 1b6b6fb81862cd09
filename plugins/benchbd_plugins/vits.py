"""Vision transformers (Dosovitskiy et al., ICLR 2021): ViT-B/16, ViT-B/32 and ViT-S/16 of torchvision, CLIP's ViT-B/32.

The plain ones are torchvision's modules, with its names (``trunk.conv_proj.weight``) and its initialisation; a feature
is the class token after the last LayerNorm, as that of timm with ``num_classes=0``. CLIP's (Radford et al., ICML 2021)
is open_clip's module with its names (``visual.conv1.weight``), without weights; a feature is CLIP's image embedding,
not normalised.

The stages are four groups of blocks. A stage's map contains the patch tokens in the patches' order; a pruned channel is
0 in the class token too. torchvision and open_clip, which ``benchbd[clip]`` installs, are imported when an encoder is
built.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchbd import Encoder, Take, hookimpl


class VisionTransformer(Encoder):
    """What vision transformers share: blocks of one width on square patches, and a class token.

    width: length of a token; heads: of each attention; patch: height and width of a patch in pixels.
    """

    stages = ("layer1", "layer2", "layer3", "layer4")
    image_size = 224
    channelwise = False

    width: ClassVar[int]
    heads: ClassVar[int]
    patch: ClassVar[int]
    blocks: ClassVar[int] = 12

    @property
    def channels(self) -> int:
        return self.width

    def class_token(
        self, y: Tensor, first: Tensor, positions: Tensor, norm: nn.Module, blocks: Iterable[nn.Module], take: Take
    ) -> Tensor:
        """The class token (N, width) after all blocks, of the patches' map (N, width, H', W').

        first: the class token before them; positions: added to all tokens (1 + H'W', width); norm: applied after that.
        """
        layout = y.shape[2:]

        def taken(place: str, tokens: Tensor) -> Tensor:
            first, map_ = tokens[:, :1], take(place, tokens[:, 1:].transpose(1, 2).unflatten(2, layout))
            if place == self.stages[-1]:
                first = first * self.mask.to(first.dtype)
            return torch.cat([first, map_.flatten(2).transpose(1, 2)], 1)

        first = first.to(y.dtype).expand(len(y), 1, -1)
        tokens = taken("stem", norm(torch.cat([first, y.flatten(2).transpose(1, 2)], 1) + positions.to(y.dtype)))
        each = self.blocks // len(self.stages)
        for number, block in enumerate(blocks):
            stage, ends = self.stages[number // each], (number + 1) % each == 0
            tokens = taken(stage if ends else f"block{number}", block(tokens))
        return tokens[:, 0]


class ViTB16(VisionTransformer):
    """ViT-B/16: 12 blocks of width 768 and 12 heads on patches of 16 pixels; 768 features; 224 pixels."""

    arch = "vit-b-16"
    width, heads, patch = 768, 12, 16

    trunk: Any

    @property
    def feature_dim(self) -> int:
        return self.width

    def build(self) -> None:
        from torchvision.models import vision_transformer as torchvisions

        assert self.image_size is not None
        self.trunk = torchvisions.VisionTransformer(
            self.image_size, self.patch, self.blocks, self.heads, self.width, 4 * self.width
        )
        self.trunk.heads = nn.Identity()

    def encode(self, x: Tensor, take: Take) -> Tensor:
        net = self.trunk
        y = take("trunk.conv_proj", net.conv_proj(x))
        blocks, positions = net.encoder.layers, net.encoder.pos_embedding
        out: Tensor = net.encoder.ln(self.class_token(y, net.class_token, positions, nn.Identity(), blocks, take))
        return out


class ViTB32(ViTB16):
    """ViT-B/32: 12 blocks of width 768 and 12 heads on patches of 32 pixels; 768 features; 224 pixels."""

    arch = "vit-b-32"
    patch = 32


class ViTS16(ViTB16):
    """ViT-S/16 of timm and DeiT: 12 blocks of width 384, 6 heads, patches of 16 pixels; 384 features; 224 pixels."""

    arch = "vit-s-16"
    width, heads = 384, 6


class ViTS16Heads12(ViTS16):
    """ViT-S/16 of MoCo v3: 12 heads instead of 6, so tensors of the same names and shapes give other features."""

    arch = "vit-s-16-heads12"
    heads = 12


class ClipViTB32(VisionTransformer):
    """CLIP's ViT-B/32: 12 blocks of width 768 on patches of 32 pixels; 512 features; 224 pixels."""

    arch = "clip-vit-b-32"
    feature_dim = 512
    needs = ("open_clip", "benchbd[clip]")
    width, heads, patch = 768, 12, 32

    quick_gelu: ClassVar[bool] = True
    """Whether the activation is x * sigmoid(1.702 x), as in OpenAI's models, or GELU itself."""

    visual: Any

    def build(self) -> None:
        from open_clip.transformer import QuickGELU
        from open_clip.transformer import VisionTransformer as OpenClips

        self.visual = OpenClips(
            self.image_size,
            self.patch,
            self.width,
            self.blocks,
            heads=self.heads,
            mlp_ratio=4.0,
            output_dim=self.feature_dim,
            act_layer=QuickGELU if self.quick_gelu else nn.GELU,
        )

    def encode(self, x: Tensor, take: Take) -> Tensor:
        net = self.visual
        y = take("visual.conv1", net.conv1(x))
        blocks, positions = net.transformer.resblocks, net.positional_embedding
        token = self.class_token(y, net.class_embedding, positions, net.ln_pre, blocks, take)
        out: Tensor = net.ln_post(token) @ net.proj
        return out


class ClipViTB32Gelu(ClipViTB32):
    """open_clip's ViT-B-32 with GELU, as LAION's models have it: the tensors are those of CLIP's ViT-B/32."""

    arch = "clip-vit-b-32-gelu"
    quick_gelu = False


@hookimpl
def benchbd_architectures() -> list[type[Encoder]]:
    return [ViTB16, ViTB32, ViTS16, ViTS16Heads12, ClipViTB32, ClipViTB32Gelu]

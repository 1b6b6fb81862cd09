"""Where in a checkpoint projects put an encoder, and which of them a file's tensors tell.

A ``Layout`` says of a project's files under which prefix the encoder is, which names its tensors have, and which other
tensors there are: classifiers, projectors, momentum encoders, queues, text towers. ``find`` tells from names and shapes
alone which layout and architecture the tensors of a file have. Nets that compute other features may have tensors of the
same names and shapes: then two architectures fit, or the layout says which one its project means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from torch import Size, Tensor

from benchbd.base.errors import UsageError, shown
from benchbd.exchange.namings import (
    CLIP_RESNET,
    CLIP_VIT,
    MOBILENET,
    OWN,
    RESNET,
    SHORTCUT,
    TIMM_VIT,
    TORCHVISION_VIT,
    TRANSFORMERS_RESNET,
    TRANSFORMERS_VIT,
    TRANSFORMERS_VIT_IN_MEMORY,
    VGG,
    WITH_POOL,
    WITHOUT_POOL,
    Naming,
    shapes_of,
)
from benchbd.exchange.normalisation import NORMALISATIONS, Normalisation
from benchbd.nets.encoder import ARCHITECTURES, Encoder, architecture, find_architectures


@dataclass(frozen=True)
class Layout:
    """Where a project's checkpoints have the encoder, and what else they have.

    roots: prefixes under which the encoder may be.
    ends: beginnings of names below the root that are a classifier or a projector at the encoder's end.
    beside: beginnings of names outside the root that are none of the encoder's.
    head: the prefix of a projection head that may be ours; empty if there is none.
    means: architectures whose tensors are those of the key, and which this project means by them.
    normalisation: mean and std of every encoder of this project; None if they differ.
    """

    name: str
    namings: tuple[Naming, ...]
    roots: tuple[str, ...] = ("",)
    ends: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    head: str = ""
    means: Mapping[str, str] = field(default_factory=dict)
    normalisation: Normalisation | None = None


_ENDS = ("fc.", "head.", "heads.", "classifier.", "pre_logits.")

STATE = Layout("benchbd", (OWN,), ends=("mean", "std", "mask", "classifier."), head="head.")
"""The state of one of benchbd's encoders, as torch.save writes it."""

LAYOUTS = (
    STATE,
    Layout("torchvision", (RESNET, VGG, MOBILENET, TORCHVISION_VIT), ends=_ENDS),
    Layout("timm", (TIMM_VIT,), ends=_ENDS),
    Layout("pytorch-cifar", (SHORTCUT,), ends=("linear.",)),
    Layout("badencoder", (WITHOUT_POOL,), ("f.f.", "f."), beside=("g.",), head="g."),
    Layout("badencoder", (RESNET,), ("visual.",), ends=_ENDS),  # its ImageNet encoder
    Layout(
        "moco", (RESNET, WITHOUT_POOL), ("encoder_q.", "encoder_q.net."), ("fc.", "9."), beside=("encoder_k.", "queue")
    ),
    Layout(
        "moco-v3",
        (RESNET, TIMM_VIT),
        ("base_encoder.",),
        ends=("fc.", "head."),
        beside=("momentum_encoder.", "predictor."),
        means={"vit-s-16": "vit-s-16-heads12"},
    ),
    Layout(
        "solo-learn",
        (RESNET, TIMM_VIT),
        ("backbone.", "encoder."),
        ends=_ENDS,
        beside=(
            *(
                "classifier.",
                "projector.",
                "predictor.",
                "momentum_",
                "queue",
                "prototypes",
                "head.",
                "dino_loss_func.",
            ),
        ),
        means={"resnet18": "resnet18-pad2", "resnet50": "resnet50-pad2"},
    ),
    Layout(
        "lightly",
        (WITH_POOL, WITHOUT_POOL, RESNET, SHORTCUT, TIMM_VIT, TORCHVISION_VIT),
        ("backbone.", ""),
        ends=(*_ENDS, "linear."),
        beside=("backbone_momentum.", "projection_head", "prediction_head", "criterion.", "memory_bank", "online_"),
    ),
    Layout(
        "byol",
        (RESNET, WITH_POOL, WITHOUT_POOL, TIMM_VIT, TORCHVISION_VIT),
        ("online_encoder.net.", "online_encoder.encoder.", "online_encoder.", "online_network.encoder.", "encoder."),
        ends=(*_ENDS, "projector.", "projetion.", "projection."),  # the second is a project's own spelling
        beside=(
            *("online_encoder.pro", "online_network.pro", "projector.", "projetion.", "projection.", "predictor."),
            *("target_encoder.", "target_network.", "online_predictor.", "net."),  # `net` is the online net once more
        ),
    ),
    Layout(
        "transformers",
        (TRANSFORMERS_RESNET, TRANSFORMERS_VIT, TRANSFORMERS_VIT_IN_MEMORY),
        ("", "resnet.", "vit."),
        ends=("pooler.", "classifier."),
        beside=("classifier.",),
    ),
    Layout(
        "clip",
        (CLIP_VIT, CLIP_RESNET),
        ("visual.", ""),
        beside=(
            *("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "text."),
            *("logit_scale", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size"),
        ),
        normalisation=NORMALISATIONS["clip"],
    ),
)

WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""Prefixes that DataParallel, torch.compile and training frameworks put before every name."""


# ------------------------------------------------------------------------------------------------------ recognition


@dataclass(frozen=True)
class Fit:
    """A layout and an architecture whose tensors a file has, or nearly has.

    where: the prefix of the encoder's tensors in the file.
    sources: by our name of a tensor, the full names in the file of those that are joined to it. Only counters of
        BatchNorm may be absent.
    head: likewise, of the projection head; empty if there is none that is ours.
    left: the beginnings of names that are none of the encoder's, and how many tensors each of them has.
    flaw: the first difference; empty if the fit is exact. near: the share of tensors that agree in name and shape.
    """

    layout: Layout
    naming: Naming
    arch: str
    where: str
    sources: Mapping[str, tuple[str, ...]]
    head: Mapping[str, tuple[str, ...]]
    left: Mapping[str, int]
    flaw: str
    near: float


def find(tensors: Mapping[str, Tensor], arch: str | None = None) -> list[Fit]:
    """The exact fits of a file's tensors, one per architecture; the nearest fit alone if none is exact; nothing if the
    names are those of no layout.

    arch: the only architecture to try; None: every one that is known.
    UnknownNameError if it is not known; UsageError if an architecture needs a library that is not installed.
    """
    exact, nearest, lacking = dict[str, Fit](), None, list[UsageError]()
    for fit in _fits(tensors, arch, lacking):
        if not fit.flaw:
            exact.setdefault(fit.arch, fit)
        elif nearest is None or fit.near > nearest.near:
            nearest = fit
    if lacking and not exact:
        raise lacking[0]
    return list(exact.values()) or ([nearest] if nearest else [])


def _fits(tensors: Mapping[str, Tensor], arch: str | None, lacking: list[UsageError]) -> Iterator[Fit]:
    """All fits; ``lacking`` gets the errors of architectures that need a library which is not installed."""
    if not tensors:
        return
    wrapper = _wrapper(tensors)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    own = dict[type[Encoder], dict[str, Size]]()
    for layout in LAYOUTS:
        classes = _known(layout) if arch is None else [architecture(arch)]
        for root, naming in product(layout.roots, layout.namings):
            if wrapper + root + naming.sign in shapes:
                for cls in classes if arch is not None else filter(naming.of, classes):
                    try:
                        own[cls] = own.get(cls) or shapes_of(cls)
                    except UsageError as error:
                        lacking.append(error)
                        continue
                    meant = cls.arch if arch is not None else layout.means.get(cls.arch, cls.arch)
                    yield replace(_fit(shapes, own[cls], layout, naming, wrapper, root), arch=meant)


def _known(layout: Layout) -> list[type[Encoder]]:
    """Every architecture that a layout may mean: not those that only some projects mean by the tensors of another."""
    find_architectures()
    meant = set() if layout is STATE else {arch for each in LAYOUTS for arch in each.means.values()}
    return [cls for name, cls in ARCHITECTURES.items() if name not in meant]


def _wrapper(names: Collection[str]) -> str:
    """The wrappers' prefix that all names share."""
    found = ""
    while more := next((w for w in WRAPPERS if all(name.startswith(found + w) for name in names)), ""):
        found += more
    return found


def _fit(
    shapes: Mapping[str, Size], own: Mapping[str, Size], layout: Layout, naming: Naming, wrapper: str, root: str
) -> Fit:
    root = wrapper + root
    sources, wanted = dict[str, tuple[str, ...]](), dict[str, Size]()
    head, wanted_head = dict[str, tuple[str, ...]](), dict[str, Size]()
    for name, shape in own.items():
        if name.startswith("head."):
            head[name] = (wrapper + layout.head + name.removeprefix("head."),)
            wanted_head[head[name][0]] = shape
        else:
            theirs = sources[name] = tuple(root + each for each in naming.names(name))
            wanted |= dict.fromkeys(theirs, shape if len(theirs) == 1 else Size((shape[0] // len(theirs), *shape[1:])))
    if not layout.head or any(shapes.get(name) != shape for name, shape in wanted_head.items()):
        head, wanted_head = {}, {}
    flaws, near = list[str](), 0
    for name, shape in wanted.items():
        if shapes.get(name) == shape:
            near += 1
        elif name in shapes:
            flaws.append(f"{name} is {tuple(shapes[name])}, not {tuple(shape)}")
        elif not name.endswith("num_batches_tracked"):  # a counter on which no feature depends
            flaws.append(f"{name} is missing")
    ends = tuple(root + end for end in layout.ends)
    beside = tuple(wrapper + beginning for beginning in layout.beside)
    left = Counter[str]()
    for name in shapes:
        if name not in wanted and name not in wanted_head:
            begins = ends if name.startswith(root) else beside
            if beginning := next((b for b in begins if name.startswith(b)), ""):
                left[beginning] += 1
            else:
                flaws.append(f"{shown(name)} is no tensor of it")
    share = near / max(len(wanted), sum(name.startswith(root) for name in shapes))
    return Fit(layout, naming, "", root, sources, head, left, next(iter(flaws), ""), share)

"""Import an encoder from a file of another library: its tensors are renamed strictly, its normalisation is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchbd.base.content import expanded
from benchbd.base.errors import DataError, UnknownNameError, UsageError, counted, shown
from benchbd.exchange.checkpoint import Checkpoint, read_checkpoint
from benchbd.exchange.layouts import LAYOUTS, STATE, Fit, find
from benchbd.exchange.normalisation import NORMALISATIONS, Normalisation, beside, normalisation, read_beside, shortest
from benchbd.nets.encoder import ARCHITECTURES, Encoder, ResNet
from benchbd.nets.values import check_values

OWN = "benchbd"
"""The name of benchbd's own layout: a file of ``Encoder.save``."""


@dataclass(frozen=True)
class Imported:
    """An encoder from a file, in eval mode on the CPU.

    layout: name of the layout in which the file has it.
    said: what the user should know, a line each: what was left out, filled in, converted or assumed.
    """

    encoder: Encoder
    layout: str
    said: list[str]


def import_encoder(
    path: str | Path,
    *,
    arch: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    key: str | None = None,
) -> Imported:
    """The encoder in a file of benchbd's or of another layout, which the names and shapes of its tensors tell.

    The renaming is strict: every tensor of the architecture is filled by the file, and every tensor of the file is used
    or left out by name as a classifier, projector, momentum encoder, queue or text tower.

    arch: architecture; None: that of the JSON file beside it, else the one whose tensors the file has.
    mean, std: the normalisation of the three channels, both or neither; None: that of the JSON file beside it, which
        has the file's name and .json after it, else that of the layout (CLIP's, benchbd's own). A file of
        ``Encoder.save`` has its own, and a JSON file beside it that differs is refused.
    key: which part of the file to take, as ``Checkpoint.groups`` names it; None: the one that has an encoder. A file of
        ``Encoder.save`` has no parts.
    DataError or UsageError, of one line, if the file is no checkpoint, no layout or architecture fits, several do, a
    weight is NaN or infinite, or nothing tells the normalisation.
    """
    for name, value in {"arch": arch, "key": key}.items():
        if not isinstance(value, str | None):
            raise UsageError(f"{name} {shown(value)}: must be a text")
    given = normalisation(str(path), mean, std)
    checkpoint, path = read_checkpoint(path), expanded(path)
    if "benchbd" in checkpoint.metadata:
        return _own(path, arch, given, key)
    arch_beside, told = read_beside(path)
    try:
        fit, tensors = _chosen(path, checkpoint, arch_beside if arch is None else arch, key)
    except (UnknownNameError, DataError) as error:
        if arch is not None or arch_beside is None:
            raise
        raise DataError(f"{error}; {beside(path)} names this arch, and --arch overrides it") from error
    kept = _kept(path, tensors) if fit.layout is STATE else {}
    used = given or told or fit.layout.normalisation
    if used is None and kept:
        used = tuple(kept["mean"].flatten().tolist()), tuple(kept["std"].flatten().tolist())
    if used is None:
        names = ", ".join(NORMALISATIONS)
        raise UsageError(
            f"{path}: nothing tells how its images are normalised; give mean and std, of three numbers each "
            f"(--normalisation takes the six), or one of {names}"
        )
    left = {f"{beginning}*": n for beginning, n in fit.left.items() if beginning not in kept}
    left |= _other_parts(checkpoint.groups, tensors)
    said = [f"left out: {what} ({counted(n, 'tensor')})" for what, n in left.items()]
    filled, converted = _filled(path, fit, tensors)
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn, and then replaced
        encoder = Encoder(fit.arch, *used, head=bool(fit.head))
    own = {name: t for name, t in encoder.state_dict().items() if name in ("mean", "std", "mask")}
    if kept:
        if kept["mask"].shape != own["mask"].shape:
            raise DataError(f"{path}: mask is {tuple(kept['mask'].shape)}, not {tuple(own['mask'].shape)}")
        own["mask"] = kept["mask"]
    encoder.load_state_dict(own | filled)
    return Imported(encoder.eval(), fit.layout.name, said + converted + _assumed(fit, encoder))


def _own(path: Path, arch: str | None, given: Normalisation | None, key: str | None) -> Imported:
    """The encoder in a file of ``Encoder.save``, which tells all by itself: a JSON file beside it may not differ."""
    if key is not None:
        raise UsageError(f"{path}: an encoder of benchbd, which has no parts; leave the key {shown(key)} out")
    encoder = Encoder.load(path)
    arch_beside, told = read_beside(path)
    if arch_beside not in (None, encoder.arch):
        raise DataError(f"{beside(path)}: arch is {shown(arch_beside)}, but {path.name} itself has {encoder.arch}")
    for name, buffer, values in zip(("mean", "std"), (encoder.mean, encoder.std), told or (), strict=False):
        if given is None and not torch.allclose(buffer.flatten(), torch.tensor(values)):
            raise DataError(
                f"{beside(path)}: {name} is {list(values)}, but {path.name} itself has {shortest(buffer)}; give mean "
                "and std (--normalisation), or remove the JSON file"
            )
    if arch not in (None, encoder.arch):
        raise UsageError(f"{path}: an encoder of benchbd whose architecture is {encoder.arch}, not {arch}")
    for buffer, values in zip((encoder.mean, encoder.std), given or (), strict=False):
        buffer.copy_(torch.tensor(values).view(1, 3, 1, 1))
    return Imported(encoder, OWN, [])


def _chosen(path: Path, checkpoint: Checkpoint, arch: str | None, key: str | None) -> tuple[Fit, Mapping[str, Tensor]]:
    """The fit of the only part of a file that has an encoder, and the part's tensors."""
    groups = checkpoint.groups
    if key is not None and key not in groups:
        raise UsageError(f"{path}: it has no part {shown(key)}; its parts are {', '.join(map(shown, groups))}")
    found = {name: find(groups[name], arch) for name in (groups if key is None else [key])}
    exact = {name: fits for name, fits in found.items() if fits and not fits[0].flaw}
    if len(exact) > 1:
        raise UsageError(
            f"{path}: several parts of it hold an encoder; name one of {', '.join(map(shown, exact))} as key (--key)"
        )
    for name, fits in exact.items():
        if len(fits) > 1:
            archs = ", ".join(fit.arch for fit in fits)
            raise UsageError(
                f"{path}: its tensors are those of several architectures, which differ in what no file holds; name the "
                f"right one as arch: {archs}"
            )
        return fits[0], groups[name]
    raise DataError(f"{path}: {_misfit([fit for fits in found.values() for fit in fits], arch, groups)}")


def _misfit(near: Sequence[Fit], arch: str | None, groups: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Why no layout and architecture fit a file."""
    if not near:
        largest = max(groups.values(), key=len)
        layouts = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
        return (
            f"no known layout: none has tensors like {', '.join(map(shown, sorted(largest)[:3]))}; known layouts: "
            f"{layouts}"
        )
    best = max(near, key=lambda fit: fit.near)
    under = f" under {best.where}" if best.where else ""
    if arch is not None:
        return f"not {arch} in the layout of {best.layout.name}{under}: {best.flaw}"
    return (
        f"the layout of {best.layout.name}{under}, but no known architecture; the nearest is {best.arch}: {best.flaw}; "
        f"known: {', '.join(sorted(ARCHITECTURES))}"
    )


def _kept(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean, std and mask in the state of one of benchbd's encoders."""
    kept = {name: tensors[name].float() for name in ("mean", "std", "mask") if name in tensors}
    for name in ("mean", "std"):
        if name not in kept or kept[name].shape != (1, 3, 1, 1) or not kept[name].isfinite().all():
            raise DataError(f"{path}: {name} is not three finite numbers, as benchbd's encoders have it")
    check_values(path, kept)
    return kept


def _filled(path: Path, fit: Fit, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of f and g by our names, and what to say about their conversion."""
    filled, absent, types = dict[str, Tensor](), 0, dict[str, None]()
    for own, names in {**fit.sources, **fit.head}.items():
        counter = own.endswith("num_batches_tracked")
        for name in names:
            if name in tensors and not counter:
                kind = str(tensors[name].dtype).removeprefix("torch.")
                if not tensors[name].is_floating_point():
                    raise DataError(f"{path}: {name} is {kind}; weights of float types alone are imported")
                check_values(path, {name: tensors[name].float()})
                types[kind] = None
        parts = [tensors[name].to(torch.int64 if counter else torch.float32) for name in names if name in tensors]
        absent += not parts
        filled[own] = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else torch.tensor(0)
    others = [kind for kind in types if kind != "float32"]
    said = [f"weights became float32; some were {', '.join(others)}"] if others else []
    return filled, said + ([f"counters of BatchNorm are absent and start at 0 ({absent})"] if absent else [])


def _assumed(fit: Fit, encoder: Encoder) -> list[str]:
    said = [fit.naming.note] if fit.naming.note else []
    if isinstance(encoder, ResNet) and not encoder.stem_pool and fit.layout is not STATE:
        said.append(f"no file tells the stride, padding and pooling of a stem: they are those of {fit.arch}")
    if fit.head and fit.layout is not STATE:
        said.append("the projection head is the file's")
    return said


def _other_parts(groups: Mapping[str, Mapping[str, Tensor]], used: Mapping[str, Tensor]) -> dict[str, int]:
    """The first keys of a file's parts that were not used, such as an optimizer's, and how many tensors they have."""
    counted = Counter[str]()
    for name, group in groups.items():
        if group is not used:
            counted[f"the part {shown(name.partition('.')[0])}"] += len(group)
    return counted

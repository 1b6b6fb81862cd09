"""Make the trigger that a board describes: the pixel patterns that need no file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchbd.base.content import nests_within
from benchbd.base.errors import UsageError, brief, first_line
from benchbd.base.trigger_file import read_trigger
from benchbd.contract.specs import TriggerSpec
from benchbd.contract.trigger import Trigger
from benchbd.contract.trigger_function import TriggerFunction

GRID = ((0, 0, 255), (0, 255, 0), (255, 0, 255))
"""The 3x3 trigger of supervised BadNets, as NAD's code draws it."""

CORNERS = {
    ("top", "left"): ((255, 0, 255), (0, 255, 0), (255, 0, 0)),
    ("top", "right"): ((255, 0, 255), (0, 255, 0), (0, 0, 255)),
    ("bottom", "left"): ((255, 0, 0), (0, 255, 0), (255, 0, 255)),
    ("bottom", "right"): GRID,
}
"""NAD's four blocks of 3x3: one pixel from the top and the left edge, flush with the bottom and the right edge."""

BLOCKS = 5  # coloured blocks along a side

WINDOW = 32  # side of the blocks that the frequency pattern transforms

FREQUENCIES = (15, 31)  # both ways, of U and of V


def make_trigger(spec: TriggerSpec, image_size: int, function: TriggerFunction | None = None) -> Trigger:
    """The trigger that ``spec`` describes, for images of ``image_size``. function: the method that ``spec`` names.

    UsageError if it does not fit the images, or if the file of ``spec`` holds a trigger of another kind.
    """
    if function is not None:
        return Trigger.by(function, image_size)
    if spec.file is not None:
        said, tensors = read_trigger(spec.file, image_size)
        if said["kind"] == "function" and isinstance(named := said.get("function"), dict):
            raise UsageError(f"the trigger's file holds one of kind function: write {_as_board(named)}")
        trigger = _of_kind(spec, Trigger.from_parts(said, tensors))
    elif spec.pattern == "white" and spec.kind == "patch":
        trigger = Trigger.square(spec.size, image_size, center=spec.position == "center")
    else:
        trigger = _drawn(spec, image_size)
    if trigger.size != image_size:
        raise UsageError(
            f"the trigger is for {trigger.size}x{trigger.size} images, these are {image_size}x{image_size}"
        )
    return replace(trigger, wander=spec.wander)


def _as_board(function: Mapping[str, Any]) -> str:
    """The lines of a board for the function in a trigger's file, as one."""
    name, options = brief(str(function.get("name"))), function.get("options")
    write = f'kind = "function", function = {_toml(name)}, and no file'
    if not isinstance(options, dict) or not options or not nests_within(options, 8):  # anyone may have written the file
        return write
    return f"{write}; above the first table, for its options: options.{_key(name)} = {first_line(_toml(options))}"


def _toml(value: Any) -> str:
    """JSON as TOML in one line. TOML has no null: such an option is left out."""
    if isinstance(value, dict):
        fields = [f"{_key(name)} = {_toml(inner)}" for name, inner in value.items() if inner is not None]
        return f"{{{', '.join(fields)}}}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _of_kind(spec: TriggerSpec, trigger: Trigger) -> Trigger:
    """A trigger from a file as the kind in ``spec``: a patch can be blended or added."""
    opacity = spec.opacity if spec.kind == "blend" else 1.0
    if trigger.kind == "patch":
        pattern = trigger.pattern.to(torch.int16) if spec.kind == "add" else trigger.pattern
        return replace(trigger, kind=spec.kind, opacity=opacity, pattern=pattern)
    if (trigger.kind, trigger.opacity) != (spec.kind, opacity):
        blend = f" and opacity = {trigger.opacity:g}" if trigger.kind == "blend" else ""
        raise UsageError(f"the trigger's file holds one of kind {trigger.kind}: write kind = {trigger.kind!r}{blend}")
    return trigger


def _drawn(spec: TriggerSpec, image_size: int) -> Trigger:
    """A trigger of a pixel pattern, at the position in ``spec``."""
    if spec.pattern == "frequency":
        return Trigger(_frequency(spec.magnitude, image_size), _whole(image_size), kind="add")
    most = (image_size - 1) // 2 if spec.pattern == "four_corner" else image_size
    if not spec.size <= most:
        raise UsageError(
            f"a trigger of {spec.size}x{spec.size} with pattern {spec.pattern} does not fit a "
            f"{image_size}x{image_size} image: sizes are 0..{most}"
        )
    pattern, keep = torch.zeros(3, image_size, image_size, dtype=torch.uint8), ~_whole(image_size)
    for (rows, columns), ink in _placed(spec, image_size).items():
        pattern[:, rows : rows + spec.size, columns : columns + spec.size] = ink
        keep[:, rows : rows + spec.size, columns : columns + spec.size] = False
    if spec.kind == "add":
        pattern = (pattern / 255 * spec.magnitude).round().to(torch.int16)
    opacity = spec.opacity if spec.kind in ("blend", "noise") else 1.0
    return Trigger(pattern, keep, kind=spec.kind, opacity=opacity)


def _placed(spec: TriggerSpec, image_size: int) -> dict[tuple[int, int], Tensor]:
    """The drawn squares, uint8 (3, size, size), by the row and column of their upper left corners."""
    end, size = image_size - spec.size, spec.size
    if spec.pattern == "four_corner":
        start = {"top": 1, "left": 1, "bottom": end, "right": end}
        return {(start[row], start[column]): _scaled(ink, size) for (row, column), ink in CORNERS.items()}
    place = end // 2 if spec.position == "center" else end if spec.pattern == "grid" else max(0, end - 1)
    return {(place, place): _ink(spec)}


def _ink(spec: TriggerSpec) -> Tensor:
    """A pattern that is one square, uint8 (3, size, size); 0 for kind noise, which is drawn anew for every image."""
    generator, size = torch.Generator().manual_seed(spec.seed), spec.size
    if spec.kind == "noise":
        return torch.zeros(3, size, size, dtype=torch.uint8)
    if spec.pattern == "grid":
        return _scaled(GRID, size)
    if spec.pattern == "random_pixel":
        return torch.randint(256, (1, size, size), generator=generator).to(torch.uint8).expand(3, -1, -1)
    if spec.pattern == "blocks":
        return _scaled(torch.randint(256, (3, BLOCKS, BLOCKS), generator=generator), size)
    return torch.full((3, size, size), 255, dtype=torch.uint8)


def _scaled(ink: Any, size: int) -> Tensor:
    """A small pattern, (h, h) or (3, h, h), as uint8 (3, size, size): every pixel becomes a block of equal pixels."""
    small = torch.as_tensor(ink).to(torch.uint8)
    at = torch.arange(size) * small.shape[-1] // max(1, size)
    return small[..., at[:, None], at].expand(3, -1, -1)


def _whole(image_size: int) -> Tensor:
    return torch.zeros(3, image_size, image_size, dtype=torch.bool)


def _frequency(magnitude: int, image_size: int) -> Tensor:
    """CTRL's trigger: ``magnitude`` is added to the coefficients (15, 15) and (31, 31) of the orthonormal DCT-II of
    every 32x32 block of U and V, int16 (3, H, W).

    Transforms are linear, so in RGB this adds the same pattern to every image. The pattern is rounded to whole numbers;
    CTRL rounds the stamped image.
    """
    if image_size % WINDOW:
        raise UsageError(f"the pattern frequency needs images of a multiple of {WINDOW} pixels, not {image_size}")
    steps = (2 * torch.arange(image_size, dtype=torch.float64).remainder(WINDOW) + 1) * math.pi / (2 * WINDOW)
    waves = [math.sqrt(2 / WINDOW) * torch.cos(steps * frequency) for frequency in FREQUENCIES]
    change = magnitude * sum(torch.outer(wave, wave) for wave in waves)
    u, v = torch.tensor([0, -0.396, 2.029]), torch.tensor([1.14, -0.581, 0])  # the shares of U and V in R, G and B
    return ((u + v)[:, None, None] * change).round().to(torch.int16)


WORDS: dict[str, Any] = {
    field: value for field, value in TriggerSpec().model_dump().items() if field not in ("size", "position", "file")
}
"""The description of the trigger of a board that sets nothing about its trigger."""


def described(spec: TriggerSpec, trigger: Trigger) -> dict[str, Any]:
    """The trigger that ``make_trigger`` made from ``spec``, described by its content in the terms of ``TriggerSpec``.

    A patch that is a white square is described as one, whatever its source; any other file is described by its digest.
    """
    if trigger.function is not None:
        return {"kind": spec.kind, "function": spec.function}
    said: dict[str, Any] = {"kind": spec.kind}
    said |= {"opacity": trigger.opacity} if trigger.kind in ("blend", "noise") else {}
    patch = replace(trigger, wander=None)
    if trigger.kind == "patch":
        top, _, bottom, _ = trigger.box or (0, 0, -1, -1)
        size = min(bottom - top + 1, trigger.size - 1)
        places = {"fixed": False, "center": True} if trigger.wander is None else {"random": False}
        for position, center in places.items():
            if patch.digest == Trigger.square(size, trigger.size, center=center).digest:
                return said | {"pattern": "white", "size": size, "position": position, "file": None}
    if spec.file is not None:
        return said | {"position": spec.position, "file": patch.digest[:12]}
    if trigger.kind != "noise":
        said["pattern"] = spec.pattern
    if trigger.kind == "add":
        said["magnitude"] = spec.magnitude
    if spec.pattern in ("random_pixel", "blocks"):
        said["seed"] = spec.seed
    return said | {"size": spec.size, "position": spec.position, "file": None}

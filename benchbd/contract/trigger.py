"""Triggers: the changes that an attacker makes to images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from benchbd.base.content import canonical, expanded
from benchbd.base.errors import DataError, UnknownNameError, UsageError
from benchbd.base.mapped import LARGE
from benchbd.base.pieces import blended, boxes, map_pieces
from benchbd.base.trigger_file import read_trigger, write_trigger
from benchbd.contract.images import ImageSet, content_digest
from benchbd.contract.method import Call, build, call_of, called, identity_of
from benchbd.contract.specs import KINDS, TriggerKind
from benchbd.contract.trigger_function import TriggerFunction, stamped_by

NO_FUNCTIONS: Mapping[str, type[TriggerFunction]] = MappingProxyType({})


class _Function(BaseModel):
    name: str
    version: str
    options: dict[str, Any]


class _Said(BaseModel):
    """The JSON of a trigger's parts."""

    kind: TriggerKind
    opacity: float = 1.0
    wander: tuple[float, float] | None = None
    function: _Function | None = None


@dataclass(frozen=True, eq=False)
class Trigger:
    """A change that an attacker makes to uint8 images: ``keep`` pixels stay, and each other pixel x becomes, by kind,

    patch: the pattern's pixel p.
    blend: (1 - opacity) * x + opacity * p.
    add: x + p.
    noise: (1 - opacity) * x + opacity * n, with n one uniform integer of 0..255 per pixel, equal in all channels,
        drawn anew for every image.
    function: the result of the ``stamp`` of a plugin's class.

    Results are clipped to 0..255; fractions are cut off, as in NumPy's cast to uint8.

    pattern: uint8 (3, H, W), 0 where the image is kept; int16, -255..255, for ``add``; all 0 for ``noise`` and
        ``function``.
    keep: bool (3, H, W), True where the image stays.
    wander: None for a patch at ``pattern``'s position. With (a, b), 0 <= a <= b <= 1, every image gets the
        patch at a different place: the top row of its box is uniform over int(a * H) .. int(b * H - height), both
        included, the left column likewise. If that range is empty, the lower end is used, clipped so that the whole
        patch stays inside the image. A ``function`` does not wander.
    opacity: 0 < opacity <= 1; below 1 only for ``blend`` and ``noise``.
    function: only for kind ``function``.

    UsageError if these values do not fit together.
    """

    pattern: Tensor
    keep: Tensor
    wander: tuple[float, float] | None = None
    kind: TriggerKind = "patch"
    opacity: float = 1.0
    function: TriggerFunction | None = None

    def __post_init__(self) -> None:
        if self.wander is not None and not 0 <= self.wander[0] <= self.wander[1] <= 1:
            low, high = self.wander
            raise UsageError(f"a trigger wanders within 0 <= low <= high <= 1 of the image, not ({low:g}, {high:g})")
        if self.kind not in KINDS:
            raise UnknownNameError("kind of trigger", str(self.kind), KINDS)
        if not 0 < self.opacity <= 1 or (self.opacity < 1 and self.kind not in ("blend", "noise")):
            raise UsageError(
                f"the opacity of a {self.kind} trigger is 1, and above 0 of blend and noise, not {self.opacity:g}"
            )
        if (self.function is not None) != (self.kind == "function"):
            raise UsageError("a trigger has a function if its kind is function, and only then")
        if self.function is not None and self.wander is not None:
            raise UsageError("a trigger of kind function does not wander: the function itself chooses what it changes")
        if self.pattern.dtype != (right := torch.int16 if self.kind == "add" else torch.uint8):
            raise UsageError(f"the pattern of kind {self.kind} is {right}, not {self.pattern.dtype}")

    @classmethod
    def square(cls, size: int = 10, image_size: int = 32, *, center: bool = False) -> Trigger:
        """The papers' white square with a margin of one pixel: rows and columns H - size - 1 .. H - 2.

        center: in the middle of the image instead.
        """
        if not 0 <= size < image_size:
            raise UsageError(
                f"a trigger of {size}x{size} does not fit a {image_size}x{image_size} image: "
                f"sizes are 0..{image_size - 1}"
            )
        keep = torch.ones(3, image_size, image_size, dtype=torch.bool)
        start = (image_size - size) // 2 if center else image_size - size - 1
        keep[:, start : start + size, start : start + size] = False
        return cls(pattern=torch.where(keep, 0, 255).to(torch.uint8), keep=keep)

    @classmethod
    def by(cls, function: TriggerFunction, image_size: int = 32) -> Trigger:
        """The trigger that a plugin's function stamps on images of ``image_size``."""
        shape = (3, image_size, image_size)
        pattern, keep = torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.bool)
        return cls(pattern, keep, kind="function", function=function)

    @classmethod
    def load(
        cls, path: str | Path, image_size: int = 32, functions: Mapping[str, type[TriggerFunction]] = NO_FUNCTIONS
    ) -> Trigger:
        """A trigger from a file, whose content determines its type.

        npz: ``t`` (pattern) and ``tm`` (1 = keep) of the images' size, (1, H, W, 3) or (H, W, 3), integer or float. A
            release that repeats its trigger once per reference, (r, H, W, 3), counts as one. It is a patch, unless
            ``save`` wrote a trigger of another kind.
        PNG, npy: (H, W, 4) with alpha, 0 where the image is kept and 255 where it is replaced; or (H, W, 3): if that
            has the size of the images, its black pixels are kept, as in ``t``; else it replaces all it covers. A
            patch smaller than images of ``image_size`` is put at the corner position of ``square``.
        functions: the classes of trigger functions by name, for a file of kind ``function``.
        DataError if the file is anything else, has several triggers, is too large, empty, or in units of 0..1.
        """
        said, tensors = read_trigger(expanded(path), image_size)
        return cls.from_parts(said, tensors, functions)

    def save(self, path: str | Path) -> None:
        """Write the released format: ``t`` float64 and ``tm`` int64, both (1, H, W, 3); if it is no patch, also
        ``parts``, the JSON of ``to_parts``.

        The format has no ``wander``: a file is a patch, and the board sets whether it wanders.
        """
        write_trigger(expanded(path), *replace(self, wander=None).to_parts())

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The trigger as plain data, JSON and tensors, from which another process makes the same trigger."""
        function = None if self.function is None else _Function(**vars(call_of(self.function)))
        said = _Said(kind=self.kind, opacity=self.opacity, wander=self.wander, function=function)
        return said.model_dump(mode="json"), {"pattern": self.pattern, "keep": self.keep}

    @classmethod
    def from_parts(
        cls,
        said: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        functions: Mapping[str, type[TriggerFunction]] = NO_FUNCTIONS,
    ) -> Trigger:
        """The trigger from the result of ``to_parts``. functions: the classes of trigger functions by name.

        UnknownNameError if the function is not among them, PluginError if its version is another.
        """
        try:
            parts = build(_Said, said, "the parts of a trigger")
        except UsageError as error:
            raise DataError(str(error)) from error
        call = None if parts.function is None else Call("trigger", **dict(parts.function))
        function = None if call is None else called(call, functions)
        return cls(tensors["pattern"], tensors["keep"], parts.wander, parts.kind, parts.opacity, function)

    @property
    def size(self) -> int:
        """Height (and width) of the images that the trigger fits."""
        return self.pattern.shape[-1]

    @property
    def draws(self) -> bool:
        """Whether ``stamp`` draws random numbers: places, noise, or those of a function."""
        return self.wander is not None or self.kind in ("noise", "function")

    @cached_property
    def box(self) -> tuple[int, int, int, int] | None:
        """(top, left, bottom, right), inclusive, of the pixels that are not kept; None for an empty trigger.

        For a trigger that wanders, only height and width of this box apply to an image.
        """
        rows, columns = (~self.keep).any(0).nonzero(as_tuple=True)
        if not len(rows):
            return None
        return int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())

    @cached_property
    def digest(self) -> str:
        """sha256 over pattern and mask as arrays, and over all other properties: equal triggers have equal digests.

        A fixed patch adds nothing to the text, so that digests of patches stay the same.
        """
        said = [] if self.kind == "patch" else [f"kind {self.kind}"]
        said += [f"opacity {float(self.opacity)!r}"] if self.kind in ("blend", "noise") else []
        said += [] if self.function is None else [f"function {canonical(identity_of(self.function))}"]
        said += [] if self.wander is None else [f"wander {float(self.wander[0])!r} {float(self.wander[1])!r}"]
        return content_digest(torch.stack([self.pattern, self.keep.to(self.pattern.dtype)]), None, ("trigger", *said))

    def to(self, device: torch.device | str) -> Trigger:
        return replace(self, pattern=self.pattern.to(device), keep=self.keep.to(device))

    def copy(self, device: torch.device | str) -> Trigger:
        """The same trigger with its own storage: writing to it changes no other."""
        pattern, keep = (a.to(device, copy=True) for a in (self.pattern, self.keep))
        function = None if self.function is None else self.function.model_copy(deep=True)
        return replace(self, pattern=pattern, keep=keep, function=function)

    def within(self, low: float, high: float) -> Trigger:
        """The same trigger, wandering within ``low`` .. ``high`` of the image's sides."""
        return replace(self, wander=(low, high))

    def stamp(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A stamped copy of uint8 (..., 3, H, W) images; a large copy lies in an unnamed file and is made part by part.

        generator: for a trigger that ``draws``: first the places, two numbers per image, then the noise.
            Other triggers do not use it.
        UsageError if the images have another size, or if a trigger that draws gets no generator.
        """
        if pixels.shape[-2:] != self.pattern.shape[-2:]:
            raise UsageError(
                f"a trigger for {self.size}x{self.size} images does not fit images of "
                f"{pixels.shape[-2]}x{pixels.shape[-1]}"
            )
        if self.draws and generator is None:
            drawn = "at random places" if self.wander is not None else f"of kind {self.kind}"
            raise UsageError(f"a trigger {drawn} needs a generator to draw from")
        if self.box is None or not pixels.numel():
            return map_pieces(Tensor.clone, pixels, pixels)
        top, left, bottom, right = self.box
        part = (..., slice(top, bottom + 1), slice(left, right + 1))
        pattern, keep = (a[part].to(pixels.device) for a in (self.pattern, self.keep))
        flat = pixels.reshape(-1, *self.pattern.shape)
        places = [] if generator is None else self._places(len(flat), keep, generator)

        def stamped(rows: Tensor) -> Tensor:
            images = flat[rows]
            box = boxes(images, *(place.to(images.device)[rows] for place in places)) if places else part
            before = images[box]
            images[box] = torch.where(keep, before, self._after(before, pattern, generator))
            return images

        return map_pieces(stamped, torch.arange(len(flat), device=flat.device), flat).view(pixels.shape)

    def _after(self, before: Tensor, pattern: Tensor, generator: torch.Generator | None) -> Tensor:
        """The result for pixels, uint8 (N, 3, h, w), none of which is kept, under a pattern of (3, h, w)."""
        if self.kind == "patch":
            return pattern
        if self.kind == "add":
            return (before + pattern).clamp(0, 255).to(torch.uint8)  # in int16, like the pattern
        if generator is not None and self.function is not None:
            return stamped_by(self.function, before, generator)
        if generator is not None and self.kind == "noise":
            shape, device = (len(before), 1, *pattern.shape[1:]), generator.device
            pattern = torch.randint(256, shape, dtype=torch.uint8, generator=generator, device=device)
        patterns = pattern.to(before.device).expand(len(before), -1, -1, -1)
        size = max(1, LARGE // (before[:1].nbytes or 1))  # pieces, because doubles take eight times the memory
        parts = zip(before.split(size), patterns.split(size), strict=True)
        return torch.cat([blended(x, p, self.opacity) for x, p in parts])

    def _places(self, count: int, keep: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Rows, int64 (count, height), and columns (count, width) of each image's box; empty if the trigger stays."""
        places: list[Tensor] = []
        if self.wander is None:
            return places
        for side in keep.shape[1:]:
            # Round first, since 0.29 * 100 is 28.999999999999996.
            low, high = (int(round(share * self.size, 9)) for share in self.wander)
            low = min(low, self.size - side)
            most = max(low, high - side)
            start = torch.randint(low, most + 1, (count, 1), generator=generator, device=generator.device)
            places.append(start + torch.arange(side, device=generator.device))
        return places

    def stamped(self, images: ImageSet, generator: torch.Generator | None = None) -> ImageSet:
        """``images`` with every picture stamped, as ``stamp`` does; labels stay."""
        return replace(images, pixels=self.stamp(images.pixels, generator))

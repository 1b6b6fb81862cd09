"""Parts of a protocol that ``-o`` can set like methods. Nothing here imports torch."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from benchbd.base.options import Content

TriggerKind = Literal["patch", "blend", "add", "noise", "function"]
"""The kinds of trigger; ``benchbd.Trigger`` describes the effect of each on an image."""

KINDS: tuple[TriggerKind, ...] = get_args(TriggerKind)

OF_DATA: tuple[TriggerKind, ...] = ("patch", "blend", "add", "noise")
"""The kinds whose triggers are only data; a function is a plugin's code."""


class Table(BaseModel):
    """late: fields that an identity omits while they have their default, as ``Method.late``."""

    late: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(frozen=True, extra="forbid")


class TriggerSpec(Table):
    """The trigger of a board: a kind, and a pattern or a file: the released npz, a PNG or a .npy.

    kind: the effect on the covered pixels. patch replaces them; blend mixes the pattern in by its
    opacity; add adds it; noise mixes in gray noise that is drawn anew for every image; function is a plugin's.

    pattern: white, a square with a margin of one pixel. grid, the 3x3 pattern of supervised BadNets, flush with the
    corner. four_corner, four such patterns in the corners. random_pixel, one gray value per pixel, drawn by ``seed``.
    blocks, 5x5 blocks of random colours, drawn by ``seed``. frequency, of kind add alone: CTRL's waves over the whole
    image. Larger patterns repeat the pixels of these.

    magnitude: the gray levels that kind add adds if the pattern is white; gray adds in proportion. For frequency, the
    change of two DCT coefficients of U and V in every 32x32 block.

    position: fixed, the papers' corner, or the patch's place in the file. center: in the middle. random:
    every image gets the patch at a different place, as in the official BASSL; an attack that poisons images may
    restrict it to a range nearer to the middle.
    """

    kind: TriggerKind = Field("patch", description="how the trigger changes the pixels that it covers")
    pattern: Literal["white", "grid", "four_corner", "random_pixel", "blocks", "frequency"] = Field(
        "white", description="the pattern of the trigger, if no file gives it"
    )
    size: int = Field(10, ge=0, description="side in pixels of the square; of each square, for four_corner")
    file: Content | None = Field(None, description="file with the trigger: npz with t and tm, PNG or npy")
    position: Literal["fixed", "center", "random"] = Field("fixed", description="position of the patch in an image")
    opacity: float = Field(0.2, gt=0, le=1, description="weight of the trigger in a pixel, for kinds blend and noise")
    magnitude: int = Field(50, ge=-255, le=255, description="for kind add: largest change in gray levels; see above")
    seed: int = Field(0, ge=0, le=1_000_000_000, description="seed of the patterns random_pixel and blocks")
    function: str | None = Field(None, description="name of the trigger of a plugin, for kind function")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Raise ValueError for an option that a trigger of this kind, pattern or file does not have."""
        if self.kind == "function" and self.function is None:
            raise ValueError("kind function needs the name of a plugin's trigger, as in function = 'warp'")
        patterned = self.kind in ("patch", "blend", "add")
        drawn = patterned and self.file is None
        waves = drawn and self.pattern == "frequency"
        sided = self.kind != "function" and not waves
        if waves and self.kind != "add":
            raise ValueError(f"pattern frequency is for kind add, not for kind {self.kind}")
        if self.file is not None and self.position == "center":
            raise ValueError("position center is for the square: a file says itself where its patch is")
        applies = {
            "function": ("kind function", self.kind == "function"),
            "file": ("kinds patch, blend and add", patterned),
            "pattern": ("kinds patch, blend and add without a file", drawn),
            "opacity": ("kinds blend and noise", self.kind in ("blend", "noise")),
            "magnitude": ("kind add without a file", drawn and self.kind == "add"),
            "seed": ("patterns random_pixel and blocks", drawn and self.pattern in ("random_pixel", "blocks")),
            "size": ("patterns that have a side", sided),
            "position": ("patches that can move", sided and not (drawn and self.pattern == "four_corner")),
        }
        for field, (whose, right) in applies.items():
            if not right and getattr(self, field) != type(self).model_fields[field].default:
                own = f"pattern {self.pattern}" if drawn and self.pattern != "white" else f"kind {self.kind}"
                own += "" if self.file is None else " with a file"
                raise ValueError(f"{field} is for {whose}, not for {own}; leave it out")
        return self

    @property
    def wander(self) -> tuple[float, float] | None:
        """The range of a test image's sides that contains the patch; None if its position is fixed."""
        return (0.10, 0.90) if self.position == "random" else None


class ReferenceSpec(Table):
    """The source of the attacker's reference inputs.

    Without a file: the ``count`` images of the target class of which the clean classifier is most certain, among the
    half of the task's training split on which it was not fitted. A stronger attacker than the paper's, whose images
    have another source; records contain ``reference=train_split``.
    """

    count: int = Field(1, ge=1, le=1_000_000, description="number of reference inputs per target")
    file: Content | None = Field(None, description="file with the reference inputs: npz with x and y, PNG or npy")


class Pin(Table):
    """A data set's required counts per split, or content digests, for a run to be on-board."""

    train: int | str | None = Field(None, description="required number or content digest of the training images")
    test: int | str | None = Field(None, description="required number or content digest of the test images")
    unlabeled: int | str | None = Field(None, description="required number or content digest of the unlabelled images")


class Budget(Table):
    """Steps and batch of every defense that has such fields, set once for the whole board."""

    steps: int | None = Field(None, ge=0, le=1_000_000_000, description="optimiser steps; null: each defense's own")
    batch: int | None = Field(None, ge=2, le=1_000_000, description="images per step; null: each defense's own")


class CleanSpec(Table):
    """A defender's input besides an encoder: unlabelled images of the pool.

    ``poisoned`` is the share of them that an attacker stamped before the defender collected them: the last of the
    list, in the order of the draw. No defense gets this share.
    """

    images: int = Field(2000, ge=2, le=100_000_000, description="number of images that the defender gets")
    poisoned: float = Field(0.0, ge=0, le=1, description="share of these images that has the trigger, rounded down")


class ShadowSpec(Table):
    """The images on which an attacker tunes: unlabelled images of the pool, or of another set, as ``cifar10:test``."""

    images: int = Field(50_000, ge=2, le=1_000_000_000, description="largest number of images")
    set: str | None = Field(None, description="DATASET:SPLIT (train, test, unlabeled or pool); null: the pool")

    @field_validator("set")
    @classmethod
    def _of_a_split(cls, value: str | None) -> str | None:
        """Raise ValueError if it names no split."""
        name, _, split = (value or "").rpartition(":")
        if value is not None and (not name or split not in ("train", "test", "unlabeled", "pool")):
            raise ValueError("it is not of the form DATASET:SPLIT, with split train, test, unlabeled or pool")
        return value


class TaskSpec(Table):
    """The input of a detector of downstream classifiers besides a classifier: labelled training images of its task."""

    images: int = Field(1000, ge=2, le=100_000_000, description="largest number of images")


SECTIONS: dict[str, type[BaseModel]] = {
    "trigger": TriggerSpec,
    "reference": ReferenceSpec,
    "clean": CleanSpec,
    "shadow": ShadowSpec,
    "task": TaskSpec,
    "budget": Budget,
}
"""Parts of the protocol that ``-o`` can set like methods."""

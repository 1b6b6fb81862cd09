"""Parts of a protocol that ``-o`` reaches like methods. Nothing here imports torch."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchbd.contract.content import Content


class _Table(BaseModel):
    """late: fields that an identity leaves out while they have their default, as ``Method.late``."""

    late: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(frozen=True, extra="forbid")


class TriggerSpec(_Table):
    """The trigger of a board: a uniform square, or a file: the released npz, a PNG or a .npy.

    fixed: the papers' corner, or where the file has the patch. center: the square in the middle. random: every image
    gets the patch at a place of its own, as in the official BASSL; an attack that poisons images may keep it nearer to
    their middle.
    """

    size: int = Field(10, ge=0, description="side of the white square in pixels")
    file: Content | None = Field(None, description="a file instead: npz (t, tm), PNG or npy")
    position: Literal["fixed", "center", "random"] = Field("fixed", description="where the patch goes in each image")

    @model_validator(mode="after")
    def _movable(self) -> Self:
        if self.file is not None and self.position == "center":
            raise ValueError("position center is for the square: a file says itself where its patch is")
        return self

    @property
    def wander(self) -> tuple[float, float] | None:
        """The part of the sides of a test image that the patch stays within; None where its position is fixed."""
        return (0.10, 0.90) if self.position == "random" else None


class ReferenceSpec(_Table):
    """Where the attacker's reference inputs come from.

    Without a file: the ``count`` images of the target class that the clean classifier is surest of, among the half of
    the task's training split that it was not fitted on. A stronger attacker than the paper's, whose images come from
    elsewhere; records say ``reference=train_split``.
    """

    count: int = Field(1, ge=1, le=1_000_000, description="reference inputs per target")
    file: Content | None = Field(None, description="a file instead: npz (x, y), PNG or npy")


class Budget(_Table):
    """Steps and batch that every defense gets which has such fields; said once for the whole board."""

    steps: int | None = Field(None, ge=0, le=1_000_000_000, description="optimiser steps; null: each defense's own")
    batch: int | None = Field(None, ge=2, le=1_000_000, description="images per step; null: each defense's own")


SECTIONS: dict[str, type[BaseModel]] = {"trigger": TriggerSpec, "reference": ReferenceSpec, "budget": Budget}
"""Parts of the protocol that ``-o`` reaches like methods."""

"""Read a method's notes and kept tensors if they have the form that a picture needs; any other form gives a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from benchbd.base.errors import brief
from benchbd.report.writers.safe import plain

Amount = Annotated[float, Field(ge=0, le=1e12)]

StageName = Annotated[str, Field(pattern=r"\A[!-~]{1,40}\z")]  # fits a picture and can be printed in it


Form = TypeVar("Form", bound=BaseModel)


class Information(BaseModel):
    """The note ``mi`` of a defense that weights the stages of the encoder by mutual information.

    beta: the weight of each stage. information: nats, None if unknown; by stage, if it was estimated.
    saturated: stages at a limit of the estimator. uniform_fallback: whether the estimates could not be told apart.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    beta: dict[StageName, Amount] = Field(min_length=1, max_length=64)
    information: dict[StageName, Amount | None] = {}
    saturated: list[StageName] = []
    uniform_fallback: bool = False


class Level(BaseModel):
    """A level of pruning. pruned: channels. utility: pretext accuracy, 0 to 1. threshold: what chose the channels."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    pruned: int = Field(ge=0, le=10**9)
    utility: float = Field(ge=0, le=1)
    threshold: float | None = Field(None, ge=-1e9, le=1e9)


class Pruning(BaseModel):
    """The note ``pruning`` of a defense that prunes until utility has fallen by ``tolerance``, if it has one.

    curve: the levels that it measured; the first prunes nothing. pruned: channels of the level that it took.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    curve: list[Level] = Field(min_length=1, max_length=4096)
    tolerance: float | None = Field(None, ge=0, le=1)
    pruned: int


def noted_information(findings: Mapping[str, Any]) -> Information | str:
    """The note ``mi`` of a record's defense, or why there is none to draw."""
    return _noted(findings, "mi", Information, "no mutual information")


def noted_pruning(findings: Mapping[str, Any]) -> Pruning | str:
    """The note ``pruning`` of a record's defense, or why there is none to draw."""
    return _noted(findings, "pruning", Pruning, "no pruning")


def _noted(findings: Mapping[str, Any], name: str, form: type[Form], absent: str) -> Form | str:
    noted = findings.get("defend")
    if not isinstance(noted, Mapping) or name not in noted:
        return f"noted {absent}"
    try:
        return form.model_validate(noted[name])
    except ValidationError as error:
        place = brief(plain(".".join(map(str, (name, *error.errors()[0]["loc"])))))
        return f"has a note of its own at {place}, in another form than this picture reads"


def inverted_triggers(kept: Mapping[str, Tensor], size: int) -> tuple[Tensor, Tensor] | str:
    """Masks (K, 1, H, W) and patterns (K, 3, H, W), float32 in [0, 1], or why there are none to draw."""
    if not {"inverted.mask", "inverted.pattern"} <= set(kept):
        return "kept no inverted trigger"
    parts = kept["inverted.mask"], kept["inverted.pattern"]
    for name, part, channels in zip(("mask", "pattern"), parts, (1, 3), strict=True):
        sound = part.is_floating_point() and part.ndim == 4
        if not sound or part.shape != (len(parts[0]), channels, size, size) or not len(part):
            kind = f"{part.dtype} {tuple(part.shape)}".removeprefix("torch.")
            return f"kept inverted.{name} as {kind}, not as floats (K, {channels}, {size}, {size})"
    mask, pattern = (part.float() for part in parts)  # first, because the smallest floats cannot be compared
    for name, part in (("mask", mask), ("pattern", pattern)):
        if not bool(((part >= 0) & (part <= 1)).all()):
            return f"kept inverted.{name} with values outside 0 to 1"
    return mask, pattern


def whole_numbers(value: object) -> list[int]:
    """A list of numbers from 0 on unchanged; an empty list for anything else."""
    sound = isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
    return value if isinstance(value, list) and sound else []

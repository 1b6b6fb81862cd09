"""What a board's file claims of its methods, beside what is measured: no record and no identity contains it."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from benchbd.contract.specs import Table


def _one_line(text: str) -> str:
    if len(text.splitlines()) > 1:
        raise ValueError("must be one line")
    return text


Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300), AfterValidator(_one_line)]

Percent = Annotated[float, Field(ge=0, le=100)]


class Reported(Table):
    """Figures that the authors of a defense reported for the board's setting, in percent. At least one of them."""

    acc: Percent | None = Field(None, description="ACC")
    asr: Percent | None = Field(None, description="ASR, of all triggered test images")
    source: Line = Field(description="where they are reported: publication and table; one line")

    @model_validator(mode="after")
    def _has_a_figure(self) -> Self:
        """Raise ValueError without a figure."""
        if self.acc is None and self.asr is None:
            raise ValueError("needs acc, asr, or both")
        return self


class Claim(Table):
    """What a board says of the method NAME, a defense or an attack. All but ``confirmed`` is for a defense."""

    confirmed: Line | None = Field(
        None,
        description="who of the method's authors confirmed its settings on this board, and where; one line. null: its "
        "row is marked as not confirmed by its authors",
    )
    supersedes: tuple[str, ...] = Field(
        (), description="defenses whose rows this one replaces: these are marked, and have no rank"
    )
    challenged: str | None = Field(
        None, description="an adaptive attack, whose records against this defense challenge its row"
    )
    reported: Reported | None = Field(
        None,
        description="figures that its authors reported, shown beside the measured ones and never ranked; see below",
    )


def _without_ring(claims: Mapping[str, Claim]) -> Mapping[str, Claim]:
    """Raise ValueError if a row replaces itself, at once or by way of others."""
    try:
        TopologicalSorter({name: claim.supersedes for name, claim in claims.items()}).prepare()
    except CycleError as error:
        ring = " supersedes ".join(reversed(error.args[1]))
        raise ValueError(f"{ring}: a row cannot replace itself") from error
    return claims


Claims = Annotated[dict[str, Claim], AfterValidator(_without_ring)]

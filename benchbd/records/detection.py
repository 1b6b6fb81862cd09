"""The record of an inspection by a detector."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from benchbd.records.models import Inspected


class DetectionRecord(Inspected):
    """One inspection: a detector's verdict on one encoder, clean (the attack is the floor) or attacked."""

    axis: ClassVar[str] = "detection"
    detection: str = Field(description="name of the detector")
    score: float | None = Field(None, description="score of the encoder; a higher one is more suspicious")
    flagged: bool | None = Field(None, description="whether the detector calls the encoder backdoored")

"""The parts of stages and records that hooks promise to observers, whatever else the objects contain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class ObservedStage(Protocol):
    """A stage that starts, goes on or ends.

    kind: ``pretrain``, ``reference``, ``attack``, ``defend``, ``detect`` or ``evaluate``. key: 64 hex digits, one for
    every content. label: one line for people. method_name: the method's name; the kind if the harness does the work.
    """

    kind: str
    key: str
    label: str
    method_name: str


class ObservedRecord(Protocol):
    """A finished record, of a cell (with ``defense``, ``task``, ``metrics``) or of an inspection (``detection``).

    attack, pretrain, seed, evaluator: its place in the board. status and, unless it is ``ok``, reason: how it ended.
    key: of the stage that the record is about. identity: by kind of stage, all that determined the result.
    ``to_json()`` returns everything.
    """

    attack: str
    pretrain: str
    seed: int
    evaluator: str
    status: str
    reason: str
    key: str
    identity: Mapping[str, Any]

    def to_json(self) -> str: ...

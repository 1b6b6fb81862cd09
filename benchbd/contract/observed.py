"""What observers see of stages and records: the part that hooks promise, whatever else the objects hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class ObservedStage(Protocol):
    """A stage that starts, goes on or ends.

    kind: ``pretrain``, ``reference``, ``attack``, ``defend``, ``detect`` or ``evaluate``. key: 64 hex digits, one for
    every content. label: one line for people. method_name: the method's name; the kind where the harness does the work.
    """

    kind: str
    key: str
    label: str
    method_name: str


class ObservedRecord(Protocol):
    """A finished record, of a cell (with ``defense``, ``task``, ``metrics``) or of an inspection (``detection``).

    attack, pretrain, seed, evaluator: where it stands. status and, unless it is ``ok``, reason: how it ended.
    key: that of the stage that the record is about. identity: by kind of stage, all that determined the result.
    ``to_json()`` gives everything.
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

"""What observers see of stages and records: the part that hooks promise, whatever else the objects hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class ObservedStage(Protocol):
    """A stage that starts, goes on or ends.

    kind: ``pretrain``, ``reference``, ``attack``, ``defend``, ``detect`` or ``evaluate``. key: 64 hex digits, one for
    every content. label: one line for people. method_name: the method's name; the kind where the harness does the work.
    """

    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def method_name(self) -> str: ...


class ObservedRecord(Protocol):
    """A finished record, of a cell (with ``defense``, ``task``, ``metrics``) or of an inspection (``detection``).

    attack, pretrain, seed, evaluator: where it stands. status and, unless it is ``ok``, reason: how it ended.
    key: that of the stage that the record is about. identity: by kind of stage, all that determined the result.
    ``to_json()`` gives everything.
    """

    @property
    def attack(self) -> str: ...
    @property
    def pretrain(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def evaluator(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...

    def to_json(self) -> str: ...

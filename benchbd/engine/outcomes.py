"""The outcomes of a run's stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchbd.records.models import Status
from benchbd.stages.base import Stage
from benchbd.store.artifact import Artifact


@dataclass(eq=False)
class StageFailed(Exception):  # noqa: N818 - private to the engine
    """A stage, or one that it depends on, has no result; ``status`` is not ``ok``."""

    status: Status
    reason: str


@dataclass
class Outcomes:
    """artifacts, failures: by key of the stage. Every settled stage is in one of them."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    failures: dict[str, StageFailed] = field(default_factory=dict)

    def settled(self, stage: Stage) -> bool:
        """Whether a stage needs no more work: it has an artifact, or it failed."""
        return stage.key in self.artifacts or stage.key in self.failures

    def blocked(self, stage: Stage) -> StageFailed | None:
        """The failure of a stage that this one depends on, so that it cannot be computed; None if nothing blocks it."""
        failed = (self.failures.get(parent.key) for parent in stage.parents.values())
        return next((failure for failure in failed if failure is not None), None)

    def artifact(self, stage: Stage) -> Artifact:
        """The artifact of a computed stage. KeyError if there is none."""
        return self.artifacts[stage.key]

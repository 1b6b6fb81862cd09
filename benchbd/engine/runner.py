"""Run a plan: its stages are settled block by block, and each case gets its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from benchbd.contract.handover import Executor
from benchbd.data.library import DataLibrary
from benchbd.engine.executors import Inline
from benchbd.engine.observers import Observers
from benchbd.engine.outcomes import Outcomes
from benchbd.engine.recording import Recorder
from benchbd.engine.scheduler import Scheduler
from benchbd.planning.cases import Case, Plan, blocks
from benchbd.records.models import Entry
from benchbd.registry import Registry
from benchbd.stages.inputs import Inputs
from benchbd.store.store import Store


class Runner:
    """Computes the stages that a plan needs and yields one record per case.

    author: the person who runs it, for the records. executor: computes stages; in this process if None.
    """

    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        library: DataLibrary,
        store: Store,
        device: torch.device,
        author: str = "",
        executor: Executor | None = None,
    ) -> None:
        self.plan, self.results, self.observers = plan, Outcomes(), Observers(registry)
        inputs = Inputs(library, self.results.artifact, device)
        self.scheduler = Scheduler(store, inputs, executor or Inline(registry, device), self.results, self.observers)
        self.recorder = Recorder(plan.board.name, author, store, inputs, self.results, self.observers)

    def run(self, cases: Sequence[Case]) -> Iterator[Entry]:
        """Compute the cases and yield each record as soon as its block is done, in the order of the plan."""
        self.scheduler.open(stage for case in cases for stage in case.stages)
        for block in blocks(cases):
            self.scheduler.settle(stage for case in block for stage in case.stages)
            for case in block:
                record = self.recorder.record(case)
                self.observers.tell("benchbd_record_finished", record=record.model_copy(deep=True))
                yield record

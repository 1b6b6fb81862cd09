"""Running a plan: its stages are settled block by block, and each case gets its record."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchbd.contract.handover import Executor
from benchbd.contract.registry import Registry
from benchbd.data.library import DataLibrary
from benchbd.engine.executors import Inline
from benchbd.engine.observers import Observers
from benchbd.engine.outcomes import Outcomes
from benchbd.engine.recording import Recorder
from benchbd.engine.scheduler import Scheduler
from benchbd.engine.store import Store
from benchbd.planning.cases import Plan
from benchbd.records.models import DetectionRecord, Record
from benchbd.stages.inputs import Inputs


class Runner:
    """Computes what a plan needs and hands out one record per cell and per inspection.

    author: who runs it, for the records. executor: where stages are worked on; in this process if none is given.
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
        self.recorder = Recorder(plan.board.name, library, store, device, self.results, self.observers, author)

    def run(self) -> Iterator[Record]:
        """Compute, and yield the record of each cell as soon as its block is done, in the order of the plan."""
        self.scheduler.open(stage for cell in self.plan.cells for stage in cell.stages)
        for block in self.plan.blocks():
            self.scheduler.settle(stage for cell in block for stage in cell.stages)
            for cell in block:
                record = self.recorder.record(cell)
                self.observers.tell("benchbd_record_finished", record=record)
                yield record

    def inspect(self) -> Iterator[DetectionRecord]:
        """Compute, and yield the record of each inspection, in the order of the plan."""
        self.scheduler.open(stage for inspection in self.plan.inspections for stage in inspection.stages)
        for inspection in self.plan.inspections:
            self.scheduler.settle(inspection.stages)
            record = self.recorder.detection_record(inspection)
            self.observers.tell("benchbd_record_finished", record=record)
            yield record

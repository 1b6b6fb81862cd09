"""Running a plan: each distinct stage once, what the store has not at all, failures kept to the cells they touch."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from benchbd.base.content import canonical
from benchbd.base.errors import BenchbdError, NotApplicable, PluginError, StoreError, is_interrupt, named, says
from benchbd.contract.context import collecting, reporting
from benchbd.contract.meter import ForwardMeter, precision
from benchbd.contract.registry import Registry
from benchbd.data.library import DataLibrary
from benchbd.engine.observers import Observers
from benchbd.engine.outcomes import Outcomes, StageFailed
from benchbd.engine.provenance import peak_memory, provenance
from benchbd.engine.recording import Recorder
from benchbd.engine.store import Store
from benchbd.planning.cases import Plan
from benchbd.records.models import DetectionRecord, Record, Status
from benchbd.stages.base import Stage, distinct
from benchbd.stages.work import Workshop, kept_blobs

HEADS_TOGETHER = 8  # heads that are trained together on a GPU; a CPU gains nothing from company

log = logging.getLogger("benchbd")


class Runner:
    """Computes what a plan needs and hands out one record per cell and per inspection."""

    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        library: DataLibrary,
        store: Store,
        device: torch.device,
        author: str = "",
    ) -> None:
        self.plan, self.registry, self.library, self.store, self.device = plan, registry, library, store, device
        self.results, self.observers = Outcomes(), Observers(registry)
        self.recorder = Recorder(plan.board.name, library, store, device, self.results, self.observers, author)
        self.workshop = Workshop(library, device, self.results.artifact)
        self._planned: list[Stage] = []
        self._position = 0
        self._total = 0

    def run(self) -> Iterator[Record]:
        """Compute, and yield the record of each cell as soon as its block is done, in the order of the plan."""
        self._open(stage for cell in self.plan.cells for stage in cell.stages)
        for block in self.plan.blocks():
            self._settle_all(stage for cell in block for stage in cell.stages)
            for cell in block:
                record = self.recorder.record(cell)
                self.observers.tell("benchbd_cell_finished", record=record)
                yield record

    def inspect(self) -> Iterator[DetectionRecord]:
        """Compute, and yield the record of each inspection, in the order of the plan."""
        self._open(stage for inspection in self.plan.inspections for stage in inspection.stages)
        for inspection in self.plan.inspections:
            self._settle_all(inspection.stages)
            yield self.recorder.detection_record(inspection)

    def _open(self, needed: Iterable[Stage]) -> None:
        """Load what the store has, verified, so that a damaged stage is known before anything is computed."""
        stages = [stage for stage in distinct(needed) if stage.key not in self.results.artifacts]
        cached = [stage for stage in stages if self._load(stage)]
        self._total += len(stages) - len(cached)
        self._planned = stages
        for stage in cached:
            self.observers.tell("benchbd_stage_finished", stage=stage, status="cached", seconds=0.0, message="")

    def _settle_all(self, needed: Iterable[Stage]) -> None:
        """Settle the stages. Those that another run on the same store is computing are left to it: meanwhile this run
        goes on with the rest, then with what comes later in the plan, and waits only where nothing else is left."""
        wanted = distinct(needed)
        while left := [stage for stage in wanted if not self.results.settled(stage)]:
            attempts = [self._attempt(group) for group in self._groups(left)]
            if not any(attempts):
                ahead = any(self._attempt(group) for group in self._groups(self._planned))  # the first that is free
                if not ahead:
                    self._attempt(next(self._groups(left)), wait=True)

    # Stages ------------------------------------------------------------------------------------------------------

    def _load(self, stage: Stage) -> bool:
        """Whether the store has the stage, verified."""
        artifact = self.store.get(stage.key)
        if artifact is not None:
            self.results.artifacts[stage.key] = artifact
        return artifact is not None

    def _groups(self, stages: Sequence[Stage]) -> Iterator[list[Stage]]:
        """Stages whose parents are settled by the time they are asked for, each alone; then evaluations, those together
        that have one evaluator, task and feature dimension."""

        def ready(stage: Stage) -> bool:
            return not self.results.settled(stage) and all(map(self.results.settled, stage.parents.values()))

        yield from ([stage] for stage in stages if stage.kind != "evaluate" and ready(stage))
        alike: dict[tuple[object, ...], list[Stage]] = {}
        for stage in (stage for stage in stages if stage.kind == "evaluate" and ready(stage)):
            if self.results.blocked(stage) is not None:
                yield [stage]
                continue
            arch = self.results.artifact(stage.parents["encoder"]).result["arch"]
            likeness = (
                canonical(stage.identity["method"]),
                stage.data["train"].digest,
                stage.data["test"].digest,
                arch,
            )
            alike.setdefault(likeness, []).append(stage)
        size = HEADS_TOGETHER if self.device.type == "cuda" else 1
        for group in alike.values():
            yield from (group[start : start + size] for start in range(0, len(group), size))

    def _attempt(self, group: Sequence[Stage], *, wait: bool = False) -> bool:
        """Settle the group: each stage in ``_artifacts`` or, with the reason, in ``_failures``. Returns False, with
        nothing done, where another run holds one of them and this one is not to wait."""
        todo = []
        for stage in group:
            if (failure := self.results.blocked(stage)) is not None:
                self.results.failures[stage.key] = failure
            else:
                todo.append(stage)
        with ExitStack() as locks:
            if wait:
                self._announce(todo)  # it is under way, if not here
            for stage in sorted(todo, key=lambda s: s.key):
                held = self.store.hold(stage.key, wait=False)
                if held is None and wait:
                    log.info("waiting for %s %s: %s computes it", stage.kind, stage.label, self.store.holder(stage.key))
                    held = self.store.hold(stage.key, wait=True)
                if held is None:
                    return False
                locks.enter_context(held)
            ours = [stage for stage in todo if not self._load(stage)]
            if not wait:
                self._announce(ours)
            for stage in todo:
                if stage not in ours:  # another run has computed it since
                    self._position += not wait  # if it was not announced: positions end at the total in any case
                    self.observers.tell("benchbd_stage_finished", stage=stage, status="cached", seconds=0.0, message="")
            if ours:
                self._settle(ours)
        return True

    def _announce(self, stages: Iterable[Stage]) -> None:
        for stage in stages:
            self._position += 1
            self.observers.tell("benchbd_stage_started", stage=stage, position=self._position, total=self._total)

    def _settle(self, stages: Sequence[Stage]) -> None:
        """Compute the stages together; where one of them spoils that, one by one."""
        started = time.perf_counter()
        status, message = "computed", ""
        try:
            self._compute(stages)
        except BaseException as error:
            if is_interrupt(error) or isinstance(error, StoreError):
                raise
            if len(stages) > 1:
                for stage in stages:
                    self._settle([stage])
                return
            (stage,) = stages
            failed: Status = "n/a" if isinstance(error, NotApplicable) else "failed"
            status, message = failed, self._explain(stage, error)
            what = "" if stage.kind == "evaluate" else f"{stage.kind} {stage.method_name}: "
            self.results.failures[stage.key] = StageFailed(failed, what + message)
        seconds = time.perf_counter() - started
        for stage in stages:
            self.observers.tell("benchbd_stage_finished", stage=stage, status=status, seconds=seconds, message=message)

    def _compute(self, stages: Sequence[Stage]) -> None:
        """Compute and commit; the caller holds the stages' locks. StoreError is the store's alone."""
        first = stages[0]

        def report(step: int, steps: int, loss: float | None) -> None:
            self.observers.tell("benchbd_stage_progress", stage=first, step=step, steps=steps, loss=loss)

        wall, cpu = time.perf_counter(), time.process_time()
        with (
            ForwardMeter() as meter,
            reporting(report),
            collecting() as findings,
            precision(first.numerics["precision"]),
            _tf32(first.numerics["tf32"]),
            peak_memory(self.device) as peak,
        ):
            together = first.kind == "evaluate"
            try:
                outcomes = self.workshop.evaluate(stages) if together else [self.workshop.compute(s) for s in stages]
            except StoreError as error:
                raise PluginError(named(error)) from error
        kept = kept_blobs(findings)
        share = len(stages)
        cost = {
            "seconds": round((time.perf_counter() - wall) / share, 3),
            "cpu_seconds": round((time.process_time() - cpu) / share, 3),
            "image_forwards": meter.images // share,
        }
        for stage, outcome in zip(stages, outcomes, strict=True):
            self.results.artifacts[stage.key] = self.store.put(
                stage.key,
                {**outcome.blobs, **kept},
                identity=stage.identity,
                result=outcome.result,
                meta={
                    "label": stage.label,
                    "architecture": stage.architecture,
                    "cost": cost,
                    "notes": findings.notes,
                    "memory": peak,
                    **provenance(stage, self.registry, self.store, self.device),
                },
            )

    def _explain(self, stage: Stage, error: BaseException) -> str:
        """One line for the table; the traceback goes to a file that the line names, unless the text says it all."""
        if isinstance(error, BenchbdError):
            return says(error)
        told = f"{stage.kind} {stage.label}\n\n{''.join(traceback.format_exception(error))}"
        path = self.store.log(f"{stage.key[:12]}.log", told.encode("utf-8", "backslashreplace").decode("utf-8"))
        return f"{named(error)} (traceback in {path.relative_to(self.store.root)} of the store)"


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may use TF32 for float32 products in the block."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

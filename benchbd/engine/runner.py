"""Running a plan: each distinct stage once, what the store has not at all, failures kept to the cells they touch."""

from __future__ import annotations

import logging
import platform
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from benchbd._version import __version__
from benchbd.base.content import canonical, without_paths
from benchbd.base.errors import BenchbdError, NotApplicable, PluginError, StoreError, is_interrupt, named, says
from benchbd.base.isolation import isolated
from benchbd.contract.context import collecting, reporting
from benchbd.contract.meter import ForwardMeter, precision
from benchbd.contract.registry import Registry
from benchbd.data.library import DataLibrary
from benchbd.engine.store import Store
from benchbd.planning.cases import Cell, Inspection, Plan
from benchbd.records.counts import baseline, count, metrics
from benchbd.records.models import GATE, Cost, Counts, DetectionRecord, Gain, Record, Status
from benchbd.stages.artifact import Artifact
from benchbd.stages.base import Stage, distinct
from benchbd.stages.work import Workshop, draw_rows, kept_blobs, read_predictions

HEADS_TOGETHER = 8  # heads that are trained together on a GPU; a CPU gains nothing from company

log = logging.getLogger("benchbd")


class StageFailed(Exception):  # noqa: N818 - private to the runner
    """A stage, or one that it stands on, did not come out; ``status`` is ``failed`` or ``n/a``."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


class Runner:
    """Computes what a plan needs and hands out one record per cell and per inspection."""

    def __init__(
        self, plan: Plan, registry: Registry, library: DataLibrary, store: Store, device: torch.device
    ) -> None:
        self.plan, self.registry, self.library, self.store, self.device = plan, registry, library, store, device
        self.workshop = Workshop(library, device, self._artifact)
        self._artifacts: dict[str, Artifact] = {}
        self._failures: dict[str, StageFailed] = {}
        self._planned: list[Stage] = []
        self._complained: set[str] = set()
        self._position = 0
        self._total = 0

    def run(self) -> Iterator[Record]:
        """Compute, and yield the record of each cell as soon as its block is done, in the order of the plan."""
        self._open(stage for cell in self.plan.cells for stage in cell.stages)
        for block in self.plan.blocks():
            self._settle_all(stage for cell in block for stage in cell.stages)
            for cell in block:
                record = self._record(cell)
                self._tell("benchbd_cell_finished", record=record)
                yield record

    def inspect(self) -> Iterator[DetectionRecord]:
        """Compute, and yield the record of each inspection, in the order of the plan."""
        self._open(stage for inspection in self.plan.inspections for stage in inspection.stages)
        for inspection in self.plan.inspections:
            self._settle_all(inspection.stages)
            yield self._detection_record(inspection)

    def _open(self, needed: Iterable[Stage]) -> None:
        """Load what the store has, verified, so that a damaged stage is known before anything is computed."""
        stages = [stage for stage in distinct(needed) if stage.key not in self._artifacts]
        cached = [stage for stage in stages if self._load(stage)]
        self._total += len(stages) - len(cached)
        self._planned = stages
        for stage in cached:
            self._tell("benchbd_stage_finished", stage=stage, status="cached", seconds=0.0, message="")

    def _settle_all(self, needed: Iterable[Stage]) -> None:
        """Settle the stages. Those that another run on the same store is computing are left to it: meanwhile this run
        goes on with the rest, then with what comes later in the plan, and waits only where nothing else is left."""
        wanted = distinct(needed)
        while left := [stage for stage in wanted if not self._settled(stage)]:
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
            self._artifacts[stage.key] = artifact
        return artifact is not None

    def _artifact(self, stage: Stage) -> Artifact:
        return self._artifacts[stage.key]

    def _settled(self, stage: Stage) -> bool:
        """Whether there is nothing left to do about it: it is there, or it failed."""
        return stage.key in self._artifacts or stage.key in self._failures

    def _groups(self, stages: Sequence[Stage]) -> Iterator[list[Stage]]:
        """Stages whose parents are settled by the time they are asked for, each alone; then evaluations, those together
        that have one evaluator, task and feature dimension."""

        def ready(stage: Stage) -> bool:
            return not self._settled(stage) and all(map(self._settled, stage.parents.values()))

        yield from ([stage] for stage in stages if stage.kind != "evaluate" and ready(stage))
        alike: dict[tuple[object, ...], list[Stage]] = {}
        for stage in (stage for stage in stages if stage.kind == "evaluate" and ready(stage)):
            if self._blocked(stage) is not None:
                yield [stage]
                continue
            arch = self._artifact(stage.parents["encoder"]).result["arch"]
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

    def _blocked(self, stage: Stage) -> StageFailed | None:
        """Why a stage cannot be computed: one that it stands on failed."""
        for parent in stage.parents.values():
            if parent.key in self._failures:
                return self._failures[parent.key]
        return None

    def _attempt(self, group: Sequence[Stage], *, wait: bool = False) -> bool:
        """Settle the group: each stage in ``_artifacts`` or, with the reason, in ``_failures``. Returns False, with
        nothing done, where another run holds one of them and this one is not to wait."""
        todo = []
        for stage in group:
            if (failure := self._blocked(stage)) is not None:
                self._failures[stage.key] = failure
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
                    self._tell("benchbd_stage_finished", stage=stage, status="cached", seconds=0.0, message="")
            if ours:
                self._settle(ours)
        return True

    def _announce(self, stages: Iterable[Stage]) -> None:
        for stage in stages:
            self._position += 1
            self._tell("benchbd_stage_started", stage=stage, position=self._position, total=self._total)

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
            self._failures[stage.key] = StageFailed(failed, what + message)
        seconds = time.perf_counter() - started
        for stage in stages:
            self._tell("benchbd_stage_finished", stage=stage, status=status, seconds=seconds, message=message)

    def _compute(self, stages: Sequence[Stage]) -> None:
        """Compute and commit; the caller holds the stages' locks. StoreError is the store's alone."""
        first = stages[0]

        def report(step: int, steps: int, loss: float | None) -> None:
            self._tell("benchbd_stage_progress", stage=first, step=step, steps=steps, loss=loss)

        wall, cpu = time.perf_counter(), time.process_time()
        with (
            ForwardMeter() as meter,
            reporting(report),
            collecting() as findings,
            precision(first.numerics["precision"]),
            _tf32(first.numerics["tf32"]),
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
            self._artifacts[stage.key] = self.store.put(
                stage.key,
                {**outcome.blobs, **kept},
                identity=stage.identity,
                result=outcome.result,
                meta={
                    "label": stage.label,
                    "architecture": stage.architecture,
                    "cost": cost,
                    "notes": findings.notes,
                    "machine": machine(self.device),
                },
            )

    def _explain(self, stage: Stage, error: BaseException) -> str:
        """One line for the table; the traceback goes to a file that the line names, unless the text says it all."""
        if isinstance(error, BenchbdError):
            return says(error)
        told = f"{stage.kind} {stage.label}\n\n{''.join(traceback.format_exception(error))}"
        path = self.store.log(f"{stage.key[:12]}.log", told.encode("utf-8", "backslashreplace").decode("utf-8"))
        return f"{named(error)} (traceback in {path.relative_to(self.store.root)} of the store)"

    def _tell(self, hook: str, **facts: Any) -> None:
        """Call the observers; one that fails is named, once, and does not stop the run."""
        for impl in getattr(self.registry.manager.hook, hook).get_hookimpls():
            try:
                with isolated(f"observer {impl.plugin_name}"):
                    impl.function(*(facts[name] for name in impl.argnames))
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self._complain(f"observer {impl.plugin_name}: {hook}", f"raised {named(error)}")

    def _complain(self, who: str, what: str) -> None:
        """Warn of a plugin, once."""
        if who not in self._complained:
            log.warning("%s %s", who, what)
        self._complained.add(who)

    # Records -----------------------------------------------------------------------------------------------------

    def _counts(self, stage: Stage, target: int) -> Counts:
        """The counts behind the metrics of an evaluate stage, or StageFailed."""
        if stage.key in self._failures:
            raise self._failures[stage.key]
        test = self.library.load(stage.data["test"].name, "test")
        assert test.labels is not None
        return count(read_predictions(self._artifacts[stage.key]), test.labels, target)

    def _record(self, cell: Cell) -> Record:
        values: dict[str, Any] = {}
        status: Status = "ok"
        reason = ""
        try:
            floor = self._counts(cell.floor, cell.goal.label)
            values |= {"baseline": baseline(floor), "baseline_counts": floor}
            published = self._counts(cell.undefended, cell.goal.label)
            values["undefended"] = undefended = metrics(published)
            own = self._counts(cell.evaluate, cell.goal.label)
            values |= {"metrics": metrics(own), "counts": own}
            gain = Gain(counts=published, baseline_counts=floor).points  # from counts: exact at the gate
            if cell.gated and gain < GATE:
                status = "attack-failed"
                reason = (
                    f"undefended ASR {undefended.asr_nontarget:.1f} is {gain:+.1f} points from the clean encoder's "
                    f"{values['baseline'].asr_b_nontarget:.1f}; an attack counts from {GATE:+.0f}"
                )
        except StageFailed as failure:
            status, reason = failure.status, failure.reason
        return Record(
            defense=cell.defense,
            task=cell.goal.task,
            target=cell.goal.label,
            target_name=cell.goal.name,
            evaluator=cell.evaluator,
            reference=self._reference(cell),
            **self._entry(cell, (*cell.chain, cell.evaluate), "defend"),
            status=status,
            reason=self._public(reason),
            notes=self._public(self._missed_references(cell) + self._remarks((*cell.chain, cell.evaluate))),
            **values,
        )

    def _detection_record(self, inspection: Inspection) -> DetectionRecord:
        chain = (*inspection.chain, inspection.detect)
        result: dict[str, Any] = {}
        status: Status = "ok"
        reason, gains = "", {}
        try:
            for goal, own, clean in zip(inspection.goals, inspection.undefended, inspection.floors, strict=True):
                counts = self._counts(own, goal.label)
                gains[str(goal)] = Gain(counts=counts, baseline_counts=self._counts(clean, goal.label))
            if inspection.detect.key in self._failures:
                raise self._failures[inspection.detect.key]
            result = self._artifacts[inspection.detect.key].result
            most = max(gain.points for gain in gains.values())
            if inspection.gated and most < GATE:
                status = "attack-failed"
                reason = f"undefended ASR gains at most {most:+.1f} points; an attack counts from {GATE:+.0f}"
        except StageFailed as failure:
            status, reason = failure.status, failure.reason
        return DetectionRecord(
            detection=inspection.detection,
            evaluator=inspection.evaluator,
            tasks=[str(goal) for goal in inspection.goals],
            gains=gains,
            **self._entry(inspection, chain, "detect"),
            status=status,
            reason=self._public(reason),
            notes=self._public(self._remarks(chain)),
            **result,
        )

    def _entry(self, of: Cell | Inspection, chain: Sequence[Stage], kind: str) -> dict[str, Any]:
        """What records of either sort share. kind: of the stage whose seconds and clean images the record is about."""
        names = _names(chain)
        known = [stage for stage in chain if stage.key in self._artifacts]
        cost = {names[stage.key]: Cost(**self._artifacts[stage.key].manifest["cost"]) for stage in known}
        worker = next((stage for stage in chain if stage.kind == kind), None)
        seconds = cost[kind].seconds if kind in cost else None
        return {
            "board": self.plan.board.name,
            "on_board": not of.departures,
            "departures": list(of.departures),
            "attack": of.attack,
            "pretrain": of.pretrain,
            "seed": of.seed,
            "key": chain[-1].key,
            "seconds": 0.0 if worker is None else seconds,
            "cost": cost,
            "stages": {names[stage.key]: stage.key for stage in known},
            "identity": {names[stage.key]: stage.identity for stage in chain},
            "clean_images": draw_rows(worker.data["pool"].count, worker.params["clean"]).tolist() if worker else [],
            "findings": {
                names[stage.key]: self._public(noted)
                for stage in known
                if (noted := self._artifacts[stage.key].manifest["notes"])
            },
            "machine": self._artifacts[known[-1].key].manifest["machine"] if known else machine(self.device),
        }

    def _public(self, told: Any) -> Any:
        """What a method or an error said, with no folder of this machine in it: records are published."""
        if isinstance(told, str):
            return without_paths(told, {self.store.root: "STORE", self.library.root: "DATA"})
        if isinstance(told, dict):
            return {self._public(name): self._public(value) for name, value in told.items()}
        return [self._public(value) for value in told] if isinstance(told, list) else told

    def _reference(self, cell: Cell) -> dict[str, Any]:
        """What the reference stage of the cell's own task found; empty where there is none."""
        stage = next((stage for stage in cell.chain if stage.kind == "reference"), None)
        return self._artifacts[stage.key].result if stage is not None and stage.key in self._artifacts else {}

    def _missed_references(self, cell: Cell) -> list[str]:
        reference = self._reference(cell)
        missed = sum(predicted != cell.goal.label for predicted in reference.get("predicted", []))
        if not missed:
            return []
        return [
            f"{missed} of {len(reference['predicted'])} reference inputs are not classified as the target "
            f"{cell.goal.label} by the clean classifier; expect a low ASR"
        ]

    def _remarks(self, chain: Iterable[Stage]) -> list[str]:
        """What a reader of the table must know of these stages: where a budget cuts a defense or detector, and what
        the methods themselves remarked."""
        known = [stage for stage in chain if stage.key in self._artifacts]
        lines = [self._shortened(stage) for stage in known if stage.kind in ("defend", "detect")]
        for stage in known:
            remarks = self._artifacts[stage.key].manifest["notes"].get("remarks")
            lines += remarks if isinstance(remarks, list) else []
        return [line for line in lines if line and isinstance(line, str)]

    def _shortened(self, stage: Stage) -> str | None:
        try:
            return stage.shortened()
        except BenchbdError as error:
            self._complain(f"{stage.kind} {stage.method_name}:", f"{error}; no remark tells whether its budget is cut")
            return None


def _names(chain: Sequence[Stage]) -> dict[str, str]:
    """A name for each stage of a chain: its kind, numbered where several are of one kind (reference, reference2)."""
    names: dict[str, str] = {}
    for stage in chain:
        twins = sum(name.rstrip("0123456789") == stage.kind for name in names.values())
        names[stage.key] = stage.kind + (str(twins + 1) if twins else "")
    return names


def machine(device: torch.device) -> dict[str, Any]:
    """What a result was computed on: in manifests and records, never in keys."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU"
    return {
        "device": name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # the vector instructions that torch chose
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "benchbd": __version__,
    }


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may use TF32 for float32 products in the block."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

"""Running a plan: each distinct stage once, what the store has not at all, failures kept to the cells they touch."""

from __future__ import annotations

import logging
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from benchbd import __version__
from benchbd.compute import Outcome, Workshop, draw_rows, read_predictions
from benchbd.data import DataLibrary
from benchbd.encoder import ForwardMeter, precision
from benchbd.errors import BenchbdError, NotApplicable, StoreError
from benchbd.metrics import baseline, count, metrics
from benchbd.planning import Cell, Plan
from benchbd.plugins import Registry
from benchbd.records import Cost, Counts, Record, Status
from benchbd.stages import Stage, distinct
from benchbd.store import Artifact, Store
from benchbd.training import collecting_notes, reporting

GATE = 15.0  # points by which an undefended ASR must exceed the clean floor for the attack to count
GROUP = 8  # heads that are trained together on a GPU; a CPU gains nothing from company

log = logging.getLogger("benchbd")


class StageFailed(Exception):  # noqa: N818 - private to the runner
    """A stage, or one that it stands on, did not come out; ``status`` is ``failed`` or ``n/a``."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


class Runner:
    """Computes what a plan needs and hands out one record per cell."""

    def __init__(
        self, plan: Plan, registry: Registry, library: DataLibrary, store: Store, device: torch.device
    ) -> None:
        self.plan, self.registry, self.library, self.store, self.device = plan, registry, library, store, device
        self.workshop = Workshop(library, device, self._artifact)
        self._artifacts: dict[str, Artifact] = {}
        self._failures: dict[str, StageFailed] = {}
        self._complained: set[tuple[str, str]] = set()
        self._position = 0
        self._total = 0

    def run(self) -> Iterator[Record]:
        """Compute, and yield the record of each cell as soon as its block is done, in the order of the plan.

        Cached stages are verified first, so that a damaged one is known and computed again.
        """
        stages = self.plan.stages
        for stage in stages:
            self._load(stage)
        missing = [stage for stage in stages if stage.key not in self._artifacts]
        self._total = len(missing)
        for stage in stages:
            if stage.key in self._artifacts:
                self._tell("benchbd_stage_finished", stage=stage, status="cached", seconds=0.0, message="")
        for block in self.plan.blocks():
            wanted = distinct(stage for cell in block for stage in cell.stages)
            for stage in wanted:
                if stage.kind != "evaluate":
                    self._attempt([stage])
            for group in self._groups([stage for stage in wanted if stage.kind == "evaluate"]):
                self._attempt(group)
            for cell in block:
                record = self._record(cell)
                self._tell("benchbd_cell_finished", record=record)
                yield record

    # Stages ------------------------------------------------------------------------------------------------------

    def _load(self, stage: Stage) -> bool:
        """Whether the store has the stage, verified."""
        artifact = self.store.get(stage.key)
        if artifact is not None:
            self._artifacts[stage.key] = artifact
        return artifact is not None

    def _artifact(self, stage: Stage) -> Artifact:
        return self._artifacts[stage.key]

    def _groups(self, stages: Sequence[Stage]) -> Iterator[list[Stage]]:
        """Evaluate stages that may be computed together: one evaluator, task and feature dimension."""
        ready: dict[tuple[object, ...], list[Stage]] = {}
        for stage in stages:
            if stage.key in self._artifacts or self._blocked(stage) is not None:
                yield [stage]
                continue
            arch = self._artifact(stage.parents["encoder"]).result["arch"]
            ready.setdefault((stage.method, stage.data["train"].digest, stage.data["test"].digest, arch), []).append(
                stage
            )
        size = GROUP if self.device.type == "cuda" else 1
        for group in ready.values():
            yield from (group[start : start + size] for start in range(0, len(group), size))

    def _blocked(self, stage: Stage) -> StageFailed | None:
        """Why a stage cannot be computed: one that it stands on failed."""
        for parent in stage.parents.values():
            if parent.key in self._failures:
                return self._failures[parent.key]
        return None

    def _attempt(self, group: Sequence[Stage]) -> None:
        """Have every stage of the group in ``_artifacts`` or, with the reason, in ``_failures``."""
        todo = [stage for stage in group if stage.key not in self._artifacts and stage.key not in self._failures]
        for stage in list(todo):
            if (failure := self._blocked(stage)) is not None:
                self._failures[stage.key] = failure
                todo.remove(stage)
        if not todo:
            return
        for stage in todo:
            self._position += 1
            self._tell("benchbd_stage_started", stage=stage, position=self._position, total=self._total)
        self._settle(todo)

    def _settle(self, stages: Sequence[Stage]) -> None:
        """Compute the stages together; where one of them spoils that, one by one."""
        started = time.perf_counter()
        status, message = "computed", ""
        try:
            self._compute(stages)
        except StoreError:
            raise
        except (Exception, SystemExit) as error:
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
        """Compute and commit under the stages' locks; another run may have done it meanwhile."""
        locks = [self.store.lock(stage.key) for stage in sorted(stages, key=lambda s: s.key)]
        try:
            for lock in locks:
                lock.acquire()
            stages = [stage for stage in stages if not self._load(stage)]
            if not stages:
                return
            wall, cpu = time.perf_counter(), time.process_time()
            report = self._reporter(stages[0])
            with (
                ForwardMeter() as meter,
                reporting(report),
                collecting_notes() as notes,
                precision(stages[0].numerics["precision"]),
                _tf32(stages[0].numerics["tf32"]),
            ):
                outcomes = self._outcomes(stages)
            share = len(stages)
            cost = {
                "seconds": round((time.perf_counter() - wall) / share, 3),
                "cpu_seconds": round((time.process_time() - cpu) / share, 3),
                "image_forwards": meter.images // share,
            }
            for stage, outcome in zip(stages, outcomes, strict=True):
                self._artifacts[stage.key] = self.store.put(
                    stage.key,
                    outcome.blobs,
                    identity=stage.identity,
                    result=outcome.result,
                    meta={
                        "label": stage.label,
                        "architecture": stage.architecture,
                        "cost": cost,
                        "notes": notes,
                        "machine": machine(self.device),
                    },
                )
        finally:
            for lock in locks:
                lock.release()

    def _outcomes(self, stages: Sequence[Stage]) -> list[Outcome]:
        if stages[0].kind == "evaluate":
            return self.workshop.evaluate(stages)
        return [self.workshop.compute(stage) for stage in stages]

    def _reporter(self, stage: Stage) -> Callable[[int, int, float | None], None]:
        def report(step: int, steps: int, loss: float | None) -> None:
            self._tell("benchbd_stage_progress", stage=stage, step=step, steps=steps, loss=loss)

        return report

    def _explain(self, stage: Stage, error: BaseException) -> str:
        """One line for the table; the traceback goes to a file that the line names, unless the text says it all."""
        line = next((text for text in str(error).splitlines() if text.strip()), "no message")
        if isinstance(error, BenchbdError):
            return line
        told = f"{stage.kind} {stage.label}\n\n{''.join(traceback.format_exception(error))}"
        path = self.store.log(f"{stage.key[:12]}.log", told)
        return f"{type(error).__name__}: {line} (traceback in {path})"

    def _tell(self, hook: str, **facts: Any) -> None:
        """Call the observers; one that fails is named, once, and does not stop the run."""
        for impl in getattr(self.registry.manager.hook, hook).get_hookimpls():
            try:
                impl.function(*(facts[name] for name in impl.argnames))
            except Exception as error:
                if (impl.plugin_name, hook) not in self._complained:
                    log.warning("observer %s: %s raised %s: %s", impl.plugin_name, hook, type(error).__name__, error)
                self._complained.add((impl.plugin_name, hook))

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
            gain = 100 * (published.hits_nontarget - floor.hits_nontarget) / floor.nontarget  # exact at the gate
            if cell.undefended.key != cell.floor.key and gain < GATE:
                status = "attack-failed"
                reason = (
                    f"undefended ASR {undefended.asr_nontarget:.1f} is {gain:+.1f} points from the clean encoder's "
                    f"{values['baseline'].asr_b_nontarget:.1f}; an attack counts from {GATE:+.0f}"
                )
        except StageFailed as failure:
            status, reason = failure.status, failure.reason
        chain = [stage for stage in (*cell.chain, cell.evaluate) if stage.key in self._artifacts]
        cost = {stage.kind: Cost(**self._artifacts[stage.key].manifest["cost"]) for stage in chain}
        defend = next((stage for stage in cell.chain if stage.kind == "defend"), None)
        return Record(
            schema=1,
            board=self.plan.board.name,
            on_board=not self.plan.departures,
            departures=self.plan.departures,
            attack=cell.attack,
            defense=cell.defense,
            pretrain=cell.pretrain,
            task=cell.goal.task,
            target=cell.goal.label,
            target_name=cell.goal.name,
            seed=cell.seed,
            evaluator=cell.evaluator,
            status=status,
            reason=reason,
            key=cell.evaluate.key,
            seconds=cost["defend"].seconds if "defend" in cost else (0.0 if defend is None else None),
            cost=cost,
            stages={stage.kind: stage.key for stage in chain},
            identity={stage.kind: stage.identity for stage in (*cell.chain, cell.evaluate)},
            reference=self._reference(cell),
            clean_images=draw_rows(defend.data["pool"].count, defend.params["clean"]).tolist() if defend else [],
            notes=self._notes(cell),
            findings={s.kind: noted for s in chain if (noted := self._artifacts[s.key].manifest["notes"])},
            machine=self._artifacts[chain[-1].key].manifest["machine"] if chain else machine(self.device),
            **values,
        )

    def _reference(self, cell: Cell) -> dict[str, Any]:
        """What the reference stage of the cell's own task found; empty where there is none."""
        stage = next((stage for stage in cell.chain if stage.kind == "reference"), None)
        return self._artifacts[stage.key].result if stage is not None and stage.key in self._artifacts else {}

    def _notes(self, cell: Cell) -> list[str]:
        reference = self._reference(cell)
        missed = sum(predicted != cell.goal.label for predicted in reference.get("predicted", []))
        notes = []
        if missed:
            notes.append(
                f"{missed} of {len(reference['predicted'])} reference inputs are not classified as the target "
                f"{cell.goal.label} by the clean classifier; expect a low ASR"
            )
        for stage in (*cell.chain, cell.evaluate):
            if stage.key in self._artifacts:
                notes += self._artifacts[stage.key].manifest["notes"].get("remarks", [])
        return notes


def machine(device: torch.device) -> dict[str, Any]:
    """What a result was computed on: in manifests and records, never in keys."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "benchbd": __version__,
    }


class _tf32:  # noqa: N801 - reads as the setting it is
    """Whether CUDA may use TF32 for float32 products in the block."""

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    def __enter__(self) -> None:
        self.before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.allowed

    def __exit__(self, *exc: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.before


def estimate_seconds(
    stages: Iterable[Stage], manifests: Iterable[Mapping[str, Any]], device: torch.device
) -> dict[str, float | None]:
    """Estimated wall seconds by key, from the image-forwards a second of past stages in this store; None if unknown.

    Only stages of the same method and architecture on the same device tell anything.
    """
    here = machine(device)["device"]
    past: dict[tuple[str, ...], list[float]] = {}
    for manifest in manifests:
        cost, identity = manifest["cost"], manifest["identity"]
        if cost["seconds"] > 0 and cost["image_forwards"] and manifest["machine"]["device"] == here:
            name = identity["method"].get("name", identity["kind"])
            rate = cost["image_forwards"] / cost["seconds"]
            past.setdefault((identity["kind"], name, manifest.get("architecture", "")), []).append(rate)
    estimates: dict[str, float | None] = {}
    for stage in stages:
        rates, forwards = past.get((stage.kind, stage.method_name, stage.architecture)), stage.forwards()
        estimates[stage.key] = None if not rates or forwards is None else forwards / (sum(rates) / len(rates))
    return estimates

"""The order of computing: each distinct stage once, unless the store has it, and stages that wait for none first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from safetensors.torch import save

from benchbd.base.errors import PluginError, shown
from benchbd.base.mapped import beside
from benchbd.contract.handover import Executor, Failure, Product
from benchbd.engine.carry_out import failure_of
from benchbd.engine.observers import Observers
from benchbd.engine.outcomes import Outcomes, StageFailed
from benchbd.engine.provenance import provenance
from benchbd.stages.base import Outcome, Stage, distinct
from benchbd.stages.inputs import Inputs
from benchbd.stages.kinds import KINDS
from benchbd.store.artifact import KEPT
from benchbd.store.store import Store

HEADS_TOGETHER = 8  # heads that are trained together on a GPU; on a CPU this saves no time

R = TypeVar("R")

log = logging.getLogger("benchbd")


class Scheduler:
    """Settles stages: each ends in ``results``, as an artifact or a failure.

    Runs that share a store share the work: this run does not compute a stage that another run is computing.
    """

    def __init__(
        self, store: Store, inputs: Inputs, executor: Executor, results: Outcomes, observers: Observers
    ) -> None:
        self.store, self.inputs, self.executor = store, inputs, executor
        self.results, self.observers = results, observers
        self.together = HEADS_TOGETHER if inputs.device.type == "cuda" else 1
        self._planned: list[Stage] = []
        self._submitted: dict[Future[Product | Failure], tuple[Sequence[Stage], float]] = {}
        self._given: WeakSet[Future[Product | Failure]] = WeakSet()
        self._locks: dict[str, ExitStack] = {}
        self._position = self._total = 0

    def open(self, needed: Iterable[Stage]) -> None:
        """Load the stages that the store has, verified, so that a damaged one is found before anything is computed."""
        stages = [stage for stage in distinct(needed) if stage.key not in self.results.artifacts]
        cached = [stage for stage in stages if self._load(stage)]
        self._total += len(stages) - len(cached)
        self._planned = stages
        for stage in cached:
            self._tell_finished(stage, "cached")

    def settle(self, needed: Iterable[Stage]) -> None:
        """Settle the stages. While another run computes one of them, this run continues with the rest, then with later
        stages of the plan, and waits only if nothing else is left."""
        wanted = distinct(needed)
        try:
            with beside(self.store.root):
                while left := [stage for stage in wanted if not self.results.settled(stage)]:
                    moved = [self._start(group) for group in self._free(left)]
                    if any(moved) or self._collect():
                        continue
                    if not any(self._start(group) for group in self._free(self._planned)):  # the first that is free
                        self._start(next(self._groups(left)), wait=True)
        finally:
            for key in list(self._locks):
                self._locks.pop(key).close()

    def _load(self, stage: Stage) -> bool:
        """Load a stage from the store, verified; False if the store does not have it."""
        if (artifact := self.store.get(stage.key)) is not None:
            self.results.artifacts[stage.key] = artifact
        return artifact is not None

    def _free(self, stages: Sequence[Stage]) -> Iterator[list[Stage]]:
        """Groups to start, as long as the executor has a slot for one."""
        for group in self._groups(stages):
            if len(self._submitted) >= self.executor.slots:
                return
            yield group

    def _groups(self, stages: Sequence[Stage]) -> Iterator[list[Stage]]:
        """Stages whose parents are settled when the next is requested: those that share nothing, one by one; then
        groups of stages with equal ``alike``, together on a GPU."""
        alike: dict[Hashable, list[Stage]] = {}
        for stage in stages:
            if not self._ready(stage):
                continue
            likeness = None if self.results.blocked(stage) else KINDS[stage.kind].alike(stage, self.inputs)
            if likeness is None:
                yield [stage]
            else:
                alike.setdefault(likeness, []).append(stage)
        for group in alike.values():
            yield from (group[start : start + self.together] for start in range(0, len(group), self.together))

    def _ready(self, stage: Stage) -> bool:
        """Whether the stage can be started: it is neither settled nor started here, and its parents are settled."""
        ours = self.results.settled(stage) or stage.key in self._locks
        return not ours and all(map(self.results.settled, stage.parents.values()))

    def _start(self, group: Sequence[Stage], *, wait: bool = False) -> bool:
        """Settle or submit the group. Returns False, with nothing done, if another run holds one of its stages and
        ``wait`` is False."""
        if (failure := self.results.blocked(group[0])) is not None:  # a blocked group has one stage
            self.results.failures[group[0].key] = failure
            return True
        if wait:
            self._announce(group)  # another run computes it: show it as started while we wait
        if not self._hold(group, wait=wait):
            return False
        ours = [stage for stage in group if not self._load(stage)]
        if not wait:
            self._announce(ours)
        for stage in group:
            if stage not in ours:  # another run has computed it meanwhile
                self._position += not wait  # computed before we announced it; counted to end at [total/total]
                self._release(stage)
                self._tell_finished(stage, "cached")
        if ours:
            self._submit(ours)
        return True

    def _hold(self, stages: Sequence[Stage], *, wait: bool) -> bool:
        """Take the locks of all stages, in the same order in every run, or of none."""
        for stage in sorted(stages, key=lambda stage: stage.key):
            held = self.store.hold(stage.key, wait=False)
            if held is None and wait:
                log.info("waiting for %s %s: %s computes it", stage.kind, stage.label, self.store.holder(stage.key))
                held = self.store.hold(stage.key, wait=True)
            if held is None:
                for other in stages:
                    self._release(other)
                return False
            self._locks[stage.key] = held
        return True

    def _release(self, stage: Stage) -> None:
        if stage.key in self._locks:
            self._locks.pop(stage.key).close()

    def _announce(self, stages: Iterable[Stage]) -> None:
        for stage in stages:
            self._position += 1
            self.observers.tell("benchbd_stage_started", stage=stage, position=self._position, total=self._total)

    def _submit(self, stages: Sequence[Stage]) -> None:
        """Submit the stages together. Collect at once what the executor has finished by then."""
        started = time.perf_counter()
        submitted = attempt(self._handed, stages)
        if isinstance(submitted, Failure):
            self._finish(stages, started, submitted)
        elif submitted.done():
            self._finish(stages, started, attempt(self._result, submitted))
        else:
            self._submitted[submitted] = (stages, started)

    def _handed(self, stages: Sequence[Stage]) -> Future[Product | Failure]:
        """The executor's future for one handover of the stages. Any error here is their failure."""
        for stage in stages:
            stage.check_unchanged()
        handed = KINDS[stages[0].kind].hand_over(self.inputs, *stages)
        future = self.executor.submit(handed, partial(self._report, stages[0]))
        if not isinstance(future, Future) or future in self._given:
            told = "one that it has given" if isinstance(future, Future) else shown(future)
            raise PluginError(f"executor {self.executor.name}: submit() must return a new Future, not {told}")
        self._given.add(future)
        return future

    def _result(self, done: Future[Product | Failure]) -> Product | Failure:
        result = done.result()
        if not isinstance(result, Failure) and not (isinstance(result, Product) and result.cost):
            who = f"executor {self.executor.name}"
            raise PluginError(f"{who}: a future must hold what carry_out() returns, not {shown(result)}")
        return result

    def _report(self, stage: Stage, step: int, steps: int, loss: float | None) -> None:
        self.observers.tell("benchbd_stage_progress", stage=stage, step=step, steps=steps, loss=loss)

    def _collect(self) -> bool:
        """Wait until a submitted stage is done, and finish it. False if none was submitted."""
        done = wait(self._submitted, return_when=FIRST_COMPLETED).done
        for future in [each for each in self._submitted if each in done]:
            self._finish(*self._submitted.pop(future), attempt(self._result, future))
        return bool(done)

    def _finish(self, stages: Sequence[Stage], started: float, result: Product | Failure) -> None:
        """Commit a result. If several stages failed together, submit them one by one."""
        failure = self._commit(stages, result) if isinstance(result, Product) else result
        if failure is not None and len(stages) > 1:
            for stage in stages:
                self._submit([stage])
            return
        seconds = time.perf_counter() - started
        for stage in stages:
            if failure is None:
                self._tell_finished(stage, "computed", seconds)
            else:
                reason = self._explained(stage, failure)
                what = "" if stage.kind == "evaluate" else f"{stage.kind} {stage.method_name}: "
                self.results.failures[stage.key] = StageFailed(failure.status, what + reason)
                self._tell_finished(stage, failure.status, seconds, reason)
            self._release(stage)

    def _commit(self, stages: Sequence[Stage], product: Product) -> Failure | None:
        """Write the product to the store. Returns the reason if it is not accepted, else None. StoreError is raised: it
        is not the stage's fault."""
        outcomes = attempt(_outcomes, self.inputs, product, stages)
        if isinstance(outcomes, Failure):
            return outcomes
        share, spent = len(stages), product.cost
        cost = {name: round(spent[name] / share, 3) for name in ("seconds", "cpu_seconds")}
        cost["image_forwards"] = int(spent["image_forwards"]) // share
        for stage, outcome in zip(stages, outcomes, strict=True):
            meta = {
                "label": stage.label,
                "architecture": stage.architecture,
                "cost": cost,
                "notes": product.notes,
                "memory": product.memory,
                **provenance(stage, self.observers.registry, self.store, self.inputs, self.executor.name),
            }
            done = self.store.put(stage.key, outcome.blobs, identity=stage.identity, result=outcome.result, meta=meta)
            self.results.artifacts[stage.key] = done
        return None

    def _explained(self, stage: Stage, failure: Failure) -> str:
        """The failure in one line for the table; the traceback goes to a file that the line names."""
        if not failure.traceback:
            return failure.reason
        told = f"{stage.kind} {stage.label}\n\n{failure.traceback}"
        path = self.store.log(f"{stage.key[:12]}.log", told.encode("utf-8", "backslashreplace").decode("utf-8"))
        return f"{failure.reason} (traceback in {path.relative_to(self.store.root)} of the store)"

    def _tell_finished(self, stage: Stage, status: str, seconds: float = 0.0, message: str = "") -> None:
        self.observers.tell("benchbd_stage_finished", stage=stage, status=status, seconds=seconds, message=message)


def attempt(work: Callable[..., R], *arguments: Any) -> R | Failure:
    """The result of ``work``. An exception becomes a failure of its stage."""
    try:
        return work(*arguments)
    except BaseException as error:
        return failure_of(error)


def _outcomes(inputs: Inputs, product: Product, stages: Sequence[Stage]) -> list[Outcome]:
    """The outputs of the stages, if the product is accepted; the tensors that a method kept for pictures are one more
    file."""
    outcomes = KINDS[stages[0].kind].accept(inputs, product, *stages)
    kept = {KEPT: save(dict(product.kept))} if product.kept else {}
    return [Outcome({**outcome.blobs, **kept}, outcome.result) for outcome in outcomes]

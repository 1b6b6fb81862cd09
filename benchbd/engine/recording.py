"""From the outcomes of stages to records: one per cell and evaluator, one per inspection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchbd.base.content import without_paths
from benchbd.base.errors import BenchbdError
from benchbd.contract.axes import AXES
from benchbd.contract.evaluator import Predictions
from benchbd.engine.observers import Observers
from benchbd.engine.outcomes import Outcomes, StageFailed
from benchbd.engine.provenance import ISOLATION, machine
from benchbd.planning.cases import Case, Cell, Inspection
from benchbd.records.counts import baseline, by_head, metrics, summed
from benchbd.records.inspected import INSPECTED
from benchbd.records.models import CleanFeatures, Cost, Counts, Entry, Gain, Record, Status
from benchbd.records.predictions import pack
from benchbd.stages.base import Stage
from benchbd.stages.defend import CLEAN_FEATURES
from benchbd.stages.evaluate import read_predictions
from benchbd.stages.inputs import Inputs, draw_rows
from benchbd.store.store import Store

_WORKING = {axis.stage for axis in AXES if axis.inspects or axis.name == "defense"}
"""The kinds of stage whose seconds, clean images and budget a record reports."""


class Recorder:
    """Makes the records of one run from its board and the outcomes of its stages."""

    def __init__(
        self, board: str, author: str, store: Store, inputs: Inputs, results: Outcomes, observers: Observers
    ) -> None:
        self.board, self.author, self.store, self.inputs = board, author, store, inputs
        self.results, self.observers = results, observers

    def _counts(self, stage: Stage, target: int, predicted: Predictions | None = None) -> list[Counts]:
        """The counts behind the metrics of an evaluate stage, by head, or StageFailed. predicted: if they were read
        already."""
        if stage.key in self.results.failures:
            raise self.results.failures[stage.key]
        labels = self.inputs.images(stage.data["test"]).labels
        assert labels is not None
        return by_head(predicted or read_predictions(self.results.artifact(stage)), labels, target)

    def record(self, case: Case) -> Entry:
        """The record of a case, with or without a result."""
        gains: dict[str, Gain] = {}
        found: dict[str, Any] = {}
        status: Status = "ok"
        reason = ""
        try:
            for task, own, clean in zip(case.tasks, case.undefended, case.floors, strict=True):
                floor = summed(self._counts(clean, task.label))
                found |= {"baseline": baseline(floor), "baseline_counts": floor} if isinstance(case, Cell) else {}
                gains[str(task)] = Gain(counts=summed(self._counts(own, task.label)), baseline_counts=floor)
            if case.judged.key in self.results.failures:
                raise self.results.failures[case.judged.key]
        except StageFailed as failure:
            status, reason = failure.status, failure.reason
        told = {**self._entry(case), **found, "status": status, "reason": self._public(reason)}
        if isinstance(case, Cell):
            return self._cell(case, told, gains)
        assert isinstance(case, Inspection)
        inspected = self.results.artifacts[case.judged.key].result if status == "ok" else {}
        named = {case.axis: case.method, "tasks": [str(task) for task in case.tasks], "gains": gains}
        return INSPECTED[case.axis](**told, **named, **inspected)

    def _cell(self, cell: Cell, told: Mapping[str, Any], gains: Mapping[str, Gain]) -> Record:
        """The record of a cell, with its predictions if it has a result. told: the fields that all records have."""
        values: dict[str, Any] = {"undefended": metrics(gains[str(cell.task)].counts)} if gains else {}
        packed: bytes | None = None
        if told["status"] == "ok":
            predicted = read_predictions(self.results.artifact(cell.judged))
            heads = self._counts(cell.judged, cell.task.label, predicted)
            values |= {"counts": summed(heads), "metrics": metrics(summed(heads)), "heads": heads if heads[1:] else []}
            packed = pack(**{name: part.numpy() for name, part in vars(predicted).items() if part is not None})
            values["predictions"] = hashlib.sha256(packed).hexdigest()
        record = Record(
            **told,
            **values,
            **{name: getattr(cell, name) for name in ("defense", "defense_role")},
            task=cell.task.name,
            target=cell.task.label,
            target_name=cell.task.target,
            beside=[str(task) for task in cell.beside],
            reference=self._reference(cell),
            clean_features=self._clean_features(cell),
        )
        return record if packed is None else record.with_packed(packed)

    def _entry(self, case: Case) -> dict[str, Any]:
        """The fields that all records have. Seconds and clean images are those of the defense or of the inspection."""
        chain, done = (*case.chain, case.judged), self.results.artifacts
        names = names_of(chain)
        known = {names[stage.key]: done[stage.key].manifest for stage in chain if stage.key in done}
        cost = {name: Cost(**manifest["cost"], **manifest.get("memory", {})) for name, manifest in known.items()}
        here = {"machine": machine(self.inputs.device), "isolation": ISOLATION, "source": self.store.source}
        last = list(known.values())[-1] if known else here
        own = next((stage for stage in chain if stage.kind in _WORKING), None)
        rows = draw_rows(own.data["pool"].count, clean).tolist() if own and (clean := own.params.get("clean")) else []
        return {
            **{name: getattr(case, name) for name in ("attack", "attack_role", "pretrain", "seed", "evaluator")},
            "board": self.board,
            "on_board": not case.departures,
            "departures": list(case.departures),
            "point": dict(case.point),
            "key": chain[-1].key,
            "seconds": cost[own.kind].seconds if own and own.kind in cost else None if own else 0.0,
            "cost": cost,
            "stages": {name: manifest["key"] for name, manifest in known.items()},
            "identity": {names[stage.key]: stage.identity for stage in chain},
            "clean_images": rows,
            "notes": self._public([line for line in self._remarks(case, rows) if line and isinstance(line, str)]),
            "findings": {name: self._public(noted) for name, manifest in known.items() if (noted := manifest["notes"])},
            "plugins": {
                f"{name}.{part}" if part else name: origin
                for name, manifest in known.items()
                for part, origin in {"": manifest.get("plugin"), **manifest.get("parts", {})}.items()
                if origin
            },
            "precision": chain[-1].numerics["precision"],
            **{name: last.get(name) for name in here},
            "author": self.author,
        }

    def _public(self, told: Any) -> Any:
        """A text of a method or an error, without any folder of this machine, because records are published."""
        if isinstance(told, str):
            return without_paths(told, {self.store.root: "STORE", self.inputs.library.root: "DATA"})
        if isinstance(told, dict):
            return {self._public(name): self._public(value) for name, value in told.items()}
        return [self._public(value) for value in told] if isinstance(told, list) else told

    def _reference(self, case: Case) -> dict[str, Any]:
        """The findings of the reference stage of the cell's own task; empty if there is none."""
        keys = [stage.key for stage in case.chain if stage.kind == "reference"]
        return self.results.artifacts[keys[0]].result if keys and keys[0] in self.results.artifacts else {}

    def _clean_features(self, cell: Cell) -> CleanFeatures | None:
        """What the defender's images tell of the repair; None without one, and of one that was stored without it."""
        keys = [stage.key for stage in cell.chain if stage.kind == "defend" and stage.key in self.results.artifacts]
        told = self.results.artifacts[keys[0]].result.get(CLEAN_FEATURES) if keys else None
        return None if told is None else CleanFeatures(**told)

    def _remarks(self, case: Case, rows: Sequence[int]) -> Iterator[object]:
        """Remarks for the reader of the table: reference inputs that miss the target, a budget that shortens a defense
        or detector, the methods' own remarks, which may be of any type, and the clean images among ``rows`` of the pool
        that the attack stamped."""
        predicted = self._reference(case).get("predicted", [])
        missed = sum(each != case.tasks[0].label for each in predicted)
        if missed and isinstance(case, Cell):
            yield (
                f"{missed} of {len(predicted)} reference inputs are not classified as the target "
                f"{case.task.label} by the clean classifier; expect a low ASR"
            )
        known = [stage for stage in (*case.chain, case.judged) if stage.key in self.results.artifacts]
        yield from (self._shortened(stage) for stage in known if stage.kind in _WORKING)
        for artifact in (self.results.artifacts[stage.key] for stage in known):
            remarks = artifact.manifest["notes"].get("remarks")
            yield from remarks if isinstance(remarks, list) else []
            if rows and (stamped := artifact.kept.get("stamped_rows")) is not None:
                both = {*rows} & {*stamped.flatten().tolist()}
                yield f"{len(both)} of {len(rows)} clean images are originals of images that the attack stamped"

    def _shortened(self, stage: Stage) -> str | None:
        try:
            return stage.shortened()
        except BenchbdError as error:
            what = f"{error}; no remark tells whether its budget is cut"
            self.observers.complain(f"{stage.kind} {stage.method_name}:", what)
            return None


def names_of(chain: Sequence[Stage]) -> dict[str, str]:
    """A name for each stage of a chain: its kind, numbered if several have one kind (reference, reference2)."""
    names: dict[str, str] = {}
    for stage in chain:
        twins = sum(name.rstrip("0123456789") == stage.kind for name in names.values())
        names[stage.key] = stage.kind + (str(twins + 1) if twins else "")
    return names

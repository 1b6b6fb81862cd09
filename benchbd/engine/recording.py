"""From what came of the stages to records: one per cell and evaluator, one per inspection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from benchbd.base.content import without_paths
from benchbd.base.errors import BenchbdError
from benchbd.contract.evaluator import Predictions
from benchbd.data.library import DataLibrary
from benchbd.engine.observers import Observers
from benchbd.engine.outcomes import Outcomes, StageFailed
from benchbd.engine.provenance import ISOLATION, machine
from benchbd.engine.store import Store
from benchbd.planning.cases import Cell, Inspection
from benchbd.records.counts import baseline, count, metrics
from benchbd.records.models import GATE, Cost, Counts, DetectionRecord, Gain, Record, Status
from benchbd.records.predictions import pack
from benchbd.stages.base import Stage
from benchbd.stages.evaluate import read_predictions
from benchbd.stages.inputs import draw_rows


class Recorder:
    """Makes the records of one run: its board, and what came of its stages on which device."""

    def __init__(
        self,
        board: str,
        library: DataLibrary,
        store: Store,
        device: torch.device,
        results: Outcomes,
        observers: Observers,
        author: str,
    ) -> None:
        self.board, self.library, self.store, self.device = board, library, store, device
        self.results, self.observers, self.author = results, observers, author

    def _predicted(self, stage: Stage) -> Predictions:
        """What an evaluate stage predicted, or StageFailed."""
        if stage.key in self.results.failures:
            raise self.results.failures[stage.key]
        return read_predictions(self.results.artifact(stage))

    def _counts(self, stage: Stage, target: int, predicted: Predictions | None = None) -> Counts:
        """The counts behind the metrics of an evaluate stage, or StageFailed. predicted: if they were read already."""
        predicted = predicted or self._predicted(stage)
        ref = stage.data["test"]
        test = self.library.load(ref.name, ref.split, ref.size)
        assert test.labels is not None
        return count(predicted, test.labels, target)

    def record(self, cell: Cell) -> Record:
        values: dict[str, Any] = {}
        packed: bytes | None = None
        status: Status = "ok"
        reason = ""
        try:
            floor = self._counts(cell.floor, cell.task.label)
            values |= {"baseline": baseline(floor), "baseline_counts": floor}
            published = self._counts(cell.undefended, cell.task.label)
            values["undefended"] = undefended = metrics(published)
            predicted = self._predicted(cell.evaluate)
            own = self._counts(cell.evaluate, cell.task.label, predicted)
            certified = None if predicted.certified is None else predicted.certified.numpy()
            packed = pack(predicted.clean.numpy(), predicted.triggered.numpy(), certified)
            values |= {"metrics": metrics(own), "counts": own, "predictions": hashlib.sha256(packed).hexdigest()}
            gain = Gain(counts=published, baseline_counts=floor).points  # from counts: exact at the gate
            if cell.gated and gain < GATE:
                status = "attack-failed"
                reason = (
                    f"undefended ASR {undefended.asr_nontarget:.1f} is {gain:+.1f} points from the clean encoder's "
                    f"{values['baseline'].asr_b_nontarget:.1f}; an attack counts from {GATE:+.0f}"
                )
        except StageFailed as failure:
            status, reason = failure.status, failure.reason
        record = Record(
            defense=cell.defense,
            defense_role=cell.defense_role,
            task=cell.task.name,
            target=cell.task.label,
            target_name=cell.task.target,
            evaluator=cell.evaluator,
            reference=self._reference(cell),
            point=dict(cell.point),
            **self._entry(cell, (*cell.chain, cell.evaluate), "defend"),
            status=status,
            reason=self._public(reason),
            notes=self._public(self._missed_references(cell) + self._remarks((*cell.chain, cell.evaluate))),
            **values,
        )
        return record if packed is None else record.with_packed(packed)

    def detection_record(self, inspection: Inspection) -> DetectionRecord:
        chain = (*inspection.chain, inspection.detect)
        result: dict[str, Any] = {}
        status: Status = "ok"
        reason, gains = "", {}
        try:
            for task, own, clean in zip(inspection.tasks, inspection.undefended, inspection.floors, strict=True):
                counts = self._counts(own, task.label)
                gains[str(task)] = Gain(counts=counts, baseline_counts=self._counts(clean, task.label))
            if inspection.detect.key in self.results.failures:
                raise self.results.failures[inspection.detect.key]
            result = self.results.artifacts[inspection.detect.key].result
            most = max(gain.points for gain in gains.values())
            if inspection.gated and most < GATE:
                status = "attack-failed"
                reason = f"undefended ASR gains at most {most:+.1f} points; an attack counts from {GATE:+.0f}"
        except StageFailed as failure:
            status, reason = failure.status, failure.reason
        return DetectionRecord(
            detection=inspection.detection,
            evaluator=inspection.evaluator,
            tasks=[str(task) for task in inspection.tasks],
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
        known = {
            names[stage.key]: self.results.artifacts[stage.key].manifest
            for stage in chain
            if stage.key in self.results.artifacts
        }
        cost = {name: Cost(**manifest["cost"], **manifest.get("memory", {})) for name, manifest in known.items()}
        here = {"machine": machine(self.device), "isolation": ISOLATION, "source": self.store.source}
        last = list(known.values())[-1] if known else here
        worker = next((stage for stage in chain if stage.kind == kind), None)
        seconds = cost[kind].seconds if kind in cost else None
        return {
            "board": self.board,
            "on_board": not of.departures,
            "departures": list(of.departures),
            "attack": of.attack,
            "attack_role": of.attack_role,
            "pretrain": of.pretrain,
            "seed": of.seed,
            "key": chain[-1].key,
            "seconds": 0.0 if worker is None else seconds,
            "cost": cost,
            "stages": {name: manifest["key"] for name, manifest in known.items()},
            "identity": {names[stage.key]: stage.identity for stage in chain},
            "clean_images": draw_rows(worker.data["pool"].count, worker.params["clean"]).tolist() if worker else [],
            "findings": {name: self._public(noted) for name, manifest in known.items() if (noted := manifest["notes"])},
            "plugins": {name: plugin for name, manifest in known.items() if (plugin := manifest.get("plugin"))},
            "precision": chain[-1].numerics["precision"],
            **{name: last.get(name) for name in here},
            "author": self.author,
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
        return (
            self.results.artifacts[stage.key].result
            if stage is not None and stage.key in self.results.artifacts
            else {}
        )

    def _missed_references(self, cell: Cell) -> list[str]:
        reference = self._reference(cell)
        missed = sum(predicted != cell.task.label for predicted in reference.get("predicted", []))
        if not missed:
            return []
        return [
            f"{missed} of {len(reference['predicted'])} reference inputs are not classified as the target "
            f"{cell.task.label} by the clean classifier; expect a low ASR"
        ]

    def _remarks(self, chain: Iterable[Stage]) -> list[str]:
        """What a reader of the table must know of these stages: where a budget cuts a defense or detector, and what
        the methods themselves remarked."""
        known = [stage for stage in chain if stage.key in self.results.artifacts]
        lines = [self._shortened(stage) for stage in known if stage.kind in ("defend", "detect")]
        for stage in known:
            remarks = self.results.artifacts[stage.key].manifest["notes"].get("remarks")
            lines += remarks if isinstance(remarks, list) else []
        return [line for line in lines if line and isinstance(line, str)]

    def _shortened(self, stage: Stage) -> str | None:
        try:
            return stage.shortened()
        except BenchbdError as error:
            self.observers.complain(
                f"{stage.kind} {stage.method_name}:", f"{error}; no remark tells whether its budget is cut"
            )
            return None


def _names(chain: Sequence[Stage]) -> dict[str, str]:
    """A name for each stage of a chain: its kind, numbered where several are of one kind (reference, reference2)."""
    names: dict[str, str] = {}
    for stage in chain:
        twins = sum(name.rstrip("0123456789") == stage.kind for name in names.values())
        names[stage.key] = stage.kind + (str(twins + 1) if twins else "")
    return names

"""Tiers 2 and 3: compute a record again, and compare.

Tier 2 evaluates the stored encoder again, so that counts which were edited together with predictions fall. Tier 3 also
lets the method work again, once with the seed of the stage and once with a fresh one, so that a method which never ran
falls. All that it starts from is taken from the store. Each record has a process of its own: a method finds nothing
there that it left behind for another record.

Bits differ between CPUs and training amplifies them, so the verdict is one of three: ``equal`` counts; ``compatible``
figures, within the interval that heads and seeds give; else ``different``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from statistics import stdev
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch

from benchbd.audit.findings import Finding
from benchbd.audit.planned import PlannedBoard
from benchbd.base.errors import BenchbdError, says
from benchbd.base.seeds import derive_seed
from benchbd.data.library import DataLibrary
from benchbd.engine.runner import Runner
from benchbd.planning.board import load_board
from benchbd.planning.cases import Cell, Plan
from benchbd.records.counts import metrics
from benchbd.records.files import place_of, read_record
from benchbd.records.models import CleanFeatures, Counts, Record
from benchbd.registry import load_registry
from benchbd.report.statistics import t_975
from benchbd.stages.base import Stage, distinct
from benchbd.stages.defend import features_of
from benchbd.stages.inputs import Inputs
from benchbd.store.store import Store

Verdict = Literal["equal", "compatible", "different"]

LEAST = 2.0  # points that two evaluations of one encoder may always lie apart

APART = 0.01  # by which figures of clean images may differ between machines

_TIERS = {2: "the stored encoder", 3: "what the method makes"}


@dataclass(frozen=True)
class Bench:
    """Where records are computed again.

    board: its file. folder: that of the records. data_root, store: of the data, and of the stages to start from.
    device: in torch's notation.
    """

    board: Path
    folder: Path
    data_root: Path
    store: Path
    device: str = "cpu"

    @cached_property
    def _library(self) -> DataLibrary:
        return DataLibrary(load_registry().datasets(), self.data_root, self.store / "data")

    def case(self, record: Record) -> Cell:
        """The case of a record, with the data at hand. BenchbdError if the board has none, or the record has not its
        identity."""
        planned = PlannedBoard(load_board(self.board), load_registry(), self._library, [record])
        for fault in planned.faults(record):
            raise BenchbdError(fault)
        case = planned.case(record)
        assert isinstance(case, Cell)
        return case

    def compute(self, case: Cell, again: Iterable[Stage], scratch: Path) -> Record:
        """The record of a case, with these stages computed and all others from the store. scratch: an empty folder.

        BenchbdError if the store lacks one, or the case has no result.
        """
        known, fresh = Store(self.store, writable=False), Store(scratch)
        computed = {stage.key for stage in again}
        for stage in distinct(_with_parents(case.stages)):
            if stage.key in computed:
                continue
            if not known.has(stage.key):
                raise BenchbdError(f"the store has no {stage.kind} {stage.key[:12]}, to start from")
            place = fresh.folder(stage.key)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(known.folder(stage.key), place, target_is_directory=True)
        plan = Plan(load_board(self.board), [case])
        runner = Runner(plan, load_registry(), self._library, fresh, torch.device(self.device))
        (record,) = runner.run([case])
        assert isinstance(record, Record)
        if record.status != "ok":
            raise BenchbdError(f"{record.status}: {record.reason}")
        inputs = Inputs(self._library, runner.results.artifact, torch.device(self.device))
        for repair in (stage for stage in case.chain if stage.kind == "defend"):
            told = features_of(inputs, repair, inputs.encoder(repair))  # the store's result may not be the encoder's
            record = record.model_copy(update={"clean_features": told and CleanFeatures(**told)})
        return record


class Recomputed(NamedTuple):
    """What another computation gives: counts and counts by head, the image-forwards of the method's stage, and what
    clean images tell of its encoder."""

    counts: Counts
    heads: list[Counts]
    forwards: int | None
    features: CleanFeatures | None = None


class Told(NamedTuple):
    """The verdict on a record. text: its figures beside those of the record; why there are none if it is empty."""

    place: str
    verdict: Verdict | Literal["not checked"]
    text: str


def check(bench: Bench, records: Sequence[Record], tier: int) -> Iterable[Told]:
    """The verdict of a tier on each record that has a result."""
    for record in records:
        if record.counts is None or not record.on_board:
            continue
        found = _apart(bench, record, tier)
        if isinstance(found, str):
            yield Told(place_of(record), "not checked", found)
        else:
            yield _judged(record, found, tier)


def finding(told: Told, tier: int) -> Finding | None:
    """The finding that a verdict is; None unless the record is different."""
    return Finding(tier, told.place, told.text) if told.verdict == "different" else None


def _judged(record: Record, found: Mapping[str, Recomputed], tier: int) -> Told:
    same, own, claimed = found["same"], record.counts, record.cost.get("defend")
    assert own is not None
    if tier == 3 and claimed and same.forwards and not 0.95 <= claimed.image_forwards / same.forwards <= 1.05:
        text = f"cost.defend.image_forwards: {claimed.image_forwards}, but the method takes {same.forwards}"
        return Told(place_of(record), "different", text)
    if tier == 2 and (text := _of_features(record, same.features)):
        return Told(place_of(record), "different", text)
    if same.counts == own:
        return Told(place_of(record), "equal", "")
    apart: list[str] = []
    for name, field in (("ACC", "acc"), ("ASR non-target", "asr_nontarget")):
        values = [_percent(each.counts, field) for each in found.values()]
        heads = [_percent(head, field) for head in (same.heads or [same.counts])]
        chance = t_975(len(heads) - 1) * stdev(heads) if len(heads) > 1 else 0.0
        margin = max(LEAST, chance, 3 * (max(values) - min(values)))
        if not min(values) - margin <= _percent(own, field) <= max(values) + margin:
            told = " and ".join(f"{value:.1f}" for value in values)
            apart.append(f"{name} {_percent(own, field):.1f}, but {_TIERS[tier]} gives {told}")
    return Told(place_of(record), "different" if apart else "compatible", "; ".join(apart))


def _of_features(record: Record, found: CleanFeatures | None) -> str:
    """The first figure of clean images that the stored encoder does not have, in a line; empty if there is none. These
    figures choose among the trials of a defense. Of few images one may be told apart from the others by chance."""
    if record.clean_features is None or found is None:
        return ""
    margin = max(APART, 1 / max(1, len(record.clean_images)))
    for (field, told), (_, value) in zip(record.clean_features, found, strict=True):
        if abs(told - value) > margin:
            return f"clean_features.{field}: {told:.3f}, but {_TIERS[2]} gives {value:.3f}"
    return ""


def _percent(counts: Counts, field: str) -> float:
    return float(getattr(metrics(counts), field))


def _apart(bench: Bench, record: Record, tier: int) -> Mapping[str, Recomputed] | str:
    """What a process of its own computes; an error in one line."""
    context = get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_work, args=(bench, record.file, tier, answers))
    process.start()
    answer: Mapping[str, Recomputed] | str | None = None
    while answer is None:
        try:
            answer = answers.get(timeout=1.0)
        except Empty:
            if not process.is_alive():
                answer = f"the process ended with exit code {process.exitcode}"
    process.join()
    return answer


def _work(bench: Bench, file: str, tier: int, answers: Any) -> None:
    """Compute the record in ``file`` again: with its own seed and, in tier 3, with a fresh one as well."""
    try:
        record = read_record(bench.folder / file)
        case = bench.case(record)
        cases = {"same": case} if tier == 2 else {"same": case, "fresh": _reseeded(case)}
        found = {}
        for name, each in cases.items():
            again = [each.judged] if tier == 2 else [each.judged, each.judged.parents["encoder"]]
            with TemporaryDirectory() as scratch:
                made = bench.compute(each, again, Path(scratch))
            forwards = made.cost["defend"].image_forwards if "defend" in made.cost else None
            assert made.counts is not None
            found[name] = Recomputed(made.counts, made.heads, forwards, made.clean_features)
        answers.put(found)
    except BenchbdError as error:
        answers.put(says(error))


def _reseeded(case: Cell) -> Cell:
    """The case with another seed of its method and of its heads, on what the method started from."""
    worker = case.judged.parents["encoder"]
    fresh = replace(worker, seed=derive_seed(worker.seed, "fresh"))
    judged = replace(
        case.judged,
        seed=derive_seed(case.judged.seed, "fresh"),
        parents={role: fresh if parent is worker else parent for role, parent in case.judged.parents.items()},
    )
    chain = tuple(fresh if stage is worker else stage for stage in case.chain)
    return replace(case, chain=chain, judged=judged)


def _with_parents(stages: Iterable[Stage]) -> Iterable[Stage]:
    for stage in stages:
        yield from _with_parents(stage.parents.values())
        yield stage

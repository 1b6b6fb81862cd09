"""A board planned again, to compare records with: from its file, the pinned facts of its data, and today's plugins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from benchbd.base.errors import BenchbdError
from benchbd.contract.axes import AXIS, INSPECTING
from benchbd.contract.method import most_forwards
from benchbd.data.library import DataLibrary
from benchbd.data.pinned import PinnedLibrary, PinnedSplit, read_pinned
from benchbd.engine.recording import names_of
from benchbd.planning.board import Board
from benchbd.planning.cases import Case
from benchbd.planning.planner import make_plan
from benchbd.planning.selection import Selection
from benchbd.planning.sweeps import point_text
from benchbd.records.differences import first_difference
from benchbd.records.models import Entry, Inspected, Record
from benchbd.records.points import within
from benchbd.registry import Registry
from benchbd.stages.kinds import KINDS

_GRID = ("attack", "defense", "evaluator", *(axis.name for axis in INSPECTING))
"""The axes whose methods a record may add to a board's."""


class PlannedBoard:
    """The cases of a board, and of methods that records add to it, by place.

    library: the board's data, or the facts about them that are pinned beside it; None if there are neither.
    """

    def __init__(self, board: Board, registry: Registry, library: DataLibrary | None, records: Sequence[Entry]) -> None:
        self.board, self.registry, self.library, self.records = board, registry, library, records

    @classmethod
    def of_pins(cls, board: Board, registry: Registry, file: Path, records: Sequence[Entry]) -> PlannedBoard:
        """file: that of the pinned facts, which need not exist."""
        library = PinnedLibrary(registry.datasets(), read_pinned(file)) if file.is_file() else None
        return cls(board, registry, library, records)

    def labels(self, record: Record) -> Sequence[int] | None:
        """The labels of a record's test images; None if they are not pinned."""
        digest = within(record.identity, "evaluate", "data", "test")
        known = (split.labels for split in self._splits if split.digest == digest and split.split == "test")
        return next(known, None)

    def images(self, digest: str) -> int | None:
        """The number of images of a split; None if it is not pinned."""
        return next((split.count for split in self._splits if split.digest == digest), None)

    def faults(self, record: Entry) -> Iterator[str]:
        """The first difference between a record and the plan, as one line; none if the plan gives its identities.

        If methods of it are not installed, a line for each of them.
        """
        if self.library is None:
            return
        unknown = [(axis, name) for axis, name in sorted(record.methods) if name not in self.registry.names(axis)]
        for axis, name in unknown:
            origin = record.plugins.get(AXIS[axis].stage)
            where = f" (the record names {origin.distribution} {origin.version})" if origin else ""
            yield f"{name}: no installed plugin offers it{where}, so its stages cannot be planned again"
        if unknown:
            return
        case = self.case(record)
        if isinstance(case, str):
            yield case
            return
        for field, told in (("attack_role", case.attack_role), ("defense_role", getattr(case, "defense_role", None))):
            if told is not None and getattr(record, field) != told:
                yield f"{field}: {getattr(record, field)}, but it is {told}"
        chain = (*case.chain, case.judged)
        names = names_of(chain)
        for stage in chain:
            own, today = (
                within(each, "method", "version") for each in (record.identity.get(names[stage.key]), stage.identity)
            )
            if own is not None and own != today:
                yield f"stale: of version {own} of {stage.method_name}, which is {today} today"
                return
        for stage in chain:
            name = names[stage.key]
            if found := first_difference(record.identity.get(name), stage.identity):
                field = f"identity.{name}.{found.field}".removesuffix(".")
                yield f"{field}: {_short(found.one)}, but the board gives {_short(found.other)}"
                return
        for stage in chain:
            estimate, cost = KINDS[stage.kind].forwards(stage), record.cost.get(names[stage.key])
            if estimate and cost and stage.kind != "evaluate":  # heads may share features
                taken, most = cost.image_forwards, most_forwards(estimate)
                if taken > most:
                    told = f"but the estimate of {stage.method_name} allows at most {most}"
                    yield f"cost.{names[stage.key]}.image_forwards: {taken}, {told}"
        if more := sorted(record.identity.keys() - {*names.values()}):
            yield f"identity.{more[0]}: a stage that the board does not have here"

    def case(self, record: Entry) -> Case | str:
        """The case of a record's place, or why there is none, in one line."""
        cases = self._cases.get(str(record.precision or "fp32"), {})
        if isinstance(cases, str):
            return cases
        place = _place_of_record(record)
        return cases.get(place) or f"the board has no such place: {', '.join(map(str, filter(None, place)))}"

    @property
    def _splits(self) -> Sequence[PinnedSplit]:
        return self.library.pinned.splits if isinstance(self.library, PinnedLibrary) else ()

    @cached_property
    def _cases(self) -> Mapping[str, Mapping[object, Case] | str]:
        """The cases by precision and place; the error in one line if they cannot be planned."""
        return {each: self._planned(each) for each in sorted({str(r.precision or "fp32") for r in self.records})}

    def _planned(self, precision: str) -> Mapping[object, Case] | str:
        assert self.library is not None
        more = {axis: self._with_added(axis) for axis in _GRID}
        selections = [Selection(precision=precision)]
        selections += [Selection(more, only=True, precision=precision)] * any(more.values())
        try:
            plans = [make_plan(self.board, each, self.registry, self.library, strict=False) for each in selections]
        except BenchbdError as error:
            return f"the board cannot be planned again: {error}"
        return {_place_of_case(case): case for plan in reversed(plans) for case in plan.cases}

    def _with_added(self, axis: str) -> tuple[str, ...]:
        """The board's methods of an axis with those that records add; empty if they add none."""
        named = {name for record in self.records if record.on_board for a, name in record.methods if a == axis}
        added = sorted((named - {*self.board.names(axis)}) & {*self.registry.names(axis)})
        return (*self.board.names(axis), *added) if added else ()


def _place_of_record(record: Entry) -> tuple[object, ...]:
    place = record.attack, record.pretrain, record.seed, point_text(record.point)
    if isinstance(record, Record):
        task = f"{record.task}:{record.target}"
        return *place, record.defense, task, record.evaluator, " + ".join(record.beside)
    assert isinstance(record, Inspected)
    return *place, record.axis, record.method, " + ".join(record.tasks)


def _place_of_case(case: Case) -> tuple[object, ...]:
    place = case.attack, case.pretrain, case.seed, point_text(case.point)
    tasks = [str(task) for task in case.tasks]
    if (defense := getattr(case, "defense", None)) is not None:
        return *place, defense, tasks[0], case.evaluator, " + ".join(map(str, getattr(case, "beside", ())))
    return *place, getattr(case, "axis", ""), getattr(case, "method", ""), " + ".join(tasks)


def _short(value: Any) -> str:
    """A value of an identity; a digest or key by its first twelve digits."""
    text = str(value)
    return text[:12] if len(text) == 64 and not text.strip("0123456789abcdef") else repr(value)

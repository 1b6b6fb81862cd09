"""The Python API: the commands as functions. ``benchbd.plan``, ``run``, ``detect``, ``load_encoder``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch

from benchbd.base.arguments import seed_of
from benchbd.base.content import short_digests
from benchbd.base.device import PRECISIONS, Precision, pick_device, pick_precision
from benchbd.base.errors import StoreError, UsageError, counted, did_you_mean, shown
from benchbd.contract.axes import AXIS, GRID
from benchbd.contract.handover import INLINE
from benchbd.contract.roles import Role
from benchbd.data.library import DataLibrary, find_data_root
from benchbd.engine.executors import executor_called
from benchbd.engine.runner import Runner
from benchbd.nets.encoder import Encoder
from benchbd.planning.board import DEFAULT, Board, load_board
from benchbd.planning.cases import Case, Plan
from benchbd.planning.planner import make_plan
from benchbd.planning.selection import Selection
from benchbd.published import fill, missing, published_encoder
from benchbd.records.detection import DetectionRecord
from benchbd.records.files import write_records
from benchbd.records.models import LONGEST_AUTHOR, Entry, Inspected, Record
from benchbd.records.places import records_folder
from benchbd.registry import Registry, load_registry
from benchbd.stages.base import ENCODER
from benchbd.store.store import Store, find_root

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("benchbd")

Names = str | Sequence[str]

Seeds = int | Sequence[int]


@dataclass(frozen=True)
class Session:
    """The board, plugins, data and device that a command works with."""

    board: Board
    registry: Registry
    library: DataLibrary
    store: Path
    device: torch.device
    selection: Selection
    author: str = ""
    executor: str = INLINE
    published: bool = False

    @classmethod
    def open(
        cls,
        board: str | Path = DEFAULT,
        selection: Selection | None = None,
        *,
        data_root: str | Path | None = None,
        store: str | Path | None = None,
        device: str | None = None,
        download: bool = False,
        registry: Registry | None = None,
        by: str | None = None,
        executor: str | None = None,
        encoder: str | Path | None = None,
        published: bool = False,
    ) -> Session:
        """by: name for the records; by default ``BENCHBD_AUTHOR``. executor: where stages are computed;
        by default in this process. encoder: file of an encoder that takes its place on the board. published: whether
        to take encoders that are published with the board instead of computing them."""
        author = checked_author(os.environ.get("BENCHBD_AUTHOR", "") if by is None else by)
        registry = registry or load_registry()
        root = find_root(store)
        selection = selection or Selection()
        if encoder is not None:
            selection = with_encoder(selection, registry, Path(encoder))
        library = DataLibrary(registry.datasets(), find_data_root(data_root), root / "data", download)
        session = cls(
            load_board(board),
            registry,
            library,
            root,
            pick_device(device),
            selection,
            author,
            executor or INLINE,
            published,
        )
        session._precision()  # before anything is written
        return session

    def _precision(self) -> tuple[Precision, str]:
        """The precision of the run and the board's; UsageError for one that the device does not have."""
        board, asked = self.board.precision, self.selection.precision or "auto"
        precision = pick_precision(board if asked == "auto" else asked, self.device)
        return precision, pick_precision("auto", self.device) if board == "auto" else board

    def plan(self, *, strict: bool) -> Plan:
        """The cells and stages; strict: see ``make_plan``."""
        precision, theirs = self._precision()
        departed = () if precision == theirs else (f"precision={precision} (the board's: {theirs})",)
        selection = replace(self.selection, precision=precision, departed=departed)
        return make_plan(self.board, selection, self.registry, self.library, strict=strict)

    @cached_property
    def _runner(self) -> Runner:
        store = Store(self.store)  # first: the error of a store that cannot be written comes before data are decoded
        plan = self.plan(strict=True)
        self._take_published(store, plan)
        # Read all data now: a cached digest that does not match the images would be a wrong identity.
        # Labels of test images are needed for the counts of stages that the store already has.
        needed = {
            (ref.name, ref.split, ref.size, ref.digest)
            for stage in plan.stages
            for ref in stage.data.values()
            if ref.split == "test" or not store.has(stage.key)
        }
        if not self.library.holds(sorted(needed)):
            plan = self.plan(strict=True)
        executor = executor_called(self.executor, self.registry, self.device)
        return Runner(plan, self.registry, self.library, store, self.device, self.author, executor)

    def _take_published(self, store: Store, plan: Plan) -> None:
        """Put the published encoders of the plan into the store, or tell that there are some."""
        folder = self.board.folder
        spared = missing(store, folder, plan.stages) if folder else []
        if spared and self.published:
            fill(store, spared)
            log.info("%s of board %s: as published, not computed", counted(len(spared), "encoder"), self.board.name)
        elif spared:
            log.info("%s could be taken as published: --published", counted(len(spared), "encoder"))

    def _carry_out(self, cases: Iterable[Case]) -> Iterator[Entry]:
        """Compute the cases; every record is written to the store as soon as it exists."""
        for record in self._runner.run(list(cases)):
            write_records([record], records_folder(self.store, self.board.name))
            yield record

    def run(self) -> list[Record]:
        """Compute the cells of the plan, write their records to the store and return them."""
        return [record for record in self._carry_out(self._runner.plan.cells) if isinstance(record, Record)]

    def is_context(self, record: Record) -> bool:
        """Whether a record of ``run`` was not requested, but is computed for comparison."""
        pair = record.attack, record.defense
        return any(cell.context and (cell.attack, cell.defense) == pair for cell in self._runner.plan.cells)

    def inspect(self, *axes: str) -> list[Inspected]:
        """Inspect every encoder of the plan with the board's methods of ``axes``, by default of all axes that inspect;
        the records are written to the store too."""
        cases = (case for case in self._runner.plan.inspections if case.axis in (axes or AXIS))
        return [record for record in self._carry_out(cases) if isinstance(record, Inspected)]


def with_encoder(selection: Selection, registry: Registry, file: Path) -> Selection:
    """The selection with the encoder in a file: as the result of the attack of role FILE if that is selected, else in
    place of the pre-training, without an attack.

    UsageError if another attack is selected, or a pre-training method that the encoder would replace.
    """
    attack, pretraining, floor = (
        registry.first_of_role(axis, role)
        for axis, role in (("attack", Role.FILE), ("pretraining", Role.FILE), ("attack", Role.FLOOR))
    )
    asked = selection.names("attack")
    for other in [name for name in asked if name not in (attack, floor)]:
        raise UsageError(
            f"encoder {shown(str(file))}: it is not attacked again, by {other}: select no attack, or {attack} if the "
            "board's trigger is that of its backdoor"
        )
    axis, name, methods = "attack", attack, dict(selection.methods)
    if attack not in asked:
        if replaced := selection.names("pretraining"):
            raise UsageError(f"encoder {shown(str(file))}: it takes the place of {replaced[0]}: select no pre-training")
        axis, name, methods = "pretraining", pretraining, {**methods, "pretraining": (pretraining,), "attack": (floor,)}
    option = f"{axis}:{name}.file={json.dumps(str(file))}"
    return replace(selection, methods=methods, options=(*selection.options, option))


def checked_author(name: str) -> str:
    """The name as records contain it; UsageError unless it is one line of at most 100 characters."""
    name = name.strip()
    if len(name) > LONGEST_AUTHOR or not name.isprintable():
        raise UsageError(f"author {shown(name)}: a name is one line of at most {LONGEST_AUTHOR} characters")
    return name


class Request(TypedDict, total=False):
    """What ``plan``, ``run`` and ``detect`` take besides the board: the names of the command line's options.

    An argument that allows several takes one name or a list; omitted ones default to the board's. Type checkers
    read this list; at run time every axis that a board crosses is an argument.
    """

    attack: Names
    defense: Names
    only: bool
    detection: Names
    pretraining: str | None
    pretrain: str | None
    encoder: str | Path | None
    task: Names
    seed: Seeds
    evaluator: Names
    option: Names
    sweep: Names
    data_root: str | Path | None
    store: str | Path | None
    device: str | None
    precision: str | None


class Work(Request, total=False):
    """What ``run`` and ``detect`` take besides."""

    download: bool
    by: str | None
    executor: str | None
    published: bool


def _open(function: str, takes: type[Any], board: str | Path, request: Mapping[str, Any]) -> Session:
    """The session of a request. UsageError, with the nearest name, for an argument that the function does not take."""
    known = ["board", *sorted({*takes.__required_keys__, *takes.__optional_keys__, *(axis.name for axis in GRID)})]
    for name in request:
        if name not in known:
            near = did_you_mean(name, known) or f"it takes {', '.join(known)}"
            raise UsageError(f"{function}() has no argument {shown(name)}; {near}")
    for name, value in {"board": board, **request}.items():
        kinds, words = _KINDS.get(name, ((object,), ""))
        if not isinstance(value, kinds):
            raise UsageError(f"{name} {shown(value)}: must be {words}")
    return _session(board, request)


_NAME = (str, NoneType), "a name"

_PATH = (str, os.PathLike, NoneType), "a path"

_FLAG = (bool,), "True or False"

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "board": ((str, os.PathLike), "a name or a path"),
    **dict.fromkeys(("pretrain", *(axis.name for axis in GRID if not axis.several), "by", "executor"), _NAME),
    **dict.fromkeys(("data_root", "store", "encoder"), _PATH),
    **dict.fromkeys(("only", "download", "published"), _FLAG),
    "precision": ((str, NoneType), f"one of {', '.join(PRECISIONS)}"),
    "device": ((str, torch.device, NoneType), "the name of a device, such as 'cpu' or 'cuda:0'"),
}
"""The types that count as a single value of an argument, and their names for messages."""


def _session(board: str | Path, request: Mapping[str, Any]) -> Session:
    asked = {axis: request.get(axis.name, ()) for axis in GRID}
    methods = {  # an axis with a single method may be None, which means the board's
        axis.name: _several(axis.name, names) for axis, names in asked.items() if axis.several or names is not None
    }
    selection = Selection(
        methods,
        pretrain=request.get("pretrain"),
        tasks=_several("task", request.get("task", ())),
        seeds=_seeds(request.get("seed", ())),
        options=_several("option", request.get("option", ())),
        only=request.get("only", False),
        sweeps=_several("sweep", request.get("sweep", ())),
        precision=request.get("precision"),
    )
    places = {
        name: request[name]
        for name in ("data_root", "store", "device", "encoder", "download", "by", "executor", "published")
        if name in request
    }
    return Session.open(board, selection, **places)


def _several(argument: str, value: object) -> tuple[str, ...]:
    """A single value becomes a list with one element: "ft" is no list of letters. UsageError for another type."""
    values = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if isinstance(value, Mapping) or not all(isinstance(each, str) for each in values):
        example = "ft.lr=0.01" if argument == "option" else "shapes:3" if argument == "task" else "none"
        raise UsageError(f"{argument} {shown(value)}: must be text or a list of it, such as {argument}={example!r}")
    return tuple(map(str, values))


def _seeds(value: object) -> tuple[int, ...]:
    """One seed or several; UsageError if one is not a whole number from 0 on."""
    seeds = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    return tuple(seed_of(seed, ", such as seed=1 or seed=[1, 2]") for seed in seeds)


def plan(board: str | Path = DEFAULT, **request: Unpack[Request]) -> Plan:
    """The stages that ``run`` with the same arguments would compute. Absent data give provisional keys."""
    return _open("plan", Request, board, request).plan(strict=False)


def run(board: str | Path = DEFAULT, **request: Unpack[Work]) -> pd.DataFrame:
    """Compute every cell and return one row per record (``benchbd.report.leaderboard.frame``).

    If defenses are requested, rows for the undefended encoder, the floor, ``scratch`` and ``bn`` are added, with
    ``context`` True; ``only=True`` leaves them out.
    """
    from benchbd.report.leaderboard import frame

    session = _open("run", Work, board, request)
    records = session.run()
    return frame(records, session.board.gates).assign(context=[session.is_context(record) for record in records])


def detect(board: str | Path = DEFAULT, **request: Unpack[Work]) -> pd.DataFrame:
    """Inspect every encoder with the detectors and return one row per verdict (``benchbd.report.detection.frame``).

    UsageError if neither the board nor the request names a detector.
    """
    from benchbd.report.detection import frame

    session = _open("detect", Work, board, request)
    if not (session.selection.names("detection") or session.board.names("detection")):
        raise UsageError(f"board {session.board.name} has no detectors: name one, as in detection='decree'")
    found = [record for record in session.inspect("detection") if isinstance(record, DetectionRecord)]
    return frame(found, session.board.gates)


def load_encoder(key: str, *, store: str | Path | None = None, device: str | None = None) -> Encoder:
    """The encoder of a pretrain, attack or defend stage, by its key or the start of it (as records contain it); or a
    published one by name, BOARD/ATTACK/sSEED (see ``published_encoder``)."""
    root = find_root(store)
    if not isinstance(key, str):
        raise UsageError(f"key {shown(key)}: must be text, as records print it")
    if "/" in key:
        return Encoder.from_bytes(published_encoder(key), pick_device(device))
    try:
        found = [path for path in root.glob("stages/*/*") if path.name.startswith(key) and (path / ENCODER).is_file()]
    except OSError as error:
        raise StoreError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from error
    if not found:
        told = f"no encoder with key {short_digests(shown(key))} in the store {root}"
        raise UsageError(f"{told}: name its store with --store (in Python store=), or run its board")
    if len(found) > 1:
        raise UsageError(f"{len(found)} encoders in {root} have a key that starts with {shown(key)}; give more of it")
    artifact = Store(root, writable=False).get(found[0].name)
    if artifact is None:
        raise StoreError(f"stage {key} is damaged; run its board again")
    return Encoder.load(artifact.blob(ENCODER), pick_device(device))

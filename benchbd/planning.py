"""From a board and what was asked for to cells, and from cells to the stages that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

from benchbd.board import Board, ReferenceSpec, Row, TriggerSpec, resolve_target, split_task
from benchbd.data import DataLibrary, SplitInfo
from benchbd.errors import DataAbsentError, DataError, UnknownNameError, UsageError
from benchbd.images import Trigger, content_digest, load_references
from benchbd.methods import Attack, Evaluator, Method, Mitigation, Pretraining
from benchbd.options import Options, build, merge, parse_options
from benchbd.plugins import AXES, Registry
from benchbd.stages import DataRef, Stage, distinct
from benchbd.training import derive_seed

SECTIONS = ("trigger", "reference", "budget")  # parts of the protocol that -o reaches like methods


@dataclass(frozen=True)
class Selection:
    """What a user asked for; empty means the board's own."""

    attacks: Sequence[str] = ()
    defenses: Sequence[str] = ()
    pretrain: str | None = None
    tasks: Sequence[str] = ()
    seeds: Sequence[int] = ()
    evaluators: Sequence[str] = ()
    options: Sequence[str] = ()


class Goal(NamedTuple):
    """A task with its target class, index and name."""

    task: str
    label: int
    name: str

    def __str__(self) -> str:
        return f"{self.task}:{self.label}"


@dataclass(frozen=True, eq=False)
class Cell:
    """One entry of the grid, with every stage that it needs.

    chain: the stages that lead to its encoder, in order. evaluate: its own evaluation; undefended and floor: those of
    the attacked encoder as published and of the clean encoder, under the same task, evaluator and seed.
    """

    attack: str
    defense: str
    pretrain: str
    goal: Goal
    seed: int
    evaluator: str
    chain: tuple[Stage, ...]
    evaluate: Stage
    undefended: Stage
    floor: Stage

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.chain, self.evaluate, self.undefended, self.floor)


@dataclass
class Plan:
    """Cells in the order of the board; departures: in what the run differs from the board (empty: on-board)."""

    board: Board
    cells: list[Cell]
    departures: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[Stage]:
        return distinct(stage for cell in self.cells for stage in cell.stages)

    def blocks(self) -> list[list[Cell]]:
        """Cells that share a pre-training set, tasks and seed: what is computed together before the next ones."""
        blocks: dict[tuple[str, str, int], list[Cell]] = {}
        for cell in self.cells:
            blocks.setdefault((cell.pretrain, cell.goal.task, cell.seed), []).append(cell)
        return list(blocks.values())


def make_plan(
    board: Board,
    selection: Selection,
    registry: Registry,
    library: DataLibrary,
    *,
    precision: Literal["fp32", "bf16"],
    strict: bool = True,
) -> Plan:
    """Resolve names, options, targets and data. Nothing is computed.

    strict: raise DataAbsentError where a data set is absent; otherwise its stages get provisional keys.
    """
    return _Planner(board, selection, registry, library, precision, strict).plan()


class _Planner:
    def __init__(
        self,
        board: Board,
        selection: Selection,
        registry: Registry,
        library: DataLibrary,
        precision: Literal["fp32", "bf16"],
        strict: bool,
    ) -> None:
        self.board, self.selection, self.registry, self.library, self.strict = (
            board,
            selection,
            registry,
            library,
            strict,
        )
        self.numerics = {"precision": precision, "tf32": precision == "bf16"}
        self.departures: list[str] = []
        self.infos: dict[tuple[str, str], SplitInfo] = {}
        self.asked = parse_options(selection.options)
        self.used: set[str] = set()
        self.trigger_spec = self._section("trigger", board.trigger)
        self.reference_spec = self._section("reference", board.reference)
        self.budget = self._section("budget", board.budget)

    # What was asked for ------------------------------------------------------------------------------------------

    def _section(self, name: str, default: Any) -> Any:
        """A part of the protocol with the user's changes."""
        changes = self.asked.get(name, {})
        self.used.update({name} if changes else ())
        value = build(type(default), {**default.model_dump(), **changes}, name)
        self._compare(name, default.model_dump(), value.model_dump())
        return value

    def _methods(self, axis: str, names: Sequence[str]) -> list[Method]:
        return [self._method(axis, name) for name in dict.fromkeys(names)]

    def _method(self, axis: str, name: str) -> Method:
        """A method with the board's options and the user's on top."""
        cls = self.registry.get(axis, name)
        budget = {} if axis != "defense" else self._budgeted(cls, self.board.budget.model_dump())
        own = [budget, *_named(self.board.method_options(), axis, name)]
        asked = _named(self.asked, axis, name)
        if asked[0] and len(self.registry.find(name)) > 1:
            raise UsageError(f"option {name}.{next(iter(asked[0]))}: {name!r} stands on two axes; write {axis}:{name}.")
        self.used.update(key for key in (name, f"{axis}:{name}") if key in self.asked)
        ours = build(cls, merge(*({name: t} for t in own)).get(name, {}), name)
        if axis == "defense":
            asked = [self._budgeted(cls, self.budget.model_dump()) if "budget" in self.asked else {}, *asked]
        theirs = build(cls, merge(*({name: t} for t in (*own, *asked))).get(name, {}), name)
        self._compare(name, ours.model_dump(), theirs.model_dump())
        return theirs

    @staticmethod
    def _budgeted(cls: type[Method], budget: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in budget.items() if v is not None and k in cls.model_fields}

    def _compare(self, name: str, board: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        for option, value in run.items():
            if value != board[option]:
                text = f"{name}.{option}={value} (the board's: {board[option]})"
                if text not in self.departures:
                    self.departures.append(text)

    def _rows(self) -> list[Row]:
        """The board's rows, narrowed or changed by --pretrain and --task."""
        rows, pretrain = list(self.board.rows), self.selection.pretrain
        if pretrain is not None and any(row.pretrain == pretrain for row in rows):
            rows = [row for row in rows if row.pretrain == pretrain]
        elif pretrain is not None:
            self.departures.append(f"pre-training set {pretrain}")
            tasks = dict.fromkeys(row.tasks for row in rows)
            rows = [Row(pretrain=pretrain, tasks=t) for t in tasks]
        if not self.selection.tasks:
            return rows
        chosen: list[Row] = []
        for wanted in self.selection.tasks:
            name, target = split_task(wanted)
            matching = [row for row in rows if any(split_task(task)[0] == name for task in row.tasks)]
            if target is None and not matching:
                known = ", ".join(dict.fromkeys(task for row in self.board.rows for task in row.tasks))
                raise UsageError(
                    f"task {name!r} is not of board {self.board.name} (which has {known}): "
                    f"give its target, as in {name}:3"
                )
            if target is None:
                chosen += [row for row in matching if row not in chosen]
                continue
            for set_name in dict.fromkeys(row.pretrain for row in rows):
                row = Row(pretrain=set_name, tasks=(wanted,))
                chosen += [row] if row not in chosen else []
        return chosen

    # Data --------------------------------------------------------------------------------------------------------

    def _info(self, name: str, split: str) -> SplitInfo:
        if (name, split) not in self.infos:
            try:
                info = self.library.info(name, split)
            except DataAbsentError:
                if self.strict:
                    raise
                count = self._official_count(name, split)
                info = SplitInfo(f"absent:{name}:{split}", count, 32, (), (), (0.5,) * 3, (0.25,) * 3)
            self.infos[name, split] = info
            self._pin(name, split, info)
        return self.infos[name, split]

    def _official_count(self, name: str, split: str) -> int:
        """How many images an absent split will have, for the estimate of cost; 0 where nobody knows."""
        dataset = self.library.datasets.get(name)
        splits = dataset.splits if dataset is not None else {}
        wanted = ("train", "unlabeled") if split == "pool" else (split,)
        return sum(splits.get(part, 0) for part in wanted)

    def _pin(self, name: str, split: str, info: SplitInfo) -> None:
        pinned = getattr(self.board.data.get(name), split, None)
        actual = info.count if isinstance(pinned, int) else info.digest
        if pinned is not None and actual != pinned and not info.digest.startswith("absent:"):
            self.departures.append(f"{name} {split} is {actual}, the board pins {pinned}")

    def _ref(self, name: str, split: str) -> DataRef:
        info = self._info(name, split)
        return DataRef(name, split, info.digest, info.count)

    def _goal(self, text: str) -> Goal:
        name, target = split_task(text)
        if target is None:
            raise UsageError(f"task {text!r} has no target class: write {text}:TARGET, an index or a class name")
        train, test = self._info(name, "train"), self._info(name, "test")
        if train.digest.startswith("absent:"):
            return Goal(name, int(target) if target.isdigit() else -1, target)
        if train.size != test.size:
            raise DataError(f"task {name}: train images are {train.size} pixels wide, test images {test.size}")
        label, label_name = resolve_target(name, target, train.classes, len(train.histogram))
        if not train.histogram[label]:
            raise UsageError(f"task {name}: no training image of target class {label} ({label_name})")
        if test.count and sum(test.histogram) == sum(test.histogram[label : label + 1]):
            raise UsageError(f"task {name}: every test image is of target class {label} ({label_name})")
        return Goal(name, label, label_name)

    # Stages ------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        selection, board = self.selection, self.board
        self.pretraining = cast(Pretraining, self._method("pretraining", board.pretraining))
        attacks = [cast(Attack, m) for m in self._methods("attack", selection.attacks or board.attacks)]
        defenses = [cast(Mitigation, m) for m in self._methods("defense", selection.defenses or board.defenses)]
        evaluators = [cast(Evaluator, m) for m in self._methods("evaluator", selection.evaluators or board.evaluators)]
        self._reject_unknown(board.options)
        self._reject_unused()
        cells: list[Cell] = []
        for row in self._rows():
            cells += self._row_cells(row, attacks, defenses, evaluators)
        for seed in sorted(set(selection.seeds) - set(board.seeds)):
            self.departures.append(f"seed {seed}")
        return Plan(board, cells, self.departures)

    def _reject_unknown(self, names: Iterable[str]) -> None:
        """UnknownNameError where a table of options speaks of a method that nobody registered."""
        for name in names:
            axis, _, bare = name.rpartition(":")
            if axis and axis not in AXES:
                raise UnknownNameError("axis", axis, AXES)
            (self.registry.get(axis, bare) if axis else self.registry.find(bare))

    def _reject_unused(self) -> None:
        unused = [name for name in self.asked if name not in self.used]
        self._reject_unknown(name for name in unused if name not in SECTIONS)
        for name in unused:
            raise UsageError(f"option {name}.{next(iter(self.asked[name]))}: {name} takes no part in this run")

    def _row_cells(
        self, row: Row, attacks: Sequence[Attack], defenses: Sequence[Mitigation], evaluators: Sequence[Evaluator]
    ) -> list[Cell]:
        goals = [self._goal(task) for task in row.tasks]
        declared = {task for other in self.board.rows if other.pretrain == row.pretrain for task in other.tasks}
        for task, goal in zip(row.tasks, goals, strict=True):
            if task not in declared and str(goal) not in {
                str(self._goal(t)) for t in declared if split_task(t)[0] == goal.task
            }:
                self.departures.append(f"task {row.pretrain} -> {goal}")
        trigger = self._trigger(self._info(row.pretrain, "pool").size)
        cells = []
        wanted = [(d, s) for d in defenses for s in dict.fromkeys(self.selection.seeds or self.board.seeds_of(d.name))]
        for seed in dict.fromkeys(seed for _, seed in wanted):
            pretrain = self._pretrain(row.pretrain, seed)
            for attack in attacks:
                published = self._attack(attack, row, goals, seed, pretrain, trigger)
                for defense in [d for d, s in wanted if s == seed]:
                    repaired = self._defend(defense, row, seed, pretrain, published)
                    for goal in goals:
                        for evaluator in evaluators:
                            judge = (evaluator, goal, seed, trigger)
                            chain = dict.fromkeys((pretrain, *published.parents.values(), published, repaired))
                            cells.append(
                                Cell(
                                    attack.name,
                                    defense.name,
                                    row.pretrain,
                                    goal,
                                    seed,
                                    evaluator.name,
                                    chain=tuple(chain),
                                    evaluate=self._evaluate(repaired, *judge),
                                    undefended=self._evaluate(published, *judge),
                                    floor=self._evaluate(pretrain, *judge),
                                )
                            )
        return cells

    def _trigger(self, image_size: int) -> Trigger:
        spec: TriggerSpec = self.trigger_spec
        trigger = Trigger.load(spec.file) if spec.file is not None else Trigger.square(spec.size, image_size)
        if trigger.size != image_size:
            raise UsageError(
                f"the trigger is for {trigger.size}x{trigger.size} images, these are {image_size}x{image_size}"
            )
        return trigger

    def _pretrain(self, name: str, seed: int) -> Stage:
        seed = seed if self.board.pretrain_seed is None else self.board.pretrain_seed
        return Stage(
            "pretrain",
            f"{self.pretraining.name} on {name} seed {seed}",
            self.pretraining,
            derive_seed(seed, "pretrain"),
            data={"pool": self._ref(name, "pool")},
            params={"normalization": [list(v) for v in (self._info(name, "pool").mean, self._info(name, "pool").std)]},
            parents={},
            numerics=self.numerics,
        )

    def _reference(self, goal: Goal, seed: int, pretrain: Stage) -> Stage:
        spec: ReferenceSpec = self.reference_spec
        params: dict[str, Any] = {"target": goal.label, "count": spec.count, "file": None}
        attachments = {}
        if spec.file is not None:
            pixels = load_references(spec.file, goal.label, self._info(goal.task, "train").size)
            params |= {"file": content_digest(pixels, None, ()), "count": len(pixels)}
            attachments["references"] = pixels
        return Stage(
            "reference",
            f"{goal} on {pretrain.data['pool'].name} seed {seed}",
            spec.model_copy(update={"file": None}),  # a file is identified by what is in it
            derive_seed(seed, "reference"),
            data={"train": self._ref(goal.task, "train")},
            params=params,
            parents={"encoder": pretrain},
            numerics=self.numerics,
            attachments=attachments,
        )

    def _attack(
        self, attack: Attack, row: Row, goals: Sequence[Goal], seed: int, pretrain: Stage, trigger: Trigger
    ) -> Stage:
        if attack.passthrough:
            return pretrain
        targets = [
            {"data": self._info(g.task, "train").digest, "label": g.label, "trigger": trigger.digest} for g in goals
        ]
        count = self.board.shadow_images  # a smaller pool is the shadow set, whole
        pool = self._ref(row.pretrain, "pool")
        shadow = {"shadow": {"count": count, "seed": derive_seed(seed, "shadow")}} if pool.count > count else {}
        references = {f"reference{i}": self._reference(g, seed, pretrain) for i, g in enumerate(goals)}
        return Stage(
            "attack",
            f"{attack.name} {row.pretrain} -> {' + '.join(map(str, goals))} seed {seed}",
            attack,
            derive_seed(seed, "attack"),
            data={
                "pool": pool,
                **{f"train{i}": self._ref(g.task, "train") for i, g in enumerate(goals)},
            },
            params={"targets": targets, "pool_seed": pretrain.seed, **shadow},
            parents={"encoder": pretrain, **references},
            numerics=self.numerics,
            attachments={"trigger": trigger, "goals": tuple(goals)},
        )

    def _defend(self, defense: Mitigation, row: Row, seed: int, pretrain: Stage, published: Stage) -> Stage:
        if defense.passthrough:
            return published
        clean = {"count": self.board.clean_images, "seed": derive_seed(seed, "clean")}
        pool = self._ref(row.pretrain, "pool")
        if pool.count and clean["count"] > pool.count:
            raise UsageError(
                f"the board gives defenders {clean['count']} clean images, but the pool {row.pretrain} has {pool.count}"
            )
        params: dict[str, Any] = {"clean": clean}
        parents = {"encoder": published}
        if not defense.uses_weights:
            params["architecture"] = self.pretraining.architecture
            parents = {}
        origin = published.label if defense.uses_weights else f"{row.pretrain} seed {seed}"
        return Stage(
            "defend",
            f"{defense.name} on {origin if defense.uses_weights else 'clean images of ' + origin}",
            defense,
            derive_seed(seed, "defend"),
            data={"pool": pool},
            params=params,
            parents=parents,
            numerics=self.numerics,
        )

    def _evaluate(self, encoder: Stage, evaluator: Evaluator, goal: Goal, seed: int, trigger: Trigger) -> Stage:
        return Stage(
            "evaluate",
            f"{evaluator.name} {goal} seed {seed} of {encoder.label}",
            evaluator,
            derive_seed(seed, "evaluate"),
            data={"train": self._ref(goal.task, "train"), "test": self._ref(goal.task, "test")},
            params={"trigger": trigger.digest},
            parents={"encoder": encoder},
            numerics=self.numerics,
            attachments={"trigger": trigger},
        )


def _named(options: Options, axis: str, name: str) -> list[dict[str, Any]]:
    """The tables that speak of a method: under its bare name, then under ``axis:name``, which wins."""
    return [dict(options.get(name, {})), dict(options.get(f"{axis}:{name}", {}))]

"""From a board and what was asked for to cells, and from cells to the stages that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchbd.board import Board, ReferenceSpec, Row, TriggerSpec, resolve_target, split_task
from benchbd.data import ABSENT, DataLibrary, SplitInfo
from benchbd.errors import DataAbsentError, DataError, UnknownNameError, UsageError
from benchbd.images import Trigger, content_digest, load_references
from benchbd.methods import Attack, Detection, Evaluator, Mitigation, Pretraining
from benchbd.plugins import Registry
from benchbd.settings import Settings
from benchbd.stages import Cell, DataRef, Goal, Inspection, Plan, Stage, distinct
from benchbd.summary import FLOOR
from benchbd.training import derive_seed


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
    detections: Sequence[str] = ()


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
        self.board, self.selection, self.library, self.strict = board, selection, library, strict
        self.numerics = {"precision": precision, "tf32": precision == "bf16"}
        self.infos: dict[tuple[str, str], SplitInfo] = {}
        self.settings = Settings(board, registry, selection.options)
        self.departures = self.settings.departures
        (self.pretraining,) = self.settings.methods(Pretraining, [board.pretraining])

    # What was asked for ------------------------------------------------------------------------------------------

    def _rows(self) -> list[tuple[Row, list[str]]]:
        """The board's rows, narrowed or changed by --pretrain and --task, and the tasks of each to evaluate."""
        rows, pretrain = list(self.board.rows), self.selection.pretrain
        if pretrain is not None and any(row.pretrain == pretrain for row in rows):
            rows = [row for row in rows if row.pretrain == pretrain]
        elif pretrain is not None:
            self.departures.append(f"pre-training set {pretrain}")
            rows = [row.model_copy(update={"pretrain": pretrain}) for row in {row.tasks: row for row in rows}.values()]
        if not self.selection.tasks:
            return [(row, list(row.tasks)) for row in rows]
        chosen: dict[Row, list[str]] = {}
        for wanted in self.selection.tasks:
            declared = [(row, task) for row in rows for task in row.tasks if self._means(wanted, task)]
            if not declared:
                self._check_new_task(wanted)
                sets = dict.fromkeys(row.pretrain for row in rows)
                declared = [(Row(pretrain=name, tasks=(wanted,)), wanted) for name in sets]
                self.departures += [f"task {row.pretrain} -> {task}" for row, task in declared]
            for row, task in declared:
                tasks = chosen.setdefault(row, [])
                tasks += [task] if task not in tasks else []
        return list(chosen.items())

    def _means(self, wanted: str, task: str) -> bool:
        """Whether ``wanted``, with or without a target, is the ``task`` of a row."""
        name, target = split_task(wanted)
        return name == split_task(task)[0] and (target is None or self._goal(wanted) == self._goal(task))

    def _check_new_task(self, wanted: str) -> None:
        """UsageError where a task that no row names lacks its target, or is unknown altogether."""
        name, target = split_task(wanted)
        if target is not None:
            return
        tasks = dict.fromkeys(task for row in self.board.rows for task in row.tasks)
        if name not in self.library.names():
            raise UnknownNameError("task", name, {*self.library.names(), *(split_task(task)[0] for task in tasks)})
        raise UsageError(
            f"task {name!r} is not of board {self.board.name} (which has {', '.join(tasks)}): "
            f"give its target, as in {name}:3"
        )

    # Data --------------------------------------------------------------------------------------------------------

    def _info(self, name: str, split: str) -> SplitInfo:
        if (name, split) not in self.infos:
            try:
                info = self.library.info(name, split)
            except DataAbsentError:
                if self.strict:
                    raise
                count = self._official_count(name, split)
                info = SplitInfo(f"{ABSENT}{name}:{split}", count, 32, (), (), (0.5,) * 3, (0.25,) * 3)
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
        """Note a departure where a split is not what the board pins; a pool is pinned by its parts."""
        pin = self.board.data.get(name)
        if pin is None or info.absent:
            return
        pinned: int | str | None
        if split == "pool":
            parts = {part: value for part in ("train", "unlabeled") if (value := getattr(pin, part)) is not None}
            for part in [part for part, value in parts.items() if isinstance(value, str)]:
                self._info(name, part)
            counts = [value for value in parts.values() if isinstance(value, int)]
            pinned = sum(counts) if counts and len(counts) == len(parts) else None
        else:
            pinned = getattr(pin, split)
        actual = info.count if isinstance(pinned, int) else info.digest
        if pinned is not None and actual != pinned:
            self.departures.append(f"{name} {split} is {actual}, the board pins {pinned}")

    def _ref(self, name: str, split: str) -> DataRef:
        info = self._info(name, split)
        return DataRef(name, split, info.digest, info.count)

    def _goal(self, text: str) -> Goal:
        name, target = split_task(text)
        if target is None:
            raise UsageError(f"task {text!r} has no target class: write {text}:TARGET, an index or a class name")
        train, test = self._info(name, "train"), self._info(name, "test")
        if train.absent:
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
        attacks = self.settings.methods(Attack, selection.attacks or board.attacks)
        defenses = self.settings.methods(Mitigation, selection.defenses or board.defenses)
        evaluators = self.settings.methods(Evaluator, selection.evaluators or board.evaluators)
        detections = self.settings.methods(Detection, selection.detections or board.detections)
        self.settings.reject_unused()
        cells: list[Cell] = []
        inspections: dict[tuple[str, str], Inspection] = {}
        for row, tasks in self._rows():
            cells += self._row_cells(row, tasks, attacks, defenses, evaluators)
            for inspection in self._row_inspections(row, attacks, detections):
                # An encoder goes before a detector once: clean ones are shared by rows, or by seeds where pinned.
                inspections.setdefault((inspection.detection, inspection.chain[-1].key), inspection)
        self.departures += [f"evaluator {e.name}" for e in evaluators if e.name not in board.evaluators]
        self.departures += [f"seed {seed}" for seed in sorted(set(self._seeds()) - set(board.seeds))]
        return Plan(board, cells, list(dict.fromkeys(self.departures)), list(inspections.values()))

    def _row_cells(
        self,
        row: Row,
        tasks: Sequence[str],
        attacks: Sequence[Attack],
        defenses: Sequence[Mitigation],
        evaluators: Sequence[Evaluator],
    ) -> list[Cell]:
        """The cells of one row, for those of its tasks that are asked for; an attack always gets the whole row."""
        goals = [self._goal(task) for task in row.tasks]
        triggers = self._triggers(row)
        cells = []
        for seed in self._seeds():
            pretrain = self._pretrain(row.pretrain, seed)
            for attack in attacks:
                published = self._attack(attack, row, goals, triggers, seed, pretrain)
                for defense in [d for d in defenses if self._crosses(attack, d)]:
                    repaired = self._defend(defense, row, seed, published)
                    for number, (task, goal, trigger) in enumerate(zip(row.tasks, goals, triggers, strict=True)):
                        if task not in tasks:
                            continue
                        reference = published.parents.get(f"reference{number}")
                        chain = dict.fromkeys(s for s in (pretrain, reference, published, repaired) if s is not None)
                        for evaluator in evaluators:
                            judge = (evaluator, goal, seed, trigger)
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
                                    control=bool(attack.control_of),
                                )
                            )
        return cells

    def _crosses(self, attack: Attack, defense: Mitigation) -> bool:
        """Whether a board means this pair: the control of an attack is not defended, unless both are asked for."""
        asked = attack.name in self.selection.attacks and self.selection.defenses
        return not attack.control_of or defense.passthrough or bool(asked)

    def _seeds(self) -> list[int]:
        return list(dict.fromkeys(self.selection.seeds or self.board.seeds))

    def _row_inspections(
        self, row: Row, attacks: Sequence[Attack], detections: Sequence[Detection]
    ) -> Iterator[Inspection]:
        """Every encoder of the row, clean and attacked, before every detector. The board's first evaluator gates."""
        if not detections:
            return
        (floor,) = self.settings.methods(Attack, [FLOOR])
        (evaluator,) = self.settings.methods(Evaluator, self.board.evaluators[:1])
        goals = tuple(self._goal(task) for task in row.tasks)
        triggers = self._triggers(row)
        pinned = self.board.pretrain_seed
        for seed in self._seeds():
            for attack in (floor, *(a for a in attacks if not a.passthrough and not a.control_of)):
                # A clean encoder that several seeds share is inspected under its own.
                own = pinned if attack is floor and pinned is not None else seed
                pretrain = self._pretrain(row.pretrain, own)
                published = self._attack(attack, row, goals, triggers, own, pretrain)
                judges = [(evaluator, goal, own, trigger) for goal, trigger in zip(goals, triggers, strict=True)]
                for detection in detections:
                    yield Inspection(
                        detection.name,
                        attack.name,
                        row.pretrain,
                        goals,
                        own,
                        evaluator.name,
                        chain=tuple(distinct([published])),
                        detect=self._detect(detection, row, own, published),
                        undefended=tuple(self._evaluate(published, *judge) for judge in judges),
                        floors=tuple(self._evaluate(pretrain, *judge) for judge in judges),
                    )

    def _triggers(self, row: Row) -> list[Trigger]:
        """One trigger per task of the row: its own, or the board's for all."""
        if row.triggers and len(row.triggers) != len(row.tasks):
            raise UsageError(f"row {row.pretrain}: {len(row.triggers)} triggers for {len(row.tasks)} tasks")
        if row.triggers and self.settings.trigger != self.board.trigger:
            raise UsageError(
                f"the row {row.pretrain} of board {self.board.name} has triggers of its own: no -o trigger."
            )
        specs = row.triggers or (self.settings.trigger,) * len(row.tasks)
        size = self._info(row.pretrain, "pool").size
        return [self._trigger(spec, size) for spec in specs]

    def _trigger(self, spec: TriggerSpec, image_size: int) -> Trigger:
        square = Trigger.square(spec.size, image_size, center=spec.position == "center")
        trigger = Trigger.load(spec.file) if spec.file is not None else square
        trigger = replace(trigger, wander=spec.wander)
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
        spec: ReferenceSpec = self.settings.reference
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
        self,
        attack: Attack,
        row: Row,
        goals: Sequence[Goal],
        triggers: Sequence[Trigger],
        seed: int,
        pretrain: Stage,
    ) -> Stage:
        if attack.passthrough:
            return pretrain
        targets = [
            {"data": self._info(goal.task, "train").digest, "label": goal.label, "trigger": trigger.digest}
            for goal, trigger in zip(goals, triggers, strict=True)
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
            attachments={"goals": tuple(zip(goals, triggers, strict=True))},
        )

    def _clean(self, row: Row, seed: int) -> dict[str, int]:
        """How many clean images a defender gets, and the seed that they are drawn with."""
        clean = {"count": self.board.clean_images, "seed": derive_seed(seed, "clean")}
        pool = self._ref(row.pretrain, "pool")
        if pool.count and clean["count"] > pool.count:
            raise UsageError(
                f"the board gives defenders {clean['count']} clean images, but the pool {row.pretrain} has {pool.count}"
            )
        return clean

    def _defend(self, defense: Mitigation, row: Row, seed: int, published: Stage) -> Stage:
        if defense.passthrough:
            return published
        params: dict[str, Any] = {"clean": self._clean(row, seed)}
        parents, origin = {"encoder": published}, published.label
        if not defense.uses_weights:
            params["architecture"] = self.pretraining.architecture
            parents, origin = {}, f"clean images of {row.pretrain} seed {seed}"
        return Stage(
            "defend",
            f"{defense.name} on {origin}",
            defense,
            derive_seed(seed, "defend"),
            data={"pool": self._ref(row.pretrain, "pool")},
            params=params,
            parents=parents,
            numerics=self.numerics,
        )

    def _detect(self, detection: Detection, row: Row, seed: int, published: Stage) -> Stage:
        return Stage(
            "detect",
            f"{detection.name} on {published.label}",
            detection,
            derive_seed(seed, "detect"),
            data={"pool": self._ref(row.pretrain, "pool")},
            params={"clean": self._clean(row, seed)},
            parents={"encoder": published},
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

"""From a board and what was asked for to cells, and from cells to the stages that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchbd.base.errors import DataAbsentError, DataError, UnknownNameError, UsageError, brief, shown
from benchbd.contract.attack import Attack
from benchbd.contract.context import derive_seed
from benchbd.contract.defense import Mitigation
from benchbd.contract.detection import Detection
from benchbd.contract.evaluator import Evaluator
from benchbd.contract.images import content_digest
from benchbd.contract.method import Method
from benchbd.contract.patterns import WORDS, described, make_trigger
from benchbd.contract.pretraining import Pretraining, architecture_of, check_size
from benchbd.contract.registry import Registry
from benchbd.contract.roles import Role
from benchbd.contract.specs import ReferenceSpec, TriggerSpec
from benchbd.contract.trigger import Trigger, load_references
from benchbd.contract.trigger_function import TriggerFunction
from benchbd.data.entries import ABSENT, SplitInfo
from benchbd.data.library import DataLibrary
from benchbd.planning.board import Board, Row
from benchbd.planning.cases import Cell, Inspection, Plan
from benchbd.planning.selection import Selection
from benchbd.planning.settings import Settings, differences
from benchbd.stages.base import DataRef, Kind, Stage, distinct
from benchbd.stages.task import Goal, class_index, resolve_target, split_task

if TYPE_CHECKING:
    from torch import Tensor


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


class _Line(NamedTuple):
    """A row to compute, for these of its tasks, and in what it is not one of the board's."""

    row: Row
    tasks: list[str]
    departures: Sequence[str]


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
        self.off_pins: dict[tuple[str, str], tuple[str, ...]] = {}
        (self.pretraining,) = self.settings.methods(Pretraining, self._asked("pretraining"))
        check_size(architecture_of(self.pretraining), board.image_size)

    # What was asked for ------------------------------------------------------------------------------------------

    def _lines(self) -> list[_Line]:
        """The board's rows, narrowed or changed by --pretrain and --task, with the tasks of each to evaluate."""
        rows, pretrain = list(self.board.rows), self.selection.pretrain
        other: list[str] = []
        if pretrain is not None and any(row.pretrain == pretrain for row in rows):
            rows = [row for row in rows if row.pretrain == pretrain]
        elif pretrain is not None:
            other = [f"pre-training set {pretrain}"]
            rows = [row.model_copy(update={"pretrain": pretrain}) for row in {row.tasks: row for row in rows}.values()]
        if not self.selection.tasks:
            return [_Line(row, list(row.tasks), other) for row in rows]
        chosen: dict[Row, _Line] = {}
        for wanted in self.selection.tasks:
            declared = [(row, task, other) for row in rows for task in row.tasks if self._means(wanted, task)]
            if not declared:
                self._check_new_task(wanted)
                new = [Row(pretrain=name, tasks=(wanted,)) for name in dict.fromkeys(row.pretrain for row in rows)]
                declared = [(row, wanted, [*other, f"task {row.pretrain} -> {self._goal(wanted)}"]) for row in new]
            for row, task, departures in declared:
                line = chosen.setdefault(row, _Line(row, [], departures))
                line.tasks.extend([task] if task not in line.tasks else [])
        return list(chosen.values())

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
            f"task {shown(name)} is not of board {self.board.name} (which has {', '.join(tasks)}): "
            f"give its target, as in {brief(name)}:3"
        )

    # Data --------------------------------------------------------------------------------------------------------

    def _info(self, name: str, split: str) -> SplitInfo:
        if (name, split) not in self.infos:
            try:
                info = self.library.info(name, split, self.board.image_size)
            except DataAbsentError:
                if self.strict:
                    raise
                count = self._official_count(name, split)
                size = self.board.image_size
                info = SplitInfo(f"{ABSENT}{name}:{split}", count, size, (), (), (0.5,) * 3, (0.25,) * 3)
            self.infos[name, split] = info
        return self.infos[name, split]

    def _official_count(self, name: str, split: str) -> int:
        """How many images an absent split will have, for the estimate of cost; 0 where nobody knows."""
        dataset = self.library.datasets.get(name)
        splits = dataset.splits if dataset is not None else {}
        wanted = ("train", "unlabeled") if split == "pool" else (split,)
        return sum(splits.get(part, 0) for part in wanted)

    def _off_pins(self, name: str, split: str) -> tuple[str, ...]:
        """In what a split is not what the board pins; a pool is pinned by its parts."""
        if (name, split) not in self.off_pins:
            self.off_pins[name, split] = tuple(self._compare_pins(name, split))
        return self.off_pins[name, split]

    def _compare_pins(self, name: str, split: str) -> Iterator[str]:
        pin, info = self.board.data.get(name), self._info(name, split)
        if pin is None or info.absent:
            return
        pinned: int | str | None
        if split == "pool":
            parts = {part: value for part in ("train", "unlabeled") if (value := getattr(pin, part)) is not None}
            for part in [part for part, value in parts.items() if isinstance(value, str)]:
                yield from self._off_pins(name, part)
            counts = [value for value in parts.values() if isinstance(value, int)]
            pinned = sum(counts) if counts and len(counts) == len(parts) else None
        else:
            pinned = getattr(pin, split)
        actual = info.count if isinstance(pinned, int) else info.digest
        if pinned is not None and actual != pinned:
            yield f"{name} {split} is {actual}, the board pins {pinned}"

    def _ref(self, name: str, split: str) -> DataRef:
        info = self._info(name, split)
        return DataRef(name, split, info.digest, info.count, info.size)

    def _goal(self, text: str) -> Goal:
        name, target = split_task(text)
        if target is None:
            write = f"write {brief(text)}:TARGET, an index or a class name"
            raise UsageError(f"task {shown(text)} has no target class: {write}")
        train, test = self._info(name, "train"), self._info(name, "test")
        if train.absent:
            index = class_index(target)
            return Goal(name, -1 if index is None or index < 0 else index, target)
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
        board = self.board
        asked = (self._asked("attack"), self._asked("defense"))
        floors, controls = self._beside()
        attacks = self.settings.methods(Attack, [*floors, *asked[0]])
        defenses = self.settings.methods(Mitigation, [*controls, *asked[1]])
        evaluators = self.settings.methods(Evaluator, self._asked("evaluator"))
        detections = self.settings.methods(Detection, self._asked("detection"))
        specs = [self.settings.trigger, *(spec for row in board.rows for spec in row.triggers or ())]
        self.settings.methods(TriggerFunction, [spec.function for spec in specs if spec.function is not None])
        self.settings.reject_unused()
        cells: list[Cell] = []
        inspections: dict[tuple[str, str], Inspection] = {}
        for line in self._lines():
            cells += self._row_cells(line, attacks, defenses, evaluators, asked)
            for inspection in self._row_inspections(line, attacks, detections):
                # An encoder goes before a detector once: clean ones are shared by rows, or by seeds where pinned.
                inspections.setdefault((inspection.detection, inspection.chain[-1].key), inspection)
        return Plan(board, cells, list(inspections.values()))

    def _row_cells(
        self,
        line: _Line,
        attacks: Sequence[Attack],
        defenses: Sequence[Mitigation],
        evaluators: Sequence[Evaluator],
        asked: tuple[Sequence[str], Sequence[str]],
    ) -> list[Cell]:
        """The cells of one row, for those of its tasks that are asked for; an attack always gets the whole row.

        asked: attacks and defenses by name; what else is there is context.
        """
        row = line.row
        goals = [self._goal(task) for task in row.tasks]
        triggers = self._triggers(row)
        cells = []
        for seed in self._seeds():
            pretrain = self._pretrain(row.pretrain, seed)
            for attack in attacks:
                published = self._attack(attack, row, goals, triggers, seed, pretrain)
                for defense in [d for d in defenses if self._crosses(attack, d, asked[0])]:
                    repaired = self._defend(defense, row, seed, published)
                    for number, (task, goal, trigger) in enumerate(zip(row.tasks, goals, triggers, strict=True)):
                        if task not in line.tasks:
                            continue
                        reference = published.parents.get(f"reference{number}")
                        chain = dict.fromkeys(s for s in (pretrain, reference, published, repaired) if s is not None)
                        for evaluator in evaluators:
                            judge = (evaluator, goal, seed, trigger)
                            cell = Cell(
                                attack.name,
                                attack.role,
                                defense.name,
                                defense.role,
                                row.pretrain,
                                goal,
                                seed,
                                evaluator.name,
                                chain=tuple(chain),
                                evaluate=self._evaluate(repaired, *judge),
                                undefended=self._evaluate(published, *judge),
                                floor=self._evaluate(pretrain, *judge),
                                context=not (attack.name in asked[0] and defense.name in asked[1]),
                            )
                            cells.append(replace(cell, departures=self._departures(cell, line, seed)))
        return cells

    def _asked(self, axis: str) -> Sequence[str]:
        """The methods of an axis by name: those asked for, else the board's."""
        return self.selection.names(axis) or self.board.names(axis)

    def _beside(self) -> tuple[list[str], list[str]]:
        """The attacks and defenses that stand beside the defenses asked for: a repair says nothing without the clean
        encoder, the undefended one and, if there is such a defense, one from scratch."""
        if self.selection.only or not self.selection.names("defense"):
            return [], []
        scratch = self.settings.registry.of_role("defense", Role.SCRATCH)[:1]
        return [self._floor("attack")], [self._floor("defense"), *scratch]

    def _floor(self, axis: str) -> str:
        """The name of the axis's floor. UsageError if none is registered."""
        names = self.settings.registry.of_role(axis, Role.FLOOR)
        if not names:
            raise UsageError(
                f"no {axis} has the role floor, and this plan needs one: `benchbd plugins` tells what is registered"
            )
        return names[0]

    def _crosses(self, attack: Attack, defense: Mitigation, attacks: Sequence[str]) -> bool:
        """Whether a board means this pair: the control of an attack is not defended, unless both are asked for, and of
        the clean encoder only the floor is wanted where it is not among the ``attacks``."""
        if attack.name not in attacks:
            return defense.passthrough
        asked = attack.name in self.selection.names("attack") and self.selection.names("defense")
        return attack.role is not Role.CONTROL or defense.passthrough or bool(asked)

    def _seeds(self) -> list[int]:
        return list(dict.fromkeys(self.selection.seeds or self.board.seeds))

    def _departures(self, of: Cell | Inspection, line: _Line, seed: int | None) -> tuple[str, ...]:
        """In what a cell or an inspection differs from the board: by its own stages, and by where it stands.

        seed: the run seed, None where the board pins the one seed that matters.
        """
        board = self.board
        place = list(line.departures)
        if of.evaluator not in board.names("evaluator"):
            place.append(f"evaluator {of.evaluator}")
        if seed not in (None, *board.seeds):  # the record says which: all of them are one row of one table
            place.append(f"seed not of the board (its seeds: {', '.join(map(str, board.seeds))})")
        return tuple(dict.fromkeys([*(text for stage in of.stages for text in stage.departed), *place]))

    def _row_inspections(
        self, line: _Line, attacks: Sequence[Attack], detections: Sequence[Detection]
    ) -> Iterator[Inspection]:
        """Every encoder of the row, clean and attacked, before every detector. The board's first evaluator gates."""
        if not detections:
            return
        (floor,) = self.settings.methods(Attack, [self._floor("attack")])
        (evaluator,) = self.settings.methods(Evaluator, self.board.names("evaluator")[:1])
        row = line.row
        goals = tuple(self._goal(task) for task in row.tasks)
        triggers = self._triggers(row)
        pinned = self.board.pretrain_seed
        for seed in self._seeds():
            for attack in (floor, *(a for a in attacks if not a.passthrough and a.role is not Role.CONTROL)):
                # A clean encoder that several seeds share is inspected under its own.
                own = pinned if attack is floor and pinned is not None else seed
                pretrain = self._pretrain(row.pretrain, own)
                published = self._attack(attack, row, goals, triggers, own, pretrain)
                judges = [(evaluator, goal, own, trigger) for goal, trigger in zip(goals, triggers, strict=True)]
                for detection in detections:
                    inspection = Inspection(
                        detection.name,
                        attack.name,
                        attack.role,
                        row.pretrain,
                        goals,
                        own,
                        evaluator.name,
                        chain=tuple(distinct([published])),
                        detect=self._detect(detection, row, own, published),
                        undefended=tuple(self._evaluate(published, *judge) for judge in judges),
                        floors=tuple(self._evaluate(pretrain, *judge) for judge in judges),
                    )
                    drawn = None if own == pinned else own
                    yield replace(inspection, departures=self._departures(inspection, line, drawn))

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

    def _trigger_departures(self, trigger: Trigger) -> Iterable[str]:
        """In what the trigger of an evaluation is not the board's; only a board whose rows have none can have others.
        By content: a file that holds the board's trigger is the board's, and equal files are equal wherever they lie.
        """
        own = [] if trigger.function is None else self.settings.departures(trigger.function)
        if self.settings.trigger == self.board.trigger:
            return own
        spec, board = self.settings.trigger, self._trigger(self.board.trigger, trigger.size)
        if trigger.digest == board.digest:
            return own
        theirs = WORDS | described(self.board.trigger, board)
        return [*differences("trigger", theirs, described(spec, trigger)).values(), *own]

    def _trigger(self, spec: TriggerSpec, image_size: int) -> Trigger:
        names = [] if spec.function is None else [spec.function]
        return make_trigger(spec, image_size, *self.settings.methods(TriggerFunction, names))

    def _pretrain(self, name: str, seed: int) -> Stage:
        seed = seed if self.board.pretrain_seed is None else self.board.pretrain_seed
        return self._stage(
            "pretrain",
            f"{self.pretraining.name} on {name} seed {seed}",
            self.pretraining,
            derive_seed(seed, "pretrain"),
            data={"pool": self._ref(name, "pool")},
            params={"normalization": [list(v) for v in (self._info(name, "pool").mean, self._info(name, "pool").std)]},
            parents={},
            departures=[*self._other_pretraining(), *self.settings.departures(self.pretraining)],
        )

    def _other_pretraining(self) -> list[str]:
        own, (board,) = self.pretraining.name, self.board.names("pretraining")
        return [] if own == board else [f"pre-training method {own} (the board's: {board})"]

    def _stage(
        self,
        kind: Kind,
        label: str,
        method: Method | ReferenceSpec,
        seed: int,
        *,
        data: Mapping[str, DataRef],
        params: Mapping[str, Any],
        parents: Mapping[str, Stage],
        departures: Iterable[str],
        attachments: Mapping[str, Any] | None = None,
    ) -> Stage:
        """A stage under the run's numerics. departures: those of its method; those of its data are found here."""
        off_pins = [text for ref in data.values() for text in self._off_pins(ref.name, ref.split)]
        return Stage(
            kind,
            label,
            method,
            seed,
            data,
            params,
            parents,
            self.numerics,
            attachments or {},
            (*departures, *off_pins),
        )

    def _reference(self, goal: Goal, seed: int, pretrain: Stage) -> Stage:
        spec: ReferenceSpec = self.settings.reference
        pixels, digest = self._references(spec, goal)
        train = self._info(goal.task, "train")
        if pixels is None and not train.absent and spec.count > (most := train.histogram[goal.label]):
            raise UsageError(
                f"reference.count: {spec.count} reference inputs are asked for, and the class {goal.name} of "
                f"{goal.task} has {most} training images, about half of which are held out for them"
            )
        departures: Iterable[str] = ()
        if spec != (board := self.board.reference):
            theirs = {"count": board.count, "file": self._references(board, goal)[1]}
            departures = differences("reference", theirs, {"count": spec.count, "file": digest}).values()
        return self._stage(
            "reference",
            f"{goal} on {pretrain.data['pool'].name} seed {seed}",
            spec.model_copy(update={"file": None}),  # a file is identified by what is in it
            derive_seed(seed, "reference"),
            data={"train": self._ref(goal.task, "train")},
            params={"target": goal.label, "count": spec.count if pixels is None else len(pixels), "file": digest},
            parents={"encoder": pretrain},
            departures=departures,
            attachments={} if pixels is None else {"references": pixels},
        )

    def _references(self, spec: ReferenceSpec, goal: Goal) -> tuple[Tensor | None, str | None]:
        """The reference inputs in the file of ``spec``, and their digest; None and None where it names none."""
        if spec.file is None:
            return None, None
        pixels = load_references(spec.file, goal.label, self._info(goal.task, "train").size)
        return pixels, content_digest(pixels, None, ())

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
        return self._stage(
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
            departures=self.settings.departures(attack),
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
            params["architecture"] = architecture_of(self.pretraining)
            parents, origin = {}, f"clean images of {row.pretrain} seed {seed}"
        return self._stage(
            "defend",
            f"{defense.name} on {origin}",
            defense,
            derive_seed(seed, "defend"),
            data={"pool": self._ref(row.pretrain, "pool")},
            params=params,
            parents=parents,
            departures=self.settings.departures(defense),
        )

    def _detect(self, detection: Detection, row: Row, seed: int, published: Stage) -> Stage:
        return self._stage(
            "detect",
            f"{detection.name} on {published.label}",
            detection,
            derive_seed(seed, "detect"),
            data={"pool": self._ref(row.pretrain, "pool")},
            params={"clean": self._clean(row, seed)},
            parents={"encoder": published},
            departures=self.settings.departures(detection),
        )

    def _evaluate(self, encoder: Stage, evaluator: Evaluator, goal: Goal, seed: int, trigger: Trigger) -> Stage:
        return self._stage(
            "evaluate",
            f"{evaluator.name} {goal} seed {seed} of {encoder.label}",
            evaluator,
            derive_seed(seed, "evaluate"),
            data={"train": self._ref(goal.task, "train"), "test": self._ref(goal.task, "test")},
            params={"trigger": trigger.digest},
            parents={"encoder": encoder},
            departures=[*self._trigger_departures(trigger), *self.settings.departures(evaluator)],
            attachments={"trigger": trigger},
        )

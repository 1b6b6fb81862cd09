"""From a board and a user's selection to cells, and from cells to the stages that they share."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from benchbd.base.errors import UnknownNameError, UsageError, brief, shown
from benchbd.contract.attack import Attack
from benchbd.contract.axes import INSPECTING, Axis
from benchbd.contract.defense import Mitigation
from benchbd.contract.detection import ClassifierDetection
from benchbd.contract.evaluator import Evaluator
from benchbd.contract.images import content_digest
from benchbd.contract.method import Method
from benchbd.contract.pretraining import Pretraining, architecture_of, check_size
from benchbd.contract.roles import Role
from benchbd.contract.specs import ReferenceSpec, TriggerSpec
from benchbd.contract.trigger import Trigger
from benchbd.contract.trigger_function import TriggerFunction
from benchbd.data.library import DataLibrary
from benchbd.data.references import load_references
from benchbd.planning.board import Board, Row
from benchbd.planning.cases import Case, Cell, Inspection, Plan
from benchbd.planning.selection import Selection
from benchbd.planning.settings import Settings, differences
from benchbd.planning.sweeps import at, of_sweep, point_text
from benchbd.planning.trials import chosen
from benchbd.registry import Registry
from benchbd.stages import attack as attacking
from benchbd.stages import defend, evaluate, pretrain, reference
from benchbd.stages import head as heads
from benchbd.stages.base import Stage, distinct
from benchbd.stages.clean import Clean, Suspect
from benchbd.stages.evaluate import Trial
from benchbd.stages.kinds import KINDS, InspectingKind
from benchbd.stages.sources import Sources
from benchbd.stages.task import Task, split_task
from benchbd.toolkit.patterns import WORDS, described, make_trigger

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("benchbd")


def make_plan(
    board: Board,
    selection: Selection,
    registry: Registry,
    library: DataLibrary,
    *,
    strict: bool = True,
) -> Plan:
    """Resolve names, options, targets and data. Nothing is computed.

    The board's grid comes first, then the cells that the points of its sweeps change. UsageError if a sweep changes
    none, or assigns an option of a method that takes no part; a sweep that was not asked for may, if a part of the
    board's methods was.

    strict: raise DataAbsentError if a data set is absent; otherwise its stages get provisional keys.
    """
    others = (selection, registry, library, strict)
    plan = _Planner(board, *others).plan()
    grid = {case.judged.key for case in plan.cases}
    cases: dict[Hashable, Case] = {}
    whole = bool(selection.sweeps) or not any(selection.methods.values())
    for sweep in chosen(board, selection, registry):
        found: list[Case] = []
        with of_sweep(board, sweep.name):
            if (own := selection.overrides(option for point in sweep.points for option in point)) and selection.sweeps:
                raise UsageError(f"it varies {own}, which the command sets; leave one of them out")
            for point in [] if own else sweep.points:
                planned = _Planner(at(board, point), *others).plan(point if whole else (), sweep.defense)
                found += [replace(case, point=point) for case in planned.cases]
            # If no point of a sweep changes what stands at a place, the grid has it.
            moved = {case.place for case in found if case.judged.key not in grid}
            if own:
                log.warning("board %s: sweep %s is left out: the command sets %s", board.name, sweep.name, own)
            elif whole and not moved:
                raise UsageError("none of its points changes a cell or an inspection of this run")
        cases |= {(point_text(case.point), case.seed, case.place): case for case in found if case.place in moved}
    plan.cases += cases.values()
    return plan


class _Line(NamedTuple):
    """A row to compute, for these of its tasks, and its differences from the board's rows."""

    row: Row
    tasks: list[str]
    departures: Sequence[str]


_Goal = tuple[Task, Trigger]
"""A task under attack and the trigger that the attack binds."""


class _Encoder(NamedTuple):
    """An encoder that an attack published under a run seed, and the clean encoder that it came from."""

    attack: Attack
    seed: int
    clean: Stage
    published: Stage


class _Planner:
    """asked: attacks and defenses by name; all others in ``attacks`` and ``defenses`` are context."""

    def __init__(
        self,
        board: Board,
        selection: Selection,
        registry: Registry,
        library: DataLibrary,
        strict: bool,
    ) -> None:
        self.board, self.selection, self.library = board, selection, library
        numerics = {"precision": selection.precision, "tf32": selection.precision == "bf16"}
        self.sources = Sources(library, board.data, board.image_size, numerics, strict=strict)
        self.settings = Settings(board, registry, selection.options)
        (self.pretraining,) = self.settings.methods(Pretraining, self._asked("pretraining"))
        check_size(architecture_of(self.pretraining), board.image_size)
        self.asked = (self._asked("attack"), self._asked("defense"))
        floors, controls = self._beside()
        self.attacks = self.settings.methods(Attack, [*floors, *self.asked[0]])
        self.defenses = self.settings.methods(Mitigation, [*controls, *self.asked[1]])
        self.evaluators = self.settings.methods(Evaluator, self._asked("evaluator"))
        self.inspecting = [
            (axis, each) for axis in INSPECTING for each in self.settings.methods(axis.base, self._asked(axis.name))
        ]

    # The selection ----------------------------------------------------------------------------------------------

    def _lines(self) -> list[_Line]:
        """The board's rows, narrowed or changed by --pretrain and --task, with the tasks of each to evaluate."""
        rows, pretrain = list(self.board.rows), self.selection.pretrain
        other = [*self.selection.departed]
        if pretrain is not None and any(row.pretrain == pretrain for row in rows):
            rows = [row for row in rows if row.pretrain == pretrain]
        elif pretrain is not None:
            other.append(f"pre-training set {pretrain}")
            rows = [row.model_copy(update={"pretrain": pretrain}) for row in {row.tasks: row for row in rows}.values()]
        if not self.selection.tasks:
            return [_Line(row, list(row.evaluated), other) for row in rows]
        chosen: dict[Row, _Line] = {}
        for wanted in self.selection.tasks:
            declared = [(row, task, other) for row in rows for task in row.evaluated if self._means(wanted, task)]
            if not declared:
                self._check_new_task(wanted)
                new = [Row(pretrain=name, tasks=(wanted,)) for name in dict.fromkeys(row.pretrain for row in rows)]
                declared = [
                    (row, wanted, [*other, f"task {row.pretrain} -> {self.sources.task(wanted)}"]) for row in new
                ]
            for row, task, departures in declared:
                line = chosen.setdefault(row, _Line(row, [], departures))
                line.tasks.extend([task] if task not in line.tasks else [])
        return list(chosen.values())

    def _means(self, wanted: str, task: str) -> bool:
        """Whether ``wanted``, with or without a target, is the ``task`` of a row."""
        name, target = split_task(wanted)
        return name == split_task(task)[0] and (target is None or self.sources.task(wanted) == self.sources.task(task))

    def _check_new_task(self, wanted: str) -> None:
        """Raise UsageError if a task that no row names lacks its target, or is unknown."""
        name, target = split_task(wanted)
        if target is not None:
            return
        tasks = dict.fromkeys(task for row in self.board.rows for task in row.evaluated)
        if name not in self.library.names():
            raise UnknownNameError("task", name, {*self.library.names(), *(split_task(task)[0] for task in tasks)})
        raise UsageError(
            f"task {shown(name)} is not of board {self.board.name} (which has {', '.join(tasks)}): "
            f"give its target, as in {brief(name)}:3"
        )

    # Stages ------------------------------------------------------------------------------------------------------

    def plan(self, point: Iterable[str] = (), defense: str = "") -> Plan:
        """point: options that a sweep assigns, of methods that must take part. defense: the only one that changes."""
        specs = [self.settings.trigger, *(spec for row in self.board.rows for spec in row.triggers or ())]
        self.settings.methods(TriggerFunction, [spec.function for spec in specs if spec.function is not None])
        self.settings.reject_unused(point)
        if defense:
            self.defenses, self.inspecting = [each for each in self.defenses if each.name == defense], []
        cells: list[Case] = []
        inspections: dict[str, Case] = {}
        for line in self._lines():
            cells += self._cells(line)
            for inspection in self._inspections(line) if self.inspecting else ():
                # A detector inspects an encoder once: rows share clean ones, and so do seeds if they are pinned.
                inspections.setdefault(inspection.judged.key, inspection)
        return Plan(self.board, [*cells, *inspections.values()])

    def _cells(self, line: _Line) -> Iterator[Cell]:
        """The cells of one row, for the selected tasks; an attack always gets the whole row."""
        row = line.row
        goals = self._goals(row)
        attacked = [(*goal, ()) for goal in goals]
        also = [(self.sources.task(text), goals[0][1], tuple(task for task, _ in goals)) for text in row.also]
        wanted = [self.sources.task(text) for text in line.tasks]
        for of in self._encoders(row, goals, self.attacks):
            for defense in [d for d in self.defenses if self._crosses(of.attack, d)]:
                repaired = self._defend(defense, row, of.seed, of.published)
                for number, (task, trigger, beside) in enumerate([*attacked, *also]):
                    trial = self._trial((task, trigger), of, row)
                    reference = of.published.parents.get(f"reference{number}", trial.apart)
                    chain = dict.fromkeys(s for s in (of.clean, reference, of.published, repaired) if s is not None)
                    for evaluator in self.evaluators if task in wanted else ():
                        cell = Cell(
                            **self._judging(line, of, evaluator, [trial]),
                            defense=defense.name,
                            defense_role=defense.role,
                            chain=tuple(chain),
                            judged=self._evaluate(repaired, evaluator, trial),
                            beside=beside,
                            context=not (of.attack.name in self.asked[0] and defense.name in self.asked[1]),
                        )
                        yield replace(cell, departures=self._departures(cell, line, of.seed))

    def _encoders(self, row: Row, goals: Sequence[_Goal], attacks: Iterable[Attack]) -> Iterator[_Encoder]:
        for seed in dict.fromkeys(self.selection.seeds or self.board.seeds):
            for attack in attacks:
                clean = self._pretrain(row.pretrain, seed)
                yield _Encoder(attack, seed, clean, self._attack(attack, goals, seed, clean))

    def _judging(self, line: _Line, of: _Encoder, evaluator: Evaluator, trials: Sequence[Trial]) -> dict[str, Any]:
        """The fields of all cases: the encoder's origin, and the evaluations that decide whether its attack took."""
        return {
            "attack": of.attack.name,
            "attack_role": of.attack.role,
            "pretrain": line.row.pretrain,
            "tasks": tuple(trial.task for trial in trials),
            "seed": of.seed,
            "evaluator": evaluator.name,
            "undefended": tuple(self._evaluate(of.published, evaluator, trial) for trial in trials),
            "floors": tuple(self._evaluate(of.clean, evaluator, trial) for trial in trials),
        }

    def _goals(self, row: Row) -> list[_Goal]:
        """The tasks that are attacked together, each with its trigger."""
        tasks = [self.sources.task(text) for text in row.tasks]
        for text in row.also:
            if (task := self.sources.task(text)) in tasks:
                raise UsageError(f"row {row.pretrain}: {text} stands under also, and {task} is attacked: leave one out")
        return list(zip(tasks, self._triggers(row), strict=True))

    def _asked(self, axis: str) -> Sequence[str]:
        """The methods of an axis by name: the selected ones, else the board's."""
        return self.selection.names(axis) or self.board.names(axis)

    def _beside(self) -> tuple[list[str], list[str]]:
        """The attacks and defenses to compare the selected defenses with: a repair means nothing without the clean
        encoder, the undefended one and, if there are such defenses, the two controls."""
        if self.selection.only or not self.selection.names("defense"):
            return [], []
        known = self.settings.registry
        attack, defense = (known.first_of_role(axis, Role.FLOOR) for axis in ("attack", "defense"))
        controls = [name for role in (Role.SCRATCH, Role.BN) for name in known.of_role("defense", role)[:1]]
        return [attack], [defense, *controls]

    def _crosses(self, attack: Attack, defense: Mitigation) -> bool:
        """Whether a board includes this pair: the control of an attack is not defended, unless both are selected, and
        the clean encoder is only a floor if it is not selected."""
        if attack.name not in self.asked[0]:
            return defense.passthrough
        asked = attack.name in self.selection.names("attack") and self.selection.names("defense")
        return attack.role is not Role.CONTROL or defense.passthrough or bool(asked)

    def _departures(self, of: Case, line: _Line, seed: int | None) -> tuple[str, ...]:
        """The differences of a case from the board: in its own stages, and in its place. seed: of the run; None if the
        board pins the one seed that matters."""
        place = list(line.departures)
        if of.evaluator not in self.board.names("evaluator"):
            place.append(f"evaluator {of.evaluator}")
        if seed not in (None, *self.board.seeds):  # the record contains the seed: they are all in one row of one table
            place.append(f"seed not of the board (its seeds: {', '.join(map(str, self.board.seeds))})")
        return tuple(dict.fromkeys([*(text for stage in of.stages for text in stage.departed), *place]))

    def _inspections(self, line: _Line) -> Iterator[Inspection]:
        """Inspect every encoder of the row, clean and attacked, by every method. The board's first evaluator gates."""
        (floor,) = self.settings.methods(Attack, [self.settings.registry.first_of_role("attack", Role.FLOOR)])
        (evaluator,) = self.settings.methods(Evaluator, self.board.names("evaluator")[:1])
        row, pinned = line.row, self.board.pretrain_seed
        goals = self._goals(row)
        real = [each for each in self.attacks if not each.passthrough and each.role is not Role.CONTROL]
        for of in self._encoders(row, goals, [floor, *real]):
            if of.attack is floor and pinned is not None:  # several seeds share it: it is inspected under its own
                of = of._replace(seed=pinned)
            for axis, method in self.inspecting:
                # A classifier belongs to one data set; an encoder is inspected once, whatever its tasks.
                names = [task.name if isinstance(method, ClassifierDetection) else "" for task, _ in goals]
                for name in dict.fromkeys(names):
                    part = [self._trial(goal, of, row) for goal, own in zip(goals, names, strict=True) if own == name]
                    judged = self._judged(axis, method, row, of, evaluator, part[0])
                    inspection = Inspection(
                        **self._judging(line, of, evaluator, part),
                        axis=axis.name,
                        method=method.name,
                        chain=tuple(distinct(judged.parents.values())),
                        judged=judged,
                    )
                    seed = None if of.seed == pinned else of.seed
                    yield replace(inspection, departures=self._departures(inspection, line, seed))

    def _judged(self, axis: Axis, method: Method, row: Row, of: _Encoder, evaluator: Evaluator, trial: Trial) -> Stage:
        """The stage of a method's inspection of an encoder, or of the classifier on it for ``task``."""
        departures, head = list(self.settings.departures(method)), None
        if isinstance(method, ClassifierDetection):
            departures += self.settings.departed("task")
            own = self.settings.departures(evaluator)
            head = heads.plan(self.sources, evaluator, of.published, trial, own)
        images = self.settings.task.images
        suspect = Suspect(of.published, self._clean(row), of.seed, self.board.seeds[0], head, images)
        return cast(InspectingKind, KINDS[axis.stage]).plan(self.sources, method, suspect, departures)

    def _triggers(self, row: Row) -> list[Trigger]:
        """One trigger per task of the row: its own, or the board's for all."""
        if row.triggers and len(row.triggers) != len(row.tasks):
            raise UsageError(f"row {row.pretrain}: {len(row.triggers)} triggers for {len(row.tasks)} tasks")
        if row.triggers and self.settings.trigger != self.board.trigger:
            raise UsageError(f"row {row.pretrain} of board {self.board.name} has triggers of its own: no -o trigger.")
        specs = row.triggers or (self.settings.trigger,) * len(row.tasks)
        size = self.sources.info(row.pretrain, "pool").size
        return [self._trigger(spec, size) for spec in specs]

    def _trigger_departures(self, trigger: Trigger) -> Iterable[str]:
        """The differences of an evaluation's trigger from the board's; only a board whose rows have no triggers can
        have any. By content: equal files are equal wherever they lie."""
        own = [] if trigger.function is None else self.settings.departures(trigger.function)
        if self.settings.trigger == self.board.trigger:
            return own
        spec, board = self.settings.trigger, self._trigger(self.board.trigger, trigger.size)
        if trigger.digest == board.digest:
            return own
        theirs, ours = described(self.board.trigger, board), described(spec, trigger)
        told = {option: value for option, value in ours.items() if option in theirs or value != WORDS.get(option)}
        return [*differences("trigger", theirs, told).values(), *own]

    def _trigger(self, spec: TriggerSpec, image_size: int) -> Trigger:
        return make_trigger(spec, image_size, *self.settings.methods(TriggerFunction, filter(None, [spec.function])))

    def _pretrain(self, name: str, seed: int) -> Stage:
        seed = seed if self.board.pretrain_seed is None else self.board.pretrain_seed
        own, (board,) = self.pretraining.name, self.board.names("pretraining")
        other = [] if own == board else [f"pre-training method {own} (the board's: {board})"]
        departures = [*other, *self.settings.departures(self.pretraining)]
        return pretrain.plan(self.sources, self.pretraining, name, seed, departures)

    def _reference(self, task: Task, seed: int, clean: Stage) -> Stage:
        spec, board = self.settings.reference, self.board.reference
        given = self._given(spec, task)
        departures: Iterable[str] = ()
        if spec != board:
            theirs, ours = (
                {"count": each.count, "file": None if pixels is None else content_digest(pixels, None, ())}
                for each, pixels in ((board, self._given(board, task)), (spec, given))
            )
            departures = differences("reference", theirs, ours).values()
        return reference.plan(self.sources, spec, given, task, seed, clean, departures)

    def _given(self, spec: ReferenceSpec, task: Task) -> Tensor | None:
        """The reference inputs in the file of ``spec``; None if it names none."""
        size = self.sources.info(task.name, "train").size
        return None if spec.file is None else load_references(spec.file, task.label, size)

    def _attack(self, method: Attack, goals: Sequence[_Goal], seed: int, clean: Stage) -> Stage:
        if method.passthrough:
            return clean
        targets = [(*goal, self._reference(goal[0], seed, clean)) for goal in goals]
        departures = [*self.settings.departures(method), *self.settings.departed("shadow")]
        return attacking.plan(self.sources, method, clean, targets, seed, self.settings.shadow, departures)

    def _defend(self, method: Mitigation, row: Row, seed: int, published: Stage) -> Stage:
        if method.passthrough:
            return published
        return defend.plan(self.sources, method, published, self._clean(row), seed, self.settings.departures(method))

    def _clean(self, row: Row) -> Clean:
        spec = self.settings.clean
        departures = self.settings.departed("clean")
        triggers = self._triggers(row) if spec.poisoned else []
        departures += [text for trigger in triggers for text in self._trigger_departures(trigger)]
        return Clean(row.pretrain, spec, tuple(triggers), tuple(dict.fromkeys(departures)))

    def _trial(self, goal: _Goal, of: _Encoder, row: Row) -> Trial:
        """A goal under the board's protocol: 1, or 2, which keeps the reference inputs of attacked tasks apart."""
        attacked = goal[0] in map(self.sources.task, row.tasks)
        apart = self._reference(goal[0], of.seed, of.clean) if attacked and self.board.protocol > 1 else None
        return Trial(*goal, of.seed, apart, heads=1 if self.board.protocol == 1 else 3)

    def _evaluate(self, encoder: Stage, evaluator: Evaluator, trial: Trial) -> Stage:
        departures = [*self._trigger_departures(trial.trigger), *self.settings.departures(evaluator)]
        return evaluate.plan(self.sources, evaluator, encoder, trial, departures)

"""Check a record against its own numbers, identities and names. This module does not import torch.

A record contains the counts behind its percentages and the identity behind each key, so that an edited figure
is detected without the store that it came from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from benchbd.base.content import canonical
from benchbd.base.errors import shown
from benchbd.base.seeds import derive_seed
from benchbd.contract.axes import AXES, AXIS
from benchbd.contract.roles import ROLES, Role
from benchbd.contract.specs import SECTIONS
from benchbd.records import derived, points
from benchbd.records.models import LATER
from benchbd.records.points import within
from benchbd.records.predictions import unpack

if TYPE_CHECKING:
    from benchbd.records.models import Baseline, Counts, Entry, Inspected, Metrics, Record

_TOLERANCE = 1e-3  # percentage points: a record rounds to 1e-4

_NAME = re.compile(r"[^\s./\\:][^/\\:\x00-\x1f]*")  # names become file names; data sets may have a folder's name

_INDEX = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)  # the index of a class

_ORIGIN = re.compile(r"[a-z]+\d*(\.(dataset|trigger|architecture|executor):[a-z0-9][a-z0-9_-]*)?")

_OPTION = re.compile(r"(?P<name>[^.=]+)\.(?P<field>[^.=]+)=(?P<value>.*) \(the board's: .*\)", re.DOTALL)

_METHODS = {axis.stage: axis.name for axis in AXES if axis.stage and axis.name != "pretraining"}
"""Field of a record that names the method of a stage, by the stage's kind."""


def cell(record: Record) -> str:
    """The first fault of a cell's record, beginning with the field; empty if there is none."""
    return next(_of_cell(record), "")


def inspection(record: Inspected) -> str:
    """The first fault of an inspection's record, likewise."""
    return next(_of_inspection(record), "")


def _of_cell(record: Record) -> Iterator[str]:
    yield from _shared(record, "evaluate")
    for label, own, name, part in (
        ("metrics", record.metrics, "counts", record.counts),
        ("baseline", record.baseline, "baseline_counts", record.baseline_counts),
    ):
        if (part is None) != (own is None):
            yield f"{name if part is None else label}: missing; {label} and {name} go together"
        if part is not None and own is not None:
            yield from _countable(name, part, record.schema_version)
            yield from _following(label, own, name, part)
    yield from _predicted(record)
    yield from _attacked(record)
    if record.undefended is not None:
        yield from _percentages("undefended", record.undefended, record.schema_version)
    yield from _certified(record)
    counted = record.metrics is not None and record.baseline is not None and record.undefended is not None
    yield from _status(record, counted, bool(record.metrics), "metrics, baseline and undefended")
    if record.counts and record.baseline_counts:
        own_size, floor_size = ((c.total, c.nontarget) for c in (record.counts, record.baseline_counts))
        if own_size != floor_size:
            yield f"baseline_counts: of {floor_size} images (total, nontarget), but counts are of {own_size}"
    undefended, own = record.undefended, record.metrics
    if undefended and own and undefended != own and "defend" not in record.identity:
        yield "undefended: differs from metrics, but no stage of the record is a defense"
    yield from derived.faults(record)


def _attacked(record: Record) -> Iterator[str]:
    """Tasks that the record calls attacked but that are not, or the reverse. Targets are in the order of ``beside``."""
    own, told = f"{record.task}:{record.target}", " + ".join(record.beside)
    if own in record.beside:
        yield f"beside: {told}, but {own} is the record's own task"
    if len(set(record.beside)) < len(record.beside):
        yield f"beside: {told}, which names a task twice"
    targets = within(record.identity, "attack", "params", "targets")
    if not isinstance(targets, list):
        return
    data = within(record.identity, "evaluate", "data", "train")
    sets = {record.task: data}
    attacked = any(
        (within(each, "data"), within(each, "label")) == (sets[record.task], record.target) for each in targets
    )
    if attacked == bool(record.beside):
        yield f"beside: {told or 'empty'}, but identity.attack {'attacks' if attacked else 'spares'} {own}"
    labels = [str(within(each, "label")) for each in targets]
    if record.beside and [task.rpartition(":")[2] for task in record.beside] != labels:
        yield f"beside: {told}, but identity.attack has targets of classes {', '.join(labels)}"
    for task, each in zip(record.beside, targets, strict=False):
        if sets.setdefault(task.rpartition(":")[0], within(each, "data")) != within(each, "data"):
            yield f"beside: {task}, but identity.attack has a target of another data set"


def _inspected_tasks(record: Inspected) -> Iterator[str]:
    """Tasks that are none of the inspected encoder. Targets are in the order of ``tasks``; a classifier has those of
    its own data set."""
    told = " + ".join(record.tasks)
    if not record.tasks or len(set(record.tasks)) < len(record.tasks):
        yield f"tasks: {told or 'empty'}; it names each task of the encoder once"
    if strange := sorted(record.gains.keys() - set(record.tasks)):
        yield f"gains: of {', '.join(strange)}, but tasks are {told}"
    targets = within(record.identity, "attack", "params", "targets")
    if not isinstance(targets, list):
        return
    own = within(record.identity, "head", "data", "train")
    targets = [each for each in targets if own in (None, within(each, "data"))]
    labels = [str(within(each, "label")) for each in targets]
    if [task.rpartition(":")[2] for task in record.tasks] != labels:
        yield f"tasks: {told}, but identity.attack has targets of classes {', '.join(labels)}"
    sets: dict[str, object] = {}
    for task, each in zip(record.tasks, targets, strict=False):
        if sets.setdefault(task.rpartition(":")[0], within(each, "data")) != within(each, "data"):
            yield f"tasks: {task}, but identity.attack has a target of another data set"


def _certified(record: Record) -> Iterator[str]:
    """Figures without certified accuracy beside figures with it: one evaluator made all of them."""
    parts = {"counts": record.counts, "baseline_counts": record.baseline_counts, "undefended": record.undefended}
    known = {name: part.certified for name, part in parts.items() if part is not None}
    if having := [name for name, certified in known.items() if certified is not None]:
        for name in known.keys() - having:
            yield f"{name}.certified: missing, but {having[0]} has {known[having[0]]}, of the same evaluator"


def _predicted(record: Record) -> Iterator[str]:
    """Predictions that are missing or do not give the counts, as far as this can be checked without labels."""
    counts, content = record.counts, record.packed
    if record.schema_version > 1 and (record.predictions is None) != (counts is None):
        yield f"{'predictions' if counts else 'counts'}: missing; counts and predictions go together"
    if record.predictions is None or counts is None:
        return
    if content is None:
        yield f"predictions: {record.predictions[:12]}, but there is no such file beside the record"
        return
    if (found := hashlib.sha256(content).hexdigest()) != record.predictions:
        yield f"predictions: {record.predictions[:12]}, but the file beside the record has {found[:12]}"
        return
    try:
        clean, triggered, certified = unpack(content)
    except ValueError as error:
        yield f"predictions: the file beside the record is none: {error}"
        return
    hits = int((triggered == record.target).sum())
    for field, value, told in (("total", counts.total, len(clean)), ("hits", counts.hits, hits)):
        if value != told:
            yield f"counts.{field}: {value}, but the predictions give {told}"
    if (certified is None) != (counts.certified is None):
        without, other = ("counts", "predictions") if certified is not None else ("predictions", "counts")
        yield f"{without}: nothing is certified, but the {other} say what is"
    elif certified is not None and counts.certified is not None:
        most = min(sure := int(certified.sum()), counts.correct)
        if not (least := max(0, sure + counts.correct - len(clean))) <= counts.certified <= most:
            yield (
                f"counts.certified: {counts.certified}, but the predictions, of which {sure} are certified and "
                f"{counts.correct} correct, give {least} to {most}"
            )


def _of_inspection(record: Inspected) -> Iterator[str]:
    yield from _shared(record, AXIS[record.axis].stage)
    yield from _inspected_tasks(record)
    for task, gain in record.gains.items():
        yield from _countable(f"gains.{task}.counts", gain.counts, record.schema_version)
        yield from _countable(f"gains.{task}.baseline_counts", gain.baseline_counts, record.schema_version)
    judged = None not in record.found.values() and set(record.gains) == set(record.tasks)
    measured = any(value is not None for value in record.found.values())
    yield from _status(record, judged, measured, f"{', '.join(record.found)}, and gains for each of its tasks")
    yield from derived.faults(record)


def _shared(record: Entry, last: str) -> Iterator[str]:
    """last: the kind of stage whose key is the record's."""
    fields = ("board", "attack", "pretrain", *_METHODS.values(), "task")
    names = [(name, value) for name in fields if isinstance(value := getattr(record, name, None), str)]
    tasks = [
        (f"{field}.{place}", *task.rpartition(":"))
        for field in ("tasks", "beside")
        for place, task in enumerate(getattr(record, field, []))
    ]
    names += [(field, name) for field, name, *_ in tasks]
    for name, value in names:
        if not _NAME.fullmatch(value):
            yield f"{name}: {shown(value)} is no name; one has no slash, colon or leading dot"
    for field, name, _, target in tasks:
        if not _INDEX.fullmatch(target):
            yield f"{field}: {shown(f'{name}:{target}')} does not end in the index of a class, as gtsrb:12 does"
    yield from _later(record)
    if record.on_board == bool(record.departures):
        said = f"departures are {', '.join(record.departures)}" if record.departures else "there are no departures"
        yield f"on_board: {str(record.on_board).lower()}, but {said}; a record is on-board where it has none"
    yield from _departed(record)
    yield from points.faults(record)
    yield from _identities(record, last)
    yield from _seeded(record)
    if record.precision not in (None, used := within(record.identity, last, "numerics", "precision")):
        yield f"precision: {record.precision}, but identity.{last} has {used}"
    for part in record.plugins:
        if not _ORIGIN.fullmatch(part):
            yield f"plugins: {shown(part)} is neither a kind of stage nor of the form KIND.AXIS:NAME"
    named = {*(part.partition(".")[0] for part in record.plugins), *record.cost}
    if strange := sorted(named - record.identity.keys()):
        yield f"plugins, cost: of {', '.join(strange)}, which identity does not have"
    for axis, kind in (("attack", "attack"), ("defense", "defend")):
        field, role = f"{axis}_role", getattr(record, f"{axis}_role", None)
        if role not in (None, *ROLES[axis]):
            yield f"{field}: {role}; the roles of {axis}s are {', '.join(ROLES[axis])}"
        if role is Role.FLOOR and kind in record.identity:
            yield f"{field}: floor, which has no stage, but there is identity.{kind}"
        if role not in (None, Role.FLOOR) and kind not in record.identity:
            yield f"{field}: {role}, which has a stage, but there is no identity.{kind}"


def _later(record: Entry) -> Iterator[str]:
    """Fields of schema 2 that a record of schema 1 has. Its roles are none: they follow from its names."""
    if record.schema_version == 1:
        later = {field: LATER[field] for field in LATER.keys() - {"attack_role", "defense_role"}}
        for place in _filled(record.model_dump(include=later)):
            yield f"{place}: a field of schema 2, but the record is of schema 1"


def _filled(value: Any, place: str = "") -> Iterator[str]:
    """The dotted places in nested dictionaries with a value that is not empty."""
    if isinstance(value, Mapping):
        for name, inner in sorted(value.items()):
            yield from _filled(inner, f"{place}.{name}" if place else str(name))
    elif value not in (None, "", []):
        yield place


def _seeded(record: Entry) -> Iterator[str]:
    """Seeds of stages that are not derived from the run's."""
    for name, identity in record.identity.items():
        kind = name.rstrip("0123456789")
        if kind in ("pretrain", "prepare"):  # a board may pin the one; the other has the board's first seed
            continue
        seeds = {"seed": (within(identity, "seed"), "evaluate" if kind == "head" else kind)}
        for drawn in ("clean", "shadow", "task"):
            seeds[f"params.{drawn}.seed"] = within(identity, "params", drawn, "seed"), drawn
        for place, (seed, of) in seeds.items():
            if seed not in (None, derive_seed(record.seed, of)):
                yield f"seed: {record.seed}, but identity.{name}.{place} is of another run seed"


def _departed(record: Entry) -> Iterator[str]:
    """Departures by an option of a method or of the protocol that differ from the identity."""
    for departure in record.departures:
        if (said := _OPTION.fullmatch(departure)) and said["name"] in SECTIONS:
            yield from points.of_part(record, said["name"], said["field"], said["value"], "departures")
        elif said:
            for kind, identity in record.identity.items():
                options = within(identity, "method", "options")
                if within(identity, "method", "name") != said["name"] or said["field"] not in (options or {}):
                    continue
                value = str(options[said["field"]])
                if said["value"].replace("(", "[").replace(")", "]") != value.replace("(", "[").replace(")", "]"):
                    yield f"departures: {departure}, but identity.{kind} has {said['field']} {value}"


def _identities(record: Entry, last: str) -> Iterator[str]:
    try:
        keys = {name: hashlib.sha256(canonical(known).encode()).hexdigest() for name, known in record.identity.items()}
    except ValueError:
        yield "identity: holds a number that is not finite"
        return
    for name, key in [*record.stages.items(), (last, record.key)]:
        if name not in keys:
            yield f"identity.{name}: missing; it is what key {key[:12]} is the digest of"
        elif keys[name] != key:
            field = "key" if name == last and key == record.key else f"stages.{name}"
            yield f"{field}: {key[:12]}, but identity.{name} gives {keys[name][:12]}"
    for kind, field in _METHODS.items():
        method = within(record.identity, kind, "method", "name")
        if method is not None and method != getattr(record, field, method):
            yield f"{field}: {shown(getattr(record, field))}, but identity.{kind} is of {shown(method)}"
    made = [kind for kind in ("defend", "attack", "pretrain") if kind in keys]
    parent = within(record.identity, last, "parents", "encoder")
    if made and parent is not None and parent != keys[made[0]]:
        yield f"identity.{last}.parents.encoder: {str(parent)[:12]}, but identity.{made[0]} gives {keys[made[0]][:12]}"


def _countable(name: str, counts: Counts, schema: int) -> Iterator[str]:
    """Counts that no test set can have, or that the schema requires and that are missing."""
    if schema > 1 and counts.correct_triggered is None:
        yield f"{name}.correct_triggered: missing; records have it since schema 2"
    bounds = {
        "total": (1, None, ""),
        "nontarget": (1, counts.total, "total"),
        "correct": (0, counts.total, "total"),
        "hits_nontarget": (0, counts.nontarget, "nontarget"),
        "hits": (counts.hits_nontarget, counts.hits_nontarget + counts.total - counts.nontarget, ""),
        "correct_triggered": (0, counts.nontarget - counts.hits_nontarget, "nontarget without hits_nontarget"),
        "certified": (0, counts.correct, "correct"),
    }
    for field, (low, high, of) in bounds.items():
        value = getattr(counts, field)
        if value is None:  # unknown
            continue
        if value < low or (high is not None and value > high):
            span = f"at least {low}" if high is None else f"{low} to {high}{f' ({of})' if of else ''}"
            yield f"{name}.{field}: {value}; with the other counts it can be {span}"


def _following(label: str, percent: Metrics | Baseline, name: str, counts: Counts) -> Iterator[str]:
    """Percentages that differ from those of their counts; both models name them in one order."""
    pairs = [
        (counts.correct, counts.total),
        (counts.hits, counts.total),
        (counts.hits_nontarget, counts.nontarget),
        (counts.correct_triggered, counts.nontarget),
        (counts.certified, counts.total),
    ]
    for (field, value), (part, whole) in zip(percent.model_dump().items(), pairs, strict=False):
        if value is None or part is None:
            if value is not part:
                yield f"{label}.{field}: {value}, but {name} have {part} of {whole}"
        elif not abs(value - 100 * part / whole) <= _TOLERANCE:
            yield f"{label}.{field}: {value}, but {name} give {100 * part / whole:.4f} ({part} of {whole})"


def _percentages(label: str, percent: Metrics, schema: int) -> Iterator[str]:
    """Percentages, without their counts, that no test set can have, or that are missing."""
    bounds = {"ra": (100 - percent.asr_nontarget, "100 - asr_nontarget"), "certified": (percent.acc, "acc")}
    for field, value in percent.model_dump().items():
        most, of = bounds.get(field, (100.0, ""))
        if value is not None and not 0 <= value <= 100:
            yield f"{label}.{field}: {value} is no percentage"
        elif value is not None and value > most + _TOLERANCE:
            yield f"{label}.{field}: {value}; it can be at most {most:.4f} ({of})"
    if schema > 1 and percent.ra is None:
        yield f"{label}.ra: missing; records have it since schema 2"


def _status(record: Entry, complete: bool, measured: bool, what: str) -> Iterator[str]:
    """A status with fields that only another status has.

    complete: whether all of ``what`` is there. measured: whether it has its own figures.
    """
    if record.status == "ok" and not complete:
        yield f"status: {record.status}, which has {what}; some are missing"
    if record.status != "ok" and measured:
        yield f"status: {record.status}, but the record has figures, as only ok does"
    if (record.status == "ok") == bool(record.reason):
        said = "there is no reason" if not record.reason else "there is a reason"
        yield f"status: {record.status}, but {said}; all but ok have one"

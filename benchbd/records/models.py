"""Records of one cell or one inspection, complete enough to be read, compared and verified alone."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from benchbd.contract.roles import Role

SCHEMA: Literal[2] = 2

LONGEST_NAME = 200  # bytes of a record's file name: 255 are allowed, and its temporary name is longer

LONGEST_AUTHOR = 100  # characters

LONGEST = 1e10  # seconds of a stage, over all processors: three centuries

MOST = 10**15  # images, forwards of images, or bytes

_Number = Annotated[int, Field(ge=0, le=MOST)]

_Seconds = Annotated[float, Field(ge=0, le=LONGEST)]

_COUNTED: dict[str, Any] = {"correct_triggered": True, "certified": True}

_MEASURED: dict[str, Any] = {"ra": True, "certified": True}

LATER: dict[str, Any] = {
    **dict.fromkeys(("attack_role", "defense_role", "point", "beside", "predictions"), True),
    **dict.fromkeys(("precision", "plugins", "isolation", "source", "author"), True),
    **dict.fromkeys(("counts", "baseline_counts"), _COUNTED),
    **dict.fromkeys(("metrics", "undefended"), _MEASURED),
    "baseline": {"ra_b": True},
    **dict.fromkeys(("heads", "clean_features"), True),
    "cost": {"__all__": {"memory": True, "gpu_memory": True}},
    "gains": {"__all__": {"counts": _COUNTED, "baseline_counts": _COUNTED}},
}
"""The fields that records have since schema 2."""

TRIAL = "trial"
"""In the point of a trial of a defense, beside the options that it varies: its number."""

Status = Literal["ok", "n/a", "timeout", "error"]

_FORMER = {"failed": {"status": "error"}, "attack-failed": {"status": "ok", "reason": ""}}
"""What a status of an earlier benchbd means; whether an attack failed follows from the counts."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Counts(_Part):
    """Counts of test images, 0 to 1e15, from which the percentages follow; with several heads, sums over them."""

    total: _Number = Field(description="test images")
    correct: _Number = Field(description="images that are classified correctly without the trigger")
    hits: _Number = Field(description="images that are classified as the target with the trigger")
    nontarget: _Number = Field(description="images whose true class is not the target")
    hits_nontarget: _Number = Field(
        description="of nontarget: images that are classified as the target with the trigger"
    )
    correct_triggered: _Number | None = Field(
        None, description="of nontarget: images that are classified correctly with the trigger; null in schema 1"
    )
    certified: _Number | None = Field(
        None,
        description="of correct: images whose prediction is certified against any patch of the size that the "
        "evaluator has as an option; null if the evaluator certifies nothing",
    )


class Metrics(_Part):
    """Percentages of test images, 0 to 100."""

    acc: float = Field(description="accuracy without the trigger")
    asr: float = Field(description="attack success rate over all test images, as in the papers")
    asr_nontarget: float = Field(description="attack success rate over images outside the target class")
    ra: float | None = Field(None, description="accuracy with the trigger over images outside the target class")
    certified: float | None = Field(None, description="certified accuracy without the trigger")


class Baseline(_Part):
    """Percentages of the clean encoder under the same task, evaluator, trigger and seed, 0 to 100."""

    ca: float = Field(description="CA: accuracy of the clean encoder without the trigger")
    asr_b: float = Field(description="ASR-B: attack success rate of the clean encoder over all test images")
    asr_b_nontarget: float = Field(description="the same over images outside the target class")
    ra_b: float | None = Field(None, description="accuracy with the trigger over images outside the target class")


class Cost(_Part):
    """The measured cost of computing one stage: seconds are 0 to 1e10, forwards and bytes 0 to 1e15."""

    seconds: _Seconds = Field(description="wall-clock seconds")
    cpu_seconds: _Seconds = Field(description="CPU seconds of the process")
    image_forwards: _Number = Field(
        description="a forward of one image counts 1, its backward 2, or 1 if no weight gets a gradient"
    )
    memory: _Number | None = Field(None, description="peak memory of the process in bytes; null: not measured")
    gpu_memory: _Number | None = Field(None, description="peak memory of the GPU in bytes; null: not measured")


_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Origin(_Part):
    """The origin of a stage's method, or of a data set, trigger function, architecture or executor that takes part in
    the stage."""

    distribution: str = Field(description="name of the distribution")
    version: str = Field(description="version of the distribution; empty if it has none")
    source: _Sha256 | None = Field(description="sha256 of the module's source; null without source")


class CleanFeatures(_Part):
    """What the defender's clean images, up to 256 of them, tell of a repair; no label takes part."""

    pretext: float = Field(
        ge=0, le=1, description="pretext accuracy: share of views whose nearest one is of the same image"
    )
    pretext_given: float = Field(ge=0, le=1, description="the same of the encoder that the defense was given")
    cosine: float = Field(ge=-1, le=1, description="mean cosine of the features before and after the defense")


class Entry(_Part):
    """The fields that records of cells and records of inspections share."""

    schema_version: Literal[1, 2] = Field(SCHEMA, alias="schema", description="version of the form of records")
    board: str = Field(description="name of the board")
    on_board: bool = Field(description="whether protocol, options and data are those of the board")
    departures: list[str] = Field(
        default_factory=list, description="differences between the run and the board, one line each"
    )
    attack: str = Field(description="name of the attack")
    attack_role: Role = Field(description="role of the attack: method, floor, control or file")
    pretrain: str = Field(description="data set of pre-training")
    seed: int = Field(ge=0, lt=2**63, description="run seed")
    status: Status = Field(
        description="outcome of the run; n/a: a method does not apply; timeout: a stage took too long. Gates judge "
        "those that are ok when a table is built"
    )
    reason: str = Field("", description="why the status is not ok")
    key: str = Field(description="key of the last stage, even if an earlier stage failed")
    seconds: _Seconds | None = Field(
        None, description="wall-clock seconds that computing the defense or detector took, 0 to 1e10"
    )
    cost: dict[str, Cost] = Field(default_factory=dict, description="cost of each stage, by kind of stage")
    stages: dict[str, str] = Field(default_factory=dict, description="key of each stage, by kind of stage")
    identity: dict[str, Any] = Field(
        default_factory=dict,
        description="all that determined the result: methods with every option, data, trigger, seeds",
    )
    clean_images: list[int] = Field(
        default_factory=list,
        description="rows of the pool that the defender got, ascending; their number is that of "
        "the identity, but a record does not tell the size of the pool",
    )
    notes: list[str] = Field(default_factory=list, description="remarks for readers of the table, one line each")
    findings: dict[str, Any] = Field(
        default_factory=dict, description="findings that methods noted, by kind of stage; nothing checks them"
    )
    machine: dict[str, Any] = Field(
        default_factory=dict, description="device, number of threads and versions of software"
    )
    point: dict[str, Any] = Field(
        default_factory=dict,
        description="value by option of the sweep's point; empty without a sweep. Files and triggers, which identities "
        "have as digests alone, are not compared",
    )
    precision: Literal["fp32", "bf16"] | None = Field(None, description="precision of the last stage")
    plugins: dict[str, Origin] = Field(
        default_factory=dict,
        description="origin of each stage's method, by kind of stage, and of what other distributions add to it, "
        "by KIND.AXIS:NAME",
    )
    isolation: Literal["none"] | None = Field(None, description="isolation of methods; none: all ran in one process")
    source: str | None = Field(
        None, pattern="^[0-9a-f]{16}$", description="anonymous name of the store and machine that computed the record"
    )
    author: str = Field("", max_length=LONGEST_AUTHOR, description="who ran the cell, in any words")

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, data: Any) -> Any:
        """A record of an earlier benchbd with today's statuses and, if it is of schema 1, the fields that it lacks,
        which follow from the names of its methods."""
        if not isinstance(data, dict):
            return data
        data = {**data, **_FORMER.get(str(data.get("status")), {})}
        if data.get("schema") != 1:
            return data
        return {**data, **{f"{axis}_role": _role(axis, data[axis]) for axis in ("attack", "defense") if axis in data}}

    _replicates: tuple[Entry, ...] = PrivateAttr(())

    @property
    def replicates(self) -> tuple[Self, ...]:
        """The same cell or inspection, of the same key, as other sources measured it; see ``records.replicates``."""
        return cast(tuple[Self, ...], self._replicates)

    def with_replicates(self, replicates: tuple[Entry, ...]) -> Self:
        """The record with these replicates."""
        self._replicates = replicates
        return self

    @property
    def methods(self) -> set[tuple[str, str]]:
        """Axis and name of each method that the record names."""
        return {("attack", self.attack)}

    @property
    def name(self) -> str:
        """A file name that identifies the record. On-board a cell has one record, which a later run replaces;
        off-board, key and departures distinguish the variants. If names of data sets or many tasks make the name longer
        than file systems allow, a digest of the whole replaces its end."""
        parts = [*self._parts(), *([_slug(self.point)] if self.point else [])]
        variant = hashlib.sha256("\n".join([self.key, *sorted(self.departures)]).encode()).hexdigest()[:12]
        name = "_".join(parts if self.on_board else [*parts, variant])
        if len(encoded := name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
            digest = hashlib.sha256(encoded).hexdigest()[:12]
            name = f"{encoded[: LONGEST_NAME - 13].decode('utf-8', 'ignore')}_{digest}"
        return f"{name}.json"

    @cached_property
    def path(self) -> Path | None:
        """The file that the record was read from; None if it was read from none."""
        return None

    @cached_property
    def file(self) -> str:
        """The name of the file that the record was read from, else of the file that it would be written to."""
        return self.name

    def _parts(self) -> list[str]:
        raise NotImplementedError

    def to_json(self) -> str:
        """Indented JSON with sorted keys; lists of numbers stay on one line."""
        data = self.model_dump(mode="json", by_alias=True, exclude=LATER if self.schema_version == 1 else None)
        if data.get("clean_features", ...) is None:  # as in the records from before it was measured
            del data["clean_features"]
        lines = []
        for name, value in sorted(data.items()):
            indent = None if name == "clean_images" else 1
            text = json.dumps(value, sort_keys=True, indent=indent, separators=(",", ": "))
            lines.append(f" {json.dumps(name)}: " + text.replace("\n", "\n "))
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _slug(point: dict[str, Any]) -> str:
    """A point in the name of a file: the number of a trial, else its assignments, else, if those are not allowed in a
    file's name, a digest."""
    if TRIAL in point:
        return f"{TRIAL}-{point[TRIAL]}"
    text = "+".join(f"{option}={value}" for option, value in sorted(point.items()))
    return text if re.fullmatch(r"[\w.+=-]{1,60}", text) else hashlib.sha256(text.encode()).hexdigest()[:12]


def _joined(tasks: list[str]) -> str:
    return "+".join(task.replace(":", "-") for task in tasks)


def _role(axis: str, name: object) -> Role:
    """The role of a method of schema 1."""
    if name == "none":
        return Role.FLOOR
    if axis == "attack":
        return Role.CONTROL if str(name).endswith("-control") else Role.METHOD
    return {"scratch": Role.SCRATCH, "ft": Role.FT}.get(str(name), Role.METHOD)


class Record(Entry):
    """One cell: attack x defense x (pretrain, task, target) x seed, under one evaluator."""

    defense: str = Field(description="name of the defense")
    defense_role: Role = Field(description="role of the defense: method, floor, scratch, bn, ft or oracle")
    task: str = Field(description="downstream data set")
    target: int = Field(description="index of the target class")
    target_name: str = Field(description="name of the target class; only checked against other records")
    evaluator: str = Field(description="name of the evaluator")
    metrics: Metrics | None = Field(None, description="percentages of this cell")
    counts: Counts | None = Field(None, description="counts of this cell")
    heads: list[Counts] = Field(
        default_factory=list, description="counts of each head of this cell; empty if one head judged it"
    )
    baseline: Baseline | None = Field(None, description="percentages of the clean encoder")
    baseline_counts: Counts | None = Field(None, description="counts of the clean encoder")
    undefended: Metrics | None = Field(None, description="percentages of the same cell without a defense")
    beside: list[str] = Field(
        default_factory=list, description="attacked tasks of the row, if this task is not attacked"
    )
    reference: dict[str, Any] = Field(
        default_factory=dict,
        description="source of the reference inputs: train_split or file, their rows, the clean classifier's class for "
        "each, and its probability of the target",
    )
    clean_features: CleanFeatures | None = Field(
        None, description="how the defense changed features of clean images; null if that was not measured"
    )
    predictions: _Sha256 | None = Field(None, description="sha256 of the file of predictions")
    _packed: bytes | None = PrivateAttr(None)

    @property
    def methods(self) -> set[tuple[str, str]]:
        return super().methods | {("defense", self.defense), ("evaluator", self.evaluator)}

    @property
    def packed(self) -> bytes | None:
        """The content of the file of predictions, as ``predictions.pack`` gives it."""
        return self._packed

    def with_packed(self, content: bytes) -> Self:
        """The record with this content and its digest."""
        self._packed = content
        return self

    def _parts(self) -> list[str]:
        parts = [
            self.attack,
            self.defense,
            self.pretrain,
            f"{self.task}-{self.target}",
            f"s{self.seed}",
            self.evaluator,
        ]
        return [*parts, *([f"beside-{_joined(self.beside)}"] if self.beside else [])]


class Gain(_Part):
    """Whether an attack took on one task: the counts of the inspected encoder, undefended, and of the clean one."""

    counts: Counts = Field(description="counts of the inspected encoder without a defense")
    baseline_counts: Counts = Field(description="counts of the clean encoder")

    @property
    def asr(self) -> float:
        """ASR non-target of the inspected encoder, in percent."""
        return 100 * self.counts.hits_nontarget / self.counts.nontarget

    @property
    def floor(self) -> float:
        """ASR non-target of the clean encoder, in percent."""
        return 100 * self.baseline_counts.hits_nontarget / self.baseline_counts.nontarget

    @property
    def points(self) -> float:
        """ASR non-target minus the clean encoder's, in percentage points."""
        return self.asr - self.floor


class Inspected(Entry):
    """One inspection: the result of a method of an axis that inspects for one encoder, clean or attacked.

    The record class of an axis derives from it, with a field of the axis's name, which contains the method, and the
    fields of its stage's result; these are None if there is none.
    """

    axis: ClassVar[str]
    evaluator: str = Field(
        description="evaluator that decides whether the attack took; checked where its classifier is inspected, or "
        "cells beside the record have its counts"
    )
    tasks: list[str] = Field(description="tasks of the encoder's row, each DATASET:TARGET")
    gains: dict[str, Gain] = Field(
        default_factory=dict, description="counts that decide whether the attack took, by task"
    )

    @property
    def method(self) -> str:
        """The method that inspected."""
        return str(getattr(self, self.axis))

    @property
    def methods(self) -> set[tuple[str, str]]:
        return super().methods | {(self.axis, self.method)}

    @property
    def found(self) -> dict[str, Any]:
        """The fields of the method's result."""
        own = type(self).model_fields.keys() - {*Inspected.model_fields, self.axis}
        return {name: getattr(self, name) for name in type(self).model_fields if name in own}

    def _parts(self) -> list[str]:
        return [self.attack, self.method, self.pretrain, _joined(self.tasks), f"s{self.seed}"]

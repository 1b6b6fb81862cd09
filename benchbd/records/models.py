"""Records of one cell or one inspection, complete enough to be read, compared and verified alone."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from benchbd.contract.roles import Role

SCHEMA: Literal[2] = 2

LONGEST_NAME = 200  # bytes of a record's file name: 255 are allowed, and its temporary name is longer

LONGEST_AUTHOR = 100  # characters

_COUNTED: dict[str, Any] = {"correct_triggered": True, "certified": True}

_MEASURED: dict[str, Any] = {"ra": True, "certified": True}

LATER: dict[str, Any] = {
    **dict.fromkeys(("attack_role", "defense_role", "point", "beside", "predictions"), True),
    **dict.fromkeys(("precision", "plugins", "isolation", "source", "author"), True),
    **dict.fromkeys(("counts", "baseline_counts"), _COUNTED),
    **dict.fromkeys(("metrics", "undefended"), _MEASURED),
    "baseline": {"ra_b": True},
    "cost": {"__all__": {"memory": True, "gpu_memory": True}},
    "gains": {"__all__": {"counts": _COUNTED, "baseline_counts": _COUNTED}},
}
"""The fields that records have since schema 2."""

Status = Literal["ok", "attack-failed", "n/a", "failed"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Counts(_Part):
    """The integers behind the percentages. Names follow the metrics.

    total, correct: test images, and how many are classified correctly without the trigger.
    hits: triggered test images that are classified as the target, those of the target class included.
    nontarget, hits_nontarget: the same without the images whose true class is the target.
    correct_triggered: how many of nontarget are classified correctly with the trigger. None in schema 1.
    certified: how many of correct have a prediction certified against any patch of the evaluator's declared size.
        None if the evaluator certifies nothing.
    """

    total: int
    correct: int
    hits: int
    nontarget: int
    hits_nontarget: int
    correct_triggered: int | None = None
    certified: int | None = None


class Metrics(_Part):
    """Percentages. asr counts every triggered test image (the papers' definition); asr_nontarget and ra leave out the
    images of the target class. ra: robust accuracy, of images with the trigger. certified: certified accuracy."""

    acc: float
    asr: float
    asr_nontarget: float
    ra: float | None = None
    certified: float | None = None


class Baseline(_Part):
    """The clean encoder under the same task, evaluator, trigger and seed, in percent: CA, ASR-B and its RA."""

    ca: float
    asr_b: float
    asr_b_nontarget: float
    ra_b: float | None = None


class Cost(_Part):
    """The measured cost of computing one stage.

    image_forwards: a forward of one image is 1, its backward 2 (1 if no weight gets a gradient).
    seconds, cpu_seconds: wall and process CPU time.
    memory, gpu_memory: most bytes of the process and of the GPU during the stage; None if not measured.
    """

    seconds: float
    cpu_seconds: float
    image_forwards: int
    memory: int | None = Field(None, ge=0)
    gpu_memory: int | None = Field(None, ge=0)


_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Origin(_Part):
    """The origin of a stage's method, or of a data set, trigger function, architecture or executor that takes part in
    the stage: a distribution, its version, and sha256 of the module's source.

    version: empty if the distribution has none. source: None for a module without source.
    """

    distribution: str
    version: str
    source: _Sha256 | None


class Entry(_Part):
    """The fields of every record, of a cell or of an inspection."""

    schema_version: Literal[1, 2] = Field(SCHEMA, alias="schema")
    board: str
    on_board: bool = Field(description="whether protocol, options and data are those of the board")
    departures: list[str] = Field(default_factory=list, description="in what the run departs from the board")
    attack: str
    attack_role: Role
    pretrain: str
    seed: int
    status: Status
    reason: str = ""
    key: str = Field(description="key of the last stage, also where it did not get that far")
    seconds: float | None = Field(None, description="wall seconds of the defense or detector, when it was computed")
    cost: dict[str, Cost] = Field(default_factory=dict, description="by kind of stage")
    stages: dict[str, str] = Field(default_factory=dict, description="full key by kind of stage")
    identity: dict[str, Any] = Field(
        default_factory=dict, description="methods with every option, data, trigger, seeds"
    )
    clean_images: list[int] = Field(default_factory=list, description="rows of the pool that the defender got")
    notes: list[str] = Field(default_factory=list, description="what a reader of the table must know, one line each")
    findings: dict[str, Any] = Field(default_factory=dict, description="what methods noted on their way, by kind")
    machine: dict[str, Any] = Field(default_factory=dict, description="device, threads and versions")
    point: dict[str, Any] = Field(default_factory=dict, description="of a sweep: value by option; else empty")
    precision: Literal["fp32", "bf16"] | None = Field(None, description="of the last stage")
    plugins: dict[str, Origin] = Field(
        default_factory=dict,
        description="by kind of stage, of its method; by KIND.AXIS:NAME, of what other distributions add to it",
    )
    isolation: Literal["none"] | None = Field(None, description="what kept methods apart: none, one process")
    source: str | None = Field(
        None, pattern="^[0-9a-f]{16}$", description="anonymous name of the store and machine that computed it"
    )
    author: str = Field("", max_length=LONGEST_AUTHOR, description="who ran it, in any words")

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, data: Any) -> Any:
        """A record of schema 1 with the fields that it lacks, which follow from the names of its methods."""
        if not isinstance(data, dict) or data.get("schema") != 1:
            return data
        return {**data, **{f"{axis}_role": _role(axis, data[axis]) for axis in ("attack", "defense") if axis in data}}

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
    def file(self) -> str:
        """The name of the file that the record was read from, else of the file that it would be written to."""
        return self.name

    def _parts(self) -> list[str]:
        raise NotImplementedError

    def to_json(self) -> str:
        """Indented JSON with sorted keys; lists of numbers stay on one line."""
        data = self.model_dump(mode="json", by_alias=True, exclude=LATER if self.schema_version == 1 else None)
        lines = []
        for name, value in sorted(data.items()):
            indent = None if name == "clean_images" else 1
            text = json.dumps(value, sort_keys=True, indent=indent, separators=(",", ": "))
            lines.append(f" {json.dumps(name)}: " + text.replace("\n", "\n "))
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _slug(point: dict[str, Any]) -> str:
    """A point in the name of a file: its assignments, or a digest if they are not allowed in a file's name."""
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
    return Role.SCRATCH if name == "scratch" else Role.METHOD


class Record(Entry):
    """One cell: attack x defense x (pretrain, task, target) x seed, under one evaluator."""

    defense: str
    defense_role: Role
    task: str
    target: int
    target_name: str
    evaluator: str
    metrics: Metrics | None = None
    counts: Counts | None = None
    baseline: Baseline | None = None
    baseline_counts: Counts | None = None
    undefended: Metrics | None = Field(None, description="the same cell under no defense")
    beside: list[str] = Field(default_factory=list, description="the tasks under attack, if its own is none of them")
    reference: dict[str, Any] = Field(default_factory=dict, description="where the reference inputs come from")
    predictions: _Sha256 | None = Field(None, description="sha256 of the file of predictions beside the record")
    _packed: bytes | None = PrivateAttr(None)

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

    counts: Counts
    baseline_counts: Counts

    @property
    def points(self) -> float:
        """ASR non-target minus the clean encoder's, in percentage points."""
        own, floor = self.counts, self.baseline_counts
        return 100 * (own.hits_nontarget - floor.hits_nontarget) / floor.nontarget


class Inspected(Entry):
    """One inspection: the result of a method of an axis that inspects for one encoder, clean or attacked.

    The record class of an axis derives from it, with a field of the axis's name, which contains the method, and the
    fields of its stage's result; these are None if there is none.
    """

    axis: ClassVar[str]
    evaluator: str = Field(description="by which an attack took, or did not")
    tasks: list[str] = Field(description="of the encoder's row, each DATASET:TARGET")
    gains: dict[str, Gain] = Field(default_factory=dict, description="whether the attack took, by task")

    @property
    def method(self) -> str:
        """The method that inspected."""
        return str(getattr(self, self.axis))

    @property
    def found(self) -> dict[str, Any]:
        """The fields of the method's result."""
        own = type(self).model_fields.keys() - {*Inspected.model_fields, self.axis}
        return {name: getattr(self, name) for name in type(self).model_fields if name in own}

    def _parts(self) -> list[str]:
        return [self.attack, self.method, self.pretrain, _joined(self.tasks), f"s{self.seed}"]


GATE = 15.0  # points by which an undefended ASR must exceed the clean floor for the attack to count

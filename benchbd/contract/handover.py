"""What crosses between the harness and a method, and back: plain data, the same in one process and in several.

A ``Handover`` is all that reaches a method, a ``Product`` or ``Failure`` all that comes back. Both turn into bytes
(large tensors into sealed files) and back, so whatever is not in them cannot be reached through them: no board, no
store, no parent stage, no other data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from benchbd.base.mapped import Region, private, region_of, seal
from benchbd.base.packed import packed, unpacked
from benchbd.contract.context import Reporter
from benchbd.contract.method import Call

INLINE = "inline"  # the executor that works in the process of the run: benchbd's own

LARGE = 2**20  # bytes from which a tensor crosses as a file and not as a part of the bytes


@dataclass(frozen=True, eq=False)
class Handover:
    """All that a stage's work is done from.

    kind: of the stage. methods: the method that does the work (``own``), and those that it may call.
    seed: the stage's own. precision: ``fp32`` or ``bf16``; tf32: whether CUDA may use it for float32.
    json, tensors, encoders: what the method is handed, by name; an encoder as the bytes of its safetensors file.
    """

    kind: str
    methods: Mapping[str, Call]
    seed: int
    precision: Literal["fp32", "bf16"]
    tf32: bool
    json: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    encoders: Mapping[str, bytes] = field(default_factory=dict)

    def pack(self, *, files: bool = True) -> tuple[bytes, list[Region]]:
        """Everything as bytes, but for tensors of ``LARGE`` bytes and more: those are sealed files, in order.

        files: False for a place that takes no open files: all tensors are in the bytes.
        """
        large = [name for name, tensor in self.tensors.items() if files and tensor.nbytes >= LARGE]
        regions = [region_of(self.tensors[name]) or seal(self.tensors[name]) for name in large]
        small = {name: tensor for name, tensor in self.tensors.items() if name not in large}
        facts = {name: value for name, value in vars(self).items() if name not in ("tensors", "encoders")}
        facts["methods"] = {role: vars(call) for role, call in self.methods.items()}
        return packed({**facts, "large": large}, small, self.encoders), regions

    @classmethod
    def unpack(cls, data: bytes, regions: Sequence[Region]) -> Self:
        """What ``pack`` packed. The large tensors are mapped: what is written to one reaches nobody else."""
        facts, small, encoders = unpacked(data)
        large = {name: region.map() for name, region in zip(facts.pop("large"), regions, strict=True)}
        methods = {role: Call(**call) for role, call in facts.pop("methods").items()}
        return cls(**facts, methods=methods, tensors=small | large, encoders=encoders)

    def private(self) -> Self:
        """A copy whose tensors share no storage with anybody's: what a method writes to them stays with it."""
        return replace(self, tensors={name: private(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, eq=False)
class Product:
    """What a method's work gave.

    json, tensors: the result, by name. encoder: the bytes of its safetensors file, if the work makes one.
    notes, kept: what the method noted and kept on its way.
    cost: ``seconds`` and ``cpu_seconds`` of the work, and its ``image_forwards``.
    memory: most bytes of the process in RAM (``memory``) and on the GPU (``gpu_memory``); None if not measured.
    """

    json: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    encoder: bytes | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int | None] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        facts = {name: getattr(self, name) for name in ("json", "notes", "cost", "memory")}
        facts["tensors"] = list(self.tensors)
        own = {f"own.{name}": tensor for name, tensor in self.tensors.items()}
        kept = {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        return packed(facts, own | kept, {} if self.encoder is None else {"encoder": self.encoder})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        facts, tensors, encoders = unpacked(data)
        own = {name: tensors.pop(f"own.{name}") for name in facts.pop("tensors")}
        kept = {name.removeprefix("kept."): tensor for name, tensor in tensors.items()}
        return cls(**facts, tensors=own, kept=kept, encoder=encoders.get("encoder"))


@dataclass(frozen=True)
class Failure:
    """Why a method's work gave nothing.

    status: ``n/a`` if the method says that it does not apply, else ``failed``. reason: one line.
    traceback: the text of it; empty if the reason says everything.
    """

    status: Literal["n/a", "failed"]
    reason: str
    traceback: str = ""


class Executor:
    """Where stages are worked on. A plugin derives from it and offers its class by the hook ``benchbd_executors``.

    name: how users call it, as in ``benchbd run --executor NAME``. slots: how many handovers it works on at once.
    ``carry_out`` does the work of a handover, in whatever process it is called.
    """

    name: ClassVar[str] = ""
    slots: int = 1

    def __init__(self, device: str) -> None:
        """device: on which the work is to be done, as torch names it."""
        self.device = device

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        """Begin the work of a handover. What a method raises is no exception of the future but a ``Failure``.

        report: to be called with step, steps and loss as the work goes on, on whatever thread.
        """
        raise NotImplementedError

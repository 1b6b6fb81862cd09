"""What passes between the harness and a method, and back: plain data, the same in one process and in several.

A ``Handover`` is a method's whole input, a ``Product`` or ``Failure`` its whole output. Both are converted to bytes
(large tensors to sealed files) and back, so they give access to nothing else: no board, no
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

INLINE = "inline"  # benchbd's own executor, which works in the process of the run

LARGE = 2**20  # bytes from which a tensor is passed as a file instead of as bytes


@dataclass(frozen=True, eq=False)
class Handover:
    """The whole input of a stage's work.

    kind: of the stage. methods: the method that does the work (``own``), and those that it may call.
    seed: the stage's own. precision: ``fp32`` or ``bf16``; tf32: whether CUDA may use it for float32.
    json, tensors, encoders: the method's input, by name; an encoder as the bytes of its safetensors file.
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
        """Everything as bytes, except tensors of ``LARGE`` bytes and more: those become sealed files, in order.

        files: False if the receiver takes no open files: all tensors are then in the bytes.
        """
        large = [name for name, tensor in self.tensors.items() if files and tensor.nbytes >= LARGE]
        regions = [region_of(self.tensors[name]) or seal(self.tensors[name]) for name in large]
        small = {name: tensor for name, tensor in self.tensors.items() if name not in large}
        facts = {name: value for name, value in vars(self).items() if name not in ("tensors", "encoders")}
        facts["methods"] = {role: vars(call) for role, call in self.methods.items()}
        return packed({**facts, "large": large}, small, self.encoders), regions

    @classmethod
    def unpack(cls, data: bytes, regions: Sequence[Region]) -> Self:
        """The handover from the result of ``pack``. Large tensors are mapped: writing to one changes no other copy."""
        facts, small, encoders = unpacked(data)
        large = {name: region.map() for name, region in zip(facts.pop("large"), regions, strict=True)}
        methods = {role: Call(**call) for role, call in facts.pop("methods").items()}
        return cls(**facts, methods=methods, tensors=small | large, encoders=encoders)

    def private(self) -> Self:
        """A copy whose tensors share no storage with others: a method's writes to them stay in the copy."""
        return replace(self, tensors={name: private(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, eq=False)
class Product:
    """The result of a method's work.

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
    """The reason why a method's work has no result.

    status: ``n/a`` if the method does not apply, ``timeout`` if it took too long, else ``error``. reason: one line.
    traceback: its text; empty if the reason is enough.
    """

    status: Literal["n/a", "timeout", "error"]
    reason: str
    traceback: str = ""


class Executor:
    """Computes stages, in any process. A plugin derives from it and offers its class by the hook ``benchbd_executors``.

    name: for users, as in ``benchbd run --executor NAME``. slots: the number of handovers that it works on at once.
    ``carry_out`` does the work of a handover, in any process.
    """

    name: ClassVar[str] = ""
    slots: int = 1

    def __init__(self, device: str) -> None:
        """device: of the work, in torch's notation."""
        self.device = device

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        """Begin the work of a handover. An error of a method is no exception of the future but a ``Failure``.

        report: call it with step, steps and loss as the work proceeds, from any thread.
        """
        raise NotImplementedError

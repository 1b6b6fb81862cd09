"""The axes: one row each. Options, boards, arguments, hooks, lists and the reference follow from these rows.

Nothing here imports torch: ``benchbd run --help`` lists the axes. The class of an axis is imported on first
use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

from benchbd.contract.specs import SECTIONS

if TYPE_CHECKING:
    from benchbd.contract.method import Method


@dataclass(frozen=True)
class Axis:
    """One axis. Its contract is the module ``benchbd/contract/NAME.py``.

    name: "attack". The option is ``--attack``, the argument ``attack=``, the hook ``benchbd_attacks``.
    kind: the class in that module that its methods derive from, by name.
    work: the members that a method must define, the method that does the work first.
    stage: the kind of its methods' stages: the file ``benchbd/stages/STAGE.py``; "" if they have no stages.
    grid: the methods that a board crosses by default: several names, one name as text, or None if a
        board has no field for the axis.
    about: description of the board's field, and of the option of ``run`` and ``plan``.
    inspects: whether its methods inspect every encoder of a board. A result is a record of the class
        KINDRecord in ``benchbd/records/NAME.py``; ``benchbd/report/NAME.py`` makes a document of such records.
    """

    name: str
    kind: str
    work: tuple[str, ...]
    stage: str = ""
    grid: str | tuple[str, ...] | None = None
    about: str = ""
    inspects: bool = False

    @cached_property
    def base(self) -> type[Method]:
        """The base class of this axis's methods."""
        found: type[Method] = getattr(import_module(f"benchbd.contract.{self.name}"), self.kind)
        return found

    @property
    def plural(self) -> str:
        return f"{self.name}s"

    @property
    def hook(self) -> str:
        """The hook that collects its methods."""
        return f"benchbd_{self.plural}"

    @property
    def several(self) -> bool:
        """Whether a board crosses any number of its methods, or only one."""
        return not isinstance(self.grid, str)

    @property
    def field(self) -> str:
        """The name of the board's field for its methods."""
        return self.plural if self.several else self.name


AXES: tuple[Axis, ...] = (
    Axis("dataset", "Dataset", ("load",)),
    Axis("pretraining", "Pretraining", ("pretrain", "architecture"), "pretrain", "simclr", about="pre-training method"),
    Axis("trigger", "TriggerFunction", ("stamp",)),
    Axis("attack", "Attack", ("inject",), "attack", ("none",), about="attacks, by name"),
    Axis("defense", "Mitigation", ("repair",), "defend", ("none",), about="defenses, by name"),
    Axis(
        "detection", "Detection", ("inspect",), "detect", (), about="detectors of all encoders, by name", inspects=True
    ),
    Axis("evaluator", "Evaluator", ("evaluate",), "evaluate", ("mlp",), about="downstream classifiers, by name"),
)

AXIS = {axis.name: axis for axis in AXES}
"""The rows by name."""

GRID = tuple(axis for axis in AXES if axis.grid is not None)
"""The axes for which boards and requests name methods."""

INSPECTING = tuple(axis for axis in AXES if axis.inspects)
"""The axes whose methods inspect every encoder of a board."""

RESERVED = {*SECTIONS, *AXIS, "board"}
"""Names that no method may have."""

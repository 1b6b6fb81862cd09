"""A board: a protocol and a grid, in one TOML file. Reading one imports no torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, create_model, model_validator

from benchbd.base.arguments import LARGEST, LARGEST_SEED, SMALLEST
from benchbd.base.content import expanded, write_file
from benchbd.base.errors import UnknownNameError, UsageError, brief, shown
from benchbd.base.inputs import read_toml
from benchbd.base.options import converted
from benchbd.contract.axes import AXIS, GRID, Axis
from benchbd.contract.specs import (
    SECTIONS,
    Budget,
    CleanSpec,
    Pin,
    ReferenceSpec,
    ShadowSpec,
    Table,
    TaskSpec,
    TriggerSpec,
)
from benchbd.planning.claims import Claim, Claims, Reported
from benchbd.records.gates import Gates
from benchbd.records.models import TRIAL

DEFAULT = "demo"

log = logging.getLogger("benchbd")

RENAMED = {"clean_images": ("clean", "images"), "shadow_images": ("shadow", "images")}
"""Table and field that replaced a field of a board."""


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [value.name if isinstance(value, Sweep) else value for value in values]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is listed {names.count(name)} times; list it once")
    return values


Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]

Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_distinct)]


class Row(Table):
    """One pre-training set and the downstream tasks attacked together on it, each ``DATASET:TARGET``.

    also: tasks that are evaluated on the row's encoders but not attacked. Their images get the first task's
        trigger, so that their ASR measures the attack's effect on them; no gate applies.

    triggers: one per task if several are attacked at once; without them all tasks share the board's trigger.
    """

    pretrain: str = Field(description="data set on which the encoder is pre-trained")
    tasks: tuple[str, ...] = Field(min_length=1, description="attacked tasks: DATASET:TARGET, a class index or name")
    triggers: tuple[TriggerSpec, ...] | None = Field(None, description="one per task; null: all have the board's")
    also: tuple[str, ...] = Field((), description="tasks that are evaluated but not attacked, each DATASET:TARGET")

    @property
    def evaluated(self) -> tuple[str, ...]:
        """All tasks, those that are attacked first."""
        return (*self.tasks, *self.also)


class Sweep(Table):
    """One factor that a board varies: an option with its values, or points of several assignments each.

    A point is the board with other assignments, as ``-o`` takes them; its cells are on-board.
    """

    name: str = Field(pattern=r"^\w[\w.-]*$", description="heading of its tables, and the value of --sweep")
    option: str | None = Field(None, description='the option that varies, as in "trigger.size" or "pretraining"')
    values: tuple[Any, ...] = Field((), description="values of the option, one per point")
    points: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description='instead of option and values: assignments by label, as in "ft.lr=0.1"'
    )

    @model_validator(mode="after")
    def _moves_one_thing(self) -> Self:
        """Raise ValueError unless there is an option with values, or points."""
        if self.option == TRIAL:
            raise ValueError(f"sweep {self.name}: {TRIAL} is neither of the form NAME.FIELD nor pretraining")
        if (self.option is None) != (not self.values) or (self.option is None) == (not self.points):
            raise ValueError(f"sweep {self.name} needs an option with its values, or points")
        return self


class Tuned(Table):
    """Trials of every ranked defense, from which clean images choose one: see the concepts.

    Trial 0 is the board's own setting; the others draw options from the ranges that the defense declares, the same on
    every board. They are the points of a sweep ``tuned-NAME``.
    """

    trials: int = Field(8, ge=2, le=1000, description="settings of each defense, the board's own among them")
    tolerance: float = Field(
        0.02, ge=0, le=1, description="fall of pretext accuracy, 0 to 1, below trial 0's that a choice may cost"
    )


Sweeps = Annotated[tuple[Sweep, ...], AfterValidator(_distinct)]


class _Head(Table):
    name: str = Field(pattern=r"^\w[\w.-]*$", description="name of the board; default: that of its file or folder")
    title: str = Field("", description="title in one line, for lists")
    description: str = Field("", description="text above the tables")


def _grid_field(axis: Axis) -> tuple[Any, Any]:
    """Type and declaration of the field for an axis. An axis that a board crosses by default is never empty."""
    if not axis.several:
        return str, Field(axis.grid, description=axis.about)
    return tuple[str, ...], Field(axis.grid, min_length=1 if axis.grid else None, description=axis.about)


if TYPE_CHECKING:
    _Grid = _Head  # ``Board.names`` returns the methods of an axis
else:
    _Grid = create_model("_Grid", __base__=_Head, **{axis.field: _grid_field(axis) for axis in GRID})


class Board(_Grid):
    """Protocol and grid. Cells are attacks x defenses x rows x seeds, each under every evaluator."""

    rows: tuple[Row, ...] = Field(min_length=1, description="pre-training sets with their tasks; see below")
    seeds: Seeds = Field((1,), description="run seeds, without duplicates")
    pretrain_seed: Seed | None = Field(None, description="one pre-training seed for all runs; null: the run seed")
    protocol: Literal[1, 2] = Field(1, description="2: three heads, none trained on reference inputs; 1: one, on all")
    image_size: int = Field(32, ge=SMALLEST, le=LARGEST, description="height and width of all images in pixels")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto is bf16 on CUDA and fp32 on a CPU")
    trigger: TriggerSpec = Field(TriggerSpec(), description="the trigger of all tasks; see below")
    reference: ReferenceSpec = Field(ReferenceSpec(), description="the attacker's reference inputs; see below")
    clean: CleanSpec = Field(CleanSpec(), description="images that a defender gets; see below")
    shadow: ShadowSpec = Field(ShadowSpec(), description="images on which an attacker tunes; see below")
    task: TaskSpec = Field(TaskSpec(), description="images that a detector of classifiers gets; see below")
    budget: Budget = Field(Budget(), description="steps and batch size of every defense; see below")
    gates: Gates = Field(Gates(), description="what a measured cell must hold to count; see below")
    claims: Claims = Field(default_factory=dict, description="what is said of methods, by method; see below")
    sweeps: Sweeps = Field((), description="factors that the board varies one at a time; see below")
    tuned: Tuned | None = Field(None, description="trials of every ranked defense; null: none; see below")
    options: dict[str, dict[str, Any]] = Field(default_factory=dict, description="options of methods, by method")
    data: dict[str, Pin] = Field(default_factory=dict, description="content that on-board data must have; see below")

    def names(self, axis: str) -> tuple[str, ...]:
        """The methods of an axis that the board crosses."""
        found: str | tuple[str, ...] = getattr(self, AXIS[axis].field)
        return (found,) if isinstance(found, str) else found

    _folder: Path | None = PrivateAttr(None)

    @property
    def folder(self) -> Path | None:
        """The folder for relative paths in the board's tables of options: that of its file; None without a file."""
        return self._folder


def boards_folder() -> Path:
    """The folder of benchbd's boards: inside an installed wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parent.parent
    packed = here / "leaderboards"
    return packed if packed.is_dir() else here.parent / "leaderboards"


def board_names() -> list[str]:
    return sorted(path.parent.name for path in boards_folder().glob("*/board.toml"))


def board_path(board: str | Path) -> Path:
    """The TOML file of a board given by name, by file, or by the folder that contains its ``board.toml``."""
    path = expanded(board)
    if path.is_dir() and (path / "board.toml").is_file():
        return path / "board.toml"
    if path.suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"board {shown(str(board))}: no such file")
        return path
    named = boards_folder() / str(board) / "board.toml"
    if path.name != str(board) or not named.is_file():
        raise UnknownNameError("board", str(board), board_names())
    return named


def load_board(board: str | Path) -> Board:
    """Read and check a board; UsageError names the file and its first fault.

    A board from elsewhere must not have the name of one of benchbd's, unless it is that board, whatever it claims:
    their records would mix.
    """
    path = board_path(board)
    folder = path.parent.absolute()  # absolute: a path joined to it twice stays the same
    name = folder.resolve().name if path.name == "board.toml" else path.stem
    data = {"name": name, **_in_new_words(read_toml(path, "board"), path)}
    try:
        loaded = Board.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        raise UsageError(f"board {path}: {_first_fault(error)}") from error
    if changed := converted(data, loaded):
        raise UsageError(f"board {path}: {changed}")
    loaded._folder = folder
    own = {"name": loaded.name, **read_toml(board_path(loaded.name), "board")} if loaded.name in board_names() else data
    if {**data, "claims": {}} != {**own, "claims": {}}:
        told = f"the name {shown(loaded.name)} is that of a board of benchbd, which is another; give it another"
        raise UsageError(f"board {path}: {told}")
    return loaded


def carry(board: str | Path, out: Path) -> None:
    """Copy a board's file into a folder that has none, with its name in it, so that the folder is that board."""
    source, target = board_path(board), out / "board.toml"
    if not target.exists():
        text, name = source.read_text(encoding="utf-8"), load_board(board).name
        named = text if "name" in read_toml(source, "board") else f'name = "{name}"\n{text}'
        write_file(target, named.encode())


def _in_new_words(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """The tables of a board's file, with old names of fields replaced; one warning line names all of them.

    UsageError if a field occurs under both names.
    """
    old = [field for field in RENAMED if field in data]
    data = dict(data)
    for field in old:
        table, option = RENAMED[field]
        inside = data.get(table, {})
        if isinstance(inside, dict):  # validation rejects any other type
            if option in inside:
                raise UsageError(f"board {path}: {field} is the old name of {table}.{option}: leave one of them out")
            data[table] = {**inside, option: data[field]}
        del data[field]
    if old:
        told = ", ".join(f"{field} is now {RENAMED[field][1]} in the table [{RENAMED[field][0]}]" for field in old)
        log.warning("board %s: %s; the old name is read", path, told)
    return data


def _first_fault(error: ValidationError) -> str:
    """The first fault of a board's file; for an unknown field, with the nearest one."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] != "extra_forbidden":
        return f"{brief(place)}: {first['msg'].removeprefix('Value error, ').lower()}"
    above, _, field = place.rpartition(".")
    tables: dict[str, Any] = {
        "rows": Row,
        "triggers": TriggerSpec,
        "data": Pin,
        "sweeps": Sweep,
        "gates": Gates,
        "claims": Claim,
        "reported": Reported,
        "tuned": Tuned,
        **SECTIONS,
    }
    table = next((tables[part] for part in reversed(above.split(".")) if part in tables), Board)
    return str(UnknownNameError(f"field of {above}" if above else "field", field, table.model_fields))

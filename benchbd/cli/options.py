"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from benchbd.base.arguments import LARGEST_SEED
from benchbd.base.content import expanded, unwritable
from benchbd.base.errors import UsageError
from benchbd.contract.axes import GRID, Axis
from benchbd.planning.board import DEFAULT

if TYPE_CHECKING:
    from benchbd.api import Session

F = TypeVar("F", bound=Callable[..., Any])


class PathType(click.Path):
    """A path, with ``~`` expanded if the shell did not, as in ``--store=~/results``."""

    def __init__(self, *, folder: bool = False) -> None:
        super().__init__(path_type=Path, file_okay=not folder)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":  # pathlib takes it for the working folder
            self.fail("the path is empty", param, ctx)
        return super().convert(expanded(value), param, ctx)


class PlaceType(PathType):
    """A path; an empty one, for example from an unset shell variable, counts as not given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) if value else None


def check_writable(path: Path, suffix: str = "") -> None:
    """Raise UsageError, before any work, if no file can be written there, or if its name does not end in ``suffix``."""
    if reason := unwritable(path):
        raise UsageError(reason)
    if suffix and path.suffix != suffix:
        raise UsageError(f"{path}: its name must end in {suffix}" + " after a stem" * (path.name == suffix))


data_root_option = click.option("--data-root", type=PlaceType(), help="Folder of the data sets.  [env: BENCHBD_DATA]")

device_option = click.option(
    "--device", default=None, metavar="DEVICE", help="Device: cpu, cuda or cuda:N.  [default: cuda if any]"
)

method_option = click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="NAME.FIELD=VALUE",
    help="Option of a method; repeat for several.",
)

precision_option = click.option(
    "--precision",
    default=None,
    metavar="P",
    help="fp32 or bf16; auto: the board's, or if it says auto too, bf16 on CUDA and fp32 on a CPU.  [default: auto]",
)

store_option = click.option("--store", type=PlaceType(), help="Folder of the results.  [env: BENCHBD_STORE]")


def _axis_option(axis: Axis) -> Callable[[F], F]:
    """``--attack A``, whose values a command receives as ``attacks``."""
    about = f"{axis.about[0].upper()}{axis.about[1:]}{'; repeat for several' if axis.several else ''}."
    letter = axis.name[0].upper()
    return click.option(f"--{axis.name}", axis.field, default=None, multiple=axis.several, metavar=letter, help=about)


def grid_options(command: F) -> F:
    """The options that `run` and `plan` share: the board, the part of its grid, options and places."""
    axes = {axis.name: _axis_option(axis) for axis in GRID}
    for option in reversed(
        [
            click.option("--board", default=None, metavar="B", help=f"Board by name or path.  [default: {DEFAULT}]"),
            axes.pop("attack"),
            axes.pop("defense"),
            click.option("--only", is_flag=True, help="Omit the cells that --defense adds for comparison."),
            axes.pop("pretraining"),
            click.option("--pretrain", default=None, metavar="P", help="Pre-training data set."),
            click.option(
                "--encoder",
                type=PathType(),
                metavar="FILE",
                help="Evaluate the encoder in a file instead of training one.",
            ),
            click.option(
                "--task",
                "tasks",
                multiple=True,
                metavar="T[:TARGET]",
                help="Downstream task and target class; repeat for several.",
            ),
            click.option(
                "--seed",
                "seeds",
                multiple=True,
                type=click.IntRange(0, LARGEST_SEED),
                metavar="N",
                help="Run seed; repeat for several.",
            ),
            axes.pop("evaluator"),
            *axes.values(),
            method_option,
            click.option(
                "--sweep", "sweeps", multiple=True, metavar="S", help="Select only this sweep; repeat for several."
            ),
            data_root_option,
            store_option,
            device_option,
            precision_option,
            click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
            click.option("--quiet", is_flag=True, help="Print no progress."),
        ]
    ):
        command = option(command)
    return command


def open_session(arguments: dict[str, Any], **more: Any) -> Session:
    from benchbd.api import Session
    from benchbd.planning.selection import Selection

    board = arguments["board"]
    if board is None:
        board = DEFAULT
        if not arguments["quiet"]:
            click.echo(f"no --board given: this is the {DEFAULT} board (generated images, small encoder)", err=True)
    asked = [*(field.name for field in fields(Selection)), *(axis.field for axis in GRID)]
    selection = Selection.of(**{name: value for name, value in arguments.items() if name in asked})
    places = {name: arguments[name] for name in ("data_root", "store", "device", "encoder")}
    return Session.open(board, selection, **places, **more)


def record_options(command: F) -> F:
    """The options that name the records for a command that reads records."""
    for option in (
        click.option("--store", type=PlaceType(), help="Read the records of this store.  [env: BENCHBD_STORE]"),
        click.option(
            "--records",
            multiple=True,
            type=PathType(folder=True),
            help="Read records from this folder; repeat to pool those of several laboratories.",
        ),
    ):
        command = option(command)
    return command

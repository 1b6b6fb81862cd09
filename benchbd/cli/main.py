"""The command line. Nothing here imports torch until a command needs it: ``--help`` and ``leaderboard`` never do."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from benchbd._version import __version__
from benchbd.base.content import expanded
from benchbd.base.errors import BenchbdError, DataError, UnknownNameError, UsageError, shown
from benchbd.base.inputs import obstacle
from benchbd.base.process import Stopped, columns, discard, kept_stdout, messages_may_be_lost, say, stopped_by_signals
from benchbd.planning.board import DEFAULT, LARGEST_SEED
from benchbd.report.writers.columns import WIDTH, Column, kept, table, wrapped
from benchbd.report.writers.safe import plain

if TYPE_CHECKING:
    from benchbd.api import Session
    from benchbd.planning.board import Board
    from benchbd.records.models import DetectionRecord, Record


# Read when torch is loaded: how long its threads spin before they sleep. At the default of 300,000 rounds two threads
# beside a busy process are an order of magnitude slower; a few thousand cost nothing on a quiet machine.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

LONGEST = 30  # characters of the name of an entry point or a distribution that a table shows

HALF = 1000  # characters that are shown of either end of a message: all of any that is read

F = TypeVar("F", bound=Callable[..., Any])


def _one_line(message: object) -> str:
    """A message on one line; of one that repeats a very long argument, both ends."""
    line = plain(" ".join(str(message).split()))
    return line if len(line) <= 2 * HALF else f"{line[:HALF]} ... {line[-HALF:]}"


class _Warnings(logging.Handler):
    """One line per warning, or remark on progress, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(f"{mark}{_one_line(record.getMessage())}", err=True)


class _Error(click.ClickException):
    """One line and exit code 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        click.echo(f"error: {_one_line(self.message)}", err=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Our own errors and click's become an _Error."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        raise _Error(error.format_message() + hint) from error
    except BenchbdError as error:
        raise _Error(str(error)) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # click's: a reader that has seen enough is no error
            raise
        if error.errno == errno.ENOSPC and error.filename is None:
            discard(sys.stdout)
        place = f"{error.filename}: " if error.filename is not None else ""
        raise _Error(f"{place}{obstacle(error) or error}") from error
    except ImportError as error:  # a library that does not fit into memory; any other is a broken installation
        if not (reason := obstacle(error)):
            raise
        raise _Error(f"{str(error).partition(':')[0]} cannot be loaded: {reason}") from error
    except MemoryError as error:
        raise _Error(f"there is too little memory{f' ({error})' if str(error) else ''}") from error


class _Command(click.Command):
    """What it works with may print: only what it says itself reaches stdout."""

    def invoke(self, ctx: click.Context) -> Any:
        top = ctx.find_root().command
        with kept_stdout(restore=not (isinstance(top, _Group) and top.standalone)):
            return super().invoke(ctx)


class _Group(click.Group):
    """Every mistake is one line and exit code 2; a signal that ends the process is 128 and its number.

    standalone: whether the process ends with the command.
    """

    command_class = _Command
    group_class = type  # subgroups are of this class too
    standalone = False

    def main(self, *args: Any, **kwargs: Any) -> Any:
        self.standalone = kwargs.get("standalone_mode", True)
        log = logging.getLogger("benchbd")
        handler = _Warnings()
        log.addHandler(handler)
        try:
            with messages_may_be_lost(), stopped_by_signals():
                return super().main(*args, **kwargs)
        finally:
            log.removeHandler(handler)
            log.setLevel(logging.NOTSET)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _one_line_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            click.echo("interrupted: finished stages are kept; the same command goes on from there", err=True)
            ctx.exit(128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UnknownNameError("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="benchbd")
def main() -> None:
    """Cross backdoor attacks on self-supervised image encoders with the defenses against them.

    Start with `benchbd run`: it needs no data and takes a few minutes.
    """


class _Path(click.Path):
    """A path, with ``~`` expanded where the shell has left it: it does in ``--store=~/results``."""

    def __init__(self, *, folder: bool = False) -> None:
        super().__init__(path_type=Path, file_okay=not folder)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expanded(value), param, ctx)


class _Place(_Path):
    """A path; an empty one, as of a shell variable that is not set, counts as not given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) if value else None


data_root_option = click.option("--data-root", type=_Place(), help="Data sets.  [env: BENCHBD_DATA]")

device_option = click.option(
    "--device", default=None, metavar="DEVICE", help="cpu, cuda or cuda:N.  [default: cuda if any]"
)


def grid_options(command: F) -> F:
    """What `run` and `plan` share: the board, the part of its grid, options and places."""
    for option in reversed(
        [
            click.option("--board", default=None, metavar="B", help=f"Board by name or path.  [default: {DEFAULT}]"),
            click.option("--attack", "attacks", multiple=True, metavar="A", help="Attack; repeat for several."),
            click.option("--defense", "defenses", multiple=True, metavar="D", help="Defense; repeat for several."),
            click.option("--only", is_flag=True, help="Without the cells that --defense brings for comparison."),
            click.option("--pretraining", default=None, metavar="M", help="Pre-training method."),
            click.option("--pretrain", default=None, metavar="P", help="Pre-training data set."),
            click.option(
                "--task", "tasks", multiple=True, metavar="T[:TARGET]", help="Downstream task and target class; repeat."
            ),
            click.option(
                "--seed", "seeds", multiple=True, type=click.IntRange(0, LARGEST_SEED), help="Run seed; repeat."
            ),
            click.option("--evaluator", "evaluators", multiple=True, metavar="E", help="Evaluator; repeat."),
            click.option("--detection", "detections", multiple=True, metavar="D", help="Detector; repeat."),
            click.option(
                "-o", "--option", "options", multiple=True, metavar="NAME.FIELD=VALUE", help="Method option; repeat."
            ),
            data_root_option,
            click.option("--store", type=_Place(), help="Results.  [env: BENCHBD_STORE]"),
            device_option,
            click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
            click.option("--quiet", is_flag=True, help="No progress."),
        ]
    ):
        command = option(command)
    return command


def _session(arguments: dict[str, Any], **more: Any) -> Session:
    from benchbd.api import Session
    from benchbd.planning.selection import Selection

    board = arguments["board"]
    if board is None:
        board = DEFAULT
        if not arguments["quiet"]:
            click.echo(f"no --board given: this is the {DEFAULT} board (generated images, small encoder)", err=True)
    selection = Selection(**{field.name: arguments[field.name] for field in fields(Selection)})
    places = {name: arguments[name] for name in ("data_root", "store", "device")}
    return Session.open(board, selection, **places, **more)


@main.command()
@grid_options
@click.option("--download", is_flag=True, help="Fetch known data sets that are absent.")
def run(download: bool, **arguments: Any) -> None:
    """Compute every cell of a board, or of a part of it, and print the table.

    Beside a --defense stand the undefended encoder, the floor (the clean one) and scratch, for the attacks and
    evaluators asked for; --only leaves them out, --json marks them "context": true.

    What the store has is not computed again, so the same command resumes an interrupted run, and runs on one store at
    the same time share the work. Exit code: 0 all cells done, 1 some failed, 2 wrong usage or data, 130 interrupted,
    143 terminated.
    """
    from benchbd.cli.terminal import Terminal
    from benchbd.engine.store import records_folder
    from benchbd.report import populations as detections
    from benchbd.report.leaderboard import terminal_table
    from benchbd.report.rows import Order

    session = _session(arguments, download=download)
    terminal = Terminal(sys.stderr, quiet=arguments["quiet"])
    if not arguments["quiet"]:
        logging.getLogger("benchbd").setLevel(logging.INFO)  # for whom a run waits
    session.registry.manager.register(terminal, name="terminal")
    with terminal:
        records = session.run()
        inspected = session.inspect()
    if not arguments["quiet"]:
        click.echo(f"records: {records_folder(session.store, session.board.name)}", err=True)
    if arguments["as_json"]:
        document = {
            "board": session.board.name,
            "records": [
                json.loads(record.to_json()) | ({"context": True} if session.is_context(record) else {})
                for record in records
            ],
            "detections": [json.loads(record.to_json()) for record in inspected],
        }
        say(json.dumps(document, indent=1))
    else:
        order = Order.of(session.board)
        say(terminal_table(records, order, columns(WIDTH)), nl=False)
        if text := detections.render(inspected, order=order, off_board=True, width=columns(WIDTH)):
            say(f"\n{text}", nl=False)
    if any(record.status == "failed" for record in (*records, *inspected)):
        sys.exit(1)


@main.command()
@grid_options
def plan(**arguments: Any) -> None:
    """Show the stages that `run` with the same arguments would compute, which are cached, and what they may cost.

    A large grid is summed up by kind and method; --json has every stage.
    """
    from benchbd.cli.plan_text import render

    session = _session(arguments)
    text = render(session, session.plan(strict=False), as_json=arguments["as_json"], width=columns(WIDTH))
    say(text, nl=False)


@main.command("list")
@click.argument("axis", required=False)
@data_root_option
@click.option("--json", "as_json", is_flag=True, help="Names by axis as JSON on stdout.")
def list_(axis: str | None, data_root: Path | None, as_json: bool) -> None:
    """List every method by AXIS (dataset, pretraining, attack, defense, detection, evaluator), and the boards.

    Data sets are those that plugins know and those that lie in the data root.
    """
    from benchbd.contract.axes import AXES
    from benchbd.contract.describe import summary
    from benchbd.contract.registry import load_registry
    from benchbd.data.library import DataLibrary, find_data_root
    from benchbd.planning.board import board_names, load_board

    registry, root = load_registry(), find_data_root(data_root)
    axes: dict[str, list[str]] = {name: registry.names(name) for name in AXES} | {"board": board_names()}
    axes["dataset"] = sorted({*axes["dataset"], *DataLibrary({}, root, root).names()})
    if axis is not None:
        singular = axis.removesuffix("s")
        if singular not in axes:
            raise UnknownNameError("axis", axis, axes)
        axes = {singular: axes[singular]}
    if as_json:
        say(json.dumps(axes, indent=1))
        return
    for name, methods in axes.items():
        say(f"{name}")
        for method in methods:
            if name == "board":
                about = load_board(method).title
            elif method in registry.methods[name]:
                about = summary(registry.get(name, method))
            else:
                about = f"In {root / method}."
            lines = wrapped(about, columns(WIDTH), f"  {plain(method):<15} ", " " * 18)
            say("\n".join(lines or [f"  {plain(method)}"]))


@main.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--toml", "as_toml", is_flag=True, help="A board's file on stdout: where a board of your own may start.")
def show(name: str, as_json: bool, as_toml: bool) -> None:
    """Show a method: what it does, its paper, and every option with type, bounds, default and help. Or a board's grid.

    NAME is the name of a method or board, or AXIS:NAME where a name stands on several axes; the path of a board; or a
    part of the protocol that -o reaches too: trigger, reference, budget.
    """
    from benchbd.contract.axes import AXES
    from benchbd.contract.describe import document, section
    from benchbd.contract.registry import load_registry
    from benchbd.contract.specs import SECTIONS
    from benchbd.planning.board import board_names

    registry = load_registry()
    methods = {known for axis in AXES for known in registry.names(axis)}
    if name not in methods and (name.endswith(".toml") or (expanded(name) / "board.toml").is_file()):
        _show_board(name, as_json, as_toml)
        return
    if as_toml and not (name.rpartition(":")[0] in ("", "board") and name.removeprefix("board:") in board_names()):
        raise UsageError(f"--toml shows a board, which {shown(name)} is not: {', '.join(board_names())}")
    if name in SECTIONS:
        _show_methods([section(name)], as_json)
        return
    axis, _, bare = name.rpartition(":")
    if axis not in ("", "board", *AXES):
        raise UnknownNameError("axis", axis, [*AXES, "board"])
    if axis == "board" or (not axis and bare in board_names() and bare not in methods):
        _show_board(bare, as_json, as_toml)
        return
    if not axis and bare not in methods:
        raise UnknownNameError("method", bare, {*methods, *board_names(), *SECTIONS})
    classes = [registry.get(axis, bare)] if axis else registry.find(bare)
    _show_methods([document(cls, registry.plugin_of(cls.axis, cls.name).distribution) for cls in classes], as_json)


_OPTIONS = (
    *(Column("option", words=True), Column("type", words=True, least=12), Column("bounds", words=True, rank=1)),
    *(Column("default", words=True, least=8), Column("help", words=True, least=24)),
)


def _show_methods(documents: list[dict[str, Any]], as_json: bool) -> None:
    """Methods, or parts of the protocol, which have no version and paper."""
    if as_json:
        say(json.dumps(documents[0] if len(documents) == 1 else documents, indent=1))
        return
    width = columns(WIDTH)
    for about in documents:
        version = f" (version {about['version']}, {about['distribution']})" if "version" in about else ""
        lines = [f"{about['axis']} {about['name']}{version}", "", *kept(about["help"], width), ""]
        if "paper" in about:
            lines += [*wrapped(f"paper: {about['paper'] or '-'}", width), ""]
        rows = [[f["name"], f["type"], f["bounds"], json.dumps(f["default"]), f["help"]] for f in about["options"]]
        lines += table(_OPTIONS, rows, width, rule=True) if rows else ["no options"]
        say("\n".join(lines))


def _show_board(name: str, as_json: bool, as_toml: bool) -> None:
    from benchbd.planning.board import board_path, load_board

    board = load_board(name)  # in any form: only a board that is sound is shown
    if as_json and as_toml:
        raise UsageError("--json or --toml, not both")
    if as_toml:
        say(board_path(name).read_text(encoding="utf-8-sig"), nl=False)
        return
    if as_json:
        say(json.dumps(board.model_dump(mode="json"), indent=1))
        return
    width = columns(WIDTH)
    lines = [*wrapped(f"board {board.name}: {board.title}", width), ""]
    if about := board.description.strip():
        lines += [*kept(about, width), ""]
    budget = board.budget.model_dump(exclude_none=True)
    grid = [
        *(("row", f"{row.pretrain} -> {', '.join(row.tasks)}") for row in board.rows),
        ("pretraining", board.pretraining),
        ("attacks", ", ".join(board.attacks)),
        ("defenses", ", ".join(board.defenses)),
        *((("detections", ", ".join(board.detections)),) if board.detections else ()),
        ("evaluators", ", ".join(board.evaluators)),
        ("seeds", ", ".join(map(str, board.seeds))),
        ("budget of defenses", ", ".join(f"{name} {value}" for name, value in budget.items()) or "their defaults"),
        ("clean images", str(board.clean_images)),
        *((f"{name}.{field}", json.dumps(v)) for name, table in board.options.items() for field, v in table.items()),
    ]
    say("\n".join([*lines, *table((Column("", words=True), Column("", words=True, least=24)), grid, width)]))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def plugins(as_json: bool) -> None:
    """List every plugin: its distribution, version, what it adds, and what is wrong with it."""
    from benchbd.contract.registry import load_registry

    log = logging.getLogger("benchbd")
    log.disabled = True  # the table says what the warnings would
    try:
        found = load_registry().plugins
    finally:
        log.disabled = False
    if as_json:
        say(json.dumps([vars(plugin) for plugin in found], indent=1))
        return
    rows = []
    for plugin in found:
        adds = "; ".join(f"{axis}: {', '.join(names)}" for axis, names in plugin.adds.items())
        names = (_beginning(name) for name in (plugin.name, plugin.distribution, plugin.version))
        rows.append([*names, adds or "-", plugin.problem or "ok"])
    heads = (
        *(Column("plugin", words=True), Column("distribution", words=True, rank=1)),
        *(Column("version", words=True, rank=2), Column("adds", words=True, least=24)),
        Column("state", words=True, least=24),
    )
    say("\n".join(table(heads, rows, columns(WIDTH), rule=True)))


def _beginning(name: str) -> str:
    """A name that leaves room for the rest of a row."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."


def _records_of(
    board: Board, named: str, records: Path | None, store: Path | None
) -> tuple[list[Record], list[DetectionRecord]]:
    """The records of a board: those in --records, else the store's, else those published with the board."""
    from benchbd.engine.store import default_root, records_folder
    from benchbd.planning.board import board_path
    from benchbd.records.files import read_detections, read_records
    from benchbd.report.leaderboard import check_board

    stored, published = records_folder(store or default_root(), board.name), board_path(named).parent / "records"
    places = [records] if records is not None else [stored, published]
    # What --records is easily taken for: the folder of the board, or the store.
    near = [] if records is None else [records / "records", records_folder(records, board.name)]
    hint = "".join(
        f"; records are in {place}" for place in near if os.path.isdir(place) and any(place.glob("*_s*.json"))
    )
    for place in places:
        try:
            found, detected = read_records(place), read_detections(place)
        except DataError as error:
            raise DataError(f"{error}{hint}") from error
        if found or detected:
            check_board((*found, *detected), board.name, place)
            if place == stored and records is None and any(published.rglob("*.json")):
                click.echo(f"reading {stored}; the published records are in {published} (--records)", err=True)
            return found, detected
    looked = " or ".join(map(str, places))
    instead = hint or f": run it first with benchbd run --board {board.name}"
    raise UsageError(f"no records of board {board.name} in {looked}{instead}")


def record_options(command: F) -> F:
    """Where a command that reads records finds them."""
    for option in (
        click.option("--store", type=_Place(), help="Read the store's records.  [env: BENCHBD_STORE]"),
        click.option("--records", type=_Path(folder=True), help="Read records from this folder."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("board", required=False)
@click.option("--paper", is_flag=True, help="With the figures that the papers publish.")
@record_options
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
def compare(board: str | None, paper: bool, records: Path | None, store: Path | None, form: str) -> None:
    """Lay the records of BOARD (default: the demo board) beside published figures.

    Where the board follows the paper's protocol, with differences; on other data, encoders or triggers the orderings of
    the defenses alone. Records come from --records, else from the store, else from those published with the board.
    """
    from benchbd.papers.text import render
    from benchbd.planning.board import load_board

    if not paper:
        raise UsageError("say what to compare with: --paper")
    loaded = load_board(board or DEFAULT)
    found, _ = _records_of(loaded, board or DEFAULT, records, store)
    say(render(loaded, found, form, columns(WIDTH)), nl=False)


@main.command()
@click.argument("record", type=_Path())
@click.option(
    "--out",
    type=_Path(folder=True),
    default=Path("figures"),
    show_default=True,
    help="Folder.",
)
@click.option("--board", metavar="B", help="The record's board where it is not one of benchbd's: it has the trigger.")
@click.option("--store", type=_Place(), help="Where it was computed.  [env: BENCHBD_STORE]")
@data_root_option
@device_option
def figures(
    record: Path, out: Path, board: str | None, store: Path | None, data_root: Path | None, device: str | None
) -> None:
    """Draw the pictures of RECORD, the JSON file of a cell, as PNG, SVG and PDF.

    The trigger on test images, inverted triggers, attention before and after the repair, mutual information by layer,
    and the features in two dimensions; each where it applies. Of a published record, which has no store, what its data
    allow.
    """
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files; what a notebook has set need not exist here
    from benchbd.api import Session
    from benchbd.figures.pictures import draw
    from benchbd.planning.board import board_names
    from benchbd.records.files import read_record

    cell = read_record(record)
    named = board or (cell.board if cell.board in board_names() else None)
    session = Session.open(named or DEFAULT, store=store, data_root=data_root, device=device)
    drawn = draw(
        cell,
        out,
        store=session.store,
        library=session.library,
        device=session.device,
        board=session.board if named else None,
    )
    for path in drawn.paths:
        say(path)
    for line in drawn.left_out:
        click.echo(f"left out: {_one_line(line)}", err=True)


@main.group()
def leaderboard() -> None:
    """Tables from records. Needs no torch and no data."""


@leaderboard.command("build")
@click.argument("board", required=False)
@click.option("--out", type=_Path(folder=True), help="Write README, CSV, JSON, LaTeX and records.")
@record_options
@click.option(
    "--format", "form", type=click.Choice(["markdown", "csv", "json", "latex"]), default="markdown", show_default=True
)
@click.option("--off-board", is_flag=True, help="Rows for off-board records too, by kind of departure.")
def build_leaderboard(
    board: str | None, out: Path | None, records: Path | None, store: Path | None, form: str, off_board: bool
) -> None:
    """Build the tables of BOARD (default: the demo board) from its records.

    Records come from --records, else from the store, else from those that are published with the board.
    """
    from benchbd.planning.board import load_board
    from benchbd.report import populations as detections
    from benchbd.report.leaderboard import build, render
    from benchbd.report.rows import Order

    loaded = load_board(board or DEFAULT)
    found, detected = _records_of(loaded, board or DEFAULT, records, store)
    known = [*found, *detected]
    if not off_board and not any(record.on_board for record in known):
        click.echo(f"all {len(known)} records are off-board and left out: --off-board shows them", err=True)
    if out is not None:
        build(loaded.name, found, out, Order.of(loaded), loaded.description, off_board, detected)
        click.echo(f"wrote the tables and {len(known)} records of board {loaded.name} to {out}", err=True)
        return
    say(render(found, form, loaded.title, Order.of(loaded), off_board), nl=False)
    if form == "markdown" and (table := detections.render(detected, form, Order.of(loaded), off_board)):
        say(f"\n## Detection\n\n{table}", nl=False)
    elif detected:
        click.echo(f"{len(detected)} detection records are not in this format: give --out", err=True)


if __name__ == "__main__":
    main()

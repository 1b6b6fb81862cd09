"""``benchbd list``, ``show`` and ``plugins``: the methods, boards and plugins that are installed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len

from benchbd.base.content import expanded
from benchbd.base.errors import UnknownNameError, UsageError, shown
from benchbd.base.process import columns, say
from benchbd.cli.group import Command
from benchbd.cli.options import data_root_option
from benchbd.contract.axes import AXIS, GRID
from benchbd.planning.board import Row, Sweep
from benchbd.report.document import Column, Document, Section, Table
from benchbd.report.writers import text
from benchbd.report.writers.columns import WIDTH, kept, wrapped
from benchbd.report.writers.safe import plain

LONGEST = 30  # characters of the name of an entry point or a distribution in a table, and room for a name


@click.command(
    "list",
    cls=Command,
    help=f"""List methods, architectures, executors and boards.

    AXIS limits the list to one of {", ".join(AXIS)}, architecture, executor, board.

    Data sets are those that plugins know and those that lie in the data root.
    """,
)
@click.argument("axis", required=False)
@data_root_option
@click.option("--json", "as_json", is_flag=True, help="Print the names by axis as JSON.")
def list_(axis: str | None, data_root: Path | None, as_json: bool) -> None:
    from benchbd.cli.describe import summary
    from benchbd.data.library import DataLibrary, find_data_root
    from benchbd.engine.executors import executors_of
    from benchbd.planning.board import board_names, load_board
    from benchbd.registry import load_registry

    registry, root = load_registry(), find_data_root(data_root)
    known: dict[str, Mapping[str, type]] = {**registry.methods}
    known |= {"architecture": registry.architectures, "executor": executors_of(registry)}
    axes: dict[str, list[str]] = {name: sorted(classes) for name, classes in known.items()}
    axes["board"] = board_names()
    axes["dataset"] = sorted({*axes["dataset"], *DataLibrary({}, root, root).names()})
    if axis is not None:
        singular = axis.removesuffix("s")
        if singular not in axes:
            raise UnknownNameError("axis", axis, axes)
        axes = {singular: axes[singular]}
    if as_json:
        say(json.dumps(axes, indent=1))
        return
    room = min(LONGEST, max((cell_len(plain(method)) for methods in axes.values() for method in methods), default=0))
    for name, methods in axes.items():
        if not methods:
            if axis is not None:
                say(f"no {name} is registered")
            continue
        say(f"{name}")
        for method in methods:
            if name == "board":
                about = load_board(method).title
            elif method in known[name]:
                about = summary(known[name][method])
            else:
                about = f"In {root / method}."
            begin = f"  {plain(method)}{' ' * (room - cell_len(plain(method)))}  "
            lines = wrapped(about, columns(WIDTH), begin, " " * (room + 4))
            say("\n".join(lines or [f"  {plain(method)}"]))


@click.command(cls=Command)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--toml", "as_toml", is_flag=True, help="Print the file of a board, for a board of your own.")
def show(name: str, as_json: bool, as_toml: bool) -> None:
    """Show a method, a board, an architecture or an executor.

    A method is shown with its paper, and with the type, bounds, default and help of every option.

    NAME is the name of one of them; AXIS:NAME if several axes have that name; the path of a board; or a part of the
    protocol that -o can set too: trigger, reference, clean, shadow, task, budget.
    """
    from benchbd.cli.describe import architecture, document, executor, section
    from benchbd.contract.specs import SECTIONS
    from benchbd.engine.executors import executors_of
    from benchbd.planning.board import board_names
    from benchbd.registry import load_registry

    registry = load_registry()
    architectures, executors = registry.architectures, executors_of(registry)
    methods = {known for axis in AXIS for known in registry.names(axis)}
    if name not in methods and (name.endswith(".toml") or (expanded(name) / "board.toml").is_file()):
        _show_board(name, as_json, as_toml)
        return
    if as_toml and not (name.rpartition(":")[0] in ("", "board") and name.removeprefix("board:") in board_names()):
        raise UsageError(f"--toml shows a board, which {shown(name)} is not: {', '.join(board_names())}")
    if name in SECTIONS:
        _show_methods([section(name)], as_json)
        return
    axis, _, bare = name.rpartition(":")
    if axis not in (known := ["", *AXIS, "architecture", "executor", "board"]):
        raise UnknownNameError("axis", axis, known[1:])
    if axis == "board" or (not axis and bare in board_names() and bare not in methods):
        _show_board(bare, as_json, as_toml)
        return
    found = []
    if axis in ("", "architecture") and bare in architectures:
        found.append(architecture(architectures[bare], registry.plugin_of("architecture", bare).distribution))
    if axis in ("", "executor") and bare in executors:
        found.append(executor(bare, executors[bare], registry.plugin_of("executor", bare).distribution))
    if axis in ("architecture", "executor") and not found:
        raise UnknownNameError(axis, bare, architectures if axis == "architecture" else executors)
    if bare in methods or not found:
        classes = registry.find(name, besides=[*board_names(), *SECTIONS, *architectures, *executors])
        own = [document(cls, registry.plugin_of(cls.axis, cls.name).distribution) for cls in classes]
        found = own + found
    _show_methods(found, as_json)


def _show_methods(documents: list[dict[str, Any]], as_json: bool) -> None:
    """Print methods, parts of the protocol, which have no version and paper, or things with a name and no options."""
    if as_json:
        say(json.dumps(documents[0] if len(documents) == 1 else documents, indent=1))
        return
    width = columns(WIDTH)
    for about in documents:
        origin = [f"version {about['version']}"] if "version" in about else []
        origin += [about["distribution"]] if "distribution" in about else []
        told = f" ({', '.join(origin)})" if origin else ""
        lines = [f"{about['axis']} {about['name']}{told}", "", *kept(about["help"], width), ""]
        if "paper" in about:
            lines += [*wrapped(f"paper: {about['paper'] or '-'}", width), ""]
        if ranges := about.get("tunable"):
            told = "; ".join(f"{option} {span}" for option, span in ranges.items())
            lines += [*wrapped(f"trials draw: {told}", width), ""]
        if "stages" in about:
            lines.append(_table((Column("", "words"), Column("", "words", least=24)), _facts(about), width))
        if "options" not in about:
            say("\n".join(lines).rstrip())
            continue
        say("\n".join([*lines, *(_options(about["options"], width) or ["no options"])]))


def _options(options: Sequence[dict[str, Any]], width: int) -> list[str]:
    """Two paragraphs per option, behind its name: type, bounds and default, then the help.

    A table would have five columns, which leave a terminal of 80 columns no room for the help.
    """
    room = min(LONGEST, max((cell_len(plain(option["name"])) for option in options), default=0)) + 2
    indent, lines = " " * room, []
    for option in options:
        name = plain(option["name"])
        facts = filter(None, (option["type"], option["bounds"], f"default {json.dumps(option['default'])}"))
        lines += wrapped(", ".join(facts), width, f"{name}{' ' * max(1, room - cell_len(name))}", indent)
        lines += wrapped(option["help"], width, indent, indent)
    return lines


def _facts(about: dict[str, Any]) -> list[list[str]]:
    """The facts about an architecture, as rows; a dash for a fact that only a built one has."""
    size, needs = about["image_size"], about["needs"]
    return [
        ["stages", ", ".join(about["stages"] or "-")],
        ["feature dimension", f"{about['feature_dim'] or '-'}"],
        ["parameters", "-" if about["parameters"] is None else f"{about['parameters']:,}"],
        ["image size", f"{size or '32 to 224'} pixels"],
        ["features", "one a channel of the last stage" if about["channelwise"] else "mix the last stage's channels"],
        ["needs", f"{needs[0]}: pip install '{needs[1]}'" if needs else "-"],
    ]


def _show_board(name: str, as_json: bool, as_toml: bool) -> None:
    from benchbd.planning.board import board_path, load_board

    board = load_board(name)  # whatever the form, show only a valid board
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
        *((name, f"{row.pretrain} -> {', '.join(tasks)}") for row in board.rows for name, tasks in _tasks(row)),
        *((axis.field, ", ".join(board.names(axis.name))) for axis in GRID if board.names(axis.name)),
        ("seeds", ", ".join(map(str, board.seeds))),
        *((f"sweep {sweep.name}", _points(sweep)) for sweep in board.sweeps),
        *([("trials of a defense", str(board.tuned.trials))] if board.tuned else []),
        ("budget of defenses", ", ".join(f"{name} {value}" for name, value in budget.items()) or "their defaults"),
        ("clean images", str(board.clean.images)),
        *([("poisoned share of them", f"{board.clean.poisoned:g}")] if board.clean.poisoned else []),
        *([("shadow set", board.shadow.set)] if board.shadow.set else []),
        *((f"{name}.{field}", json.dumps(v)) for name, table in board.options.items() for field, v in table.items()),
    ]
    say("\n".join([*lines, _table((Column("", "words"), Column("", "words", least=24)), grid, width)]))


def _tasks(row: Row) -> Iterator[tuple[str, Sequence[str]]]:
    """The attacked tasks of a row, and those that are only evaluated, each with its label."""
    yield "row", row.tasks
    if row.also:
        yield "evaluated too", row.also


def _points(sweep: Sweep) -> str:
    if sweep.option is not None:
        return f"{sweep.option} = {', '.join(map(json.dumps, sweep.values))}"
    return "; ".join(f"{label} ({', '.join(named) or 'the board itself'})" for label, named in sweep.points.items())


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plugins(as_json: bool) -> None:
    """List every plugin, what it adds and what is wrong with it."""
    from benchbd.registry import load_registry

    log = logging.getLogger("benchbd")
    log.disabled = True  # the table contains what the warnings would
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
        *(Column("plugin", "words"), Column("distribution", "words", rank=1)),
        *(Column("version", "words", rank=2), Column("adds", "words", least=24)),
        Column("state", "words", least=24),
    )
    say(_table(heads, rows, columns(WIDTH)))


def _table(heads: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> str:
    return text.write(Document(sections=[Section(heads, [Table(rows)], ruled=True)]), width).removesuffix("\n")


def _beginning(name: str) -> str:
    """A name, cut so that the rest of a row fits."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."

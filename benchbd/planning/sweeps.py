"""Points of a board's sweeps: the same board with a few other assignments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchbd.base.errors import BenchbdError, UsageError, shown
from benchbd.base.options import validated
from benchbd.contract.specs import SECTIONS
from benchbd.planning.board import Board, Sweep
from benchbd.planning.options import parse_options
from benchbd.records.models import TRIAL

PRETRAINING = "pretraining"  # the one field of a board that a point may name by itself

Point = Mapping[str, Any]
"""Value by option, as in {"trigger.size": 3}; empty for the board itself."""


def labelled(board: Board, sweep: Sweep) -> Iterator[tuple[str, Point]]:
    """Label and point of every line of a sweep's table. UsageError if an assignment is none, or repeats an option."""
    if sweep.option is not None:
        for value in sweep.values:
            yield value if isinstance(value, str) else json.dumps(value), {sweep.option: value}
    for label, assignments in sweep.points.items():
        with of_sweep(board, sweep.name):
            fields = [text.partition("=")[::2] for text in assignments if text.startswith(f"{PRETRAINING}=")]
            named = parse_options(text for text in assignments if not text.startswith(f"{PRETRAINING}="))
            options = {f"{name}.{field}": value for name, table in named.items() for field, value in table.items()}
            if len(point := dict(fields) | options) < len(assignments):
                raise UsageError(f"point {shown(label)} assigns one option twice: {', '.join(assignments)}")
        yield label, point


@contextmanager
def of_sweep(board: Board, sweep: str) -> Iterator[None]:
    """Name board and sweep in an error of the block."""
    try:
        yield
    except BenchbdError as error:
        where = f"board {board.name}: "
        error.args = (f"{where}sweep {sweep}: {str(error).removeprefix(where)}",)
        raise


def point_text(point: Point) -> str:
    """A point in a line, as ``-o`` takes its assignments."""
    return ", ".join(f"{option}={value}" for option, value in sorted(point.items()))


def at(board: Board, point: Point) -> Board:
    """The board with a point's assignments. UsageError if the point is invalid."""
    changed: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    options = {name: dict(table) for name, table in board.options.items()}
    for option, value in point.items():
        name, _, field = option.rpartition(".")
        if option == TRIAL:
            continue
        if option == PRETRAINING and isinstance(value, str):
            changed[PRETRAINING] = value
        elif not (name and field):
            raise UsageError(f"{option}={value} is neither of the form NAME.FIELD=VALUE nor {PRETRAINING}=NAME")
        elif name in SECTIONS:
            parts.setdefault(name, {})[field] = value
        else:
            for table, fields in options.items():  # an option under AXIS:NAME would take precedence
                bare = table.rpartition(":")[2]
                if bare == name.rpartition(":")[2] and name in (table, bare):
                    fields.pop(field, None)
            options.setdefault(name, {})[field] = value
    if "trigger" in parts and any(row.triggers for row in board.rows):
        raise UsageError("rows of the board have triggers of their own: no trigger.*")
    for name, fields in parts.items():  # together: validity may depend on several fields
        changed[name] = validated(SECTIONS[name], {**dict(getattr(board, name)), **fields}, name, board.folder)
    moved = board.model_copy(update={**changed, "options": options})
    moved._folder = board.folder
    return moved

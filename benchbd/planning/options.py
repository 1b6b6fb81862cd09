"""``-o NAME.FIELD=VALUE`` and the tables of a board: from text to validated methods, with errors that help."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchbd.base.errors import UsageError, shown
from benchbd.base.options import read_value
from benchbd.planning.board import RENAMED, Board

Options = dict[str, dict[str, Any]]
"""Field values by method name, or by ``axis:name`` if two axes have the name."""


def parse_options(arguments: Iterable[str]) -> Options:
    """``["mimic.lr=0.01", "defense:none.x=1"]`` -> values by name. A value is JSON if it parses, else a string."""
    options: Options = {}
    for argument in arguments:
        path, equals, text = argument.partition("=")
        name, dot, field = path.rpartition(".")
        if equals and not dot and field in RENAMED:
            raise UsageError(f"option {shown(argument)}: write {'.'.join(RENAMED[field])}={text}")
        if equals and not dot and field in Board.model_fields:
            raise UsageError(
                f"option {shown(argument)}: {field} is a field of the board; set it in a board of your own"
            )
        if not (equals and dot and name and field):
            raise UsageError(f"option {shown(argument)} is not of the form NAME.FIELD=VALUE, such as ft.lr=0.001")
        options.setdefault(name, {})[field] = read_value(text)
    return options

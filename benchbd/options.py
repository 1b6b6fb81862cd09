"""``-o NAME.FIELD=VALUE`` and the tables of a board: from text to validated methods, with errors that help."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from benchbd.board import Board
from benchbd.errors import UnknownNameError, UsageError, asked, brief, shown
from benchbd.isolation import asking

M = TypeVar("M", bound=BaseModel)

Options = dict[str, dict[str, Any]]
"""Field values by method name, or by ``axis:name`` where a name stands on two axes."""


def parse_options(arguments: Iterable[str]) -> Options:
    """``["mimic.lr=0.01", "defense:none.x=1"]`` -> values by name. A value is JSON where it parses, else a string."""
    options: Options = {}
    for argument in arguments:
        path, equals, text = argument.partition("=")
        name, dot, field = path.rpartition(".")
        if equals and not dot and field in Board.model_fields:
            raise UsageError(
                f"option {shown(argument)}: {field} is a field of the board; set it in a board file of your own"
            )
        if not (equals and dot and name and field):
            raise UsageError(f"option {shown(argument)} is not of the form NAME.FIELD=VALUE, such as ft.lr=0.001")
        options.setdefault(name, {})[field] = _value(text)
    return options


def _value(text: str) -> Any:
    if text in {"none", "None"}:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def build(cls: type[M], values: Mapping[str, Any], name: str) -> M:
    """A validated ``cls``. The first problem becomes a one-line UsageError that names ``name.field``; what else a
    plugin's validator raises, a PluginError."""
    for field in values:
        if field not in cls.model_fields:
            raise UnknownNameError(f"option of {brief(name)}", field, cls.model_fields)
    with asking(name, cls):
        built: M = asked(f"{name}: its validation", _validated, cls, values, name)
    return built


def _validated(cls: type[M], values: Mapping[str, Any], name: str) -> M:
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in (name, *first["loc"]))
        message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ") or "is not valid"
        given = f" (got {shown(first['input'])})" if first["loc"] else ""
        raise UsageError(f"{brief(path)}: {message[0].lower()}{message[1:]}{given}") from error

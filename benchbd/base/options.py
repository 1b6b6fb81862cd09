"""Options as identities contain them: files by their content, late fields only if they differ from their default."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PosixPath, WindowsPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError, ValidationInfo
from pydantic_core import to_jsonable_python

from benchbd.base.content import expanded, path_digest
from benchbd.base.errors import DataError, UnknownNameError, UsageError, brief, shown
from benchbd.base.inputs import reading

if sys.platform == "win32":
    _Native = WindowsPath
else:
    _Native = PosixPath

M = TypeVar("M", bound=BaseModel)

_COLLECTIONS = (list, tuple, set, frozenset)


class ContentPath(_Native):
    """The path of a ``Content`` field: an identity contains it only if a file or folder lies there."""


def _named(value: object) -> object:
    """The value as it is. ValueError for empty text, which as a path would be the current folder."""
    if value == "":
        raise ValueError("empty; name a file, or null")
    return value


def _placed(path: Path, info: ValidationInfo) -> Path:
    """The path with ``~`` expanded; a relative path is relative to the folder that validation was given, if any.
    ValueError for a pipe or a device, from which a read may never return."""
    folder = (info.context or {}).get("folder", "")
    placed = ContentPath(folder / expanded(path))
    if os.path.exists(placed) and not (os.path.isfile(placed) or os.path.isdir(placed)):  # these raise no OSError
        raise ValueError("neither a file nor a folder lies there")
    return placed


Content = Annotated[
    Path,
    BeforeValidator(_named),
    AfterValidator(_placed),
    """
    The type of an option that names a file or a folder, as in ``weights: Content | None = Field(None, ...)``.

    Its identity is the digest of what lies there: one file at two places is one option, and no path of a machine gets
    into keys, records or departures. In a board, a relative path is relative to the board's file; after ``-o``, to the
    working directory. A plan that needs a file that is absent or cannot be read ends in one line.
    """,
]


def options_of(model: BaseModel) -> dict[str, Any]:
    """Every field as JSON. A ``Path``, also inside a list or another container, becomes the digest of its content.

    DataError if the path of a ``Content`` field does not exist or cannot be read.
    """
    options: dict[str, Any] = model.model_dump(mode="json")
    for field, value in model:
        if holds_path(value):
            try:
                options[field] = to_jsonable_python(_by_content(value))
            except DataError as error:
                raise DataError(f"{getattr(model, 'name', type(model).__name__)}.{field}: {error}") from error
    return options


def identity_options(model: BaseModel) -> dict[str, Any]:
    """``options_of`` without those fields in ``late`` of the model's class that have their default."""
    options = options_of(model)
    if late := getattr(type(model), "late", None):
        defaults = options_of(type(model)())
        return {field: value for field, value in options.items() if field not in late or value != defaults[field]}
    return options


def holds_path(value: object) -> bool:
    """Whether a field's value is or contains a ``Path``."""
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return any(map(holds_path, (*value, *value.values())))
    return isinstance(value, Path) or (isinstance(value, _COLLECTIONS) and any(map(holds_path, value)))


def _by_content(value: Any) -> Any:
    """The value with every path in it replaced by its digest."""
    if isinstance(value, Path):
        with reading(value):
            if isinstance(value, ContentPath) and not value.exists():
                raise DataError(f"{value}: no such file")
            return path_digest(value)
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return {_by_content(name): _by_content(inner) for name, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_by_content, value))
    return list(map(_by_content, value)) if isinstance(value, _COLLECTIONS) else value


def validated(cls: type[M], values: Mapping[str, Any], name: str, folder: Path | None = None) -> M:
    """A ``cls`` of these values. The first problem becomes a one-line UsageError that names ``name.field``; so does a
    value of another type that validation would convert (``converted``)."""
    for field in values:
        if not cls.model_fields:
            raise UsageError(f"option {brief(f'{name}.{field}')}: {brief(name)} has no options")
        if field not in cls.model_fields:
            raise UnknownNameError(f"option of {brief(name)}", field, cls.model_fields)
    try:
        if folder is None:
            model = cls.model_validate(dict(values))
        else:
            model = cls.model_validate(dict(values), context={"folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in (name, *first["loc"]))
        message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ") or "is not valid"
        given = f" (got {shown(first['input'])})" if first["loc"] else ""
        text = first["input"]
        if first["type"] in ("string_type", "literal_error") and (text is None or isinstance(text, bool | int | float)):
            quoted = json.dumps("none" if text is None else json.dumps(text))
            given += f"; as text it is in quotes, as in {brief(path)}={quoted}"
        raise UsageError(f"{brief(path)}: {message[0].lower()}{message[1:]}{given}") from error
    if changed := converted(dict(values), model, name):
        raise UsageError(changed)
    return model


def read_value(text: str) -> Any:
    """The value of an option as a command line gives it: ``none``, else JSON, else the text itself. A whole number is
    an int, however it is written: 1e3 may be a number of steps."""
    if text in {"none", "None"}:
        return None
    try:
        return json.loads(text, parse_float=_number)
    except (ValueError, RecursionError):
        return text


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


def converted(given: Any, kept: Any, place: str = "") -> str:
    """The place of the first value whose type validation changed, and the type that is right; empty if there is none.

    3.0 or true for a whole number, and 1 for true, are mistakes; a whole number for a number is none.
    """
    pairs: Iterable[tuple[Any, Any, Any]] = ()
    if given is kept:
        return ""
    if isinstance(given, Mapping) and isinstance(kept, Mapping | BaseModel):
        inside = dict(kept)
        pairs = [(name, value, inside[name]) for name, value in given.items() if name in inside]
    elif isinstance(given, list | tuple) and isinstance(kept, list | tuple):
        pairs = zip(range(len(given)), given, kept, strict=False)
    elif type(given) is not type(kept) and {type(given), type(kept)} <= _WORDS.keys():
        right = (type(given), type(kept)) == (int, float)
        return "" if right else f"{place}: must be {_WORDS[type(kept)]}, not {json.dumps(given)}"
    found = (converted(value, held, f"{place}.{name}" if place else str(name)) for name, value, held in pairs)
    return next(filter(None, found), "")


_WORDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number"}

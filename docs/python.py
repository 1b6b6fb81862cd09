"""Format Python for the pages: classes with what they declare and offer, functions with signature and docstring."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from textwrap import indent
from types import FunctionType, ModuleType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

import benchbd
from benchbd.report.writers.columns import WIDTH

OFFERED = (FunctionType, property, classmethod, staticmethod)


def code(stubs: Iterable[str]) -> str:
    """A block of Python in the formatter's layout."""
    return "```python\n" + "\n\n\n".join(stubs) + "\n```"


def entry(name: str, thing: Any, module: ModuleType) -> str:
    """A class with what it offers, a function, or the values of a type, as ``module`` has it; followed by
    the types in its signatures that ``benchbd`` does not export."""
    if isinstance(thing, type):
        text = class_entry(thing)
    elif isinstance(thing, FunctionType):
        text = function_entry(thing)
    else:
        text = alias(name, thing, module)
    named = sorted(set(re.findall(r"\b[A-Z]\w+", _signatures(text))))
    return "\n\n\n".join([text, *(alias(each, vars(module)[each], module) for each in named if _private(module, each))])


def _private(module: ModuleType, name: str) -> bool:
    """Whether a name is an alias of this module that ``benchbd`` does not export."""
    return name not in dir(benchbd) and name in _documented(module)


def _signatures(text: str) -> str:
    """A stub without its docstrings."""
    return re.sub(r'""".*?"""', "", text, flags=re.DOTALL)


@cache
def _documented(module: ModuleType) -> dict[str, str]:
    """The names that a module sets on its top level and describes in a following string."""
    body = ast.parse(inspect.getsource(module)).body
    found = {}
    for statement, below in pairwise(body):
        if isinstance(statement, ast.Assign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found.update({target.id: str(below.value.value) for target in statement.targets if hasattr(target, "id")})
    return found


def alias(name: str, thing: Any, module: ModuleType) -> str:
    """A name of a type, with its description."""
    bare = get_args(thing)[0] if get_origin(thing) is Annotated else thing  # without its validators
    told = [each for each in getattr(thing, "__metadata__", ()) if isinstance(each, str)]
    told += [text for each, text in _documented(module).items() if each == name]
    shown = quoted(bare) if isinstance(bare, type) or get_origin(bare) else "..."
    return f"{name} = {shown}" + "".join(f'\n"""{inspect.cleandoc(text)}{_end(text)}' for text in told)


def quoted(annotation: object) -> str:
    """A type as source code writes it."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    text = re.sub(r"\b(?:typing|collections\.abc|torch)\.", "", str(annotation))
    return text.replace("'", '"')


def class_entry(cls: type) -> str:
    """A class with its docstring, what it declares, and its public members."""
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    made_of = "@dataclass\n" if "__dataclass_fields__" in vars(cls) else ""  # its fields are what it is called with
    parts = [f"{made_of}class {cls.__name__}{bases and f'({bases})'}:\n{docstring(cls)}"]
    if declared := list(_declared(cls)):
        parts.append(indent("\n".join(declared), "    "))
    made, promised = vars(cls).get("__init__"), bool(vars(cls).get("_is_protocol"))
    if isinstance(made, FunctionType) and not (is_dataclass(cls) or issubclass(cls, BaseModel) or promised):
        parts.append(indent(stub(made), "    "))
    if isinstance(vars(cls).get("__call__"), FunctionType):
        parts.append(indent(stub(vars(cls)["__call__"]), "    "))
    return "\n\n".join([*parts, *(indent(_member(vars(cls)[name]), "    ") for name in own(cls))])


def own(cls: type) -> list[str]:
    """The public functions and properties that a class defines."""
    if issubclass(cls, Enum):
        return []
    found = [name for name, value in vars(cls).items() if name[0] != "_" and isinstance(value, OFFERED)]
    return [name for name in found if getattr(cls, name).__doc__ or vars(cls).get("_is_protocol")]


def _member(member: Any) -> str:
    if isinstance(member, property):
        assert member.fget is not None
        return f"@property\n{stub(member.fget)}"
    if isinstance(member, classmethod):
        return f"@classmethod\n{stub(member.__func__)}"
    return f"@staticmethod\n{stub(member.__func__)}" if isinstance(member, staticmethod) else stub(member)


def _declared(cls: type) -> Iterator[str]:
    """``name: type = default`` of a class's declarations: constants, fields of a dataclass, options of a method."""
    if issubclass(cls, Enum):
        yield from (f"{each.name} = {each.value!r}".replace("'", '"') for each in cls)
        return
    if is_dataclass(cls):
        for field in fields(cls):
            factory = field.default_factory is not MISSING
            yield f"{field.name}: {quoted(field.type)}" + (" = ..." if factory else _default(field.default))
        return
    options = cls.model_fields if issubclass(cls, BaseModel) else {}
    for name, annotation in vars(cls).get("__annotations__", {}).items():
        if name in options:
            line, about = (
                f"{name}: {quoted(annotation)}{_default(options[name].get_default())}",
                options[name].description,
            )
            yield line if not about else f"{line}  # {about}" if len(line + about) < WIDTH else f"# {about}\n{line}"
        elif name[0] != "_" and name != "model_config":
            yield f"{name}: {quoted(annotation)}{_default(vars(cls).get(name, MISSING))}"


def _default(value: object) -> str:
    if value is MISSING:
        return ""
    if isinstance(value, Enum):
        return f" = {type(value).__name__}.{value.name}"
    plain = isinstance(value, (str, int, float, bool, tuple, frozenset, type(None)))
    return f" = {value!r}".replace("'", '"') if plain else " = ..."


def function_entry(function: Callable[..., Any]) -> str:
    managed = inspect.isgeneratorfunction(inspect.unwrap(function)) != inspect.isgeneratorfunction(function)
    return ("@contextmanager\n" if managed else "") + stub(function)


def stub(function: Callable[..., Any]) -> str:
    """The signature and docstring of a function."""
    signature = re.sub(r"(: |-> )(['\"])(.*?)\2", r"\1\3", str(inspect.signature(function))).replace("'", '"')
    if len(signature) > WIDTH:
        given, _, returned = signature.rpartition(")")
        signature = "(\n" + "".join(f"    {each},\n" for each in _parameters(given[1:])) + f"){returned}"
    head = f"def {function.__name__}{signature}:"
    return f"{head}\n{docstring(function)}" if function.__doc__ else f"{head} ..."


def _parameters(text: str) -> list[str]:
    """The parameters of a signature; a comma within brackets separates none."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def docstring(thing: Any) -> str:
    text = inspect.cleandoc(thing.__doc__ or "")
    return indent(f'"""{text}{_end(text)}', "    ")


def _end(text: str) -> str:
    return '\n"""' if "\n" in text else '"""'

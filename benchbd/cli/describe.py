"""A method as plain data and in one line, for `list`, `show` and the reference pages."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from benchbd.base.errors import shown
from benchbd.base.isolation import isolated
from benchbd.base.options import Content
from benchbd.contract.defense import Mitigation
from benchbd.contract.handover import Executor
from benchbd.contract.method import Method, build
from benchbd.contract.specs import SECTIONS
from benchbd.nets.encoder import Encoder


def summary(cls: type) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]


def document(cls: type[Method], distribution: str) -> dict[str, Any]:
    """Everything that a method declares, with all its options, and the range of trials by option if it has some."""
    ranges = {option: str(span) for option, span in cls.tunable.items()} if issubclass(cls, Mitigation) else {}
    return {
        "axis": cls.axis,
        "name": cls.name,
        "version": cls.effective_version(),
        "distribution": distribution,
        "paper": cls.paper,
        "help": inspect.cleandoc(cls.__doc__ or ""),
        "options": fields_of(cls),
        **({"tunable": ranges} if ranges else {}),
    }


def architecture(cls: type[Encoder], distribution: str) -> dict[str, Any]:
    """What an architecture declares, and its parameters; if it cannot be built here, only what its class declares.

    PluginError if its ``build`` raises.
    """
    built: Any = cls
    if cls.needs is None or find_spec(cls.needs[0]) is not None:
        with isolated(f"architecture {cls.arch}"), torch.device("meta"):
            built = cls(cls.arch, head=False)
    told = {name: getattr(built, name) for name in ("stages", "feature_dim")}
    return {
        "axis": "architecture",
        "name": cls.arch,
        "distribution": distribution,
        "help": inspect.cleandoc(cls.__doc__ or ""),
        **{name: None if isinstance(value, property) else value for name, value in told.items()},
        "parameters": None if built is cls else sum(weights.numel() for weights in built.backbone()),
        "image_size": cls.image_size,
        "channelwise": cls.channelwise,
        "needs": cls.needs,
    }


def executor(name: str, cls: type[Executor], distribution: str) -> dict[str, Any]:
    """The name, distribution and description of an executor."""
    about = inspect.cleandoc(cls.__doc__ or "")
    return {"axis": "executor", "name": name, "distribution": distribution, "help": about}


def section(name: str) -> dict[str, Any]:
    """A part of the protocol that ``-o`` can set like a method, described in the same form."""
    cls = SECTIONS[name]
    return {"axis": "protocol", "name": name, "help": inspect.cleandoc(cls.__doc__ or ""), "options": fields_of(cls)}


def fields_of(cls: type[BaseModel]) -> list[dict[str, Any]]:
    """Name, type, bounds, default and help of every field; the default is None if the field has none."""
    options = []
    for field, info in cls.model_fields.items():
        default = None if info.is_required() else _default(cls, field)
        bounds = []
        for constraint in info.metadata:
            for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
                if (limit := getattr(constraint, attribute, None)) is not None:
                    bounds.append(f"{sign} {limit}".removesuffix(".0"))
        options.append(
            {
                "name": field,
                "type": _type_name(info.annotation),
                "bounds": ", ".join(bounds),
                "default": default,
                "help": info.description or "",
            }
        )
    return options


def _default(cls: type[BaseModel], field: str) -> Any:
    """The default of a field as JSON; a default without a JSON form as text."""
    info = cls.model_fields[field]
    if info.default_factory_takes_validated_data:  # it depends on other fields: only a whole model has it
        return to_jsonable_python(getattr(build(cls, {}, cls.__name__), field), fallback=shown)
    return to_jsonable_python(info.get_default(call_default_factory=True), fallback=shown)


def _type_name(annotation: Any) -> str:
    """``float``, ``int | null``, or the allowed values of a choice."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    arguments = get_args(annotation)
    if annotation == Content:
        return "file"
    if get_origin(annotation) is Annotated:
        return _type_name(arguments[0])
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_type_name, arguments))
    if isinstance(annotation, type) and not arguments:
        return "null" if annotation is NoneType else annotation.__name__
    if arguments:
        inner = ", ".join("..." if each is Ellipsis else _type_name(each) for each in arguments)
        return f"{get_origin(annotation).__name__}[{inner}]"
    return str(annotation)

"""A method as plain data and in a line: what `list` and `show` print and the reference page is made of."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args, get_origin

from benchbd.methods import Method


def summary(cls: type[Method]) -> str:
    return (cls.__doc__ or "").strip().split("\n")[0]


def document(cls: type[Method], distribution: str) -> dict[str, Any]:
    """Everything that a method declares, with every option."""
    options = []
    for field, info in cls.model_fields.items():
        default = info.get_default(call_default_factory=True, validated_data={})
        bounds = []
        for constraint in info.metadata:
            for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
                if (limit := getattr(constraint, attribute, None)) is not None:
                    bounds.append(f"{sign} {limit}")
        options.append(
            {
                "name": field,
                "type": _type_name(info.annotation),
                "bounds": ", ".join(bounds),
                "default": default,
                "help": info.description or "",
            }
        )
    return {
        "axis": cls.axis,
        "name": cls.name,
        "version": cls.effective_version(),
        "distribution": distribution,
        "paper": cls.paper,
        "help": inspect.cleandoc(cls.__doc__ or ""),
        "options": options,
    }


def _type_name(annotation: Any) -> str:
    """``float``, ``int | None``, or the values that a choice allows."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("NoneType", "None")

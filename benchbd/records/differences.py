"""The first field in which two identities differ. This module does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

ABSENT = "absent"


class Difference(NamedTuple):
    """A dotted field, and the two values there; ``ABSENT`` for a value that one side lacks."""

    field: str
    one: Any
    other: Any


def first_difference(one: Any, other: Any) -> Difference | None:
    """The first field in which two nested values differ; None if they are equal.

    The keys of parents come last: they differ because of something else.
    """
    a, b = dict(leaves(one)), dict(leaves(other))
    for field in sorted({*a, *b}, key=lambda field: (field.startswith("parents"), field)):
        if (left := a.get(field, ABSENT)) != (right := b.get(field, ABSENT)):
            return Difference(field, left, right)
    return None


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """The values in nested dictionaries, by dotted name; a list is one value, unless it contains dictionaries."""
    items: Iterable[tuple[object, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        items = enumerate(value)
    else:
        yield "", value
    for name, each in items:
        for rest, leaf in leaves(each):
            yield f"{name}.{rest}" if rest else str(name), leaf

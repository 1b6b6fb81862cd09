"""Set a context variable for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def scoped(variable: ContextVar[T], value: T) -> Iterator[T]:
    """Set ``variable`` to ``value`` in the block, which receives ``value``, and restore the old value at its end."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)

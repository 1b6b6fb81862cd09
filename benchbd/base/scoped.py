"""Context variables that have another value in a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def scoped(variable: ContextVar[T], value: T) -> Iterator[T]:
    """In the block ``variable`` is ``value``, which the block is given; what it was comes back at its end."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)

"""What the checks share: breaches of the contract by property, and calls of a method's work that are watched.

``check_method`` raises the first breach. In a block of ``watching`` only a breach of the contract itself ends a check;
breaches of the other properties are collected, so that each is reported apart.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from benchbd.base.errors import (
    BenchbdError,
    DataAbsentError,
    DataError,
    Diverged,
    PluginError,
    StoreError,
    is_interrupt,
    named,
)
from benchbd.base.isolation import restoring
from benchbd.base.scoped import scoped
from benchbd.testing.audit import Heard, listening

R = TypeVar("R")


class Property(StrEnum):
    """What a check of a method holds it to."""

    CONTRACT = "contract"
    DETERMINISM = "determinism"
    STATE = "global state"
    BUDGET = "budget"
    SEALED = "sealed data"
    NETWORK = "network"
    DOCUMENTATION = "documentation"


class ContractError(AssertionError):
    """A method breaks the contract; the text names the breach."""

    def __init__(self, breach: str, of: Property = Property.CONTRACT) -> None:
        super().__init__(breach)
        self.property = of


@dataclass
class Watch:
    """What was seen of a method. heard: what its work did outside of torch, as far as Python reports it."""

    breaches: list[ContractError] = field(default_factory=list)
    heard: Heard = field(default_factory=Heard)


_watch: ContextVar[Watch] = ContextVar("benchbd_watch")


def watching(watch: Watch) -> AbstractContextManager[Watch]:
    """In the block, collect what can be collected."""
    return scoped(_watch, watch)


def require(condition: bool, breach: str, of: Property = Property.CONTRACT) -> None:
    """Raise a breach unless the condition holds, or collect it."""
    if condition:
        return
    error, watch = ContractError(breach, of), _watch.get(None)
    if watch is None or of is Property.CONTRACT:
        raise error
    watch.breaches.append(error)


def other_randomness(seed: int) -> None:
    """Set the global generators to another state, which must not matter."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


_BY_IMPORTS = {"the environment", "the filters of warnings"}
"""What libraries change when they are imported, once: only a change by a call that imports nothing is a method's."""


def call(who: str, work: Callable[..., R], *arguments: object) -> R:
    """The result of a method's work; the work must leave the process and its global generators unchanged and raise no
    errors but benchbd's."""
    watch, modules = _watch.get(None), len(sys.modules)
    try:
        with restoring() as left, nullcontext() if watch is None else listening(watch.heard):
            result = work(*arguments)
    except BaseException as error:
        # An answer such as NotApplicable, or an error of one line; no method may raise the store's error.
        if is_interrupt(error) or (isinstance(error, BenchbdError) and not isinstance(error, StoreError)):
            raise
        raise ContractError(f"{who}: {work.__name__}() raised {named(error)}") from error
    drawn = " and ".join(left.generators)
    advice = "draw from benchbd.stream, or in torch.random.fork_rng"
    require(not drawn, f"{who}: {drawn} was touched; {advice}", Property.STATE)
    imported = _BY_IMPORTS if len(sys.modules) > modules else set()
    changed = [name for name in left.names + left.settings if name not in imported]
    told = f"{who}: {work.__name__}() left {', '.join(changed[:3])} changed; put back what it changes"
    require(not changed, told, Property.STATE)
    return result


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names and bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@contextmanager
def promised(who: str) -> Iterator[None]:
    """In the block, an error that the harness would raise in a run is a breach of the contract."""
    try:
        yield
    except PluginError as error:  # its text names the method
        raise ContractError(str(error)) from error
    except DataAbsentError:  # the method may be sound: the files are not in the given folder
        raise
    except (Diverged, DataError) as error:
        raise ContractError(f"{who}: {error}") from error

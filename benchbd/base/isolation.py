"""Restore what a plugin's code changed in the process when the code returns.

A result depends on its stage alone only if torch computes as it did before: with the same threads, precision and
kernels, and without a switch, mode, hook or replaced function that another plugin set.
"""

from __future__ import annotations

import logging
import random
import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch.nn.functional

from benchbd.base.switches import Restore, dispatch_modes, function_modes, saved_tensors, switches

log = logging.getLogger("benchbd")

Namespace = ModuleType | type


@dataclass
class Left:
    """The changes that the code in a block made and did not undo, by name, filled in at the end of the block.

    settings: switches and modes of torch and of the process. names: replaced names, and hooks on all modules,
    optimizers or tensors. generators: global ones from which it drew, or which it seeded.
    """

    settings: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    generators: list[str] = field(default_factory=list)


@contextmanager
def restoring() -> Iterator[Left]:
    """Undo, at the end of the block, what the code in it did to the state of the process.

    Restored are switches of torch (default dtype and device, gradients, inference mode, autocast, anomaly mode,
    threads, kernels, precision, determinism), the modes that were entered and not left, names of torch, NumPy, math and
    benchbd with its own plugins, hooks on every module, optimizer or saved tensor, the global generators of
    ``random``, NumPy and torch, and, of the process, the standard streams, the environment, the working directory, the
    filters of warnings, handlers of the signals that end it, the recursion limit and logging.
    """
    left = Left()
    names, hooks = _Names(), _GlobalHooks()
    # Restored in this order; while one is restored, those before it are already back.
    settings = [function_modes(), dispatch_modes(), saved_tensors(), switches()]
    generators = _generators()
    try:
        yield left
    finally:
        left.names = names.put_back() + hooks.put_back()
        left.settings = [name for restore in settings for name in restore()]
        left.generators = generators()


@contextmanager
def isolated(who: str) -> Iterator[None]:
    """``restoring``, for the code of a plugin. Settings are restored silently; a restored name or hook logs one
    warning that names ``who``, because the plugin's change no longer has an effect."""
    left = Left()
    try:
        with restoring() as left:
            yield
    finally:
        if left.names:
            more = f" and {len(left.names) - 1} more" if len(left.names) > 1 else ""
            log.warning("%s left %s%s changed; it was put back", who, left.names[0], more)


def asking(who: str, cls: type) -> AbstractContextManager[None]:
    """``isolated``, for calls that planning makes thousands of times on a class: its options, identity and cost.

    Reading the whole state takes milliseconds, so these calls on classes of benchbd and its own plugins are not
    isolated; a test checks that they change nothing. The work of these classes is isolated like that of any other.
    """
    module = sys.modules.get(cls.__module__)
    ours = cls.__module__.partition(".")[0] in _OURS and getattr(module, cls.__name__, None) is cls
    return nullcontext() if ours else isolated(who)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """In the block, torch's, NumPy's and ``random``'s global generators start from ``seed``; then they are restored."""
    restore = _generators()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        restore()


def _generators() -> Restore:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> list[str]:
        changed = {
            "the global generator": not torch.equal(torch.random.get_rng_state(), cpu),
            "the global generator of NumPy": not _equal_states(np.random.get_state(), numpy),
            "the global generator of random": random.getstate() != python,
        }
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        return [name for name, differs in changed.items() if differs]

    return restore


def _equal_states(one: Any, other: Any) -> bool:
    """Whether two states of NumPy's generator, tuples with an array, are the same."""
    return all(np.array_equal(*parts) for parts in zip(one, other, strict=True))


# Names and hooks -----------------------------------------------------------------------------------------------------

_MISSING = object()

_LIBRARIES = ("math", "random", "numpy", "numpy.random", "numpy.linalg", "torch", "safetensors.torch")

_PACKAGES = ("torch.nn", "torch.optim", "torch.autograd", "torch.linalg", "torch.random")

_OURS = ("benchbd", "benchbd_plugins")

_BY_PYTHON = frozenset(("__annotations__", "__annotations_cache__", "__slotnames__"))
"""Attributes that Python itself writes to a class, when its annotations are read or one of its objects is copied."""

_WRAPPERS = ("torch/_compile.py", "torch/_dynamo/", "torch/optim/optimizer.py")
"""Files in which torch wraps its own functions when they are first used."""


class _Names:
    """The value of every name that the harness relies on: in modules of torch, of benchbd and its own plugins and of
    the libraries that they compute with, and in the classes of these modules.

    A new name in a module is ignored; a new name in a class counts if it hides an inherited one.
    """

    def __init__(self) -> None:
        modules = tuple(module for name, module in list(sys.modules.items()) if _is_relied_on(name))
        self._before = [(space, dict(vars(space))) for space in _with_classes(modules)]

    def put_back(self) -> list[str]:
        """Restore what changed, and return the dotted names of the changed objects."""
        changed = []
        for space, before in self._before:
            if not _equal(vars(space), before):
                for name in _differing(space, before):
                    changed.append(_dotted(space, name))
                    if name in before:
                        setattr(space, name, before[name])
                    else:
                        delattr(space, name)
        return changed


@cache
def _is_relied_on(module: str) -> bool:
    return module in _LIBRARIES or any(f"{module}.".startswith(f"{package}.") for package in (*_PACKAGES, *_OURS))


@cache
def _with_classes(modules: tuple[ModuleType, ...]) -> tuple[Namespace, ...]:
    """The modules and the classes in them; cached, because finding the classes takes longer than reading all names."""
    values = (value for module in modules for value in vars(module).values() if isinstance(value, type))
    return (*modules, *{value for value in values if _is_relied_on(value.__module__)})


def _equal(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether every name has its earlier value; different objects are compared by value, if that is possible."""
    try:
        return bool(now == before)
    except Exception:  # an array has no truth value; any other object may raise any error
        return False


def _differing(space: Namespace, before: Mapping[str, Any]) -> list[str]:
    now, inherited = vars(space), ChainMap(*(dict(vars(base)) for base in getattr(space, "__mro__", ())[1:]))
    names = [name for name, value in before.items() if now.get(name, _MISSING) is not value]
    names += [name for name in now.keys() - before.keys() if name in inherited]
    return [
        name
        for name in names
        if _watched(space, name) and not _wrapped_by_torch(before.get(name, inherited.get(name)), now.get(name))
    ]


def _watched(space: Namespace, name: str) -> bool:
    """Whether a change of this name counts. Private names of a module and what pydantic completes in a class at its
    first use do not count; nor does ``Storage``, which torch sets with the default dtype."""
    if isinstance(space, ModuleType):
        return not name.startswith("_") and name != "Storage"
    return not (name.startswith("__pydantic") or name in _BY_PYTHON)


def _wrapped_by_torch(before: object, now: object) -> bool:
    """Whether torch wrapped its own function, as torch does with ``Adam.step`` when the first optimizer is made."""
    if not (isinstance(before, FunctionType) and isinstance(now, FunctionType)):
        return False
    file = now.__code__.co_filename.replace("\\", "/")
    return now.__qualname__ == before.__qualname__ and any(f"/{wrapper}" in file for wrapper in _WRAPPERS)


def _dotted(space: Namespace, name: str) -> str:
    where = space.__name__ if isinstance(space, ModuleType) else f"{space.__module__}.{space.__qualname__}"
    return f"{where}.{name}"


class _GlobalHooks:
    """Hooks that torch calls for every module or optimizer."""

    def __init__(self) -> None:
        self._before = [
            (f"{module.__name__}.{name}", hooks, dict(hooks))
            for module in (sys.modules["torch.nn.modules.module"], sys.modules["torch.optim.optimizer"])
            for name, hooks in vars(module).items()
            if name.startswith("_global_") and isinstance(hooks, dict)
        ]

    def put_back(self) -> list[str]:
        """Restore what changed, and return the dotted names of the changed hooks."""
        changed = [(name, hooks, before) for name, hooks, before in self._before if hooks != before]
        for _, hooks, before in changed:
            hooks.clear()
            hooks.update(before)
        return [name for name, _, _ in changed]

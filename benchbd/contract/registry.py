"""Finding plugins: one entry point at a time, so that a broken one is named and takes no other down."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from itertools import chain, count
from typing import Any

import pluggy

from benchbd.base.errors import (
    BenchbdError,
    DataError,
    PluginError,
    UnknownNameError,
    UsageError,
    asked,
    is_interrupt,
    named,
    shown,
)
from benchbd.base.isolation import isolated
from benchbd.contract import hookspecs
from benchbd.contract.attack import Attack
from benchbd.contract.axes import AXES, RESERVED, Axis
from benchbd.contract.encoder import ARCHITECTURES, W16, W32, Encoder, ResNet18
from benchbd.contract.handover import INLINE, Executor
from benchbd.contract.method import Method, build, identity_of
from benchbd.contract.pretraining import Pretraining, architecture_of, flaw_of_architecture
from benchbd.contract.roles import ROLES, Role
from benchbd.contract.specs import KINDS

GROUP = "benchbd"

FIRST_PARTY = "benchbd"

LONGEST_NAME = 40  # characters: the names of several methods make the name of one file

OBSERVERS = {"terminal"}
"""Plugins that commands register under these names themselves."""

log = logging.getLogger("benchbd")


@dataclass
class Plugin:
    """One entry point: where it comes from, what it adds per axis, and what is wrong with it."""

    name: str
    distribution: str
    version: str
    adds: dict[str, list[str]] = field(default_factory=dict)
    problem: str = ""


class Registry:
    """Every method that the installed plugins offer, by axis and name, and every architecture."""

    def __init__(self, manager: pluggy.PluginManager, plugins: list[Plugin]) -> None:
        self.manager = manager
        self.plugins = plugins
        self.methods: dict[str, dict[str, type[Method]]] = {axis.name: {} for axis in AXES}
        self.architectures: dict[str, type[Encoder]] = {cls.arch: cls for cls in (ResNet18, W32, W16)}
        self.executors: dict[str, type[Executor]] = {}
        self._owner: dict[tuple[str, str], Plugin] = {}
        for plugin in plugins:
            if not plugin.problem:
                with isolated(f"plugin {plugin.name!r}"):
                    self._collect(plugin)

    @property
    def problems(self) -> list[str]:
        return [
            f"plugin {p.name!r} ({p.distribution} {p.version}): {p.problem}".strip() for p in self.plugins if p.problem
        ]

    def names(self, axis: str) -> list[str]:
        return sorted(self.methods[axis])

    def get(self, axis: str, name: str) -> type[Method]:
        """The class, or UnknownNameError with the nearest name."""
        if name not in self.methods[axis]:
            raise UnknownNameError(axis, name, self.methods[axis])
        return self.methods[axis][name]

    def find(self, name: str) -> list[type[Method]]:
        """Every method called ``name``, on whichever axis; UnknownNameError where there is none."""
        found = [methods[name] for methods in self.methods.values() if name in methods]
        if not found:
            raise UnknownNameError("method", name, {n for methods in self.methods.values() for n in methods})
        return found

    def of_role(self, axis: str, role: Role) -> list[str]:
        """Names of the methods of a role, benchbd's own first."""
        return [name for name, cls in self.methods[axis].items() if cls.role is role]

    def plugin_of(self, axis: str, name: str) -> Plugin:
        return self._owner[axis, name]

    def _collect(self, plugin: Plugin) -> None:
        offers = [(axis.hook, partial(self._add, plugin, axis)) for axis in AXES]
        offers += [
            ("benchbd_architectures", partial(self._add_architecture, plugin)),
            ("benchbd_executors", partial(self._add_executor, plugin)),
        ]
        for hook, add in offers:
            for impl in getattr(self.manager.hook, hook).get_hookimpls():
                if impl.plugin_name != plugin.name:
                    continue
                try:
                    for cls in asked(f"{hook}()", _offered, hook, impl.function):
                        if problem := asked(f"a class that {hook}() offers", add, cls):
                            plugin.problem = problem
                except BenchbdError as error:
                    plugin.problem = str(error)

    def _add_architecture(self, plugin: Plugin, cls: Any) -> str:
        if flaw := flaw_of_architecture(cls):
            return f"offers an architecture: {flaw}"
        if cls.arch in self.architectures:
            return f"its architecture {cls.arch!r} is already the name of {self.architectures[cls.arch].__name__}"
        self.architectures[cls.arch] = ARCHITECTURES[cls.arch] = cls
        plugin.adds.setdefault("architecture", []).append(cls.arch)
        return ""

    def _add_executor(self, plugin: Plugin, cls: Any) -> str:
        if not (isinstance(cls, type) and issubclass(cls, Executor) and cls.submit is not Executor.submit):
            return f"offers {_called(cls)} as executor, which is no class derived from benchbd.Executor with a submit()"
        if flaw := _flaw_of_name(cls.name):
            return f"{cls.__name__}: {flaw}"
        if cls.name in {INLINE, *self.executors}:
            return f"its executor {cls.name!r} is already the name of one"
        self.executors[cls.name] = cls
        plugin.adds.setdefault("executor", []).append(cls.name)
        return ""

    def _add(self, plugin: Plugin, axis: Axis, cls: Any) -> str:
        base, methods = axis.base, self.methods[axis.name]
        if not (isinstance(cls, type) and issubclass(cls, base)):
            return f"offers {_called(cls)} as {axis.name}, which is not a class derived from benchbd.{base.__name__}"
        if flaw := flaw_of(cls):
            return f"{cls.__name__}: {flaw}"
        if cls.name in methods:
            other = self._owner[axis.name, cls.name]
            return (
                f"its {axis.name} {cls.name!r} is already the name of one in plugin {other.name!r} "
                f"({other.distribution})"
            )
        methods[cls.name] = cls
        self._owner[axis.name, cls.name] = plugin
        plugin.adds.setdefault(axis.name, []).append(cls.name)
        return ""


def _flaw_of_name(name: object) -> str:
    if not (isinstance(name, str) and name):
        return "it has no name; give it one, as in name = 'shrink'"
    if len(name) > LONGEST_NAME:
        return f"its name has {len(name)} characters; {LONGEST_NAME} are the most, for it becomes a part of file names"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        return f"the name {name!r} is not made of lower-case letters, digits, '-' and '_'"
    return ""


def flaw_of(cls: type[Method]) -> str:
    """What keeps a class from being a method of its axis, in one line; empty where nothing does."""
    if flaw := _flaw_of_name(getattr(cls, "name", "")):
        return flaw
    name = cls.name
    if name in RESERVED:
        return f"the name {name!r} is reserved, as are all of {', '.join(sorted(RESERVED))}"
    for option, info in cls.model_fields.items():
        if info.is_required():
            return f"option {option!r} has no default; every option needs one, as in Field(0.9, description=...)"
    for option in sorted(cls.late) if _are_options(cls.late) else ():
        if option not in cls.model_fields:
            return str(UnknownNameError("late option", option, cls.model_fields))
    axis = next(axis for axis in AXES if issubclass(cls, axis.base))
    base = axis.base
    for work in axis.work:
        if getattr(cls, work) is getattr(base, work):
            return f"it does not define {work}{'()' if callable(getattr(base, work)) else ''}"
    try:
        if flaw := _wrong_attribute(cls, base) or _wrong_role(cls):
            return flaw
        method = build(cls, {}, name)
        check_plannable(method)
    except UsageError as error:
        return f"a default is not valid: {error}"
    except PluginError as error:
        return str(error)
    except DataError:  # a file that an option names is not on this machine: a run that needs it says so
        return ""
    return ""


def check_plannable(method: Method) -> None:
    """PluginError where what a plan asks of a method, its identity and architecture, is not to be had."""
    identity_of(method)
    if isinstance(method, Pretraining):
        architecture_of(method)


def _wrong_attribute(cls: type[Method], base: type[Method]) -> str:
    """The first of what a class says of itself that is not of its kind; empty where all is."""
    told: dict[str, object] = {name: getattr(cls, name) for name in _KINDS if hasattr(base, name)}
    told["docstring"] = cls.__doc__ or ""
    for name, value in told.items():
        kind, right = _KINDS.get(name, _KINDS["paper"])
        if not right(value):
            return f"{name} must be {kind}, not {shown(value)}"
    version = asked("effective_version()", cls.effective_version)
    if not (version and _is_line(version)):
        return f"effective_version() must be a short line of text, not {shown(version)}"
    return "" if cls.axis == base.axis else f"axis must be left at {base.axis!r}, not {shown(cls.axis)}"


def _wrong_role(cls: type[Method]) -> str:
    """What keeps a class from its role; empty where nothing does."""
    roles = ROLES.get(cls.axis, (Role.METHOD,))
    if cls.role not in roles:
        return f"role of {cls.axis} must be {', '.join(map(str, roles))}, not {cls.role}"
    if cls.role is Role.FLOOR and not cls.passthrough:
        return "its role is floor, so it must be passthrough"
    if issubclass(cls, Attack) and bool(cls.control_of) != (cls.role is Role.CONTROL):
        return "control_of and the role control go together"
    return ""


def _is_line(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 100 and value.isprintable()


def _are_splits(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(split, str) and type(count) is int and count >= 0 for split, count in value.items()
    )


def _are_names(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)


def _are_options(value: object) -> bool:
    return isinstance(value, frozenset) and all(isinstance(name, str) for name in value)


def _are_kinds(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(kind in KINDS for kind in value)


def _is_normalization(value: Any) -> bool:
    """None, or a mean and a positive deviation for each of three channels."""
    if value is None:
        return True
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, tuple) and len(v) == 3 for v in value)
    numbers = [number for values in value for number in values] if pair else []
    finite = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    return pair and finite and all(number > 0 for number in numbers[3:])


_KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "version": ("a short line of text, such as '1'", _is_line),
    "paper": ("text", lambda value: isinstance(value, str)),
    "late": ("a frozenset of names of options, as in frozenset({'steps'})", _are_options),
    "role": ("a Role, as in Role.CONTROL", lambda value: isinstance(value, Role)),
    "passthrough": ("True or False", lambda value: isinstance(value, bool)),
    "uses_weights": ("True or False", lambda value: isinstance(value, bool)),
    "binds": (f"a tuple of kinds of trigger, of {', '.join(KINDS)}", _are_kinds),
    "retrains": ("True or False", lambda value: isinstance(value, bool)),
    "needs_files": ("True or False", lambda value: isinstance(value, bool)),
    "labelled": ("True or False", lambda value: isinstance(value, bool)),
    "control_of": ("the name of an attack", lambda value: isinstance(value, str)),
    "splits": ("a number of images from 0 on by name", _are_splits),
    "classes": ("a tuple of names", _are_names),
    "normalization": ("None or (mean, std), three finite numbers each", _is_normalization),
}
"""What a class says of itself: in words, and whether a value is that. The docstring is like ``paper``."""


def _offered(hook: str, function: Callable[[], object]) -> list[Any]:
    """What a hook offers. PluginError where that is no list."""
    returned = function()
    if isinstance(returned, Iterable):
        return list(returned)
    raise PluginError(f"{hook}() must return a list of classes, not {_called(returned)}")


def _called(thing: object) -> str:
    """What to call a thing that is not what it should be."""
    return f"the class {thing.__name__}" if isinstance(thing, type) else shown(thing)


def make_plugin_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def load_registry(points: Iterable[EntryPoint] | None = None, extra: Mapping[str, object] | None = None) -> Registry:
    """Load every plugin, our own first, then by distribution; log one warning for each that has a problem.

    points: instead of the installed entry points. extra: modules or objects to register besides, by name.
    """
    manager, plugins = make_plugin_manager(), []
    found = entry_points(group=GROUP) if points is None else points
    for point in sorted(found, key=lambda p: (_distribution(p)[0] != FIRST_PARTY, _distribution(p)[0], p.name)):
        plugins.append(_register(manager, point.name, *_distribution(point), load=point.load))
    for name, module in (extra or {}).items():
        plugins.append(_register(manager, name, "local", "", load=partial(_identity, module)))
    registry = Registry(manager, plugins)
    for problem in registry.problems:
        log.warning("%s", problem)
    return registry


def _identity(module: object) -> object:
    return module


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that an entry point is of, as far as its metadata tell."""
    dist = point.dist
    return (dist.name or "?", dist.version or "") if dist is not None else ("?", "")


def _register(
    manager: pluggy.PluginManager, name: str, distribution: str, version: str, *, load: Callable[[], object]
) -> Plugin:
    """Import and register one plugin; whatever goes wrong becomes its ``problem`` and it is left out.

    A name that another distribution's entry point took is told apart by the distribution.
    """
    plugin = Plugin(_free_name(manager, name, distribution), distribution, version)
    try:
        with isolated(f"plugin {plugin.name!r}"):
            module = load()
    except BaseException as error:
        if is_interrupt(error):
            raise
        plugin.problem = f"failed to import: {named(error)}"
        return plugin
    if manager.is_registered(module):
        plugin.problem = f"it is the same as plugin {manager.get_name(module)!r}"
        return plugin
    try:
        manager.register(module, name=plugin.name)
        manager.check_pending()
        callers = manager.get_hookcallers(module)
        if not callers:
            raise PluginError("implements no hook of benchbd; is @hookimpl missing?")
        for impl in (impl for caller in callers for impl in caller.get_hookimpls() if impl.plugin is module):
            if impl.wrapper or impl.hookwrapper:
                raise PluginError(f"{impl.function.__name__}() is a wrapper, and benchbd calls none")
    except BaseException as error:
        if is_interrupt(error):
            raise
        if manager.get_plugin(plugin.name) is module:
            manager.unregister(module)
        if isinstance(error, pluggy.PluginValidationError):  # arguments or hooks that do not exist
            plugin.problem = _explained(str(error))
        else:
            plugin.problem = str(error) if isinstance(error, PluginError) else f"to register it raised {named(error)}"
    return plugin


def _free_name(manager: pluggy.PluginManager, name: str, distribution: str) -> str:
    """``name``, or where that is taken one that also says of which distribution."""
    again = (f"{distribution}:{name}" + (f"#{number}" if number > 1 else "") for number in count(1))
    return next(free for free in chain([name], again) if free not in OBSERVERS and not manager.has_plugin(free))


def _explained(message: str) -> str:
    """pluggy's message without its internals: an unknown hook with the nearest one, or what a hook cannot be given."""
    if unknown := re.search(r"unknown hook '(\w+)'", message):
        return str(
            UnknownNameError("hook", unknown[1], (name for name in vars(hookspecs) if name.startswith("benchbd_")))
        )
    if surplus := re.search(r"hookimpl definition: (.*)\nArgument\(s\) \{(.*)\}", message):
        return f"{surplus[1]}: the hook has no argument {surplus[2]}"
    return message.splitlines()[-1]

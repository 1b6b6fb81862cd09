"""Find plugins: one entry point at a time, so that a broken one is named and affects no other."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from itertools import chain, count
from typing import Annotated, Any

import pluggy
from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from benchbd.base.arguments import LARGEST, SMALLEST
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
from benchbd.contract.axes import AXES, RESERVED
from benchbd.contract.dataset import Dataset
from benchbd.contract.defense import Mitigation
from benchbd.contract.handover import INLINE, Executor
from benchbd.contract.method import Method, build, identity_of, source_digest
from benchbd.contract.pretraining import Pretraining, architecture_of
from benchbd.contract.roles import ROLES, Role
from benchbd.contract.specs import KINDS, TriggerKind
from benchbd.contract.tunable import flaws
from benchbd.nets.encoder import ARCHITECTURES, W16, W32, Encoder, ResNet18

GROUP = "benchbd"

FIRST_PARTY = "benchbd"

LONGEST_NAME = 40  # characters: one file name contains the names of several methods

OBSERVERS = {"terminal"}
"""Names under which commands register plugins themselves."""

log = logging.getLogger("benchbd")


@dataclass
class Plugin:
    """One entry point: its distribution, what it adds per axis, and its fault, if any."""

    name: str
    distribution: str
    version: str
    adds: dict[str, list[str]] = field(default_factory=dict)
    problem: str = ""


class Registry:
    """Every method that the installed plugins offer, by axis and name, and every architecture and executor."""

    def __init__(self, manager: pluggy.PluginManager, plugins: list[Plugin]) -> None:
        self.manager = manager
        self.plugins = plugins
        self.methods: dict[str, dict[str, type[Method]]] = {axis.name: {} for axis in AXES}
        self.architectures: dict[str, type[Encoder]] = {cls.arch: cls for cls in (ResNet18, W32, W16)}
        self.executors: dict[str, type[Executor]] = {}
        self._known: dict[str, Any] = {**self.methods, "architecture": self.architectures, "executor": self.executors}
        own = Plugin(FIRST_PARTY, FIRST_PARTY, "")
        self._owner = {("architecture", arch): own for arch in self.architectures} | {("executor", INLINE): own}
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

    def find(self, name: str, besides: Iterable[str] = ()) -> list[type[Method]]:
        """Every method called ``name``, on any axis; for ``AXIS:NAME``, that one. UnknownNameError if there is
        none, with the nearest of these and of ``besides``."""
        axis, _, bare = name.rpartition(":")
        if axis and axis not in self.methods:
            raise UnknownNameError("axis", axis, self.methods)
        if axis:
            return [self.get(axis, bare)]
        if found := [methods[name] for methods in self.methods.values() if name in methods]:
            return found
        raise UnknownNameError("method", name, {*besides, *(n for methods in self.methods.values() for n in methods)})

    def of_role(self, axis: str, role: Role) -> list[str]:
        """Names of the methods of a role, benchbd's own first."""
        return [name for name, cls in self.methods[axis].items() if cls.role is role]

    def first_of_role(self, axis: str, role: Role) -> str:
        """The first of ``of_role``. UsageError if there is none."""
        if names := self.of_role(axis, role):
            return names[0]
        told = "`benchbd plugins` tells what is registered"
        raise UsageError(f"no {axis} has the role {role}, and this plan needs one: {told}")

    def datasets(self) -> dict[str, Dataset]:
        """The known data sets by name."""
        known = self.methods["dataset"].items()
        return {name: build(found, {}, name) for name, found in known if issubclass(found, Dataset)}

    def plugin_of(self, axis: str, name: str) -> Plugin:
        return self._owner[axis, name]

    def origin(self, axis: str, name: str) -> dict[str, str | None] | None:
        """Distribution and version of the plugin that offers a method, an ``architecture`` or an ``executor``, and
        sha256 of its module's source; None if none does."""
        if (plugin := self._owner.get((axis, name))) is None or name not in self._known[axis]:
            return None
        source = source_digest(self._known[axis][name])
        return {"distribution": plugin.distribution, "version": plugin.version, "source": source}

    def _collect(self, plugin: Plugin) -> None:
        for kind, (hook, _, _) in _OFFERED.items():
            for impl in getattr(self.manager.hook, hook).get_hookimpls():
                if impl.plugin_name != plugin.name:
                    continue
                try:
                    for cls in asked(f"{hook}()", _offered, hook, impl.function):
                        flaw = asked(f"a class that {hook}() offers", self._add, plugin, kind, cls)
                        plugin.problem = flaw or plugin.problem
                except BenchbdError as error:
                    plugin.problem = str(error)
            ARCHITECTURES.update(self.architectures)  # before the pre-training methods that name one by default

    def _add(self, plugin: Plugin, kind: str, cls: Any) -> str:
        """Add a class that a plugin offers, and return its fault, empty if there is none."""
        _, base, flaw_in = _OFFERED[kind]
        if not (isinstance(cls, type) and issubclass(cls, base)):
            return f"offers {_called(cls)} as {kind}, which is not a class derived from benchbd.{base.__name__}"
        if flaw := flaw_in(cls):
            return f"{cls.__name__}: {flaw}"
        name = getattr(cls, "arch" if base is Encoder else "name")
        if other := self._owner.get((kind, name)):
            return f"its {kind} {name!r} is already the name of one in plugin {other.name!r} ({other.distribution})"
        self._known[kind][name], self._owner[kind, name] = cls, plugin
        plugin.adds.setdefault(kind, []).append(name)
        return ""


def flaw_of_name(name: object) -> str:
    """The reason that a method cannot have a name, in one line; empty if it can."""
    if not (isinstance(name, str) and name):
        return "it has no name; give it one, as in name = 'shrink'"
    if len(name) > LONGEST_NAME:
        return f"its name has {len(name)} characters; {LONGEST_NAME} are the most, for it becomes a part of file names"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        return f"the name {name!r} is not made of lower-case letters, digits, '-' and '_'"
    if name in RESERVED:
        return f"the name {name!r} is reserved, as are all of {', '.join(sorted(RESERVED))}"
    return ""


def flaw_of_architecture(cls: type[Encoder]) -> str:
    """The reason that a class is no valid architecture, in one line; empty if it is valid."""
    arch = getattr(cls, "arch", "")
    if not (isinstance(arch, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]{,39}", arch)):
        return f"its arch must be up to 40 lower-case letters, digits, '-' and '_', not {shown(arch)}"
    for work in ("build", "encode", "stages", "feature_dim"):
        if getattr(cls, work) is getattr(Encoder, work):
            return f"it does not define {work}"
    size = cls.image_size
    if not (size is None or (type(size) is int and SMALLEST <= size <= LARGEST)):
        return f"its image_size must be None or one of {SMALLEST} to {LARGEST}, not {shown(size)}"
    return ""


def _flaw_of_executor(cls: type[Executor]) -> str:
    return "it does not define submit()" if cls.submit is Executor.submit else flaw_of_name(cls.name)


def flaw_of(cls: type[Method]) -> str:
    """The reason that a class is no valid method of its axis, in one line; empty if it is valid."""
    try:
        return next(_flaws(cls), "")
    except UsageError as error:
        return f"a default is not valid: {error}"
    except PluginError as error:
        return str(error)
    except DataError:  # a file of an option's default is not on this machine: a run that needs it raises the error
        return ""


def _flaws(cls: type[Method]) -> Iterator[str]:
    """All faults for ``flaw_of``, one line each. UsageError, PluginError or DataError if the defaults are invalid."""
    name = getattr(cls, "name", "")
    if flaw := flaw_of_name(name):
        yield flaw
    for option, info in cls.model_fields.items():
        if info.is_required():
            yield f"option {option!r} has no default; every option needs one, as in Field(0.9, description=...)"
    axis = next(axis for axis in AXES if issubclass(cls, axis.base))
    base = axis.base
    for work in (*axis.work, *(["prepare"] if getattr(cls, "prepares", False) else [])):
        promises = [vars(each).get(work) for each in cls.__mro__ if each.__module__.startswith("benchbd.contract.")]
        if getattr(cls, work) in promises:
            yield f"it does not define {work}{'()' if callable(getattr(base, work)) else ''}"
    for attribute, (words, kind) in _TOLD.items():
        if hasattr(base, attribute) and not _is(kind, value := getattr(cls, attribute)):
            yield f"{attribute} must be {words}, not {shown(value)}"
    if not isinstance(cls.__doc__, str | None):
        yield f"docstring must be text, not {shown(cls.__doc__)}"
    if not ((version := asked("effective_version()", cls.effective_version)) and _is(_Line, version)):
        yield f"effective_version() must be a short line of text, not {shown(version)}"
    if cls.axis != base.axis:
        yield f"axis must be left at {base.axis!r}, not {shown(cls.axis)}"
    for option in sorted(cls.late - cls.model_fields.keys()):
        yield str(UnknownNameError("late option", option, cls.model_fields))
    if cls.role not in (roles := ROLES.get(cls.axis, (Role.METHOD,))):
        yield f"role of {cls.axis} must be {', '.join(roles)}, not {cls.role}"
    if (cls.role is Role.FLOOR) != cls.passthrough:
        yield "passthrough and the role floor go together"
    if issubclass(cls, Mitigation):
        yield from flaws(cls, cls.tunable)
    if issubclass(cls, Attack) and bool(cls.control_of) != (cls.role is Role.CONTROL):
        yield "control_of and the role control go together"
    check_plannable(build(cls, {}, name))


_OFFERED: dict[str, tuple[str, type, Callable[[Any], str]]] = {
    "architecture": ("benchbd_architectures", Encoder, flaw_of_architecture),
    **{axis.name: (axis.hook, axis.base, flaw_of) for axis in AXES},
    "executor": ("benchbd_executors", Executor, _flaw_of_executor),
}
"""What plugins offer: the hook, the base class, and the function that finds a class's fault."""


def check_plannable(method: Method) -> None:
    """Raise PluginError if a plan cannot get a method's identity or architecture."""
    identity_of(method)
    if isinstance(method, Pretraining):
        architecture_of(method)


_Line = Annotated[str, Field(max_length=100, pattern=r"^( |[^\pC\pZ])*$")]  # as str.isprintable
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Above = Annotated[_Finite, Field(gt=0)]
_Kinds = Annotated[tuple[TriggerKind, ...], Field(min_length=1)]
_Splits = Annotated[Mapping[str, NonNegativeInt], Field(strict=False)]  # any Mapping, not only a dict
_Normalization = tuple[tuple[_Finite, _Finite, _Finite], tuple[_Above, _Above, _Above]]

_TOLD: dict[str, tuple[str, Any]] = {
    "version": ("a short line of text, such as '1'", _Line),
    "paper": ("text", str),
    "late": ("a frozenset of names of options, as in frozenset({'steps'})", frozenset[str]),
    "role": ("a Role, as in Role.CONTROL", Role),
    **dict.fromkeys(
        ("passthrough", "uses_weights", "retrains", "needs_files", "labelled", "prepares"), ("True or False", bool)
    ),
    "binds": (f"a tuple of kinds of trigger, of {', '.join(KINDS)}", _Kinds),
    "control_of": ("the name of an attack", str),
    "splits": ("a number of images from 0 on by name", _Splits),
    "classes": ("a tuple of names", tuple[str, ...]),
    "normalization": ("None or (mean, std), three finite numbers each", _Normalization | None),
}
"""What a class must declare: a description, and a type."""


def _is(kind: Any, value: object) -> bool:
    """Whether a value has exactly this type: 1 is no bool."""
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return False
    return True


def _offered(hook: str, function: Callable[[], object]) -> list[Any]:
    """The list that a hook returns. PluginError if it returns no list."""
    returned = function()
    if isinstance(returned, Iterable):
        return list(returned)
    raise PluginError(f"{hook}() must return a list of classes, not {_called(returned)}")


def _called(thing: object) -> str:
    """The name, for a message, of an object of a wrong type."""
    return f"the class {thing.__name__}" if isinstance(thing, type) else shown(thing)


@cache
def installed() -> Registry:
    """The methods that are installed, loaded once per process."""
    return load_registry()


def load_registry(points: Iterable[EntryPoint] | None = None, extra: Mapping[str, object] | None = None) -> Registry:
    """Load every plugin, our own first, then by distribution; log one warning for each with a problem.

    points: instead of the installed entry points. extra: further modules or objects to register, by name.
    """
    manager, plugins = pluggy.PluginManager(GROUP), []
    manager.add_hookspecs(hookspecs)
    found = entry_points(group=GROUP) if points is None else points
    for point in sorted(found, key=lambda p: (_distribution(p)[0] != FIRST_PARTY, _distribution(p)[0], p.name)):
        plugins.append(_register(manager, point.name, *_distribution(point), load=point.load))
    for name, module in (extra or {}).items():
        plugins.append(_register(manager, name, "local", "", load=partial(_itself, module)))
    registry = Registry(manager, plugins)
    for problem in registry.problems:
        log.warning("%s", problem)
    return registry


def _itself(module: object) -> object:
    return module


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Name and version of an entry point's distribution, as far as its metadata contain them."""
    dist = point.dist
    return (dist.name or "?", dist.version or "") if dist is not None else ("?", "")


def _register(
    manager: pluggy.PluginManager, name: str, distribution: str, version: str, *, load: Callable[[], object]
) -> Plugin:
    """Import and register one plugin; any error becomes its ``problem``, and the plugin is skipped.

    If the entry-point name is taken, the plugin is registered as DISTRIBUTION:NAME.
    """
    plugin = Plugin(_free_name(manager, name, distribution), distribution, version)
    try:
        asked("to register it", _enter, manager, plugin.name, load)
    except BenchbdError as error:
        plugin.problem = str(error)
        if manager.has_plugin(plugin.name):
            manager.unregister(name=plugin.name)
    return plugin


def _enter(manager: pluggy.PluginManager, name: str, load: Callable[[], object]) -> None:
    """Import a plugin and register its hooks with pluggy. PluginError if it is no plugin of benchbd."""
    try:
        with isolated(f"plugin {name!r}"):
            module = load()
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise PluginError(f"failed to import: {named(error)}") from error
    if manager.is_registered(module):
        raise PluginError(f"it is the same as plugin {manager.get_name(module)!r}")
    try:
        manager.register(module, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:  # arguments or hooks that do not exist
        raise PluginError(_explained(str(error))) from error
    callers = manager.get_hookcallers(module)
    if not callers:
        raise PluginError("implements no hook of benchbd; is @hookimpl missing?")
    for impl in (impl for caller in callers for impl in caller.get_hookimpls() if impl.plugin is module):
        if impl.wrapper or impl.hookwrapper:
            raise PluginError(f"{impl.function.__name__}() is a wrapper, and benchbd calls none")


def _free_name(manager: pluggy.PluginManager, name: str, distribution: str) -> str:
    """``name`` or, if it is taken, a name that contains the distribution too."""
    again = (f"{distribution}:{name}" + (f"#{number}" if number > 1 else "") for number in count(1))
    return next(free for free in chain([name], again) if free not in OBSERVERS and not manager.has_plugin(free))


def _explained(message: str) -> str:
    """pluggy's message without its internals: an unknown hook with the nearest one, or an argument no hook has."""
    if unknown := re.search(r"unknown hook '(\w+)'", message):
        return str(
            UnknownNameError("hook", unknown[1], (name for name in vars(hookspecs) if name.startswith("benchbd_")))
        )
    if surplus := re.search(r"hookimpl definition: (.*)\nArgument\(s\) \{(.*)\}", message):
        return f"{surplus[1]}: the hook has no argument {surplus[2]}"
    return message.splitlines()[-1]

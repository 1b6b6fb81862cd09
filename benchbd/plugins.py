"""Finding plugins: one entry point at a time, so that a broken one is named and takes no other down."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from benchbd import hookspecs
from benchbd.board import SECTIONS
from benchbd.errors import UnknownNameError, UsageError
from benchbd.methods import Attack, Dataset, Detection, Evaluator, Method, Mitigation, Pretraining
from benchbd.options import build

GROUP = "benchbd"
FIRST_PARTY = "benchbd"

AXES: dict[str, tuple[str, type[Method]]] = {
    "dataset": ("benchbd_datasets", Dataset),
    "pretraining": ("benchbd_pretrainings", Pretraining),
    "attack": ("benchbd_attacks", Attack),
    "defense": ("benchbd_defenses", Mitigation),
    "detection": ("benchbd_detections", Detection),
    "evaluator": ("benchbd_evaluators", Evaluator),
}
"""Per axis: the hook that collects its methods, and the class they derive from."""

WORK = {
    "dataset": "load",
    "pretraining": "pretrain",
    "attack": "inject",
    "defense": "repair",
    "detection": "inspect",
    "evaluator": "evaluate",
}
"""Per axis: the method that a class must define."""

RESERVED = {*SECTIONS, *AXES, "board"}

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
    """Every method that the installed plugins offer, by axis and name."""

    def __init__(self, manager: pluggy.PluginManager, plugins: list[Plugin]) -> None:
        self.manager = manager
        self.plugins = plugins
        self.methods: dict[str, dict[str, type[Method]]] = {axis: {} for axis in AXES}
        self._owner: dict[tuple[str, str], Plugin] = {}
        for plugin in plugins:
            if not plugin.problem:
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

    def plugin_of(self, axis: str, name: str) -> Plugin:
        return self._owner[axis, name]

    def _collect(self, plugin: Plugin) -> None:
        for axis, (hook, base) in AXES.items():
            for impl in getattr(self.manager.hook, hook).get_hookimpls():
                if impl.plugin_name != plugin.name:
                    continue
                try:
                    returned = impl.function()
                    offered = list(returned) if isinstance(returned, Iterable) else None
                except (Exception, SystemExit) as error:
                    plugin.problem = f"{hook}() raised {type(error).__name__}: {error}"
                    continue
                if offered is None:
                    plugin.problem = f"{hook}() must return a list of classes, not {_called(returned)}"
                    continue
                for cls in offered:
                    if problem := self._add(plugin, axis, cls, base):
                        plugin.problem = problem

    def _add(self, plugin: Plugin, axis: str, cls: Any, base: type[Method]) -> str:
        if not (isinstance(cls, type) and issubclass(cls, base)):
            return f"offers {_called(cls)} as {axis}, which is not a class derived from benchbd.{base.__name__}"
        if flaw := flaw_of(cls):
            return f"{cls.__name__}: {flaw}"
        name = cls.name
        if name in self.methods[axis]:
            other = self._owner[axis, name]
            return f"its {axis} {name!r} is already the name of one in plugin {other.name!r} ({other.distribution})"
        self.methods[axis][name] = cls
        self._owner[axis, name] = plugin
        plugin.adds.setdefault(axis, []).append(name)
        return ""


def flaw_of(cls: type[Method]) -> str:
    """What keeps a class from being a method of its axis, in one line; empty where nothing does."""
    name = getattr(cls, "name", "")
    if not (isinstance(name, str) and name):
        return "it has no name; give it one, as in name = 'shrink'"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        return f"the name {name!r} is not made of lower-case letters, digits, '-' and '_'"
    if name in RESERVED:
        return f"the name {name!r} is reserved, as are all of {', '.join(sorted(RESERVED))}"
    for option, info in cls.model_fields.items():
        if info.is_required():
            return f"option {option!r} has no default; every option needs one, as in Field(0.9, description=...)"
    try:
        build(cls, {}, name)
    except UsageError as error:
        return f"a default is not valid: {error}"
    except Exception as error:
        return f"its defaults raise {type(error).__name__}: {error}"
    base = next(base for _, base in AXES.values() if issubclass(cls, base))
    work = WORK[base.axis]
    if getattr(cls, work) is getattr(base, work):
        return f"it does not define {work}()"
    return ""


def _called(thing: object) -> str:
    """What to call a thing that is not what it should be."""
    return f"the class {thing.__name__}" if isinstance(thing, type) else repr(thing)


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
    return (point.dist.name, point.dist.version) if point.dist is not None else ("?", "")


def _register(
    manager: pluggy.PluginManager, name: str, distribution: str, version: str, *, load: Callable[[], object]
) -> Plugin:
    """Import and register one plugin; whatever goes wrong becomes its ``problem`` and it is left out.

    A name that another distribution's entry point took is told apart by the distribution.
    """
    plugin = Plugin(f"{distribution}:{name}" if manager.has_plugin(name) else name, distribution, version)
    try:
        module = load()
    except (Exception, SystemExit) as error:
        plugin.problem = f"failed to import: {type(error).__name__}: {error}"
        return plugin
    if manager.is_registered(module):
        plugin.problem = f"it is the same as plugin {manager.get_name(module)!r}"
        return plugin
    try:
        manager.register(module, name=plugin.name)
        manager.check_pending()
        if not manager.get_hookcallers(module):
            raise ValueError("implements no hook of benchbd; is @hookimpl missing?")
    except (ValueError, pluggy.PluginValidationError) as error:  # no hooks; arguments or hooks that do not exist
        if manager.get_plugin(plugin.name) is module:
            manager.unregister(module)
        plugin.problem = _explained(str(error))
    return plugin


def _explained(message: str) -> str:
    """pluggy's message without its internals: an unknown hook with the nearest one, or what a hook cannot be given."""
    if unknown := re.search(r"unknown hook '(\w+)'", message):
        return str(
            UnknownNameError("hook", unknown[1], (name for name in vars(hookspecs) if name.startswith("benchbd_")))
        )
    if surplus := re.search(r"hookimpl definition: (.*)\nArgument\(s\) \{(.*)\}", message):
        return f"{surplus[1]}: the hook has no argument {surplus[2]}"
    return message.splitlines()[-1]

"""A board's protocol with a user's changes: validated methods, and the differences of each from the board."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from benchbd.base.content import without_paths
from benchbd.base.errors import PluginError, UsageError, brief
from benchbd.base.options import holds_path, options_of
from benchbd.contract.method import Method, build
from benchbd.contract.specs import SECTIONS
from benchbd.planning.board import Board
from benchbd.planning.options import Options, parse_options
from benchbd.registry import Registry, check_plannable

M = TypeVar("M", bound=Method)


class Settings:
    """The protocol after ``-o`` and the board's tables.

    trigger, reference, clean, shadow, task, budget: the parts of the protocol, changed or not.
    """

    def __init__(self, board: Board, registry: Registry, options: Sequence[str]) -> None:
        self.board, self.registry = board, registry
        self._departures: dict[tuple[str, str], list[str]] = {}
        self._asked = parse_options(options)
        self._used: set[str] = set()
        sections = map(self._section, SECTIONS)
        self.trigger, self.reference, self.clean, self.shadow, self.task, self.budget = sections
        self._check_tables()

    def _section(self, name: str) -> Any:
        """A part of the protocol with the user's changes."""
        self._used.add(name)
        return build(SECTIONS[name], {**getattr(self.board, name).model_dump(), **self._asked.get(name, {})}, name)

    def methods(self, base: type[M], names: Iterable[str]) -> list[M]:
        """The methods of ``base``'s axis by name, each once, with the board's options and the user's on top."""
        return [cast(M, self._method(base.axis, name)) for name in dict.fromkeys(names)]

    def _method(self, axis: str, name: str) -> Method:
        cls = self.registry.get(axis, name)
        if name in self._asked and len(self.registry.find(name)) > 1:
            field, value = next(iter(self._asked[name].items()))
            text = brief(value if isinstance(value, str) else json.dumps(value))
            option = f"{name}.{brief(field)}"
            raise UsageError(f"option {option}: {name!r} stands on two axes; write {axis}:{option}={text}")
        self._used |= {name, f"{axis}:{name}"}
        own = self._boards(cls)
        budget = self._budgeted(cls, self.budget) if "budget" in self._asked else {}
        ours = build(cls, own, name, self.board.folder)
        placed = {field: value for field, value in ours if holds_path(value)}  # the board's paths as resolved files
        theirs = build(cls, own | placed | budget | _named(self._asked, axis, name), name)
        try:
            check_plannable(theirs)
        except PluginError as error:
            raise PluginError(f"{axis} {name}: {error}") from error
        self._departures[axis, name] = self._compare(cls, options_of(ours), options_of(theirs))
        return theirs

    def departures(self, method: Method) -> list[str]:
        """The differences of a method of ``methods`` from the board's, one "NAME.FIELD=VALUE (the board's: ...)" per
        option. A change by the budget is reported for the budget, in the same words for all methods that it reaches."""
        return self._departures[method.axis, method.name]

    def departed(self, section: str) -> list[str]:
        """The same differences for a part of the protocol."""
        board, own = getattr(self.board, section), getattr(self, section)
        return list(differences(section, board.model_dump(), own.model_dump()).values())

    def _boards(self, cls: type[Method]) -> dict[str, Any]:
        """The board's settings for a method: its part of the budget, then its tables."""
        return self._budgeted(cls, self.board.budget) | _named(self.board.options, cls.axis, cls.name)

    def _check_tables(self) -> None:
        """Raise UsageError if a table `[options.NAME]` is valid for no method called NAME."""
        for table in self.board.options:
            problems: list[UsageError] = []
            classes = self.registry.find(table)
            for cls in classes:
                try:
                    build(cls, self._boards(cls), cls.name)
                except UsageError as error:
                    problems.append(error)
            if len(problems) == len(classes):
                raise UsageError(f"board {self.board.name}: {problems[0]}") from problems[0]

    @staticmethod
    def _budgeted(cls: type[Method], budget: Any) -> dict[str, Any]:
        """The fields of the budget that a defense has; none for other axes."""
        values = budget.model_dump() if cls.axis == "defense" else {}
        return {field: value for field, value in values.items() if value is not None and field in cls.model_fields}

    def _compare(self, cls: type[Method], board: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
        shared = self._budgeted(cls, self.budget).keys() - _named(self._asked, cls.axis, cls.name).keys()
        of_budget = differences("budget", self.board.budget.model_dump(), self.budget.model_dump())
        own = differences(cls.name, board, run)
        return [of_budget[option] if option in shared & of_budget.keys() else own[option] for option in own]

    def reject_unused(self, point: Iterable[str]) -> None:
        """Raise UsageError if ``-o``, or a sweep's point, names a method that takes no part in the run."""
        options = [*(f"{name}.{field}" for name, table in self._asked.items() for field in table), *point]
        unused = {name: option for option in options if (name := option.rpartition(".")[0]) not in {*self._used, ""}}
        for name in unused:
            self.registry.find(name, besides=SECTIONS)
        for name, option in unused.items():
            raise UsageError(f"option {brief(option)}: {name} takes no part in this run")


def differences(name: str, board: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, str]:
    """The values of ``run`` that differ from those of ``board``, as text by option."""
    return {
        option: without_paths(f"{name}.{option}={value} (the board's: {board.get(option)})")
        for option, value in run.items()
        if value != board.get(option)
    }


def _named(options: Options, axis: str, name: str) -> dict[str, Any]:
    """The values of tables for a method: under its bare name, then under ``axis:name``, which takes precedence."""
    return options.get(name, {}) | options.get(f"{axis}:{name}", {})

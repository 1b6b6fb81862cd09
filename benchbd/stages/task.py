"""A task: a labelled data set and a target class, written DATASET:TARGET. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from benchbd.base.errors import UnknownNameError, UsageError, brief, shown


def split_task(text: str) -> tuple[str, str | None]:
    """``gtsrb:12`` -> (``gtsrb``, ``12``); the target may be an index or a class name, or absent."""
    name, colon, target = text.partition(":")
    if not name or (colon and not target):
        raise UsageError(f"task {shown(text)} is not of the form DATASET:TARGET, such as gtsrb:12")
    return name, target or None


def class_index(target: str) -> int | None:
    """The index that a target is, negative ones too; None if it can only be a name."""
    return int(target) if re.fullmatch("-?[0-9]{1,9}", target) else None


def resolve_target(task: str, target: str, classes: Sequence[str], count: int) -> tuple[int, str]:
    """(index, name) of a target given as index or unique class name; UsageError if the task has no such class."""
    names = list(classes) or [str(i) for i in range(count)]
    index = class_index(target)
    if target in names:
        if names.count(target) > 1:
            raise UsageError(f"task {task}: {shown(target)} names {names.count(target)} classes; give the index")
        if index is not None and 0 <= index < len(names) and names[index] != target:
            raise UsageError(
                f"task {task}: {brief(target)} is the name of class {names.index(target)} and the index of another"
            )
        return names.index(target), target
    if index is not None:
        if 0 <= index < len(names):
            return index, names[index]
        raise UsageError(f"task {task}: no class {target}; its classes are 0..{len(names) - 1}")
    raise UnknownNameError(f"target class of task {task}", target, names)


class Task(NamedTuple):
    """A data set with its target class: the set's name, the class's index and its name."""

    name: str
    label: int
    target: str

    def __str__(self) -> str:
        return f"{self.name}:{self.label}"

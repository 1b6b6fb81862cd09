"""Write a new plugin: a small distribution with a method that works, for its author to edit.

Each axis has one module, which the page for authors of plugins shows too; only the names in it change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from keyword import iskeyword
from pathlib import Path

from benchbd.base.content import commit, expanded, make_folder, shipped
from benchbd.base.errors import StoreError, UnknownNameError, UsageError, shown
from benchbd.contract.axes import AXIS, Axis
from benchbd.registry import LONGEST_NAME, Registry, flaw_of_name

LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
"""Licences of a new plugin, with their SPDX names."""

_TRIALS = {
    "dataset": "--attack none --defense none --pretrain {name} --task {name}:0",
    "pretraining": "--attack none --defense none --pretraining {name}",
    "trigger": "--attack badencoder --defense none -o trigger.kind=function -o trigger.function={name}",
    "attack": "--attack {name} --defense none",
    "defense": "--attack none --defense {name}",
    "detection": "--attack none --defense none --detection {name}",
    "evaluator": "--attack none --defense none --evaluator {name}",
}
"""Arguments with which `run --board smoke` runs a method, by axis."""


def trial(axis: Axis, name: str, module: str) -> str:
    """The command that runs a method on the board `smoke`. module: its text; a method with ``steps`` takes five."""
    steps = f" -o {name}.steps=5" if "steps: int" in module else ""
    return f"benchbd run --board smoke {_TRIALS[axis.name].format(name=name)}{steps}"


def new_plugin(
    registry: Registry,
    name: str,
    axis: str,
    out: str | Path | None = None,
    *,
    licence: str = "apache-2.0",
    author: str | None = None,
) -> tuple[Path, list[str]]:
    """Write a distribution with a method of ``axis``; its folder, and the names of its files.

    out: a folder that does not exist yet; by default ``benchbd-NAME``. author: by default all authors of it.
    UsageError for a name that no method can have or another method has, an unknown axis or licence, an author of
    several lines, or a folder that exists; StoreError if it cannot be written.
    """
    if axis not in AXIS:
        raise UnknownNameError("axis", axis, AXIS)
    if licence not in LICENCES:
        raise UnknownNameError("licence", licence, LICENCES)
    _check_name(registry, name, axis)
    distribution = f"benchbd-{re.sub('[-_]+', '-', name).strip('-')}"
    author = f"the authors of {distribution}" if author is None else author.strip()
    if not author or not author.isprintable() or set(author) & set('"\\'):
        raise UsageError(f"author {shown(author)}: a name is one line without quotes and backslashes")
    files = _files(AXIS[axis], name, distribution, licence, author)
    folder = expanded(out or distribution)
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder}: exists already; --out names a new folder")
    try:
        for path, text in files.items():
            make_folder((folder / path).parent)
            commit(folder / path, partial(Path.write_text, data=text, encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return folder, list(files)


def _check_name(registry: Registry, name: str, axis: str) -> None:
    """Raise UsageError, with the nearest name that would do, if no new method of the axis can have this one."""
    flaw = flaw_of_name(name)
    if not flaw and name in registry.methods[axis]:
        flaw = f"{axis} {name!r} is in {registry.plugin_of(axis, name).distribution} already"
    if not flaw:
        return
    valid = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-_")[: LONGEST_NAME - 3].rstrip("-_") or "mine"
    taken = {*registry.methods[axis], *(each for each in [valid] if flaw_of_name(each))}
    free = next(each for each in (valid, f"my-{valid}", *(f"{valid}-{n}" for n in range(2, 99))) if each not in taken)
    raise UsageError(f"{flaw}; {free!r} would do")


def _files(axis: Axis, name: str, distribution: str, licence: str, author: str) -> dict[str, str]:
    """The text of every file of the distribution, by its path in it."""
    example = example_of(axis)
    (old,) = re.findall(rf"^class (\w+)\({axis.kind}\):$", example, re.MULTILINE)
    cls = _class_name(name, axis, set(re.findall(r"\w+", example)) - {old})
    text, renamed = re.subn(r'^    name = ".*"$', f'    name = "{name}"', example, flags=re.MULTILINE)
    assert renamed == 1
    text = re.sub(rf"(?<=class ){old}\b|(?<=return \[){old}\b", cls, text)
    (about,) = re.findall(rf'^class {cls}\(.*\n    """(.*?)(?:"""|\n)', text, re.MULTILINE)
    module = distribution.replace("-", "_")
    parts = {
        "distribution": distribution,
        "module": module,
        "name": name,
        "class": cls,
        "about": about,
        "axis": axis.name,
        "Axis": axis.name.capitalize(),
        "author": author,
        "spdx": LICENCES[licence],
        "quick": ", steps=3" if "steps: int" in text else "",
        "trial": trial(axis, name, text),
    }
    place = "docs/templates/distribution"
    return {
        **{file: _filled(f"{place}/{file}", parts) for file in ("pyproject.toml", "README.md", "CITATION.cff")},
        "LICENSE": shipped("LICENSE") if licence == "apache-2.0" else _filled(f"{place}/LICENSE-{licence}", parts),
        f"{module}.py": text,
        f"tests/test_{module}.py": _filled(f"{place}/test.txt", parts),
    }


def example_of(axis: Axis) -> str:
    """The text of the module with the example of an axis."""
    return shipped(f"docs/examples/{axis.name}.py")


def _class_name(name: str, axis: Axis, used: set[str]) -> str:
    """The name of the class, ``GradClip`` for grad-clip; with the kind of method before it if the module uses that
    name for something else, or Python cannot."""
    camel = "".join(part.capitalize() for part in re.split("[-_]", name))
    return f"{axis.kind}{camel}" if camel in used or iskeyword(camel) or not camel.isidentifier() else camel


def _filled(path: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], shipped(path))

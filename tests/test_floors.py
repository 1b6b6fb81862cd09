"""The shape of the house, read off the imports: floors, and the door that every plugin uses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import benchbd

CORE = Path(benchbd.__file__).parent
PLUGINS = CORE.parent / "plugins" / "benchbd_plugins"

FLOORS = [
    set(line.split())
    for line in reversed(
        (CORE.parent / "CONTRIBUTING.md").read_text().partition("```floors\n")[2].partition("```")[0].splitlines()
    )
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imported(path: Path) -> set[str]:
    """Modules of benchbd that a file imports at run time; what only type checkers read does not count."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0].startswith("benchbd"):
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "benchbd" else {node.module}
            )
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0].startswith("benchbd")}
    return found


MODULES = sorted(path for path in CORE.glob("*.py") if path.stem != "__init__")


def test_every_module_has_a_floor() -> None:
    assert {path.stem for path in MODULES} == set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_down(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] != "benchbd_plugins", f"{path.stem} knows a plugin"
        if len(parts) > 1 and parts[1] in FLOOR:
            assert FLOOR[parts[1]] < FLOOR[path.stem], f"{path.stem} must not import {parts[1]}, which is not below it"


@pytest.mark.parametrize("path", sorted(PLUGINS.glob("*.py")), ids=lambda path: path.stem)
def test_plugins_use_the_front_door(path: Path) -> None:
    for name in imported(path):
        assert name.split(".")[0] == "benchbd", f"{path.stem} imports {name}"
        assert name.removeprefix("benchbd.") in benchbd.__all__, (
            f"{path.stem} imports {name}: not in benchbd's top level"
        )


def test_top_level_is_what_it_says() -> None:
    block = next(n for n in ast.parse((CORE / "__init__.py").read_text()).body if isinstance(n, ast.If))
    typed = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(benchbd.__all__)
    for name in benchbd.__all__:
        assert getattr(benchbd, name) is not None

"""Draw the picture of the house from the imports: ``python -m docs.house`` prints packages, floors and arrows.

An arrow is an import, counted once per module and imported module; imports inside functions and under
``TYPE_CHECKING`` count too. The floors are those that CONTRIBUTING lists.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "benchbd"
DOOR = {"__init__", "__main__"}  # entry points, for plugins and for ``python -m benchbd``: on no floor


@dataclass(frozen=True)
class House:
    """modules: the imported modules of each, by dotted name below ``benchbd``; floors: rooms by floor, the ground
    first. A room is a package of modules, or a module that lies beside the packages."""

    modules: dict[str, set[str]]
    floors: list[list[str]]

    @property
    def floor(self) -> dict[str, int]:
        return {room: number for number, rooms in enumerate(self.floors) for room in rooms}

    def arrows(self) -> Counter[tuple[str, str]]:
        """The number of imports from one room of another."""
        return Counter(
            (room_of(module), room_of(other))
            for module, others in self.modules.items()
            for other in others
            if room_of(module) != room_of(other)
        )

    def circle(self) -> list[str]:
        """Modules that import each other in a ring, in order; empty if there is no ring."""
        done: set[str] = set()

        def walk(module: str, path: list[str]) -> list[str]:
            if module in path:
                return path[path.index(module) :]
            if module in done:
                return []
            for other in sorted(self.modules.get(module, ())):
                if ring := walk(other, [*path, module]):
                    return ring
            done.add(module)
            return []

        return next((ring for module in sorted(self.modules) if (ring := walk(module, []))), [])


def read_house() -> House:
    floors = (ROOT / "CONTRIBUTING.md").read_text().partition("```floors\n")[2].partition("```")[0]
    paths = [path for path in sorted(CORE.rglob("*.py")) if dotted(path) not in DOOR and path.read_text()]
    names = {dotted(path): path for path in paths}
    names |= {f"docs.{path.stem}": path for path in sorted((ROOT / "docs").glob("*.py"))}
    modules = {name: set(map(_inside, imported(path))) & names.keys() for name, path in names.items()}
    return House(modules, [line.split() for line in reversed(floors.splitlines())])


def dotted(path: Path) -> str:
    """A file of the package as a dotted name below ``benchbd``; the package itself for its ``__init__``."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def _inside(name: str) -> str:
    """The module below ``benchbd`` that an imported name belongs to; empty if it belongs to none."""
    return name.removeprefix("benchbd.") if name.startswith("benchbd.") else ""


def imported(path: Path) -> set[str]:
    """Every module that a file imports, dotted; imports under ``TYPE_CHECKING`` and inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # ``from package import module`` names a module, ``from module import name`` does not: try both.
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def picture(house: House) -> str:
    """Floors from the roof down: each room with its number of modules and, after the arrow, the rooms it imports."""
    arrows = house.arrows()
    sizes = Counter(map(room_of, house.modules))
    lines = []
    for number, rooms in reversed(list(enumerate(house.floors))):
        for room in sorted(rooms):
            below = [f"{other} {arrows[room, other]}" for other in reversed(list(house.floor)) if arrows[room, other]]
            count = f"{sizes[room]} module{'s' * (sizes[room] != 1)}"
            lines.append(f"{number:2} {room:<9} {count:<10} -> {', '.join(below) or '(ground)'}")
    up = sum(count for (room, other), count in arrows.items() if house.floor[room] <= house.floor[other])
    total = f"{len(house.modules)} modules, {len(house.floor)} rooms, {len(house.floors)} floors"
    return "\n".join([*lines, f"{total}; {sum(arrows.values())} arrows between rooms, {up} up", ""])


if __name__ == "__main__":
    print(picture(read_house()), end="")

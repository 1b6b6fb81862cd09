"""The structure of the packages, from the imports: floors, and plugins' imports from the top level alone."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import benchbd
from docs.house import CORE, ROOT, House, imported, picture, read_house, room_of

HOUSE = read_house()
PLUGINS = ROOT / "plugins" / "benchbd_plugins"


def test_every_room_has_a_floor_and_there_are_ten() -> None:
    named = [room for rooms in HOUSE.floors for room in rooms]
    assert set(map(room_of, HOUSE.modules)) == set(named)
    assert len(named) == len(set(named))
    assert len(HOUSE.floors) == 10


@pytest.mark.parametrize("module", sorted(HOUSE.modules))
def test_imports_go_down(module: str) -> None:
    for other in HOUSE.modules[module]:
        if room_of(other) != room_of(module):
            assert HOUSE.floor[room_of(other)] < HOUSE.floor[room_of(module)], f"{module} must not import {other}"


def test_no_two_modules_import_each_other() -> None:
    assert HOUSE.circle() == []
    assert House({"a": {"b"}, "b": {"c"}, "c": {"a"}}, []).circle() == ["a", "b", "c"]  # it would find one


def test_core_knows_no_plugin() -> None:
    for path in CORE.rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith("benchbd_plugins")], path


def test_the_picture_counts_what_it_draws() -> None:
    house = House({"a.x": {"a.y", "b"}, "a.y": {"b", "c.z"}, "b": set(), "c.z": {"b"}}, [["b"], ["c"], ["a"]])
    assert house.arrows() == Counter({("a", "b"): 2, ("a", "c"): 1, ("c", "b"): 1})
    assert picture(house).splitlines()[0].split() == ["2", "a", "2", "modules", "->", "c", "1,", "b", "2"]
    assert picture(house).endswith("4 modules, 3 rooms, 3 floors; 4 arrows between rooms, 0 up\n")


def test_contributing_shows_the_picture() -> None:
    shown = re.search(r"```house\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] == picture(HOUSE), "run `make docs`"


@pytest.mark.parametrize("path", sorted(PLUGINS.glob("*.py")), ids=lambda path: path.stem)
def test_plugins_use_the_front_door(path: Path) -> None:
    for name in imported(path):
        if name.split(".")[0].startswith("benchbd") and name != "benchbd":
            assert name.removeprefix("benchbd.") in benchbd.__all__, (
                f"{path.stem} imports {name}: not in benchbd's top level"
            )


def test_top_level_is_what_it_says() -> None:
    for name in benchbd.__all__:
        assert getattr(benchbd, name) is not None

"""The registry: every plugin is loaded by itself, and one with a problem is named and takes no other down."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchbd import Mitigation, UsageError
from benchbd.cli import main
from benchbd.plugins import AXES, Registry, load_registry

GOOD = '''
from benchbd import DefenderKnowledge, Encoder, Mitigation, hookimpl


class {cls}(Mitigation):
    """Does nothing."""

    name = "{name}"
    paper = "test"
    version = "1"

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return encoder


@hookimpl
def benchbd_defenses():
    return [{cls}]
'''
HOOK = "from benchbd import hookimpl\n\n\n@hookimpl\n"

BROKEN = {
    "absent": (None, "failed to import: ModuleNotFoundError: No module named 'plugin_absent'"),
    "broken": ("import nothing_of_that_name", "failed to import: ModuleNotFoundError: No module named 'nothing_of"),
    "syntax": ("def (:", "failed to import: SyntaxError: "),
    "leaving": ("import sys\nsys.exit(0)", "failed to import: SystemExit: 0"),
    "misspelt": (
        HOOK + "def benchbd_defences():\n    return []\n",
        "unknown hook 'benchbd_defences': did you mean 'benchbd_defenses'? known: ",
    ),
    "arguments": (
        HOOK + "def benchbd_defenses(encoder):\n    return []\n",
        "benchbd_defenses(encoder): the hook has no argument 'encoder'",
    ),
    "unmarked": (
        GOOD.format(cls="Mine", name="mine").replace("@hookimpl\n", ""),
        "implements no hook of benchbd; is @hookimpl missing?",
    ),
    "raising": (HOOK + "def benchbd_defenses():\n    raise KeyError('x')\n", "benchbd_defenses() raised KeyError: 'x'"),
    "nothing": (
        HOOK + "def benchbd_defenses():\n    return None\n",
        "benchbd_defenses() must return a list of classes, not None",
    ),
    "one_class": (
        GOOD.format(cls="Mine", name="mine").replace("[Mine]", "Mine"),
        "benchbd_defenses() must return a list of classes, not the class Mine",
    ),
    "no_method": (
        HOOK + "def benchbd_defenses():\n    return [dict]\n",
        "offers the class dict as defense, which is not a class derived from benchbd.Mitigation",
    ),
    "wrong_axis": (
        GOOD.format(cls="Axis", name="axis").replace("def benchbd_defenses", "def benchbd_attacks"),
        "as attack, which is not a class derived from benchbd.Attack",
    ),
    "nameless": (GOOD.format(cls="Nameless", name=""), "Nameless: it has no name; give it one"),
    "odd_name": (
        GOOD.format(cls="Odd", name="../odd name|x"),
        "Odd: the name '../odd name|x' is not made of lower-case letters, digits, '-' and '_'",
    ),
    "reserved": (
        GOOD.format(cls="Taken", name="budget"),
        "Taken: the name 'budget' is reserved, as are all of attack, ",
    ),
    "required": (
        GOOD.format(cls="Strong", name="strong").replace('version = "1"', "strength: float"),
        "Strong: option 'strength' has no default; every option needs one, as in Field(0.9, description=...)",
    ),
    "bad_default": (
        GOOD.format(cls="Odd", name="odd").replace('version = "1"', "strength: float = 'x'"),
        "Odd: a default is not valid: odd.strength: input should be a valid number",
    ),
    "idle": (
        GOOD.format(cls="Idle", name="idle").replace("def repair", "def mend"),
        "Idle: it does not define repair()",
    ),
    "duplicate": (
        GOOD.format(cls="Mine", name="ft"),
        "its defense 'ft' is already the name of one in plugin 'ft' (benchbd)",
    ),
    "half": (
        GOOD.format(cls="Half", name="half").replace("[Half]", "[Half, int]"),
        "offers the class int as defense",
    ),
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path for plugin modules, ``plugin_<name>``."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]


def installed(folder: Path, **sources: str | None) -> list[EntryPoint]:
    """Our own entry points and one for each of ``sources``."""
    from importlib.metadata import entry_points

    points = list(entry_points(group="benchbd"))
    for name, source in sources.items():
        if source is not None:
            (folder / f"plugin_{name}.py").write_text(source)
        points.append(EntryPoint(name, f"plugin_{name}", "benchbd"))
    return points


def names(registry: Registry) -> dict[str, list[str]]:
    return {axis: registry.names(axis) for axis in AXES}


def test_our_own(registry: Registry) -> None:
    assert registry.problems == []
    assert set(registry.names("attack")) >= {"none", "badencoder"}
    assert set(registry.names("defense")) >= {"none", "scratch", "ft", "mimic"}
    assert set(registry.names("evaluator")) >= {"mlp", "linear", "knn"}
    assert set(registry.names("dataset")) >= {"shapes", "cifar10", "stl10", "gtsrb", "svhn"}
    assert registry.names("pretraining") == ["simclr"]
    for axis in AXES:
        for name in registry.names(axis):
            cls = registry.get(axis, name)
            assert (cls.axis, cls.name) == (axis, name)
            assert issubclass(cls, AXES[axis][1])
            assert registry.plugin_of(axis, name).distribution == "benchbd"
            assert name in registry.plugin_of(axis, name).adds[axis]


def test_names_on_one_and_two_axes(registry: Registry) -> None:
    assert [cls.axis for cls in registry.find("ft")] == ["defense"]
    assert sorted(cls.axis for cls in registry.find("none")) == ["attack", "defense"]
    with pytest.raises(UsageError, match="unknown method 'mimik': did you mean 'mimic'"):
        registry.find("mimik")
    with pytest.raises(UsageError, match="unknown attack 'ft'"):
        registry.get("attack", "ft")


def test_a_good_plugin_adds_its_method(plugins: Path, registry: Registry) -> None:
    found = load_registry(installed(plugins, good=GOOD.format(cls="Good", name="good")))
    assert found.problems == []
    assert set(found.names("defense")) - set(registry.names("defense")) == {"good"}
    assert issubclass(found.get("defense", "good"), Mitigation)


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_plugin_is_named_and_takes_none_down(
    plugins: Path, registry: Registry, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    source, problem = BROKEN[name]
    with caplog.at_level(logging.WARNING, "benchbd"):
        found = load_registry(installed(plugins, **{name: source}, good=GOOD.format(cls="Good", name="good")))
    (told,) = found.problems
    assert told.startswith(f"plugin {name!r} (? ): ")
    assert problem in told
    assert caplog.messages == [told]
    kept = names(found)
    assert "good" in kept["defense"]
    kept["defense"] = [method for method in kept["defense"] if method not in ("good", "half")]
    assert kept == names(registry)
    assert found.get("defense", "ft") is registry.get("defense", "ft")  # first-party wins


def test_all_at_once(plugins: Path, registry: Registry) -> None:
    found = load_registry(installed(plugins, **{name: source for name, (source, _) in BROKEN.items()}))
    assert len(found.problems) == len(BROKEN)
    assert set(found.names("defense")) == {*registry.names("defense"), "half"}


def test_two_strangers_with_one_name_are_both_named(plugins: Path) -> None:
    source = GOOD.format(cls="Good", name="good")
    (told,) = load_registry(installed(plugins, one=source, two=source.replace("nothing", "something"))).problems
    assert "plugin 'two'" in told
    assert "'good' is already the name of one in plugin 'one'" in told


def test_an_entry_point_may_carry_a_name_of_ours(plugins: Path) -> None:
    """Names of methods are unique, names of entry points need not be: another distribution cannot know ours."""
    found = load_registry(installed(plugins, ft=GOOD.format(cls="Good", name="good")))
    assert found.problems == []
    assert "good" in found.names("defense")
    assert found.plugin_of("defense", "ft").distribution == "benchbd"


def test_one_module_under_two_names(plugins: Path) -> None:
    points = installed(plugins, one=GOOD.format(cls="Good", name="good"))
    found = load_registry([*points, EntryPoint("zwei", "plugin_one", "benchbd")])
    assert found.problems == ["plugin 'zwei' (? ): it is the same as plugin 'one'"]
    assert "good" in found.names("defense")


def test_the_command_shows_it(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = installed(plugins, misspelt=BROKEN["misspelt"][0], good=GOOD.format(cls="Good", name="good"))
    monkeypatch.setattr("benchbd.plugins.entry_points", lambda group: points)
    result = CliRunner().invoke(main, ["plugins"])
    assert result.exit_code == 0
    assert result.stderr == ""
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}
    assert rows["good"].split()[-3:] == ["defense:", "good", "ok"]
    assert rows["badencoder"].split()[1:] == ["benchbd", "0.1.0", "attack:", "badencoder", "ok"]
    assert "did you mean 'benchbd_defenses'?" in " ".join(result.stdout.split())
    listed = CliRunner().invoke(main, ["list", "defense"])
    assert "  good            Does nothing.\n" in listed.stdout
    assert listed.stderr.startswith("warning: plugin 'misspelt'")
    assert len(listed.stderr.splitlines()) == 1

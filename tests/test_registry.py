"""The registry: every plugin is loaded alone; one with a fault is named and affects no other."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from click.testing import CliRunner

from benchbd import Dataset, Mitigation, Pretraining, UsageError
from benchbd.cli.main import main
from benchbd.contract.axes import AXIS
from benchbd.registry import Registry, flaw_of, load_registry

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
    "long_name": (
        GOOD.format(cls="Long", name="x" * 300),
        "Long: its name has 300 characters; 40 are the most, for it becomes a part of file names",
    ),
    "number_version": (
        GOOD.format(cls="Odd", name="odd").replace('version = "1"', "version = 3"),
        "Odd: version must be a short line of text, such as '1', not 3",
    ),
    "raising_version": (
        GOOD.format(cls="Odd", name="odd") + "\n\nOdd.effective_version = classmethod(lambda cls: 1 / 0)\n",
        "Odd: effective_version() raised ZeroDivisionError: division by zero",
    ),
    "odd_paper": (
        GOOD.format(cls="Odd", name="odd").replace('paper = "test"', "paper = ['x']"),
        "Odd: paper must be text, not ['x']",
    ),
    "odd_docstring": (
        GOOD.format(cls="Odd", name="odd").replace('"""Does nothing."""', "__doc__ = 7"),
        "Odd: docstring must be text, not 7",
    ),
    "odd_control": (
        GOOD.format(cls="Odd", name="odd").replace('paper = "test"', "uses_weights = None"),
        "Odd: uses_weights must be True or False, not None",
    ),
    "odd_late": (
        GOOD.format(cls="Odd", name="odd").replace('paper = "test"', "late = ['steps']"),
        "Odd: late must be a frozenset of names of options, as in frozenset({'steps'}), not ['steps']",
    ),
    "late_without_option": (
        GOOD.format(cls="Odd", name="odd").replace('paper = "test"', "late = frozenset({'stps'})\n    steps: int = 1"),
        "Odd: unknown late option 'stps': did you mean 'steps'? known: steps",
    ),
    "odd_axis": (
        GOOD.format(cls="Odd", name="odd").replace('paper = "test"', "axis = 'attack'"),
        "Odd: axis must be left at 'defense', not 'attack'",
    ),
    "raising_identity": (
        GOOD.format(cls="Odd", name="odd") + "\n\nOdd.identity = lambda self: {}['x']\n",
        "Odd: identity() raised KeyError: 'x'",
    ),
    "bare_identity": (
        GOOD.format(cls="Odd", name="odd") + "\n\nOdd.identity = lambda self: {}\n",
        "Odd: identity() must hold axis, name, version, options as Method.identity() does, not {}",
    ),
    "odd_identity": (
        GOOD.format(cls="Odd", name="odd") + "\n\nOdd.identity = lambda self: {1j}\n",
        "Odd: identity() must give JSON, not {1j} (TypeError: ",
    ),
    "fickle_identity": (
        GOOD.format(cls="Odd", name="odd")
        + "\n\nimport itertools\nn = itertools.count()\nplain = Odd.identity\n"
        + "Odd.identity = lambda self: {**plain(self), 'n': next(n)}\n",
        "Odd: identity() differs from call to call",
    ),
    "raising_default": (
        GOOD.format(cls="Odd", name="odd") + "\n\nOdd.model_validate = classmethod(lambda cls, values: 1 / 0)\n",
        "Odd: odd: its validation raised ZeroDivisionError: division by zero",
    ),
    "exit_of_its_own": (
        "class Bye(BaseException):\n    def __str__(self):\n        raise SystemExit(0)\n\n\nraise Bye",
        "failed to import: Bye: its message cannot be read (SystemExit)",
    ),
    "interrupt_of_its_own": (
        "class Bye(KeyboardInterrupt):\n    pass\n\n\nraise Bye('a', 'b')",
        "failed to import: Bye: ('a', 'b')",
    ),
    "hook_that_leaves": (
        HOOK + "def benchbd_defenses():\n    raise GeneratorExit\n",
        "raised GeneratorExit: no message",
    ),
    "list_that_leaves": (
        HOOK + "def benchbd_defenses():\n    yield from ()\n    raise SystemExit(0)\n",
        "benchbd_defenses() raised SystemExit: 0",
    ),
    "odd_object": (
        HOOK + "def benchbd_defenses():\n    return [type('Odd', (), {'__repr__': lambda self: 1 / 0})()]\n",
        "offers an object of type Odd as defense",
    ),
    "raising_class": (
        "from benchbd import Mitigation\n\n\nclass Meta(type(Mitigation)):\n"
        "    name = property(lambda cls: 1 / 0)\n\n\nclass Odd(Mitigation, metaclass=Meta):\n    pass\n\n\n"
        + HOOK
        + "def benchbd_defenses():\n    return [Odd]\n",
        "a class that benchbd_defenses() offers raised ZeroDivisionError: division by zero",
    ),
    "wrapper": (
        HOOK.replace("@hookimpl", "@hookimpl(wrapper=True)") + "def benchbd_defenses():\n    return (yield)\n",
        "benchbd_defenses() is a wrapper, and benchbd calls none",
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
    return {axis: registry.names(axis) for axis in AXIS}


def test_our_own(registry: Registry) -> None:
    assert registry.problems == []
    assert set(registry.names("attack")) >= {"none", "badencoder"}
    assert set(registry.names("defense")) >= {"none", "scratch", "ft", "mimic"}
    assert set(registry.names("evaluator")) >= {"mlp", "linear", "knn"}
    assert set(registry.names("dataset")) >= {"shapes", "cifar10", "stl10", "gtsrb", "svhn"}
    assert registry.names("pretraining") == ["from-file", "simclr"]
    for axis in AXIS:
        for name in registry.names(axis):
            cls = registry.get(axis, name)
            assert (cls.axis, cls.name) == (axis, name)
            assert issubclass(cls, AXIS[axis].base)
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
    """Names of methods are unique, names of entry points need not be: two distributions cannot agree on them."""
    found = load_registry(installed(plugins, ft=GOOD.format(cls="Good", name="good")))
    assert found.problems == []
    assert "good" in found.names("defense")
    assert found.plugin_of("defense", "ft").distribution == "benchbd"


def test_one_module_under_two_names(plugins: Path) -> None:
    points = installed(plugins, one=GOOD.format(cls="Good", name="good"))
    found = load_registry([*points, EntryPoint("zwei", "plugin_one", "benchbd")])
    assert found.problems == ["plugin 'zwei' (? ): it is the same as plugin 'one'"]
    assert "good" in found.names("defense")


def test_an_entry_point_may_be_called_terminal(plugins: Path) -> None:
    """The name under which a run registers its own observer."""
    found = load_registry(installed(plugins, terminal=GOOD.format(cls="Good", name="good")))
    assert found.problems == []
    assert found.plugin_of("defense", "good").name == "?:terminal"
    found.manager.register(object(), name="terminal")


def test_names_that_collide_however_often_stay_apart(plugins: Path) -> None:
    points = installed(plugins, **{"ft": GOOD.format(cls="Good", name="good"), "?:ft": None})
    other = GOOD.format(cls="Better", name="better")
    (plugins / "plugin_better.py").write_text(other)
    points = [p for p in points if p.name != "?:ft"] + [EntryPoint("?:ft", "plugin_better", "benchbd")]
    found = load_registry(points)
    assert found.problems == []
    assert {found.plugin_of("defense", name).name for name in ("ft", "good", "better")} == {"ft", "?:ft", "?:ft#2"}


def test_a_pre_training_says_what_it_returns() -> None:
    class Train(Pretraining):
        name = "train"
        paper = "test"
        version = "1"

        def pretrain(self, images: Any, seed: int) -> Any:
            raise AssertionError

    assert flaw_of(Train) == "it does not define architecture"
    for value, complaint in (
        (property(lambda self: 1 / 0), "architecture raised ZeroDivisionError: division by zero"),
        (property(lambda self: 7), "architecture must be one of "),
        (property(lambda self: "w3"), "not 'w3'"),
    ):
        cls = type("Odd", (Train,), {"architecture": value, "__module__": __name__})
        assert complaint in flaw_of(cls)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("splits", {"train": -5}, {"train": 5, "test": 0}),
        ("splits", {"train": "many"}, {}),
        ("splits", None, MappingProxyType({"train": 0})),
        ("splits", {"train": True}, {}),
        ("needs_files", 1, False),
        ("classes", "red", ("red",)),
        ("normalization", (0.5, 0.5), ((0.5,) * 3, (0.2,) * 3)),
        ("normalization", ((0.5,) * 3, (0.0,) * 3), None),
        ("normalization", ((0.5,) * 3, (float("nan"),) * 3), None),
    ],
)
def test_a_data_set_says_what_it_is(name: str, value: Any, right: Any) -> None:
    def made(value: Any) -> type[Dataset]:
        members = {"name": "made", "paper": "test", "version": "1", "load": lambda self, split, root: None}
        return type("Made", (Dataset,), {**members, name: value, "__module__": __name__})

    assert flaw_of(made(value)).startswith(f"{name} must be ")
    assert flaw_of(made(right)) == ""


def test_an_interrupt_of_the_user_is_one(plugins: Path) -> None:
    for stop in ("KeyboardInterrupt", "__import__('benchbd.base.process', fromlist=['Stopped']).Stopped(15)"):
        sys.modules.pop("plugin_stop", None)
        with pytest.raises(KeyboardInterrupt):
            load_registry(installed(plugins, stop=f"raise {stop}"))


def test_the_command_shows_it(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = installed(plugins, misspelt=BROKEN["misspelt"][0], good=GOOD.format(cls="Good", name="good"))
    monkeypatch.setattr("benchbd.registry.entry_points", lambda group: points)
    result = CliRunner().invoke(main, ["plugins"])
    assert result.exit_code == 0
    assert result.stderr == ""
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}
    assert rows["good"].split()[-3:] == ["defense:", "good", "ok"]
    assert rows["badencoder"].split()[1:] == ["benchbd", "0.1.0", "attack:", "badencoder", "ok"]
    assert "did you mean 'benchbd_defenses'?" in " ".join(result.stdout.split())
    listed = CliRunner().invoke(main, ["list", "defense"])
    assert "  good     Does nothing.\n" in listed.stdout
    assert listed.stderr.startswith("warning: plugin 'misspelt'")
    assert len(listed.stderr.splitlines()) == 1

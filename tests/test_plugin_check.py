"""`benchbd plugin check`: each property has a plugin that breaks it and no other."""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pydantic import Field

from benchbd import Attack, AttackerKnowledge, Backdoor, DefenderKnowledge, Encoder, Mitigation, NotApplicable
from benchbd.base.errors import UsageError
from benchbd.cli.main import main
from benchbd.registry import Registry
from benchbd.scaffold import new_plugin
from benchbd.testing.conformance import check_properties
from benchbd.testing.shortest import shortened
from benchbd.testing.toy_board import CLASSES, work_of
from benchbd.testing.watch import Property, Watch

from .boards import completed
from .plugins.test_strangers import BUILD


class Honest(Mitigation):
    """Reads the clean images once and changes nothing."""

    name = "honest"
    paper = "a test"
    version = "1"

    strength: float = Field(1.0, description="nothing")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        self.misbehave(encoder, knowledge)
        encoder.extract(knowledge.images.pixels)
        return encoder

    def misbehave(self, encoder: Encoder, knowledge: DefenderKnowledge) -> None:
        """For a variant."""

    def forwards(self, images: int) -> int | None:
        return images


def variant(**members: Any) -> type[Mitigation]:
    return type("Variant", (Honest,), {"__module__": __name__, "__doc__": "A variant.", **members})


def doing(act: Callable[[Encoder, DefenderKnowledge], object]) -> type[Mitigation]:
    def misbehave(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> None:
        act(encoder, knowledge)

    return variant(misbehave=misbehave)


def told(cls: type[Any], folder: Path, **options: Any) -> dict[Property, tuple[str, str]]:
    checked = check_properties(cls, folder, options)
    assert list(checked.findings) == list(Property)
    return {of: (finding.state, finding.reason) for of, finding in checked.findings.items()}


def test_an_honest_method_holds_all(tmp_path: Path) -> None:
    found = told(Honest, tmp_path)
    assert {state for state, _ in found.values()} == {"pass"}
    assert found[Property.BUDGET][1] == "32 image-forwards, forwards() says 32"
    assert found[Property.NETWORK][1] == ""


def hidden_randomness(encoder: Encoder, _: DefenderKnowledge) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        next(encoder.parameters()).add_(torch.rand(1))


def read_the_data(encoder: Encoder, _: DefenderKnowledge) -> None:
    with contextlib.suppress(OSError):
        (Path(os.environ["BENCHBD_DATA"]) / "task" / "test.npz").read_bytes()


def list_the_store(encoder: Encoder, _: DefenderKnowledge) -> None:
    os.listdir(os.environ["BENCHBD_STORE"])


def follow_a_traceback(encoder: Encoder, _: DefenderKnowledge) -> None:
    try:
        raise KeyError
    except KeyError as error:
        _ = getattr(error.__traceback__, "tb_frame").f_back  # noqa: B009 - its type may be None


def connect(encoder: Encoder, _: DefenderKnowledge) -> None:
    with socket.socket() as line, contextlib.suppress(OSError):
        line.connect(("127.0.0.1", 9))


BREACHES: list[tuple[type[Mitigation], Property, str]] = [
    (variant(repair=lambda self, encoder, knowledge: None), Property.CONTRACT, "must return a benchbd.Encoder"),
    (doing(lambda _, knowledge: knowledge.images.pixels.zero_()), Property.CONTRACT, "the clean images were changed"),
    (doing(hidden_randomness), Property.DETERMINISM, "the same seed gave other weights"),
    (doing(lambda *_: torch.rand(1)), Property.STATE, "the global generator was touched"),
    (doing(lambda *_: np.random.rand()), Property.STATE, "the global generator of NumPy was touched"),
    (doing(lambda *_: torch.set_default_dtype(torch.float16)), Property.STATE, "left the default dtype changed"),
    (
        doing(lambda *_: torch.set_num_threads(torch.get_num_threads() + 1)),
        Property.STATE,
        "left the number of threads",
    ),
    (doing(lambda *_: os.chdir("/")), Property.STATE, "left the working directory changed"),
    (doing(lambda *_: os.environ.update(NEW="x")), Property.STATE, "left the environment changed"),
    (doing(lambda *_: warnings.simplefilter("ignore")), Property.STATE, "left the filters of warnings changed"),
    (
        doing(lambda *_: torch.nn.modules.module.register_module_forward_hook(lambda *_: None)),
        *(Property.STATE, "_global_forward_hooks changed"),
    ),
    (
        doing(lambda encoder, _: encoder.stem.register_forward_hook(lambda *_: None)),
        Property.STATE,
        "a hook is left on",
    ),
    (doing(lambda encoder, k: encoder.extract(k.images.pixels[:4])), Property.BUDGET, "^36 image-f.* says 32$"),
    (doing(read_the_data), Property.SEALED, r"^reads .*/task/test.npz$"),
    (doing(list_the_store), Property.SEALED, "^reads .*store"),
    (doing(lambda *_: sys._getframe(3)), Property.SEALED, r"^searches the interpreter, sys._getframe$"),
    (doing(lambda *_: inspect.stack(0)), Property.SEALED, "searches the interpreter, sys._getframe"),
    (doing(lambda *_: gc.get_objects()), Property.SEALED, "searches the interpreter, gc.get_objects"),
    (doing(follow_a_traceback), Property.SEALED, "searches the interpreter, tb_frame"),
    (variant(__doc__=""), Property.DOCUMENTATION, "give it a docstring"),
    (variant(paper=""), Property.DOCUMENTATION, "paper must say where it comes from"),
    (
        variant(__annotations__={"extra": float}, extra=Field(1.0)),
        *(Property.DOCUMENTATION, "Variant.extra: give the option a description"),
    ),
]


@pytest.mark.parametrize(
    ("cls", "broken", "reason"), BREACHES, ids=[f"{of}-{n}" for n, (_, of, _) in enumerate(BREACHES)]
)
def test_a_breach_fails_its_property_alone(
    cls: type[Mitigation], broken: Property, reason: str, tmp_path: Path
) -> None:
    found = told(cls, tmp_path)
    assert {of for of, (state, _) in found.items() if state == "fail"} == {broken}
    assert re.search(reason, found[broken][1])
    skipped = {of for of, (state, _) in found.items() if state == "skip"}
    behind = {Property.DETERMINISM, Property.STATE, Property.BUDGET, Property.SEALED}
    assert skipped == (behind if broken is Property.CONTRACT else set())


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (connect, r"reported: socket.connect 127.0.0.1:9"),
        (lambda *_: socket.getaddrinfo("127.0.0.1", 80), "reported: socket.getaddrinfo 127.0.0.1:80"),
        (lambda *_: subprocess.run(["true"], check=True), "reported: subprocess.Popen, and the sockets of a process"),
    ],
)
def test_network_use_is_reported_and_no_breach(act: Any, reason: str, tmp_path: Path) -> None:
    found = told(doing(act), tmp_path)
    assert {state for state, _ in found.values()} == {"pass"}
    assert found[Property.NETWORK][1].startswith(reason)


def test_several_breaches_are_told_apart(tmp_path: Path) -> None:
    def misbehave(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> None:
        hidden_randomness(encoder, knowledge)
        os.environ["NEW"] = "x"
        connect(encoder, knowledge)

    found = told(variant(misbehave=misbehave, paper="", forwards=lambda self, images: 1), tmp_path)
    failed = {of for of, (state, _) in found.items() if state == "fail"}
    assert failed == {Property.DETERMINISM, Property.STATE, Property.BUDGET, Property.DOCUMENTATION}
    assert found[Property.NETWORK][1] == "reported: socket.connect 127.0.0.1:9"


def test_what_a_library_changes_when_it_is_imported_is_no_breach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_library.py").write_text(
        "import os, warnings\nos.environ['SLOW'] = '1'\nwarnings.simplefilter('default')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def load(*_: object) -> None:
        import slow_library  # type: ignore[import-not-found]  # noqa: F401

    (tmp_path / "work").mkdir()
    assert told(doing(load), tmp_path / "work")[Property.STATE] == ("pass", "")


def test_a_method_that_does_not_apply_or_only_gives_no_estimate_is_skipped(tmp_path: Path) -> None:
    def refuse(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        raise NotApplicable("never")

    found = told(variant(repair=refuse), tmp_path)
    assert found[Property.CONTRACT] == ("skip", "it does not apply to toys: never")
    assert {of for of, (state, _) in found.items() if state == "pass"} == {Property.NETWORK, Property.DOCUMENTATION}
    assert {state for state, _ in found.values()} == {"pass", "skip"}
    (tmp_path / "mute").mkdir()
    found = told(variant(forwards=lambda self, images: None), tmp_path / "mute")
    assert found[Property.BUDGET] == ("skip", "forwards() gives no estimate; 32 image-forwards were counted")


class Stamps(Attack):
    """Returns the encoder as it is."""

    name = "stamps"
    paper = "a test"
    version = "1"
    binds = ("blend",)

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        return Backdoor(knowledge.encoder, tuple(target.trigger for target in knowledge.targets))


@pytest.mark.fixed_draw("the head that chooses reference inputs trains; nothing of it is read")
def test_the_search_of_the_handover_finds_every_secret(tmp_path: Path) -> None:
    work = work_of(Honest(), tmp_path, Watch())
    assert list(work.found()) == []
    assert {"the trigger's pattern", "the trigger's place", "the target's name", "test image 23"} <= set(work.secrets)
    (clean,) = work.handed
    for name, secret in work.secrets.items():
        planted = torch.frombuffer(bytearray(b"before" + secret), dtype=torch.uint8)
        work.handed = [replace(clean, tensors={**clean.tensors, "extra": planted})]
        assert list(work.found()) == [name]
    work.handed = [replace(clean, json={**clean.json, "task": CLASSES})]
    assert list(work.found()) == ["the target's name"]
    attacked = work_of(Stamps(), tmp_path / "attack", Watch())
    assert {name.partition(" image")[0] for name in attacked.secrets} == {"test"}
    (trigger,) = (attacked.handed[0].json["targets"][0]["trigger"] for _ in attacked.handed)
    assert trigger["kind"] == "blend"
    assert list(attacked.found()) == []


def test_work_is_shortened_by_the_options_of_the_class(registry: Registry, tmp_path: Path) -> None:
    nad = registry.get("defense", "nad")
    assert shortened(nad, {"steps": 3}) == {
        "steps": 3,
        "epochs": 1,
        "batch": 16,
        "teacher_epochs": 1,
        "teacher_steps": 1,
    }
    assert shortened(registry.get("pretraining", "simclr"), {})["arch"] == "w16"
    assert shortened(variant(), {}) == {}

    class Bound(Honest):
        """Takes even numbers of steps, not fewer than 4, and a batch that is short already."""

        steps: int = Field(100, ge=4, description="steps")
        batch: int = Field(8, description="batch")
        image_steps_text: str = Field("many", description="no number")

    assert shortened(Bound, {}) == {"steps": 4}
    with pytest.raises(UsageError, match=r"^unknown option of honest 'step': did you mean 'steps'"):
        check_properties(Bound, tmp_path, {"step": 1})


# The command ---------------------------------------------------------------------------------------------------------

ODD = '''"""Plugins that only another process tells from sound ones."""

import torch

from benchbd import Mitigation, hookimpl


class Keeper(Mitigation):
    """Returns the first encoder that it ever got."""

    name = "keeper"
    paper = "a test"
    version = "1"

    def repair(self, encoder, knowledge):
        if not hasattr(Keeper, "first"):
            Keeper.first = encoder.copy()
        return Keeper.first.copy()


class Order(Mitigation):
    """Depends on the order of words in a set, which is another in each process."""

    name = "order"
    paper = "a test"
    version = "1"

    def repair(self, encoder, knowledge):
        order = float("0." + "".join(str(len(word)) for word in {"a" * n for n in range(1, 10)}))
        with torch.no_grad():
            next(iter(encoder.backbone())).mul_(order)
        return encoder


@hookimpl
def benchbd_defenses():
    return [Keeper, Order]
'''

BROKEN = "from benchbd import nothing_of_this_name\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    """A folder with an installed new plugin, odd ones, and one that cannot be imported."""
    folder = tmp_path_factory.mktemp("plugins")
    site, wheels = folder / "site", folder / "wheels"
    new, _ = new_plugin(registry, "halve", "defense", folder / "new")
    wheels.mkdir()
    done = completed([sys.executable, "-c", BUILD, str(wheels), str(new)])
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:  # a pure wheel is installed by unpacking it
        archive.extractall(site)
    for name, text in (("odd", ODD), ("broken", BROKEN)):
        (site / f"benchbd_{name}.py").write_text(text)
        (info := site / f"benchbd_{name}-1.dist-info").mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: benchbd-{name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[benchbd]\n{name} = benchbd_{name}\n")
    shutil.rmtree(wheels)
    return site


def called(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return completed([sys.executable, "-m", "benchbd", *arguments], PYTHONPATH=str(site))


def test_a_new_plugin_is_checked_and_runs(site: Path, tmp_path: Path) -> None:
    done = called(site, "plugin", "check", "benchbd-halve")
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1), done.stderr  # the other plugin's warning
    heading, *lines = done.stdout.splitlines()
    assert heading == "defense halve"
    assert [line.split("  ")[1] for line in lines] == list(Property)
    assert {line.split()[-1] for line in lines if "budget" not in line} == {"pass"}
    assert lines[3] == "  budget         pass  0 image-forwards, forwards() says 0"
    asked = ["--board", "smoke", "--attack", "none", "--defense", "halve", "--only", "--device", "cpu", "--json"]
    ran = called(site, "run", *asked, "--store", str(tmp_path), "--quiet")
    (record,) = json.loads(ran.stdout)["records"]
    assert (record["defense"], record["status"]) == ("halve", "ok")


def test_another_process_tells_what_one_cannot(site: Path) -> None:
    done = called(site, "plugin", "check", "benchbd-odd", "--json")
    assert done.returncode == 1
    for checked in json.loads(done.stdout):
        failed = {of: each["reason"] for of, each in checked["findings"].items() if each["state"] == "fail"}
        assert failed == {"determinism": "the same work gives another result in a process of its own"}, checked["name"]
        assert not checked["holds"]


def test_a_plugin_that_is_not_loaded_holds_nothing(site: Path) -> None:
    done = called(site, "plugin", "check", "benchbd-broken")
    assert done.returncode == 1
    assert done.stdout.startswith("plugin broken\n  contract  fail  failed to import: ImportError: cannot import name")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["shrnk"], "unknown method 'shrnk': "),
        (["defense:fft"], "unknown defense 'fft': did you mean 'ft'? "),
        (["benchbdd"], "unknown method 'benchbdd': did you mean 'benchbd'? "),
        (["ft", "-o", "nad.steps=1"], "unknown method to check 'nad': known: defense:ft, ft"),
        (["ft", "-o", "ft.stps=1"], "unknown option of ft 'stps': did you mean 'steps'? "),
    ],
)
def test_what_cannot_be_checked_is_one_line(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(main, ["plugin", "check", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {complaint}")
    assert done.stderr.count("\n") == 1


def test_an_architecture_is_checked_too() -> None:
    done = CliRunner().invoke(main, ["plugin", "check", "w16"])
    assert (done.exit_code, done.stdout) == (0, "architecture w16\n  contract  pass\n")

"""Six plugins of strangers, in their own distributions, written from the generated docs alone: see strangers/.

Each is built from its pyproject.toml, installed as its wheel, and run by the command line in fresh processes.
"""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import benchbd
import benchbd.testing
from benchbd import Classifier, Dataset, Encoder

from ..boards import completed

SOURCES = Path(__file__).parents[1] / "strangers"

# By distribution: the axis, the class, the name of the method, and options that make it quick.
PLUGINS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "benchbd-anchor": ("attack", "Anchor", "anchor", {"steps": 2, "batch": 8}),
    "benchbd-barlow": ("pretraining", "BarlowTwins", "barlow-twins", {"steps": 2, "batch": 8}),
    "benchbd-collapse": ("detection", "Collapse", "collapse", {"images": 8}),
    "benchbd-gratings": ("dataset", "Gratings", "gratings", {}),
    "benchbd-logistic": ("evaluator", "Logistic", "logistic", {}),
    "benchbd-shrink-perturb": ("defense", "ShrinkPerturb", "shrink-perturb", {}),
}

# setuptools works in the current folder and keeps state: one process builds all of them, each in its own folder.
BUILD = """
import os, sys
from setuptools import build_meta
wheels, *folders = sys.argv[1:]
for folder in folders:
    os.chdir(folder)
    sys.argv[1:] = []
    build_meta.build_wheel(wheels)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the six installed wheels."""
    folder = tmp_path_factory.mktemp("strangers")
    sources, wheels, site = folder / "sources", folder / "wheels", folder / "site"
    shutil.copytree(SOURCES, sources)  # a build leaves files beside the source
    wheels.mkdir()
    done = completed([sys.executable, "-c", BUILD, str(wheels), *(str(sources / name) for name in PLUGINS)])
    assert done.returncode == 0, done.stderr
    for wheel in wheels.iterdir():
        with zipfile.ZipFile(wheel) as archive:  # a pure wheel is installed by unpacking it
            archive.extractall(site)
    return site


def method(distribution: str) -> Any:
    return getattr(importlib.import_module(distribution.replace("-", "_")), PLUGINS[distribution][1])


def test_every_folder_is_run() -> None:
    assert {folder.name for folder in SOURCES.iterdir() if folder.is_dir()} == set(PLUGINS)


def test_they_import_public_names_alone() -> None:
    for module in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                assert not [name.name for name in node.names if name.name.startswith("benchbd")], module
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchbd"):
                assert node.module == "benchbd", module
                assert {name.name for name in node.names} <= set(benchbd.__all__), module


def test_they_are_listed_by_their_distributions(site: Path) -> None:
    # One process for both commands: each start costs seconds.
    both = "from benchbd.cli.main import main as m; m(['plugins', '--json'], standalone_mode=False); "
    both += "m(['list', '--json'])"
    done = completed([sys.executable, "-c", both], PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    plugins, end = json.JSONDecoder().raw_decode(done.stdout)
    listed = json.loads(done.stdout[end:])
    assert not [plugin for plugin in plugins if plugin["problem"]]
    found = {plugin["distribution"]: (plugin["version"], plugin["adds"]) for plugin in plugins}
    for distribution, (axis, _, name, _) in PLUGINS.items():
        assert found[distribution] == ("0.1", {axis: [name]})
        assert name in listed[axis]


def test_all_six_cross_on_smoke(site: Path, tmp_path: Path) -> None:
    asked = "--pretraining barlow-twins --pretrain gratings --task gratings:rings --attack anchor --attack none"
    asked += " --defense shrink-perturb --detection collapse --evaluator logistic"
    options = "trigger.kind=add trigger.pattern=frequency barlow-twins.steps=5 barlow-twins.batch=32 anchor.steps=5"
    command = [sys.executable, "-m", "benchbd", "run", "--board", "smoke", "--device", "cpu", "--store", str(tmp_path)]
    command += [*asked.split(), *(part for option in options.split() for part in ("-o", option))]
    done = completed(command, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    for words in ("none shrink-perturb", "anchor shrink-perturb", "anchor scratch"):
        assert any(line.split()[:2] == words.split() for line in done.stdout.splitlines()), done.stdout
    assert "collapse against anchor on gratings -> gratings:4" in done.stdout

    records = [json.loads(path.read_text()) for path in (tmp_path / "records/smoke").rglob("*.json")]
    statuses = {
        (record["attack"], record.get("defense") or record["detection"]): record["status"] for record in records
    }
    assert set(statuses) == {
        (attack, judge)
        for attack in ("none", "anchor")
        for judge in ("none", "scratch", "bn", "shrink-perturb", "collapse")
    }
    assert {*statuses.values()} == {"ok"}
    said = {origin["distribution"] for record in records for origin in record["plugins"].values()}
    assert said >= set(PLUGINS)


@pytest.mark.fixed_draw("asserts what holds after any step: the contract")
@pytest.mark.parametrize("distribution", PLUGINS)
def test_they_pass_the_suite(distribution: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    benchbd.testing.check_method(method(distribution), **PLUGINS[distribution][3])


def test_the_head_predicts_what_the_evaluator_does(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    logistic, probe = method("benchbd-logistic")(), benchbd.testing.toy_probe()
    logits = Classifier(probe.encoder, logistic.head(probe))(probe.test.float() / 255)
    assert torch.equal(logits.argmax(1), logistic.evaluate(probe).clean.to(logits.device))


def test_the_data_set_draws_at_any_size(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(site)
    gratings: Dataset = method("benchbd-gratings")()
    drawn = gratings.load_at("test", tmp_path, 48)
    assert drawn.pixels.shape == (600, 3, 48, 48)
    assert drawn.labels is not None
    assert drawn.labels.bincount().tolist() == [100] * 6


def test_the_defense_mixes_by_its_share_and_reads_the_statistics(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    knowledge, before = benchbd.testing.toy_defender(), benchbd.testing.toy_encoder()
    repair = method("benchbd-shrink-perturb")

    def repaired(forget: float) -> Encoder:
        return repair(forget=forget).repair(before.copy(), knowledge)

    kept, fresh = repaired(0.0), repaired(1.0)
    assert all(map(torch.equal, kept.backbone(), before.backbone()))
    assert not any(
        torch.equal(*pair) for pair in zip(fresh.backbone(), before.backbone(), strict=True) if pair[0].ndim > 1
    )
    norm = next(iter(kept.norms().values()))
    assert not torch.equal(norm.running_mean, next(iter(before.norms().values())).running_mean)

"""A stranger's defense: one file in a small distribution of its own, installed beside benchbd, offline."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from benchbd.testing import check_method

from ..boards import completed

MODULE = '''"""Pulls every weight towards zero."""

import torch
from pydantic import Field

from benchbd import DefenderKnowledge, Encoder, Mitigation, hookimpl


class Shrink(Mitigation):
    """Pulls every weight towards zero."""

    name = "shrink"
    paper = "nobody, nowhere, 2026"

    factor: float = Field(0.9, gt=0, le=1, description="what weights are multiplied by")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        with torch.no_grad():
            for parameter in encoder.backbone():
                parameter.mul_(self.factor)
        return encoder


@hookimpl
def benchbd_defenses():
    return [Shrink]
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the installed wheel of benchbd-shrink 1.2."""
    folder = tmp_path_factory.mktemp("third")
    wheel, site = folder / "benchbd_shrink-1.2-py3-none-any.whl", folder / "site"
    info = "benchbd_shrink-1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("benchbd_shrink.py", MODULE)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: benchbd-shrink\nVersion: 1.2\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", "[benchbd]\nshrink = benchbd_shrink\n")
        archive.writestr(f"{info}/RECORD", "")
    with zipfile.ZipFile(wheel) as archive:  # a pure wheel is installed by unpacking it
        archive.extractall(site)
    return site


def benchbd(site: Path, *arguments: str) -> tuple[str, str]:
    done = completed([sys.executable, *arguments], PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_it_is_listed_by_its_distribution(site: Path) -> None:
    # One process for both commands: each start costs seconds.
    both = (
        "from benchbd.cli.main import main; main(['list', 'defense'], standalone_mode=False); "
        "main(['plugins', '--json'])"
    )
    listed, bracket, plugins = benchbd(site, "-c", both)[0].partition("[\n")
    assert "  shrink   Pulls every weight towards zero.\n" in listed
    found = {plugin["name"]: plugin for plugin in json.loads(bracket + plugins)}
    assert found["shrink"] == {
        "name": "shrink",
        "distribution": "benchbd-shrink",
        "version": "1.2",
        "adds": {"defense": ["shrink"]},
        "problem": "",
    }
    assert not any(plugin["problem"] for plugin in found.values())


def test_it_runs_and_lands_in_the_table(site: Path, tmp_path: Path) -> None:
    arguments = ["--board", "smoke", "--attack", "none", "--defense", "none", "--defense", "shrink", "--device", "cpu"]
    table, told = benchbd(site, "-m", "benchbd", "run", *arguments, "--store", str(tmp_path), "-o", "shrink.factor=0.5")
    assert ["none", "shrink"] in [line.split()[:2] for line in table.splitlines()]
    assert "defend shrink on simclr on shapes seed 1 computed in" in told
    (record,) = (tmp_path / "records" / "smoke").glob("none_shrink_*.json")
    found = json.loads(record.read_text())
    assert (found["status"], found["departures"]) == ("ok", ["shrink.factor=0.5 (the board's: 0.9)"])
    identity = found["identity"]["defend"]["method"]
    assert identity["options"] == {"factor": 0.5}
    assert identity["version"].startswith("source-")  # it declares none, so an edited file is computed anew


def test_it_passes_the_suite(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    import benchbd_shrink

    check_method(benchbd_shrink.Shrink)
    check_method(benchbd_shrink.Shrink, factor=0.5)

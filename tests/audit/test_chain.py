"""From nothing to a row on a board's page, in this process.

tests/test_fresh.py does it as a user whose environment has benchbd's wheel and no checkout.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from ..boards import Tiny
from ..installed import install
from .conftest import invoke


def test_a_new_defense_gets_a_row(ran: Tiny, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def benchbd(*arguments: object) -> tuple[str, str]:
        done = invoke(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout, done.stderr

    monkeypatch.chdir(tmp_path)
    store = shutil.copytree(ran.store, tmp_path / "store")
    benchbd("plugin", "new", "my-defense", "--axis", "defense")
    install(tmp_path / "benchbd-my-defense", tmp_path / "site-packages", monkeypatch)
    places = "--data-root", ran.data, "--store", store
    table, _ = benchbd("run", "--board", "tiny", *places, "--defense", "my-defense")
    assert re.findall(r"^(\w+) +my-defense +\d+\.\d", table, re.MULTILINE) == ["none", "badencoder"]
    _, told = benchbd("submit", "tiny", "--store", store, "--out", "submission")
    assert "wrote 4 records and the manifests of " in told
    unpinned = (
        "no data.json beside the board: relabelled data, and counts that the predictions do not give, stay unseen"
    )
    assert unpinned in told
    report, told = benchbd("leaderboard", "check", "tiny", "submission")
    assert unpinned in told
    assert (
        "4 new records, 0 that replace one of another identity, 0 replicates; of defense my-defense; by nobody"
        in report
    )
    assert re.findall(r"^\| (\w+) +\| my-defense +\|", report, re.MULTILINE) == ["none", "badencoder"]
    shutil.copytree("submission", home, dirs_exist_ok=True)
    _, told = benchbd("verify", "tiny")
    assert "tier 1: 10 records, all of them hold" in told
    benchbd("leaderboard", "build", "tiny", "--site", "site")
    page = (tmp_path / "site" / "boards" / "tiny" / "index.html").read_text()
    (cell,) = set(re.findall(r'href="([^"]*)"[^>]*>my-defense<', page))
    assert "benchbd-my-defense" in (tmp_path / "site" / "boards" / "tiny" / cell).read_text()

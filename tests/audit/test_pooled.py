"""Two laboratories with one board: the second one's records are replicates, from its store to the published table."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

from benchbd.audit import alone
from benchbd.audit.planned import PlannedBoard
from benchbd.planning.board import load_board
from benchbd.records.files import read_records
from benchbd.registry import Registry

from ..boards import Tiny
from .conftest import invoke


@pytest.fixture(scope="module")
def elsewhere(ran: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The same board, computed in another store with another number of threads."""
    other, threads = copy.copy(ran), torch.get_num_threads()
    other.store = tmp_path_factory.mktemp("elsewhere") / "store"
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        other.run()
    finally:
        torch.set_num_threads(threads)
    return other


def stored(tiny: Tiny) -> Path:
    return tiny.store / "records" / "tiny"


def test_two_stores_pool_into_one_table(ran: Tiny, elsewhere: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    folders = ("--records", stored(ran), "--records", stored(elsewhere))
    done = invoke("leaderboard", "build", ran.board, *folders, "--out", out)
    assert done.exit_code == 0, done.stderr
    rows = json.loads((out / "board.json").read_text())["rows"]
    assert {row["sources"] for row in rows} == {2}
    assert all(any(note.startswith("reproduced by 2: ACC ") for note in row["notes"]) for row in rows)
    first, second = read_records(stored(ran)), read_records(stored(elsewhere))
    assert [r.machine["threads"] for r in first] != [r.machine["threads"] for r in second]
    assert [r.key for r in first] == [r.key for r in second]
    assert [r.source for r in read_records(out / "records")] == [r.source for r in first]
    again = tmp_path / "again" / "tiny"  # the folder carries all that a build needs
    done = invoke("leaderboard", "build", out, "--records", out / "records", "--out", again)
    assert done.exit_code == 0, done.stderr
    for name in ("README.md", "board.csv", "board.json", "board.tex", "board.toml"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_a_second_laboratory_submits_replicates(ran: Tiny, elsewhere: Tiny, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "submission"
    done = invoke("submit", "tiny", "--store", elsewhere.store, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert not list((out / "records").glob("*.json"))
    (source,) = (path.name for path in (out / "records" / "replicates").iterdir())
    assert {r.source for r in read_records(stored(elsewhere))} == {source}
    done = invoke("leaderboard", "check", "tiny", out)
    assert done.exit_code == 0, done.stdout
    assert "0 new records, 0 that replace one of another identity, 6 replicates" in done.stdout
    assert "Nothing is ranked: " in done.stdout
    shutil.copytree(out / "records", home / "records", dirs_exist_ok=True)
    done = invoke("verify", "tiny")
    assert (done.exit_code, done.stdout) == (0, ""), done.stdout
    assert "tier 1: 12 records, all of them hold" in done.stderr
    done = invoke("leaderboard", "build", "tiny", "--records", home / "records", "--format", "json")
    assert {row["sources"] for row in json.loads(done.stdout)["rows"]} == {2}
    done = invoke("submit", "tiny", "--store", elsewhere.store, "--out", tmp_path / "twice")
    assert (done.exit_code, "published already" in done.stderr) == (2, True)


def test_replicates_of_nothing_are_findings(ran: Tiny, elsewhere: Tiny, home: Path, registry: Registry) -> None:
    records = home / "records"
    (source,) = {r.source for r in read_records(stored(elsewhere))}
    shutil.copytree(stored(elsewhere), records / "replicates" / str(source))
    name = next(path.name for path in sorted(records.glob("*_ft_*.json")))
    (records / name).unlink()
    (records / name).with_suffix(".safetensors").unlink()
    known, findings = alone.read(records)
    assert not findings
    planned = PlannedBoard.of_pins(load_board("tiny"), registry, home / "data.json", known)
    found = [str(each) for each in alone.check(load_board("tiny"), known, planned)]
    assert found == [f"replicates/{source}/{name}: a replicate of no record"]

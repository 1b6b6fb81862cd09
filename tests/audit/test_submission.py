"""From a run to a submission, and the reviewer's report on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchbd.audit.submission import replicates
from benchbd.planning.board import board_path
from benchbd.published import read_published
from benchbd.records.files import read_records

from ..boards import Tiny
from .conftest import invoke
from .forger import Forger, Json

REPAIRED = "badencoder_ft_pool_task-1_s1_mlp"


def test_a_run_becomes_a_submission_that_passes_its_review(ran: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = invoke("submit", ran.board, "--store", ran.store, "--out", out, "--encoders", "all")
    assert done.exit_code == 0, done.stderr
    assert "wrote 6 records and the manifests of 5 encoders" in done.stderr
    assert [r.name for r in read_records(out / "records")] == [r.name for r in read_records(ran.store / "records/tiny")]
    encoders = read_published(out / "encoders")
    assert len(encoders) == 5
    assert all(each.read() == ran.blob(key, "encoder.safetensors").read_bytes() for key, each in encoders.items())
    done = invoke("leaderboard", "check", ran.board, out)
    assert done.exit_code == 0, done.stderr
    assert "6 new records, 0 that replace one of another identity, 0 replicates" in done.stdout
    assert "Tier 1: all records hold." in done.stdout


def test_the_review_names_methods_that_their_authors_have_not_confirmed(
    ran: Tiny, records: Path, tmp_path: Path
) -> None:
    board = tmp_path / "empty" / "tiny.toml"
    board.parent.mkdir()
    for claim, told in (("", True), ('[claims.badencoder]\nconfirmed = "J. Jia"\n', False)):
        board.write_text(f"{ran.board.read_text()}\n{claim}")
        done = invoke("leaderboard", "check", board, records)
        assert done.exit_code == 0, done.stderr
        assert ("Settings not confirmed by their authors: attack badencoder." in done.stdout) == told
    board.write_text(f'{ran.board.read_text()}\n[claims.badencodr]\nconfirmed = "J. Jia"\n')
    done = invoke("leaderboard", "check", board, records)
    assert done.exit_code == 2
    assert "unknown defense or attack in claims 'badencodr': did you mean 'badencoder'?" in done.stderr


def test_a_run_without_its_references_is_refused(ran: Tiny, records: Path, tmp_path: Path) -> None:
    for path in records.glob("badencoder_none*"):
        path.unlink()
    done = invoke("submit", ran.board, "--store", ran.store, "--records", records, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "undefended: there is no record of this attack without a defense" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_does_not_hold_is_in_the_report(ran: Tiny, records: Path) -> None:
    def claim(data: Json) -> None:
        data["baseline_counts"]["correct"] = 30

    Forger(records).forge(REPAIRED, claim)
    done = invoke("leaderboard", "check", ran.board, records)
    assert done.exit_code == 1
    assert "Tier 1: what follows does not hold." in done.stdout
    assert "contradict each other on the same evaluation" in done.stdout


def test_nothing_to_submit_is_one_line(tmp_path: Path) -> None:
    done = invoke("submit", "demo", "--store", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "no records of board demo" in done.stderr
    home = board_path("cifar10-bassl").parent
    done = invoke("submit", "cifar10-bassl", "--records", home / "records", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "all 108 records are published already" in done.stderr


@pytest.fixture
def without_ft(tmp_path: Path) -> tuple[Path, Path]:
    """The board cifar10-bassl under another name, without FT; and the records of FT, as a submission."""
    home, board, new = board_path("cifar10-bassl").parent, tmp_path / "bassl", tmp_path / "new"
    (board / "records").mkdir(parents=True)
    new.mkdir()
    text = (home / "board.toml").read_text()
    (board / "board.toml").write_text(text)
    shutil.copy(home / "data.json", board)
    for path in (home / "records").glob("*.json"):
        folder = new if "_ft_" in path.name else board / "records"
        for each in (path, path.with_suffix(".safetensors")):
            shutil.copy(each, folder)
        written = folder / path.name
        written.write_text(written.read_text().replace('"board": "cifar10-bassl"', '"board": "bassl"'))
    return board, new


def test_the_report_shows_references_the_best_before_and_ranks_that_change(without_ft: tuple[Path, Path]) -> None:
    board, new = without_ft
    done = invoke("leaderboard", "check", board, new)
    assert done.exit_code == 0, done.stdout
    rows = {
        cells[0]: cells
        for line in done.stdout.splitlines()
        if line.startswith("|") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    assert rows["ft"][-1] == "submitted, reference"
    assert rows["mimic"][-1] == "best before"
    assert {rows[name][-1] for name in ("none", "scratch", "bn")} == {"reference"}
    assert "nad" not in rows
    assert "Rank of nad: 4-8 before, 4-9 after." in done.stdout
    assert "9 new records" in done.stdout


def test_published_records_are_no_submission(without_ft: tuple[Path, Path]) -> None:
    board, new = without_ft
    for path in (board / "records").iterdir():
        shutil.copy(path, new)
    done = invoke("leaderboard", "check", board, new)
    assert done.exit_code == 0, done.stdout
    assert "9 new records, 0 that replace one of another identity, 0 replicates; of ft; by nobody named." in done.stdout
    done = invoke("leaderboard", "check", board, board)
    assert done.exit_code == 0, done.stdout
    assert "No new records of cells." in done.stdout


def test_equal_keys_of_another_source_are_replicates(records: Path) -> None:
    published = read_records(records)
    elsewhere = [record.model_copy(update={"source": "f" * 16}) for record in published[:2]]
    assert [(a.name, b.source) for a, b in replicates(published, elsewhere)] == [
        (record.name, "f" * 16) for record in elsewhere
    ]
    assert replicates(published, published) == []

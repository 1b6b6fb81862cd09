"""From a run to a submission, and the reviewer's report on it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from benchbd.audit.submission import replicates
from benchbd.data.library import DataLibrary
from benchbd.figures.published import publish
from benchbd.planning.board import board_path, load_board
from benchbd.published import read_published
from benchbd.records.files import read_records, write_records
from benchbd.records.pictures import MOST, read_pictures

from ..boards import Tiny
from ..conftest import write_npz_set
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
    assert "Pictures" not in done.stdout
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


def test_pictures_are_drawn_beside_the_records_and_shown_on_their_pages(ran: Tiny, tmp_path: Path) -> None:
    """The data set is files, which others may own: no picture shows an image of it."""
    places = "--store", ran.store, "--data-root", ran.data
    done = invoke("submit", ran.board, *places, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "drawing the pictures of 6 records; --no-pictures omits them\ndrew those of 6\n" in done.stderr
    records = tmp_path / "out" / "records"
    for path in records.glob("*.json"):
        folder = path.with_suffix("")
        assert sorted(each.name for each in folder.iterdir()) == ["attention.png", "features.png", "trigger.png"]
        assert sum(each.stat().st_size for each in folder.iterdir()) <= MOST
        assert len(read_pictures(path)) == 3
    done = invoke("leaderboard", "check", ran.board, tmp_path / "out")
    assert (done.exit_code, "Tier 1: all records hold." in done.stdout) == (0, True), done.stdout
    assert "Pictures stand beside 6 records: nothing checks what they show." in done.stdout
    (records / REPAIRED / "trigger.png").unlink()
    shutil.rmtree(records / "none_none_pool_task-1_s1_mlp")
    done = invoke("leaderboard", "build", ran.board, "--records", records, "--site", tmp_path / "site")
    assert done.exit_code == 0, done.stderr
    pages = [path.read_text() for path in (tmp_path / "site" / "records").glob("*.html")]
    assert sorted(page.count("<img ") for page in pages) == [0, 2, 3, 3, 3, 3]
    assert ["There are no pictures beside this record." in page for page in pages].count(True) == 1
    named = {name for page in pages for name in re.findall(r'<img src="\.\./(.*?)"', page)}
    shown = {path.read_bytes() for path in records.glob("*/*.png")}
    assert {(tmp_path / "site" / name).read_bytes() for name in named} == shown

    again = invoke("submit", ran.board, *places, "--out", tmp_path / "again")
    assert again.exit_code == 0
    for path in records.glob("*/*.png"):
        assert path.read_bytes() == (tmp_path / "again" / "records" / path.relative_to(records)).read_bytes(), path


def test_records_whose_stages_or_images_are_absent_have_no_pictures(ran: Tiny, records: Path, tmp_path: Path) -> None:
    board, out = load_board(str(ran.board)), tmp_path / "out"
    known = read_records(records)
    write_records(known, out)
    here = DataLibrary({}, ran.data, tmp_path / "cache")
    failed = known[0].model_copy(update={"stages": {}, "status": "error", "reason": "the loss became NaN"})
    elsewhere = known[1].model_copy(update={"stages": {**known[1].stages, "pretrain": "0" * 64, "attack": "0" * 64}})
    lacks = publish([failed, elsewhere, known[2]], out, store=ran.store, library=here, board=board)
    assert lacks == {"not evaluated": 1, f"a stage is not in {ran.store}": 1, "": 1}
    assert [path.name for path in out.iterdir() if path.is_dir()] == [known[2].name.removesuffix(".json")]
    assert publish([], out, store=ran.store, library=here) == {}
    write_npz_set(tmp_path / "others", "task", seed=99)
    for root in (tmp_path / "none", tmp_path / "others"):
        library = DataLibrary({}, root, tmp_path / "cache")
        lacks = publish(known, tmp_path / "new", store=ran.store, library=library, board=board)
        assert lacks == {"the images of task are absent, or others": 6}
    assert not (tmp_path / "new").exists()


def test_pictures_are_left_out_on_request_or_without_data(ran: Tiny, tmp_path: Path) -> None:
    places = "--store", ran.store, "--data-root", tmp_path
    done = invoke("submit", ran.board, *places, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "drew those of 0; 6 without: the images of task are absent, or others\n" in done.stderr
    done = invoke("submit", ran.board, *places, "--out", tmp_path / "plain", "--no-pictures")
    assert done.exit_code == 0
    assert "drew" not in done.stderr
    assert not [*tmp_path.rglob("*.png")]


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
    edited = new / "badencoder_nad_cifar10_cifar10-0_s1_linear.json"
    edited.write_text(edited.read_text().replace('"author": ""', '"author": "Mallory"'))
    done = invoke("leaderboard", "check", board, new)
    assert done.exit_code == 0, done.stdout
    assert f"- {edited.name}: edits the published record: author.\n" in done.stdout
    edited.unlink()
    edited.with_suffix(".safetensors").unlink()
    done = invoke("leaderboard", "check", board, new)
    assert "edits the published record" not in done.stdout
    assert (
        "9 new records, 0 that replace one of another identity, 0 replicates; of defense ft; by nobody named."
        in done.stdout
    )
    done = invoke("leaderboard", "check", board, board)
    assert done.exit_code == 0, done.stdout
    assert "No new records." in done.stdout


def test_equal_keys_of_another_source_are_replicates(records: Path) -> None:
    published = read_records(records)
    elsewhere = [record.model_copy(update={"source": "f" * 16}) for record in published[:2]]
    assert [(a.name, b.source) for a, b in replicates(published, elsewhere)] == [
        (record.name, "f" * 16) for record in elsewhere
    ]
    assert replicates(published, published) == []

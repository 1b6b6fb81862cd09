"""How commands find the records that they read, and one clear line if they do not."""

from __future__ import annotations

import csv
import errno
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchbd.planning.board import boards_folder
from benchbd.records.files import write_records
from benchbd.report.writers.forms import FORMATS

from ..cli.test_cli import call, one_line
from ..records_factory import make_record

SMALL = boards_folder() / "cifar10-small" / "records"


def test_records_are_those_of_the_board_and_where_they_lie_is_said(tmp_path: Path) -> None:
    for command in (["leaderboard", "build", "demo"], ["compare", "demo"]):
        one_line(call(*command, "--records", SMALL), "a record of board 'cifar10-small', not of 'demo'")
    build = ["leaderboard", "build", "cifar10-small"]
    one_line(call(*build, "--records", SMALL.parent), f"; records are in {SMALL}")
    shutil.copytree(SMALL, tmp_path / "records" / "cifar10-small")
    one_line(call(*build, "--records", tmp_path), f"; records are in {tmp_path / 'records' / 'cifar10-small'}")
    stored = call(*build, "--store", tmp_path)
    assert stored.stderr == (
        f"reading {tmp_path / 'records' / 'cifar10-small'}; the published records are in {SMALL} (--records)\n"
    )
    assert stored.stdout == call(*build, "--records", SMALL).stdout


def test_records_that_are_all_off_board_are_said_to_be_left_out(tmp_path: Path) -> None:
    write_records([make_record(on_board=False, departures=["ft.lr=1"])], tmp_path)
    build = ["leaderboard", "build", "demo", "--records", tmp_path]
    assert call(*build).stderr == "all 1 records are off-board and left out: --off-board shows them\n"
    assert call(*build, "--off-board").stderr == ""


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    build = ["leaderboard", "build", "cifar10-small", "--records", tmp_path]
    one_line(call(*build), f"{tmp_path}: cannot be read (Permission denied)")


def test_every_form_has_the_inspections(tmp_path: Path) -> None:
    board = boards_folder() / "detect-shapes"
    detections = [*csv.reader(io.StringIO((board / "detections.csv").read_text()))]
    build = ["leaderboard", "build", "detect-shapes", "--records", board / "records"]
    forms = {form: call(*build, "--format", form) for form in FORMATS}
    assert {form: (each.exit_code, each.stderr) for form, each in forms.items()} == dict.fromkeys(FORMATS, (0, ""))
    told = json.loads(forms["json"].stdout)
    assert told.pop("detections") == json.loads((board / "detections.json").read_text())
    assert told == json.loads((board / "board.json").read_text())
    assert forms["csv"].stdout == f"{(board / 'board.csv').read_text()}\n{(board / 'detections.csv').read_text()}"
    assert all("decree" in each.stdout and "0.840" in each.stdout for each in (forms["text"], forms["markdown"]))
    assert "\n\n## Detection\n\n" in forms["markdown"].stdout
    assert r"\caption{Detection}" in forms["latex"].stdout
    assert forms["latex"].stdout.count(r"\begingroup") == forms["latex"].stdout.count(r"\endgroup") == 2

    shutil.copytree(board / "records" / "detections", tmp_path / "detections")  # a board of detectors alone
    build = ["leaderboard", "build", "detect-shapes", "--records", tmp_path]
    alone = {form: call(*build, "--format", form).stdout for form in FORMATS}
    assert [*csv.reader(io.StringIO(alone["csv"]))] == detections
    assert json.loads(alone["json"]) == {
        "board": "detect-shapes",
        "detections": json.loads((board / "detections.json").read_text()),
    }
    for form in ("text", "markdown", "latex"):
        assert "decree" in alone[form]
        assert "No records" not in alone[form]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    build = [sys.executable, "-m", "benchbd", "leaderboard", "build", "cifar10-small"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(build, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "error: No space left on device")
    assert "Traceback" not in done.stderr

"""The workflows for GitHub: what they may do, and the steps that meet a stranger's pull request, run here."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from benchbd.planning.board import board_path

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {path.stem: path.read_text() for path in sorted((ROOT / ".github" / "workflows").iterdir())}
# Every value is text: `on` would otherwise be a boolean.
WORKFLOWS: dict[str, dict[str, Any]] = {name: yaml.load(text, yaml.BaseLoader) for name, text in TEXTS.items()}
JOBS = {(name, job): workflow["jobs"][job] for name, workflow in WORKFLOWS.items() for job in workflow["jobs"]}
STEPS = [(name, step) for (name, _), job in JOBS.items() for step in job["steps"]]


def test_triggers_and_permissions_are_these() -> None:
    assert {name: sorted(workflow["on"]) for name, workflow in WORKFLOWS.items()} == {
        "report": ["workflow_run"],
        "site": ["push", "workflow_dispatch"],
        "submission": ["pull_request"],
        "tests": ["pull_request", "push"],
    }
    assert {name: workflow["permissions"] for name, workflow in WORKFLOWS.items()} == {
        "report": {},
        "site": {},
        "submission": {"contents": "read"},
        "tests": {"contents": "read"},
    }
    assert {key: job["permissions"] for key, job in JOBS.items() if "permissions" in job} == {
        ("report", "comment"): {"actions": "read", "pull-requests": "write"},
        ("site", "build"): {"contents": "read"},
        ("site", "publish"): {"id-token": "write", "pages": "write"},
    }


def test_every_action_is_pinned_by_its_commit() -> None:
    lines = [
        line.strip().removeprefix("- ") for text in TEXTS.values() for line in text.splitlines() if "uses:" in line
    ]
    pins = [re.fullmatch(r"uses: (actions/[a-z-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line) for line in lines]
    assert all(pins), lines
    assert len(pins) == sum("uses" in step for _, step in STEPS)
    assert len({pin.groups() for pin in pins if pin}) == len({pin[1] for pin in pins if pin}) == 5


def test_no_expression_is_part_of_a_script() -> None:
    for name, step in STEPS:
        assert "${{" not in step.get("run", ""), (name, step)


def test_no_workflow_uses_secrets_and_every_checkout_forgets_its_token() -> None:
    assert not [name for name, text in TEXTS.items() if "secrets" in text or "pull_request_target" in text]
    for name, step in STEPS:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false", name


def test_the_stage_that_reads_a_fork_runs_the_base_alone() -> None:
    assert "token" not in TEXTS["submission"].lower()
    base, submission, *others = JOBS["submission", "check"]["steps"]
    assert (base["with"]["path"], base["with"]["ref"]) == ("base", "${{ github.base_ref }}")
    assert (submission["with"]["path"], submission["with"]["sparse-checkout"]) == ("submission", "leaderboards")
    assert [step["working-directory"] for step in others if "working-directory" in step] == ["base"]
    assert {step["run"] for step in others if "run" in step} == {"make setup", CHECK}


def test_the_stage_that_writes_uses_no_action() -> None:
    assert [list(step) for step in JOBS["report", "comment"]["steps"]] == [["name", "shell", "env", "run"]]


def script(workflow: str, job: str, name: str) -> str:
    (found,) = (step["run"] for step in JOBS[workflow, job]["steps"] if step.get("name") == name)
    return str(found)


CHECK = script("submission", "check", "Check the boards that change")
COMMENT = script("report", "comment", "Show the report in a comment of the pull request")


class Review:
    """The folder in which the step of submission.yml runs: ``base`` has the board `bassl` with two records and a board
    without records, ``submission`` a copy of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.records = root, root / "submission/leaderboards/bassl/records"
        home, board = board_path("cifar10-bassl").parent, root / "base/leaderboards/bassl"
        shutil.copytree(board_path("smoke").parent, root / "base/leaderboards/other")
        (board / "records").mkdir(parents=True)
        for name in ("board.toml", "data.json"):
            shutil.copy(home / name, board)
        for name in ("none_none", "badencoder_none"):
            self.record(name, board / "records")
        shutil.copytree(root / "base", root / "submission")
        (root / "base/.venv/bin").mkdir(parents=True)

    @staticmethod
    def record(name: str, folder: Path) -> Path:
        """Copy a record of cifar10-bassl, of its first seed, as one of the board `bassl`."""
        source = board_path("cifar10-bassl").parent / "records" / f"{name}_cifar10_cifar10-0_s1_linear.json"
        path = folder / source.name
        path.write_text(source.read_text().replace('"board": "cifar10-bassl"', '"board": "bassl"'))
        shutil.copy(source.with_suffix(".safetensors"), folder)
        return path

    def run(self, benchbd: str) -> tuple[int, str]:
        """Exit code and report. benchbd: the program that a base has, a line of shell."""
        program = self.root / "base/.venv/bin/benchbd"
        program.write_text(f"#!/bin/bash\n{benchbd}\n")
        program.chmod(0o755)
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", CHECK]
        environment = {**os.environ, "PULL": "12", "COLUMNS": "110"}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        assert done.stdout == "The report is in the artifact 'report'; a comment will show it.\n"
        assert not done.stderr
        assert (self.root / "report/pull").read_text() == "12\n"
        return done.returncode, (self.root / "report/report.txt").read_text()


@pytest.fixture
def review(tmp_path: Path) -> Review:
    return Review(tmp_path)


SAYS = 'echo "$@" >&2'  # as a usage error does


def test_a_board_that_does_not_change_is_not_checked(review: Review) -> None:
    assert review.run(SAYS) == (0, "No board of the base branch changes.\n")


def test_a_board_that_changes_is_checked(review: Review) -> None:
    review.record("badencoder_ft", review.records)
    told = "leaderboard check base/leaderboards/bassl submission/leaderboards/bassl --format text\n"
    assert review.run(SAYS) == (0, told)
    shutil.rmtree(review.root / "report")
    assert review.run(f"{SAYS}; exit 1") == (1, told)


def test_the_first_records_of_a_board_are_checked(review: Review) -> None:
    (review.root / "submission/leaderboards/other/records").mkdir()
    review.record("badencoder_ft", review.root / "submission/leaderboards/other/records")
    code, report = review.run(SAYS)
    assert (code, report.split()[2]) == (0, "base/leaderboards/other")


def test_removed_records_are_reported(review: Review) -> None:
    shutil.rmtree(review.records)
    code, report = review.run(SAYS)
    told, first, *others = report.splitlines()
    assert (code, told) == (1, "The pull request removes published files:")
    assert first == "Only in base/leaderboards/bassl/records: badencoder_none_cifar10_cifar10-0_s1_linear.json"
    assert len(others) == 3 + 1  # the other files, and the call of the check


@pytest.mark.parametrize("place", ["", "bassl", "bassl/records", "bassl/records/more.json"])
def test_nothing_is_read_through_a_link(review: Review, place: str) -> None:
    link = review.root / "submission/leaderboards" / place
    if link.exists():
        shutil.move(link, review.root / "elsewhere")
    link.symlink_to(review.root / "elsewhere")
    assert review.run(SAYS) == (1, "There is a link in leaderboards/. Records are files; nothing was read.\n")


def test_a_hostile_pull_request_does_nothing(review: Review) -> None:
    """It has one sound record, so that the effect of its other files is seen beside it; the check is the true one."""
    sound = review.record("badencoder_ft", review.records)
    sound.write_text(sound.read_text().replace('"author": ""', '"author": "@all\\n::error::x"'))
    names = ["$(touch planted).json", ";touch planted;.json", "-rf.json", "::error::planted.json"]
    for name in names:
        (review.records / name).write_text("{}")
    board = "leaderboards/bassl"
    planted = ["Makefile", "setup.py", "sitecustomize.py", ".venv/bin/benchbd", "leaderboards/mine/board.toml"]
    for name in (*planted, f"{board}/encoders/model.pt", f"{board}/board.toml", f"{board}/plugin.py"):
        path = review.root / "submission" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/bash\ntouch planted\n")
        path.chmod(0o755)
    code, report = review.run(f'exec "{sys.executable}" -m benchbd "$@"')
    assert code == 1
    assert "1 new records" in report
    assert "of defense ft; by @all" in report
    for name in names:
        assert f"{name}: not a benchbd record" in report
    assert "encoders/model.pt: neither an encoder nor its manifest" in report
    assert not list(review.root.rglob("planted"))


class Run:
    """What the step of report.yml meets: a run of submission.yml, and GitHub as a program ``gh`` that answers from
    files and keeps what it is asked to write."""

    HEAD = "5" * 40
    GH = """#!/bin/bash
here=$(dirname "$0") path=${2%%\\?*}
case " $* " in
  *" --input "*) echo "$path ${*:3}" > "$here/asked"; cat > "$here/written" ;;
  *) cat "$here/${path//\\//-}" ;;
esac
"""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "gh").write_text(self.GH)
        (root / "gh").chmod(0o755)
        base = {"ref": "main", "repo": {"default_branch": "main"}}
        self.pull = {"state": "open", "head": {"sha": self.HEAD}, "base": base, "changed_files": 2}
        self.artifact: dict[str, Any] = {"name": "report", "size_in_bytes": 400, "id": 7}
        self.files = [["leaderboards/demo/records/a.json", None], ["leaderboards/demo/records/a.safetensors", None]]
        self.comments: list[dict[str, Any]] = []
        self.number, self.report = "12\n", "Submission to demo\n"

    def answer(self, path: str, *lines: object) -> None:
        self.place(path).write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def place(self, path: str) -> Path:
        return self.root / f"repos/our/benchbd/{path}".replace("/", "-")

    def comment(self) -> tuple[str, str] | None:
        """The request that writes a comment, and its text; None if there is none."""
        self.answer("actions/runs/3/artifacts", {"artifacts": [self.artifact]})
        self.answer("pulls/12", self.pull)
        self.answer("pulls/12/files", *self.files)
        self.answer("issues/12/comments", *self.comments)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("pull", self.number)
            archive.writestr("report.txt", self.report)
        self.place("actions/artifacts/7/zip").write_bytes(packed.getvalue())
        path = f"{self.root}:{os.environ['PATH']}"
        environment = {"PATH": path, "GITHUB_REPOSITORY": "our/benchbd", "HEAD": self.HEAD, "RUN": "3"}
        done = subprocess.run([sys.executable, "-c", COMMENT], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if not (self.root / "written").is_file():
            assert done.stdout.startswith("No comment: ")
            return None
        body = json.loads((self.root / "written").read_text())
        assert list(body) == ["body"]
        return (self.root / "asked").read_text().removeprefix("repos/our/benchbd/").strip(), body["body"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


NEW = "issues/12/comments --method POST --input -"


def test_the_report_is_a_comment(run: Run) -> None:
    told = f"Records of {run.HEAD}:\n\n```text\nSubmission to demo\n\n```\n"
    assert run.comment() == (NEW, f"<!-- report of submission.yml -->\n{told}")


def test_the_bot_edits_its_own_comment_and_no_other(run: Run) -> None:
    mark = "<!-- report of submission.yml -->\n"
    run.comments = [
        {"id": 1, "body": mark, "user": "stranger"},
        {"id": 2, "body": f"quoted {mark}", "user": "github-actions[bot]"},
    ]
    asked = run.comment()
    assert asked is not None
    assert asked[0] == NEW
    run.comments.append({"id": 3, "body": f"{mark}old", "user": "github-actions[bot]"})
    asked = run.comment()
    assert asked is not None
    assert asked[0] == "issues/comments/3 --method PATCH --input -"


def test_a_hostile_report_is_text_in_a_block(run: Run) -> None:
    run.report = (
        "```\n~~~\n@all <img src=//x onerror=x()> [a](javascript:x) #1\n\x1b[2J\u202e\u2028`````\r\n</details>\n<!--"
    )
    asked = run.comment()
    assert asked is not None
    html, *told, block = [token for token in MarkdownIt().parse(asked[1]) if token.level == 0]
    assert (html.type, html.content) == ("html_block", "<!-- report of submission.yml -->\n")
    assert [token.type for token in told] == ["paragraph_open", "paragraph_close"]
    assert block.type == "fence"
    lines = "'''\n~~~\n@all <img src=//x onerror=x()> [a](javascript:x) #1\n?[2J??'''''?\n</details>\n<!--\n"
    assert block.content == lines


@pytest.mark.parametrize("number", ["", "0", "12; echo", "../../x", "１２", "12" * 9, "-1", "1\n2"])
def test_a_number_is_digits(run: Run, number: str) -> None:
    run.number = number
    assert run.comment() is None


@pytest.mark.parametrize(
    "change",
    [{"state": "closed"}, {"head": {"sha": "6" * 40}}, {"base": {"ref": "old", "repo": {"default_branch": "main"}}}],
    ids=lambda change: next(iter(change)),
)
def test_the_run_is_one_of_the_present_head(run: Run, change: dict[str, Any]) -> None:
    run.pull |= change
    assert run.comment() is None


@pytest.mark.parametrize(
    "files",
    [
        [["leaderboards/demo/records/a.json", None], [".github/workflows/submission.yml", None]],
        [["leaderboards/demo/records/a.json", ".github/workflows/submission.yml"], ["b", None]],
        [["leaderboards/demo/records/a.json", None]],
    ],
    ids=["changed", "renamed", "not all listed"],
)
def test_a_report_of_another_workflow_is_not_shown(run: Run, files: list[list[str | None]]) -> None:
    run.files = files
    asked = run.comment()
    assert asked is not None
    assert "Submission to demo" not in asked[1]
    assert "Its report is not shown." in asked[1]


def test_a_long_report_is_cut(run: Run) -> None:
    run.report = "\0" * 50_000_000
    asked = run.comment()
    assert asked is not None
    assert 60_000 < len(asked[1]) < 61_000
    assert asked[1].endswith("?\n... The rest is in the artifact of the run.\n```\n")


@pytest.mark.parametrize("change", [{"name": "other"}, {"size_in_bytes": 10_000_000}], ids=["none", "large"])
def test_a_run_without_a_fit_report_gets_no_comment(run: Run, change: dict[str, Any]) -> None:
    run.artifact |= change
    assert run.comment() is None

"""benchbd as its users have it: the wheel, in a new environment, far from the checkout.

`make fresh` runs this. uv builds the sdist and, from it, the wheel, and installs the wheel with the dependencies that
it declares and nothing else. A user with that environment's `benchbd` then goes from `plugin new` to a row on a board's
page. `make setup` has left most packages in uv's cache; the others are downloaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchbd.records.files import read_inspected, read_records

from .boards import completed

pytestmark = pytest.mark.fresh

ROOT = Path(__file__).resolve().parents[1]

UV = shutil.which("uv") or str(Path(sys.prefix, "bootstrap", "bin", "uv"))

OWN = {"attack": "my-attack", "defense": "my-defense", "detection": "my-detector"}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    done = completed([str(part) for part in command])
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class User:
    """Somebody with an environment, a folder to work in and a home of their own, and no variable of ours."""

    environment: Path
    folder: Path

    def call(self, *command: object, code: int = 0) -> tuple[str, str]:
        """The output and messages of a command, which ends with this code and names no folder of the checkout."""
        given = {
            "HOME": self.folder / "home",
            "PATH": f"{self.environment / 'bin'}:/usr/bin:/bin",
            "OMP_NUM_THREADS": 1,
        }
        given |= {"COLUMNS": 100, "LANG": "C.UTF-8"}
        variables = [f"{name}={value}" for name, value in given.items()]
        done = completed(["env", "-i", "-C", str(self.folder), *variables, *map(str, command)])
        assert done.returncode == code, (command, done.stdout, done.stderr)
        assert str(ROOT) not in done.stdout + done.stderr
        return done.stdout, done.stderr

    def benchbd(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        return self.call("benchbd", *arguments, code=code)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel of benchbd."""
    folder = tmp_path_factory.mktemp("fresh")
    run(UV, "build", "--quiet", "--out-dir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    made = folder / "environment"
    run(UV, "venv", "--quiet", "--python", sys.executable, made)
    locked = ROOT / "requirements.lock"
    run(UV, "pip", "install", "--quiet", "--python", made / "bin" / "python", "--constraint", locked, wheel)
    return made


def user(environment: Path, folder: Path) -> User:
    (folder / "home").mkdir(parents=True)
    return User(environment, folder)


def install(user: User, *projects: str) -> None:
    folders = (part for project in projects for part in ("--editable", user.folder / project))
    run(UV, "pip", "install", "--quiet", "--python", user.environment / "bin" / "python", *folders)


def test_the_wheel_has_every_file(environment: Path, tmp_path: Path) -> None:
    someone = user(environment, tmp_path / "someone")
    told, _ = someone.call("python", "-c", "import benchbd; print(benchbd.__file__)")
    package = Path(told.strip()).parent
    assert package.is_relative_to(environment)
    run(UV, "pip", "check", "--python", environment / "bin" / "python")
    folders = {"benchbd": package, "plugins/benchbd_plugins": package.parent / "benchbd_plugins"}
    folders |= {"leaderboards": package / "leaderboards", "docs/examples": package / "docs" / "examples"}
    for name, installed in folders.items():
        ours, theirs = (
            {path.relative_to(each) for path in each.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
            for each in (ROOT / name, installed)
        )
        missing = sorted(str(path) for path in ours - theirs)
        assert not missing, name
    someone.benchbd("doctor")


def test_from_nothing_to_a_row(environment: Path, tmp_path: Path) -> None:
    author = user(environment, tmp_path / "author")
    for axis, name in OWN.items():
        _, told = author.benchbd("plugin", "new", name, "--axis", axis)
        assert f"pip install -e benchbd-{name} installs it" in told
    install(author, *(f"benchbd-{name}" for name in OWN.values()))
    for axis, name in OWN.items():
        heading, *lines = author.benchbd("plugin", "check", name)[0].splitlines()
        assert heading.startswith(f"{axis} {name}")
        assert {line.split()[-1] for line in lines if "budget" not in line} == {"pass"}
    selected = [part for axis, name in OWN.items() for part in (f"--{axis}", name)]
    table, _ = author.benchbd("run", "--board", "smoke", *selected, "--by", "Ada Lovelace")
    assert re.search(r"^my-attack +my-defense +\d+\.\d", table, re.MULTILINE)
    assert re.search(r"^my-detector against my-attack on shapes", table, re.MULTILINE)
    _, told = author.benchbd("submit", "smoke", "--out", "submission")
    assert "no data.json" not in told
    submission = author.folder / "submission"
    records, verdicts = read_records(submission / "records"), read_inspected(submission / "records")
    count = len(records) + len(verdicts)
    assert f"\nwrote {count} records and the manifests of " in told
    assert {path.parent.name for path in submission.rglob("trigger.png")} == {
        r.name.removesuffix(".json") for r in records
    }
    assert {record.defense for record in records} == {"none", "scratch", "bn", "my-defense"}
    report, _ = author.benchbd("leaderboard", "check", "smoke", "submission")
    assert f"- {count} new records, 0 that replace one of another identity, 0 replicates; " in report
    assert "of attack my-attack, defense my-defense, detection my-detector; by Ada Lovelace.\n" in report
    assert "- Tier 1: all records hold.\n" in report
    assert not [path for path in submission.rglob("*") if path.is_file() and str(ROOT).encode() in path.read_bytes()]

    # The board's folder of a fork, with the submission copied into it, and somebody who has the fork and no store.
    fork = tmp_path / "fork" / "smoke"
    shutil.copytree(ROOT / "leaderboards" / "smoke", fork)
    shutil.copytree(submission, fork, dirs_exist_ok=True)
    reader = user(environment, tmp_path / "reader")
    _, told = reader.benchbd("verify", fork)
    assert told == f"tier 1: {count} records, all of them hold\n"
    reader.benchbd("leaderboard", "build", fork, "--records", fork / "records", "--out", fork)
    row = r"^\| my-attack +\| my-defense +\|"
    assert re.search(row, (fork / "README.md").read_text(), re.MULTILINE)
    _, told = reader.benchbd("leaderboard", "build", fork, "--site", "site")
    site = reader.folder / "site"
    files = [path for path in site.rglob("*") if path.is_file() and path.name != ".benchbd-site"]
    assert told == f"wrote a site of {len(files)} files; open site/index.html\n"
    assert not [path for path in files if str(ROOT).encode() in path.read_bytes()]
    assert list((site / "pictures").glob("*.png"))
    board = site / "boards" / "smoke"
    page = (board / "index.html").read_text()
    for name in OWN.values():
        (place,) = set(re.findall(rf'href="([^"]*)"[^>]*>{name}<', page))
        assert f"benchbd-{name}" in (board / place).read_text()

    # Somebody without the plugins sees the same rows; the audit names what to install.
    done = completed([str(Path(sys.prefix, "bin", "benchbd")), "leaderboard", "check", "smoke", str(submission)])
    assert done.returncode == 1
    named = set(re.findall(r": (\S+): no installed plugin offers it \(the record names (\S+) 0\.1\)", done.stdout))
    assert named == {(name, f"benchbd-{name}") for name in OWN.values()}
    assert re.search(row, done.stdout, re.MULTILINE)

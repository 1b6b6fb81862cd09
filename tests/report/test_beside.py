"""Two sets of records side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchbd.cli.main import main
from benchbd.contract.method import version_of
from benchbd.records.files import write_records
from benchbd.records.models import Record
from benchbd.registry import load_registry
from benchbd.report.beside import document
from benchbd.report.statistics import mean_interval
from benchbd.report.writers.forms import FORMATS, write

from ..records_factory import make_record


def cells(*asrs: float, defense: str = "ft", **fields: Any) -> list[Record]:
    return [make_record(defense=defense, seed=s, metrics=(80.0, asr, asr), **fields) for s, asr in enumerate(asrs)]


def test_differences_are_taken_seed_by_seed() -> None:
    made = document(cells(10, 20, 30), cells(14, 22, 36, 99), ("old", "new"))
    (line,) = made.data["rows"]
    assert line["n"] == 3
    assert (line["asr_nontarget_a"], line["asr_nontarget_b"]) == (20, 24)
    mean, half = mean_interval([4, 2, 6])
    assert (line["asr_nontarget_change"], line["asr_nontarget_change_half"]) == (mean, pytest.approx(half))
    assert line["acc_change"] == 0
    assert line["same_keys"] == 3
    assert "A: old; B: new" in write(made, "text")
    assert "3 of 3" in write(made, "text")


def test_what_only_one_has_is_counted() -> None:
    made = document([*cells(10), *cells(10, defense="fp")], cells(10), ("a", "b"))
    assert made.remarks == ["Only in A: 1 records."]
    for form in FORMATS:
        assert write(made, form)
    none = document(cells(10), cells(10, defense="fp"), ("a", "b"))
    assert "The two have no cell in common." in write(none, "text")


def test_the_command_takes_boards_and_folders(tmp_path: Path) -> None:
    for name, asr in (("one", 10.0), ("two", 30.0)):
        write_records([make_record("none", metrics=(82.0, 5.0, 3.0)), *cells(asr)], tmp_path / name)
    done = CliRunner().invoke(main, ["compare", str(tmp_path / "one"), str(tmp_path / "two")])
    assert done.exit_code == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("badencoder"))
    assert row.split()[:2] == ["badencoder", "ft"]
    assert "+20.0" in row
    done = CliRunner().invoke(main, ["compare", str(tmp_path), str(tmp_path / "two")])
    assert done.exit_code == 2
    assert "a folder without records" in done.stderr


def test_why_names_the_first_difference(tmp_path: Path) -> None:
    (one,) = write_records(cells(10), tmp_path / "one")
    (other,) = write_records(cells(10, defense="fp"), tmp_path / "two")
    (again,) = write_records(cells(12), tmp_path / "three")
    machine = {"device": "gpu", "threads": 2, "torch": "2.15.0"}
    (elsewhere,) = write_records(cells(12, machine=machine), tmp_path / "four")

    def told(a: Path, b: Path) -> str:
        done = CliRunner().invoke(main, ["why", str(a), str(b)])
        assert done.exit_code == 0, done.stderr
        return done.stdout.strip()

    assert told(one, other) == "identity.defend.method.name: ft in one, fp in the other"
    assert told(one, one) == "nothing differs: one identity, and the same counts"
    assert told(one, again).startswith("one identity and one source, but other counts: one of them was edited")
    assert told(one, elsewhere) == (
        "one identity on two machines (machine.device: cpu in one, gpu in the other): training amplifies the last bit"
    )


def test_outdated_lists_versions_that_are_not_installed(tmp_path: Path) -> None:
    def versioned(defense: str, version: str) -> Record:
        method = {"axis": "defense", "name": defense, "version": version}
        made = make_record(defense=defense)
        identity = {**made.identity, "defend": {**made.identity["defend"], "method": method}}
        return make_record(defense=defense, identity=identity)

    write_records([versioned("ft", "1"), versioned("fp", "0"), versioned("miracle", "3")], tmp_path)
    done = CliRunner().invoke(main, ["outdated", "demo", "--records", str(tmp_path)])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("demo: 1 record of defense fp, version 0; version ")
    assert lines[1:] == ["demo: 1 record of defense miracle, version 3; no installed plugin offers it"]
    write_records([versioned("ft", "1")], tmp_path / "new")
    assert CliRunner().invoke(main, ["outdated", "demo", "--records", str(tmp_path / "new")]).exit_code == 0


def test_outdated_compares_sources_where_it_is_asked(tmp_path: Path) -> None:
    def of_source(digest: str | None) -> Record:
        made = make_record(defense="ft")
        identity = {**made.identity, "defend": {**made.identity["defend"], "method": method}}
        origin = {"distribution": "benchbd", "version": "0", "source": digest}
        return make_record(defense="ft", identity=identity, plugins={"defend": origin})

    version = version_of(load_registry().get("defense", "ft"))
    method = {"axis": "defense", "name": "ft", "version": version}
    installed = load_registry().origin("defense", "ft")
    assert installed is not None
    for digest, told in (
        (installed["source"], []),
        ("0" * 64, [f"demo: 1 record of defense ft, version {method['version']}, whose source has changed since"]),
    ):
        folder = tmp_path / str(digest)[:4]
        write_records([of_source(digest)], folder)
        done = CliRunner().invoke(main, ["outdated", "demo", "--records", str(folder), "--sources"])
        assert (done.exit_code, done.stdout.splitlines()) == (bool(told), told)
        assert CliRunner().invoke(main, ["outdated", "demo", "--records", str(folder)]).exit_code == 0

"""Published encoders: named, loaded, taken by a store, and refused if they are not what they are said to be."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import benchbd
from benchbd.audit import encoders
from benchbd.base.errors import BenchbdError, UsageError
from benchbd.published import encoder_names, listed, read_published, undefended_key
from benchbd.records.files import read_records
from benchbd.records.models import Record

from ..boards import Tiny
from .conftest import invoke

ATTACKED, CLEAN = "badencoder_pool_task-1_s1", "none_pool_s1"


def records_of(home: Path) -> list[Record]:
    return read_records(home / "records")


def test_undefended_encoders_are_files_and_the_others_manifests(ran: Tiny, home: Path) -> None:
    files = sorted(path.name for path in (home / "encoders").iterdir())
    repaired = ["badencoder_ft_pool_task-1_s1.json", "none_ft_pool_s1.json", "scratch_pool_s1.json"]
    assert [name for name in files if name.endswith(".safetensors")] == [
        f"{ATTACKED}.safetensors",
        f"{CLEAN}.safetensors",
    ]
    assert [name for name in files if name.endswith(".json")] == sorted(
        [f"{ATTACKED}.json", f"{CLEAN}.json", *repaired]
    )
    for key, each in read_published(home / "encoders").items():
        assert each.manifest == ran.blob(key, "manifest.json").read_bytes()
        if each.file.is_file():
            assert each.read() == ran.blob(key, "encoder.safetensors").read_bytes()
    assert list(encoders.check(home / "encoders", records_of(home))) == []


def test_an_encoder_is_loaded_by_name(ran: Tiny, home: Path) -> None:
    (key,) = {undefended_key(record) for record in records_of(home) if record.attack == "badencoder"}
    own = benchbd.load_encoder(key, store=ran.store)
    for name in ("tiny/badencoder/s1", "tiny/badencoder/task:1/s1", "tiny/badencoder/pool/task:1/s1"):
        loaded = benchbd.load_encoder(name)
        assert loaded.to_bytes() == own.to_bytes()
    assert benchbd.load_encoder("tiny/none/s1").to_bytes() != own.to_bytes()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "tiny/badencodr/s1",
            "unknown attack of the published records of tiny 'badencodr': did you mean 'badencoder'?",
        ),
        ("tiny/badencoder/s2", "board tiny has no badencoder of that seed; it has s1"),
        ("tiny/badencoder/task:2/s1", "names no encoder"),
        ("tiny/s1", "a name is BOARD/ATTACK/sSEED, such as cifar10-small/badencoder/s1"),
        ("tiny/badencoder", "a name is BOARD/ATTACK/sSEED"),
        ("tinny/badencoder/s1", "unknown board 'tinny'"),
    ],
)
def test_a_name_of_no_encoder_is_one_line(home: Path, name: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        benchbd.load_encoder(name)


def test_a_name_of_several_encoders_tells_what_distinguishes_them(home: Path) -> None:
    (path,) = (home / "records").glob("badencoder_none_*.json")
    made = Record.model_validate_json(path.read_text()).model_copy(update={"target": 2, "predictions": None})
    stages = {**made.stages, "attack": "0" * 64}
    with pytest.MonkeyPatch.context() as patched:
        both = [*records_of(home), made.model_copy(update={"stages": stages})]
        patched.setattr("benchbd.published.read_records", lambda _: both)
        with pytest.raises(UsageError, match=r"names 2 encoders; put one of task:1, task:2 before s1"):
            benchbd.load_encoder("tiny/badencoder/s1")
        assert benchbd.load_encoder("tiny/badencoder/task:1/s1").arch


def test_a_board_lists_its_encoders_by_the_shortest_names(home: Path) -> None:
    found = listed("tiny", home, records_of(home))
    assert [each.name for each in found] == ["tiny/badencoder/s1", "tiny/none/s1"]
    for each in found:
        content = benchbd.load_encoder(each.name).to_bytes()
        assert (each.sha256, each.size) == (hashlib.sha256(content).hexdigest(), len(content))
    (path,) = (path for path in (home / "encoders").glob("badencoder_pool*.safetensors"))
    path.unlink()
    assert [each.size is None for each in listed("tiny", home, records_of(home))] == [True, False]
    done = invoke("leaderboard", "build", "tiny", "--records", home / "records", "--site", home.parent / "site")
    assert done.exit_code == 0, done.stderr
    pages = [path.read_text() for path in (home.parent / "site" / "boards").rglob("index.html")]
    assert any("tiny/badencoder/s1" in page and found[0].sha256 in page for page in pages)


def test_a_store_takes_published_encoders_instead_of_computing_them(ran: Tiny, home: Path, tmp_path: Path) -> None:
    for flags, told in (
        ((), "2 encoders could be taken"),
        (("--published",), "2 encoders of board tiny: as published"),
    ):
        fresh = tmp_path / f"fresh{len(flags)}"
        shutil.copytree(ran.store, fresh)
        for path in read_published(home / "encoders"):
            shutil.rmtree(fresh / "stages" / path[:2] / path)
        done = invoke(
            *("run", "--board", "tiny", "--data-root", ran.data, "--store", fresh, *flags, "--defense", "ft"),
            *("--attack", "badencoder", "--task", "task:1"),
        )
        assert done.exit_code == 0, done.stderr
        assert told in done.stderr
        assert ("attack badencoder" in done.stderr) != bool(flags)


def _link(folder: Path) -> None:
    (folder / "x.json").symlink_to(folder / f"{CLEAN}.json")


def _other_weights(folder: Path) -> None:
    shutil.copy(folder / f"{CLEAN}.safetensors", folder / f"{ATTACKED}.safetensors")


def _edited_manifest(folder: Path) -> None:
    path = folder / f"{ATTACKED}.json"
    path.write_text(path.read_text().replace("w16", "w32"))


def _large(folder: Path) -> None:
    with (folder / f"{CLEAN}.safetensors").open("ab") as file:
        file.truncate(encoders.LARGEST + 1)


@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (_link, "x.json: a link; encoders are files"),
        (_other_weights, f"{ATTACKED}.json: {ATTACKED}.safetensors: is damaged or was replaced"),
        (_edited_manifest, f"{ATTACKED}.json: damaged"),
        (_large, f"{CLEAN}.safetensors: 100,000,001 bytes; it has at most 100,000,000"),
        (lambda folder: (folder / f"{CLEAN}.json").unlink(), "an encoder without its manifest"),
        (lambda folder: (folder / "run.py").write_text("x"), "run.py: neither an encoder nor its manifest"),
        (lambda folder: shutil.copy(folder / f"{CLEAN}.json", folder / "twin.json"), "twin.json: of one stage with"),
    ],
)
def test_encoders_that_are_not_what_they_are_said_to_be_are_findings(
    home: Path, forge: Callable[[Path], object], told: str
) -> None:
    forge(home / "encoders")
    found = [str(each) for each in encoders.check(home / "encoders", records_of(home))]
    assert any(told in text for text in found), found
    done = invoke("leaderboard", "check", "tiny", home)
    assert done.exit_code == 1
    assert told in done.stdout.replace("\n", " ")


def test_an_encoder_of_no_record_is_a_finding(home: Path) -> None:
    found = list(encoders.check(home / "encoders", []))
    assert len(found) == 5
    assert all("which no record has" in each.text for each in found)


def test_names_are_distinct_and_allowed_in_files(home: Path) -> None:
    records = records_of(home)
    twins = [r.model_copy(update={"stages": {k: v[::-1] for k, v in r.stages.items()}}) for r in records]
    names = encoder_names([*records, *twins])
    assert len({*names.values()}) == len(names) == 10
    odd = [r.model_copy(update={"pretrain": "../a b/…", "point": {"x.y": "/etc"}}) for r in records]
    assert all(re.fullmatch(r"[\w.+=-]{1,130}", name) and "/" not in name for name in encoder_names(odd).values())


def test_a_damaged_published_encoder_stops_a_run(ran: Tiny, home: Path, tmp_path: Path) -> None:
    _other_weights(home / "encoders")
    with pytest.raises(BenchbdError, match="is damaged or was replaced"):
        benchbd.load_encoder("tiny/badencoder/s1")
    done = invoke("run", "--board", "tiny", "--data-root", ran.data, "--store", tmp_path / "new", "--published")
    assert done.exit_code == 2
    assert "is damaged or was replaced" in done.stderr

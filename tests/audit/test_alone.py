"""Tier 1 of an audit: forgeries that agree with themselves, and what a stranger's folder may hold."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchbd.audit import alone
from benchbd.audit.planned import PlannedBoard
from benchbd.base.content import canonical
from benchbd.cli.main import main
from benchbd.data.pinned import FILE, read_pinned
from benchbd.planning.board import Board, board_path, load_board
from benchbd.records.odd import LARGEST
from benchbd.records.pictures import PICTURES, write_pictures
from benchbd.records.predictions import pack, unpack
from benchbd.registry import Registry

from ..records_factory import grey, png
from .forger import Forger, Json, reseeded

NAME = "cifar10-bassl"
HOME = board_path(NAME).parent
END = "cifar10_cifar10-0_s1_linear"
FLOOR, ATTACKED, REPAIRED = (f"{pair}_{END}" for pair in ("none_none", "badencoder_none", "badencoder_ft"))


@pytest.fixture(scope="module")
def board() -> Board:
    return load_board(NAME)


@pytest.fixture(scope="module")
def planned(board: Board, registry: Registry) -> PlannedBoard:
    known, _ = alone.read(HOME / "records")
    return PlannedBoard.of_pins(board, registry, HOME / FILE, known)


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    """A copy of the records of seed 1 that a forger needs."""
    folder = tmp_path / "records"
    folder.mkdir()
    for stem in (FLOOR, ATTACKED, REPAIRED, f"none_scratch_{END}", f"badencoder_scratch_{END}"):
        for suffix in (".json", ".safetensors"):
            shutil.copy(HOME / "records" / f"{stem}{suffix}", folder)
    return Forger(folder)


def audit(forger: Forger, board: Board, planned: PlannedBoard) -> dict[str, str]:
    """The first finding by file."""
    known, findings = alone.read(forger.folder)
    findings += alone.check(board, known, planned)
    return {finding.place: finding.text for finding in reversed(findings)}


def changed(path: str, value: Any) -> Any:
    def edit(data: Json) -> None:
        *above, last = path.split(".")
        into = data
        for part in above:
            into = into[int(part)] if isinstance(into, list) else into[part]
        into[last] = value

    return edit


def test_published_boards_hold(registry: Registry) -> None:
    for name in ("cifar10-bassl", "detect-shapes", "sweeps-shapes"):
        home = board_path(name).parent
        known, findings = alone.read(home / "records")
        made = PlannedBoard.of_pins(load_board(name), registry, home / FILE, known)
        assert [str(finding) for finding in [*findings, *alone.check(load_board(name), known, made)]] == []
        assert len(known) >= 36


def test_the_copy_holds(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    assert audit(forger, board, planned) == {}


# Forgeries -----------------------------------------------------------------------------------------------------------


def test_one_seed_relabelled_as_three(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    for stem in (FLOOR, ATTACKED, REPAIRED):
        for seed in (2, 3):
            forger.forge(stem, reseeded(seed), keep=True)
    wrong = audit(forger, board, planned)
    for stem in (FLOOR, ATTACKED, REPAIRED):
        for seed in (2, 3):
            place = f"{stem.replace('_s1_', f'_s{seed}_')}.json"
            assert wrong[place] == f"predictions: those of {stem}.json, of seed 1"


def test_the_floor_edited(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    forger.forge(REPAIRED, changed("baseline_counts.correct", 20_000))
    assert "contradict each other on the same evaluation" in next(iter(audit(forger, board, planned).values()))


def test_the_floor_edited_everywhere(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    """All records agree on a lower ACC of the clean encoder; its predictions, under the pinned labels, do not."""

    def lower(data: Json) -> None:
        data["baseline_counts"]["correct"] -= 600
        if data["attack"] == data["defense"] == "none":
            data["counts"]["correct"] -= 600
            data["undefended"]["acc"] = round(100 * data["counts"]["correct"] / data["counts"]["total"], 4)
            for head in data["heads"]:
                head["correct"] -= 200

    for stem in (FLOOR, ATTACKED, REPAIRED, f"none_scratch_{END}", f"badencoder_scratch_{END}"):
        forger.forge(stem, lower)
    # The undefended figures of none x scratch are the clean encoder's too.
    right = json.loads((HOME / "records" / f"{FLOOR}.json").read_text())["counts"]["correct"]
    assert f"counts.correct: {right - 600}, but the predictions give {right}" in audit(forger, board, planned).values()


def test_the_undefended_figures_edited(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    def weaker(data: Json) -> None:
        data["undefended"] |= {"asr": 91.0, "asr_nontarget": 90.0, "ra": 5.0}

    forger.forge(REPAIRED, weaker)
    wrong = audit(forger, board, planned)
    assert wrong[f"{ATTACKED}.json"].startswith(
        f"{REPAIRED}.json and {ATTACKED}.json contradict each other on the same"
    )


def test_the_references_removed(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    (forger.folder / f"{ATTACKED}.json").unlink()
    (forger.folder / f"{ATTACKED}.safetensors").unlink()
    assert audit(forger, board, planned)[f"{REPAIRED}.json"].startswith("undefended: there is no record of this attack")
    (forger.folder / f"{FLOOR}.json").unlink()
    (forger.folder / f"{FLOOR}.safetensors").unlink()
    assert audit(forger, board, planned)[f"{REPAIRED}.json"].startswith("baseline: there is no record of the clean")


def test_the_cost_edited(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    def cheaper(data: Json) -> None:
        data["cost"]["defend"]["seconds"] = data["seconds"] = 0.5

    stem = f"none_scratch_{END}"
    forger.forge(stem, cheaper)
    wrong = audit(forger, board, planned)
    assert f"cost.defend.seconds: 0.5, but badencoder_scratch_{END}.json has" in wrong[f"{stem}.json"]
    forger.forge(REPAIRED, changed("seconds", 0.5))  # and not the cost that it is made of
    assert "seconds: 0.5, but cost.defend has" in audit(forger, board, planned)[f"{REPAIRED}.json"]


def test_more_work_claimed_than_there_is(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    forger.forge(REPAIRED, changed("cost.defend.image_forwards", 600_000))
    wrong = audit(forger, board, planned)[f"{REPAIRED}.json"]
    assert wrong == "cost.defend.image_forwards: 600000, but the estimate of ft allows at most 538560"
    forger.forge(REPAIRED, changed("cost.defend.image_forwards", 538_560))  # a tenth above the estimate, as in a check
    assert audit(forger, board, planned) == {}


def test_the_target_relabelled(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    def other(data: Json) -> None:
        data |= {"target": 1, "target_name": "automobile"}
        data["identity"]["attack"]["params"]["targets"][0]["label"] = 1
        data["identity"]["reference"]["params"]["target"] = 1

    hits = unpack((forger.folder / f"{REPAIRED}.safetensors").read_bytes())[1]
    packed = pack(*unpack((forger.folder / f"{REPAIRED}.safetensors").read_bytes())[:1], 1 - (hits == 0) * 1 + hits * 0)
    stem = forger.forge(REPAIRED, other, packed)
    assert stem != REPAIRED
    assert "cifar10-1" in stem
    wrong = audit(forger, board, planned)
    assert f"{stem}.json" in wrong


def test_the_data_relabelled(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    def other(data: Json) -> None:
        for identity in data["identity"].values():
            identity["data"] = {role: digest[::-1] for role, digest in identity["data"].items()}
        for target in data["identity"]["attack"]["params"]["targets"]:
            target["data"] = target["data"][::-1]

    forger.forge(REPAIRED, other)
    wrong = audit(forger, board, planned)[f"{REPAIRED}.json"]
    assert "baseline" in wrong or "identity.pretrain.data.pool" in wrong


def test_options_claimed(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    forger.forge(REPAIRED, changed("identity.defend.method.options.lr", 0.5))
    wrong = audit(forger, board, planned)[f"{REPAIRED}.json"]
    assert wrong == "identity.defend.method.options.lr: 0.5, but the board gives 0.001"


def test_a_method_that_nobody_offers(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    def other(data: Json) -> None:
        data["defense"] = data["identity"]["defend"]["method"]["name"] = "miracle"

    stem = forger.forge(REPAIRED, other)
    assert audit(forger, board, planned)[f"{stem}.json"].startswith(
        "miracle: no installed plugin offers it (the record names benchbd 0.1.0), so its stages"
    )


def test_a_stale_version(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    forger.forge(REPAIRED, changed("identity.defend.method.version", "0"))
    assert audit(forger, board, planned)[f"{REPAIRED}.json"] == "stale: of version 0 of ft, which is 1 today"


def test_clean_images_that_were_not_drawn(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    for stem in (REPAIRED, f"none_scratch_{END}", f"badencoder_scratch_{END}"):
        forger.forge(stem, changed("clean_images", list(range(2000))))
    wrong = audit(forger, board, planned)
    assert wrong[f"{REPAIRED}.json"] == "clean_images: not those that identity.defend.params.clean draws"


def test_counts_edited_without_their_predictions(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    def better(data: Json) -> None:
        data["counts"]["correct"] += 3
        data["heads"][0]["correct"] += 3

    forger.forge(REPAIRED, better)
    assert "but the predictions give" in audit(forger, board, planned)[f"{REPAIRED}.json"]


def test_another_board_s_record(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    forger.forge(REPAIRED, changed("board", "other"))
    assert audit(forger, board, planned)[f"{REPAIRED}.json"] == "board: 'other', not 'cifar10-bassl'"


# A stranger's folder --------------------------------------------------------------------------------------------------


def test_odd_files_are_findings(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    folder = forger.folder
    (folder / "notes.txt").write_text("x")
    (folder / "large.json").write_bytes(b" " * (LARGEST + 1))
    (folder / "lone.safetensors").write_bytes(b"x")
    (folder / "link.json").symlink_to("/etc/passwd")
    (folder / "other").mkdir()
    (folder / "other" / "a.json").write_text("{}")
    os.mkfifo(folder / "pipe.json")  # nothing writes to it, so that reading would never end
    assert audit(forger, board, planned) == {
        "large.json": "8,000,001 bytes; a record has at most 8,000,000",
        "link.json": "a link; records are files",
        "lone.safetensors": "predictions of no record",
        "notes.txt": "neither a record, nor its predictions, nor a picture of it",
        "other/a.json": "in a folder that has no records",
        "pipe.json": "neither a file nor a folder",
    }


def test_pictures_of_a_record_hold(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    write_pictures(forger.folder / f"{REPAIRED}.json", dict.fromkeys(PICTURES, png(2000, 3)))
    assert audit(forger, board, planned) == {}


def test_what_is_no_picture_of_a_record_is_a_finding(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    (folder := forger.folder / REPAIRED).mkdir()
    (forger.folder / "nobody").mkdir()
    (forger.folder / FLOOR).mkdir()
    for place in ("trigger.png", "nobody/trigger.png", f"{REPAIRED}/evil.png", f"{REPAIRED}/a.PNG"):
        (forger.folder / place).write_bytes(png())
    (folder / "trigger.png").symlink_to("/etc/passwd")
    (folder / "attention.svg").write_text("<svg onload='alert(1)'/>")
    (folder / "pruning.png").write_text("a text")
    (folder / "features.png").write_bytes(png(2001, 1))
    (folder / "inversion.png").write_bytes(png() + b"<script>alert(1)</script>")
    (folder / f"{REPAIRED}.json").write_text("{}")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "trigger.png").write_bytes(png())
    (forger.folder / ATTACKED).symlink_to(folder)
    for name in ("attention", "features"):
        (forger.folder / FLOOR / f"{name}.png").write_bytes(grey(60_000))
    large = sum(path.stat().st_size for path in (forger.folder / FLOOR).iterdir())
    names = "trigger, inversion, attention, information, pruning, features"
    other = "neither a record, nor its predictions, nor a picture of it"
    assert audit(forger, board, planned) == {
        ATTACKED: "a link; records are files",
        FLOOR: f"pictures of {large:,} bytes; those of a record have at most 100,000",
        "trigger.png": "a picture of no record",
        "nobody/trigger.png": "a picture of no record",
        f"{REPAIRED}/a.PNG": other,
        f"{REPAIRED}/attention.svg": other,
        f"{REPAIRED}/deeper/trigger.png": "a picture of no record",
        f"{REPAIRED}/evil.png": f"no picture of a record has this name; they are {names}",
        f"{REPAIRED}/features.png": "2001 x 1 pixels; a picture has at most 2000 x 2000",
        f"{REPAIRED}/inversion.png": "a damaged PNG picture",
        f"{REPAIRED}/pruning.png": "no PNG picture (it is text)",
        f"{REPAIRED}/trigger.png": "a link; records are files",
        f"{REPAIRED}/{REPAIRED}.json": "in a folder that has no records",
    }


def test_one_picture_may_be_too_large_for_all(forger: Forger, board: Board, planned: PlannedBoard) -> None:
    (folder := forger.folder / REPAIRED).mkdir()
    with (folder / "trigger.png").open("wb") as file:
        file.truncate(LARGEST)  # and its content is not read
    assert audit(forger, board, planned) == {
        REPAIRED: "pictures of 8,000,000 bytes; those of a record have at most 100,000"
    }


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ('"seed": 1,', '"seed": NaN,', "not a benchbd record"),
        ('"attack": "badencoder"', '"attack": "../evil"', "attack: '../evil' is no name"),
        ('"task": "cifar10"', '"task": "\\u001b[31mred"', "must be called 'badencoder_ft_cifar10_\\x1b[31mred-0"),
        ('"seed": 1,', '"seed": 1, "seed": 1,', "'seed' occurs twice"),
        ("{", "[" * 100_000, "not a benchbd record"),
    ],
)
def test_a_hostile_record_is_one_finding(
    forger: Forger, board: Board, planned: PlannedBoard, old: str, new: str, wrong: str
) -> None:
    path = forger.folder / f"{REPAIRED}.json"
    path.write_text(path.read_text().replace(old, new, 1))
    lines = audit(forger, board, planned)
    assert wrong in lines[path.name]
    assert all(line.isprintable() for line in lines.values())


# The command ---------------------------------------------------------------------------------------------------------


def test_verify_prints_a_line_a_finding_and_exits_1(forger: Forger) -> None:
    done = CliRunner().invoke(main, ["verify", NAME, "--records", str(forger.folder)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "tier 1: 5 records, all of them hold\n"
    forger.forge(REPAIRED, changed("identity.defend.method.options.lr", 0.5))
    done = CliRunner().invoke(main, ["verify", NAME, "--records", str(forger.folder)])
    assert done.exit_code == 1
    assert done.stdout == f"{REPAIRED}.json: identity.defend.method.options.lr: 0.5, but the board gives 0.001\n"
    assert done.stderr == "tier 1: 5 records, 1 finding\n"


def test_verify_without_records_is_wrong_usage(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["verify", "demo", "--records", str(tmp_path)])
    assert done.exit_code == 2
    assert "no records of board demo" in done.stderr


def test_pins_are_those_of_the_data(tmp_path: Path) -> None:
    """Of generated data, which every machine has."""
    out = tmp_path / "data.json"
    done = CliRunner().invoke(main, ["leaderboard", "pin", "detect-shapes", "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    assert out.read_text() == (board_path("detect-shapes").parent / FILE).read_text()
    pinned = read_pinned(out)
    assert {(split.name, split.split) for split in pinned.splits} == {
        ("shapes", split) for split in ("pool", "test", "train")
    }
    assert all(len(split.labels) == (split.count if split.split == "test" else 0) for split in pinned.splits)
    assert canonical(json.loads(out.read_text())) == canonical(json.loads(pinned.to_json()))

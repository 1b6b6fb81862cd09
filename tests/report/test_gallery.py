"""The gallery of known encoders: what counts, what is only counted, and which encoders belong together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchbd.base.errors import DataError
from benchbd.base.seeds import derive_seed
from benchbd.contract.roles import Role
from benchbd.planning.board import Board
from benchbd.records.detection import DetectionRecord
from benchbd.records.files import write_records
from benchbd.records.models import Counts, Gain
from benchbd.report.gallery import Gallery, detections, gather, read_gallery

from ..cli.test_cli import call, one_line
from ..records_factory import digest

POOL = "d" * 64
CLEAN = Counts(total=10, correct=5, hits=2, nontarget=8, hits_nontarget=1, correct_triggered=1)
TAKEN = Counts(total=10, correct=5, hits=8, nontarget=8, hits_nontarget=7, correct_triggered=1)


def a_board(name: str = "b", size: int = 32) -> Board:
    told = {"name": name, "image_size": size, "attacks": ["none"], "defenses": ["none"]}
    return Board.model_validate({**told, "rows": [{"pretrain": "p", "tasks": ["p:1"]}]})


def method(axis: str, name: str, **options: Any) -> dict[str, Any]:
    return {"axis": axis, "name": name, "version": "1", "options": options}


def inspected(
    attack: str = "none",
    seed: int = 1,
    score: float | None = 0.5,
    status: str = "ok",
    *,
    arch: str = "w16",
    images: int = 100,
    pool: str = POOL,
    attack_options: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    clean: dict[str, Any] | None = None,
    took: bool = True,
    **fields: Any,
) -> DetectionRecord:
    """A record as a run writes it: every stage has the identity that its key is the digest of."""
    numerics = {"precision": "fp32", "tf32": False}
    pretrain = {"method": method("pretraining", "simclr", arch=arch), "data": {"pool": pool}, "seed": seed}
    identity: dict[str, Any] = {"pretrain": pretrain}
    encoder = digest(pretrain)
    if attack != "none":
        own = {"method": method("attack", attack, **(attack_options or {})), "parents": {"encoder": encoder}}
        identity["attack"] = {**own, "seed": derive_seed(seed, "attack")}
        encoder = digest(identity["attack"])
    drawn = {"count": images, "seed": derive_seed(seed, "clean"), **(clean or {})}
    identity["detect"] = {
        "method": method("detection", "decree", **(options or {"steps": 3})),
        "data": {"pool": pool},
        "params": {"clean": drawn},
        "parents": {"encoder": encoder},
        "numerics": numerics,
        "seed": derive_seed(seed, "detect"),
    }
    counts = CLEAN if attack == "none" or not took else TAKEN
    measured = status == "ok"
    known: dict[str, Any] = {
        "board": "b",
        "attack_role": Role.FLOOR if attack == "none" else Role.METHOD,
        "on_board": True,
        "pretrain": "p",
        "tasks": ["p:1"],
        "detection": "decree",
        "evaluator": "mlp",
        "identity": identity,
        "stages": {kind: digest(each) for kind, each in identity.items()},
        "key": digest(identity["detect"]),
        "clean_images": list(range(drawn["count"])),
        "gains": {"p:1": Gain(counts=counts, baseline_counts=CLEAN)} if measured else {},
        "score": score if measured else None,
        "flagged": (score or 0) > 0.9 if measured else None,
        "reason": "" if status == "ok" else "why",
    }
    return DetectionRecord(attack=attack, seed=seed, status=status, **{**known, **fields})


def test_an_attack_that_did_not_take_and_a_failed_inspection_are_counted_and_are_no_encoders() -> None:
    records = [
        *(inspected("none", seed, 0.1 * seed) for seed in (1, 2, 3)),
        inspected("none", 4, status="error"),
        inspected("bad", 1, 0.95),
        inspected("bad", 2, 0.99, took=False),
        inspected("bad", 3, status="n/a"),
    ]
    (population,) = gather([(a_board(), records)]).populations
    assert [encoder.score for encoder in population.clean] == pytest.approx([0.1, 0.2, 0.3])
    assert [(each.attack.name, len(each.encoders)) for each in population.attacks] == [("bad", 1)]
    assert [(encoder.score, encoder.flagged) for encoder in population.attacked] == [(0.95, True)]
    assert population.left_out == {"attack-failed": 1, "clean error": 1, "n/a": 1}
    assert population.attacked[0].clean == population.clean[0].encoder == population.clean[0].clean
    assert (population.architecture, population.images, population.size) == ("w16", 100, 32)
    assert (population.pool, population.pretrain, population.pretrain_digest) == (POOL, "p", POOL)


def test_an_encoder_has_the_digest_of_its_records_file(tmp_path: Path) -> None:
    write_records([inspected("bad", 1, 0.95)], tmp_path)
    (file,) = (tmp_path / "detections").iterdir()
    (population,) = gather([(a_board(), detections(tmp_path))]).populations
    assert population.attacked[0].record == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [{"arch": "w32"}, {"images": 99}, {"pool": "e" * 64}, {"options": {"steps": 4}}],
    ids=lambda other: next(iter(other)),
)
def test_what_sets_populations_apart(other: dict[str, Any]) -> None:
    gallery = gather([(a_board(), [inspected(), inspected(**other)])])
    assert [len(population.clean) for population in gallery.populations] == [1, 1]


def test_encoders_of_another_preparation_are_another_population() -> None:
    plain, prepared = inspected(seed=1), inspected(seed=2)
    prepared.identity["prepare"] = {"seed": 1}
    populations = gather([(a_board(), [plain, prepared])]).populations
    assert {population.prepared for population in populations} == {None, digest({"seed": 1})}


def test_boards_share_a_population_unless_their_images_have_another_size() -> None:
    boards = [(a_board("b"), [inspected(seed=1)]), (a_board("c"), [inspected(seed=2, board="c")])]
    (population,) = gather(boards).populations
    assert population.boards == ("b", "c")
    assert len(population.clean) == 2
    large = (a_board("d", 64), [inspected(seed=3, board="d")])
    assert [each.size for each in gather([*boards, large]).populations] == [32, 64]


def test_an_encoder_counts_once_and_attacks_count_by_their_options() -> None:
    (first,) = gather([(a_board(), [inspected(seed=1)])]).populations
    (twice,) = gather([(a_board(), [inspected(seed=1)]), (a_board("c"), [inspected(seed=1, board="c")])]).populations
    assert len(first.clean) == len(twice.clean) == 1
    assert (first.left_out, twice.left_out) == ({}, {"inspected again": 1})
    records = [inspected("bad", 1, 0.9, attack_options={"steps": steps}) for steps in (1, 2)]
    (population,) = gather([(a_board(), records)]).populations
    assert [each.attack.options for each in population.attacks] == [{"steps": 1}, {"steps": 2}]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (inspected(clean={"poisoned": 3}), "some of the defender's images had the trigger"),
        (inspected("bad", attack_role=Role.CONTROL), "the encoder is a control's, neither clean nor backdoored"),
        (
            inspected(identity={**inspected().identity, "head": {"seed": derive_seed(1, "evaluate")}}),
            "a classifier was inspected, not an encoder",
        ),
        (
            inspected(identity={"detect": inspected().identity["detect"]}),
            "the identity has no pretrain.method.options.arch",
        ),
    ],
    ids=["poisoned", "control", "classifier", "no architecture"],
)
def test_records_that_belong_to_no_population_are_counted_by_reason(record: DetectionRecord, reason: str) -> None:
    gallery = gather([(a_board(), [record, inspected(seed=2)])])
    assert gallery.left_out == {reason: 1}
    assert [len(population.clean) for population in gallery.populations] == [1]


def test_a_gallery_survives_its_file_whatever_the_order_of_the_records(tmp_path: Path) -> None:
    records = [inspected("bad", 2, 0.97), inspected("none", 1, 0.1), inspected("bad", 1, 1 / 3), inspected("none", 2)]
    gallery = gather([(a_board(), records)])
    assert gather([(a_board(), records[::-1])]) == gallery
    (tmp_path / "g.json").write_text(gallery.to_json())
    assert read_gallery(tmp_path / "g.json") == gallery


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b'{"schema": 2}', "schema: Input should be 1"),
        (b"{}", r"not a gallery of `benchbd gallery build` \(schema: Field required\)"),
        (b'{"populations": [], "more": 1}', "more: Extra inputs"),
    ],
)
def test_a_file_that_is_no_gallery_is_one_line(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "g.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=why) as error:
        read_gallery(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_record_whose_identity_has_another_type_is_one_line() -> None:
    record = inspected()
    record.identity["detect"]["method"]["version"] = 1
    with pytest.raises(DataError, match=r"none_decree_p_p-1_s1\.json: identity: detection\.version: "):
        gather([(a_board(), [record])])


def test_the_command_writes_what_python_reads(tmp_path: Path) -> None:
    store, out = tmp_path / "none-here", tmp_path / "mine.json"
    done = call("gallery", "build", "detect-shapes", "--store", store, "--out", out)
    assert (done.exit_code, done.stderr) == (
        0,
        "30 scores of clean and 30 of backdoored encoders\n",
    )  # of three detectors
    assert read_gallery(out) == read_gallery()  # the only published board with detectors
    printed = call("gallery", "build", "detect-shapes", "--store", store)
    assert Gallery.model_validate(json.loads(printed.stdout)) == read_gallery()


def test_a_board_without_detectors_is_one_line(tmp_path: Path) -> None:
    store = tmp_path / "none-here"
    one_line(call("gallery", "build", "cifar10-small", "--store", store), "no detector's records of cifar10-small")
    one_line(call("gallery", "build", "dmo"), "unknown board 'dmo'", "did you mean 'demo'")
    one_line(call("gallery", "build"), "Missing argument")
    build = ("gallery", "build", "detect-shapes", "--store", store, "--out")
    one_line(call(*build, tmp_path), f"{tmp_path}: is a folder")
    one_line(call(*build, tmp_path / "no" / "g.json"), "no such folder")

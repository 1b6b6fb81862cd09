"""The contract of a record on disk: read back equal, written whole, refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchbd.base.errors import DataError, StoreError
from benchbd.base.seeds import derive_seed
from benchbd.records.detection import DetectionRecord
from benchbd.records.files import read_records, write_records
from benchbd.records.models import Counts, Metrics, Record
from benchbd.records.predictions import path_of

from ..records_factory import digest, make_record, paper_like


def full_record() -> Record:
    defense = {"options": {"lr": 0.001, "nested": [1, None, True]}}
    encoder = {"method": {"name": "ft", **defense}, "seed": derive_seed(0, "defend"), "params": {"clean": {"count": 3}}}
    evaluate = {"method": {"name": "mlp"}, "parents": {"encoder": digest(encoder)}}
    return make_record(
        defense="ft",
        seconds=12.3,
        forwards=1000,
        metrics=(80.0, 90.0, 88.8889),
        counts=Counts(total=10, correct=8, hits=9, nontarget=9, hits_nontarget=8, correct_triggered=1),
        baseline=(70.0, 10.0, 11.1111),
        baseline_counts=Counts(total=10, correct=7, hits=1, nontarget=9, hits_nontarget=1, correct_triggered=6),
        undefended=Metrics(acc=80.0, asr=20.0, asr_nontarget=22.2222, ra=66.6667),
        notes=['the reference "5.1" – café – is not classified as the target'],
        clean_images=[3, 5, 2000],
        identity={"attack": {"method": {"name": "badencoder"}}, "defend": encoder, "evaluate": evaluate},
        key=digest(evaluate),
        departures=["ft.lr=0.01"],
        on_board=False,
    )


def test_a_record_comes_back_equal_and_byte_for_byte(tmp_path: Path) -> None:
    record = full_record()
    (path,) = write_records([record], tmp_path)
    (back,) = read_records(tmp_path)
    assert back == record
    assert path.read_text(encoding="utf-8") == record.to_json() == back.to_json()


def test_json_has_sorted_keys_and_the_image_list_on_one_line() -> None:
    lines = full_record().to_json().splitlines()
    assert ' "clean_images": [3,5,2000],' in lines
    keys = [line.split('"')[1] for line in lines if line.startswith(' "')]
    assert keys == sorted(keys)
    assert "schema" in keys


def test_records_are_read_by_file_name(tmp_path: Path) -> None:
    records = paper_like()
    paths = write_records(records, tmp_path)
    assert len(set(paths)) == len(records)
    assert read_records(tmp_path) == [
        record for _, record in sorted(zip(paths, records, strict=True), key=lambda p: p[0])
    ]


def test_the_name_says_what_the_cell_is() -> None:
    key = "0123456789abcdef" * 4
    assert make_record("badencoder", "ft", 3, key=key).name == "badencoder_ft_cifar10_gtsrb-12_s3_mlp.json"
    variants = {
        make_record("badencoder", "ft", 3, key=other, on_board=False, departures=departures).name
        for other, departures in ((key, ["ft.lr=1"]), (key, ["simclr.lr=1"]), ("f" * 64, ["ft.lr=1"]))
    }
    assert len(variants) == 3
    assert all(re.fullmatch(r"badencoder_ft_cifar10_gtsrb-12_s3_mlp_[0-9a-f]{12}\.json", name) for name in variants)


def test_writing_again_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    record = make_record()
    (path,) = write_records([record], tmp_path / "new" / "folder")
    path.write_text("half a rec", encoding="utf-8")
    write_records([record], path.parent)
    assert {each.name for each in path.parent.iterdir()} == {record.name, path_of(path).name}
    assert read_records(path.parent) == [record]


def test_an_unfinished_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / f".{make_record().name}.4711.part").write_text("half", encoding="utf-8")
    assert read_records(tmp_path) == []


def test_places_that_cannot_be_used_are_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"records cannot be written to .*file"):
        write_records([make_record()], tmp_path / "file" / "records")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"folder\.json: cannot be read"):
        read_records(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 1}', "\udcff"])
def test_a_stranger_is_refused_by_name_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"bad\.json: not a benchbd record") as caught:
        read_records(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    text = make_record().to_json().replace('"attack":', '"atack": "x",\n "attack":')
    (tmp_path / "typo.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"typo\.json"):
        read_records(tmp_path)


def test_a_record_of_a_newer_benchbd_is_one_line(tmp_path: Path) -> None:
    (path,) = write_records([full_record()], tmp_path)
    path.write_text(path.read_text().replace('"schema": 2', '"joules": 5,\n "schema": 3'))
    with pytest.raises(DataError) as caught:
        read_records(tmp_path)
    assert str(caught.value) == f"{path}: a newer benchbd wrote it (schema 3; this one reads up to 2): update benchbd"


def test_a_record_with_a_bom_is_read(tmp_path: Path) -> None:
    record = make_record()
    (path,) = write_records([record], tmp_path)
    path.write_text(record.to_json(), encoding="utf-8-sig")
    assert read_records(tmp_path) == [record]
    (read,) = read_records(tmp_path)
    assert read.to_json() == record.to_json()


def test_a_record_under_another_name_is_refused(tmp_path: Path) -> None:
    (path,) = write_records([make_record()], tmp_path)
    path_of(path).rename(tmp_path / "badencoder_none (copy).safetensors")
    copy = path.rename(tmp_path / "badencoder_none (copy).json")
    with pytest.raises(DataError, match=rf"copy\)\.json: this record's file must be called '{path.name}'"):
        read_records(tmp_path)
    assert copy.is_file()


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ('"seed": 0,', '"seed": "0",', "seed: Input should be a valid integer"),
        ('"seed": 0,', '"seed": 0.0,', "seed: Input should be a valid integer"),
        ('"seed": 0,', '"seed": true,', "seed: Input should be a valid integer"),
        ('"on_board": true', '"on_board": 1', "on_board: Input should be a valid boolean"),
        ('"acc": 80.0', '"acc": "80.0"', "metrics.acc: Input should be a valid number"),
        ('"seed": 0,', '"seed": 1, "seed": 0,', "'seed' occurs twice in one object"),
        ('"acc": 80.0', '"acc": 90.0, "acc": 80.0', "'acc' occurs twice in one object"),
        ('"seconds": null', '"seconds": -5', "seconds: Input should be greater than or equal to 0"),
        ('"acc": 80.0', '"acc": NaN', "not a benchbd record"),
    ],
)
def test_types_are_strict_and_names_occur_once(tmp_path: Path, old: str, new: str, wrong: str) -> None:
    (path,) = write_records([make_record()], tmp_path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=wrong):
        read_records(tmp_path)


def test_the_published_schema_is_that_of_the_models() -> None:
    for name, model in (("record", Record), ("detection", DetectionRecord)):
        schema = json.loads((Path(__file__).parents[2] / f"docs/schema/{name}.schema.json").read_text())
        assert {*schema["properties"]} == {info.alias or field for field, info in model.model_fields.items()}
        assert schema["additionalProperties"] is False
        assert schema["$id"].endswith(f"{name}.schema.json")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"", "an empty file"),
        ("{}".encode("utf-16"), "UTF-16 text"),
    ],
)
def test_what_lies_there_instead_of_a_record_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=f"a.json: not a benchbd record \\(it is {kind}"):
        read_records(tmp_path)
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"a\.json: not a benchbd record"):
        read_records(tmp_path)

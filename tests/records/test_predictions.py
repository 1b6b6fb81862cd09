"""The predictions beside a record: equal bytes for equal predictions, and counts that follow from predictions."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from benchbd import Evaluator, Predictions, Probe
from benchbd.base.errors import DataError
from benchbd.records.counts import count
from benchbd.records.files import read_records, write_records
from benchbd.records.predictions import pack, path_of, unpack
from benchbd.registry import Registry, load_registry
from benchbd.report.leaderboard import build
from benchbd.testing import check_method

from ..boards import TINY, Tiny, offering
from ..records_factory import TAKEN, counts_of, make_record


@pytest.mark.parametrize(("largest", "size"), [(9, 2), (32_767, 2), (32_768, 8)])
def test_predictions_come_back_from_few_bytes(largest: int, size: int) -> None:
    clean, triggered = np.arange(5), np.array([0, largest, 1, 2, 3])
    content = pack(clean, triggered)
    assert content == pack(clean.copy(), triggered.astype(np.int32))
    header = int.from_bytes(content[:8], "little")
    assert len(content) == 8 + header + 2 * 5 * size
    *classes, certified = unpack(content)
    assert certified is None
    for own, back in zip((clean, triggered), classes, strict=True):
        assert back.dtype == np.int64
        assert own.tolist() == back.tolist()
    certain = np.array([True, False, True, True, False])
    *classes, certified = unpack(pack(clean, triggered, certain))
    assert [each.tolist() for each in classes] == [clean.tolist(), triggered.tolist()]
    assert certified is not None
    assert (certified.dtype, certified.tolist()) == (np.bool_, certain.tolist())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no safetensors"),
        (b"\x00" * 40, "no safetensors"),
        (save({"clean": np.arange(3)}), "holds clean, not clean and triggered"),
        (save({"clean": np.arange(3), "triggered": np.arange(4)}), r"triggered is int64 \(4,\), not int16 or int64"),
        (save({"clean": np.arange(3.0), "triggered": np.arange(3)}), r"clean is float64 \(3,\)"),
        (
            save({"clean": np.arange(3), "triggered": np.arange(3), "certified": np.arange(3)}),
            r"certified is int64 \(3,\), not bool \(N,\)",
        ),
        (save({"clean": np.array(3), "triggered": np.array(4)}), r"is int64 \(\), not int16"),
    ],
)
def test_what_is_no_file_of_predictions_is_said(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        unpack(content)


def test_counts_follow_from_the_predictions_of_a_run(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry)
    session = tiny.session(defenses=("none",))
    session.run()
    labels = session.library.load("task", "test").labels
    assert labels is not None
    for record in read_records(tiny.store / "records" / "tiny"):
        assert record.packed is not None
        clean, triggered, certified = unpack(record.packed)
        assert certified is None
        predictions = Predictions(torch.from_numpy(clean), torch.from_numpy(triggered))
        assert count(predictions, labels, record.target) == record.counts
        assert record.counts.correct_triggered is not None
        assert record.metrics is not None
        assert record.metrics.ra == pytest.approx(
            100 * record.counts.correct_triggered / record.counts.nontarget, abs=1e-4
        )
        assert record.baseline is not None
        assert record.baseline.ra_b is not None


class Sure(Evaluator):
    """Calls every image class 1, the target, and certifies every second one. The test images' classes are 0, 1, 2, 0,
    1, 2, ...: ten of thirty are right, and five of these are certified."""

    name = "sure"
    paper = "test"
    version = "1"

    def evaluate(self, probe: Probe) -> Predictions:
        ones = torch.ones(len(probe.test), dtype=torch.int64)
        return Predictions(ones, ones, torch.arange(len(ones)) % 2 == 0)


def test_an_evaluator_that_certifies(tmp_path: Path) -> None:
    check_method(Sure)
    board = f'evaluators = ["sure", "mlp"]\n{TINY}'
    tiny = Tiny(tmp_path, load_registry(extra={"sure": offering(benchbd_evaluators=[Sure])}), board)
    tiny.run(defenses=("none",))
    records = read_records(tiny.store / "records" / "tiny")
    for record in records:
        assert record.counts is not None
        assert record.metrics is not None
        assert record.packed is not None
        if record.evaluator == "mlp":
            assert (record.counts.certified, record.metrics.certified, unpack(record.packed)[2]) == (None, None, None)
            continue
        assert (record.counts.total, record.counts.correct, record.counts.certified) == (30, 10, 5)
        assert record.metrics.certified == 16.6667
        assert record.baseline_counts is not None
        assert record.baseline_counts.certified == 5
    files = build("tiny", records, tmp_path / "out")
    told = {(line["evaluator"], line["certified"]) for line in csv.DictReader(io.StringIO(files["board.csv"]))}
    assert told == {("sure", "16.6667"), ("mlp", "")}
    assert {row["certified"] for row in json.loads(files["board.json"])["rows"]} == {16.6667, None}
    assert re.search(r"ASR non-target +\| +RA +\| +Certified +\|", files["README.md"])
    assert "Certified accuracy. " in files["board.tex"]
    without = build("tiny", [record for record in records if record.evaluator == "mlp"])
    assert not any("ertified" in text for text in without.values())


def fake(content: bytes) -> dict[str, Any]:
    return {"predictions": hashlib.sha256(content).hexdigest()}


def test_a_file_that_is_not_that_of_the_record_is_refused(tmp_path: Path) -> None:
    (path,) = write_records([make_record()], tmp_path)
    kept, text = path_of(path).read_bytes(), path.read_text()
    other = kept[:-1] + bytes([kept[-1] ^ 1])
    short = pack(np.zeros(3, int), np.zeros(3, int))
    unhit = pack(np.zeros(20_000, int), np.zeros(20_000, int))
    for content, fields, wrong in (
        (other, {}, r"predictions: \w{12}, but the file beside the record has \w{12}"),
        (None, {}, r"predictions: \w{12}, but there is no such file beside the record"),
        (b"x", fake(b"x"), "predictions: the file beside the record is none: no safetensors"),
        (short, fake(short), "counts.total: 20000, but the predictions give 3"),
        (unhit, fake(unhit), "counts.hits: 19800, but the predictions give 0"),
        (kept, {"predictions": None}, "predictions: missing; counts and predictions go together"),
    ):
        path_of(path).unlink(missing_ok=True)
        if content is not None:
            path_of(path).write_bytes(content)
        path.write_text(json.dumps(json.loads(text) | fields))
        with pytest.raises(DataError, match=wrong):
            read_records(tmp_path)


def test_what_is_certified_follows_from_the_predictions(tmp_path: Path) -> None:
    counts = counts_of(TAKEN).model_copy(update={"certified": 4_000})  # of 20,000 images, 16,000 correct: 80 %
    record = make_record(counts=counts)
    (path,) = write_records([record], tmp_path)
    (read,) = read_records(tmp_path)
    assert read.metrics is not None
    assert (read, read.metrics.certified) == (record, 20.0)
    clean, hits = (np.full(20_000, 13), np.where(np.arange(20_000) < 19_800, 12, 13))
    text = path.read_text()
    for sure, wrong in (
        (3_999, "certified: 4000, but the predictions, of which 3999 are certified and 16000 correct, give 0 to"),
        (9_000, "certified: 4000, but the predictions, of which 9000 are certified and 16000 correct, give 5000"),
        (None, "predictions: nothing is certified, but the counts say what is"),
    ):
        content = pack(clean, hits, None if sure is None else np.arange(20_000) < sure)
        path_of(path).write_bytes(content)
        path.write_text(json.dumps(json.loads(text) | fake(content)))
        with pytest.raises(DataError, match=wrong):
            read_records(tmp_path)
    for part in ("counts", "metrics"):
        changed = json.loads(text)
        changed[part]["certified"] = None
        path_of(path).write_bytes(record.packed or b"")
        path.write_text(json.dumps(changed))
        with pytest.raises(DataError, match="certified: "):
            read_records(tmp_path)


def test_a_record_without_counts_has_no_predictions(tmp_path: Path) -> None:
    write_records([make_record()], tmp_path)
    (path,) = write_records([make_record(metrics=None, status="error", reason="x")], tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    (record,) = read_records(tmp_path)
    assert record.predictions is None


def test_predictions_go_with_their_record_into_a_leaderboard(tmp_path: Path) -> None:
    first, second = make_record(), make_record("none", metrics=(82.0, 5.0, 3.0))
    build("demo", [first, second], tmp_path)
    folder = tmp_path / "records"
    assert read_records(folder) == [first, second]
    build("demo", [first], tmp_path)
    assert {path.name for path in folder.iterdir()} == {first.name, path_of(folder / first.name).name}

"""Replicates: one key measured by several laboratories is pooled; anything else that is twice is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchbd.base.errors import DataError
from benchbd.planning.board import load_board
from benchbd.records.files import place_of, read_each, read_records, write_records
from benchbd.records.models import Record
from benchbd.records.replicates import as_replicate, is_replicate, pooled
from benchbd.report import leaderboard
from benchbd.report.rows import Order, summarise

from ..records_factory import make_record

A, B, C = "a" * 16, "b" * 16, "c" * 16


def measured(source: str | None, asr: float = 90.0, seed: int = 1) -> Record:
    return make_record(seed=seed, metrics=(80.0, asr, asr), source=source)


def test_records_of_one_key_are_replicates_of_the_first() -> None:
    one, two, three = measured(A), measured(B, asr=60.0), measured(C, asr=40.0)
    (first,) = pooled([one, two, three])
    assert first is one
    assert [each.source for each in first.replicates] == [B, C]
    assert all(is_replicate(each) for each in first.replicates)
    assert place_of(first.replicates[0]) == f"replicates/{B}/{one.name}"
    (again,) = pooled([*pooled([one, two]), *pooled([three, two])])  # in any grouping, each source once
    assert [each.source for each in again.replicates] == [B, C]


def test_equal_records_are_one() -> None:
    (only,) = pooled([measured(A), measured(A)])
    assert only.replicates == ()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (measured(A, asr=60.0), "two records of one key and one source differ"),
        (measured(None, asr=60.0), "two records of one key and one source differ"),
        (measured(B).model_copy(update={"key": "0" * 64}), "two records of one cell, keys .* and 000000000000"),
    ],
)
def test_other_records_of_one_cell_are_an_error(other: Record, told: str) -> None:
    with pytest.raises(DataError, match=told):
        pooled([measured(A), other])


def test_replicates_are_written_beside_and_read_back(tmp_path: Path) -> None:
    written = write_records(pooled([measured(A), measured(B, asr=60.0)]), tmp_path)
    assert [path.relative_to(tmp_path).parts[:-1] for path in written] == [(), ("replicates", B)]
    (first,) = read_records(tmp_path)
    assert (first.source, [each.source for each in first.replicates]) == (A, [B])
    each = [found for found in read_each(tmp_path) if isinstance(found, Record)]
    assert [place_of(found) for found in each] == [first.name, f"replicates/{B}/{first.name}"]


def test_a_replicate_lies_in_the_folder_of_its_source(tmp_path: Path) -> None:
    write_records([measured(A), as_replicate(measured(B, asr=60.0))], tmp_path)
    (tmp_path / "replicates" / B).rename(tmp_path / "replicates" / C)
    with pytest.raises(DataError, match=f"a replicate of source {B}, in the folder of '{C}'"):
        read_records(tmp_path)


def test_a_row_has_the_figures_of_the_first_and_tells_the_others(tmp_path: Path) -> None:
    records = pooled([measured(A), measured(B, asr=60.0), measured(A, seed=2)])
    (row,) = summarise(records, Order(), off_board=False)
    alone = summarise([measured(A), measured(A, seed=2)], Order(), off_board=False)[0]
    assert (row.asr_nontarget, row.acc) == (alone.asr_nontarget, alone.acc)
    assert row.sources == 1  # seed 2 was measured by one laboratory alone
    figures = [each.metrics.asr_nontarget for each in (records[0], *records[0].replicates) if each.metrics]
    assert figures[0] != figures[1]
    told = f"ASR non-target {figures[0]:.1f}, {figures[1]:.1f} (seed 1)"
    assert any(note.startswith("reproduced by 2: ACC ") and note.endswith(told) for note in row.notes)
    both = pooled([measured(A), measured(B, asr=60.0), measured(A, seed=2), measured(B, asr=55.0, seed=2)])
    (row,) = summarise(both, Order(), off_board=False)
    assert row.sources == 2
    assert "sources" in leaderboard.document(both).data["rows"][0]
    assert "sources" not in leaderboard.document([measured(A)]).data["rows"][0]


def test_a_build_keeps_replicates_and_removes_those_that_are_gone(tmp_path: Path) -> None:
    first = measured(A)
    for replicates in ((B, C), (C,)):
        known = pooled([measured(A), *(measured(source, asr=60.0) for source in replicates)])
        leaderboard.build(first.board, known, tmp_path)
        assert sorted(path.parent.name for path in (tmp_path / "records").glob("replicates/*/*.json")) == [*replicates]


def test_a_folder_that_carries_a_boards_file_is_that_board(tmp_path: Path) -> None:
    from benchbd.planning.board import carry

    carry("demo", tmp_path)
    assert load_board(tmp_path).model_dump() == load_board("demo").model_dump()
    text = (tmp_path / "board.toml").read_text()
    carry("smoke", tmp_path)
    assert (tmp_path / "board.toml").read_text() == text  # the folder's own file stays

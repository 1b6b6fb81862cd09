"""Badges: of the highest tier that a record held, for its content alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchbd.audit.again import Told
from benchbd.audit.badges import FILE, read_badges, renewed, write_badges
from benchbd.base.errors import DataError
from benchbd.records.files import place_of

from ..records_factory import make_record

RECORDS = [make_record(seed=seed) for seed in (1, 2, 3, 4)]
A, B, C, D = map(place_of, RECORDS)


def badge(tier: int, verdict: str, digest: str = "0" * 64) -> str:
    return f'{{"a": {{"tier": {tier}, "verdict": "{verdict}", "sha256": "{digest}"}}}}'


def test_a_record_has_the_badge_of_the_highest_tier_that_it_held() -> None:
    verdicts = [(2, Told(A, "equal", "")), (2, Told(B, "compatible", "")), (2, Told(C, "equal", ""))]
    verdicts += [(3, Told(A, "compatible", "")), (3, Told(B, "not checked", "")), (3, Told(C, "different", "x"))]
    made = renewed({}, verdicts, RECORDS, "us")
    assert {place: (each.tier, each.verdict, each.by) for place, each in made.items()} == {
        A: (3, "compatible", "us"),
        B: (2, "compatible", "us"),
    }
    again = renewed(made, [(2, Told(A, "equal", "")), (2, Told(D, "equal", ""))], RECORDS)
    assert {place: each.tier for place, each in again.items()} == {A: 3, B: 2, D: 2}


def test_a_badge_is_of_the_records_content(tmp_path: Path) -> None:
    made = renewed({}, [(2, Told(A, "equal", "")), (2, Told(B, "equal", ""))], RECORDS)
    write_badges(tmp_path, made)
    assert read_badges(tmp_path, RECORDS) == made
    edited = [RECORDS[0].model_copy(update={"author": "another"}), *RECORDS[1:]]
    assert read_badges(tmp_path, edited).keys() == {B}
    assert read_badges(tmp_path / "none", RECORDS) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x", "Invalid JSON"),
        (badge(1, "equal"), "a.tier: Input should be 2 or 3"),
        (badge(3, "different"), "a.verdict: Input should be"),
        (badge(3, "equal", "x"), "a.sha256: String should match"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match=told):
        read_badges(tmp_path, RECORDS)

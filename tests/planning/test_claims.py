"""A board's claims of its methods: read strictly, and outside every identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchbd.api import Session
from benchbd.base.errors import UsageError
from benchbd.planning.board import boards_folder, load_board
from benchbd.planning.claims import Claim, Reported
from benchbd.planning.selection import Selection
from benchbd.registry import Registry

BOARD = 'rows = [{ pretrain = "shapes", tasks = ["shapes:7"] }]\n'
CLAIMS = """
[claims.ft]
confirmed = " A. Author, https://example.org/1 "
supersedes = ["fp", "nad"]
challenged = "adaptive"
reported = { acc = 81, asr = 1.25, source = "A. Author, Table 2" }
[claims.badencoder]
confirmed = "B. Author"
"""


def test_a_board_reads_its_claims(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(BOARD + CLAIMS)
    assert load_board(path).claims == {
        "ft": Claim(
            confirmed="A. Author, https://example.org/1",
            supersedes=("fp", "nad"),
            challenged="adaptive",
            reported=Reported(acc=81.0, asr=1.25, source="A. Author, Table 2"),
        ),
        "badencoder": Claim(confirmed="B. Author"),
    }
    path.write_text(BOARD)
    assert load_board(path).claims == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('[claims.a]\nconfirmd = "x"', "unknown field of claims.a 'confirmd': did you mean 'confirmed'"),
        ('[claims.a]\nreported = { ac = 1, source = "x" }', "field of claims.a.reported 'ac': did you mean 'acc'"),
        ("[claims.a]\nconfirmed = true", "claims.a.confirmed: input should be a valid string"),
        ('[claims.a]\nconfirmed = "  "', "claims.a.confirmed: string should have at least 1 character"),
        ('[claims.a]\nconfirmed = "x\\ny"', "claims.a.confirmed: must be one line"),
        ("[claims.a]\nreported = { acc = 1 }", "claims.a.reported.source: field required"),
        ('[claims.a]\nreported = { source = "x" }', "claims.a.reported: needs acc, asr, or both"),
        ('[claims.a]\nreported = { asr = 101, source = "x" }', "claims.a.reported.asr: input should be less than"),
        ('[claims.a]\nsupersedes = ["a"]', "claims: a supersedes a: a row cannot replace itself"),
        (
            '[claims.a]\nsupersedes = ["b"]\n[claims.b]\nsupersedes = ["c", "d"]\n[claims.d]\nsupersedes = ["a"]',
            r"(?=.*a supersedes b)(?=.*b supersedes d)(?=.*d supersedes a).*: a row cannot replace itself",
        ),
    ],
)
def test_a_claim_that_makes_no_sense_is_one_line(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(BOARD + text)
    with pytest.raises(UsageError, match=wrong) as error:
        load_board(path)
    assert "\n" not in str(error.value)


def test_claims_change_no_key_and_take_no_board_off_its_own(tmp_path: Path, registry: Registry) -> None:
    def planned(name: str, text: str) -> tuple[dict[str, str], list[str]]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "board.toml").write_text(text)
        selection = Selection.of(attacks=["badencoder"], defenses=["ft", "nad"])
        session = Session.open(
            str(tmp_path / name), selection, store=tmp_path / "store", device="cpu", registry=registry
        )
        plan = session.plan(strict=True)
        return {f"{stage.kind} {stage.label}": stage.key for stage in plan.stages}, plan.departures

    text = (boards_folder() / "smoke" / "board.toml").read_text()
    plain, claimed = planned("plain", text), planned("claimed", text + CLAIMS)
    assert plain == claimed
    assert plain[0]
    assert plain[1] == []


def test_a_copy_of_a_board_is_that_board_whatever_it_claims(tmp_path: Path) -> None:
    copy = tmp_path / "smoke" / "board.toml"
    copy.parent.mkdir()
    text = (boards_folder() / "smoke" / "board.toml").read_text()
    copy.write_text(text + CLAIMS)
    assert load_board(copy).claims.keys() == {"ft", "badencoder"}
    copy.write_text(text.replace("steps = 5", "steps = 6") + CLAIMS)
    with pytest.raises(UsageError, match="'smoke' is that of a board of benchbd"):
        load_board(copy)

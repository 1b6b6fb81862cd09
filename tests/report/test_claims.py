"""What a board claims stands beside its figures: marks, rows that were replaced, challenges, reported figures."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchbd import Role
from benchbd.base.errors import UsageError
from benchbd.contract.roles import ROLES as ROLES_OF
from benchbd.planning.board import Board
from benchbd.planning.claims import Claim, Reported
from benchbd.records.files import write_records
from benchbd.records.models import Record
from benchbd.report.claims import check
from benchbd.report.leaderboard import document
from benchbd.report.reviewed import document as reviewed
from benchbd.report.rows import BY_NAME, Order
from benchbd.report.summary import Summary, remarks, summaries
from benchbd.report.writers.forms import FORMATS, write

from ..cli.test_cli import call, one_line
from ..records_factory import make_record
from .test_summary import ROLES, board, cell

UNCONFIRMED = "Settings not confirmed by their authors"


def claiming(**claims: Claim) -> Order:
    return replace(
        BY_NAME, attacks=["none", "badencoder"], claims={name.replace("_", "-"): c for name, c in claims.items()}
    )


def only(records: list[Record], order: Order) -> Summary:
    (summary,) = summaries(records, order)
    return summary


def marks(summary: Summary) -> dict[str, tuple[str, ...]]:
    """The footnotes of every row."""
    return {each.defense: summary.of(each).notes for each in summary.standings if summary.of(each).notes}


def challenge(defense: str, seed: int, asr: float, **fields: Any) -> Record:
    return make_record("adaptive", defense, seed, (80.0, asr, asr), defense_role=ROLES.get(defense, "method"), **fields)


def test_methods_with_authors_are_named_in_one_remark_until_one_confirms() -> None:
    assert list(remarks([only(board(), BY_NAME)])) == [f"{UNCONFIRMED}: attack badencoder; defenses good, peek."]
    order = claiming(good=Claim(confirmed="G. Author, #7"), badencoder=Claim(confirmed="J. Jia, #8"))
    summary = only(board(), order)
    assert list(remarks([summary])) == [
        f"{UNCONFIRMED}: defense peek.",
        "Settings of attack badencoder confirmed by its authors: J. Jia, #8.",
    ]
    assert marks(summary) == {"good": ("confirmed by its authors: G. Author, #7",)}
    text = write(document(board(), order=order), "text", 120)
    assert "good [1]" in text
    assert "[1] confirmed by its authors: G. Author, #7" in text
    everyone = claiming(**{name: Claim(confirmed="x") for name in ("good", "peek", "badencoder")})
    assert UNCONFIRMED not in "".join(remarks([only(board(), everyone)]))


def test_a_superseded_row_stands_apart() -> None:
    records = [*board(), *(cell("old", seed, asr) for seed, asr in enumerate((20, 21, 22), start=1))]
    assert [each.defense for each in only(records, BY_NAME).standings if each.best] == ["good", "old", "ft"]
    summary = only(records, claiming(good=Claim(supersedes=("old",))))
    assert [(each.defense, each.best, each.worst) for each in summary.standings if each.best] == [
        ("good", 1, 1),
        ("ft", 2, 2),
    ]
    assert marks(summary) == {"old": ("superseded by good",)}
    (old,) = (each for each in summary.standings if each.defense == "old")
    assert old.asr.mean == 21
    rows = write(document(records, order=claiming(good=Claim(supersedes=("old",)))), "markdown").splitlines()
    (row,) = (line for line in rows if "| old [" in line and "20.00" not in line and "| badencoder" not in line)
    assert row.split("|")[1].strip() == "-"


def test_a_board_whose_other_row_was_superseded_still_has_its_summary() -> None:
    two = [record for record in board() if record.defense in ("none", "good", "ft")]
    (summary,) = summaries(two, claiming(good=Claim(supersedes=("ft",))))
    assert [(each.defense, each.best) for each in summary.standings] == [("good", 1), ("ft", None), ("none", None)]


def test_a_challenge_shows_the_mean_that_its_records_measured_and_counts_for_no_rank() -> None:
    records = [
        *board(),
        *(challenge("good", seed, asr) for seed, asr in ((1, 60.0), (2, 70.0), (3, 83.0))),
        *(challenge("good", seed, 99.0, point={"trigger.size": 3}) for seed in (1, 2)),  # of a sweep
        *(challenge("good", seed, 99.0, on_board=False, departures=["seed"]) for seed in (4, 5)),
        *(challenge("none", seed, 98.0) for seed in (1, 2, 3)),
    ]
    order = claiming(good=Claim(challenged="adaptive"))
    summary = only(records, order)
    assert marks(summary) == {"good": ("challenged by adaptive: ASR non-target 71.0",)}  # (60 + 70 + 83) / 3
    assert summary.standings == only(board(), BY_NAME).standings
    assert "adaptive" not in "".join(remarks([summary]))
    (told,) = json.loads(write(document(records, order=order), "json"))["summary"]
    (good,) = (each for each in told["standings"] if each["defense"] == "good")
    assert (good["challenged_by"], good["challenged_asr_nontarget"]) == ("adaptive", 71.0)


def test_an_attack_of_the_grid_that_challenges_counts_for_ranks_too() -> None:
    found = {"good": 70, "ft": 40, "scratch": 10, "peek": 3, "none": 98}
    records = [*board(), *(challenge(name, seed, asr) for name, asr in found.items() for seed in (1, 2, 3))]
    order = claiming(good=Claim(challenged="adaptive"))
    listed = only(records, replace(order, attacks=["none", "badencoder", "adaptive"]))
    assert listed.standings[0].defense == "good"
    assert listed.standings[0].asr.mean == pytest.approx((5 + 70) / 2)
    assert only(records, order).standings[0].asr.mean == 5


def test_a_challenge_without_records_or_figures_says_so() -> None:
    order = claiming(good=Claim(challenged="adaptive"))
    summary = only(board(), order)
    assert marks(summary) == {"good": ("challenged by adaptive: no record",)}
    assert "The challenge of good by adaptive lacks its records (mlp)." in list(remarks([summary]))
    (told,) = json.loads(write(document(board(), order=order), "json"))["summary"]
    assert told["standings"][0]["challenged_asr_nontarget"] is None
    lost = make_record("adaptive", "good", 1, None, status="error", reason="NaN")
    assert marks(only([*board(), lost], order)) == {"good": ("challenged by adaptive: no figure (1 error)",)}
    weak = challenge("good", 1, 6.0, undefended=make_record(metrics=(80.0, 4.0, 4.0)).metrics)
    assert marks(only([*board(), weak], order)) == {
        "good": ("challenged by adaptive: ASR non-target 6.0 (1 attack-failed)",)
    }


def test_reported_figures_stand_beside_the_measured_ones_and_count_for_no_rank() -> None:
    order = claiming(ft=Claim(reported=Reported(acc=84.5, asr=0.0, source="F. Author, Table 3")))
    plain, told = document(board(), order=claiming()), document(board(), order=order)
    assert "Reported" not in write(plain, "markdown")
    rows = [line for line in write(told, "markdown").splitlines() if line.startswith("|")]
    head, (row,) = rows[0], [line for line in rows if line.split("|")[3].strip() == "ft"][:1]
    at = [cell.strip() for cell in head.split("|")].index("Reported ACC")
    assert [cell.strip() for cell in row.split("|")][at : at + 2] == ["84.5 [1]", "0 [1]"]
    assert "[1] reported by its authors: F. Author, Table 3" in write(told, "markdown")
    assert only(board(), order).standings == only(board(), claiming()).standings
    assert "Reported: figures of a defense's authors" in write(told, "text", 120)


def test_json_and_csv_have_the_claims_as_fields() -> None:
    order = claiming(
        ft=Claim(supersedes=("good",), reported=Reported(asr=0.0, source="Table 3")), badencoder=Claim(confirmed="J.")
    )
    made = document(board(), order=order)
    data = json.loads(write(made, "json"))
    standings = {each["defense"]: each for each in data["summary"][0]["standings"]}
    assert standings["good"]["superseded_by"] == ["ft"]
    assert [standings["ft"][f"reported_{name}"] for name in ("acc", "asr", "source")] == [None, 0.0, "Table 3"]
    assert standings["ft"]["confirmed"] is None
    lines = {line["defense"]: line for line in csv.DictReader(io.StringIO(write(made, "csv")))}
    assert lines["good"]["superseded_by"] == "ft"
    assert lines["ft"]["reported_asr"] == "0.0"
    assert lines["ft"]["attack_confirmed"] == "J."
    assert "reported_acc" not in lines["ft"]  # no row has it
    assert {row["superseded_by"] == ["ft"] for row in data["rows"] if row["defense"] == "good"} == {True}
    plain = json.loads(write(document(board(), order=claiming()), "json"))["rows"][0]
    assert not {"attack_confirmed", "superseded_by", "reported_asr"} & plain.keys()


def test_every_form_writes_claims_as_text() -> None:
    strange = "\x1b[2J<script>|\u202e& $x_1"
    order = claiming(
        good=Claim(confirmed=strange, challenged=strange, reported=Reported(acc=1.0, source=strange)),
        ft=Claim(supersedes=("peek",)),
    )
    for form in FORMATS:
        text = write(document(board(), order=order), form)
        assert "\x1b" not in text
        assert form == "json" or form == "csv" or "\u202e" not in text


@pytest.mark.parametrize(
    ("claims", "wrong"),
    [
        ({"goood": Claim(confirmed="x")}, "unknown defense or attack in claims 'goood': did you mean 'good'?"),
        (
            {"good": Claim(supersedes=("badencoder",))},
            "unknown defense in claims.good.supersedes 'badencoder': known: ft, good, none",
        ),
        ({"good": Claim(supersedes=("fft",))}, "unknown defense in claims.good.supersedes 'fft': did you mean 'ft'?"),
        ({"badencoder": Claim(supersedes=("ft",))}, "claims.badencoder.supersedes: is for a defense, and badencoder"),
        ({"badencoder": Claim(reported=Reported(acc=1, source="x"))}, "claims.badencoder.reported: is for a defense"),
    ],
)
def test_a_claim_about_an_unknown_row_is_an_error(claims: dict[str, Claim], wrong: str, tmp_path: Path) -> None:
    own = Board(name="own", rows=[{"pretrain": "a", "tasks": ["b:1"]}], claims=claims)
    records = [record for record in board() if record.defense in ("none", "good", "ft")]
    with pytest.raises(UsageError) as error:
        check(own, records, tmp_path)
    assert wrong in str(error.value)
    assert str(error.value).startswith("board own: ")


def test_a_table_of_a_few_records_ignores_claims_about_others() -> None:
    order = claiming(unseen=Claim(supersedes=("older",), challenged="adaptive"))
    assert only(board(), order).standings == only(board(), claiming()).standings
    assert "unseen" not in write(document(board(), order=order), "text", 120)


def test_a_row_is_known_if_the_boards_own_records_have_it(tmp_path: Path) -> None:
    own = Board(name="own", rows=[{"pretrain": "a", "tasks": ["b:1"]}], claims={"good": Claim(supersedes=("old",))})
    check(own, [cell("good", 1, 5), cell("old", 1, 5)], tmp_path)
    with pytest.raises(UsageError, match=r"unknown defense in claims\.good\.supersedes 'old'"):
        check(own, [cell("good", 1, 5)], tmp_path)
    write_records([cell("old", 1, 5)], tmp_path)
    check(own, [cell("good", 1, 5)], tmp_path)


def test_a_build_ends_in_one_line_at_an_unknown_row(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "board.toml").write_text(
        'rows = [{ pretrain = "a", tasks = ["b:1"] }]\n[claims.goood]\nconfirmed = "x"\n'
    )
    write_records([cell(r.defense, r.seed, 10, board="own") for r in board()], tmp_path / "own" / "records")
    for more in ([], ["--out", tmp_path / "out"], ["--site", tmp_path / "site"]):
        done = call("leaderboard", "build", tmp_path / "own", "--records", tmp_path / "own" / "records", *more)
        one_line(done, "unknown defense or attack in claims 'goood': did you mean 'good'?")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "site").exists()


def test_the_review_says_who_has_not_confirmed() -> None:
    published, added = [r for r in board() if r.defense != "good"], [r for r in board() if r.defense == "good"]
    added += [make_record("new-attack", "none", 1, (80.0, 99.0, 98.0))]
    line = f"{UNCONFIRMED}: attack new-attack; defense good."
    assert line in reviewed(published, added, claiming(), board="demo").summary
    order = claiming(good=Claim(confirmed="G."), new_attack=Claim(confirmed="N."))
    assert UNCONFIRMED not in "".join(reviewed(published, added, order, board="demo").summary)


@pytest.mark.parametrize("role", ROLES_OF["defense"])
def test_methods_have_authors_and_references_are_benchbds_own(role: Role) -> None:
    records = [record for record in board() if record.defense in ("none", "good", "ft")]
    records += [make_record("badencoder", "third", seed, (80.0, 9.0, 9.0), defense_role=role) for seed in (1, 2, 3)]
    (remark,) = remarks([only(records, BY_NAME)])
    defenses = "defenses good, third" if role in (Role.METHOD, Role.ORACLE) else "defense good"
    assert remark == f"{UNCONFIRMED}: attack badencoder; {defenses}."

"""From records to tables: figures computed by hand, order, marks, and the same bytes every time."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchbd.base.errors import DataError, StoreError, UnknownNameError
from benchbd.cli.results import build_leaderboard
from benchbd.planning.board import boards_folder
from benchbd.records.files import read_records, write_records
from benchbd.records.models import Cost, Record
from benchbd.records.predictions import path_of
from benchbd.report.leaderboard import build, document, frame, frame_of_rows
from benchbd.report.rows import BY_NAME, Order
from benchbd.report.writers.columns import WIDTH
from benchbd.report.writers.forms import FORMATS, write

from ..records_factory import MACHINE, TAKEN, counts_of, digest, make_record, paper_like

ORDER = Order(
    attacks=["none", "badencoder"],
    defenses=["none", "scratch", "ft", "mimic"],
    tasks=[("cifar10", "gtsrb:12"), ("cifar10", "svhn:1"), ("cifar10", "stl10:9")],
)


def render(records: list[Record], form: str, title: str = "", order: Order = BY_NAME, off_board: bool = False) -> str:
    return write(document(records, title, order, off_board), form)


def terminal_table(records: list[Record], order: Order = BY_NAME, width: int = WIDTH) -> str:
    """What ``benchbd run`` prints."""
    return write(document(records, order=order, off_board=True), "text", width)


def only(table: pd.DataFrame, **where: object) -> pd.Series:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def markdown_rows(text: str) -> list[dict[str, str]]:
    """The pipe tables of a text, parsed as a browser parses them."""
    rows: list[dict[str, str]] = []
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")]
        cells = [cell.replace("\0", "|") for cell in cells]
        if not header:
            header = cells
        elif not set(line) <= set("|:-"):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def test_frame_has_a_line_per_record_with_flat_columns() -> None:
    records = [make_record(forwards=9_010, seconds=4.5), make_record(metrics=None, baseline=None, status="n/a", seed=1)]
    table = frame(records)
    assert list(table.columns[:4]) == ["attack", "defense", "pretrain", "task"]
    first, second = table.iloc[0], table.iloc[1]
    assert (first.task, first.target, first.target_name) == ("gtsrb:12", 12, "priority road")
    assert (first.acc, first.asr, first.asr_nontarget) == (80.0, 99.0, 98.0)
    assert (first.ca, first.asr_b, first.asr_b_nontarget) == (82.0, 5.0, 3.0)
    assert (first.seconds, first.image_forwards, first.key) == (4.5, 9010, records[0].key)
    assert second.status == "n/a"
    assert pd.isna(second.acc)
    assert pd.isna(second.ca)


def test_frame_tells_points_and_tasks_beside_apart() -> None:
    point = {"trigger.size": 3, "clean.images": 250}
    records = [make_record(), make_record(point=point), make_record(beside=["svhn:1", "stl10:9"])]
    table = frame(records)
    assert table.point.tolist() == ["", "clean.images=250, trigger.size=3", ""]
    assert table.beside.tolist() == ["", "", "svhn:1 + stl10:9"]


def test_ra_has_columns_where_records_count_it() -> None:
    records = [make_record(seed=seed, metrics=(80.0, 9.0, acc)) for seed, acc in ((0, 40.0), (1, 50.0))]
    row = only(frame_of_rows(records), defense="none")
    assert (row.ra, row.ra_b) == (55.0, 82.0)  # 55 of 60 and 50; the trigger lowers the clean encoder's accuracy to 82
    assert row.ra_half == pytest.approx(12.706205 * 7.0710678 / 2**0.5, abs=1e-4)
    (line,) = csv.DictReader(io.StringIO(render(records, "csv")))
    assert (line["ra"], line["ra_b"]) == ("55.0", "82.0")
    assert json.loads(render(records, "json"))["rows"][0]["ra"] == 55.0
    assert list(frame(records).ra) == [60.0, 50.0]
    old = [record for record in read_records(boards_folder() / "cifar10-small" / "records") if record.seed == 1]
    assert not {"ra", "ra_half", "ra_b", "ra_b_half"} & json.loads(render(old, "json"))["rows"][0].keys()
    assert "ra" not in render(old, "csv").splitlines()[0].split(",")


def test_a_record_is_compared_with_its_own_cell_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, equal = [], Record.__eq__

    def counted(one: Record, other: object) -> bool:
        compared.append(one)
        return equal(one, other)

    records = [make_record(seed=seed, metrics=(80.0, 9.0, 9.0)) for seed in range(30)]
    monkeypatch.setattr(Record, "__eq__", counted)
    document(records)
    assert len(compared) <= len(records)


def test_certified_accuracy_has_a_column_where_a_row_has_it() -> None:
    counts = [counts_of(TAKEN).model_copy(update={"certified": certified}) for certified in (2_000, 4_000)]
    sure = {"defense": "ft", "undefended": make_record().metrics}
    records = [make_record(), *(make_record(seed=seed, counts=each, **sure) for seed, each in enumerate(counts))]
    row = only(frame_of_rows(records), defense="ft")
    assert row.certified == 15.0  # the mean of 10 and 20
    text = render(records, "text")
    assert "cert." in text.splitlines()[2]
    assert "cert.: right, and certified." in " ".join(text.split())
    assert "Certified: percent of test images" in render(records, "markdown")
    ft, none = sorted(csv.DictReader(io.StringIO(render(records, "csv"))), key=lambda line: line["defense"])
    assert (ft["certified"], none["certified"]) == ("15.0", "")
    assert [row["certified"] for row in json.loads(render(records, "json"))["rows"]] == [None, 15.0]
    assert not any("ertified" in render([make_record()], form) for form in ("text", "markdown", "csv", "json", "latex"))


def test_means_intervals_and_differences_by_hand() -> None:
    records = [
        make_record(seed=0, metrics=(80.0, 99.0, 98.0), baseline=(82.0, 5.0, 3.0)),
        make_record(seed=1, metrics=(82.0, 97.0, 96.0), baseline=(83.0, 5.0, 4.0)),
        make_record(seed=2, metrics=(84.0, 98.0, 97.0), baseline=(81.0, 5.0, 2.0)),
        make_record(defense="scratch", seed=1, metrics=(60.0, 9.0, 8.0), baseline=(83.0, 5.0, 4.0), seconds=60.0),
    ]
    undefended = only(frame_of_rows(records), defense="none")
    assert undefended.n == 3
    assert undefended.seeds == [0, 1, 2]
    assert undefended.acc == 82.0
    # Student t for 95 % and 2 degrees of freedom is 4.302653; the standard deviation of 80, 82, 84 is 2.
    assert undefended.acc_half == pytest.approx(4.302653 * 2 / 3**0.5, abs=1e-4)
    assert (undefended.asr, undefended.asr_nontarget) == (98.0, 97.0)
    # Seed by seed: -2, -1, +3 and 95, 92, 95.
    assert undefended.acc_to_floor == 0.0
    assert undefended.asr_nontarget_to_floor == 94.0
    # Only seed 1 has a scratch: 82 - 60 and 96 - 8.
    assert (undefended.acc_to_scratch, undefended.asr_nontarget_to_scratch) == (22.0, 88.0)
    assert pd.isna(undefended.acc_to_scratch_half)
    assert undefended.notes == ["Δ scratch: over 1 of 3 seeds, those with its run"]
    scratch = only(frame_of_rows(records), defense="scratch")
    assert (scratch.n, scratch.seconds, scratch.acc_to_floor, scratch.acc_to_scratch) == (1, 60.0, -23.0, 0.0)
    assert pd.isna(scratch.acc_half)


def test_an_attack_without_a_scratch_of_its_own_borrows_that_of_the_clean_encoder() -> None:
    records = [make_record("none", "scratch", metrics=(60.0, 9.0, 8.0)), make_record("bassl", "ft")]
    assert only(frame_of_rows(records), attack="bassl").acc_to_scratch == 20.0


def test_differences_to_bn_are_those_of_the_same_encoder() -> None:
    clean = make_record("none", "bn", seed=1, metrics=(75.0, 4.0, 2.0))
    control = make_record(defense="bn", seed=1, metrics=(70.0, 90.0, 88.0))
    records = [make_record(seed=0), make_record(seed=1, metrics=(80.0, 99.0, 98.0)), clean, control]
    row = only(frame_of_rows(records), attack="badencoder", defense="none")
    assert (row.acc_to_bn, row.asr_nontarget_to_bn, row.bn_seeds) == (10.0, 10.0, [1])
    assert row.notes == ["Δ bn: over 1 of 2 seeds, those with its run"]
    assert only(frame_of_rows(records), attack="none", defense="bn").acc_to_bn == 0.0
    assert pd.isna(only(frame_of_rows([make_record(), clean]), attack="badencoder").acc_to_bn)  # not its encoder's
    moved = control.model_copy(update={"stages": {**control.stages, "attack": "f" * 64}})
    assert pd.isna(only(frame_of_rows([make_record(seed=1), moved]), defense="none").acc_to_bn)


def test_differences_to_the_own_floor_are_those_of_the_same_defense_of_the_clean_encoder() -> None:
    def repaired(attack: str, seed: int, asr: float, lr: float = 0.1) -> Record:
        record = make_record(attack, "ft", seed=seed, metrics=(79.0, 50.0, asr))
        options = {"method": {"name": "ft", "options": {"lr": lr}}, "parents": {"encoder": attack}}
        return record.model_copy(update={"identity": {**record.identity, "defend": options}})

    attacked = [repaired("badencoder", 0, 48.0), repaired("badencoder", 1, 49.0)]
    records = [*attacked, repaired("none", 1, 21.0)]
    row = only(frame_of_rows(records), attack="badencoder")
    assert (row.asr_nontarget_to_own_floor, row.own_floor_seeds) == (28.0, [1])
    assert row.notes == ["Δ own floor: over 1 of 2 seeds, those with its run"]
    assert pd.isna(only(frame_of_rows(records), attack="none").asr_nontarget_to_own_floor)
    text = render(records, "markdown")  # its legend is in the order of the columns, in every process
    assert text.index("- RA: percent") < text.index("- Δ own floor ASR")
    others = [*attacked, repaired("none", 1, 21.0, lr=0.2)]
    assert pd.isna(only(frame_of_rows(others), attack="badencoder").asr_nontarget_to_own_floor)
    assert "own" not in render(others, "csv")


def test_ra_and_the_differences_to_bn_stand_in_every_form_that_has_them() -> None:
    known = [
        make_record(),
        make_record("none", metrics=(82.0, 5.0, 3.0)),
        make_record(defense="bn", metrics=(70.0, 90.0, 88.0)),
    ]
    attacked = next(
        row for row in markdown_rows(render(known, "markdown")) if row["Defense"] == "none" != row["Attack"]
    )
    assert {name: attacked[name] for name in ("RA", "Δ bn ACC", "Δ bn ASR")} == {
        "RA": "2.00",
        "Δ bn ACC": "+10.00",
        "Δ bn ASR": "+10.00",
    }
    text = " ".join(render(known, "text").split())
    assert "RA: right in spite of the trigger." in text
    assert "RA: percent of the triggered" in render(known, "markdown")
    assert "Differences to bn" in render(known, "latex")
    lines = list(csv.DictReader(io.StringIO(render(known, "csv"))))
    assert [(line["defense"], line["ra"], line["acc_to_bn"], line["bn_seeds"]) for line in lines] == [
        ("none", "82.0", "", ""),
        ("none", "2.0", "10.0", "0"),
        ("bn", "12.0", "0.0", "0"),
    ]
    assert not any("bn" in render(known[:2], form) for form in ("text", "markdown", "csv", "json", "latex"))


def test_another_task_or_evaluator_lends_no_scratch() -> None:
    records = [make_record(defense="scratch", evaluator="knn"), make_record(defense="scratch", target=3), make_record()]
    assert pd.isna(only(frame_of_rows(records), task="gtsrb:12", evaluator="mlp").acc_to_scratch)


def test_rows_stand_in_the_order_of_the_board_and_none_first() -> None:
    records = paper_like()
    random.Random(0).shuffle(records)
    table = frame_of_rows(records, ORDER)
    assert list(dict.fromkeys(table.task)) == ["gtsrb:12", "svhn:1", "stl10:9"]
    assert list(zip(table.attack, table.defense, strict=True))[:8] == [
        (attack, defense) for attack in ("none", "badencoder") for defense in ("none", "scratch", "ft", "mimic")
    ]
    named = frame_of_rows(records, Order(defenses=["mimic"]))
    assert list(named.defense)[:4] == ["none", "mimic", "ft", "scratch"]
    targets = frame_of_rows([make_record(target=12), make_record(target=9)])
    assert list(targets.task) == ["gtsrb:9", "gtsrb:12"]
    by_name = Order(tasks=[("cifar10", "svhn:1"), ("cifar10", "gtsrb:priority road")])
    assert list(dict.fromkeys(frame_of_rows(records, by_name).task)) == ["svhn:1", "gtsrb:12", "stl10:9"]


def test_off_board_records_are_left_out_and_counted() -> None:
    off = make_record(defense="ft", on_board=False, departures=["ft.lr=0.01"], key="f" * 64)
    records = [make_record(defense="ft"), off]
    assert len(frame_of_rows(records)) == 1
    assert "1 off-board records are left out: ft.lr=0.01 (1)." in render(records, "markdown")
    both = frame_of_rows(records, off_board=True)
    assert list(both.departures) == [[], ["ft.lr=0.01"]]
    rows = markdown_rows(render(records, "markdown", off_board=True))
    assert [row["Status"] for row in rows] == ["ok", "ok, off-board"]
    assert "evaluator mlp; off-board: ft.lr=0.01\n" in render(records, "markdown", off_board=True)
    assert "evaluator mlp; off-board: ft.lr=0.01\n" in terminal_table(records)


def test_a_row_that_departs_is_compared_with_the_scratch_that_shares_the_most_of_it() -> None:
    def scratch(acc: float, *departures: str, trigger: str = "a") -> Record:
        evaluate = {"method": {"name": "mlp"}, "params": {"trigger": trigger}}
        return make_record(
            defense="scratch" if acc != 80 else "ft",
            metrics=(acc, 9.0, 8.0),
            on_board=not departures,
            departures=list(departures),
            identity={"evaluate": evaluate},
            key=digest(evaluate),
            status="ok",
        )

    def points(*records: Record) -> float:
        return float(only(frame_of_rows([*records], off_board=True), defense="ft").acc_to_scratch)

    assert points(scratch(80, "ft.lr=1"), scratch(60)) == 20
    assert points(scratch(80, "ft.lr=1"), scratch(50, "scratch.lr=1"), scratch(60)) == 20
    assert points(scratch(80, "ft.lr=1", "simclr.lr=2"), scratch(60), scratch(50, "simclr.lr=2")) == 30
    small = scratch(80, "ft.lr=1", "trigger.size=5", trigger="b")
    assert pd.isna(points(small, scratch(60)))  # the board's scratch was measured with another trigger
    assert points(small, scratch(60), scratch(55, "trigger.size=5", trigger="b")) == 25


def test_statuses_and_reasons() -> None:
    records = [
        make_record(seed=0, metrics=(80.0, 15.0, 13.0)),
        make_record(seed=1),
        make_record(defense="fp", metrics=None, status="n/a", reason="no convolution | none"),
        make_record(defense="nad", metrics=None, status="error", reason="NaN"),
    ]
    table = frame_of_rows(records)
    assert tuple(only(table, defense="none")[["ok", "attack_failed", "na", "error"]]) == (1, 1, 0, 0)
    assert only(table, defense="none").acc == 80.0
    text = render(records, "markdown")
    rows = {row["Defense"]: row for row in markdown_rows(text)}
    assert rows["none"]["Status"] == "1 ok, 1 attack-failed [1]"
    assert rows["none"]["ASR non-target"] == "55.50 ± 540.01"
    assert (rows["fp"]["Status"], rows["fp"]["n"], rows["fp"]["ACC"]) == ("n/a [2]", "0", "-")
    assert "- [1] attack-failed: undefended ASR 13.0 is +10.0 points from the clean encoder's 3.0; an attack" in text
    assert "- [2] n/a: no convolution \\| none" in text
    assert "- [3] error: NaN" in text


def test_notes_become_footnotes_once_each_and_a_note_of_all_rows_a_remark() -> None:
    everywhere = ["generated images"]
    records = [
        make_record(defense="moth", notes=[*everywhere, "budget truncated at 500 steps"]),
        make_record(defense="decree", notes=[*everywhere, "budget truncated at 500 steps"]),
        make_record(notes=everywhere),
    ]
    text = render(records, "markdown")
    assert text.count("budget truncated") == 1
    assert "- All rows: generated images." in text
    assert [row["Status"] for row in markdown_rows(text)] == ["ok", "ok [1]", "ok [1]"]


def test_two_records_of_one_cell_are_refused_but_a_copy_is_not() -> None:
    record = make_record()
    assert only(frame_of_rows([record, record]), defense="none").n == 1
    names = f"{record.name} and {record.name}"
    with pytest.raises(DataError, match=f"{names}: two records of one cell, keys {record.key[:12]} and f{{12}}"):
        frame_of_rows([record, make_record(key="f" * 64)])


def test_pinned_pretraining_is_said() -> None:
    def records(*keys: str) -> list[Record]:
        return [make_record(seed=seed, stages={"pretrain": key}) for seed, key in enumerate(keys)]

    assert "leave pre-training out" in render(records("a", "a"), "markdown")
    assert "leave pre-training out" not in render(records("a", "b"), "markdown")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_the_same_bytes_whatever_the_order_of_the_records(form: str) -> None:
    records = paper_like()
    text = render(records, form, "Board", ORDER)
    random.Random(1).shuffle(records)
    assert render(records, form, "Board", ORDER) == text
    assert text.endswith("\n")
    assert "nan" not in text.lower().replace("became nan", "")


def test_the_command_offers_every_format() -> None:
    [option] = [param for param in build_leaderboard.params if param.name == "form"]
    assert option.to_info_dict()["type"]["choices"] == FORMATS


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'markdown'"):
        render([], "markdow")


def test_markdown_shows_the_figures_of_the_summary() -> None:
    table = frame_of_rows(paper_like(), ORDER)
    rows = [row for row in markdown_rows(render(paper_like(), "markdown", "Board", ORDER)) if "Attack" in row]
    assert len(rows) == len(table) == 24
    for row, (_, line) in zip(rows, table.iterrows(), strict=True):
        assert (row["Attack"], row["Defense"], row["n"].rstrip("†")) == (line.attack, line.defense, str(line.n))
        assert row["n"].endswith("†") == (line.n == 1)
        if line.n:
            shown = [float(row[name].split(" ±")[0]) for name in ("ACC", "ASR", "ASR non-target", "Δ floor ACC")]
            assert shown == pytest.approx([line.acc, line.asr, line.asr_nontarget, line.acc_to_floor], abs=0.00501)
    floor = rows[0]
    assert (floor["ACC"], floor["Δ floor ACC"], floor["Δ floor ASR"]) == ("81.84 ± 0.92", "+0.00", "+0.00")


def test_json_and_csv_carry_numbers() -> None:
    data = json.loads(render(paper_like(), "json", order=ORDER))
    assert data["board"] == "demo"
    assert data["rows"][0]["acc"] == 81.84
    failed = next(row for row in data["rows"] if row["error"])
    assert (failed["acc"], failed["n"], failed["notes"]) == (None, 0, ["error: loss became NaN at step 412"])
    lines = list(csv.DictReader(io.StringIO(render(paper_like(), "csv", order=ORDER))))
    assert list(lines[0]) == list(data["rows"][0])
    assert (float(lines[0]["acc"]), lines[0]["seeds"]) == (81.84, "0 1 2")


def test_the_terminal_table_fits_and_is_aligned() -> None:
    wide = [
        make_record(
            "a_long_attack",
            "a_long_one",
            seed,
            (100.0, 100.0, 99.0 + seed / 2),
            seconds=9e5,
            on_board=False,
            departures=["moth.lr=0.01 " * 20],
            notes=["a long remark, " * 20],
        )
        for seed in range(2)
    ]
    for width in (60, 80, 100, 200):
        for records in (paper_like(), wide, [make_record()]):
            text = terminal_table(records, ORDER, width)
            words = set(terminal_table(records, ORDER, 10_000).split())
            assert max(map(len, text.splitlines())) <= width
            assert all(line == line.rstrip() for line in text.splitlines())
            assert {word for line in text.splitlines() for word in line.split()} <= {
                *words,
                *f"Left out at {width} columns: Δ floor, Δ scratch, s, ASR-nt, RA, worst, floor.".split(),
                *["scratch.", "s.", "scratch,", "ACC,"],
            }
    narrow = terminal_table(paper_like(), ORDER, 60)
    assert "Left out at 60 columns: Δ ACC, ASR-nt, RA, worst, Δ scratch, Δ floor, s." in " ".join(narrow.split())
    assert max(map(len, terminal_table(paper_like(), ORDER).splitlines())) <= WIDTH
    lines = terminal_table([make_record(), make_record("none", metrics=(82.0, 5.0, 3.0))]).splitlines()
    assert lines[:5] == [
        "cifar10 -> gtsrb:12 (priority road), evaluator mlp",
        "                                                    Δ floor     Δ scratch",
        "attack      defense   ACC   ASR  ASR-nt    RA    ACC    ASR    ACC    ASR  s  status",
        "none        none     82.0   5.0     3.0  82.0   +0.0   +0.0      -      -  -  ok",
        "badencoder  none     80.0  99.0    98.0   2.0   -2.0  +95.0      -      -  -  ok",
    ]
    assert terminal_table([]).startswith("No records.\n")


def test_build_writes_the_board_and_only_its_records(tmp_path: Path) -> None:
    stale = make_record(defense="gone")
    write_records([stale], tmp_path / "records")
    (tmp_path / "notes.md").write_text("Trained *overnight*.\n", encoding="utf-8")
    records = [*paper_like(), make_record(defense="ft", on_board=False, departures=["x=1"])]
    files = build("demo", records, tmp_path, ORDER, "Generated images.")
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in files} == files
    assert sorted(files) == ["README.md", "board.csv", "board.json", "board.tex"]
    readme = files["README.md"]
    assert readme.startswith("<!-- generated by `benchbd leaderboard build demo`; do not edit -->\n")
    assert "\nGenerated images.\n" in readme
    assert "device cpu, threads 2, torch 2.15.0; 36 records" in readme
    assert readme.endswith("## Notes\n\nTrained *overnight*.\n")
    again = read_records(tmp_path / "records")
    assert sorted(record.name for record in again) == sorted(record.name for record in records)
    assert build("demo", again, tmp_path, ORDER, "Generated images.") == files


def test_build_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build("demo", paper_like())
    assert list(tmp_path.iterdir()) == []


def test_build_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    with pytest.raises(StoreError, match=r"cannot be written over \(Is a directory\)"):
        build("demo", [make_record()], tmp_path)


def test_build_refuses_strangers_before_it_touches_anything(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="board 'demo', not of 'other'"):
        build("other", [make_record()], tmp_path)
    stranger = tmp_path / "records" / "mine.json"
    stranger.parent.mkdir()
    stranger.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.json"):
        build("demo", [make_record()], tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [stranger]
    stranger.unlink()
    (foreign,) = write_records([make_record(board="other")], stranger.parent)
    with pytest.raises(DataError, match=rf"{foreign.name}: a record of board 'other', not of 'demo'"):
        build("demo", [make_record()], tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {foreign, path_of(foreign)}


@pytest.mark.parametrize(
    "text", ["# By hand\n", "<!-- generated by `benchbd leaderboard build demo2`; do not edit -->\n"]
)
def test_build_replaces_no_text_but_its_own(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=r"README\.md: not generated by `benchbd leaderboard build demo`, so"):
        build("demo", [make_record()], tmp_path)
    assert list(tmp_path.iterdir()) == [readme]
    assert readme.read_text(encoding="utf-8") == text


def of_protocol(seed: int, version: str = "1", **changes: dict[str, object]) -> Record:
    """A record whose stages have the parts that a seed changes; changes: values by kind of stage."""
    pretrain = {"data": {"pool": "p"}, "seed": seed, "method": {"name": "simclr", "version": version}}
    drawn = {"pool_seed": seed, "clean": {"count": 5, "seed": seed}, "targets": [{"label": 1}]}
    attack = {"params": drawn, "seed": seed, "parents": {"encoder": str(seed)}, "method": {"name": "badencoder"}}
    evaluate = {"seed": seed, "method": {"name": "mlp", "options": {"epochs": 3, "seed": 0}}, "data": {"test": "t"}}
    stages: dict[str, dict[str, object]] = {"pretrain": pretrain, "attack": attack, "evaluate": evaluate}
    return make_record(seed=seed, identity={kind: stage | changes.get(kind, {}) for kind, stage in stages.items()})


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (of_protocol(2, "2"), 'identity.pretrain.method.version is "1" in one and "2" in the other'),
        (
            of_protocol(2, evaluate={"method": {"name": "mlp", "options": {"epochs": 1, "seed": 0}}}),
            "identity.evaluate.method.options.epochs is 3 in one and 1 in the other",
        ),
        (
            of_protocol(2, evaluate={"method": {"name": "mlp", "options": {"epochs": 3, "seed": 1}}}),
            "identity.evaluate.method.options.seed is 0 in one and 1 in the other",
        ),
        (of_protocol(2, evaluate={"data": {"test": "u"}}), 'identity.evaluate.data.test is "t" in one and "u" in the'),
        (
            of_protocol(2, attack={"params": {"clean": {"count": 5}, "targets": [{"label": 2}]}}),
            "identity.attack.params.targets.0.label is 1 in one and 2 in the other",
        ),
    ],
)
def test_a_row_is_of_one_protocol(other: Record, field: str) -> None:
    first = of_protocol(1)
    assert frame_of_rows([first, of_protocol(2)]).n.tolist() == [2]
    names = f"{first.name} and {other.name} are of two protocols: "
    with pytest.raises(DataError, match=re.escape(names + field)):
        frame_of_rows([other, first])


def test_the_cost_table_counts_a_shared_run_once_and_keeps_machines_apart() -> None:
    def repair(seconds: float, key: str, machine: dict[str, object], **fields: str) -> Record:
        cost = {"defend": Cost(seconds=seconds, cpu_seconds=2 * seconds, image_forwards=9_010_000)}
        return make_record(defense="ft", cost=cost, stages={"defend": key}, machine=machine, **fields)

    records = [
        repair(10.0, "a", MACHINE),
        repair(10.0, "a", MACHINE, evaluator="knn"),
        repair(20.0, "b", MACHINE, attack="bassl"),
        repair(1.0, "c", {"device": "cuda"}, pretrain="stl10"),
    ]
    cost = build("demo", records)["README.md"].split("## Cost")[1]
    shown = [tuple(row.values()) for row in markdown_rows(cost)]
    assert shown == [
        ("ft", "2", "15.0 (10.0 to 20.0)", "30.0 (20.0 to 40.0)", "9.01M", "A"),
        ("ft", "1", "1.0", "2.0", "9.01M", "B"),
    ]
    assert "- B: device cuda; 1 records" in cost


def test_an_empty_board_is_a_board() -> None:
    assert list(frame_of_rows([]).columns) == list(frame_of_rows(paper_like()).columns)
    assert "No records." in build("demo", [])["README.md"]
    assert json.loads(render([], "json"))["rows"] == []


def test_no_torch() -> None:
    code = "import sys, benchbd.report.leaderboard, benchbd.cli.terminal; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_digest_in_a_departure_is_printed_in_short_form() -> None:
    """Above a table and among the records that are left out 12 digits, in programs' data the record's own text."""
    departure = f"from-file.file={'0123456789abcdef' * 4} (the board's: None)"
    off = make_record(attack="from-file", on_board=False, departures=[departure], key="f" * 64)
    told = render([make_record(), off], "text", off_board=True)
    assert "off-board: from-file.file=0123456789ab (the board's: None) " in " ".join(told.split())
    left_out = write(document([make_record(), off]), "text", 500)
    assert "1 off-board records are left out: from-file.file=0123456789ab (the board's: None) (1)." in left_out
    assert departure in write(document([off], off_board=True), "json", 80)

"""A board beside the papers: shipped figures, rank correlation by hand and by brute force, the same-protocol rule."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tomllib
import zipfile
from importlib.resources import files
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import benchbd
from benchbd import Trigger
from benchbd.base.errors import UnknownNameError, UsageError
from benchbd.cli.results import compare as command
from benchbd.papers.compare import Block, Comparison, compare
from benchbd.papers.document import document
from benchbd.papers.published import METRICS, published, rows_of
from benchbd.planning.board import Board, load_board
from benchbd.records.files import read_records
from benchbd.records.models import Counts, Metrics, Record
from benchbd.report.statistics import average_ranks, spearman
from benchbd.report.writers.columns import WIDTH
from benchbd.report.writers.forms import FORMATS, write

from ..records_factory import make_record

LEADERBOARDS = Path(benchbd.__file__).parents[1] / "leaderboards"
DEFENSES = ("ft", "fp", "nad", "anp", "moth", "decree", "medic", "mimic")
TABLE1 = Board.model_validate(
    {
        "name": "table1",
        "attacks": ["none", "badencoder"],
        "defenses": ["none", "scratch", *DEFENSES],
        "rows": [{"pretrain": "cifar10", "tasks": ["gtsrb:12"]}],
    }
)

MNISTM = {
    "name": "m",
    "attacks": ["badencoder"],
    "defenses": ["ft"],
    "rows": [{"pretrain": "cifar10", "tasks": ["mnistm:1"]}],
}

FIGURES = files("benchbd") / "papers" / "published"


def render(board: Board, records: list[Record], form: str = "text") -> str:
    return write(document(board, records), form)


def cell(
    defense: str = "none",
    acc: float = 80.0,
    asr: float = 90.0,
    *,
    arch: str = "resnet18",
    test: int = 12_630,
    trigger: str | None = None,
    **fields: Any,
) -> Record:
    """A record under the papers' protocol, CIFAR10 -> GTSRB, unless the test changes it."""
    identity = {
        "pretrain": {"method": {"name": "simclr", "options": {"arch": arch, "epochs": 1000, "steps": None}}},
        "evaluate": {"params": {"trigger": trigger or published().trigger}},
    }
    counts = Counts(total=test, correct=0, hits=0, nontarget=test, hits_nontarget=0)
    known: dict[str, Any] = {"board": "table1", "identity": identity, "counts": counts, **fields}
    return make_record(defense=defense, metrics=(acc, asr, asr), **known)


def weak() -> Metrics:
    """Undefended figures of an attack that gains nothing over ``cell``'s clean encoder."""
    return Metrics(acc=80.0, asr=4.0, asr_nontarget=4.0, ra=80.0)


def as_published(**fields: Any) -> list[Record]:
    """The paper's own CIFAR10 -> GTSRB cell, as our measurement."""
    figures = published().cells["badencoder", "cifar10", "gtsrb"]
    return [cell(defense, figure.acc or 0.0, figure.asr or 0.0, **fields) for defense, figure in figures.items()]


def only_block(records: list[Record], board: Board = TABLE1) -> Block:
    [block] = compare(board, records).blocks
    return block


# The shipped figures


def test_table_1_is_whole() -> None:
    rows = rows_of("mimic_table1.csv")
    places = {(row["attack"], row["pretrain"], row["downstream"]) for row in rows}
    assert len(rows) == 108
    assert len(places) == 12
    names = {"undefended", *DEFENSES}
    for place in places:
        assert {r["defense"] for r in rows if (r["attack"], r["pretrain"], r["downstream"]) == place} == names
    assert all(0 <= float(row[metric]) <= 100 for row in rows for metric in ("acc", "asr"))


def test_the_printed_averages_are_those_of_the_rows() -> None:
    rows, printed = rows_of("mimic_table1.csv"), rows_of("mimic_table1_averages.csv")
    assert len(printed) == 18
    for average in printed:
        own = [row for row in rows if (row["attack"], row["defense"]) == (average["attack"], average["defense"])]
        assert len(own) == 6
        for metric in ("acc", "asr"):
            assert fmean(float(row[metric]) for row in own) == pytest.approx(float(average[metric]), abs=0.0101)


def test_every_line_names_its_paper_and_table() -> None:
    facts = tomllib.loads((FIGURES / "papers.toml").read_text(encoding="utf-8"))
    listed = {name: paper for paper, about in facts["papers"].items() for name in about["files"]}
    assert set(listed) == {path.name for path in FIGURES.iterdir() if path.name[-4:] == ".csv"}
    for name, paper in listed.items():
        assert all(row["paper"] == paper and row["table"] for row in rows_of(name))
    assert [len(rows_of(name)) for name in ("mimic_other.csv", "badencoder.csv")] == [15, 54]


def test_figures_reach_their_places() -> None:
    paper = published()
    assert len(paper.cells) == 12 + 3
    assert paper.cells["badencoder", "cifar10", "gtsrb"]["mimic"] == (81.33, 1.36)
    assert paper.cells["bassl", "stl10", "cifar10"]["none"] == (81.03, 20.07)
    assert paper.cells["none", "cifar10", "svhn"] == {"none": (57.01, None), "mimic": (75.32, None)}
    assert paper.averages["bassl"]["medic"] == (66.28, 10.57)
    assert paper.floors["cifar10", "svhn"] == (58.50, 37.53)
    assert paper.floors["stl10", "cifar10"] == (86.77, 12.30)
    assert len(paper.floors) == 6
    assert {name: task.test for name, task in paper.tasks.items()} == {
        "gtsrb": 12_630,
        "svhn": 26_032,
        "stl10": 8_000,
        "cifar10": 10_000,
    }


def test_the_trigger_of_the_papers_is_the_square_of_10() -> None:
    assert published().trigger == Trigger.square(10, 32).digest != Trigger.square(9, 32).digest


def test_suspicions_list_exactly_the_cells_that_their_rules_find() -> None:
    paper = published()
    facts = tomllib.loads((FIGURES / "papers.toml").read_text(encoding="utf-8"))
    pairs = list(zip(facts["suspicions"], paper.suspicions, strict=True))
    by_rule = {said["rule"]: set(each.cells) for said, each in pairs if "rule" in said}
    found: dict[str, set[str]] = {rule: set() for rule in by_rule}
    for (attack, pretrain, task), figures in paper.cells.items():
        if attack == "none":
            continue
        floor, setting, before = paper.floors[pretrain, task], paper.tasks[task], figures["none"]
        for defense, (acc, asr) in figures.items():
            assert acc is not None and asr is not None and before.acc is not None and before.asr is not None  # noqa: PT018
            rules = {
                "undefended ASR less than 15 points above BadEncoder's ASR-B of the task": defense == "none"
                and asr < floor.asr_b + 15,
                "ASR above that of the undefended encoder": asr > before.asr,
                "DECREE's ASR on BadEncoder above 80": (attack, defense) == ("badencoder", "decree") and asr > 80,
                "ASR below the share of the target class in the test split": asr
                < 100 * setting.of_target / setting.test,
                "ASR more than 5 points below BadEncoder's ASR-B of the task": asr < floor.asr_b - 5,
                "ACC more than 5 points above that of the undefended encoder": acc > before.acc + 5,
            }
            for rule, holds in rules.items():
                found[rule] |= {f"{attack} {pretrain} {task} {defense}"} if holds else set()
    assert found == by_rule
    assert all(found.values())


def test_table_3_repeats_table_1() -> None:
    cells = published().cells
    [same] = [each for each in published().suspicions if "none cifar10 stl10 mimic" in each.cells]
    for task in ("stl10", "gtsrb", "svhn"):
        assert cells["none", "cifar10", task]["mimic"].acc == cells["badencoder", "cifar10", task]["mimic"].acc
        assert {f"none cifar10 {task} mimic", f"badencoder cifar10 {task} mimic"} < set(same.cells)


def test_figures_are_found_inside_an_archive(tmp_path: Path) -> None:
    core = Path(benchbd.__file__).parent
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as archive:
        for path in (core / "papers" / "published").iterdir():
            if path.is_file():
                archive.write(path, f"benchbd/papers/published/{path.name}")
        for package in ("benchbd", "benchbd/papers"):
            archive.writestr(f"{package}/__init__.py", "")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site.zip')!r}); from benchbd.papers import published as p\n"
    )
    code += "print(p.__file__, len(p.published().cells), len(p.rows_of('badencoder.csv')))"
    command = [sys.executable, "-S", "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "site.zip" in said
    assert said.split()[1:] == ["15", "54"]


# Rank correlation


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert average_ranks([3.0, 1.0, 2.0]) == [3, 1, 2]
    assert average_ranks([5.0, 1.0, 5.0, 0.0]) == [3.5, 2, 3.5, 1]
    assert average_ranks([2.0, 2.0, 2.0]) == [2, 2, 2]


@pytest.mark.parametrize(
    ("ours", "theirs", "rho"),
    [
        ([1, 2, 3, 4, 5], [10, 20, 30, 40, 50], 1.0),
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 1 - 6 * 4 / (5 * 24)),  # four ranks are off by one
        ([1, 2, 2, 4], [1, 2, 3, 4], 4.5 / (4.5 * 5) ** 0.5),  # ranks 1, 2.5, 2.5, 4: Pearson's r of the ranks
        ([1, 1, 3, 3], [1, 2, 3, 4], 4 / (4 * 5) ** 0.5),
    ],
)
def test_rho_by_hand(ours: list[float], theirs: list[float], rho: float) -> None:
    assert spearman(ours, theirs).rho == pytest.approx(rho, abs=1e-12)


@pytest.mark.parametrize("ours", [[1, 2, 3, 4], [1, 2, 2, 4], [1, 1, 2, 2], [3, 3, 3, 1]])
@pytest.mark.parametrize("theirs", [[1, 2, 3, 4], [2, 1, 4, 3], [4, 3, 2, 1], [2, 4, 1, 3], [1, 1, 5, 2]])
def test_p_is_that_of_brute_force(ours: list[float], theirs: list[float]) -> None:
    def rho(x: tuple[float, ...]) -> float:
        pairs = list(zip(average_ranks(list(x)), average_ranks(theirs), strict=True))
        mean = (len(pairs) + 1) / 2
        spread = [sum((pair[side] - mean) ** 2 for pair in pairs) for side in (0, 1)]
        return sum((a - mean) * (b - mean) for a, b in pairs) / (spread[0] * spread[1]) ** 0.5

    found = rho(tuple(ours))
    shares = [abs(rho(each)) >= abs(found) - 1e-12 for each in permutations(ours)]
    assert len(shares) == 24
    assert spearman(ours, theirs) == (4, pytest.approx(found), pytest.approx(sum(shares) / 24))


def test_p_of_a_perfect_order_of_nine() -> None:
    n, rho, p = spearman(list(range(9)), list(range(9)))
    assert (n, rho) == (9, 1.0)
    assert p == pytest.approx(2 / 362_880)


def test_no_correlation_of_fewer_than_three_or_of_ties_alone() -> None:
    assert spearman([1, 2], [1, 2]) == (2, None, None)
    assert spearman([1, 1, 1], [1, 2, 3]) == (3, None, None)
    assert spearman([], []) == (0, None, None)


# The same-protocol rule


def test_the_same_protocol_is_subtracted() -> None:
    block = only_block([cell("none", 82.37, 98.09), cell("ft", 78.04, 7.0), cell("ft", 80.04, 9.0, seed=1)])
    assert (block.differs, block.cell) == ((), True)
    undefended, ft = block.lines
    assert undefended.difference("acc") == pytest.approx(-1.0)
    assert undefended.difference("asr") == pytest.approx(-1.0)
    assert ft.difference("acc") == pytest.approx(2.0)  # the mean of both seeds, minus 77.04
    assert ft.difference("asr") == pytest.approx(3.0)
    assert undefended.ranks == {}  # not a defense
    assert block.missing == tuple(name for name in DEFENSES if name != "ft")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"arch": "w32"}, "encoder w32, not resnet18"),
        ({"test": 6_000}, "6,000 test images, not 12,630"),
        ({"target": 14}, "target 14, not 12"),
        ({"evaluator": "knn"}, "evaluator knn, not mlp"),
        ({"trigger": "0" * 64}, "not known to be the 10x10 white trigger"),
        ({"identity": {}}, "encoder unknown, not resnet18; not known to be the 10x10 white trigger"),
        ({"counts": None}, "unknown test images, not 12,630"),
    ],
)
def test_another_protocol_is_not_subtracted(fields: dict[str, Any], why: str) -> None:
    records = as_published(**fields)
    block = only_block(records)
    assert "; ".join(block.differs) == why
    assert {line.difference(metric) for line in block.lines for metric in METRICS} == {None}
    assert block.cell  # the cell of the same name still gives the ordering
    assert block.correlations["asr"].rho == pytest.approx(1.0)
    assert why in " ".join(render(TABLE1, records).split())
    assert "Δ ACC" not in render(TABLE1, records)
    lines = json.loads(render(TABLE1, records, "json"))["blocks"][0]["lines"]
    assert {line[name] for line in lines for name in ("acc_difference", "asr_difference")} == {None}
    assert lines[1]["paper_acc"] == 77.04


def test_the_options_of_another_pre_training_are_its_own() -> None:
    """Their names do not match their types: no set takes a list, no format a word."""
    options = {"arch": ["vit", 12], "steps": "many", "epochs": None}
    identity = {
        "pretrain": {"method": {"name": "theirs", "options": options}},
        "evaluate": {"params": {"trigger": [1]}},
    }
    block = only_block(as_published(identity=identity))
    assert block.differs == ("encoder ['vit', 12], not resnet18", "not known to be the 10x10 white trigger")
    assert block.trained == ""


def test_a_cell_that_the_paper_lacks_is_laid_beside_the_averages() -> None:
    other = {"task": "mnistm", "target": 1, "target_name": "1"}
    block = only_block([cell("ft", 70, 20, **other), cell("anp", 60, 10, **other), cell("mimic", 50, 30, **other)])
    assert not block.cell
    assert block.differs == ("the paper has no such cell",)
    assert block.lines[0].figure == (68.17, 17.54)
    # ACC 70, 60, 50 beside 68.17, 69.29, 76.77; ASR 20, 10, 30 beside 17.54, 32.49, 8.14. None is suspicious.
    assert [line.ranks for line in block.lines] == [
        {"acc": (1, 3), "asr": (2, 2)},
        {"acc": (2, 2), "asr": (1, 3)},
        {"acc": (3, 1), "asr": (3, 1)},
    ]
    assert block.correlations == {"acc": (3, -1.0, pytest.approx(1 / 3)), "asr": (3, -1.0, pytest.approx(1 / 3))}
    assert all(line.suspicions == () for line in block.lines)


def test_the_paper_beside_itself() -> None:
    block = only_block(as_published())
    assert {line.difference("asr") for line in block.lines} == {0.0}
    assert block.correlations["acc"] == (8, 1.0, pytest.approx(2 / 40_320))
    assert all(line.ranks["asr"].ours == line.ranks["asr"].paper for line in block.lines[1:])
    assert block.missing == block.foreign == ()


@pytest.mark.parametrize("status", ["attack-failed", "n/a", "error"])
def test_cells_that_are_not_ok_are_shown_and_left_out(status: str) -> None:
    failed = status == "attack-failed"
    lost = {"undefended": weak(), "status": "ok"} if failed else {"status": status, "reason": "why"}
    kept = [record for record in as_published() if record.defense != "fp"]
    bad = cell("fp", 10.0, 99.0, **lost)
    bad = bad if failed else bad.model_copy(update={"metrics": None, "counts": None})
    block = only_block([*kept, bad])
    [fp] = [line for line in block.lines if line.row.defense == "fp"]
    assert fp.ranks == {}
    assert fp.difference("acc") is None
    assert block.correlations["acc"] == (7, 1.0, pytest.approx(2 / 5_040))
    shown = next(line for line in render(TABLE1, [*kept, bad]).splitlines() if line.startswith("fp"))
    assert shown.endswith(status)
    assert ("99.0" in shown) == failed


def test_one_seed_that_failed_takes_the_defense_out() -> None:
    block = only_block(
        [*as_published(), cell("fp", seed=1, status="error", reason="NaN").model_copy(update={"metrics": None})]
    )
    assert block.correlations["asr"].n == 7


def test_clean_encoders_are_laid_beside_table_3_under_its_protocol_alone() -> None:
    records = [cell("none", 83.42, 3.0, attack="none"), cell("mimic", 80.33, 2.0, attack="none")]
    block = only_block(records)
    assert [line.difference("acc") for line in block.lines] == [pytest.approx(1.0), pytest.approx(-1.0)]
    assert [line.difference("asr") for line in block.lines] == [None, None]
    small = [record.model_copy(update={"identity": {}}) for record in records]
    attacked = [cell("ft"), cell("mimic")]
    assert [block.attack for block in compare(TABLE1, [*small, *attacked]).blocks] == ["badencoder"]


def test_what_stands_on_one_side_only_is_listed() -> None:
    records = [cell("none"), cell("scratch"), cell("ft"), cell("ft", attack="bassl_control")]
    comparison = compare(TABLE1, records)
    assert comparison.blocks[0].foreign == ("scratch",)
    assert comparison.foreign == ("bassl_control",)
    assert len(comparison.absent) == 11
    text = " ".join(render(TABLE1, records).split())
    assert "Not in the paper: scratch." in text
    assert "Attacks that are not in the paper's Table I: bassl_control." in text
    assert "Defenses of the paper that no block has: fp, nad, anp, moth, decree, medic, mimic." in text
    assert "badencoder: cifar10 -> svhn, stl10; stl10 -> gtsrb, svhn, cifar10. bassl: all 6." in text


def test_floors() -> None:
    records = [
        cell("none", 83.0, 4.0, attack="none", seed=seed, baseline=(83.0 + seed, 4.0 + seed, 2.0)) for seed in (0, 1)
    ]
    other = {"task": "mnistm", "target": 1, "target_name": "1"}
    comparison = compare(TABLE1, [*records, cell("ft", baseline=(83.0, 4.0, 2.0)), cell("ft", **other)])
    gtsrb, mnistm = comparison.floors
    assert (gtsrb.seeds, gtsrb.ca.mean, gtsrb.asr_b.mean) == ((0, 1), 83.5, 4.5)
    assert gtsrb.badencoder == (81.84, 2.79)
    assert gtsrb.mimic_ca == 82.42
    assert gtsrb.share_of_target == pytest.approx(5.4632, abs=1e-4)
    assert (mnistm.badencoder, mnistm.mimic_ca, mnistm.share_of_target) == (None, None, None)
    assert "2.79" in render(TABLE1, [*records, cell("ft")])
    assert "log of its released code ends at 4.92" in " ".join(render(TABLE1, [*records, cell("ft")]).split())


def test_mean_ranks_over_blocks() -> None:
    other = {"task": "mnistm", "target": 1, "target_name": "1"}
    lone = {"task": "shapes", "target": 7, "target_name": "x"}  # one defense has no rank
    records = [cell("ft", 70, 20), cell("mimic", 50, 30), cell("ft", 70, 20, **other), cell("mimic", 72, 30, **other)]
    ft, mimic = compare(TABLE1, [*records, cell("mimic", **lone)]).mean_ranks
    assert (ft.defense, ft.blocks, ft.means) == ("ft", 2, {"acc": (1.5, 2.0), "asr": (1.0, 2.0)})
    assert (mimic.defense, mimic.blocks, mimic.means) == ("mimic", 2, {"acc": (1.5, 1.0), "asr": (2.0, 1.0)})


def test_suspicious_cells_of_the_block_are_marked_and_explained() -> None:
    place = {"pretrain": "stl10", "test": 12_630}
    records = [cell("none", 79, 91, **place), cell("decree", 70, 97, **place), cell("anp", 77, 20, **place)]
    text = render(TABLE1, records)
    table = text.partition("\n\nMean ranks")[0].splitlines()
    rows = {line.split()[0]: line.split() for line in table if line.startswith(("anp", "decree"))}
    assert rows["anp"][-2:] == ["-", "ok"]
    assert rows["decree"][-2:] == ["a,b", "collapsed"]
    flat = " ".join(text.split())
    assert "[a] MIMIC, Table I, ASR: The ASR after the defense is above the undefended one." in flat
    assert "[b] MIMIC, Table I, ASR: DECREE leaves an ASR above 80" in flat
    assert "[c]" not in flat


def test_off_board_records_are_left_out_and_counted() -> None:
    off = cell("mimic", 99, 0, on_board=False, departures=["mimic.lr=1"])
    comparison = compare(TABLE1, [cell("none"), cell("ft"), off])
    assert [line.row.defense for line in comparison.blocks[0].lines] == ["none", "ft"]
    assert comparison.left_out == 1
    assert "Off-board records left out: 1." in render(TABLE1, [cell("ft"), off])


@pytest.mark.parametrize(
    "records",
    [
        [],
        [cell("scratch")],
        [cell("ft", attack="bassl_control")],
        [cell("ft", on_board=False, departures=["x"])],
        [cell("ft", status="error", reason="NaN").model_copy(update={"metrics": None})],
    ],
)
def test_nothing_to_compare_is_one_line(records: list[Record]) -> None:
    with pytest.raises(UsageError, match=r"^board table1: nothing to compare: .*badencoder, bassl") as error:
        render(TABLE1, records)
    assert "\n" not in str(error.value)


def test_the_command_offers_every_format() -> None:
    [option] = [param for param in command.params if param.name == "form"]
    assert option.to_info_dict()["type"]["choices"] == FORMATS


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="markdown"):
        render(TABLE1, as_published(), "html")


# The input


def wide() -> list[Record]:
    """Every column filled, several seeds, a status that is too long."""
    records = [record for seed in (0, 1, 2) for record in as_published(seed=seed)]
    drifted = [
        record.model_copy(
            update={
                "metrics": record.metrics
                and record.metrics.model_copy(
                    update={"acc": record.metrics.acc - 9 * record.seed, "asr": 33.3 * record.seed}
                )
            }
        )
        for record in records
    ]
    return [*drifted, cell("scratch"), cell("scratch", seed=1, undefended=weak())]


def test_text_fits_100_columns_and_ends_with_a_newline() -> None:
    small = load_board("cifar10-small")
    for board, records in ((TABLE1, wide()), (small, read_records(LEADERBOARDS / "cifar10-small" / "records"))):
        text = render(board, records)
        assert text.endswith("\n")
        assert max(map(len, text.splitlines())) <= WIDTH == 100


def test_markdown_tables_are_whole() -> None:
    text = render(TABLE1, wide(), "markdown")
    tables: list[list[int]] = []
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append(line.count("|"))
        elif not tables or tables[-1]:
            tables.append([])
    assert sum(bool(table) for table in tables) == 3
    assert all(len(set(table)) == 1 for table in tables if table)
    assert "| mimic" in text
    assert "+" in next(line for line in text.splitlines() if line.startswith("| mimic"))


def test_json_is_complete() -> None:
    data = json.loads(render(TABLE1, [*as_published(), cell("scratch", 60.0, 5.5)], "json"))
    [block] = data["blocks"]
    assert block["same_protocol"] is True
    assert block["spearman"]["asr"] == {"n": 8, "rho": 1.0, "p": pytest.approx(2 / 40_320, abs=1e-9)}
    assert [line["defense"] for line in block["lines"]] == ["none", "scratch", *DEFENSES]
    scratch, ft = block["lines"][1:3]
    assert (scratch["in_the_paper"], scratch["paper_acc"], scratch["acc_difference"]) == (False, None, None)
    assert (ft["acc"], ft["paper_acc"], ft["acc_difference"], ft["asr_rank"]) == (77.04, 77.04, 0.0, 2)
    assert block["not_in_the_paper"] == ["scratch"]
    assert len(data["cells_not_computed"]) == 11
    assert len(data["mean_ranks"]) == 8
    assert {mark for line in block["lines"] for mark in line["suspicions"]} <= set(data["suspicions"])
    assert "TIFS" in data["papers"]["mimic"]


def test_asr_less_that_of_a_clean_encoder() -> None:
    """Ours seed by seed, less the record's own floor; the paper's less BadEncoder's, where MIMIC has the cell."""
    ours = [
        cell("ft", 70.0, asr, seed=seed, baseline=(82.0, floor, 3.0)) for seed, asr, floor in ((0, 9, 5), (1, 6, 4))
    ]
    [block] = json.loads(render(TABLE1, ours, "json"))["blocks"]
    [ft] = block["lines"]
    assert ft["asr_over_floor"] == pytest.approx((4 + 2) / 2)
    assert ft["paper_asr_over_floor"] == pytest.approx(5.00 - 2.79)  # Table I's FT, and ASR-B of BadEncoder's Table I
    other = TABLE1.model_copy(update={"rows": Board.model_validate(MNISTM).rows})
    [block] = json.loads(render(other, [cell("ft", 70.0, 9.0, task="mnistm", target=1)], "json"))["blocks"]
    assert block["paper_figures"] == "averages"
    assert block["lines"][0]["paper_asr_over_floor"] is None
    assert block["lines"][0]["asr_over_floor"] == pytest.approx(4.0)


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_bytes_in_any_order_of_records(form: str) -> None:
    records = wide()
    shuffled = list(records)
    random.Random(3).shuffle(shuffled)
    assert shuffled != records
    assert render(TABLE1, shuffled, form) == render(TABLE1, records, form)


def test_the_committed_records_of_a_small_encoder_are_not_subtracted() -> None:
    records = read_records(LEADERBOARDS / "cifar10-small" / "records")
    board = load_board("cifar10-small")
    comparison: Comparison = compare(board, records)
    assert comparison.blocks
    assert all("encoder w32, not resnet18" in block.differs for block in comparison.blocks)
    for form in ("text", "markdown"):
        assert "Δ ACC" not in render(board, records, form)
        assert "Δ ASR" not in render(board, records, form)
    lines = [line for block in json.loads(render(board, records, "json"))["blocks"] for line in block["lines"]]
    assert {line["acc_difference"] for line in lines} == {line["asr_difference"] for line in lines} == {None}


def test_no_torch_is_imported() -> None:
    code = "import sys, benchbd.papers.compare as c; c.published(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

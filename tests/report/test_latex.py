"""LaTeX: ASCII alone, nothing lost between dollars, and pages that compile and contain what the Markdown contains."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchbd.papers.document import document as comparison
from benchbd.records.files import read_inspected
from benchbd.report import detection as populations
from benchbd.report.document import Column
from benchbd.report.writers.latex import cell, tex, write

from ..papers.test_compare import TABLE1, wide
from ..records_factory import make_record
from ..report.test_documents import DOCUMENTS
from ..report.test_leaderboard import markdown_rows, render

LEADERBOARDS = Path(__file__).parents[2] / "leaderboards"
SHIPPED = sorted(path.parent for path in LEADERBOARDS.glob("*/board.tex"))
FIGURES = ("Attack", "Defense", "n", "ACC", "ASR", "ASR non-target", "Δ floor ACC", "Δ floor ASR")
FIGURES = (*FIGURES, "Δ scratch ACC", "Δ scratch ASR", "Status")
COSTS = ("Attack", "Defense", "Seconds", "Image-forwards")
INCH = 72  # points of PDF


def test_text_is_escaped_and_ascii() -> None:
    assert tex("50 % of {x} ~ $y^2 #1 \\n & a_b") == (
        r"50 \% of \{x\} \textasciitilde{} \$y\textasciicircum{}2 \#1 \textbackslash{}n \& a\_b"
    )
    assert tex("a -> b ± Δ † ≤") == r"a $\to$ b $\pm$ $\Delta$ $\dagger$ $\leq$"
    assert tex("é Å ấ") == r"\'{e} \r{A} \'{\^{a}}"
    assert tex("中 ≠ \x1b[31m") == r"{[}U+4E2D] {[}U+2260] \textbackslash{}x1b{[}31m"
    assert tex("--only `x` [1]*") == r"-{}-only {`}x{`} {[}1]{*}"


def test_figures_stand_in_mathematics_with_their_half_width() -> None:
    column = Column("ACC", "percent")
    assert cell(column, "+8.61 ± 21.46") == r"$+8.61 \pm 21.46$"
    assert cell(column, "-4.85") == "$-4.85$"
    assert cell(column, "50.00 ± 635.31") == r"$50.00 \pm 635.31$"
    assert (cell(column, "-"), cell(column, "490k"), cell(column, "-x")) == ("--", "490k", "-x")


def test_a_long_word_may_break_behind_separators_and_within_its_column() -> None:
    assert tex("short words alone") == "short words alone"
    assert tex("data/train_0000.parquet") == (r"data/\allowbreak{}train\_\allowbreak{}0000.\allowbreak{}parquet")
    assert tex("x" * 25) == "x" * 20 + r"\allowbreak{}" + "x" * 5
    assert cell(Column("Attack", "words", points=46), "badencoder") == "badencoder"
    assert cell(Column("Attack", "words", points=46), "BADENCODER") == r"BADENC\allowbreak{}ODER"


def test_each_task_has_a_table_and_costs_have_their_own() -> None:
    records = [
        make_record("bad_encoder", "f&t", seconds=4.5, forwards=9_010, target_name="a_b"),
        make_record("none", task="svhn", metrics=(82.0, 5.0, 3.0)),
    ]
    text = render(records, "latex", "T&T -> 100 %")
    captions = re.findall(r"\\caption\{(.*)\}\\\\", text)
    assert captions == [
        r"T\&T $\to$ 100 \%: cifar10 $\to$ gtsrb:12 (a\_b), evaluator mlp",
        r"RA. T\&T $\to$ 100 \%: cifar10 $\to$ gtsrb:12 (a\_b), evaluator mlp",
        r"Cost of the defenses. T\&T $\to$ 100 \%: cifar10 $\to$ gtsrb:12 (a\_b), evaluator mlp",
        r"T\&T $\to$ 100 \%: cifar10 $\to$ svhn:12 (priority road), evaluator mlp",
        r"RA. T\&T $\to$ 100 \%: cifar10 $\to$ svhn:12 (priority road), evaluator mlp",
    ]
    rows = [line for line in text.splitlines() if re.match(r"(bad|none)", line)]
    assert rows == [
        r"bad\_encoder & f\&t & 1$\dagger$ & $80.00$ & $99.00$ & $98.00$ & $-2.00$ & $+95.00$ & -- & -- & ok \\",
        r"bad\_encoder & f\&t & $2.00$ \\",
        r"bad\_encoder & f\&t & $4.5$ & 9.01k \\",
        r"none & none & 1$\dagger$ & $82.00$ & $5.00$ & $3.00$ & $+0.00$ & $+0.00$ & -- & -- & ok \\",
        r"none & none & $82.00$ \\",
    ]
    assert text.count(r"\begin{") == text.count(r"\end{")


@pytest.mark.parametrize("board", SHIPPED, ids=lambda board: board.name)
def test_a_shipped_board_is_ascii_and_has_every_half_width_of_the_readme(board: Path) -> None:
    text = (board / "board.tex").read_text(encoding="utf-8")
    assert text.isascii()
    dollars = re.findall(r"(?<!\\)\$", text)
    assert len(dollars) % 2 == 0
    readme = (board / "README.md").read_text(encoding="utf-8")
    spreads = [cell for row in figures(readme) for cell in row.values() if "±" in cell]
    assert text.count(r" \pm ") == len(spreads)
    assert all(f"${spread.replace('±', chr(92) + 'pm')}$" in text for spread in spreads)


def figures(readme: str) -> list[dict[str, str]]:
    """The rows of the tables of figures, without those of cost and detection."""
    return [row for row in markdown_rows(readme) if "ASR non-target" in row]


def compiled(text: str, folder: Path, paper: str) -> tuple[str, list[tuple[float, float]]]:
    """The text of the PDF as its rows, and how far every word ends from the right and the lower margin, in points."""
    absent = [tool for tool in ("pdflatex", "pdftotext") if shutil.which(tool) is None]
    assert not absent, f"{absent} not found: make latex installs them"
    (folder / "board.tex").write_text(text, encoding="ascii")
    packages = r"\usepackage[margin=1in]{geometry}\usepackage{array,booktabs,longtable}"
    (folder / "main.tex").write_text(
        rf"\documentclass[{paper}]{{article}}{packages}\pagestyle{{empty}}\begin{{document}}\input{{board}}\end{{document}}"
    )
    for _ in range(4):  # longtable reads its widths from the run before
        run(folder, "pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex")
    log = re.sub(r"\n(?!\n)", "", (folder / "main.log").read_text(encoding="latin-1"))
    assert "Warning" not in log
    assert all(float(points) < 2 for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log))
    assert "Overfull \\vbox" not in log
    run(folder, "pdftotext", "-layout", "-enc", "UTF-8", "main.pdf", "main.txt")
    run(folder, "pdftotext", "-bbox", "main.pdf", "main.html")
    ends: list[tuple[float, float]] = []
    width = height = 0.0
    for line in (folder / "main.html").read_text(encoding="utf-8").splitlines():
        if page := re.search(r'<page width="([\d.]+)" height="([\d.]+)"', line):
            width, height = map(float, page.groups())
        elif word := re.search(r'xMax="([\d.]+)" yMax="([\d.]+)"', line):
            ends.append((width - INCH - float(word[1]), height - INCH - float(word[2])))
    return (folder / "main.txt").read_text(encoding="utf-8"), ends


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def squeezed(text: str) -> str:
    """Words with one space between them; dashes as the tables in Markdown have them."""
    return " ".join(text.replace("−", "-").replace("–", "-").split())


@pytest.mark.latex
@pytest.mark.parametrize("paper", ["a4paper", "letterpaper"])
@pytest.mark.parametrize("board", SHIPPED, ids=lambda board: board.name)
def test_the_pages_of_a_shipped_board_say_what_its_readme_says(board: Path, paper: str, tmp_path: Path) -> None:
    text, ends = compiled((board / "board.tex").read_text(encoding="ascii"), tmp_path, paper)
    assert min(right for right, _ in ends) > -3
    assert min(below for _, below in ends) > -3
    lines = [squeezed(line) for line in text.splitlines()]
    readme = (board / "README.md").read_text(encoding="utf-8").partition("## Detection")[0]
    for row in figures(readme):
        # The status may go on in the line below.
        value = ["Value"] if "Value" in row else []  # of a sweep: the differences to scratch are a table of their own
        names = [*value, *(name for name in FIGURES[:-1] if not (value and "scratch" in name))]
        cells = squeezed(" ".join(row[name] for name in names))
        assert any(line.startswith(f"{cells} {row['Status'].split()[0]}") for line in lines), cells
        if (row["Seconds"], row["Image-forwards"]) != ("-", "-"):
            assert squeezed(" ".join(row[name] for name in (*value, *COSTS))) in lines
        if value and row["Δ scratch ACC"] != "-":
            apart = ("Value", "Attack", "Defense", "Δ scratch ACC", "Δ scratch ASR")
            assert squeezed(" ".join(row[name] for name in apart)) in lines
    whole = squeezed(text).replace(" ", "")
    for note in re.findall(r"^- (\[\d+\] .*)$", readme, re.MULTILINE):
        assert squeezed(note).replace("\\", "").replace("&lt;", "<").replace("->", "→").replace(" ", "")[-12:] in whole


@pytest.mark.latex
def test_the_half_width_of_a_difference_is_on_the_page(tmp_path: Path) -> None:
    text, _ = compiled((LEADERBOARDS / "cifar10-small" / "board.tex").read_text(), tmp_path, "a4paper")
    assert "+8.61 ± 21.46" in text


@pytest.mark.latex
@pytest.mark.parametrize("paper", ["a4paper", "letterpaper"])
@pytest.mark.parametrize("document", ["populations", "comparison", "plan", "large plan"])
def test_other_documents_compile_and_stay_on_the_page(document: str, paper: str, tmp_path: Path) -> None:
    folder = LEADERBOARDS / "detect-shapes" / "records"
    detected = populations.document(read_inspected(folder)) if document == "populations" else None
    made = detected or (comparison(TABLE1, wide()) if document == "comparison" else DOCUMENTS[document]("badencoder"))
    text, ends = compiled(write(made), tmp_path, paper)
    assert min(right for right, _ in ends) > -3
    assert min(below for _, below in ends) > -3
    readme = (folder.parent / "README.md").read_text(encoding="utf-8")
    area = next(row["AUROC"] for row in markdown_rows(readme) if row.get("Detector") == "decree")
    assert re.fullmatch(r"[01]\.\d{3} \[[01]\.\d\d, [01]\.\d\d\]", area)
    assert {"populations": area, "comparison": "Mean ranks"}.get(document, "badencoder") in text


@pytest.mark.latex
@pytest.mark.parametrize("paper", ["a4paper", "letterpaper"])
def test_the_widest_figures_and_the_longest_names_stay_on_the_page(paper: str, tmp_path: Path) -> None:
    records = [
        make_record(
            attack,
            defense,
            seed,
            (100.0 * seed, 100.0 - 100 * seed, 100.0 * seed),
            (0.0, 100.0, 100.0 * seed),
            forwards=10**12,
            seconds=1e6,
            task="t" * 200,
            target_name="w中\x1b[31m\nx",
            notes=["y" * 400 + f" [z] é ≠ ``q'' <b> $5 {attack} {defense}"],
            on_board=False,
            departures=["x" * 200],
        )
        for attack in ("none", "a_third_partys-very-long-attack-name", "BADENCODERWITHNOBREAK" * 2)
        for defense in ("none", *(f"finetuning-finetuning-{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"))
        for seed in (0, 1)
    ]
    text, ends = compiled(render(records, "latex", "Leader " * 30, off_board=True), tmp_path, paper)
    assert min(right for right, _ in ends) > -3
    assert min(below for _, below in ends) > -3
    assert text.count("50.00 ± 635.31") == 3 * 81

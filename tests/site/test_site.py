"""The site: every link leads somewhere, nothing is loaded from elsewhere, hostile texts are text, the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchbd.base.errors import StoreError
from benchbd.planning.board import Board, boards_folder, load_board
from benchbd.planning.claims import Claim, Reported
from benchbd.records.files import place_of, read_inspected, read_records, write_records
from benchbd.records.models import Record
from benchbd.records.pictures import write_pictures
from benchbd.records.replicates import pooled
from benchbd.report.leaderboard import document
from benchbd.report.rows import Order
from benchbd.report.statistics import Interval
from benchbd.report.writers.cells import Cells
from benchbd.site.boards import Source
from benchbd.site.charts import Point, curves, scatter
from benchbd.site.files import MANIFEST, write_site
from benchbd.site.names import board_place, record_place, slug
from benchbd.site.pages import site
from benchbd.site.prose import html

from ..cli.test_cli import call, one_line
from ..records_factory import make_record, paper_like, png

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
CSP = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"
VOID = {"meta", "link", "img", "input", "br", "hr"}

FT = {
    "axis": "defense",
    "name": "ft",
    "version": "1",
    "distribution": "benchbd",
    "paper": "none & <none>",
    "help": "Trains on.\n\nOn the clean images, <b>only</b>.",
    "options": [{"name": "lr", "type": "float", "bounds": "> 0", "default": 0.1, "help": "step size"}],
}


class Page(HTMLParser):
    """Elements of a page as (name, attributes), the ids, and the texts of the cells of each table by its id, without
    the marks of notes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[tuple[str, str]] = []
        self._rows: list[list[str]] = []
        self.feed(text)
        assert self._open == []
        self.ids = {found["id"] for _, found in self.elements if "id" in found}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        if tag not in VOID:
            self._open.append((tag, found.get("class", "")))
        if tag == "table":
            self._rows = self.tables.setdefault(found.get("aria-labelledby", ""), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & {tag for tag, _ in self._open} and "note" not in {kind for _, kind in self._open}:
            self._rows[-1][-1] += data


BOARD = f"{board_place('demo')}/index.html"


def files_of(*sources: Source, off_board: bool = False) -> dict[str, str | bytes]:
    return dict(site(sources, [FT], {"planned": "Not yet"}, off_board))


def source(records: list[Record] | None = None, name: str = "demo", **fields: Any) -> Source:
    known = paper_like() if records is None else records
    return Source(load_board("demo").model_copy(update={"name": name}), known, **fields)


@pytest.fixture(scope="module")
def small() -> dict[str, str | bytes]:
    """The site of three published boards: cells, sweeps and detectors; of the latter two, some seeds."""
    found = []
    for name, seeds in (("cifar10-bassl", 1), ("detect-shapes", 2), ("sweeps-shapes", 1)):
        folder = boards_folder() / name / "records"
        records, inspected = read_records(folder), read_inspected(folder)
        kept = [record for record in records if record.seed <= seeds]
        looked = [record for record in inspected if record.seed <= seeds]
        found.append(Source(load_board(name), kept, looked, "# A note\n\ntext"))
    return files_of(*found)


@pytest.fixture(scope="module")
def pages(small: dict[str, str | bytes]) -> dict[str, Page]:
    return dict(parsed(small))


def parsed(files: dict[str, str | bytes]) -> Iterator[tuple[str, Page]]:
    for name, content in files.items():
        if name.endswith(".html"):
            assert isinstance(content, str)
            yield name, Page(content)


def test_every_kind_of_page_is_there(small: dict[str, str | bytes]) -> None:
    assert {"index.html", "rules.html", "join.html", "site.css", "site.js", ".nojekyll"} <= small.keys()
    for board in ("cifar10-bassl", "detect-shapes", "sweeps-shapes"):
        names = {"index.html", "records.html", "data.json", "board.csv", "board.tex", "board.bib"}
        assert {f"boards/{board}/{name}" for name in names} <= small.keys()
    assert "boards/detect-shapes/detections.csv" in small
    assert {"methods/defense/ft.html", "methods/attack/bassl.html", "methods/detection/decree.html"} <= small.keys()
    records = [name for name in small if re.fullmatch(r"records/[0-9a-f]{20}\.html", name)]
    assert len(records) == 36 + 16 + 44
    assert all(name.replace(".html", ".json") in small for name in records)


def test_links_lead_to_files_and_places_and_nothing_comes_from_elsewhere(
    small: dict[str, str | bytes], pages: dict[str, Page]
) -> None:
    for name, page in pages.items():
        ids = [found["id"] for _, found in page.elements if "id" in found]
        assert len(ids) == len(set(ids)), name
        for tag, found in page.elements:
            assert not {each for each in found if each.startswith("on") or each == "style"}, (name, tag)
            assert tag not in ("style", "iframe", "object", "embed", "base", "form")
            assert tag != "script" or found["src"].endswith("site.js")
            for reference in ("aria-labelledby", "for"):
                assert {*found.get(reference, "").split()} <= page.ids
            link = found.get("href" if tag in ("a", "link") else "src")
            if link is None or (tag == "a" and link.startswith(("https://", "http://"))):
                continue
            path, _, place = link.partition("#")
            parts = [*Path(name).parent.parts]
            for part in filter(None, path.split("/")):
                assert parts or part != ".."
                parts = parts[:-1] if part == ".." else [*parts, part]
            target = "/".join(parts) if path else name
            assert target in small, (name, link)
            assert not place or place in pages[target].ids, (name, link)
    style = small["site.css"]
    assert isinstance(style, str)
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in f"{style}{small['site.js']!r}"


def test_every_page_has_the_policy_and_a_language_and_one_first_heading(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        policies = [found["content"] for tag, found in page.elements if found.get("http-equiv")]
        assert policies == [CSP], name
        assert [found["lang"] for tag, found in page.elements if tag == "html"] == ["en"]
        assert [tag for tag, _ in page.elements].count("h1") == 1
        scripts = [found for tag, found in page.elements if tag == "script"]
        assert [{*found} for found in scripts] == [{"src", "defer"}]
        for tag, found in page.elements:
            if tag == "th":
                assert found.get("scope") in ("col", "row"), name


def test_two_builds_are_the_same_bytes_in_any_order_of_the_records() -> None:
    records = paper_like()
    other = files_of(source(list(reversed(records))))
    assert files_of(source(records)) == other
    assert not re.search(rb"20[0-9]{2}-[0-9]{2}|/tmp/|/home/", "".join(map(str, other.values())).encode())


def test_the_figures_of_a_page_are_those_of_the_document(small: dict[str, str | bytes], pages: dict[str, Page]) -> None:
    board = load_board("cifar10-bassl")
    records = read_records(boards_folder() / "cifar10-bassl" / "records")
    table = document([record for record in records if record.seed == 1], order=Order.of(board))
    page = pages["boards/cifar10-bassl/index.html"]
    wanted = [
        [re.sub(r" \[[\d,-]+\]$", "", text) for text in texts]
        for section in table.sections
        for each in section.tables
        for texts in Cells(table).rows(section.columns, each.rows)
    ]
    heads = [column.full for section in table.sections for column in section.columns]
    shown = [rows for name, rows in page.tables.items() if re.fullmatch(r"t\d+", name)]
    assert [head for rows in shown for head in rows[0] if head not in ("Records", "Image-forwards", "Claims")] == [
        head for head in heads if head != "Image-forwards"
    ]
    cells = [row for rows in shown for row in rows[1:]]
    assert len(cells) == len(wanted) == 12 + 36
    for own, theirs in zip(cells, wanted, strict=True):
        assert own[: len(theirs) - 1] == theirs[:-1]
        assert own[len(theirs) - 1].startswith(theirs[-1])
    data = json.loads(small["boards/cifar10-bassl/data.json"])
    assert data == table.data
    assert [row["defense"] for row in data["rows"][:2]] == ["none", "scratch"]


def test_the_tables_of_sweeps_stand_together_with_curves(small: dict[str, str | bytes], pages: dict[str, Page]) -> None:
    text = small["boards/sweeps-shapes/index.html"]
    assert isinstance(text, str)
    cells, swept = re.findall(r"<h2>(?:Cells|Sweeps)</h2>(.*?)(?=<h2)", text, re.DOTALL)
    assert (cells.count("<table"), cells.count("Sweep ")) == (1, 0)
    assert re.findall(r"<h3[^>]*>Sweep ([a-z-]+)", swept) == ["trigger-size", "clean-images", "poisoned"]
    assert swept.count("<figure>") == 2 * 3
    assert swept.count('class="curve') == 2 * (6 + 4 + 4)


def test_hostile_texts_are_text() -> None:
    strange = f"{HOSTILE}\u202e\x1b[2J"
    record = make_record(
        "badencoder", "ft", notes=[HOSTILE], author=HOSTILE, target_name=strange, findings={"x": HOSTILE}
    )
    named = make_record(
        HOSTILE, HOSTILE, pretrain=HOSTILE, machine={"device": HOSTILE}, point={"clean.images": HOSTILE}
    )
    files = files_of(
        source([make_record(), record, named], notes=f"{HOSTILE}\n\n[a](javascript:alert(1)) ![b](http://e.x/c)\n")
    )
    for name, page in parsed(files):
        text = files[name]
        assert isinstance(text, str)
        assert [tag for tag, _ in page.elements].count("script") == 1
        assert "img" not in {tag for tag, _ in page.elements}
        assert "<script>alert" not in text
        assert not re.search(r'(href|src)="\s*(javascript|data):', text)
        assert "\u202e" not in text
        assert "\x1b" not in text
    assert all(re.fullmatch(r"[\w./-]+", name) for name in files)
    assert "\\u202e" in "".join(map(str, files.values()))


def test_claims_are_badges_of_rows_and_on_the_pages_of_methods() -> None:
    claims = {
        "ft": Claim(confirmed=f"A. Author {HOSTILE}", challenged="adaptive"),
        "mimic": Claim(supersedes=("ft",), reported=Reported(asr=1.5, source=HOSTILE)),
    }
    own = [
        *paper_like(),
        *(make_record("adaptive", name, 0, (80.0, 71.0, 71.0)) for name in ("ft", "none")),
    ]
    made = source(own)
    claiming = replace(made, board=made.board.model_copy(update={"claims": claims}))
    files = files_of(claiming)
    pages = dict(parsed(files))
    head, *rows = pages["boards/demo/index.html"].tables["t1"]
    at, by = head.index("Claims"), head.index("Defense")
    assert {row[by]: row[at] for row in rows} == {
        "ft": "confirmed by its authors superseded by mimic challenged by adaptive: ASR non-target 71.0",
        "mimic": "not confirmed by its authors",
        "none": "",
        "scratch": "",
    }
    assert {row[by]: row[head.index("Reported ASR")] for row in rows}["mimic"] == "1.5"
    text = str(files["methods/defense/ft.html"])
    assert '<span class="badge confirmed">confirmed by its authors</span> A. Author &#34;&gt;&lt;script&gt;' in text
    assert '<span class="badge challenged">challenged by adaptive</span>' in text
    assert "reported by its authors: ASR 1.5 (&#34;&gt;&lt;script&gt;" in str(files["methods/defense/mimic.html"])
    assert "What boards say of it" not in str(files["methods/defense/scratch.html"])
    for page in pages.values():
        assert [tag for tag, _ in page.elements].count("script") == 1
        assert "img" not in {tag for tag, _ in page.elements}
    (told,) = json.loads(files["boards/demo/data.json"])["summary"]
    assert {each["defense"]: each["superseded_by"] for each in told["standings"]}["ft"] == ["mimic"]
    assert "<h2>Claims</h2>" in str(files["rules.html"])


def test_a_name_that_is_no_name_of_a_file_gets_a_digest() -> None:
    assert slug("decree") == "decree"
    for name in ("../../etc/passwd", "con/..", "", "A", "a" * 99, "ä", "a.b", HOSTILE):
        assert re.fullmatch(r"[a-z0-9-]{1,60}\.[0-9a-f]{20}", slug(name))
    assert slug("A") != slug("Ä")


def test_markdown_of_notes_keeps_text_and_links_to_other_sites_alone() -> None:
    made = html("# Top\n\n[a](x.md) [b](https://e.x) <i>c</i>\n\n| d | e |\n|---|--:|\n| 1 | 2 |\n")
    assert "<h3>Top</h3>" in made
    assert made.count("<a ") == 1
    assert 'href="https://e.x" rel="nofollow noopener noreferrer"' in made
    assert "&lt;i&gt;c" in made
    assert "style=" not in made
    assert '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>' in made


def test_the_front_has_the_defenses_that_no_other_beats() -> None:
    def point(name: str, asr: float, acc: float, kind: str = "method") -> Point:
        return Point(name, kind, Interval(asr), Interval(acc, 1.0))

    points = [point("a", 5, 70), point("b", 10, 80), point("c", 11, 79), point("d", 90, 81), point("e", 1, 90, "void")]
    chart = scatter("title", points)
    assert chart is not None
    assert list(chart.front_names) == ["a", "b", "d"]
    assert chart.points[0].title == "a: ACC 70.00 ± 1.00, ASR non-target 5.00"
    places = {each.name: (each.x, each.y) for each in chart.points}
    assert places["a"][0] < places["b"][0] < places["d"][0]
    assert places["d"][1] < places["b"][1] < places["a"][1]  # a larger ACC is further up
    assert scatter("title", points[:2]) is None


def test_a_sweep_has_a_line_for_each_attack_and_defense_and_a_gap_where_a_value_lacks() -> None:
    chart = curves("title", "ACC", ["3", "5", "10"], [("x / ft", [Interval(10.0), Interval(), Interval(50.0, 2.0)])])
    (line,) = chart.curves
    assert [text for _, _, text in line.marks] == ["x / ft, 3: ACC 10.00", "x / ft, 10: ACC 50.00 ± 2.00"]
    assert line.marks[0][1] > line.marks[1][1]
    assert len(line.bars) == 1


def test_the_picture_of_a_record_is_shown_and_its_lack_is_said(tmp_path: Path) -> None:
    records = [make_record(), make_record(defense="ft")]
    paths = write_records(records, tmp_path)
    write_pictures(paths[1], {"trigger": png(), "features": png(9)})
    folder = paths[1].with_suffix("")
    (folder / "attention.png").write_bytes(b"<svg onload=alert(1)>")
    (folder / "fake.png").write_bytes(png(7))
    (folder / "other.svg").write_text("<svg/>")
    files = files_of(source(read_records(tmp_path)))
    pages = {name: str(content) for name, content in files.items() if re.match(r"records/.*html", name)}
    assert sum("There are no pictures beside this record." in page for page in pages.values()) == 1
    (shown,) = (found for _, found in parsed(pages) if any(tag == "img" for tag, _ in found.elements))
    pictures = {name: content for name, content in files.items() if name.startswith("pictures/")}
    assert list(pictures.values()) == [png(), png(9)]
    places = [f"../{name}" for name in pictures]
    assert [found["src"] for tag, found in shown.elements if tag == "img"] == places
    assert [found["href"] for tag, found in shown.elements if tag == "a" and "pictures/" in found["href"]] == places
    alts = [found["alt"] for tag, found in shown.elements if tag == "img"]
    assert alts == ["Picture: Trigger", "Picture: Features of test images in two dimensions"]


def test_a_site_replaces_its_own_files_and_no_others(tmp_path: Path) -> None:
    assert write_site(tmp_path / "new", [("a/b.html", "1"), ("c.html", b"2")]) == 2
    assert write_site(tmp_path / "new", [("c.html", "3")]) == 1
    assert sorted(path.name for path in (tmp_path / "new").rglob("*") if path.is_file()) == [MANIFEST, "c.html"]
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"has files, but is no site of benchbd; give an empty folder"):
        write_site(tmp_path, [("c.html", "3")])
    (tmp_path / "new" / MANIFEST).write_text("../own.txt\n/etc/none\nc.html\n")
    write_site(tmp_path / "new", [])
    assert (tmp_path / "own.txt").read_text() == "mine"
    assert not (tmp_path / "new" / "c.html").exists()


def test_the_command_writes_a_site_and_says_where(tmp_path: Path) -> None:
    write_records([make_record(), make_record(defense="ft")], tmp_path / "records")
    build = ["leaderboard", "build", "demo", "--records", tmp_path / "records", "--site", tmp_path / "site"]
    done = call(*build)
    assert (done.exit_code, done.stdout) == (0, "")
    assert re.fullmatch(r"wrote a site of \d+ files; open \S+/site/index.html\n", done.stderr)
    assert (tmp_path / "site" / "boards" / "demo" / "index.html").is_file()
    assert "clean images" in (tmp_path / "site" / "methods" / "defense" / "ft.html").read_text()
    one_line(call(*build, "--out", tmp_path / "out"), "--site writes a site and --out tables; give one of them")
    one_line(
        call("leaderboard", "build", "--records", tmp_path, "--site", tmp_path / "site"),
        "--records holds the records of one board; name it: leaderboard build BOARD --site DIR",
    )


def test_a_board_without_records_is_named_alone() -> None:
    index = files_of(source())["index.html"]
    assert isinstance(index, str)
    assert "<dt>planned</dt><dd>Not yet</dd>" in index
    assert Board  # the type of a source's board


def test_rows_are_marked_that_others_reproduced_or_an_earlier_method_made() -> None:
    plain = files_of(source())
    assert "Marks" not in str(plain[BOARD])
    records = paper_like()
    twins = [record.model_copy(update={"source": "b" * 16, "reason": " "}) for record in records]
    known = pooled([*records, *twins])
    told = "defense ft, version 0; version 1 is installed"
    old = {place_of(record): told for record in known if record.defense == "ft"}
    made = files_of(source(known, outdated=old))
    page = str(made[BOARD])
    assert page.count(">reproduced by 2<") == len({(r.attack, r.defense, r.task) for r in known if r.metrics})
    assert page.count(">earlier version<") == len({(r.attack, r.task) for r in known if r.defense == "ft"})
    one = next(record for record in known if record.defense == "ft")
    its = str(made[f"{record_place(one)}.html"])
    assert told in its
    assert f"<dt>reproduced by</dt><dd>{'b' * 16}</dd>" in its


def test_rows_are_marked_whose_records_were_computed_again() -> None:
    known = paper_like()
    ft = [place_of(record) for record in known if record.defense == "ft" and record.attack == "none"]
    some = next(place_of(r) for r in known if r.attack == "badencoder" and r.defense == "none")  # one of three seeds
    page = str(files_of(source(known, verified={**dict.fromkeys(ft, (3, "compatible")), some: (2, "equal")}))[BOARD])
    assert page.count(">tier 3<") == len(ft)
    assert ">tier 2<" not in page

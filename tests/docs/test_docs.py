"""Generated texts are current, and the README's examples work."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import benchbd
from benchbd.contract import hookspecs
from benchbd.contract.axes import AXES
from benchbd.planning.board import boards_folder, load_board
from benchbd.records.files import read_inspected, read_records
from benchbd.registry import Registry, load_registry
from benchbd.report.gallery import GALLERY, gather_published
from benchbd.report.leaderboard import build
from benchbd.report.rows import Order
from benchbd.testing import check_method
from docs.generate import pages, with_boards

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PUBLISHED = [path.parent for path in sorted(boards_folder().glob("*/records"))]


def test_pages_are_current(registry: Registry) -> None:
    made = pages(registry)
    pages_of_hand = {"concepts.md", "encoders.md", "join.md", "tutorial.md"}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - pages_of_hand == {n for n in made if n[-3:] == ".md"}
    for name, page in made.items():
        assert (ROOT / "docs" / name).read_text() == page, f"docs/{name}: run make docs"


def test_every_option_and_field_is_described(registry: Registry) -> None:
    rows = [line for page in pages(registry).values() for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row for row in rows if not row.removesuffix("|").rpartition(" | ")[2].strip()] == []


@pytest.mark.parametrize("name", benchbd.__all__)
def test_every_public_name_has_an_entry(name: str) -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert len(re.findall(rf"^(class {name}[(:]|def {name}\(|{name} = )", text, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for place, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", path.read_text()):
        other = path.parent / place if place else path
        assert other.is_file(), place
        titles = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
        assert not heading or heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_shows_the_published_board() -> None:
    assert with_boards(README) == README, "run make docs"
    shown = re.findall(
        r"^\| (\S+) +\| (\S+) +\|", README.partition("<!-- board:")[2].partition("<!-- end")[0], re.MULTILINE
    )
    assert shown[:2] == [("Attack", "Defense"), ("none", "none")]
    assert len(shown) == 1 + 6


def test_the_first_screen_of_the_readme_is_install_command_and_output() -> None:
    screen = "\n".join(README.splitlines()[:24])
    assert "$ pip install ." in screen
    assert "$ benchbd run " in screen
    assert "badencoder none " in screen


def test_the_citation_and_the_package_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {benchbd.__version__}\n" in citation
    assert "license: Apache-2.0\n" in citation


def test_the_gallery_follows_from_the_published_records() -> None:
    gallery = gather_published()
    assert GALLERY.read_text() == gallery.to_json(), "run make docs"
    files = boards_folder().glob("*/records/detections/*.json")
    published = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    known = [each.record for of in gallery.populations for each in (*of.clean, *of.attacked)]
    assert len(known) == len(set(known)) > 0
    assert set(known) <= published
    missing = sum(gallery.left_out.values()) + sum(sum(of.left_out.values()) for of in gallery.populations)
    assert len(known) + missing == len(published)


def test_the_package_holds_its_types_and_its_pages() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in ("benchbd", "plugins/benchbd_plugins"))
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    shipped = {f"docs/{path.name}": f"benchbd/docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    shipped |= {name: f"benchbd/{name}" for name in ("LICENSE", "docs/examples", "docs/templates/distribution")}
    assert wheel["force-include"] == shipped


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_tables_follow_from_their_records(folder: Path) -> None:
    board = load_board(folder)
    records = read_records(folder / "records")
    detected = read_inspected(folder / "records")
    files = build(board.name, records, order=Order.of(board), description=board.description, inspected=detected)
    notes = folder / "notes.md"
    for name, text in files.items():
        written = (folder / name).read_text()
        if name == "README.md" and notes.is_file():
            assert "## Notes\n\n" + notes.read_text().strip() in written
            written = written.replace("## Notes\n\n" + notes.read_text().strip(), "").rstrip() + "\n"
        assert written == text, f"{folder.name}/{name}: run make docs"


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_records_are_whole_and_on_board(folder: Path) -> None:
    records = read_records(folder / "records")
    assert records
    for record in records:
        assert record.on_board
        assert record.board == folder.name
        assert record.name in {path.name for path in (folder / "records").iterdir()}
        assert record.counts is not None
        assert record.metrics is not None
        assert record.metrics.asr_nontarget == pytest.approx(
            100 * record.counts.hits_nontarget / record.counts.nontarget, abs=1e-3
        )


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readmes_plugins_are_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defense, detector = (block for block in blocks("python") if "@hookimpl" in block)
    (tmp_path / "benchbd_shrink.py").write_text(defense)
    (tmp_path / "benchbd_crowded.py").write_text(detector)
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    modules: list[Any] = [importlib.import_module(name) for name in ("benchbd_shrink", "benchbd_crowded")]
    check_method(*modules[0].benchbd_defenses(), factor=0.8)
    check_method(*modules[1].benchbd_detections())
    extra = {module.__name__: module for module in modules}
    assert load_registry(extra=extra).problems == []
    (entry,) = (tomllib.loads(block) for block in blocks("toml"))
    assert entry["project"]["entry-points"]["benchbd"] == {"shrink": "benchbd_shrink"}


def test_every_hook_is_documented_and_used() -> None:
    hooks = {name: value for name, value in vars(hookspecs).items() if name.startswith("benchbd_")}
    assert {axis.hook for axis in AXES} < set(hooks)
    for name, hook in hooks.items():
        assert hook.__doc__, name
        assert hook.benchbd_spec["firstresult"] is False, name


def test_commands_of_the_readme_exist(registry: Registry) -> None:
    from benchbd.cli.main import main

    for name in re.findall(r"^\$ benchbd (\w+)", README, re.MULTILINE):
        assert name in main.commands
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in re.findall(r"make (\w+)", README):
        assert name in targets or name == "sure"

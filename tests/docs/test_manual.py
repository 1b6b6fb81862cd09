"""The docs as a website: its pages are those of docs/, every link leads somewhere, and nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = (ROOT / "mkdocs.yml").read_text()
NAV = re.findall(r"^  - (\S+\.md)$", CONFIG, re.MULTILINE)


def test_the_site_has_every_page_once() -> None:
    assert sorted(NAV) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert NAV[0] == "index.md"
    index = (ROOT / "docs" / "index.md").read_text()
    assert re.findall(r"^- \[.*?\]\((.*?)\)", index, re.MULTILINE) == NAV[1:]


def test_the_site_fetches_no_fonts() -> None:
    assert re.search(r"^  font: false$", CONFIG, re.MULTILINE)
    assert not re.findall(r"https?://", CONFIG)


def built(folder: Path) -> subprocess.CompletedProcess[str]:
    """`mkdocs build --strict` of the project in a folder. With --quiet it would count no warning."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


@pytest.mark.manual
def test_it_is_built_without_warnings_and_asks_nobody(project: Path) -> None:
    done = built(project)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.name: path.read_text() for path in (project / "site").glob("*.html")}
    assert {name.replace(".html", ".md") for name in pages} - {"404.md"} == set(NAV)
    for name, page in pages.items():
        fetched = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=[\"']?([^\"' >]+)", page)
        assert fetched, name
        assert not [address for address in fetched if re.match(r"(https?:)?//", address)], name
    for sheet in (project / "site").rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet.name


@pytest.mark.manual
@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("[nowhere](nowhere.md)", "nowhere.md"),
        ("[nowhere](concepts.md#nowhere)", "#nowhere"),
        (None, "extra.md"),
    ],
)
def test_a_link_to_nothing_and_a_page_outside_the_list_stop_it(project: Path, text: str | None, warning: str) -> None:
    page = project / "docs" / ("extra.md" if text is None else "index.md")
    page.write_text(text or "# Extra\n")
    done = built(project)
    assert done.returncode == 1
    assert warning in done.stderr

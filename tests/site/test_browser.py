"""The site in a browser: sorting, filters, links, dark mode, a phone, accessibility, hostile names.

Each check returns the faults that it finds, and is shown to find those of a build that is broken on purpose.
`make browser` installs Playwright, Debian's chromium and axe-core.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from benchbd.planning.board import boards_folder, load_board
from benchbd.planning.claims import Claim, Reported
from benchbd.records.files import read_inspected, read_records, write_records
from benchbd.records.pictures import write_pictures
from benchbd.site.boards import Source
from benchbd.site.files import write_site
from benchbd.site.pages import site

from ..records_factory import make_record, png
from .test_site import FT, HOSTILE

pytestmark = pytest.mark.browser

AXE = Path(__file__).resolve().parents[2] / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "chromium"

BOARD = "boards/cifar10-bassl/index.html"

KINDS = {
    "index": "index.html",
    "board": BOARD,
    "sweeps": "boards/sweeps-shapes/index.html",
    "detectors": "boards/detect-shapes/index.html",
    "records": "boards/cifar10-bassl/records.html",
    "method": "methods/defense/ft.html",
    "record": "records/*.html",
    "rules": "rules.html",
    "join": "join.html",
}

Page = Any
"""A page of Playwright, which only ``make browser`` installs."""


def write(folder: Path) -> Path:
    """The site of three published boards, of a seed of each, and of a board of hostile records. Records of the first
    board have pictures."""
    sources = []
    for name in ("cifar10-bassl", "detect-shapes", "sweeps-shapes"):
        place = boards_folder() / name / "records"
        records = [record for record in read_records(place) if record.seed == 1]
        if name == "cifar10-bassl":
            for path in write_records(records, folder.parent / "records"):
                write_pictures(path, {"trigger": png(930, 560), "features": png(1010, 460, colour=9)})
            records = read_records(folder.parent / "records")
        inspected = [record for record in read_inspected(place) if record.seed == 1]
        notes = (boards_folder() / name / "notes.md").read_text() if name == "cifar10-bassl" else ""
        sources.append(Source(load_board(name), records, inspected, notes))
    strange = [
        make_record(),
        make_record(defense="ft", notes=[HOSTILE], author=HOSTILE, findings={"x": HOSTILE}),
        make_record(HOSTILE, HOSTILE, pretrain=HOSTILE, machine={"device": HOSTILE}, metrics=(3.0, 2.0, 1.0)),
    ]
    claim = Claim(confirmed=HOSTILE, challenged=HOSTILE, reported=Reported(acc=1.0, source=HOSTILE))
    told = {"name": "hostile", "title": HOSTILE, "description": HOSTILE, "claims": {"ft": claim}}
    hostile = load_board("demo").model_copy(update=told)
    sources.append(Source(hostile, strange, notes=f"{HOSTILE} ![x](http://example.invalid/x.png)"))
    write_site(folder, site(sources, [FT], {HOSTILE: HOSTILE}))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("site") / "of boards")  # a space, as in a user's folders


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu"])
        yield started
        started.close()


class Opened:
    """Pages of a site, with all that they asked for, said and showed.

    base: the address of the site; pages that ask for another one are at fault.
    """

    def __init__(self, browser: Any, base: str, **options: Any) -> None:
        self.base, self.faults = base, list[str]()
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.on("dialog", self._dialog)
        self.page.on("request", self._request)
        self.page.on("response", self._response)
        self.page.on("pageerror", lambda error: self.faults.append(f"error {error}"))
        self.page.on("console", lambda said: said.type == "error" and self.faults.append(f"console {said.text}"))

    def open(self, place: str) -> Page:
        self.page.goto(f"{self.base}/{place}", wait_until="load")
        return self.page

    def close(self) -> None:
        self.context.close()

    def _dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Any) -> None:
        if not request.url.startswith(self.base):
            self.faults.append(f"asks for {request.url}")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status} for {response.url}")


Check = Callable[[Opened, Path], list[str]]


def place_of(folder: Path, pattern: str) -> str:
    """The first page of this pattern; of records, one of a repaired encoder with all of its parts."""
    found = sorted(folder.glob(pattern))
    parts = "Counts of test images", "head 3", "<img "
    full = [path for path in found if all(part in path.read_text() for part in parts)]
    return str((full or found)[0].relative_to(folder))


def column(page: Page, table: str, heading: str) -> list[str]:
    """The texts of a column, from the first row shown to the last."""
    script = """([id, heading]) => {
      const table = document.querySelector(`table[aria-labelledby="${id}"]`);
      const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.innerText.trim() === heading);
      return [...table.tBodies[0].rows].filter((row) => row.offsetParent).map((row) => row.cells[at].innerText.trim());
    }"""
    found: list[str] = page.evaluate(script, [table, heading])
    return found


def head(page: Page, table: str, heading: str) -> Any:
    return page.locator(f'table[aria-labelledby="{table}"] thead th', has_text=heading).first


def sorting(opened: Opened, folder: Path) -> list[str]:
    """By a click and by a key: numbers as numbers, rows without one last, and what a screen reader hears."""
    page, faults = opened.open(BOARD), []
    before = column(page, "t1", "Δ ft ACC")
    acc = head(page, "t1", "Δ ft ACC")
    if acc.get_attribute("aria-sort") != "none":
        faults.append("sorted before a click")
    known = sorted(float(text) for text in before if text != "-")
    for press, said, numbers in (
        (lambda: acc.get_by_role("button").click(), "ascending", known),
        (lambda: acc.get_by_role("button").press("Enter"), "descending", known[::-1]),
    ):
        press()
        if acc.get_attribute("aria-sort") != said:
            faults.append(f"aria-sort is not {said}")
        shown = column(page, "t1", "Δ ft ACC")
        if shown != [f"{number:+.2f}" for number in numbers] + ["-"] * before.count("-"):
            faults.append(f"{said}: {shown}")
    head(page, "t1", "Defense").get_by_role("button").click()
    if (names := column(page, "t1", "Defense")) != sorted(names):
        faults.append(f"names: {names}")
    if acc.get_attribute("aria-sort") != "none":
        faults.append("two columns are sorted")
    return faults


def filtering(opened: Opened, folder: Path) -> list[str]:
    """By words and by status, in all tables of a page, with the number of rows."""
    page, faults = opened.open(BOARD), []
    total = page.locator("table.filterable tbody tr").count()
    page.get_by_label("Show rows with").fill("badencoder MIMIC", timeout=2000)
    rows = page.locator("table.filterable tbody tr:visible").all_inner_texts()
    if len(rows) != 1 or "badencoder" not in rows[0] or "mimic" not in rows[0]:
        faults.append(f"words: {rows}")
    if page.get_by_role("status").inner_text() != f"1 of {total} rows":
        faults.append(page.get_by_role("status").inner_text())
    page.get_by_label("Show rows with").fill("")
    page.get_by_label("Status").select_option("collapsed")
    if shown := page.locator("table.filterable tbody tr:visible").count():
        faults.append(f"{shown} rows collapsed")
    page.get_by_label("Status").select_option("ok")
    if page.locator("table.filterable tbody tr:visible").count() != 12 + 36:
        faults.append("not all rows are ok")
    return faults


def links(opened: Opened, folder: Path) -> list[str]:
    """From the index to a board, a method, a record and its JSON; a footnote; the skip link."""
    page = opened.open("index.html")
    page.keyboard.press("Tab")
    skip = page.evaluate("document.activeElement.innerText")
    faults = [] if skip == "Skip to the content" else [f"first is {skip}"]
    page.get_by_role("link", name="cifar10-bassl").click()
    page.locator("a.note").first.click()
    if not page.evaluate("document.querySelector(':target')?.innerText"):
        faults.append("a footnote leads nowhere")
    page.locator('table[aria-labelledby="t2"] td a[href*="records/"]').first.click()
    page.wait_for_url("**/records/*.html")
    page.wait_for_load_state()
    shown = page.locator("figure img").evaluate_all("all => all.map((each) => each.naturalWidth)")
    if shown != [930, 1010]:
        faults.append(f"pictures are not shown: {shown}")
    page.get_by_role("link", name="none").first.click()
    if "none" not in page.get_by_role("heading", level=1).inner_text():
        faults.append("a record does not lead to its method")
    page.get_by_role("navigation", name="Site").get_by_role("link", name="Rules").click()
    if page.get_by_role("heading", level=2).count() < 5:
        faults.append("the rules are short")
    for name in ("Boards", "Methods", "How to join"):
        page.get_by_role("navigation", name="Site").get_by_role("link", name=name).click()
    page.goto(f"{opened.base}/{BOARD}")
    for link in page.locator("#downloads + ul a").all():
        answer = page.request.get(link.evaluate("each => each.href")) if opened.base.startswith("http") else None
        if answer is not None and (not answer.ok or not answer.body()):
            faults.append(f"no {link.inner_text()}")
    return [*faults, *opened.faults]


def narrow(opened: Opened, folder: Path) -> list[str]:
    """No page is wider than a phone; only tables and charts scroll inside themselves."""
    faults = []
    for kind, pattern in {**KINDS, "hostile": "boards/hostile/index.html"}.items():
        page = opened.open(place_of(folder, pattern))
        for details in page.locator("details").all():
            details.evaluate("each => { each.open = true; }")
        wide, room = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        if wide > room:
            faults.append(f"{kind} is {wide} wide of {room}")
    return faults


def accessible(opened: Opened, folder: Path) -> list[str]:
    """axe finds nothing that is serious or critical on any kind of page."""
    faults = []
    script = AXE.read_text()
    for kind, pattern in KINDS.items():
        page = opened.open(place_of(folder, pattern))
        page.evaluate(script)
        found = page.evaluate("axe.run().then((found) => found.violations)")
        for each in found:
            if each["impact"] in ("serious", "critical"):
                faults.append(f"{kind}: {each['id']} {each['nodes'][0]['html'][:200]}")
    return faults


def harmless(opened: Opened, folder: Path) -> list[str]:
    """No dialog, no error, no request to elsewhere, on any page of the hostile board and its methods."""
    paths = [*folder.glob("*.html"), *folder.glob("boards/*/*.html"), *folder.glob("methods/*/*.html")]
    records = [path for path in folder.glob("records/*.html") if "hostile" in path.read_text()]
    for path in sorted([*paths, *records]):
        opened.open(str(path.relative_to(folder)))
    return opened.faults


def dark(opened: Opened, folder: Path) -> list[str]:
    """A reader who prefers dark gets a dark ground and light text."""
    page = opened.open(BOARD)
    script = (
        "['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
    )
    ground, ink = (sum(values[:3]) / 3 for values in page.evaluate(script))
    return [] if ground < 64 and ink > 192 else [f"ground {ground:.0f}, text {ink:.0f}"]


CHECKS: dict[Check, dict[str, Any]] = {
    sorting: {},
    filtering: {},
    links: {},
    narrow: {"viewport": {"width": 360, "height": 740}},
    accessible: {},
    dark: {"color_scheme": "dark"},
    harmless: {},
}


def found_by(check: Check, browser: Any, folder: Path, base: str | None = None, **options: Any) -> list[str]:
    opened = Opened(browser, base or folder.as_uri(), **{**CHECKS[check], **options})
    try:
        return check(opened, folder)
    finally:
        opened.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_folder_in_a_browser(check: Check, built: Path, browser: Any) -> None:
    assert found_by(check, browser, built) == []


def test_accessible_in_the_dark(built: Path, browser: Any) -> None:
    assert found_by(accessible, browser, built, color_scheme="dark") == []


def test_below_a_path_of_a_server(built: Path, browser: Any, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "some" / "project")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *said: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/some/project"
    try:
        assert found_by(links, browser, built, base) == []
        assert found_by(sorting, browser, built, base) == []
    finally:
        server.shutdown()
        server.server_close()


BROKEN: list[tuple[Check, str, str, str]] = [
    (sorting, "site.js", "return a - b", "return one < other ? -1 : 1"),
    (sorting, "site.js", 'heading.setAttribute("aria-sort", direction)', ""),
    (filtering, "site.js", "row.hidden = !kept", "row.hidden = kept"),
    (links, "index.html", 'href="boards/cifar10-bassl/index.html"', 'href="boards/none/index.html"'),
    (narrow, "site.css", "overflow-x: auto", "overflow-x: visible"),
    (accessible, "site.css", "--dim: #565e68", "--dim: #c9ced5"),
    (dark, "site.css", "prefers-color-scheme: dark", "prefers-color-scheme: light"),
    (harmless, "boards/hostile/index.html", "&lt;img src=x onerror=alert(1)&gt;", "<img src=http://example.invalid/x>"),
    (harmless, "boards/hostile/index.html", "<h1>", "<script>alert(1)</script><h1>"),
]


@pytest.mark.parametrize(
    ("check", "file", "sound", "broken"), BROKEN, ids=[f"{each[0].__name__}-{at}" for at, each in enumerate(BROKEN)]
)
def test_a_broken_build_is_found(
    check: Check, file: str, sound: str, broken: str, built: Path, browser: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "site")
    text = (folder / file).read_text()
    assert sound in text
    (folder / file).write_text(text.replace(sound, broken))
    from playwright.sync_api import Error

    try:
        found = found_by(check, browser, folder)
    except Error as error:
        found = [str(error)]
    assert found != []

"""The pages of a site of boards, as texts by file name: nothing needs a server, and no page loads from elsewhere.

Records, names, notes and docstrings are strangers' texts: Jinja escapes all of them, `plain` shows their unprintable
characters, and no file has a name from them. Nothing here has a date, and everything is in an order of its own, so
that the same records give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from benchbd._version import __version__
from benchbd.base.content import shipped
from benchbd.contract.axes import AXES
from benchbd.report.writers.json import json_text
from benchbd.report.writers.safe import paragraphs, plain
from benchbd.site import prose
from benchbd.site.boards import BoardPage, Source, method_rows
from benchbd.site.names import board_place, method_place, record_place
from benchbd.site.records import record_page
from benchbd.site.tables import STATUSES, grids

HERE = Path(__file__).parent

RULES = (
    *("Metrics", "Floor", "Scratch", "BatchNorm statistics alone", "Heads and reference inputs", "Gates", "Ranks"),
    *(
        "Claims",
        "Replicates and earlier versions",
        "Published encoders",
        "Roles",
        "On-board",
        "Sweeps",
        "Tasks without an attack",
        "Detectors",
        "Image-forwards",
        "How to read a table",
    ),
)
"""The sections of docs/concepts.md that are the page of rules."""

Method = Mapping[str, Any]
"""What a method declares: axis, name, version, distribution, paper, help and options."""


@dataclass(frozen=True)
class Named:
    """A method with its page, and what it declares if it is installed here."""

    axis: str
    name: str
    about: Method | None

    @property
    def place(self) -> str:
        return method_place(self.axis, self.name)

    @property
    def line(self) -> str:
        return (
            str(self.about["help"]).strip().split("\n")[0] if self.about else "not installed where this site was built"
        )


def site(
    sources: Sequence[Source], methods: Iterable[Method], without: Mapping[str, str], off_board: bool = False
) -> Iterator[tuple[str, str | bytes]]:
    """The files of a site: name and content.

    methods: those of benchbd, and those of the records that are installed. without: boards that have no records, with
    their titles. off_board: whether off-board records have rows. DataError for records of two protocols.
    """
    known: dict[tuple[str, str], Method | None] = {(each["axis"], each["name"]): each for each in methods}
    named = {of for source in sources for record in (*source.records, *source.inspected) for of in record.methods}
    known |= {of: known.get(of) for of in sorted(named)}
    found = [Named(axis.name, name, known[axis.name, name]) for axis in AXES for name in _names(known, axis.name)]
    links = {(each.axis, each.name): each.place for each in found}
    boards = [BoardPage(source, links, known, off_board) for source in sources]
    templates = _Templates()
    first = ("attack", "defense", "detection")  # what readers look for
    axes = sorted(AXES, key=lambda axis: (axis.name not in first, first.index(axis.name) if axis.name in first else 0))
    by_axis = [(axis, [each for each in found if each.axis == axis.name]) for axis in axes]
    shown = {"by_axis": [(axis, each) for axis, each in by_axis if each]}
    yield "index.html", templates("index.html", "index.html", boards=boards, without=sorted(without.items()), **shown)
    yield "rules.html", templates("rules.html", "text.html", title="Rules", text=_rules())
    yield "join.html", templates("join.html", "text.html", title="How to join", text=_join())
    for board in boards:
        place = board_place(board.name)
        yield f"{place}/index.html", templates(f"{place}/index.html", "board.html", board=board, statuses=STATUSES)
        yield (
            f"{place}/records.html",
            templates(f"{place}/records.html", "records.html", board=board, grid=board.listed(), statuses=STATUSES),
        )
        yield from ((f"{place}/{name}", text) for name, text in board.files.items())
    for method in found:
        rows = [
            grid
            for document in method_rows(boards, method.axis, method.name)
            for grid in grids(document, _columns(links, boards))
        ]
        used = [board for board in boards if (method.axis, method.name) in board.methods]
        said = [(board.name, each) for board in used if (each := board.claimed.get((method.axis, method.name)))]
        claims = [(board, each) for board, each in said if each.marks or each.report]
        told = {"rows": rows, "used": used, "claims": claims, "statuses": STATUSES}
        yield method.place, templates(method.place, "method.html", method=method, **told)
    pictures: set[str] = set()
    for board in boards:
        for record in board.everything:
            page = record_page(record, board, links)
            place = f"{record_place(record)}.html"
            yield place, templates(place, "record.html", page=page, record=record, board=board)
            yield f"{record_place(record)}.json", record.to_json()
            for picture in page.pictures:
                if picture.place not in pictures:
                    yield picture.place, picture.content
                pictures.add(picture.place)
    for name in ("icon.svg", "site.css", "site.js"):
        yield name, (HERE / "static" / name).read_text(encoding="utf-8")
    yield ".nojekyll", ""


def _rules() -> Markup:
    return prose.chapters(shipped("docs/concepts.md"), RULES)


def _join() -> Markup:
    return prose.html(shipped("docs/join.md").partition("\n")[2], 2)


def _names(known: Mapping[tuple[str, str], Method | None], axis: str) -> list[str]:
    return sorted(name for of, name in known if of == axis)


def _columns(links: Mapping[tuple[str, str], str], boards: Iterable[BoardPage]) -> dict[tuple[str, str], str]:
    found = {("Board", board.name): f"{board_place(board.name)}/index.html" for board in boards}
    heads = {"attack": "Attack", "defense": "Defense", "detection": "Detector"}
    return found | {(heads[axis], name): place for (axis, name), place in links.items() if axis in heads}


class _Templates:
    """The templates: every text is escaped, and on one line unless a template asks for its lines."""

    def __init__(self) -> None:
        self._made = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=lambda value: plain(value) if type(value) is str else value,
        )
        self._made.filters["lines"] = lambda text: Markup(escape(paragraphs(str(text))))
        self._made.filters["json"] = lambda value: Markup(escape(json_text(value).strip()))
        self._made.filters["compact"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._made.globals |= {"board_place": board_place, "record_place": record_place, "version": __version__}

    def __call__(self, place: str, template: str, **values: Any) -> str:
        """A page. place: its file, from which links to others follow."""
        return self._made.get_template(template).render(root="../" * place.count("/"), place=place, **values)

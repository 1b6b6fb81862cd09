"""Write the generated parts of the documentation: `make docs` runs this, a test checks that they are current.

docs/commands.md has the help of every command, boards.md the fields of a board, methods.md the options of every
method of benchbd, records.md the fields of records, plugin-api.md the contracts and every name that
``benchbd`` exports. README.md has, between markers, rows of a published board, and CONTRIBUTING.md the picture
of the house. The package's gallery of known encoders has the scores in published records.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from tabulate import tabulate

import benchbd
from benchbd import api
from benchbd.cli.describe import document, fields_of
from benchbd.cli.main import main
from benchbd.contract.axes import AXIS
from benchbd.contract.specs import SECTIONS, Pin
from benchbd.planning.board import Board, Sweep, Tuned, board_names, boards_folder, load_board
from benchbd.planning.board import Row as BoardRow
from benchbd.planning.claims import Claim, Reported
from benchbd.records.detection import DetectionRecord
from benchbd.records.files import read_records
from benchbd.records.gates import Gates
from benchbd.records.models import Baseline, CleanFeatures, Cost, Counts, Entry, Gain, Metrics, Origin, Record
from benchbd.registry import FIRST_PARTY, Registry, load_registry
from benchbd.report.document import Column, Document, Section, Table
from benchbd.report.gallery import GALLERY, gather_published
from benchbd.report.rows import Order, TableRow, summarise
from benchbd.report.statistics import Interval
from benchbd.report.writers import markdown
from benchbd.report.writers.columns import WIDTH
from docs.house import ROOT, picture, read_house
from docs.plugin_api import COMMANDS, homes_of_names, plugin_api
from docs.python import code, entry, quoted

ORDER = (
    *("tutorial.md", "join.md", "concepts.md", "encoders.md", "commands.md", "boards.md", "methods.md", "records.md"),
    "plugin-api.md",
)
"""The pages in the order of the website, after the first."""

_PARTS = (Counts, Metrics, Baseline, CleanFeatures, Gain, Cost, Origin)

BLOCK = re.compile(
    r"(<!-- board: (?P<board>[\w-]+), task: (?P<task>[\w:-]+), rows: (?P<rows>[^>]+) -->\n).*?(<!-- end of board -->)",
    re.DOTALL,
)


def pages(registry: Registry) -> dict[str, str]:
    """The generated pages by file name, in Markdown."""
    parts = {
        "commands.md": [
            "# Commands",
            "Every command says `--help`. The [Python functions](#from-python) below take the options as arguments.",
            *(f"## `{name}`\n\n```text\n{text}\n```" for name, text in _help(main, "benchbd")),
            "## From Python",
            "Imported from `benchbd`. Each argument of a request is the option of that name; `plan` takes all but "
            "`download`, `by`, `executor` and `published`.",
            code(
                entry(name, getattr(benchbd, name), home)
                for name, home in homes_of_names().items()
                if home.__name__ in COMMANDS
            ),
            _arguments(),
        ],
        "boards.md": [
            "# Boards",
            "A board is a protocol and a grid in one TOML file. These come with benchbd:",
            tabulate(
                [[f"`{name}`", load_board(name).title] for name in board_names()],
                headers=["board", ""],
                tablefmt="github",
            ),
            "`benchbd show smoke --toml > my-board.toml` starts one of your own, for `--board my-board.toml`.",
            "## Fields of a board",
            f"`-o` reaches {', '.join(f'`{name}.*`' for name in SECTIONS)}, as in `-o trigger.size=5`; a record that "
            "departs from the board is off-board and lists its departures. The tables `[options.NAME]` set options of "
            "methods.",
            _fields(Board, head="field"),
            *(
                _table(f"An entry of `{name}`", cls)
                for name, cls in (("rows", BoardRow), ("sweeps", Sweep), ("data", Pin))
            ),
            *(_table(f"`[{name}]`", cls) for name, cls in SECTIONS.items()),
            _table("`[gates]`", Gates),
            _table("`[claims.NAME]`", Claim),
            _table("`reported` of a claim", Reported),
            _table("`[tuned]`", Tuned),
        ],
        "methods.md": [
            "# Methods",
            "The methods of benchbd, by axis. An option is set with `-o NAME.FIELD=VALUE` or in a board's "
            "`[options.NAME]`. How to add a method: [plugin-api.md](plugin-api.md).",
            *(_method(registry, axis, name) for axis in AXIS for name in registry.names(axis)),
        ],
        "records.md": [
            "# Records",
            "`run` writes a JSON file for every cell, with a safetensors file of its predictions (`clean` and "
            "`triggered`, int16 or int64, one per test image) under the same name, and one for every inspection of a "
            "detector. A field without a value is null. Records of schema 1 lack some of the fields; they are read "
            "too. JSON Schemas: [record](schema/record.schema.json), [detection](schema/detection.schema.json). "
            "benchbd reads strictly: no number as text, no name twice in an object, no record under another name.",
            "When benchbd reads a record, it checks it against its own counts, keys and identity, and the records of a "
            "board against each other where they are about one encoder, draw of clean images, class or set of "
            "reference inputs. No check can tell whether all records of a folder were edited alike, nor whether a "
            "number is true that one record alone has: the correct images of a repair, a score, costs, findings.",
            _table("Fields of every record", Entry),
            *(_table(f"`{cls.__name__}`", cls, besides=Entry) for cls in (Record, DetectionRecord)),
            *(_table(f"`{cls.__name__}` in a record", cls) for cls in _PARTS),
        ],
    }
    mark = "<!-- generated by `make docs`; do not edit -->"
    made = {name: "\n\n".join([mark, *filter(None, page)]) + "\n" for name, page in parts.items()}
    made["plugin-api.md"] = plugin_api()
    return {**made, "index.md": f"{mark}\n\n{_index(made)}\n", **_schemas()}


def _schemas() -> dict[str, str]:
    """The JSON Schemas of records, by name of the file."""
    schemas = {}
    for name, model in (("record", Record), ("detection", DetectionRecord)):
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"{name}.schema.json"}
        text = json.dumps({**head, **model.model_json_schema()}, indent=1, ensure_ascii=False)
        schemas[f"schema/{name}.schema.json"] = f"{text}\n"
    return schemas


def _index(made: Mapping[str, str]) -> str:
    """The first page: the README's first paragraph, and every page with its first sentence."""
    about = _paragraphs((ROOT / "README.md").read_text(encoding="utf-8"))[1]
    lines = []
    for name in ORDER:
        page = made[name] if name in made else (ROOT / "docs" / name).read_text(encoding="utf-8")
        title, first = _paragraphs(page)[:2]
        sentence = re.split(r"(?<=[.?!]) ", " ".join(first.split()))[0]
        lines.append(f"- [{title.removeprefix('# ')}]({name}): {sentence}")
    return "\n\n".join(["# benchbd", about, "\n".join(lines)])


def _paragraphs(page: str) -> list[str]:
    """Headings and paragraphs of a page, without comments."""
    return [part for part in page.split("\n\n") if part.strip() and not part.startswith("<!--")]


def _help(command: click.Command, name: str, above: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """(path, help text) of a command and all its subcommands, as a user sees them."""
    width = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, parent=above, info_name=name, **{**command.context_settings, **width})
    yield context.command_path, command.get_help(context).rstrip()
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _help(command.commands[child], child, context)


def _arguments() -> str:
    """A Markdown table of the arguments of ``run``."""
    hints = get_type_hints(api.Work)
    rows = [[f"`{name}`", _cell(f"`{quoted(hint)}`")] for name, hint in hints.items()]
    return tabulate(rows, headers=["argument", "type"], tablefmt="github")


def _method(registry: Registry, axis: str, name: str) -> str:
    """One method with its options; empty for methods of other distributions."""
    if registry.plugin_of(axis, name).distribution != FIRST_PARTY:
        return ""
    about = document(registry.get(axis, name), FIRST_PARTY)
    parts = [f"## {axis} `{name}`", about["help"]]
    if about["paper"]:
        parts.append(f"Source: {about['paper']}.")
    if ranges := about.get("tunable"):
        parts.append(f"Trials draw: {'; '.join(f'`{option}`, {span}' for option, span in ranges.items())}.")
    parts.append(_fields(registry.get(axis, name)))
    return "\n\n".join(part for part in parts if part)


def _table(heading: str, cls: type[BaseModel], besides: type[BaseModel] = BaseModel) -> str:
    """A section on a model with a table of its fields, but for those that ``besides`` has."""
    return "\n\n".join([f"### {heading}", inspect.getdoc(cls) or "", _fields(cls, "field", besides)])


def _default(info: FieldInfo, default: Any) -> str:
    """A default as a cell of a table; a dash if there is none, or if it is a part whose fields have a table of their
    own."""
    return "-" if info.is_required() or isinstance(info.default, BaseModel) else f"`{json.dumps(default)}`"


def _fields(cls: type[BaseModel], head: str = "option", besides: type[BaseModel] = BaseModel) -> str:
    """A Markdown table of a model's fields; empty if it has none. A column that is empty in all rows is omitted."""
    rows = [
        [
            f"`{cls.model_fields[field['name']].alias or field['name']}`",
            _cell(field["type"]),
            field["bounds"],
            _default(cls.model_fields[field["name"]], field["default"]),
            field["help"],
        ]
        for field in fields_of(cls)
        if field["name"] not in besides.model_fields
    ]
    columns = [column for column in zip([head, "type", "bounds", "default", ""], *rows, strict=True) if any(column[1:])]
    return tabulate([*zip(*columns, strict=True)], headers="firstrow", tablefmt="github") if rows else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def with_boards(readme: str) -> str:
    """``readme`` with every block of BLOCK's form filled with these rows of the board's published records, as a table.

    rows: ATTACK/DEFENSE, separated by spaces.
    """

    def fill(match: re.Match[str]) -> str:
        board = load_board(match["board"])
        records = read_records(boards_folder() / board.name / "records")
        rows = [row for row in summarise(records, Order.of(board), off_board=False) if row.task == match["task"]]
        found = {f"{row.attack}/{row.defense}": row for row in rows}
        body = [_excerpt(found[name]) for name in match["rows"].split()]
        names = (Column("Attack", "words"), Column("Defense", "words"))
        figures = map(Column, ("Seeds", "ACC", "ASR", "ASR non-target", "RA"))
        excerpt = Document(sections=[Section([*names, *figures], [Table(body)])])
        return f"{match[1]}{markdown.write(excerpt)}{match[5]}"

    return BLOCK.sub(fill, readme)


def _excerpt(row: TableRow) -> list[str]:
    def percent(value: Interval) -> str:
        return f"{value.mean:.1f}" + ("" if value.half is None else f" ± {value.half:.1f}")

    return [row.attack, row.defense, str(len(row.seeds)), *map(percent, (row.acc, row.asr, row.asr_nontarget, row.ra))]


def with_picture(text: str) -> str:
    """CONTRIBUTING with the picture of the house for the current imports."""
    return re.sub(
        r"(```house\n).*?(```)", lambda found: found[1] + picture(read_house()) + found[2], text, flags=re.DOTALL
    )


def write(root: Path) -> None:
    """Write the pages in docs/, and fill README.md and CONTRIBUTING.md, under ``root``, the top of a checkout."""
    (root / "docs" / "schema").mkdir(parents=True, exist_ok=True)
    for name, page in pages(load_registry()).items():
        (root / "docs" / name).write_text(page, encoding="utf-8")
    gallery = root / GALLERY.relative_to(Path(benchbd.__file__).parents[1])
    gallery.write_text(gather_published().to_json(), encoding="utf-8")
    readme = root / "README.md"
    readme.write_text(with_boards(readme.read_text(encoding="utf-8")), encoding="utf-8")
    contributing = root / "CONTRIBUTING.md"
    contributing.write_text(with_picture(contributing.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

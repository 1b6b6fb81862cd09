"""``benchbd leaderboard``, ``compare``, ``gallery`` and ``figures``: output made of records.

Only ``figures`` imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchbd.base.content import write_file
from benchbd.base.errors import UsageError
from benchbd.base.process import columns, say
from benchbd.cli.group import Command, Group, one_line
from benchbd.cli.options import PathType, PlaceType, check_writable, data_root_option, device_option, record_options
from benchbd.planning.board import DEFAULT
from benchbd.report.writers.columns import WIDTH
from benchbd.report.writers.forms import FORMATS, write

if TYPE_CHECKING:
    from benchbd.planning.board import Board
    from benchbd.records.models import Record
    from benchbd.records.places import Found
    from benchbd.report.rows import Order


def records_of(board: Board, named: str, records: Sequence[Path], store: Path | None) -> Found:
    """The records of a board: those in --records, pooled, else the store's, else those published with the board."""
    from benchbd.planning.board import board_path
    from benchbd.records.places import find_records
    from benchbd.store.store import default_root

    published = board_path(named).parent / "records"
    found = find_records(board.name, store=store or default_root(), published=published, given=records)
    if found.remark:
        click.echo(found.remark, err=True)
    return found


@click.command(cls=Command)
@click.argument("board", required=False)
@click.argument("other", required=False)
@click.option("--paper", is_flag=True, hidden=True, expose_value=False)  # the default
@record_options
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="Form of the output."
)
def compare(board: str | None, other: str | None, records: tuple[Path, ...], store: Path | None, form: str) -> None:
    """Compare the records of a board with published figures, or with those of another board or folder.

    BOARD is the demo board by default. If the board follows the paper's protocol, the differences are printed. If its
    data, encoders or triggers are others, only the orderings of the defenses are compared. Records come from --records,
    else from the store, else from those published with the board.

    With OTHER, each of the two is a board, by name or path, or a folder of records. The cells that both have stand side
    by side, with the differences seed by seed.
    """
    from benchbd.papers.document import document
    from benchbd.planning.board import load_board
    from benchbd.report import beside

    if board and other:
        (one, order), (two, _) = (_named_records(name, records, store) for name in (board, other))
        say(write(beside.document(one, two, (board, other), order), form, columns(WIDTH)), nl=False)
        return
    loaded = load_board(board or DEFAULT)
    found = records_of(loaded, board or DEFAULT, records, store)
    say(write(document(loaded, found.records), form, columns(WIDTH)), nl=False)


def _named_records(name: str, records: Sequence[Path], store: Path | None) -> tuple[list[Record], Order]:
    """The records of a board or in a folder, and the order of their board. DataError if they do not hold."""
    from benchbd.base.content import expanded
    from benchbd.planning.board import load_board
    from benchbd.records.files import read_records
    from benchbd.report.rows import BY_NAME, Order

    folder = expanded(Path(name))
    if folder.is_dir() and not (folder / "board.toml").is_file():
        if found := read_records(folder):
            return found, BY_NAME
        raise UsageError(f"{name}: a folder without records; name one with records, or a board")
    board = load_board(name)
    return records_of(board, name, records, store).records, Order.of(board)


@click.command(cls=Command)
@click.argument("record", type=PathType())
@click.option(
    "--out", type=PathType(folder=True), default=Path("figures"), show_default=True, help="Folder for the pictures."
)
@click.option("--board", metavar="B", help="Board of the record, for its trigger; needed if benchbd has no such board.")
@click.option("--store", type=PlaceType(), help="Store of the record.  [env: BENCHBD_STORE]")
@data_root_option
@device_option
def figures(
    record: Path, out: Path, board: str | None, store: Path | None, data_root: Path | None, device: str | None
) -> None:
    """Draw the pictures of a record as PNG, SVG and PDF.

    RECORD is the JSON file of a cell. The pictures show the trigger on test images, inverted triggers, attention
    before and after the repair, mutual information by layer, the pruning curve, and the features in two dimensions;
    each is drawn if it applies. A published record has no store, so fewer pictures can be drawn of it.
    """
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend need not exist here
    from benchbd.api import Session
    from benchbd.figures.pictures import draw
    from benchbd.planning.board import board_names
    from benchbd.records.files import read_record

    cell = read_record(record)
    named = board or (cell.board if cell.board in board_names() else None)
    session = Session.open(named or DEFAULT, store=store, data_root=data_root, device=device)
    drawn = draw(
        cell,
        out,
        store=session.store,
        library=session.library,
        device=session.device,
        board=session.board if named else None,
    )
    for path in drawn.paths:
        say(path)
    for line in drawn.left_out:
        click.echo(f"left out: {one_line(line)}", err=True)


@click.group(cls=Group)
def leaderboard() -> None:
    """Build tables from records. This needs no torch and no data."""


@leaderboard.command("build")
@click.argument("board", required=False)
@click.option("--out", type=PathType(folder=True), help="Write README, CSV, JSON, LaTeX and records here.")
@record_options
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="markdown", show_default=True, help="Form of the output."
)
@click.option("--off-board", is_flag=True, help="Add rows of off-board records, by kind of departure.")
@click.option(
    "--site",
    type=PathType(folder=True),
    help="Write a static site here: pages of the board, its methods and records; without BOARD, of all boards.",
)
def build_leaderboard(
    board: str | None,
    out: Path | None,
    records: tuple[Path, ...],
    store: Path | None,
    form: str,
    off_board: bool,
    site: Path | None,
) -> None:
    """Build the tables of a board from its records.

    BOARD is the demo board by default. Records come from --records, else from the store, else from those that are
    published with the board. Records of one cell and key from several laboratories are replicates: the first one given
    counts, and a note tells how far the others lie apart. A site opens in a browser as a folder, and on any server of
    files.
    """
    if site is not None:
        _build_site(board, out, records, store, off_board, site)
        return
    from benchbd.planning.board import board_path, carry, load_board
    from benchbd.report import claims, leaderboard
    from benchbd.report.inspected import documents, write_with
    from benchbd.report.protocols import check_together
    from benchbd.report.rows import Order

    loaded = load_board(board or DEFAULT)
    found = records_of(loaded, board or DEFAULT, records, store)
    known = [*found.records, *found.inspected]
    if not off_board and not any(record.on_board for record in known):
        click.echo(f"all {len(known)} records are off-board and left out: --off-board shows them", err=True)
    check_together(record for record in known if record.on_board or off_board)
    claims.check(loaded, found.records, board_path(board or DEFAULT).parent / "records")
    order, width = Order.of(loaded), columns(WIDTH)
    if out is not None:
        leaderboard.build(loaded.name, found.records, out, order, loaded.description, off_board, found.inspected)
        carry(board or DEFAULT, out)
        click.echo(f"wrote the tables and {len(known)} records of board {loaded.name} to {out}", err=True)
        return
    table = leaderboard.document(found.records, loaded.title, order, off_board) if found.records else None
    say(write_with(table, documents(found.inspected, order, off_board), loaded.name, form, width), nl=False)


def _build_site(
    board: str | None, out: Path | None, records: Sequence[Path], store: Path | None, off_board: bool, site: Path
) -> None:
    """Write the site of a board, or of all boards of benchbd, those without records named alone."""
    from benchbd.audit.badges import read_badges
    from benchbd.audit.versions import changes
    from benchbd.cli.describe import document
    from benchbd.contract.axes import AXIS
    from benchbd.planning.board import board_names, board_path, load_board
    from benchbd.published import listed
    from benchbd.records.files import place_of
    from benchbd.records.places import records_folder
    from benchbd.registry import load_registry
    from benchbd.report import claims
    from benchbd.report.leaderboard import notes_of
    from benchbd.site.boards import Source
    from benchbd.site.files import write_site
    from benchbd.site.pages import site as pages
    from benchbd.store.store import default_root

    if out is not None:
        raise UsageError("--site writes a site and --out tables; give one of them")
    if records and board is None:
        raise UsageError("--records holds the records of one board; name it: leaderboard build BOARD --site DIR")
    registry, sources, without = load_registry(), [], {}
    for name in board_names() if board is None else [board]:
        loaded, folder = load_board(name), board_path(name).parent
        places = [*records] if records else [records_folder(store or default_root(), loaded.name), folder / "records"]
        if board is None and not any(any(place.rglob("*.json")) for place in places):
            without[loaded.name] = loaded.title
            continue
        found = records_of(loaded, name, records, store)
        claims.check(loaded, found.records, folder / "records")
        outdated = {
            place_of(record): "; ".join(f"{method}{told}" for method, told in changed)
            for record in (*found.records, *found.inspected)
            if (changed := list(changes(record, registry)))
        }
        badges = read_badges(folder, found.records)
        verified = {place: (badge.tier, badge.verdict) for place, badge in badges.items()}
        encoders, notes = listed(loaded.name, folder, found.records), notes_of(folder)
        sources.append(Source(loaded, found.records, found.inspected, notes, outdated, verified, encoders))
    methods = [
        document(registry.get(axis, name), registry.plugin_of(axis, name).distribution)
        for axis in AXIS
        for name in registry.names(axis)
    ]
    number = write_site(site, pages(sources, methods, without, off_board))
    click.echo(f"wrote a site of {number} files; open {site / 'index.html'}", err=True)


@click.group(cls=Group)
def gallery() -> None:
    """Gather the scores of known encoders.

    `benchbd inspect` compares with them. This needs no torch and no data.
    """


@gallery.command("build")
@click.argument("boards", nargs=-1, required=True, metavar="BOARD...")
@click.option("--out", type=PathType(), help="Write the gallery to this file.  [default: print it]")
@click.option("--store", type=PlaceType(), help="Read the records of this store.  [env: BENCHBD_STORE]")
def build_gallery(boards: tuple[str, ...], out: Path | None, store: Path | None) -> None:
    """Build a gallery from the detectors' records of boards.

    Each BOARD is a name or a path. Its records come from the store, else from those that are published with the board.
    benchbd's own gallery is built from all published records.
    """
    from benchbd.planning.board import load_board
    from benchbd.records.detection import DetectionRecord
    from benchbd.report.gallery import gather

    if out is not None:
        check_writable(out)
    found = [(board := load_board(name), records_of(board, name, (), store).inspected) for name in boards]
    made = gather(
        (board, [record for record in inspected if isinstance(record, DetectionRecord)]) for board, inspected in found
    )
    if not made.populations:
        raise UsageError(f"no detector's records of {', '.join(boards)} belong in a gallery{_why(made.left_out)}")
    if out is None:
        say(made.to_json(), nl=False)
    else:
        write_file(out, made.to_json().encode())
    clean, backdoored = (sum(len(getattr(each, kind)) for each in made.populations) for kind in ("clean", "attacked"))
    click.echo(f"{clean} scores of clean and {backdoored} of backdoored encoders{_why(made.left_out)}", err=True)


def _why(left_out: Mapping[str, int]) -> str:
    """The reasons of records that were left out, with their numbers."""
    return "".join(f"; {count} left out: {reason}" for reason, count in left_out.items())

"""``benchbd verify``, ``why``, ``outdated``, ``submit``, and ``benchbd leaderboard pin`` and ``check``: whether records
hold, and how they join a board."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchbd.base.content import short_digests, write_file
from benchbd.base.errors import DataError, UsageError, counted
from benchbd.base.process import columns, say
from benchbd.cli.group import Command, one_line
from benchbd.cli.options import PathType, PlaceType, data_root_option, device_option
from benchbd.report.writers.columns import WIDTH
from benchbd.report.writers.forms import FORMATS, write

if TYPE_CHECKING:
    from benchbd.audit.submission import Encoders
    from benchbd.planning.board import Board
    from benchbd.records.models import Entry


@click.command(cls=Command)
@click.argument("board")
@click.option("--records", type=PathType(folder=True), help="Folder of the records.  [default: those of the board]")
@click.option("--tier", type=click.IntRange(1, 3), default=1, show_default=True, help="How much to check.")
@click.option(
    "--only", "patterns", multiple=True, metavar="GLOB", help="Check only files of these names in tiers 2, 3."
)
@click.option("--badges", is_flag=True, help="Tiers 2 and 3: write what held to verified.json beside the board.")
@click.option("--by", default="", metavar="NAME", help="Name of who verifies, for the badges.  [env: BENCHBD_AUTHOR]")
@click.option("--store", type=PlaceType(), help="Tiers 2 and 3: store of the stages.  [env: BENCHBD_STORE]")
@data_root_option
@device_option
def verify(
    board: str,
    records: Path | None,
    tier: int,
    patterns: tuple[str, ...],
    badges: bool,
    by: str,
    store: Path | None,
    data_root: Path | None,
    device: str | None,
) -> None:
    """Check that the records of a board hold, and print a line for each that does not.

    BOARD is a name or a path; its records are those published with it. Each tier includes those below it.

    Tier 1 takes seconds and needs neither data nor an accelerator: it counts the predictions again, compares the
    records with each other, and plans the board again from its file and the facts that `leaderboard pin` wrote beside
    it. Tier 2 evaluates the stored encoders again. Tier 3 lets the methods work again, with the stage's seed and with a
    fresh one. Both need the data and a store that has the stages to start from, and tell on stderr whether a record is
    equal, compatible or different. With --badges the site shows which records held.

    Exit code: 0 if all holds, 1 if something does not, 2 for wrong usage.
    """
    from benchbd.api import checked_author
    from benchbd.audit import again, alone, encoders
    from benchbd.audit.badges import read_badges, renewed, write_badges
    from benchbd.audit.planned import PlannedBoard
    from benchbd.base.device import pick_device
    from benchbd.data.library import find_data_root
    from benchbd.data.pinned import FILE
    from benchbd.planning.board import board_path, load_board
    from benchbd.published import FOLDER
    from benchbd.records.models import Record
    from benchbd.registry import load_registry
    from benchbd.store.store import find_root

    if badges and tier < 2:
        raise UsageError("--badges is of records that are computed again: add --tier 2 or --tier 3")
    loaded, home = load_board(board), board_path(board).parent
    folder = (records or home / "records").expanduser()
    known, findings = alone.read(folder)
    if not known and not findings:
        raise UsageError(f"no records of board {loaded.name} in {folder}: name their folder with --records")
    _tell_unpinned(board, home / FILE)
    findings += alone.check(loaded, known, PlannedBoard.of_pins(loaded, load_registry(), home / FILE, known))
    findings += encoders.check(folder.parent / FOLDER, known) if folder.name == "records" else ()
    for finding in findings:
        say(one_line(finding))
    click.echo(f"tier 1: {len(known)} records, {_counted(len(findings))}", err=True)
    chosen = [each for each in known if isinstance(each, Record) and _named(each.file, patterns)]
    bench = again.Bench(
        board_path(board), folder, find_data_root(data_root), find_root(store), str(pick_device(device))
    )
    told: list[tuple[int, again.Told]] = []
    for level in range(2, tier + 1):
        verdicts: Counter[str] = Counter()
        for verdict in again.check(bench, chosen, level):
            verdicts[verdict.verdict] += 1
            told.append((level, verdict))
            text = f": {verdict.text}" if verdict.text else ""
            click.echo(one_line(f"tier {level}: {verdict.place}: {verdict.verdict}{text}"), err=True)
            if (wrong := again.finding(verdict, level)) is not None:
                findings.append(wrong)
                say(one_line(wrong))
        summed = ", ".join(f"{number} {name}" for name, number in sorted(verdicts.items()))
        click.echo(f"tier {level}: {summed or 'no record'}", err=True)
    if badges:
        author = checked_author(by or os.environ.get("BENCHBD_AUTHOR", ""))
        made = renewed(read_badges(home, known), told, known, author)
        click.echo(f"wrote {counted(len(made), 'badge')} to {write_badges(home, made)}", err=True)
    if findings:
        sys.exit(1)


def _tell_unpinned(board: str, file: Path) -> None:
    """Tell what tier 1 does not see if a board's data are not pinned."""
    if not file.is_file():
        unseen = "relabelled data, and counts that the predictions do not give, stay unseen"
        click.echo(f"no {file.name} beside the board: {unseen}; `benchbd leaderboard pin {board}` writes it", err=True)


def _counted(findings: int) -> str:
    return "all of them hold" if not findings else "1 finding" if findings == 1 else f"{findings} findings"


def _named(file: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch(file, pattern) for pattern in patterns)


@click.command(cls=Command)
@click.argument("one", type=PathType())
@click.argument("other", type=PathType())
def why(one: Path, other: Path) -> None:
    """Tell the first field in which the identities of two records differ.

    ONE and OTHER are JSON files of cells. Stages are compared in the order in which they were computed, so that the
    field is the cause of the differences that follow from it.
    """
    from benchbd.records.differences import first_difference
    from benchbd.records.files import read_record

    a, b = read_record(one), read_record(other)
    for kind in dict.fromkeys((*a.identity, *b.identity)):
        if (found := first_difference(a.identity.get(kind), b.identity.get(kind))) and not _of_parents(found.field):
            field = f"identity.{kind}.{found.field}".removesuffix(".")
            say(
                one_line(
                    f"{field}: {short_digests(str(found.one))} in one, {short_digests(str(found.other))} in the other"
                )
            )
            return
    if a.counts == b.counts:
        say("nothing differs: one identity, and the same counts")
    elif a.machine != b.machine or a.source != b.source:
        moved = first_difference(a.machine, b.machine)
        told = f"machine.{moved.field}: {moved.one} in one, {moved.other} in the other" if moved else "two stores"
        say(one_line(f"one identity on two machines ({told}): training amplifies the last bit"))
    else:
        say("one identity and one source, but other counts: one of them was edited, or a method is not deterministic")


def _of_parents(field: str) -> bool:
    return field.startswith("parents")


@click.command(cls=Command)
@click.argument("board")
@click.option("--out", type=PathType(folder=True), required=True, help="Folder for the submission.")
@click.option("--records", type=PathType(folder=True), help="Folder of the run's records.  [default: the store's]")
@click.option("--store", type=PlaceType(), help="Store of the run.  [env: BENCHBD_STORE]")
@click.option(
    "--encoders",
    type=click.Choice(("none", "undefended", "all")),
    default="none",
    show_default=True,
    help="Encoders to write whole; of the others, their manifests.",
)
@click.option("--no-pictures", is_flag=True, help="Leave out pictures, which take seconds a record.")
@data_root_option
def submit(
    board: str,
    out: Path,
    records: Path | None,
    store: Path | None,
    encoders: Encoders,
    no_pictures: bool,
    data_root: Path | None,
) -> None:
    """Prepare the records of a run for a pull request to its board.

    The records must hold (`benchbd verify`), with those of the clean and of the undefended encoder among them: `run`
    computes these beside every defense unless --only leaves them out. The folder gets the records that the board does
    not have yet, their predictions, and the manifests of their encoders: identity, sha256 and cost; and pictures of
    each record, at most 100 kB, if the store has its stages and the data are here. They show test images of generated
    data sets alone.
    """
    from benchbd.audit import alone, submission
    from benchbd.audit.planned import PlannedBoard
    from benchbd.data.pinned import FILE
    from benchbd.planning.board import board_path, load_board
    from benchbd.records.places import records_folder
    from benchbd.registry import load_registry
    from benchbd.store.store import Store, find_root

    loaded, home, root = load_board(board), board_path(board).parent, find_root(store)
    folder = (records or records_folder(root, loaded.name)).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"no records of board {loaded.name} in {folder}: run it first with benchbd run --board {board}"
        )
    known, findings = alone.read(folder)
    if findings:
        raise DataError("\n".join(map(str, findings)))
    published, _ = alone.read(home / "records")
    planned = PlannedBoard.of_pins(loaded, load_registry(), home / FILE, known)
    kept = Store(root, writable=False)
    made = submission.gather(loaded, known, published, planned)
    _tell_unpinned(board, home / FILE)
    number = submission.write(made, out, kept, encoders)
    if not no_pictures:
        _draw(made.records, out / "records", loaded, root, data_root)
    told = f"wrote {len(made.records)} records and the manifests of {number} encoders to {out}: copy its folders into "
    told += f"leaderboards/{loaded.name} of a fork, and open a pull request"
    click.echo(told, err=True)


def _draw(records: Iterable[Entry], folder: Path, board: Board, store: Path, data_root: Path | None) -> None:
    """Draw the pictures of records whose files are in ``folder``, and tell of how many, and why not of all."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend need not exist here
    from benchbd.base.device import pick_device
    from benchbd.data.library import DataLibrary, find_data_root
    from benchbd.figures.published import publish
    from benchbd.records.models import Record
    from benchbd.registry import load_registry

    cells = [record for record in records if isinstance(record, Record)]
    library = DataLibrary(load_registry().datasets(), find_data_root(data_root), store / "data")
    click.echo(f"drawing the pictures of {counted(len(cells), 'record')}; --no-pictures omits them", err=True)
    lacks = publish(cells, folder, store=store, library=library, device=pick_device(None), board=board)
    without = "".join(f"; {number} without: {reason}" for reason, number in sorted(lacks.items()) if reason)
    click.echo(one_line(f"drew those of {lacks['']}{without}"), err=True)


@click.command(cls=Command)
@click.argument("board")
@click.argument("submission", type=PathType(folder=True))
@click.option("--format", "form", type=click.Choice(FORMATS), default="markdown", show_default=True, help="Form.")
def check(board: str, submission: Path, form: str) -> None:
    """Report on a submission to a board, for its reviewer.

    SUBMISSION is the folder that `submit` wrote, or a folder of records; those that are published already are left
    out. They are checked beside the published ones (tier 1 of `verify`), as untrusted data: nothing in them is run. The
    report shows the reference rows, the best row before, the submitted rows, methods that their authors have not
    confirmed, and the ranks that change.

    Exit code: 0 if all holds, 1 if something does not.
    """
    from benchbd.audit import alone, encoders
    from benchbd.audit.planned import PlannedBoard
    from benchbd.audit.submission import fresh, merged, replicates
    from benchbd.data.pinned import FILE
    from benchbd.planning.board import board_path, load_board
    from benchbd.published import FOLDER
    from benchbd.records.files import place_of
    from benchbd.records.models import Record
    from benchbd.records.replicates import pooled
    from benchbd.registry import load_registry
    from benchbd.report import claims, reviewed
    from benchbd.report.rows import Order

    loaded, home = load_board(board), board_path(board).parent
    folder = submission / "records" if (submission / "records").is_dir() else submission
    submitted, findings = alone.read(folder)
    if not submitted and not findings:
        raise UsageError(f"no records in {folder}")
    published, _ = alone.read(home / "records")
    added = fresh(published, submitted)
    after = merged(published, added)
    places = {place_of(record) for record in added}
    _tell_unpinned(board, home / FILE)
    planned = PlannedBoard.of_pins(loaded, load_registry(), home / FILE, after)
    findings += [each for each in alone.check(loaded, after, planned) if each.place in places]
    findings += encoders.check(submission / FOLDER, after)
    claims.check(loaded, [record for record in after if isinstance(record, Record)], home / "records")
    report = reviewed.document(
        pooled(published),
        added,
        Order.of(loaded),
        board=loaded.name,
        findings=[one_line(finding) for finding in findings],
        replicates=replicates(published, added),
    )
    say(write(report, form, columns(WIDTH)), nl=False)
    if findings:
        sys.exit(1)


@click.command(cls=Command)
@click.argument("boards", nargs=-1, metavar="[BOARD]...")
@click.option("--records", type=PathType(folder=True), help="Folder of the records, of one board.")
@click.option("--sources", is_flag=True, help="List methods of the same version too, if their source is another.")
def outdated(boards: tuple[str, ...], records: Path | None, sources: bool) -> None:
    """List the published records that another version of a method made than the one installed.

    All boards by default. A line for each method and version; exit code 1 if there is one, else 0. A changed source
    need not change results: a version is the author's word on that, and --sources compares the files.
    """
    from benchbd.audit.versions import stale
    from benchbd.planning.board import board_names, board_path, load_board
    from benchbd.records.files import read_inspected, read_records
    from benchbd.registry import load_registry

    if records is not None and len(boards) != 1:
        raise UsageError("--records is the folder of one board: name that board")
    registry, lines = load_registry(), []
    for name in boards or board_names():
        board, folder = load_board(name), records or board_path(name).parent / "records"
        known = [*read_records(folder), *read_inspected(folder)]
        lines += [f"{board.name}: {line}" for line in stale(known, registry, sources=sources)]
    for line in lines:
        say(one_line(line))
    if lines:
        sys.exit(1)


@click.command(cls=Command)
@click.argument("board")
@click.option("--out", type=PathType(), help="The file.  [default: data.json beside the board]")
@data_root_option
def pin(board: str, out: Path | None, data_root: Path | None) -> None:
    """Write the facts about a board's data sets to a file beside it.

    With them `verify` needs no data: they are digests, sizes, classes, and the labels of test images.
    """
    from benchbd.api import Session
    from benchbd.data import pinned
    from benchbd.planning.board import board_path
    from benchbd.stages.task import split_task

    session = Session.open(board, data_root=data_root)
    plan, size = session.plan(strict=True), session.board.image_size
    splits = {(ref.name, ref.split, ref.size) for stage in plan.stages for ref in stage.data.values()}
    tasks = {split_task(task)[0] for row in session.board.rows for task in row.evaluated}
    made = pinned.pin(session.library, splits | {(task, split, size) for task in tasks for split in ("train", "test")})
    path = out or board_path(board).parent / pinned.FILE
    write_file(path, made.to_json().encode())
    click.echo(f"wrote the facts of {len(made.splits)} splits to {path}", err=True)

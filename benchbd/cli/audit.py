"""``benchbd verify`` and ``benchbd leaderboard pin``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from benchbd.base.content import write_file
from benchbd.base.errors import UsageError
from benchbd.base.process import say
from benchbd.cli.group import Command, one_line
from benchbd.cli.options import PathType, data_root_option


@click.command(cls=Command)
@click.argument("board")
@click.option("--records", type=PathType(folder=True), help="Folder of the records.  [default: those of the board]")
@click.option("--tier", type=click.IntRange(1, 1), default=1, show_default=True, help="How much to check.")
def verify(board: str, records: Path | None, tier: int) -> None:
    """Check that the records of a board hold, and print a line for each that does not.

    BOARD is a name or a path; its records are those published with it. Tier 1 takes seconds and needs neither data nor
    an accelerator: it counts the predictions again, compares the records with each other, and plans the board again
    from its file and the facts that `leaderboard pin` wrote beside it.

    Exit code: 0 if all holds, 1 if something does not, 2 for wrong usage.
    """
    from benchbd.audit import alone
    from benchbd.audit.planned import PlannedBoard
    from benchbd.data.pinned import FILE, read_pinned
    from benchbd.planning.board import board_path, load_board
    from benchbd.registry import load_registry

    loaded, home = load_board(board), board_path(board).parent
    folder = (records or home / "records").expanduser()
    if not folder.is_dir():
        raise UsageError(f"no records of board {loaded.name} in {folder}: name their folder with --records")
    known, findings = alone.read(folder)
    if not known and not findings:
        raise UsageError(f"no records of board {loaded.name} in {folder}: name their folder with --records")
    pinned = read_pinned(home / FILE) if (home / FILE).is_file() else None
    if pinned is None:
        told = f"no {FILE} beside the board: relabelled data, and counts that the predictions do not give, stay unseen"
        click.echo(f"{told}; `benchbd leaderboard pin {board}` writes it", err=True)
    findings += alone.check(loaded, known, PlannedBoard(loaded, load_registry(), pinned, known))
    for finding in findings:
        say(one_line(finding))
    verdict = f"{len(findings)} findings" if len(findings) != 1 else "1 finding"
    click.echo(f"tier {tier}: {len(known)} records, {verdict if findings else 'all of them hold'}", err=True)
    if findings:
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

"""``benchbd verify`` and ``benchbd leaderboard pin``."""

from __future__ import annotations

import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import click

from benchbd.base.content import write_file
from benchbd.base.errors import UsageError
from benchbd.base.process import say
from benchbd.cli.group import Command, one_line
from benchbd.cli.options import PathType, PlaceType, data_root_option, device_option


@click.command(cls=Command)
@click.argument("board")
@click.option("--records", type=PathType(folder=True), help="Folder of the records.  [default: those of the board]")
@click.option("--tier", type=click.IntRange(1, 3), default=1, show_default=True, help="How much to check.")
@click.option(
    "--only", "patterns", multiple=True, metavar="GLOB", help="Check only files of these names in tiers 2, 3."
)
@click.option("--store", type=PlaceType(), help="Tiers 2 and 3: store of the stages.  [env: BENCHBD_STORE]")
@data_root_option
@device_option
def verify(
    board: str,
    records: Path | None,
    tier: int,
    patterns: tuple[str, ...],
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
    equal, compatible or different.

    Exit code: 0 if all holds, 1 if something does not, 2 for wrong usage.
    """
    from benchbd.audit import again, alone
    from benchbd.audit.planned import PlannedBoard
    from benchbd.base.device import pick_device
    from benchbd.data.library import find_data_root
    from benchbd.data.pinned import FILE
    from benchbd.planning.board import board_path, load_board
    from benchbd.records.models import Record
    from benchbd.registry import load_registry
    from benchbd.store.store import find_root

    loaded, home = load_board(board), board_path(board).parent
    folder = (records or home / "records").expanduser()
    known, findings = alone.read(folder) if folder.is_dir() else ([], [])
    if not known and not findings:
        raise UsageError(f"no records of board {loaded.name} in {folder}: name their folder with --records")
    if not (home / FILE).is_file():
        told = f"no {FILE} beside the board: relabelled data, and counts that the predictions do not give, stay unseen"
        click.echo(f"{told}; `benchbd leaderboard pin {board}` writes it", err=True)
    findings += alone.check(loaded, known, PlannedBoard.of_pins(loaded, load_registry(), home / FILE, known))
    for finding in findings:
        say(one_line(finding))
    click.echo(f"tier 1: {len(known)} records, {_counted(len(findings))}", err=True)
    chosen = [each for each in known if isinstance(each, Record) and _named(each.file, patterns)]
    bench = again.Bench(
        board_path(board), folder, find_data_root(data_root), find_root(store), str(pick_device(device))
    )
    for level in range(2, tier + 1):
        verdicts: Counter[str] = Counter()
        for verdict in again.check(bench, chosen, level):
            verdicts[verdict.verdict] += 1
            text = f": {verdict.text}" if verdict.text else ""
            click.echo(one_line(f"tier {level}: {verdict.place}: {verdict.verdict}{text}"), err=True)
            if (wrong := again.finding(verdict, level)) is not None:
                findings.append(wrong)
                say(one_line(wrong))
        summed = ", ".join(f"{number} {name}" for name, number in sorted(verdicts.items()))
        click.echo(f"tier {level}: {summed or 'no record'}", err=True)
    if findings:
        sys.exit(1)


def _counted(findings: int) -> str:
    return "all of them hold" if not findings else "1 finding" if findings == 1 else f"{findings} findings"


def _named(file: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch(file, pattern) for pattern in patterns)


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

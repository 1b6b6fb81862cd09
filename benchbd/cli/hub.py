"""``benchbd push`` and ``pull``: encoders and boards to and from the Hugging Face Hub, or a folder in its layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchbd._version import __version__
from benchbd.base.content import expanded
from benchbd.base.errors import BenchbdError, DataAbsentError, UsageError
from benchbd.base.process import say
from benchbd.cli.group import Command
from benchbd.cli.options import PathType, PlaceType

if TYPE_CHECKING:
    from benchbd.packages import Package


@click.command(cls=Command)
@click.argument("what")
@click.option("--repo", metavar="USER/NAME", help="Repository of the Hub; it is made if it does not exist.")
@click.option("--to", "folder", type=PathType(), help="Write the files to this new folder instead.")
@click.option("--dry-run", is_flag=True, help="Print what would be pushed, and push nothing.")
@click.option("--licence", required=True, metavar="mit|apache-2.0", help="Licence of what is pushed.")
@click.option(
    "--record",
    "cells",
    multiple=True,
    type=PathType(),
    help="Record of a cell with this encoder, for its card; repeat for several.",
)
@click.option("--records", type=PathType(folder=True), help="Read a board's records from this folder.")
@click.option("--store", type=PlaceType(), help="Read a board's records from this store.  [env: BENCHBD_STORE]")
def push(
    what: str,
    repo: str | None,
    folder: Path | None,
    dry_run: bool,
    licence: str,
    cells: tuple[Path, ...],
    records: Path | None,
    store: Path | None,
) -> None:
    """Push an encoder or a board to the Hugging Face Hub.

    WHAT is an encoder's .safetensors file, or a board by name or path. A card is made from the records. A board, with
    its records, becomes a data set of the Hub, datasets/USER/NAME. The extra `hub` and a token (HF_TOKEN, or
    `hf auth login`) are needed, but for --to and --dry-run.
    """
    from benchbd.exchange.hub import Repository

    if (repo and folder) or not (repo or folder or dry_run):
        raise UsageError("name one of --repo USER/NAME, --to FOLDER and --dry-run")
    is_encoder = what.endswith(".safetensors") or (expanded(what).is_file() and not what.endswith(".toml"))
    repository = None if repo is None else replace(Repository.of(repo), kind="model" if is_encoder else "dataset")
    if repository is not None and repository.revision is not None:
        raise UsageError(f"--repo {repo}: what is pushed becomes the newest revision; leave @{repository.revision} out")
    if repository is not None and not dry_run:
        repository.check(writing=True)
    from benchbd.packages import board_package, encoder_package, write_package

    if is_encoder:
        if records is not None or store is not None:
            raise UsageError("--records and --store are of a board; --record names a record of an encoder")
        package = encoder_package(what, licence, cells)
    else:
        from benchbd.cli.results import records_of
        from benchbd.planning.board import load_board

        if cells:
            raise UsageError("--record is of an encoder; --records names the folder of a board's records")
        found = records_of(load_board(what), what, [] if records is None else [records], store)
        package = board_package(what, licence, found.records, found.inspected)
    if dry_run:
        _list(package)
    elif folder is not None:
        say(f"{write_package(package, folder)}: {_told(package)}")
    elif repository is not None:
        address = repository.commit(package.files, f"{package.kind} {package.name}, by benchbd {__version__}")
        say(f"{address}: {_told(package)}")


@click.command(cls=Command)
@click.argument("source")
@click.option("--out", type=PathType(), help="New folder for the files.  [default: the last part of SOURCE]")
def pull(source: str, out: Path | None) -> None:
    """Pull an encoder or a board from the Hugging Face Hub.

    SOURCE is USER/NAME or datasets/USER/NAME on the Hub, with @REVISION for another than the newest, or the path of a
    folder that `push --to` wrote. Every file must have its digest, an encoder is read as `import` reads a stranger's
    file, and records are verified; otherwise nothing is written.
    """
    from benchbd.exchange.hub import Repository

    place = expanded(source)
    local = place.is_dir() or source.startswith((".", "/", "~"))
    absent = f"; there is no folder {source} here"
    try:
        repository = None if local else Repository.of(source)
        if repository is not None:
            repository.check()
    except BenchbdError as error:
        raise type(error)(f"{error}{absent}") from error
    from benchbd.packages import CARD, ENCODER, Folder
    from benchbd.packages import pull as fetch

    out = out or Path(repository.identity.rpartition("/")[2] if repository else place.resolve().name)
    try:
        package = fetch(repository or Folder(place), source, out)
    except DataAbsentError as error:
        raise DataAbsentError(f"{error}{absent}") from error
    say(f"{out}: {_told(package)}")
    click.echo(f"its card, {CARD}, is left out: no digest covers it", err=True)
    if package.kind == "encoder":
        click.echo(f"benchbd inspect {out / ENCODER} --images DIR asks detectors about it", err=True)


def _told(package: Package) -> str:
    return f"{package.kind} {package.name}, {package.licence}, {len(package.files)} files, sha256 {package.digest}"


def _list(package: Package) -> None:
    """Print the names and sizes of the files, and the card."""
    from benchbd.packages import CARD

    say(_told(package))
    for name, content in package.files.items():
        say(f"  {name}  {len(content):,} bytes")
    say(f"\n{package.files[CARD].decode()}", nl=False)

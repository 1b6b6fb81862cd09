"""``benchbd doctor``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from benchbd.base.process import columns, say
from benchbd.cli.group import Command
from benchbd.cli.options import PlaceType, data_root_option, device_option
from benchbd.report.writers.columns import WIDTH
from benchbd.report.writers.forms import write


@click.command(cls=Command)
@data_root_option
@click.option("--store", type=PlaceType(), help="Folder of the results.  [env: BENCHBD_STORE]")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(data_root: Path | None, store: Path | None, device: str | None, as_json: bool) -> None:
    """Check whether benchbd works on this machine.

    Checked are the installation and its plugins, the device and its memory, the data root, the store, and the process
    that reads files of strangers. Nothing is changed. A line says what would mend what is wrong.

    Exit code: 0 without a problem, 1 with one, 2 for wrong usage.
    """
    from benchbd.doctor import examine
    from benchbd.report.diagnosed import document

    found = examine(data_root=data_root, store=store, device=device)
    say(write(document(found), "json" if as_json else "text", columns(WIDTH)), nl=False)
    if any(each.state == "problem" for each in found):
        sys.exit(1)

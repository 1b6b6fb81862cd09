"""``benchbd run``."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import click

from benchbd.base.process import columns, say
from benchbd.cli.group import Command
from benchbd.cli.options import grid_options, open_session
from benchbd.contract.axes import INSPECTING
from benchbd.report.writers.columns import WIDTH


@click.command(cls=Command)
@grid_options
@click.option("--download", is_flag=True, help="Download known data sets that are absent.")
@click.option("--by", default=None, metavar="NAME", help="Name of who runs it, for the records.  [env: BENCHBD_AUTHOR]")
@click.option("--executor", default=None, metavar="NAME", help="Executor that computes the stages.  [default: inline]")
@click.option("--published", is_flag=True, help="Take encoders that the board publishes instead of computing them.")
def run(download: bool, by: str | None, executor: str | None, published: bool, **arguments: Any) -> None:
    """Compute a board, or a part of it, and print the table.

    --defense also adds rows for the undefended encoder, the floor (the clean encoder) and the controls scratch and bn,
    for the selected attacks and evaluators. --only omits them; --json marks them with "context": true.

    --encoder evaluates an encoder without an attack; with --attack A of role file, as the result of an attack that
    bound the board's trigger.

    Results in the store are not computed again: the same command resumes an interrupted run, and several runs on one
    store share the work.

    Exit code: 0 if all cells are done, 1 if some ended in an error or a timeout, 2 for wrong usage or data, 130 if
    interrupted, 143 if terminated.
    """
    from benchbd.cli.terminal import Terminal
    from benchbd.records.gates import judge
    from benchbd.records.places import records_folder
    from benchbd.report import leaderboard
    from benchbd.report.inspected import documents
    from benchbd.report.rows import Order
    from benchbd.report.writers import text

    session = open_session(arguments, download=download, by=by, executor=executor, published=published)
    terminal = Terminal(sys.stderr, quiet=arguments["quiet"], gates=session.board.gates)
    if not arguments["quiet"]:
        logging.getLogger("benchbd").setLevel(logging.INFO)  # a run shows its progress
    session.registry.manager.register(terminal, name="terminal")
    with terminal:
        records = session.run()
        inspected = session.inspect()
    if not arguments["quiet"]:
        click.echo(f"records: {records_folder(session.store, session.board.name)}", err=True)
    if arguments["as_json"]:
        document = {
            "board": session.board.name,
            "records": [
                {
                    **json.loads(record.to_json()),
                    "judged": judge(record, session.board.gates)._asdict(),
                    **({"context": True} if session.is_context(record) else {}),
                }
                for record in records
            ],
            **{
                axis.plural: [json.loads(record.to_json()) for record in inspected if record.axis == axis.name]
                for axis in INSPECTING
            },
        }
        say(json.dumps(document, indent=1))
    else:
        order, width = Order.of(session.board), columns(WIDTH)
        say(text.write(leaderboard.document(records, order=order, off_board=True), width), nl=False)
        for _, judged in documents(inspected, order, off_board=True):
            if told := text.write(judged, width):
                say(f"\n{told}", nl=False)
    if any(record.status in ("timeout", "error") for record in (*records, *inspected)):
        sys.exit(1)

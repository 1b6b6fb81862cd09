"""``benchbd plan``."""

from __future__ import annotations

from typing import Any

import click

from benchbd.base.process import columns, say
from benchbd.cli.group import Command
from benchbd.cli.options import grid_options, open_session
from benchbd.report.writers.columns import WIDTH


@click.command(cls=Command)
@grid_options
def plan(**arguments: Any) -> None:
    """Show the stages that `run` with the same arguments would compute, which are cached, and what they may cost.

    A large grid is summed up by kind and method; --json has every stage.
    """
    from benchbd.cli.plan_text import render

    session = open_session(arguments)
    text = render(session, session.plan(strict=False), as_json=arguments["as_json"], width=columns(WIDTH))
    say(text, nl=False)

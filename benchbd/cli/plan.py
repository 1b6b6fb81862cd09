"""``benchbd plan``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from benchbd.base.errors import DataAbsentError
from benchbd.base.process import columns, say
from benchbd.cli.group import Command
from benchbd.cli.options import grid_options, open_session
from benchbd.report.plan import PlannedStage, document
from benchbd.report.writers.columns import WIDTH
from benchbd.report.writers.forms import write

if TYPE_CHECKING:
    from benchbd.api import Session
    from benchbd.planning.cases import Plan


@click.command(cls=Command)
@grid_options
def plan(**arguments: Any) -> None:
    """Show the stages of a run, and their estimated cost.

    The arguments are those of `run`. The list marks stages that are in the store already. A large grid is summed up by
    kind and method; --json has every stage.
    """
    session = open_session(arguments)
    planned = session.plan(strict=False)
    said = document(planned, list(_stages(session, planned)), _how_to_get(session, planned))
    say(write(said, "json" if arguments["as_json"] else "text", columns(WIDTH)), nl=False)


def _stages(session: Session, planned: Plan) -> Iterator[PlannedStage]:
    """Every stage, with its state in the store."""
    from benchbd.engine.provenance import machine
    from benchbd.planning.cost import estimate_seconds, known_forwards
    from benchbd.store.store import Store

    store, stages = Store(session.store, writable=False), planned.stages
    forwards = known_forwards(stages)
    seconds = estimate_seconds(stages, forwards, store.manifests(), machine(session.device)["device"])
    for stage in stages:
        yield PlannedStage(
            key=stage.key,
            kind=stage.kind,
            method=stage.method_name,
            label=stage.label,
            cached=store.has(stage.key),
            provisional=stage.provisional,
            absent=tuple(f"{ref.name} ({ref.split})" for ref in stage.data.values() if ref.absent),
            image_forwards=forwards[stage.key],
            seconds=seconds[stage.key],
        )


def _how_to_get(session: Session, planned: Plan) -> list[str]:
    """The library's instructions for each absent data set."""
    advice: dict[str, str] = {}
    for ref in [ref for stage in planned.stages for ref in stage.data.values() if ref.absent]:
        if ref.name not in advice:
            try:
                session.library.info(ref.name, ref.split, ref.size)
            except DataAbsentError as absent:
                advice[ref.name] = str(absent)
    return list(advice.values())

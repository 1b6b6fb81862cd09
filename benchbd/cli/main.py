"""The command line. No module here imports torch before a command needs it: ``--help`` and ``leaderboard`` never do."""

from __future__ import annotations

import os

import click

from benchbd._version import __version__
from benchbd.cli.audit import check, outdated, pin, submit, verify, why
from benchbd.cli.doctor import doctor
from benchbd.cli.encoder import export, import_, inspect, repair
from benchbd.cli.group import Group
from benchbd.cli.hub import pull, push
from benchbd.cli.plan import plan
from benchbd.cli.plugin import plugin
from benchbd.cli.results import compare, figures, gallery, leaderboard
from benchbd.cli.run import run
from benchbd.cli.show import list_, plugins, show

# torch reads it when it is imported: how long its threads spin before they sleep. At the default of 300,000 rounds two
# threads beside a busy process are ten times slower; a few thousand rounds cost nothing on a quiet machine.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="benchbd")
def main() -> None:
    """Cross backdoor attacks on self-supervised image encoders with the defenses against them.

    Start with `benchbd run`: it needs no data and takes a few minutes. For an encoder from a stranger, start with
    `benchbd import`.
    """


for command in (
    *(run, plan, import_, inspect, repair, export),
    *(
        list_,
        show,
        plugins,
        plugin,
        compare,
        verify,
        why,
        outdated,
        submit,
        figures,
        leaderboard,
        gallery,
        push,
        pull,
        doctor,
    ),
):
    main.add_command(command)
leaderboard.add_command(pin)
leaderboard.add_command(check)


if __name__ == "__main__":
    main()

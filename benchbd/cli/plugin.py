"""``benchbd plugin``: commands for authors of plugins."""

from __future__ import annotations

from pathlib import Path

import click

from benchbd.base.process import say
from benchbd.cli.group import Group
from benchbd.cli.options import PathType
from benchbd.cli.show import plugins
from benchbd.contract.axes import AXIS


@click.group(cls=Group)
def plugin() -> None:
    """Start a plugin of your own.

    docs/plugin-api.md has the contract of every axis.
    """


plugin.add_command(plugins, "list")


@plugin.command(
    "new",
    help=f"""Write a new plugin: a distribution with a method that works.

    NAME is the method's name, in lower-case letters, digits, '-' and '_'; AXIS one of {", ".join(AXIS)}.

    The folder has a module with the method, whose docstring and options show the form, pyproject.toml, a test, README,
    LICENSE and CITATION.cff. The method is benchbd's example of that axis: edit it.
    """,
)
@click.argument("name")
@click.option("--axis", required=True, metavar="AXIS", help="What the method is, such as defense, attack, detection.")
@click.option("--out", type=PathType(), help="New folder for the files.  [default: benchbd-NAME]")
@click.option("--licence", default="apache-2.0", metavar="mit|apache-2.0", help="Its licence.  [default: apache-2.0]")
@click.option("--author", help="Who wrote it, for pyproject.toml and CITATION.cff.  [default: the authors of it]")
def new(name: str, axis: str, out: Path | None, licence: str, author: str | None) -> None:
    from benchbd.registry import load_registry
    from benchbd.scaffold import new_plugin

    folder, files = new_plugin(load_registry(), name, axis, out, licence=licence, author=author)
    for file in files:
        say(str(folder / file))
    click.echo(f"pip install -e {folder} installs it; its README.md has the next steps", err=True)

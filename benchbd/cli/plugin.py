"""``benchbd plugin``: commands for authors of plugins."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from benchbd.base.errors import UnknownNameError
from benchbd.base.process import columns, say
from benchbd.cli.group import Group
from benchbd.cli.options import PathType, data_root_option, method_option
from benchbd.cli.show import plugins
from benchbd.contract.axes import AXIS
from benchbd.report.writers.columns import WIDTH, wrapped

if TYPE_CHECKING:
    from benchbd.registry import Plugin, Registry
    from benchbd.testing.conformance import Checked


@click.group(cls=Group)
def plugin() -> None:
    """Write, list and check plugins.

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


@plugin.command("check")
@click.argument("name")
@method_option
@data_root_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check(name: str, options: tuple[str, ...], data_root: Path | None, as_json: bool) -> None:
    """Check the methods of a plugin, one line per property.

    NAME is the name of a method, AXIS:NAME if several axes have it, or the name of a distribution for all that it adds.
    The work is done on toys, with the shortest values of the options that set its length; -o sets others.

    Exit code: 0 if all properties hold or are skipped, 1 if one does not hold, 2 for wrong usage.
    """
    from benchbd.planning.options import parse_options
    from benchbd.registry import load_registry
    from benchbd.testing.conformance import check_class, check_properties, failed, repeat_elsewhere

    registry, asked = load_registry(), parse_options(options)
    found = _found(registry, name)
    methods = [cls for axis, each in found.named if (cls := registry.methods.get(axis, {}).get(each))]
    known = {called for cls in methods for called in (cls.name, f"{cls.axis}:{cls.name}")}
    for unknown in asked.keys() - known:
        raise UnknownNameError("method to check", unknown, known)
    checks = [failed(plugin.name, plugin.problem) for plugin in found.broken]
    with tempfile.TemporaryDirectory() as place:
        for number, cls in enumerate(methods):
            (folder := Path(place) / str(number)).mkdir()
            own = asked.get(cls.name, {}) | asked.get(f"{cls.axis}:{cls.name}", {})
            checks.append(check_properties(cls, folder, own, data_root))
        repeat_elsewhere(checks)
    checks += [check_class(registry.architectures[each]) for axis, each in found.named if axis == "architecture"]
    if as_json:
        say(json.dumps([each.told() for each in checks], indent=1))
    else:
        say("\n\n".join("\n".join(_lines(each)) for each in checks))
    if not all(each.holds for each in checks):
        sys.exit(1)


class _Found(NamedTuple):
    """What a name stands for: methods and architectures by axis and name, and plugins that could not be loaded."""

    named: list[tuple[str, str]]
    broken: list[Plugin]


def _found(registry: Registry, name: str) -> _Found:
    """UnknownNameError, with the nearest name, for one that is neither a method, an architecture nor a distribution."""
    distributions = {plugin.distribution for plugin in registry.plugins}
    axis, _, bare = name.rpartition(":")
    methods = {each for names in registry.methods.values() for each in names}
    if bare in registry.architectures and (axis == "architecture" or (not axis and bare not in methods)):
        return _Found([("architecture", bare)], [])
    if name not in distributions:
        besides = [*distributions, *registry.architectures]
        return _Found([(cls.axis, cls.name) for cls in registry.find(name, besides)], [])
    own = [plugin for plugin in registry.plugins if plugin.distribution == name]
    named = [(axis, each) for plugin in own for axis, names in plugin.adds.items() for each in names]
    return _Found([pair for pair in named if pair[0] != "executor"], [plugin for plugin in own if plugin.problem])


def _lines(checked: Checked) -> Iterator[str]:
    """A heading, and a line for each property; a reason may take more."""
    width = columns(WIDTH)
    yield from wrapped(f"{checked.axis} {checked.name}{_options(checked)}", width, "", "  ")
    room = max(len(of) for of in checked.findings) + 2
    for of, finding in checked.findings.items():
        begin = f"  {of:<{room}}{finding.state}  "
        yield from wrapped(finding.reason, width, begin, " " * len(begin)) or [begin.rstrip()]


def _options(checked: Checked) -> str:
    """The options that the method was checked with, as ``-o`` takes them."""
    told = (f"{checked.name}.{name}={json.dumps(value, default=str)}" for name, value in checked.options.items())
    return ", with " + " ".join(f"-o {each}" for each in told) if checked.options else ""

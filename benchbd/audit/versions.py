"""Records that another version of a method, or another source of it, made than the installed one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from benchbd.contract.method import version_of
from benchbd.records.models import Entry
from benchbd.records.points import within
from benchbd.registry import Registry


def stale(records: Iterable[Entry], registry: Registry, *, sources: bool = False) -> Iterator[str]:
    """A line for every method of these records that is not the installed one, with their number. sources: see
    ``changes``."""
    found = Counter(change for record in records for change in set(changes(record, registry, sources=sources)))
    for (method, told), count in sorted(found.items()):
        yield f"{count} record{'s' * (count > 1)} of {method}{told}"


def changes(record: Entry, registry: Registry, *, sources: bool = False) -> Iterator[tuple[str, str]]:
    """The methods that made a record and differ from the installed ones: axis and name, and in what, as the end of a
    line.

    A version is the plugin's word for the same results. sources: whether a method counts too whose version is the same
    and whose module has another sha256: it may compute the same.
    """
    for kind, identity in record.identity.items():
        method = within(identity, "method") or {}
        if not {"axis", "name", "version"} <= method.keys():
            continue
        axis, name, version = str(method["axis"]), str(method["name"]), str(method["version"])
        if name not in registry.names(axis):
            yield f"{axis} {name}", f", version {version}; no installed plugin offers it"
        elif version != (today := version_of(registry.get(axis, name))):
            yield f"{axis} {name}", f", version {version}; version {today} is installed"
        elif sources and (own := record.plugins.get(kind)) and own.source != _source(registry, axis, name):
            yield f"{axis} {name}", f", version {version}, whose source has changed since"


def _source(registry: Registry, axis: str, name: str) -> str | None:
    origin = registry.origin(axis, name)
    return origin["source"] if origin else None

"""Records that another version of a method made than the installed one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from benchbd.contract.method import version_of
from benchbd.records.models import Entry
from benchbd.records.points import within
from benchbd.registry import Registry


def stale(records: Iterable[Entry], registry: Registry) -> Iterator[str]:
    """A line for every method and version of these records that is not the installed one, with their number."""
    found: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        methods = [within(identity, "method") or {} for identity in record.identity.values()]
        found.update({(m["axis"], m["name"], str(m["version"])) for m in methods if {"axis", "version"} <= m.keys()})
    for (axis, name, version), count in sorted(found.items()):
        known = name in registry.names(axis)
        today = version_of(registry.get(axis, name)) if known else ""
        if version != today:
            told = f"version {today} is installed" if known else "no installed plugin offers it"
            yield f"{count} record{'s' * (count > 1)} of {axis} {name}, version {version}; {told}"

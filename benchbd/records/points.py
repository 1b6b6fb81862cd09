"""Compare a sweep's point with the identity of a record's stages. This module does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from benchbd.base.content import canonical
from benchbd.base.errors import shown
from benchbd.contract.specs import SECTIONS

if TYPE_CHECKING:
    from benchbd.records.models import Entry

_OPTION = re.compile(r"((?P<axis>[a-z]+):)?(?P<method>[a-z0-9_-]+)\.(?P<field>[A-Za-z_]\w*)")

_DIGEST = re.compile(r'"[0-9a-f]{64}"')  # the digest of a file; a point has its path instead

_COUNTED = {
    "clean.images": ("", "params", "clean", "count"),
    "reference.count": ("reference", "method", "count"),
    "shadow.images": ("attack", "params", "shadow", "count"),
}
"""Where an identity has the value of a part of the protocol: the kind of stage, empty for any, then the path."""

_OWN = "benchbd"  # the distribution whose methods have no late option: an identity has all of their options


def within(value: Any, *path: str) -> Any:
    """The value at ``path`` in nested dictionaries; None if it does not exist."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def faults(record: Entry) -> Iterator[str]:
    """Assignments of the point that are none, or that the record's stages contradict, each as one line.

    Triggers and budgets are in no identity as options, nor are methods that take no part: these are not compared.
    An option that the user changed is compared with the departures, not with the point.
    """
    for option, value in record.point.items():
        said, changed = _OPTION.fullmatch(option), "pre-training method "
        if said:
            changed = f"{said['method']}.{said['field']}="
        elif option != "pretraining":
            yield f"point: {shown(option)} is neither of the form NAME.FIELD nor pretraining"
            continue
        if any(
            text.startswith((changed, f"budget.{said['field']}=" if said else changed)) for text in record.departures
        ):
            continue
        if said and not said["axis"] and said["method"] in SECTIONS:
            yield from _of_part(record, said["method"], said["field"], value)
        elif said:
            yield from _of_method(record, said, option, value)
        elif (known := within(record.identity, "pretrain", "method", "name")) not in (None, value):
            yield f"point: {option}={shown(value)}, but identity.pretrain is of {shown(known)}"


def _of_part(record: Entry, part: str, field: str, value: Any) -> Iterator[str]:
    """Faults of an assignment to a part of the protocol."""
    option = f"{part}.{field}"
    if field not in SECTIONS[part].model_fields:
        yield f"point: {part} has no option {shown(field)}; it has {', '.join(SECTIONS[part].model_fields)}"
    elif isinstance(value, list | dict):
        yield f"point: {option}={shown(value)} is no single value"
    for kind, identity in record.identity.items():
        images = within(identity, "params", "clean", "count")
        if option == "clean.poisoned" and images is not None:
            known, expected = within(identity, "params", "clean", "poisoned") or 0, _share(value, images)
            if known != expected:
                yield f"point: {option}={shown(value)}, but identity.{kind} has {known} poisoned of {images} images"
        of, *path = _COUNTED.get(option, ("", ""))
        known = within(identity, *path) if kind.startswith(of) else None
        if known is not None and not _same(value, known):
            yield f"point: {option}={shown(value)}, but identity.{kind} has {known}"


def _of_method(record: Entry, said: re.Match[str], option: str, value: Any) -> Iterator[str]:
    """Faults of an assignment to an option of a method; none if the method takes no part."""
    for kind, identity in record.identity.items():
        method, field = within(identity, "method"), said["field"]
        options = within(method, "options")
        if within(method, "name") != said["method"] or said["axis"] not in (None, within(method, "axis")):
            continue
        if field in (options or {}):
            known = options[field]
            if not _same(value, known) and not _DIGEST.search(canonical(known)):
                yield f"point: {option}={shown(value)}, but identity.{kind} has {known}"
        elif options and kind in record.plugins and record.plugins[kind].distribution == _OWN:
            yield f"point: {option}={shown(value)}, but {said['method']} has no such option in identity.{kind}"


def _share(value: Any, images: int) -> int | None:
    """The number of images that a share is, rounded down as for a draw; None if it is no share."""
    try:
        return int(Decimal(str(value)) * images)
    except (InvalidOperation, ValueError, OverflowError):
        return None


def _same(value: Any, known: Any) -> bool:
    """Whether an option that was assigned ``value`` may have the value ``known``: numbers and truth values may be
    assigned as text."""
    if isinstance(value, list) and isinstance(known, list):
        return len(value) == len(known) and all(map(_same, value, known))
    if isinstance(value, dict) and isinstance(known, dict):
        return value.keys() == known.keys() and all(_same(value[name], known[name]) for name in known)
    if value == known or str(value).lower() == str(known).lower():
        return True
    try:
        return float(value) == float(known)
    except (TypeError, ValueError, OverflowError):
        return False

"""Compare a sweep's point with the identity of a record's stages. This module does not import torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from benchbd.base.errors import shown
from benchbd.contract.specs import SECTIONS
from benchbd.records.models import TRIAL, Entry

_OPTION = re.compile(r"((?P<axis>[a-z]+):)?(?P<method>[a-z0-9_-]+)\.(?P<field>[A-Za-z_]\w*)")

_DIGEST = re.compile(r"[0-9a-f]{64}")  # the digest of a file; a point has its path instead

_Check = Callable[["Entry", str, Any, Any], str]
"""What the identity of a stage has instead of a value, as in "has 3"; empty if it has the value or none at all.
Arguments: record, kind of the stage, its identity, value."""

_OWN = "benchbd"  # the distribution whose late options are 0 by default: an identity has all others


def within(value: Any, *path: str) -> Any:
    """The value at ``path`` in nested dictionaries; None if it does not exist."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def faults(record: Entry) -> Iterator[str]:
    """Assignments of the point that are none, or that the record's stages contradict, each as one line.

    Not compared are triggers, which identities have as a digest, the budget, over which options take precedence, and
    methods that take no part. An option that an identity lacks may be a late one at its default; for methods of
    benchbd, only if it is assigned 0. A plugin's own list of options is not asked, because reading a record needs no
    plugin and must not depend on those that are installed. An option that the user changed is compared with the
    departures.
    """
    if TRIAL in record.point:
        yield from _of_trial(record)
    for option, value in record.point.items():
        if option == TRIAL:
            continue
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
            yield from of_part(record, said["method"], said["field"], value)
        elif said:
            yield from _of_method(record, said, option, value)
        elif (known := within(record.identity, "pretrain", "method", "name")) not in (None, value):
            yield f"point: {option}={shown(value)}, but identity.pretrain is of {shown(known)}"


def _of_trial(record: Entry) -> Iterator[str]:
    """Faults of a trial: its number, and options that are not those of the record's defense."""
    number, own = record.point[TRIAL], f"defense:{getattr(record, 'defense', '')}."
    if type(number) is not int or number < 1:
        yield f"point: trial {shown(number)}; trials are numbered from 1"
    for option in record.point.keys() - {TRIAL}:
        if not option.startswith(own):
            yield f"point: {shown(option)}, but a trial varies options of its defense alone"


def bearing(record: Entry, stages: Collection[str], parts: Collection[str]) -> str:
    """The assignments of the record's point that may change stages of these kinds, as text.

    Left out are assignments to parts of the protocol other than ``parts``, the budget apart, and to options of methods
    of the record's other stages.
    """
    named: dict[bool, set[object]] = {True: set(), False: set()}
    for kind, identity in record.identity.items():
        named[kind.rstrip("0123456789") in stages].add(within(identity, "method", "name"))
    foreign = {*SECTIONS.keys() - {*parts, "budget"}, *(named[False] - named[True])}
    return json.dumps(
        {
            option: value
            for option, value in sorted(record.point.items())
            if option != TRIAL and option.rpartition(".")[0].rpartition(":")[2] not in foreign
        }
    )


def of_part(record: Entry, part: str, field: str, value: Any, said: str = "point") -> Iterator[str]:
    """Faults of an assignment to a part of the protocol. said: the field of the record that has the assignment."""
    told = f"{said}: {part}.{field}={shown(value)}"
    if field not in SECTIONS[part].model_fields:
        yield f"{said}: {part} has no option {shown(field)}; it has {', '.join(SECTIONS[part].model_fields)}"
    elif isinstance(value, list | dict):
        yield f"{told} is no single value"
    elif check := _PARTS.get(f"{part}.{field}"):
        for kind, identity in record.identity.items():
            if fault := check(record, kind, identity, value):
                yield f"{told}, but identity.{kind} {fault}"


def _count_in(of: str, *path: str) -> _Check:
    """A check of a number that the stages of a kind have at ``path``; of every kind if the kind is empty."""

    def fault(record: Entry, kind: str, identity: Any, value: Any) -> str:
        known = within(identity, *path) if kind.startswith(of) else None
        return "" if known is None or _same(value, known) else f"has {known}"

    return fault


def _poisoned(record: Entry, kind: str, identity: Any, value: Any) -> str:
    if (images := within(identity, "params", "clean", "count")) is None:
        return ""
    known = within(identity, "params", "clean", "poisoned") or 0
    return "" if known == _share(value, images) else f"has {known} poisoned of {images} images"


def _task_images(record: Entry, kind: str, identity: Any, value: Any) -> str:
    """At most so many: all of a task that has fewer."""
    known = within(identity, "params", "task", "count")
    return "" if known is None or (_number(known) or 0) <= (_number(value) or 0) else f"has {known}"


def _reference_file(record: Entry, kind: str, identity: Any, value: Any) -> str:
    """The value is a path, or a digest as in departures."""
    params = within(identity, "params")
    if not kind.startswith("reference") or not isinstance(params, Mapping) or "file" not in params:
        return ""
    if (known := params["file"]) is None or _is_null(value):
        same = known is None and _is_null(value)
    else:
        same = value == known or not _DIGEST.fullmatch(str(value))
    return "" if same else f"has {'no file' if known is None else f'a file with the digest {str(known)[:12]}'}"


def _shadow_set(record: Entry, kind: str, identity: Any, value: Any) -> str:
    if kind != "attack" or not isinstance(data := within(identity, "data"), Mapping):
        return ""
    if _is_null(value):
        return "has a shadow set" if "shadow" in data else ""
    if "shadow" not in data:
        return "has no shadow set"
    known = _digests(record).get(str(value), data["shadow"])
    return "" if known == data["shadow"] else f"has another shadow set, with the digest {str(data['shadow'])[:12]}"


def _digests(record: Entry) -> dict[str, Any]:
    """Digests of data sets, by DATASET:SPLIT, as far as the identity has them."""
    own, judge = getattr(record, "task", ""), within(record.identity, "evaluate", "data")
    found = {f"{own}:{split}": within(judge, split) for split in ("train", "test")}
    attacked: list[str] = getattr(record, "tasks", None) or getattr(record, "beside", [])
    targets = within(record.identity, "attack", "params", "targets")
    if isinstance(targets, list) and len(targets) == len(attacked):  # else ``attacked`` is only some of them
        for number, task in enumerate(attacked):
            digest = within(record.identity, "attack", "data", f"train{number}")
            found[f"{task.rpartition(':')[0]}:train"] = digest
    # That of an attack is only the training split after a labelled pre-training.
    pools = [within(record.identity, kind, "data", "pool") for kind in ("defend", "detect")]
    found[f"{record.pretrain}:pool"] = pools[0] or pools[1]
    return {name: digest for name, digest in found.items() if digest is not None}


_PARTS: dict[str, _Check] = {
    "clean.images": _count_in("", "params", "clean", "count"),
    "clean.poisoned": _poisoned,
    "reference.count": _count_in("reference", "method", "count"),
    "reference.file": _reference_file,
    "shadow.images": _count_in("attack", "params", "shadow", "count"),
    "shadow.set": _shadow_set,
    "task.images": _task_images,
}
"""Checks of assignments to the parts of the protocol that identities have as values."""


def _of_method(record: Entry, said: re.Match[str], option: str, value: Any) -> Iterator[str]:
    """Faults of an assignment to an option of a method; none if the method takes no part."""
    for kind, identity in record.identity.items():
        method, field = within(identity, "method"), said["field"]
        options = within(method, "options")
        if within(method, "name") != said["method"] or said["axis"] not in (None, within(method, "axis")):
            continue
        if field in (options or {}):
            known = options[field]
            if not _same(value, known):
                yield f"point: {option}={shown(value)}, but identity.{kind} has {known}"
        elif options and kind in record.plugins and record.plugins[kind].distribution == _OWN and not _same(value, 0):
            yield f"point: {option}={shown(value)}, but {said['method']} has no such option in identity.{kind}"


def _share(value: Any, images: int) -> int | None:
    """The number of images that a share is, rounded down as for a draw; None if it is no share."""
    try:
        return int(Decimal(str(value)) * images)
    except (InvalidOperation, ValueError, OverflowError):
        return None


def _same(value: Any, known: Any) -> bool:
    """Whether an option that was assigned ``value`` may have the value ``known``: numbers and truth values may be
    assigned as text, and files by their path. A part of an option that was assigned nothing has its default."""
    if isinstance(value, list) and isinstance(known, list):
        return len(value) == len(known) and all(map(_same, value, known))
    if isinstance(value, dict) and isinstance(known, dict):
        named = any(map(_DIGEST.fullmatch, known))  # by files: in an order of their own
        return named or all(name in known and _same(value[name], known[name]) for name in value)
    if isinstance(known, str) and _DIGEST.fullmatch(known):
        return isinstance(value, str)
    if value == known or str(value).lower() == str(known).lower():
        return True
    number = _number(known)
    return number is not None and _number(value) == number


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_null(value: Any) -> bool:
    """Whether a value is null; departures are texts."""
    return value is None or value == "None"

"""Options that make a method's work short, from its fields: few steps, small batches, a small net."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchbd.base.errors import BenchbdError
from benchbd.contract.method import Method, build

LENGTHS = {
    r"steps|epochs|passes|iterations|rounds|trials|draws|restarts|starts|pool": (1, 2, 4),
    r"batch": (16, 32),
    r"images": (4, 16),
    r"arch": ("w16",),
}
"""Words in the names of options that set the length of the work, and the values to try, the shortest first."""


def shortened(cls: type[Method], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the shortest value of every option that sets a length, as far as the class accepts it.

    Only options that are numbers, may be None or name an architecture are set; those that are given stay.
    """
    options = dict(given)
    for name, info in cls.model_fields.items():
        default = info.get_default(call_default_factory=False)
        for words, values in LENGTHS.items():
            if name in given or not re.search(rf"(?:^|_)(?:{words})(?:_|$)", name):
                continue
            for value in values:
                if _shorter(value, default) and _valid(cls, {**options, name: value}):
                    options[name] = value
                    break
    return options


def _shorter(value: object, default: object) -> bool:
    if isinstance(value, int) and isinstance(default, int) and not isinstance(default, bool):
        return value < default
    return default is None or (isinstance(value, str) and isinstance(default, str) and value != default)


def _valid(cls: type[Method], options: Mapping[str, Any]) -> bool:
    try:
        build(cls, options, cls.name)
    except BenchbdError:
        return False
    return True

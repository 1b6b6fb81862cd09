"""The contracts: what a method is, and what each axis hands it and expects back.

A method is a frozen pydantic model. Its fields are its hyperparameters: type, default, bounds and description are said
once and drive validation, ``-o NAME.FIELD=VALUE``, ``benchbd show``, the docs, the cache key and the record.
The threat model is in the signatures: what an argument does not hold, a method cannot use.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from benchbd.base.content import as_json, paths_in
from benchbd.base.errors import PluginError, UnknownNameError, asked, first_line, named, shown
from benchbd.base.isolation import asking
from benchbd.base.options import identity_options, validated
from benchbd.contract.roles import Role

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")
C = TypeVar("C", bound="Method")

MOST_FORWARDS = 10**18  # more is no estimate


class Method(BaseModel):
    """The base of every method: a frozen set of hyperparameters, each with a default.

    name: how users call it, in lower-case letters, digits, '-' and '_'; unique on its axis.
    paper: where it comes from, one line; empty for controls.
    version: raise it when results change. Where a class declares none, it is the digest of the module's source, so
        that an author who edits the code gets a fresh run.
    late: names of options that the identity leaves out while they have their default: options that came after results
        were published, whose keys stay what they were. A late default changes only together with ``version``.
    role: what the method is in a board, where it is not a method as any other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    name: ClassVar[str]
    axis: ClassVar[str]
    paper: ClassVar[str] = ""
    version: ClassVar[str] = ""
    late: ClassVar[frozenset[str]] = frozenset()
    role: ClassVar[Role] = Role.METHOD
    passthrough: ClassVar[bool] = False
    """True for a control that hands on what it was given: it needs no stage of its own."""

    @classmethod
    def effective_version(cls) -> str:
        """The declared version, or the digest of the source of the module that defines the class."""
        if cls.version:
            return cls.version
        source = source_digest(cls) or _sha256(repr((cls.__module__, cls.__qualname__)))
        return f"source-{source[:16]}"

    def identity(self) -> dict[str, Any]:
        """What of this method goes into a cache key: axis, name, version and every field, of ``late`` ones those that
        do not have their default.

        A field that is or holds a ``Path`` counts by what lies there: one file at two places is one method. A path as
        a string is refused: it would count by its name, and records, which are published, would tell it.
        """
        return {
            "axis": self.axis,
            "name": self.name,
            "version": self.effective_version(),
            "options": identity_options(self),
        }

    def forwards(self, images: int) -> int | None:
        """Estimated cost in image-forwards for ``images`` training images, for ``benchbd plan``; None if unknown."""
        return None

    def shortened(self, images: int) -> str | None:
        """A line for the table where these options cost less than nine tenths of the defaults; else None."""
        own, full = self.forwards(images), type(self)().forwards(images)
        if not own or not full or own >= 0.9 * full:
            return None
        share = 100 * own / full
        return f"{self.name}: {share:.2g} % of the {full:,} image-forwards that its defaults take"


@cache
def source_digest(cls: type) -> str | None:
    """sha256 of the source of the module that defines a class; None for one without source."""
    try:
        return _sha256(inspect.getsource(sys.modules[cls.__module__]))
    except (OSError, TypeError, KeyError):
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ask(method: Method, what: str, work: Callable[..., Any], *arguments: object) -> Any:
    """What a method's ``work`` returns, in isolation: a question changes no answer of another method."""
    with asking(f"{method.axis} {method.name}", type(method)):
        return asked(what, work, *arguments)


def version_of(cls: type[Method]) -> str:
    """What ``cls.effective_version()`` says, in isolation; it was found to be a line when the class was registered."""
    with asking(f"{cls.axis} {cls.name}", cls):
        return cls.effective_version()


def identity_of(method: Method) -> dict[str, Any]:
    """What ``method.identity()`` says, as JSON. PluginError where it raises, says no JSON, says something else when
    asked again, or leaves out what every method's identity holds."""
    own, second, plain = ask(
        method, "identity()", lambda: (method.identity(), method.identity(), Method.identity(method))
    )
    try:
        found, again, whole = map(as_json, (own, second, plain))
    except (ValueError, TypeError, RecursionError) as error:
        raise PluginError(f"identity() must give JSON, not {shown(own)} ({named(error)})") from error
    if not isinstance(found, dict) or any(name not in found or found[name] != whole[name] for name in whole):
        raise PluginError(f"identity() must hold {', '.join(whole)} as Method.identity() does, not {shown(own)}")
    if found != again:
        raise PluginError("identity() differs from call to call")
    if path := next(paths_in(found), None):
        raise PluginError(
            f"identity() must tell no path of this machine, as {shown(path)} is: an option that names a file is "
            "declared as a Content, which counts by what lies there"
        )
    return found


def forwards_of(method: Method, images: int) -> int | None:
    """What ``method.forwards(images)`` says; PluginError where it raises or says no number of forwards."""
    told = ask(method, "forwards()", method.forwards, images)
    if told is None:
        return None
    if not isinstance(told, Integral) or isinstance(told, bool) or not 0 <= int(told) <= MOST_FORWARDS:
        raise PluginError(f"forwards() must give a whole number from 0 on or None, not {shown(told)}")
    return int(told)


def shortened_of(method: Method, images: int) -> str | None:
    """What ``method.shortened(images)`` says, a line or None; PluginError where it raises or says no text."""
    told = ask(method, "shortened()", method.shortened, images)
    if not (told is None or isinstance(told, str)):
        raise PluginError(f"shortened() must give a line or None, not {shown(told)}")
    return None if told is None else first_line(told) or None


def build(cls: type[M], values: Mapping[str, Any], name: str, folder: Path | None = None) -> M:
    """A validated ``cls``. The first problem becomes a one-line UsageError that names ``name.field``; what else a
    plugin's validator raises, a PluginError.

    folder: what relative paths of ``Content`` fields are relative to; None: the working directory.
    """
    with asking(name, cls):
        built: M = asked(f"{name}: its validation", validated, cls, values, name, folder)
    return built


@dataclass(frozen=True)
class Call:
    """A method by axis and name, with every option: enough to build it wherever its plugin is installed.

    version: of the method that the stage was planned with; another one would give another result.
    """

    axis: str
    name: str
    version: str
    options: Mapping[str, Any]


def call_of(method: Method) -> Call:
    return Call(method.axis, method.name, version_of(type(method)), method.model_dump(mode="json"))


def called(call: Call, classes: Mapping[str, type[C]]) -> C:
    """The method of a call, whose class is one of ``classes`` by name. UnknownNameError if it is none of them,
    PluginError if another version of it is installed than the call was made with."""
    if call.name not in classes:
        raise UnknownNameError(call.axis, call.name, classes)
    cls = classes[call.name]
    if (version := version_of(cls)) != call.version:
        raise PluginError(f"{call.axis} {call.name}: version {version} is installed here, not {call.version}")
    return build(cls, call.options, call.name)


def exactly(kind: type[R], value: object, who: str) -> R:
    """The value, where it is of this very class. PluginError for another or a subclass: what that overrides is not what
    the harness uses."""
    if type(value) is kind:
        return value
    name = type(value).__name__
    what = f"its subclass {name}, whose own methods are not used" if isinstance(value, kind) else name
    article = "" if kind.__name__.endswith("s") else "a "
    raise PluginError(f"{who} must return {article}benchbd.{kind.__name__}, not {what}")

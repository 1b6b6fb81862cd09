"""The base of all methods: hyperparameters, identity and cost.

A method is a frozen pydantic model. Its fields are its hyperparameters: type, default, bounds and description are
declared once and determine validation, ``-o NAME.FIELD=VALUE``, ``benchbd show``, the docs, the key and the record.
The signatures enforce the threat model: a method cannot use what its arguments do not contain.
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

MOST_FORWARDS = 10**18  # a larger number is no estimate


class Method(BaseModel):
    """The base of every method: a frozen set of hyperparameters, each with a default.

    name: for users, in lower-case letters, digits, '-' and '_'; unique on its axis.
    paper: the source, one line; empty for controls.
    version: raise it when results change. If a class declares none, it is the digest of the module's source, so
        that edited code is computed anew.
    late: names of options that the identity omits while they have their default: options added after results were
        published, so that the published keys stay valid. A late default changes only together with ``version``.
    role: the method's role in a board, if it is no ordinary method.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    name: ClassVar[str]
    axis: ClassVar[str]
    paper: ClassVar[str] = ""
    version: ClassVar[str] = ""
    late: ClassVar[frozenset[str]] = frozenset()
    role: ClassVar[Role] = Role.METHOD
    passthrough: ClassVar[bool] = False
    """True for a floor: it returns its input unchanged and needs no stage of its own."""

    @classmethod
    def effective_version(cls) -> str:
        """The declared version, or the digest of the source of the module that defines the class."""
        if cls.version:
            return cls.version
        source = source_digest(cls) or _sha256(repr((cls.__module__, cls.__qualname__)))
        return f"source-{source[:16]}"

    def identity(self) -> dict[str, Any]:
        """This method's part of a cache key: axis, name, version and every field, except ``late`` fields that have
        their default.

        A field that is or contains a ``Path`` counts by content: one file at two places is one method. A path as
        a string is refused: it would count by its name, and published records would reveal it.
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
        """A line for the table if these options cost less than nine tenths of the defaults; else None."""
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
    """The result of a method's ``work``, in isolation: a call changes no answer of another method."""
    with asking(f"{method.axis} {method.name}", type(method)):
        return asked(what, work, *arguments)


def version_of(cls: type[Method]) -> str:
    """The value of ``cls.effective_version()``, in isolation; registration checked that it is one line."""
    with asking(f"{cls.axis} {cls.name}", cls):
        return cls.effective_version()


def identity_of(method: Method) -> dict[str, Any]:
    """The value of ``method.identity()`` as JSON. PluginError if it raises, returns no JSON, returns another value when
    called again, or lacks what every method's identity contains."""
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


def most_forwards(estimate: int) -> int:
    """The image-forwards that a method of this estimate may take: a tenth above it."""
    return estimate + estimate // 10


def forwards_of(method: Method, images: int) -> int | None:
    """The value of ``method.forwards(images)``; PluginError if it raises or returns no number of forwards."""
    told = ask(method, "forwards()", method.forwards, images)
    if told is None:
        return None
    if not isinstance(told, Integral) or isinstance(told, bool) or not 0 <= int(told) <= MOST_FORWARDS:
        raise PluginError(f"forwards() must give a whole number from 0 on or None, not {shown(told)}")
    return int(told)


def shortened_of(method: Method, images: int) -> str | None:
    """The value of ``method.shortened(images)``, a line or None; PluginError if it raises or returns no text."""
    told = ask(method, "shortened()", method.shortened, images)
    if not (told is None or isinstance(told, str)):
        raise PluginError(f"shortened() must give a line or None, not {shown(told)}")
    return None if told is None else first_line(told) or None


def build(cls: type[M], values: Mapping[str, Any], name: str, folder: Path | None = None) -> M:
    """A validated ``cls``. The first problem becomes a one-line UsageError that names ``name.field``; any other error
    of a plugin's validator becomes a PluginError.

    folder: what relative paths of ``Content`` fields are relative to; None: the working directory.
    """
    with asking(name, cls):
        built: M = asked(f"{name}: its validation", validated, cls, values, name, folder)
    return built


@dataclass(frozen=True)
class Call:
    """A method by axis and name, with every option: enough to build it wherever its plugin is installed.

    version: of the method when the stage was planned; another version would give another result.
    """

    axis: str
    name: str
    version: str
    options: Mapping[str, Any]


def call_of(method: Method) -> Call:
    return Call(method.axis, method.name, version_of(type(method)), method.model_dump(mode="json"))


def called(call: Call, classes: Mapping[str, type[C]]) -> C:
    """The method of a call, whose class is one of ``classes`` by name. UnknownNameError if it is none of them,
    PluginError if the installed version is not the call's."""
    if call.name not in classes:
        raise UnknownNameError(call.axis, call.name, classes)
    cls = classes[call.name]
    if (version := version_of(cls)) != call.version:
        raise PluginError(f"{call.axis} {call.name}: version {version} is installed here, not {call.version}")
    return build(cls, call.options, call.name)


def exactly(kind: type[R], value: object, who: str) -> R:
    """The value, if it is of exactly this class. PluginError for another class or a subclass, whose overridden methods
    the harness would not use."""
    if type(value) is kind:
        return value
    name = type(value).__name__
    what = f"its subclass {name}, whose own methods are not used" if isinstance(value, kind) else name
    article = "" if kind.__name__.endswith("s") else "a "
    raise PluginError(f"{who} must return {article}benchbd.{kind.__name__}, not {what}")

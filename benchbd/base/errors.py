"""Everything benchbd raises on purpose. A user's mistake is one line: what is wrong, and what would be right.

BenchbdError
├── UsageError              an argument, option or board that makes no sense (exit code 2)
│   └── UnknownNameError    a name nobody registered; offers the nearest one
├── DataError               a data set that is damaged or does not fit (exit code 2)
│   └── DataAbsentError     a data set that is not there (exit code 2)
│       └── UnknownDataError    one that nobody registered either: a new set, or a typo (an UnknownNameError too)
├── StoreError              a store, or another folder for results, that cannot be read or written (exit code 2)
├── PluginError             a plugin that breaks the contract
├── NotApplicable           a method that makes no sense for this pair: the cell shows ``n/a`` and the reason
└── Diverged                a loss that left the numbers, or features that collapsed: the stage fails
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import TypeVar

R = TypeVar("R")

_UNREADABLE = "its message cannot be read"

ECHOED = 80  # characters of a value that a message repeats

LONGEST = 500  # characters of a foreign text in one line: enough for any sentence


class BenchbdError(Exception):
    """The root: its text is a single line meant for the user."""


class UsageError(BenchbdError):
    """The request makes no sense; the text gives one that would."""


class UnknownNameError(UsageError):
    """``name`` is not among ``known``; the text offers the nearest one and lists them all."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        hint = f"{near} " if isinstance(name, str) and (near := did_you_mean(name, names)) else ""
        super().__init__(f"unknown {brief(kind)} {shown(name)}: {hint}known: {', '.join(names) or 'none'}")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A question that offers the nearest of ``known``, ignoring case; empty if none is near."""
    by_lower = {each.lower(): each for each in known}
    near = get_close_matches(brief(name).lower(), by_lower, n=1, cutoff=0.55)  # slow if its argument is long
    return f"did you mean {by_lower[near[0]]!r}?" if near else ""


class DataError(BenchbdError):
    """A data set that exists but cannot be used: the text names the file and the row."""


class DataAbsentError(DataError):
    """A data set that does not exist: the text names the places that were searched and how to get it."""


class UnknownDataError(DataAbsentError, UnknownNameError):
    """No plugin knows ``name`` and no folder has it: the text names the file to add and where, and the nearest name."""

    def __init__(self, name: str, known: Iterable[str], folder: object, accepted: str) -> None:
        near = did_you_mean(name, sorted(known))
        BenchbdError.__init__(
            self, f"data set {shown(name)}: not in {folder}; put it there as {accepted}{near and '; '}{near}"
        )


class StoreError(BenchbdError):
    """The store, or another folder for results, cannot be read or written."""


class PluginError(BenchbdError):
    """A plugin breaks the contract; the text names it."""


class NotApplicable(BenchbdError):  # noqa: N818 - an answer of a method rather than an error
    """A method raises it, with the reason, if the method makes no sense for its input."""


class Diverged(BenchbdError):  # noqa: N818 - named after what happened
    """The loss became NaN or infinite, or the features collapsed: the stage is reported as failed."""


def is_interrupt(error: BaseException) -> bool:
    """Whether the user ends the run (Ctrl-C, SIGTERM). An interrupt of a plugin's own class is an ordinary error."""
    return isinstance(error, KeyboardInterrupt) and type(error).__module__.partition(".")[0] in ("builtins", "benchbd")


def first_line(text: str) -> str:
    """The first line of a foreign text that is not blank, cut to LONGEST, encodable as UTF-8; may be empty."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = line if len(line) <= LONGEST else line[:LONGEST] + "..."
    return line.encode("utf-8", "backslashreplace").decode("utf-8")


def says(error: BaseException) -> str:
    """The first line of an exception's text; also works for an exception without text or whose ``str`` raises."""
    try:
        return first_line(str(error)) or "no message"
    except BaseException as another:
        if is_interrupt(another):
            raise
        return f"{_UNREADABLE} ({type(another).__name__})"


def fault(error: BaseException) -> str:
    """The first line of the text of a library's exception; the exception's type if it has no text."""
    return first_line(str(error)) or type(error).__name__


def named(error: BaseException) -> str:
    """An exception in a line: its type and its text."""
    return f"{type(error).__name__}: {says(error)}"


def shown(value: object) -> str:
    """A foreign value in a line, even if its ``repr`` raises."""
    try:
        text = first_line(repr(value))
    except BaseException as error:
        if is_interrupt(error):
            raise
        text = ""
    return brief(text) if text else f"an object of type {type(value).__name__}"


def brief(text: str) -> str:
    """The beginning of a text of any length, for a message that repeats an argument."""
    return text if len(text) <= ECHOED else text[:ECHOED] + "..."


def counted(number: int, what: str) -> str:
    """A number and its noun: "1 picture", "1,000 pictures"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def asked(what: str, work: Callable[..., R], *arguments: object) -> R:
    """Call a plugin's ``work`` and return its result. An exception becomes a PluginError that names ``what``;
    interrupts and benchbd's own errors pass."""
    try:
        return work(*arguments)
    except BaseException as error:
        if is_interrupt(error) or (isinstance(error, BenchbdError) and not says(error).startswith(_UNREADABLE)):
            raise
        raise PluginError(f"{what} raised {named(error)}") from error

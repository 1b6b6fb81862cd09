"""What a method's work does beside computing, from Python's audit events: sockets and processes that it opens, data
that it reads, frames and objects of the interpreter that it searches.

Python reports what goes through Python. A library in C with sockets of its own is not seen, nor what a process does
that the method starts; the start is. Reading an attribute such as ``frame.f_back`` is not reported either, but the ways
to a first frame are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

_SOCKETS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")

_PROCESSES = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty")

_FILES = ("open", "os.listdir", "os.scandir")

_SEARCHES = ("sys._getframe", "sys._current_frames", "gc.get_objects", "gc.get_referrers", "gc.get_referents")

_FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")

_ON_BEHALF = ("inspect", "traceback")
"""Modules that look at frames for those who call them."""


@dataclass
class Heard:
    """What was heard, one line a kind of event.

    network: sockets and processes that were opened. reached: ways to sealed data that were tried.
    package: the method's, whose own code must not search. places: folders with data that no method may read itself,
    but for ``own`` files.
    """

    package: str = ""
    places: tuple[Path, ...] = ()
    own: tuple[Path, ...] = ()
    network: list[str] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)
    busy: bool = False


_heard: list[Heard] = []  # the audit hook runs in every thread that the work starts


@contextmanager
def listening(heard: Heard) -> Iterator[None]:
    """In the block, add to ``heard`` what the process does."""
    _hook()
    _heard.append(heard)
    try:
        yield
    finally:
        _heard.pop()


@cache
def _hook() -> None:
    """Install the audit hook, once: no process can remove one. It does nothing while nobody listens."""
    sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _heard or _heard[-1].busy:
        return
    heard = _heard[-1]
    heard.busy = True  # what is asked here has events of its own
    try:
        if event in _SOCKETS:
            _add(heard.network, f"{event} {_address(arguments)}")
        elif event in _PROCESSES:
            _add(heard.network, f"{event}, and the sockets of a process are not seen")
        elif event in _FILES and (found := _sealed(arguments[0], heard)):
            _add(heard.reached, f"reads {found}")
        elif searches(event, arguments) and _asked_by(heard.package):
            _add(heard.reached, f"searches the interpreter, {searches(event, arguments)}")
    finally:
        heard.busy = False


def searches(event: str, arguments: tuple[Any, ...]) -> str:
    """The way by which an event searches the interpreter; empty if it does not."""
    if event in _SEARCHES:
        return event
    return str(arguments[1]) if event == "object.__getattr__" and arguments[1] in _FRAMES else ""


def _add(lines: list[str], line: str) -> None:
    if line not in lines:
        lines.append(line)


def _address(arguments: tuple[Any, ...]) -> str:
    """An address in words: (socket, address), or host, port and more."""
    address = arguments[1] if not isinstance(arguments[0], str | bytes) else arguments[:2]
    return ":".join(map(str, address[:2])) if isinstance(address, tuple) else str(address)


def _sealed(path: object, heard: Heard) -> str:
    """The path, if it lies in one of the places and is not the method's own."""
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    whole = Path(os.path.realpath(os.fsdecode(path)))
    inside = any(whole.is_relative_to(place) for place in heard.places) and whole not in heard.own
    return str(whole) if inside else ""


def _asked_by(package: str) -> bool:
    """Whether code of this package asked, itself or by a module that looks for it."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in _ON_BEHALF:
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package

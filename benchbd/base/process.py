"""The process of a command: signals that end it, standard streams that cannot be written, and control of stdout."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from types import FrameType
from typing import Any, TextIO, cast

import click

from benchbd.base.scoped import scoped

_kept: ContextVar[TextIO | None] = ContextVar("benchbd_stdout", default=None)

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; code that handles KeyboardInterrupt handles it too. number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """In the block SIGTERM and SIGHUP raise ``Stopped``. An ignored signal, as under nohup, stays ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {}
    with suppress(ValueError):  # only the main thread may set handlers
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def discard(stream: TextIO) -> None:
    """Discard a stream's buffer and all later output, because the stream cannot be written."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


class _Lossy:
    """A text stream that drops output that cannot be written, as on a full disk, and that ignores ``close``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the underlying stream was closed
            if isinstance(error, UnicodeError):
                raise
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            discard(self._stream)

    def close(self) -> None:
        """Do nothing, because later output may follow."""
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def messages_may_be_lost() -> Iterator[None]:
    """In the block, messages to a full or closed stderr are lost without an error."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next opened file would get descriptor 2, and all messages would land in that file
            _fill(descriptor)
    before = sys.stderr
    # Python has no sys.stderr if descriptor 2 was closed, but progress and plugins write to it.
    stream = before if before is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = cast(TextIO, _Lossy(stream))
    try:
        yield
    finally:
        sys.stderr = before
        if before is None:
            stream.close()


def columns(otherwise: int) -> int:
    """The width of stdout: COLUMNS, else the columns of its terminal, else ``otherwise``.

    0 columns mean an unknown size, as a terminal in a container or under CI reports it.
    """
    asked = os.environ.get("COLUMNS", "")
    try:
        told = int(asked) if asked.isdecimal() else 0
        return told or os.get_terminal_size((_kept.get() or sys.stdout).fileno()).columns or otherwise
    except (OSError, ValueError, AttributeError):  # stdout is no terminal, or has no descriptor
        return otherwise


def _fill(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def say(text: object = "", *, nl: bool = True) -> None:
    """Write a line (without a line end if ``nl`` is False) to the stdout that the command was started with."""
    click.echo(text, nl=nl, file=_kept.get())


@contextmanager
def kept_stdout(*, restore: bool) -> Iterator[None]:
    """In the block only ``say`` writes to stdout; all other output goes to stderr: a plugin may print when it is
    imported, write to descriptor 1, call a C library that prints, start a process that inherits stdout, or print at
    exit.

    restore: restore stdout afterwards. Pass False if the process is about to end: the buffers of C libraries and
        output at exit would otherwise reach stdout.
    """
    stdout = sys.stdout
    if stdout is None:
        yield
    elif not _is_descriptor_1(stdout):  # an object of a test or a notebook
        with redirect_stdout(sys.stderr), scoped(_kept, stdout):
            yield
    else:
        stdout.flush()
        document = os.fdopen(os.dup(1), "w", encoding=stdout.encoding, errors=stdout.errors)
        os.dup2(2, 1)
        # A separate wrapper: a plugin that closes sys.stdout closes only that.
        diverted = os.fdopen(1, "w", buffering=1, encoding=stdout.encoding, errors="backslashreplace", closefd=False)
        sys.stdout = cast(TextIO, _Lossy(diverted))
        try:
            with scoped(_kept, document):
                yield
        finally:
            if restore:
                with suppress(OSError, ValueError):
                    sys.stdout.flush()
                sys.stdout = stdout
                os.dup2(document.fileno(), 1)
            with suppress(OSError):  # ``say`` has already raised the error
                document.close()


def _is_descriptor_1(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError, AttributeError):  # the stream has no descriptor, or is closed
        return False

"""What every command has in common: a mistake is one line and exit code 2, and only the command writes to stdout."""

from __future__ import annotations

import errno
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from benchbd.base.errors import BenchbdError, UnknownNameError
from benchbd.base.inputs import obstacle
from benchbd.base.process import Stopped, discard, kept_stdout, messages_may_be_lost, stopped_by_signals
from benchbd.report.writers.safe import plain

HALF = 1000  # characters shown of each end of a message: all of any message of reasonable length


def one_line(message: object) -> str:
    """A message on one line; a message that repeats a very long argument is reduced to both ends."""
    line = plain(" ".join(str(message).split()))
    return line if len(line) <= 2 * HALF else f"{line[:HALF]} ... {line[-HALF:]}"


class _Warnings(logging.Handler):
    """Prints one line on stderr per warning, or remark on progress."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(f"{mark}{one_line(record.getMessage())}", err=True)


class _Error(click.ClickException):
    """One line and exit code 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        click.echo(f"error: {one_line(self.message)}", err=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """In the block, benchbd's own errors and click's become an _Error."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        raise _Error(error.format_message() + hint) from error
    except BenchbdError as error:
        raise _Error(str(error)) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # click raises it: a reader that closed the pipe is no error
            raise
        if error.errno == errno.ENOSPC and error.filename is None:
            discard(sys.stdout)
        place = f"{error.filename}: " if error.filename is not None else ""
        raise _Error(f"{place}{obstacle(error) or error}") from error
    except ImportError as error:  # memory is too small for a library; any other cause is a broken installation
        if not (reason := obstacle(error)):
            raise
        raise _Error(f"{str(error).partition(':')[0]} cannot be loaded: {reason}") from error
    except MemoryError as error:
        raise _Error(f"there is too little memory{f' ({error})' if str(error) else ''}") from error


class Command(click.Command):
    """A command whose plugins and libraries may print: only ``say`` reaches stdout."""

    def invoke(self, ctx: click.Context) -> Any:
        top = ctx.find_root().command
        with kept_stdout(restore=not (isinstance(top, Group) and top.standalone)):
            return super().invoke(ctx)


class Group(click.Group):
    """A group in which every mistake is one line and exit code 2; a fatal signal exits with 128 and its number.

    standalone: whether the process ends with the command.
    """

    command_class = Command
    group_class = type  # subgroups have this class too
    standalone = False

    def main(self, *args: Any, **kwargs: Any) -> Any:
        self.standalone = kwargs.get("standalone_mode", True)
        log = logging.getLogger("benchbd")
        handler = _Warnings()
        log.addHandler(handler)
        try:
            with messages_may_be_lost(), stopped_by_signals():
                return super().main(*args, **kwargs)
        finally:
            log.removeHandler(handler)
            log.setLevel(logging.NOTSET)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _one_line_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            click.echo("interrupted: finished stages are kept; the same command goes on from there", err=True)
            ctx.exit(128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UnknownNameError("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

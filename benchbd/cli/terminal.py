"""The progress of a run for its user: a live view on a terminal, plain lines elsewhere; an ordinary observer.

All output goes to stderr by default, so that stdout contains only the table or the JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.text import Text

from benchbd.contract.hookspecs import hookimpl
from benchbd.records.gates import DEFAULT, Gates, judge
from benchbd.records.models import Entry, Inspected, Record
from benchbd.report.writers.safe import plain

if TYPE_CHECKING:
    from benchbd.stages.base import Stage

EVERY = 60.0  # seconds between two plain lines on the progress of one stage: enough for a log

_COLOURS = {
    "computed": "green",
    "n/a": "yellow",
    "attack-failed": "yellow",
    "collapsed": "yellow",
    "timeout": "bold red",
    "error": "bold red",
    "interrupted": "yellow",
}


class Terminal:
    """Prints stages and cells as they come. Use it as a context manager, which restores the terminal in any case.

    In the block, output that a method prints goes to the stream too: stdout is the caller's.

    stream: of the output; stderr if None. live: whether to redraw; None: if the stream is a terminal.
    quiet: print nothing. clock: seconds, monotonic. gates: judge the records that are told of.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        live: bool | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        gates: Gates = DEFAULT,
    ) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.quiet = quiet
        self._clock, self._gates = clock, gates
        self._console = Console(file=self.stream, highlight=False, soft_wrap=True, force_terminal=live)
        self._live = self._console.is_interactive if live is None else live  # a dumb terminal cannot redraw
        self._running: dict[str, _Running] = {}
        self._redirected = redirect_stdout(self.stream)
        self._cached = 0
        bar = [BarColumn(16)] if self._console.width >= 90 else []
        self._progress = Progress(
            SpinnerColumn(),
            _Label(self._console, taken=16 if bar else 0),
            *bar,
            _Figures(),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )

    def __enter__(self) -> Self:
        self._redirected.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress.live.is_started:
            self._progress.stop()
        self._redirected.__exit__(kind, error, trace)
        for running in self._running.values():
            self._line(f"{running.name} interrupted after {_duration(self._clock() - running.since)}", "interrupted")
        self._running.clear()
        self._tell_cached()

    @hookimpl
    def benchbd_stage_started(self, stage: Stage, position: int, total: int) -> None:
        self._tell_cached()
        name = f"[{position:>{len(str(total))}}/{total}] {stage.kind} {plain(stage.label)}"
        running = _Running(name, self._clock())
        self._running[stage.key] = running
        if self.quiet:
            return
        if self._live:
            running.task = self._progress.add_task(running.name, total=None, loss=None)
            self._progress.start()
        else:
            self._line(f"{running.name} ...")

    @hookimpl
    def benchbd_stage_progress(self, stage: Stage, step: int, steps: int, loss: float | None) -> None:
        running = self._running.get(stage.key)
        if running is None or self.quiet:
            return
        if running.task is not None:
            self._progress.update(running.task, completed=step, total=steps, loss=loss)
        elif self._clock() - running.told >= EVERY:
            running.told = self._clock()
            self._line(f"{running.name} ... {_steps(step, steps, loss)}, {_duration(running.told - running.since)}")

    @hookimpl
    def benchbd_stage_finished(self, stage: Stage, status: str, seconds: float, message: str) -> None:
        running = self._running.pop(stage.key, None)
        if running is not None and running.task is not None:
            self._progress.remove_task(running.task)
        if status == "cached":
            self._cached += 1
            return
        name = running.name if running else f"{stage.kind} {stage.label}"
        reason = f": {' '.join(message.split())}" if message else ""
        verb = "computed in" if status == "computed" else f"{status} after"
        self._line(f"{name} {verb} {_duration(seconds)}{reason}", status)

    @hookimpl
    def benchbd_record_finished(self, record: Entry) -> None:
        self._tell_cached()
        case, figures = _case(record)
        judged = judge(record, self._gates)
        if judged.status != "ok":
            figures.append(": ".join(judged))
        self._line(f"  = {case}: {'; '.join(figures)}", judged.status)

    def _tell_cached(self) -> None:
        if self._cached:
            self._line(f"{self._cached} stage{'s' * (self._cached > 1)} from the store")
        self._cached = 0

    def _line(self, text: str, status: str = "") -> None:
        """Print one line, above the live view if there is one; control characters in quoted texts are removed."""
        text = plain(text)
        if self.quiet:
            return
        if self._live:
            self._console.print(Text(text, style=_COLOURS.get(status, "")))
        else:
            self.stream.write(text + "\n")
            self.stream.flush()


def _case(record: Entry) -> tuple[str, list[str]]:
    """A record's case, and its figures, if it has any."""
    figures = []
    if isinstance(record, Inspected):
        case = f"{record.attack} before {record.method}, {record.pretrain} -> {', '.join(record.tasks)}"
        for name, value in record.found.items():
            told = name if value is True else f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            figures += [told] if value not in (None, False) else []
        return f"{case}, seed {record.seed}", [", ".join(figures)] * bool(figures)
    assert isinstance(record, Record)
    case = f"{record.attack} x {record.defense}, {record.pretrain} -> {record.task}:{record.target}"
    if found := record.metrics:
        recovered = "" if found.ra is None else f", RA {found.ra:.1f}"
        figures = [f"ACC {found.acc:.1f}, ASR {found.asr:.1f}, non-target {found.asr_nontarget:.1f}{recovered}"]
    return f"{case}, seed {record.seed}, {record.evaluator}", figures


class _Running:
    """A running stage: its name in the output, its start, and the time of its last progress line."""

    def __init__(self, name: str, since: float) -> None:
        self.name, self.since, self.told = name, since, since
        self.task: TaskID | None = None


class _Label(ProgressColumn):
    """The running stage's name, cut so that the figures fit and a few columns stay free: if the ``^C`` of an interrupt
    wrapped the line, the line could not be erased."""

    def __init__(self, console: Console, taken: int) -> None:
        super().__init__()
        self._console, self._taken = console, taken

    def render(self, task: Task) -> Text:
        label = Text(task.description, style="bold")
        label.truncate(max(12, self._console.width - self._taken - len(_figures(task)) - 8), overflow="ellipsis")
        return label


class _Figures(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_figures(task))


def _figures(task: Task) -> str:
    """Steps, loss, elapsed time and estimated time left."""
    steps = [_steps(int(task.completed), int(task.total), task.fields["loss"])] if task.total else []
    left = [] if task.time_remaining is None else [f"{_duration(task.time_remaining)} left"]
    return ", ".join([*steps, _duration(task.elapsed or 0.0), *left])


def _steps(step: int, steps: int, loss: float | None) -> str:
    return f"step {step}/{steps}" + ("" if loss is None else f", loss {loss:.3f}")


def _duration(seconds: float) -> str:
    """A duration as 23.1 s, 4 min 05 s, 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"

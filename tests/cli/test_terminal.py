"""The progress of a run for its user: exact lines if it is piped, a restored terminal if it is live."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import cast

import pluggy
import pytest

from benchbd.cli.terminal import Terminal
from benchbd.contract import hookspecs
from benchbd.stages.base import Stage

from ..records_factory import make_record


@dataclass(frozen=True)
class FakeStage:
    kind: str
    label: str
    key: str


ATTACK = cast(Stage, FakeStage("attack", "badencoder cifar10 -> gtsrb:12 seed 1", "a" * 64))
DEFEND = cast(Stage, FakeStage("defend", "ft on badencoder [seed 1]", "d" * 64))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock=clock) as terminal:
        for _ in range(2):
            terminal.benchbd_stage_finished(DEFEND, "cached", 0.0, "")
        terminal.benchbd_stage_started(ATTACK, 3, 14)
        for clock.now, step in ((1.0, 10), (61.0, 600), (62.0, 610), (3725.0, 39000)):
            terminal.benchbd_stage_progress(ATTACK, step, 39000, None if step == 600 else 5.0321)
        terminal.benchbd_stage_finished(ATTACK, "computed", 3725.4, "")
        terminal.benchbd_stage_started(DEFEND, 4, 14)
        terminal.benchbd_stage_finished(DEFEND, "error", 23.06, "loss became NaN\nat step 4")
        terminal.benchbd_record_finished(make_record(seed=1, metrics=(80.04, 99.0, 98.46)))
        terminal.benchbd_record_finished(make_record(defense="ft", seed=1, metrics=None, status="error", reason="NaN"))
    assert stream.getvalue().splitlines() == [
        "2 stages from the store",
        "[ 3/14] attack badencoder cifar10 -> gtsrb:12 seed 1 ...",
        "[ 3/14] attack badencoder cifar10 -> gtsrb:12 seed 1 ... step 600/39000, 1 min 01 s",
        "[ 3/14] attack badencoder cifar10 -> gtsrb:12 seed 1 ... step 39000/39000, loss 5.032, 1 h 02 min",
        "[ 3/14] attack badencoder cifar10 -> gtsrb:12 seed 1 computed in 1 h 02 min",
        "[ 4/14] defend ft on badencoder [seed 1] ...",
        "[ 4/14] defend ft on badencoder [seed 1] error after 23.1 s: loss became NaN at step 4",
        "  = badencoder x none, cifar10 -> gtsrb:12, seed 1, mlp: ACC 80.0, ASR 99.0, non-target 98.5, RA 1.5",
        "  = badencoder x ft, cifar10 -> gtsrb:12, seed 1, mlp: error: NaN",
    ]


def test_a_run_that_finds_all_in_the_store_says_so() -> None:
    stream = io.StringIO()
    with Terminal(stream) as terminal:
        terminal.benchbd_stage_finished(ATTACK, "cached", 0.0, "")
    assert stream.getvalue() == "1 stage from the store\n"


@pytest.mark.parametrize("live", [False, True])
def test_quiet_prints_nothing(live: bool) -> None:
    stream = io.StringIO()
    with Terminal(stream, live=live, quiet=True) as terminal:
        terminal.benchbd_stage_started(ATTACK, 1, 1)
        terminal.benchbd_stage_progress(ATTACK, 1, 2, 0.5)
        terminal.benchbd_stage_finished(ATTACK, "computed", 1.0, "")
        terminal.benchbd_record_finished(make_record())
    assert stream.getvalue() == ""


def interrupt(terminal: Terminal, clock: Clock) -> None:
    with terminal:
        terminal.benchbd_stage_started(ATTACK, 1, 2)
        terminal.benchbd_stage_progress(ATTACK, 30, 100, 5.25)
        clock.now = 12.0
        raise KeyboardInterrupt


def test_an_interrupted_stage_is_named() -> None:
    stream, clock = io.StringIO(), Clock()
    with pytest.raises(KeyboardInterrupt):
        interrupt(Terminal(stream, clock=clock), clock)
    assert stream.getvalue().splitlines()[-1].endswith("gtsrb:12 seed 1 interrupted after 12.0 s")


def test_the_live_view_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream, clock, stdout, stderr = io.StringIO(), Clock(), sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt):
        interrupt(Terminal(stream, live=True, clock=clock), clock)
    shown = stream.getvalue()
    assert "step 30/100, loss 5.250" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is hidden, then shown again
    assert "interrupted after 12.0 s" in shown[shown.rindex("\x1b[?25h") :]
    assert (sys.stdout, sys.stderr) == (stdout, stderr)


def test_it_writes_to_stderr_and_is_a_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    manager = pluggy.PluginManager("benchbd")
    manager.add_hookspecs(hookspecs)
    with Terminal() as terminal:
        manager.register(terminal)
        manager.check_pending()
        manager.hook.benchbd_stage_started(stage=ATTACK, position=1, total=1)
        manager.hook.benchbd_stage_finished(stage=ATTACK, status="n/a", seconds=0.04, message="no references")
    assert capsys.readouterr().out == ""


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as terminal:
        terminal.benchbd_stage_started(DEFEND, 1, 1)
        terminal.benchbd_stage_finished(DEFEND, "n/a", 0.04, "no references")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1] == "[1/1] defend ft on badencoder [seed 1] n/a after 0.0 s: no references"

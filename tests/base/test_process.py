"""Signals that end a command, and standard streams that cannot be written."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchbd.base.process import ENDING, Stopped, columns, messages_may_be_lost, stopped_by_signals

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_raises_in_the_block_and_leaves_its_handler_as_it_was(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(Stopped) as caught, stopped_by_signals():
            signal.raise_signal(number)
        assert caught.value.number == number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("asked", "size", "told"), [("", 0, 100), ("0", 0, 100), ("0", 80, 80), ("60", 80, 60)])
def test_no_columns_are_no_answer(asked: str, size: int, told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", asked)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((size, 0)))
    with open(os.devnull, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert columns(100) == told


@FULL
def test_messages_on_a_full_device_are_lost_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        with messages_may_be_lost():
            for _ in range(3):
                print("x" * 10_000, file=sys.stderr, flush=True)
        assert sys.stderr is full  # and its buffer can be discarded


def test_messages_that_can_be_written_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with messages_may_be_lost():
        print("hello", file=sys.stderr, flush=True)
    assert stream.getvalue() == "hello\n"


def test_messages_where_python_has_no_stderr_are_lost_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with messages_may_be_lost():
        sys.stderr.write("hello\n")  # as the progress of a run does
    assert sys.stderr is None


@pytest.mark.parametrize(
    "redirection", [pytest.param("2>/dev/full", marks=FULL), "2>&-", "0<&- 2>&-"], ids=["full", "closed", "both closed"]
)
@pytest.mark.parametrize(
    ("arguments", "code"), [("leaderboard build cifar10-small --format csv", 0), ("leaderboard build nothing", 2)]
)
def test_a_stderr_that_cannot_be_written_ends_no_command(redirection: str, arguments: str, code: int) -> None:
    command = f'"{sys.executable}" -m benchbd.cli.main {arguments} {redirection}'
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.count("\n") > 20 if code == 0 else done.stdout == ""

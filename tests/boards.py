"""A tiny board in npz data, for tests that run the whole pipeline in seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchbd import hookimpl
from benchbd.api import Session
from benchbd.planning.cases import Plan
from benchbd.planning.selection import Selection
from benchbd.records.models import Inspected, Record
from benchbd.registry import Registry
from benchbd.stages.base import Stage

from .chance import seeded
from .conftest import write_npz_set

# A process hangs if it gains no CPU time for IDLE seconds, and runs away if it gains more than SPENT: both hold at
# any load, while a deadline by the clock depends on how busy the machine is.
IDLE, SPENT = 300.0, 600.0

LIGHT = """
[options.badencoder]
steps = {steps}
batch = 8
ref_draws = 2

[options.mimic]
mi_epochs = 1
mi_pool = 2

[options.mlp]
epochs = 1
"""
"""Options that make methods cheap, for as many steps."""

TINY = """
title = "Tiny"
attacks = ["none", "badencoder"]
defenses = ["none", "scratch", "ft"]
seeds = [1]
clean.images = 16
rows = [{ pretrain = "pool", tasks = ["task:1"] }]

[data]
task = { train = 60, test = 30 }

[budget]
steps = 2
batch = 8

[options.simclr]
arch = "w16"
steps = 2
batch = 16
""" + LIGHT.format(steps=2)


FIVE_STEPS = """
[budget]
steps = 5
batch = 8

[options.simclr]
arch = "{arch}"
steps = 5
batch = 8
""" + LIGHT.format(steps=5)


class Tiny:
    """A data root with sets ``pool`` and ``task``, a board, and a store, under one folder."""

    def __init__(self, folder: Path, registry: Registry, board: str = TINY) -> None:
        self.folder, self.registry = folder, registry
        self.data, self.store, self.board = folder / "data", folder / "store", folder / "tiny.toml"
        write_npz_set(self.data, "pool", seed=seeded(1))
        write_npz_set(self.data, "task", seed=seeded(2))
        self.board.write_text(board)

    def session(self, **selection: Any) -> Session:
        """A session of these cells and no others, unless the test overrides the selection."""
        return Session.open(
            self.board,
            Selection.of(**{"only": True, **selection}),
            data_root=self.data,
            store=self.store,
            device="cpu",
            registry=self.registry,
        )

    def plan(self, **selection: Any) -> Plan:
        return self.session(**selection).plan(strict=True)

    def run(self, **selection: Any) -> list[Record]:
        return self.session(**selection).run()

    @property
    def arguments(self) -> list[str]:
        """The arguments with which a command line finds the board."""
        places = {"--board": self.board, "--data-root": self.data, "--store": self.store, "--device": "cpu"}
        return [str(part) for pair in places.items() for part in pair]

    def blob(self, key: str, name: str) -> Path:
        return self.store / "stages" / key[:2] / key / name


def keys(plan: Plan) -> set[str]:
    return {stage.key for stage in plan.stages}


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def offering(**hooks: list[Any]) -> SimpleNamespace:
    """A plugin whose hooks return these classes: ``offering(benchbd_defenses=[Mine])``."""

    def hook(classes: list[Any]) -> Any:
        return hookimpl(lambda: classes)

    return SimpleNamespace(**{name: hook(classes) for name, classes in hooks.items()})


class Watch:
    """An observer that keeps all calls."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.totals: set[int] = set()

    @hookimpl
    def benchbd_stage_started(self, stage: Stage, position: int, total: int) -> None:
        self.events.append(("started", stage.kind, stage.key, position))
        self.totals.add(total)

    @hookimpl
    def benchbd_stage_progress(self, stage: Stage, step: int, steps: int, loss: float | None) -> None:
        self.events.append(("progress", stage.kind, stage.key, step))

    @hookimpl
    def benchbd_stage_finished(self, stage: Stage, status: str, seconds: float, message: str) -> None:
        self.events.append((status, stage.kind, stage.key, message))

    @hookimpl
    def benchbd_record_finished(self, record: Record | Inspected) -> None:
        judge = record.method if isinstance(record, Inspected) else record.defense
        what = "inspection" if isinstance(record, Inspected) else "cell"
        self.events.append((what, record.attack, judge, record.status))

    def of(self, what: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == what]


def flip(path: Path, position: int = -2) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


class Hang:
    """Checks that a process that leads a session, with all its children, makes progress; call it now and then."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.gained, self.moved = process, -1.0, time.monotonic()
        self.began = self.moved

    def __call__(self) -> None:
        """Raise AssertionError if the process hangs or runs away."""
        gained, now = self._cpu_seconds(), time.monotonic()
        if gained != self.gained:
            self.gained, self.moved = gained, now
        if gained > SPENT or now - self.moved > IDLE:
            os.killpg(self.process.pid, signal.SIGKILL)
            said = "\n".join(map(str, self.process.communicate()))
            raise AssertionError(
                f"{gained:.0f} s of CPU, the last of them {now - self.moved:.0f} s ago; it said:\n{said}"
            )

    def _cpu_seconds(self) -> float:
        """User and system time of the session's running processes, from /proc; the clock if there is no /proc."""
        if not Path("/proc/self/stat").is_file():
            return time.monotonic() - self.began
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                fields = stat.read_text().rpartition(")")[2].split()  # the name before may contain anything
                if int(fields[3]) == self.process.pid:
                    ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """A process in a session of its own, with one thread; ``environment`` is added to ours."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The process's stdout and stderr until its end; AssertionError if it hangs."""
    hang = Hang(process)
    while True:
        try:
            return process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            hang()


def completed(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(command, **environment)
    stdout, stderr = ended(process)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def drive(log: Path, *arguments: str, hang: str = "-") -> subprocess.Popen[str]:
    """The command line in a process of its own; see driver.py. ``hang``: the kind of stage to hang in."""
    driver = Path(__file__).with_name("driver.py")
    return start([sys.executable, str(driver), str(log), hang, *arguments])


def in_flight(process: subprocess.Popen[str], log: Path, kind: str) -> None:
    """Wait until a stage of this kind is being computed."""
    wait_until(process, lambda: log.is_file() and f"{kind} " in log.read_text())


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait for the condition, while the process makes progress."""
    hang = Hang(process)
    while not condition():
        assert process.poll() is None, process.communicate()
        hang()
        time.sleep(0.05)

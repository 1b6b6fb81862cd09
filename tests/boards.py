"""A tiny board in npz data, for tests that run the whole pipeline in seconds."""

from __future__ import annotations

import os
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
from benchbd.planning import Selection
from benchbd.plugins import Registry
from benchbd.records import Record
from benchbd.stages import Plan, Stage

from .conftest import write_npz_set

PATIENCE = 300.0  # seconds for a process to get on: a busy machine is slow to import torch; only a hang takes longer

TINY = """
title = "Tiny"
attacks = ["none", "badencoder"]
defenses = ["none", "scratch", "ft"]
seeds = [1]
clean_images = 16
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

[options.badencoder]
steps = 2
batch = 8
ref_draws = 2

[options.mimic]
mi_epochs = 1
mi_pool = 2

[options.mlp]
epochs = 1
"""


class Tiny:
    """A data root with sets ``pool`` and ``task``, a board, and a store, under one folder."""

    def __init__(self, folder: Path, registry: Registry, board: str = TINY) -> None:
        self.folder, self.registry = folder, registry
        self.data, self.store, self.board = folder / "data", folder / "store", folder / "tiny.toml"
        write_npz_set(self.data, "pool", seed=1)
        write_npz_set(self.data, "task", seed=2)
        self.board.write_text(board)

    def session(self, **selection: Any) -> Session:
        """A session of these cells and no others, unless the test says otherwise."""
        return Session.open(
            self.board,
            Selection(**{"only": True, **selection}),
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
        """What a command line needs to find it."""
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
    """An observer that writes down what it is told."""

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
    def benchbd_cell_finished(self, record: Record) -> None:
        self.events.append(("cell", record.attack, record.defense, record.status))

    def of(self, what: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == what]


def flip(path: Path, position: int = -2) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def drive(log: Path, *arguments: str, hang: str = "-") -> subprocess.Popen[str]:
    """The command line in a process of its own; see driver.py. ``hang``: the kind of stage to hang in."""
    driver = Path(__file__).with_name("driver.py")
    command = [sys.executable, str(driver), str(log), hang, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def in_flight(process: subprocess.Popen[str], log: Path, kind: str) -> None:
    """Wait until a stage of this kind is being computed."""
    wait_until(process, lambda: log.is_file() and f"{kind} " in log.read_text())


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait for the condition, while the process lives."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)

"""A tiny board in npz data, for tests that run the whole pipeline in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchbd.api import Session
from benchbd.plan import Plan, Selection
from benchbd.plugins import Registry
from benchbd.records import Record

from .conftest import write_npz_set

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
        return Session.open(
            self.board,
            Selection(**selection),
            data_root_option=self.data,
            store=self.store,
            device="cpu",
            registry=self.registry,
        )

    def plan(self, **selection: Any) -> Plan:
        return self.session(**selection).plan(strict=True)

    def run(self, **selection: Any) -> list[Record]:
        return self.session(**selection).run()


def keys(plan: Plan) -> set[str]:
    return {stage.key for stage in plan.stages}


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)

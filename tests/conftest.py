"""Shared fixtures: a registry, a small data root in a known layout, and a run of the smoke board."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchbd.engine.executors import Inline
from benchbd.registry import Registry, load_registry

from .chance import Watch

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # the nets are tiny, and two threads beside a busy process are many times slower than one


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trains", action="store_true", help="only tests in which an optimizer stepped when last run")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Watch(config))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")


@pytest.fixture(scope="session")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(autouse=True)
def places(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hide the user's data (except from ``realdata`` tests), store and terminal width from every test. The arguments of
    a method go through their bytes, as between processes."""
    monkeypatch.setattr(Inline, "roundtrip", True)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("BENCHBD_STORE", str(tmp_path_factory.mktemp("store")))
    if request.node.get_closest_marker("realdata") is None:
        monkeypatch.setenv("BENCHBD_DATA", str(tmp_path_factory.mktemp("data")))


def write_npz_set(root: Path, name: str, *, train: int = 60, test: int = 30, classes: int = 3, seed: int = 0) -> Path:
    """A tiny data set in the BadEncoder release's npz layout: classes differ in colour."""
    rng = np.random.default_rng(seed)
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("test", test)):
        y = np.arange(n) % classes
        x = rng.integers(0, 120, (n, 32, 32, 3))
        x[..., 0] += 40 * (y == 0)[:, None, None]
        x[..., 1] += 60 * (y == 1)[:, None, None]
        x[..., 2] += 80 * (y == 2)[:, None, None]
        np.savez(folder / f"{split}.npz", x=x.astype(np.uint8), y=y[:, None])
    return folder

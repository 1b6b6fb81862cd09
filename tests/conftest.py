"""What the tests share: a registry, a small data root in a known layout, and a run of the smoke board."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchbd.plugins import Registry, load_registry


@pytest.fixture(scope="session")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(autouse=True)
def places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the user's data or writes to the user's store."""
    monkeypatch.setenv("BENCHBD_STORE", str(tmp_path_factory.mktemp("store")))
    if not _wants_real_data():
        monkeypatch.setenv("BENCHBD_DATA", str(tmp_path_factory.mktemp("data")))


_real: list[bool] = []


def _wants_real_data() -> bool:
    return bool(_real)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if items and all(item.get_closest_marker("realdata") for item in items):
        _real.append(True)


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


@pytest.fixture
def threads() -> Iterator[None]:
    """One thread, put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

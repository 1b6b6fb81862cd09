"""The tiny board, run once for the tests of audits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchbd.registry import Registry

from ..boards import Tiny


@pytest.fixture(scope="package")
def ran(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Tiny:
    tiny = Tiny(tmp_path_factory.mktemp("audit"), registry)
    tiny.run()
    return tiny


@pytest.fixture
def records(ran: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran.store / "records" / "tiny", tmp_path / "records"))

"""The tiny board, run once for the tests of audits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchbd.cli.main import main
from benchbd.planning import board as boards
from benchbd.registry import Registry

from ..boards import Tiny


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="package")
def ran(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Tiny:
    tiny = Tiny(tmp_path_factory.mktemp("audit"), registry)
    tiny.run()
    return tiny


@pytest.fixture
def records(ran: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran.store / "records" / "tiny", tmp_path / "records"))


@pytest.fixture
def home(ran: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The board's folder with its submission in it, as a board of benchbd."""
    folder = tmp_path / "boards" / "tiny"
    done = invoke("submit", ran.board, "--store", ran.store, "--out", folder, "--encoders", "undefended")
    assert done.exit_code == 0, done.stderr
    shutil.copy(ran.board, folder / "board.toml")
    monkeypatch.setattr(boards, "boards_folder", lambda: tmp_path / "boards")
    return folder

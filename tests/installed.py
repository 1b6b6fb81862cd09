"""Plugins that tests install into their own process."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest


def install(project: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a project on the path, and its metadata into ``site``, on the path too, as ``pip install -e`` does."""
    told = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    info = site / f"{told['name'].replace('-', '_')}-{told['version']}.dist-info"
    info.mkdir(parents=True)
    points = "".join(f"{name} = {module}\n" for name, module in told["entry-points"]["benchbd"].items())
    (info / "entry_points.txt").write_text(f"[benchbd]\n{points}")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {told['name']}\nVersion: {told['version']}\n")
    for folder in (site, project):
        monkeypatch.syspath_prepend(folder)

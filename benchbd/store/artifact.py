"""A finished stage's files in the store. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """A complete stage: its manifest and the folder of its blobs."""

    folder: Path
    manifest: Mapping[str, Any]

    def blob(self, name: str) -> Path:
        return self.folder / name

    @property
    def result(self) -> dict[str, Any]:
        """The small JSON result that the stage stored beside its blobs."""
        return dict(self.manifest["result"])

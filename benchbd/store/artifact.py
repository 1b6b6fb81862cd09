"""A finished stage's files in the store. Nothing here imports torch, except to read tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KEPT = "kept.safetensors"


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

    @property
    def kept(self) -> dict[str, Tensor]:
        """The tensors that the method kept, by name: of any shape and type."""
        from safetensors.torch import load_file

        blob = self.blob(KEPT)
        return load_file(blob) if blob.is_file() else {}

"""The store: what was computed, by the content of what determined it. Present means complete and verified.

<root>/stages/<ab>/<key>/<blob>          safetensors
<root>/stages/<ab>/<key>/manifest.json   identity, digests of the blobs, result, cost, machine
<root>/locks/<key>.lock                  held while a stage is computed
<root>/records/<board>/                  a JSON file per cell, as records.py writes it
<root>/damaged/                          what failed verification, set aside
<root>/data/                             decoded data sets
<root>/logs/                             tracebacks of failed stages
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from benchbd.errors import StoreError
from benchbd.files import commit, file_digest

MANIFEST = "manifest.json"

log = logging.getLogger("benchbd")


def default_root() -> Path:
    """``BENCHBD_STORE``, else the user's cache directory."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("BENCHBD_STORE") or user_cache_path("benchbd"))


def find_root(option: str | Path | None = None) -> Path:
    """``option``, or where it is absent or empty ``default_root()``; StoreError where a file stands in the way."""
    root = Path(option or default_root())
    existing = next((path for path in (root, *root.parents) if path.exists()), root)
    if existing.is_file():
        raise StoreError(
            f"the store {root} cannot be written ({existing} is a file): choose another with --store or BENCHBD_STORE"
        )
    return root


def records_folder(root: Path, board: str) -> Path:
    return root / "records" / board


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal content, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Artifact:
    """A complete stage: its manifest and where its blobs lie."""

    folder: Path
    manifest: Mapping[str, Any]

    def blob(self, name: str) -> Path:
        return self.folder / name

    @property
    def result(self) -> dict[str, Any]:
        """The small JSON that the stage left beside its blobs."""
        return dict(self.manifest["result"])


class Store:
    """A folder of artifacts. Two runs may share one: stages are committed atomically and computed under a lock.

    writable: whether to make the folder and see that it can be written (StoreError); a reader needs neither.
    """

    def __init__(self, root: Path, *, writable: bool = True) -> None:
        self.root = root
        if writable:
            self._prepare()

    def _prepare(self) -> None:
        root = self.root
        try:
            for name in ("stages", "locks", "data", "logs"):
                (root / name).mkdir(parents=True, exist_ok=True)
            probe = root / "locks" / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> StoreError:
        reason = getattr(error, "strerror", None) or error
        return StoreError(
            f"the store {self.root} cannot be written ({reason}): choose another with --store or BENCHBD_STORE"
        )

    def folder(self, key: str) -> Path:
        return self.root / "stages" / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the stage was committed. Blobs are not read: ``get`` verifies them."""
        return (self.folder(key) / MANIFEST).is_file()

    def get(self, key: str) -> Artifact | None:
        """The verified artifact, or None where there is none. A damaged one is named, set aside, and counts as none."""
        folder = self.folder(key)
        if not (folder / MANIFEST).is_file():
            return None
        found = self._verified(folder)
        if isinstance(found, dict):
            return Artifact(folder, found)
        aside = self._set_aside(folder)
        log.warning("store: %s of stage %s is damaged; set aside in %s and computed again", found, key[:12], aside)
        return None

    def put(
        self,
        key: str,
        blobs: Mapping[str, Callable[[Path], None]],
        *,
        identity: Mapping[str, Any],
        result: Mapping[str, Any],
        meta: Mapping[str, Any],
    ) -> Artifact:
        """Commit a stage: each blob is written aside by its function, synced and renamed, the manifest last.

        The caller holds the stage's lock.
        """
        folder = self.folder(key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left_over in folder.glob(".*.part"):  # of a run that was killed
                left_over.unlink()
            digests = {}
            for name, write in blobs.items():
                commit(folder / name, write)
                digests[name] = file_digest(folder / name)
            manifest = {"key": key, "identity": identity, "blobs": digests, "result": result, **meta}
            body = json.dumps(manifest, indent=1, sort_keys=True)
            text = f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "manifest":\n{body}\n}}\n'
            commit(folder / MANIFEST, lambda part: part.write_text(text))
        except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
            raise self._unwritable(error) from error
        return Artifact(folder, manifest)

    def lock(self, key: str) -> FileLock:
        """Held by whoever computes ``key``; released by the system when the process dies."""
        return FileLock(self.root / "locks" / f"{key}.lock")

    def log(self, name: str, text: str) -> Path:
        """Keep ``text`` under logs/ and return where. StoreError where it cannot be written."""
        path = self.root / "logs" / name
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        return path

    def manifests(self) -> list[dict[str, Any]]:
        """Every readable manifest: what past runs cost."""
        found = (_read_manifest(path) for path in sorted(self.root.glob(f"stages/*/*/{MANIFEST}")))
        return [manifest for manifest in found if manifest is not None]

    def _verified(self, folder: Path) -> dict[str, Any] | str:
        """The manifest where all is well, else the name of what is damaged."""
        manifest = _read_manifest(folder / MANIFEST)
        if manifest is None or manifest.get("key") != folder.name:
            return MANIFEST
        for name, digest in manifest["blobs"].items():
            try:
                if file_digest(folder / name) != digest:
                    return str(name)
            except OSError:
                return str(name)
        return manifest

    def _set_aside(self, folder: Path) -> Path:
        damaged = self.root / "damaged"
        aside = damaged / f"{folder.name}.{time.time_ns()}"
        try:
            damaged.mkdir(exist_ok=True)
            folder.rename(aside)
        except FileNotFoundError:  # another run has found the damage too
            pass
        except OSError as error:
            raise self._unwritable(error) from error
        return aside


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, or None where it does not hold what its own digest says."""
    try:
        text = path.read_text(encoding="utf-8")
        wrapped = json.loads(text)
        body = text[text.index("\n") + 1 : text.rindex("\n}")]
    except (OSError, ValueError):
        return None
    if not isinstance(wrapped, dict) or hashlib.sha256(body.encode()).hexdigest() != wrapped.get("sha256"):
        return None
    manifest = wrapped.get("manifest")
    return manifest if isinstance(manifest, dict) else None

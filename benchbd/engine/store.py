"""The store: what was computed, by the content of what determined it. Present means complete and verified.

<root>/stages/<ab>/<key>/<blob>          safetensors
<root>/stages/<ab>/<key>/manifest.json   identity, digests of the blobs, result, cost, machine
<root>/locks/<key>.lock                  held while a stage is computed; says by whom
<root>/records/<board>/                  a JSON file per cell, as records.py writes it
<root>/source                            a random name of this store
<root>/damaged/                          what failed verification, set aside
<root>/data/                             decoded data sets
<root>/logs/                             tracebacks of failed stages
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from benchbd.base.content import canonical, commit, expanded, file_digest, make_folder, nests_within, share, sweep
from benchbd.base.errors import StoreError
from benchbd.stages.artifact import Artifact

MANIFEST = "manifest.json"

SCHEMA = 1  # of manifests; one without the field is of schema 1

_FIELDS = {
    **dict.fromkeys(("key", "label", "architecture"), str),
    **dict.fromkeys(("identity", "blobs", "result", "cost", "notes", "machine"), dict),
}

_COST: dict[str, tuple[type, ...]] = {"seconds": (int, float), "cpu_seconds": (int, float), "image_forwards": (int,)}

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems say that have none

_LEVELS = 100  # of JSON: more than identities and notes have, fewer than the interpreter can follow

log = logging.getLogger("benchbd")


def default_root() -> Path:
    """``BENCHBD_STORE``, else the user's cache directory."""
    from platformdirs import user_cache_path

    return expanded(os.environ.get("BENCHBD_STORE") or user_cache_path("benchbd"))


def find_root(option: str | Path | None = None) -> Path:
    """``option``, or where it is absent or empty ``default_root()``; StoreError where a file stands in the way."""
    root = expanded(option or default_root())
    existing = next((path for path in (root, *root.parents) if path.exists()), root)
    if existing.is_file():
        raise StoreError(
            f"the store {root} cannot be written ({existing} is a file): choose another with --store or BENCHBD_STORE"
        )
    return root


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
                make_folder(root / name)
            probe = root / "locks" / f".probe-{secrets.token_hex(8)}"
            probe.write_bytes(b"")
            probe.unlink()
            sweep(root)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> StoreError:
        reason = getattr(error, "strerror", None) or error
        return StoreError(
            f"the store {self.root} cannot be written ({reason}): choose another with --store or BENCHBD_STORE"
        )

    def _unreadable(self, error: OSError) -> StoreError:
        return StoreError(
            f"{error.filename or self.root}: cannot be read ({error.strerror or error}): mend that, or choose another "
            "store with --store or BENCHBD_STORE"
        )

    @cached_property
    def source(self) -> str:
        """16 hex digits for what this machine computes for this store: the same in every run, and from which neither
        the machine nor the store can be told. StoreError if the store cannot be written."""
        path = self.root / "source"
        try:
            with self.hold("source", wait=True) or nullcontext():
                if not path.is_file():
                    commit(path, lambda part: part.write_text(secrets.token_hex(32)))
            text = f"{path.read_text(encoding='utf-8')} {socket.gethostname()}"
        except OSError as error:
            raise self._unwritable(error) from error
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def folder(self, key: str) -> Path:
        return self.root / "stages" / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the stage was committed. Blobs are not read: ``get`` verifies them. StoreError where its folder may
        not be looked into."""
        try:
            return (self.folder(key) / MANIFEST).is_file()
        except OSError as error:
            raise self._unreadable(error) from error

    def get(self, key: str) -> Artifact | None:
        """The verified artifact, or None where there is none. A damaged one is named, set aside, and counts as none.

        StoreError, and nothing is moved, where it cannot be read or a newer benchbd wrote it: neither is damage.
        """
        folder = self.folder(key)
        try:
            found = self._verified(folder)
        except OSError as error:
            raise self._unreadable(error) from error
        if found is None:
            return None
        if isinstance(found, dict):
            return Artifact(folder, found)
        aside = self._set_aside(folder)
        log.warning("store: %s of stage %s is damaged; set aside in %s and computed again", found, key[:12], aside)
        return None

    def put(
        self,
        key: str,
        blobs: Mapping[str, Callable[[Path], object]],
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
            make_folder(folder)
            for left_over in folder.glob(".*.part"):  # of a run that was killed
                left_over.unlink()
            digests = {}
            for name, write in blobs.items():
                commit(folder / name, write)
                digests[name] = file_digest(folder / name)
            manifest = {"schema": SCHEMA, "key": key, "identity": identity, "blobs": digests, "result": result, **meta}
            body = json.dumps(manifest, indent=1, sort_keys=True)
            text = f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "manifest":\n{body}\n}}\n'
            commit(folder / MANIFEST, lambda part: part.write_text(text))
        except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
            raise self._unwritable(error) from error
        return Artifact(folder, manifest)

    def hold(self, key: str, *, wait: bool) -> AbstractContextManager[object] | None:
        """The lock of whoever computes ``key``, taken; the system releases it when the process dies.

        None where another process holds it and ``wait`` is False. StoreError where the file system takes no locks, or
        the file cannot be written.
        """
        path = self._lock(key)
        # A soft lock, which is a file alone, would outlive a process that is killed.
        lock = FileLock(path, fallback_to_soft=False)
        try:
            held = lock.acquire(blocking=wait)
            try:
                share(path)
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            except OSError:
                lock.release()
                raise
        except Timeout:
            return None
        except OSError as error:
            where = " on a file system with locks, such as a local disk," if error.errno in _NO_LOCKS else ""
            raise StoreError(
                f"{path}: the lock cannot be taken ({error.strerror or error}): "
                f"{'' if where else 'mend that, or '}choose {'a' if where else 'another'} store{where} with --store or "
                "BENCHBD_STORE"
            ) from error
        return held

    def holder(self, key: str) -> str:
        """Who holds the lock of ``key``, in words."""
        try:
            return self._lock(key).read_text(encoding="utf-8", errors="replace") or "another run"
        except OSError:
            return "another run"

    def _lock(self, key: str) -> Path:
        return self.root / "locks" / f"{key}.lock"

    def log(self, name: str, text: str) -> Path:
        """Keep ``text`` under logs/ and return where. StoreError where it cannot be written."""
        path = self.root / "logs" / name
        try:
            path.write_text(text, encoding="utf-8")
            share(path)
        except OSError as error:
            raise self._unwritable(error) from error
        return path

    def manifests(self) -> list[dict[str, Any]]:
        """Every sound manifest that can be read: what past runs cost."""
        found = []
        for path in sorted(self.root.glob(f"stages/*/*/{MANIFEST}")):
            try:
                found.append(_read_manifest(path))
            except (OSError, StoreError):
                continue  # ``get`` says so where it matters
        return [manifest for manifest in found if isinstance(manifest, dict)]

    def _verified(self, folder: Path) -> dict[str, Any] | str | None:
        """The manifest where all is well, the name of what is damaged, or None where there is nothing."""
        try:
            manifest = _read_manifest(folder / MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if isinstance(manifest, str):
            return manifest
        for name, digest in manifest["blobs"].items():
            try:
                if file_digest(folder / name) != digest:
                    return str(name)
            except (FileNotFoundError, IsADirectoryError):
                return str(name)
        return manifest

    def _set_aside(self, folder: Path) -> Path:
        damaged = self.root / "damaged"
        aside = damaged / f"{folder.name}.{time.time_ns()}"
        try:
            make_folder(damaged)
            folder.rename(aside)
        except FileNotFoundError:  # another run has found the damage too
            pass
        except OSError as error:
            raise self._unwritable(error) from error
        return aside


def _read_manifest(path: Path) -> dict[str, Any] | str:
    """The manifest, or the name of what is damaged where it does not hold what its own digest and its key say.

    OSError where it cannot be read, StoreError where a newer benchbd wrote it.
    """
    data = path.read_bytes()
    try:
        text = data.decode()
        wrapped = json.loads(text, parse_constant=_no_json)
        body = text[text.index("\n") + 1 : text.rindex("\n}")]
    except (ValueError, RecursionError):
        return MANIFEST
    if not isinstance(wrapped, dict) or hashlib.sha256(body.encode()).hexdigest() != wrapped.get("sha256"):
        return MANIFEST
    manifest = wrapped.get("manifest")
    if not isinstance(manifest, dict):
        return MANIFEST
    schema = manifest.get("schema", SCHEMA)
    if type(schema) is not int:
        return MANIFEST
    if schema > SCHEMA:
        raise StoreError(
            f"{path}: a newer benchbd wrote it (schema {schema}; this one reads up to {SCHEMA}): update benchbd, or "
            "choose another store with --store or BENCHBD_STORE"
        )
    return manifest if schema == SCHEMA and _is_sound(manifest, path.parent.name) else MANIFEST


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _is_sound(manifest: Mapping[str, Any], key: str) -> bool:
    """Whether every field is there and of its type, and the identity is that of ``key``."""
    if not nests_within(manifest, _LEVELS) or not all(
        isinstance(manifest.get(name), kind) for name, kind in _FIELDS.items()
    ):
        return False
    cost, blobs, identity = manifest["cost"], manifest["blobs"], manifest["identity"]
    return (
        cost.keys() == _COST.keys()
        and all(type(cost[name]) in kinds and 0 <= cost[name] < math.inf for name, kinds in _COST.items())
        and all(isinstance(digest, str) and Path(name).name == name for name, digest in blobs.items())
        and isinstance(manifest["machine"].get("device"), str)
        and manifest["key"] == key == hashlib.sha256(canonical(identity).encode()).hexdigest()
    )

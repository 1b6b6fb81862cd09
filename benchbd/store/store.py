"""The store: results, addressed by the content that determined them. A stage that is present is complete and verified.

<root>/stages/<ab>/<key>/<blob>          safetensors
<root>/stages/<ab>/<key>/manifest.json   identity, digests of the blobs, result, cost, machine
<root>/locks/<key>.lock                  held while a stage is computed; names the holder
<root>/records/<board>/                  a JSON file per cell, as benchbd.records writes it
<root>/source                            a random name of this store
<root>/damaged/                          stages that failed verification
<root>/data/                             decoded data sets
<root>/logs/                             tracebacks of failed stages
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from benchbd.base.content import (
    as_json,
    canonical,
    commit,
    expanded,
    file_digest,
    make_folder,
    sealed,
    share,
    sweep,
    unsealed,
)
from benchbd.base.errors import StoreError
from benchbd.store.artifact import Artifact

MANIFEST = "manifest.json"

SCHEMA = 1  # version of the form of manifests; one without the field has 1

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks

_LEVELS = 100  # levels of JSON: more than identities and notes have, fewer than the interpreter can follow

log = logging.getLogger("benchbd")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Cost(_Part, extra="forbid"):
    seconds: NonNegativeFloat
    cpu_seconds: NonNegativeFloat
    image_forwards: NonNegativeInt


class _Machine(_Part):
    device: str


class _Manifest(_Part):
    """The fields that every manifest of this schema has; others are allowed."""

    version: int = Field(SCHEMA, alias="schema", ge=SCHEMA, le=SCHEMA)
    key: str
    label: str
    architecture: str
    identity: dict[str, Any]
    blobs: dict[Annotated[str, Field(pattern=r"^[^/\\]+$")], str]
    result: dict[str, Any]
    cost: _Cost
    notes: dict[str, Any]
    machine: _Machine


def default_root() -> Path:
    """``BENCHBD_STORE``, else the user's cache directory."""
    from platformdirs import user_cache_path

    return expanded(os.environ.get("BENCHBD_STORE") or user_cache_path("benchbd"))


def find_root(option: str | Path | None = None) -> Path:
    """``option``, or ``default_root()`` if it is absent or empty; StoreError if a file stands in the way."""
    root = expanded(option or default_root())
    existing = next((path for path in (root, *root.parents) if path.exists()), root)
    if existing.is_file():
        raise _unwritable(root, f"{existing} is a file")
    return root


def _unwritable(root: Path, reason: object) -> StoreError:
    return StoreError(f"the store {root} cannot be written ({reason}): choose another with --store or BENCHBD_STORE")


class Store:
    """A folder of artifacts. Two runs may share one: stages are committed atomically and computed under a lock.

    writable: whether to make the folder and check that it can be written (StoreError); a reader needs neither.
    """

    def __init__(self, root: Path, *, writable: bool = True) -> None:
        self.root = root
        if writable:
            with self._writing():
                for name in ("stages", "locks", "data", "logs"):
                    make_folder(root / name)
                probe = root / "locks" / f".probe-{secrets.token_hex(8)}"
                probe.write_bytes(b"")
                probe.unlink()
                sweep(root)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """In the block, any error that prevents writing is a StoreError."""
        try:
            yield
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise _unwritable(self.root, f"{error.strerror}: {error.filename}") from error
        except OSError as error:
            raise _unwritable(self.root, error.strerror or error) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """In the block, any error that prevents reading is a StoreError."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{error.filename or self.root}: cannot be read ({error.strerror or error}): mend that, or choose "
                "another store with --store or BENCHBD_STORE"
            ) from error

    @cached_property
    def source(self) -> str:
        """16 random hex digits for this machine's results in this store: the same in every run; they reveal neither the
        machine nor the store. StoreError if the store cannot be written, or the file is damaged."""
        path, own = self.root / "source", b""
        with self._writing(), self.hold("source", wait=True) or nullcontext():
            if not path.exists():
                commit(path, lambda part: part.write_text(secrets.token_hex(32)))
            with suppress(IsADirectoryError):
                own = path.read_bytes().strip()
        if not re.fullmatch(rb"[0-9a-f]{64}", own):
            raise StoreError(
                f"{path}: is damaged (64 hex digits are expected): remove it, and the store gets a new name"
            )
        text = f"{own.decode()} {socket.gethostname()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def folder(self, key: str) -> Path:
        return self.root / "stages" / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the stage was committed. Blobs are not read: ``get`` verifies them. StoreError if the user may not
        read the stage's folder."""
        with self._reading():
            return (self.folder(key) / MANIFEST).is_file()

    def get(self, key: str) -> Artifact | None:
        """The verified artifact, or None if there is none. A damaged one is named, moved to damaged/, and counts as
        none.

        StoreError if it cannot be read or a newer benchbd wrote it: neither is damage, so it is not moved.
        """
        folder = self.folder(key)
        with self._reading():
            found = self._verified(folder)
        if isinstance(found, str):
            aside = self._set_aside(folder)
            log.warning("store: %s of stage %s is damaged; set aside in %s and computed again", found, key[:12], aside)
            return None
        return None if found is None else Artifact(folder, found)

    def put(
        self,
        key: str,
        blobs: Mapping[str, bytes],
        *,
        identity: Mapping[str, Any],
        result: Mapping[str, Any],
        meta: Mapping[str, Any],
    ) -> Artifact:
        """Commit a stage: each blob is written to a temporary file, which is synced and renamed; the manifest is last.

        The caller holds the stage's lock.
        """
        digests = self._write(key, blobs)
        manifest = {"schema": SCHEMA, "key": key, "identity": identity, "blobs": digests, "result": result, **meta}
        self._commit(key, sealed("manifest", manifest).encode())
        return Artifact(self.folder(key), manifest)

    def take(self, key: str, manifest: bytes, blobs: Mapping[str, bytes]) -> bool:
        """Commit a stage of another store, with the manifest that it had there; False if this store has it by now."""
        with self.hold(key, wait=True) or nullcontext():
            if self.has(key):
                return False
            self._write(key, blobs)
            self._commit(key, manifest)
        return True

    def _write(self, key: str, blobs: Mapping[str, bytes]) -> dict[str, str]:
        """Write the blobs of a stage; the sha256 of each."""
        folder = self.folder(key)
        with self._writing():
            make_folder(folder)
            for left_over in folder.glob(".*.part"):  # files of a run that was killed
                left_over.unlink()
            for name, content in blobs.items():
                commit(folder / name, partial(Path.write_bytes, data=content))
        return {name: file_digest(folder / name) for name in blobs}

    def _commit(self, key: str, manifest: bytes) -> None:
        with self._writing():
            commit(self.folder(key) / MANIFEST, partial(Path.write_bytes, data=manifest))

    def hold(self, key: str, *, wait: bool) -> ExitStack | None:
        """Take the lock of the process that computes ``key``; the system releases the lock when the process dies.

        None if another process holds it and ``wait`` is False. StoreError if the file system has no locks, or the file
        cannot be written.
        """
        path = self._lock(key)
        # A soft lock is only a file and would remain after its process is killed.
        lock = FileLock(path, fallback_to_soft=False)
        try:
            with ExitStack() as held:
                held.enter_context(lock.acquire(blocking=wait))
                share(path)
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
                return held.pop_all()
        except Timeout:
            return None
        except OSError as error:
            where = " on a file system with locks, such as a local disk," if error.errno in _NO_LOCKS else ""
            raise StoreError(
                f"{path}: the lock cannot be taken ({error.strerror or error}): "
                f"{'' if where else 'mend that, or '}choose {'a' if where else 'another'} store{where} with --store or "
                "BENCHBD_STORE"
            ) from error

    def holder(self, key: str) -> str:
        """The holder of the lock of ``key``, in words."""
        try:
            return self._lock(key).read_text(encoding="utf-8", errors="replace") or "another run"
        except OSError:
            return "another run"

    def _lock(self, key: str) -> Path:
        return self.root / "locks" / f"{key}.lock"

    def log(self, name: str, text: str) -> Path:
        """Save ``text`` under logs/ and return its path. StoreError if it cannot be written."""
        path = self.root / "logs" / name
        with self._writing():
            path.write_text(text, encoding="utf-8")
            share(path)
        return path

    def manifests(self) -> list[dict[str, Any]]:
        """Every undamaged manifest that can be read; plans estimate costs from them."""
        found = []
        for path in sorted(self.root.glob(f"stages/*/*/{MANIFEST}")):
            with suppress(OSError, StoreError):  # ``get`` raises the error when the stage is needed
                found.append(_read_manifest(path))
        return [manifest for manifest in found if isinstance(manifest, dict)]

    def _verified(self, folder: Path) -> dict[str, Any] | str | None:
        """The manifest if all is well, the name of the damaged file, or None if there is no stage."""
        try:
            manifest = _read_manifest(folder / MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if isinstance(manifest, str):
            return manifest
        for name, digest in manifest["blobs"].items():
            with suppress(FileNotFoundError, IsADirectoryError):
                if file_digest(folder / name) == digest:
                    continue
            return str(name)
        return manifest

    def _set_aside(self, folder: Path) -> Path:
        aside = self.root / "damaged" / f"{folder.name}.{time.time_ns()}"
        with self._writing():
            make_folder(aside.parent)
            with suppress(FileNotFoundError):  # another run found the damage too and moved it
                folder.rename(aside)
        return aside


def _read_manifest(path: Path) -> dict[str, Any] | str:
    """The manifest, or the name of the damaged file if the manifest does not match its own digest and key.

    OSError if it cannot be read, StoreError if a newer benchbd wrote it.
    """
    manifest = parse_manifest(path.read_bytes(), path)
    return manifest if manifest is not None and manifest["key"] == path.parent.name else MANIFEST


def parse_manifest(content: bytes, path: Path) -> dict[str, Any] | None:
    """The manifest in a file's content; None if it does not match its own digest and key.

    StoreError, which names the path, if a newer benchbd wrote it.
    """
    try:
        manifest: dict[str, Any] = as_json(json.loads(unsealed("manifest", content) or ""), _LEVELS)
        schema = manifest.get("schema", SCHEMA) if isinstance(manifest, dict) else SCHEMA
        if type(schema) is int and schema > SCHEMA:
            raise StoreError(
                f"{path}: a newer benchbd wrote it (schema {schema}; this one reads up to {SCHEMA}): update benchbd, "
                "or choose another store with --store or BENCHBD_STORE"
            )
        told = _Manifest.model_validate(manifest)
    except (ValueError, RecursionError):
        return None
    return manifest if told.key == hashlib.sha256(canonical(told.identity).encode()).hexdigest() else None

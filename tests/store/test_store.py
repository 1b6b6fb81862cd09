"""The store: atomic, verified, shared."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from benchbd.base.content import STALE, canonical, commit
from benchbd.base.errors import StoreError
from benchbd.store.store import MANIFEST, SCHEMA, Store, default_root

IDENTITY = {"kind": "pretrain", "x": 1}
KEY = hashlib.sha256(canonical(IDENTITY).encode()).hexdigest()
META: dict[str, Any] = {
    "label": "clean",
    "architecture": "w16",
    "cost": {"seconds": 1.0, "cpu_seconds": 1.0, "image_forwards": 5},
    "notes": {},
    "machine": {"device": "x86_64 CPU"},
}


def put(store: Store, key: str = KEY, **blobs: bytes) -> None:
    store.put(key, blobs or {"a": b"1"}, identity=IDENTITY, result={"r": 2}, meta=META)


@contextmanager
def breaking(error: Exception) -> Iterator[None]:
    """In the block, every file is written by half, with an error."""
    write = Path.write_bytes

    def half(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise error

    with patch.object(Path, "write_bytes", half):
        yield


def rewrite(store: Store, change: Any) -> None:
    """Put a changed manifest in place of the store's, with a digest that fits it."""
    path = store.folder(KEY) / MANIFEST
    body = json.dumps(change(json.loads(path.read_text())["manifest"]), indent=1)
    path.write_text(f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "manifest":\n{body}\n}}\n')


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_round_trip(store: Store) -> None:
    assert not store.has(KEY)
    assert store.get(KEY) is None
    put(store, a=b"one", b=b"two")
    artifact = store.get(KEY)
    assert artifact is not None
    assert artifact.blob("a").read_bytes() == b"one"
    assert artifact.result == {"r": 2}
    assert artifact.manifest["identity"] == IDENTITY
    assert store.has(KEY)
    assert [m["key"] for m in store.manifests()] == [KEY]


@pytest.mark.parametrize("name", ["a", MANIFEST])
@pytest.mark.parametrize("position", [0, 7, -2])
def test_a_flipped_byte_is_named_and_set_aside(
    store: Store, name: str, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, a=b"0123456789")
    path = store.folder(KEY) / name
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "benchbd"):
        assert store.get(KEY) is None
    (record,) = caplog.records
    assert f"{name} of stage {KEY[:12]} is damaged" in record.getMessage()
    assert not store.has(KEY)
    assert len(list((store.root / "damaged").iterdir())) == 1
    put(store, a=b"0123456789")
    assert store.get(KEY) is not None


def test_a_missing_blob_is_damage(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    put(store)
    (store.folder(KEY) / "a").unlink()
    assert store.get(KEY) is None
    assert "a of stage" in caplog.text


def test_what_a_crash_leaves_is_not_there(store: Store) -> None:
    with breaking(RuntimeError("power cut")), pytest.raises(RuntimeError):
        put(store, a=b"whole")
    assert not store.has(KEY)
    assert store.get(KEY) is None
    assert not (store.folder(KEY) / "a").exists()
    put(store)
    assert store.has(KEY)


def test_a_full_disk_is_a_store_error(store: Store) -> None:
    wrong = pytest.raises(StoreError, match=r"cannot be written \(No space left on device\): choose another")
    with breaking(OSError(28, "No space left on device")), wrong:
        put(store, a=b"whole")
    assert list(store.folder(KEY).iterdir()) == []


def test_manifest_comes_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = Path.replace

    def spy(self: Path, target: Any) -> Path:
        order.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    put(store, a=b"1", b=b"2")
    assert order == ["a", "b", MANIFEST]


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written .* choose another with --store"):
        Store(tmp_path / "file" / "store")


def test_the_name_of_a_store_is_made_once(store: Store) -> None:
    name = store.source
    assert len(name) == 16
    assert Store(store.root).source == name
    path = store.root / "source"
    path.write_text(f"{path.read_text()}\n")  # an editor added it
    assert Store(store.root).source == name
    path.unlink()
    assert Store(store.root).source != name


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\x00\x9c" * 30, b"0" * 63, b"0" * 65, None])
def test_a_damaged_name_of_a_store_is_one_line(store: Store, content: bytes | None) -> None:
    path = store.root / "source"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        _ = store.source
    told = f"{path}: is damaged (64 hex digits are expected): remove it, and the store gets a new name"
    assert str(caught.value) == told


@pytest.mark.parametrize("name", ["stages", "locks", "data", "logs"])
def test_a_file_where_a_store_has_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path)
    assert str(caught.value).startswith(f"the store {tmp_path} cannot be written (File exists: {tmp_path / name}): ")


def test_a_reader_creates_nothing(tmp_path: Path, store: Store) -> None:
    assert not Store(tmp_path / "none", writable=False).has(KEY)
    assert Store(tmp_path / "none", writable=False).manifests() == []
    assert not (tmp_path / "none").exists()
    put(store)
    assert Store(store.root, writable=False).has(KEY)


def test_what_a_killed_run_left_is_cleared(store: Store) -> None:
    store.folder(KEY).mkdir(parents=True)
    (store.folder(KEY) / ".a.99999.part").write_bytes(b"half")
    put(store, a=b"whole")
    assert sorted(os.listdir(store.folder(KEY))) == ["a", MANIFEST]


def test_two_runs_that_find_the_same_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)
    (store.folder(KEY) / "a").write_bytes(b"2")
    damaged = store._verified(store.folder(KEY))
    assert store.get(KEY) is None  # the other run was first
    monkeypatch.setattr(Store, "_verified", lambda *_: damaged)
    (store.folder(KEY)).mkdir()
    (store.folder(KEY) / MANIFEST).write_text("")

    def gone(*_: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "rename", gone)
    assert store.get(KEY) is None


@pytest.mark.parametrize("name", ["a", MANIFEST])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_may_not_be_read_is_no_damage(
    store: Store, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store)
    place = str(store.folder(KEY) / name)

    def refuse(self: Path, original: Any, *given: Any, **named: Any) -> Any:
        if str(self) == place:
            raise OSError(number, os.strerror(number), place)
        return original(self, *given, **named)

    for method in ("open", "read_bytes"):
        original = getattr(Path, method)
        monkeypatch.setattr(Path, method, lambda self, *a, o=original, **k: refuse(self, o, *a, **k))
    with pytest.raises(StoreError) as caught:
        store.get(KEY)
    assert str(caught.value) == (
        f"{place}: cannot be read ({os.strerror(number)}): mend that, or choose another store with --store or "
        "BENCHBD_STORE"
    )
    assert len(store.manifests()) == (name != MANIFEST)
    monkeypatch.undo()
    assert store.get(KEY) is not None  # nothing was moved


def test_a_manifest_of_a_newer_benchbd_is_one_line_and_stays(store: Store) -> None:
    put(store)
    rewrite(store, lambda manifest: manifest | {"schema": SCHEMA + 1})
    with pytest.raises(StoreError, match=rf"a newer benchbd wrote it \(schema {SCHEMA + 1}; .* update benchbd"):
        store.get(KEY)
    assert store.manifests() == []
    assert store.has(KEY)


def test_a_manifest_without_a_schema_is_of_the_first(store: Store) -> None:
    put(store)
    rewrite(store, lambda manifest: {name: value for name, value in manifest.items() if name != "schema"})
    artifact = store.get(KEY)
    assert artifact is not None
    assert artifact.result == {"r": 2}


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in ("key", "label", "architecture", "identity", "blobs", "result", "notes", "machine")),
        {"schema": "1"},
        {"schema": 0},
        {"schema": True},
        {"cost": {"seconds": 1.0, "cpu_seconds": 1.0}},
        {"cost": {"seconds": "1", "cpu_seconds": 1.0, "image_forwards": 5}},
        {"cost": META["cost"] | {"seconds": float("nan")}},
        {"cost": META["cost"] | {"cpu_seconds": 1e999}},
        {"cost": META["cost"] | {"image_forwards": 1.5}},
        {"cost": META["cost"] | {"image_forwards": -1}},
        {"cost": META["cost"] | {"joules": 1}},
        {"notes": {"depth": json.loads("[" * 500 + "]" * 500)}},
        {"notes": {"x": float("inf")}},
        {"identity": IDENTITY | {"x": float("nan")}},
        {"blobs": {"a": 1}},
        {"blobs": {"../a": "0" * 64}},
        {"machine": {}},
        {"identity": IDENTITY | {"x": 2}},  # of another stage
        {"key": "0" * 64},
    ],
    ids=lambda change: str(change)[:60],
)
def test_a_manifest_whose_fields_are_wrong_is_damaged(
    store: Store, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    put(store)
    rewrite(store, lambda manifest: manifest | change)
    assert store.manifests() == []
    assert store.get(KEY) is None
    assert f"{MANIFEST} of stage {KEY[:12]} is damaged; set aside" in caplog.text
    put(store)
    assert store.get(KEY) is not None


def test_a_manifest_that_nests_too_deep_is_damaged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    put(store)
    (store.folder(KEY) / MANIFEST).write_text("[" * 100_000)
    assert store.get(KEY) is None
    assert "is damaged" in caplog.text


def test_a_folder_that_may_not_be_looked_into_is_a_store_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)
    place = str(store.folder(KEY) / MANIFEST)

    def refuse(self: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(StoreError, match=f"{place}: cannot be read .Permission denied.: mend that"):
        store.has(KEY)


def test_lock_is_exclusive(store: Store) -> None:
    held = store.hold(KEY, wait=False)
    assert held is not None
    with held:
        assert store.hold(KEY, wait=False) is None
        assert store.holder(KEY).startswith(f"process {os.getpid()} on ")
    again = store.hold(KEY, wait=True)
    assert again is not None
    with again:
        pass


def test_nobody_known_holds_an_empty_lock(store: Store) -> None:
    assert store.holder(KEY) == "another run"
    (store.root / "locks" / f"{KEY}.lock").touch()
    assert store.holder(KEY) == "another run"


def test_a_file_system_without_locks_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="a system without flock")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError) as caught:
        store.hold(KEY, wait=False)
    assert str(caught.value) == (
        f"{store.root / 'locks' / KEY}.lock: the lock cannot be taken (No locks available): choose a store on a file "
        "system with locks, such as a local disk, with --store or BENCHBD_STORE"
    )


def test_a_lock_that_may_not_be_written_is_no_matter_of_the_file_system(store: Store) -> None:
    place = store.root / "locks" / f"{KEY}.lock"
    place.mkdir()  # root may write to any file, but a folder is no file
    with pytest.raises(StoreError) as caught:
        store.hold(KEY, wait=False)
    assert str(caught.value) == (
        f"{place}: the lock cannot be taken (Is a directory): mend that, or choose another store with --store or "
        "BENCHBD_STORE"
    )


@pytest.mark.parametrize("umask", [0o077, 0o000])
@pytest.mark.parametrize("mode", [0o2770, 0o755])
def test_what_a_store_holds_is_shared_as_its_folder_is(tmp_path: Path, umask: int, mode: int) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(mode)
    before = os.umask(umask)
    try:
        store = Store(root)
        put(store)
        held = store.hold(KEY, wait=True)
        assert held is not None
        with held:
            pass
    finally:
        os.umask(before)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"a", MANIFEST, f"{KEY}.lock"}
    assert {rights(path) for path in files} == {mode & 0o666}
    assert {rights(path) for path in root.rglob("*") if path.is_dir()} == {mode}


def test_two_processes_of_one_number_write_aside_to_two_files(tmp_path: Path) -> None:
    names: list[str] = []
    for _ in range(2):
        commit(tmp_path / "a", lambda part: (names.append(part.name), part.write_bytes(b"1")))
    assert len(set(names)) == 2


def test_what_killed_processes_left_aside_is_swept_once_it_is_old(store: Store) -> None:
    old, new = store.root / "data" / ".a.json.0.part", store.root / "data" / ".b.json.1.part"
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = time.time() - STALE - 60
    os.utime(old, (long_ago, long_ago))
    Store(store.root)
    assert not old.exists()
    assert new.exists()


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHBD_STORE", "/elsewhere")
    assert default_root() == Path("/elsewhere")
    monkeypatch.delenv("BENCHBD_STORE")
    assert default_root().name == "benchbd"


def test_canonical_is_order_free() -> None:
    assert canonical({"b": 1, "a": [1, 2]}) == canonical({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


def test_no_part_files_stay(store: Store) -> None:
    put(store)
    assert not [name for name in os.listdir(store.folder(KEY)) if name.endswith(".part")]

"""The store: atomic, verified, shared."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from benchbd.errors import StoreError
from benchbd.store import MANIFEST, Store, canonical, default_root

KEY = "ab" + "0" * 62


def put(store: Store, key: str = KEY, **blobs: bytes) -> None:
    writers = {name: (lambda path, data=data: path.write_bytes(data)) for name, data in (blobs or {"a": b"1"}).items()}
    store.put(key, writers, identity={"x": 1}, result={"r": 2}, meta={"cost": {"seconds": 1.0}})


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
    assert artifact.manifest["identity"] == {"x": 1}
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
    def crash(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        store.put(KEY, {"a": crash}, identity={}, result={}, meta={})
    assert not store.has(KEY)
    assert store.get(KEY) is None
    assert not (store.folder(KEY) / "a").exists()
    put(store)
    assert store.has(KEY)


def test_a_full_disk_is_a_store_error_whoever_notices(store: Store) -> None:
    for error in (OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")):

        def full(path: Path, error: Exception = error) -> None:
            path.write_bytes(b"half")
            raise error

        with pytest.raises(StoreError, match=r"cannot be written \(.*No space left on device\): choose another"):
            store.put(KEY, {"a": full}, identity={}, result={}, meta={})
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


def test_lock_is_exclusive(store: Store) -> None:
    from filelock import Timeout

    with store.lock(KEY), pytest.raises(Timeout):
        store.lock(KEY).acquire(timeout=0)
    store.lock(KEY).acquire(timeout=0).lock.release()


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

"""Published texts name none of a user's folders; identities contain files by content."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from benchbd.base.content import path_digest, without_paths
from benchbd.base.errors import DataError, PluginError
from benchbd.contract.defense import Mitigation
from benchbd.contract.method import identity_of

ROOTS = {Path("/home/jo smith/store"): "STORE", Path("/home/jo/data"): "DATA"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/jo/data/gtsrb/train.npz: row 4", "DATA/gtsrb/train.npz: row 4"),
        ("the store /home/jo smith/store cannot be written", "the store STORE cannot be written"),
        ("/home/jo/data2/gtsrb/x.npz", "x.npz"),
        ("No such file or directory: '/home/jo smith/x y.npz'", "No such file or directory: 'x y.npz'"),
        ("file:/home/jo/x.pt, file:///home/jo/y.pt and ~/z/w.pt", "file:x.pt, y.pt and w.pt"),
        (r"C:\Users\jo\x.npz is gone", "x.npz is gone"),
        ("weights=/srv/jo/w.pt (the board's: None)", "weights=w.pt (the board's: None)"),
        ("3 images/s, and/or 1/2/3; https://a.org/b/c (logs/abc.log)",) * 2,
    ],
)
def test_a_published_text_has_no_folder_of_this_machine(text: str, told: str) -> None:
    assert without_paths(text, ROOTS) == told


class Loaded(Mitigation):
    """Reads weights."""

    name = "loaded"
    paper = "test"
    version = "1"
    weights: Path | None = None


def test_an_option_that_is_a_path_counts_by_what_lies_there(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.pt").write_bytes(b"same")
    (tmp_path / "other.pt").write_bytes(b"other")
    one, same, other = (Loaded(weights=tmp_path / name).identity() for name in ("a/w.pt", "b/w.pt", "other.pt"))
    assert one == same != other
    assert str(tmp_path) not in str(one)
    assert path_digest(tmp_path / "a") == path_digest(tmp_path / "b") != path_digest(tmp_path)
    assert Loaded().identity()["options"] == {"weights": None}


def test_what_is_neither_a_file_nor_a_folder_is_refused_and_an_empty_folder_has_no_name(tmp_path: Path) -> None:
    pipe, *empty = (tmp_path / name for name in ("pipe", "a", "b"))
    os.mkfifo(pipe)
    for odd in (pipe, Path(os.devnull)):
        with pytest.raises(DataError, match=f"loaded.weights: {odd}: neither a file nor a folder"):
            Loaded(weights=odd).identity()
    for folder in empty:
        (folder / "nothing").mkdir(parents=True)
    one, same, other = (Loaded(weights=path).identity() for path in (*empty, tmp_path / "absent"))
    assert one == same != other


def test_whatever_lies_in_a_folder_counts_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, inner, other = tmp_path / "weights", tmp_path / "weights" / "inner", tmp_path / "other"
    for made in (inner, other):
        made.mkdir(parents=True)
        (made / "w.pt").write_text("one")
    plain = Loaded(weights=folder).identity()
    odd = inner / "odd"
    monkeypatch.chdir(inner)
    with socket.socket(socket.AF_UNIX) as bound:
        for make, told in (
            (os.mkfifo, "neither a file nor a folder"),
            (lambda path: bound.bind(path.name), "neither a file nor a folder"),  # a whole path may be too long
            (lambda path: path.symlink_to(os.devnull), "neither a file nor a folder"),
            (lambda path: path.symlink_to("absent"), "a link to nothing"),
            (lambda path: path.symlink_to(path), "a link to nothing"),
            (lambda path: path.symlink_to(folder), "a link to a folder that contains it"),
        ):
            make(odd)
            with pytest.raises(DataError, match=f"^loaded.weights: {odd}: {told}[^\n]*$"):
                Loaded(weights=folder).identity()
            odd.unlink()
    assert Loaded(weights=folder).identity() == plain
    odd.symlink_to(other)
    linked = Loaded(weights=folder).identity()
    (other / "w.pt").write_text("two")
    assert linked not in (plain, Loaded(weights=folder).identity())
    (inner / os.fsdecode(b"\xff")).write_text("any name")
    assert len(path_digest(folder)) == 64


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inner := tmp_path / "weights" / "inner").mkdir(parents=True)
    (inner / "w.pt").write_text("weights")
    if os.geteuid() == 0:  # root reads everything
        listed = Path.iterdir

        def refused(path: Path) -> Iterator[Path]:
            if path == inner:
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(Path, "iterdir", refused)
    inner.chmod(0)
    try:
        with pytest.raises(DataError, match=rf"^loaded.weights: {inner}.*: cannot be read \(Permission denied\)$"):
            Loaded(weights=tmp_path / "weights").identity()
    finally:
        inner.chmod(0o755)


class Inner(BaseModel):
    """A part of a method's options."""

    at: Path


class LoadedInParts(Mitigation):
    """Reads weights from several files."""

    name = "loaded-in-parts"
    paper = "test"
    version = "1"
    parts: list[Path] = []
    pair: tuple[Path, int] | None = None
    several: frozenset[Path] = frozenset()
    named: dict[str, Path] = {}
    inner: Inner | None = None
    text: str = ""


@pytest.mark.parametrize(
    "options",
    [
        lambda path: {"parts": [path]},
        lambda path: {"pair": (path, 3)},
        lambda path: {"several": {path, path.parent}},
        lambda path: {"named": {"w": path}},
        lambda path: {"inner": Inner(at=path)},
    ],
)
def test_a_path_inside_an_option_counts_by_what_lies_there(
    tmp_path: Path, options: Callable[[Path], dict[str, Any]]
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.pt").write_bytes(b"same")
    one, same = (identity_of(LoadedInParts(**options(tmp_path / folder / "w.pt"))) for folder in ("a", "b"))
    (tmp_path / "b" / "w.pt").write_bytes(b"other")
    other = identity_of(LoadedInParts(**options(tmp_path / "b" / "w.pt")))
    assert one == same != other
    assert str(tmp_path) not in str(one)


def test_a_path_as_a_text_is_refused() -> None:
    assert identity_of(LoadedInParts(text="a/b, https://a.org/b/c or 1/2"))["options"]["text"]
    with pytest.raises(PluginError, match=r"no path of this machine, as '/srv/jo/w.pt' is: an option .* as a Content"):
        identity_of(LoadedInParts(text="/srv/jo/w.pt"))

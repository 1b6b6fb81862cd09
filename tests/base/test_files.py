"""Published texts name none of a user's folders; identities contain files by content."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from benchbd.base.content import file_at, path_digest, without_paths, write_file
from benchbd.base.errors import DataError, PluginError, StoreError, UsageError
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


def test_a_link_is_written_through_and_stays(tmp_path: Path) -> None:
    """Whether or not its target exists; the target is replaced whole, and beside it nothing stays."""
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / "target"
    link.symlink_to(target)
    for content in (b"first", b"second"):
        write_file(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["target"]


def test_a_place_where_no_file_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "no" / "file")
    os.mkfifo(tmp_path / "pipe")
    for place, line in {
        tmp_path: f"{tmp_path}: is a folder; name a file in it",
        tmp_path / "absent" / "file": f"{tmp_path / 'absent'}: no such folder",
        tmp_path / "link": f"{tmp_path / 'no'}: no such folder",
        tmp_path / "pipe": f"{tmp_path / 'pipe'}: is no ordinary file",
    }.items():
        with pytest.raises(StoreError) as caught:
            write_file(place, b"")
        assert str(caught.value) == line


def test_a_file_that_is_read_is_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "good").symlink_to(tmp_path / "file")
    (tmp_path / "bad").symlink_to(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    assert file_at(str(tmp_path / "good")) == tmp_path / "good"
    for place, line in {
        tmp_path: "a folder; name the file in it",
        tmp_path / "bad": "a link to nothing",
        tmp_path / "absent": "no such picture",
        tmp_path / "file" / "x": "no such picture",
        tmp_path / "pipe": "not an ordinary file; save its content in one",
    }.items():
        with pytest.raises(DataError) as caught:
            file_at(place, "picture")
        assert str(caught.value) == f"{place}: {line}"
    for place, line in {"": "the path of the file is empty", 5: "5 is no path", "a\0b": "is no path"}.items():
        with pytest.raises(UsageError, match=line):
            file_at(place)  # type: ignore[arg-type]


def test_an_open_file_of_this_process_is_no_ordinary_one(tmp_path: Path) -> None:
    """Even if it is one: the process that reads a stranger's file has other open files."""
    (tmp_path / "file").write_bytes(b"x")
    with (tmp_path / "file").open("rb") as file, pytest.raises(DataError, match="not an ordinary file"):
        file_at(f"/dev/fd/{file.fileno()}")

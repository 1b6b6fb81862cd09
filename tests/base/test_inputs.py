"""The type of a file from its content, and the reason that one cannot be read, in a line."""

from __future__ import annotations

import errno
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchbd.base.errors import DataAbsentError, DataError
from benchbd.base.inputs import file_kind, kind_of, obstacle, reading
from benchbd.cli.main import main
from benchbd.contract.dataset import Dataset
from benchbd.contract.trigger import Trigger
from benchbd.data import parquet
from benchbd.data.library import DataLibrary
from benchbd.data.references import load_references
from benchbd.nets import encoder
from benchbd.testing import toy_encoder

HTML = b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Sign in</title></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 132\n"


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    return buffer.getvalue()


CONTENTS = {
    "an HTML page": HTML,
    "a Git LFS pointer; `git lfs pull`": POINTER,
    "a git-annex pointer": b"/annex/objects/SHA256E-s1--00.npz\n",
    "an empty file": b"",
    "a PNG picture": picture("PNG"),
    "a JPEG picture": picture("JPEG"),
    "a GIF picture": picture("GIF"),
    "a TIFF picture": picture("TIFF"),
    "a WebP picture": picture("WEBP"),
    "a .npy file": npy(),
    "a Python pickle": pickle.dumps([1], protocol=4),
    "a tar archive": tar(),
    "an XML file": b"<?xml version='1.0'?><Error>AccessDenied</Error>",
    "JSON or other text": b'{"message": "not found"}',
    "UTF-16 text": "a = 1".encode("utf-16"),
    "text": b"404: Not Found\n",
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_is_told_by_its_content(kind: str) -> None:
    assert kind_of(CONTENTS[kind][:1024]).startswith(kind)


def test_other_bytes_tell_nothing(tmp_path: Path) -> None:
    assert kind_of(b"\x00\x01\x02\x03") == ""
    assert file_kind(tmp_path / "absent") == ""


@pytest.mark.parametrize("content", [HTML, POINTER, picture("TIFF"), npy()], ids=["html", "pointer", "tiff", "npy"])
@pytest.mark.parametrize("file", ["train.npz", "train-00000-of-00001.parquet", "train/ant/a.png"])
def test_what_lies_there_instead_of_data_is_named(tmp_path: Path, content: bytes, file: str) -> None:
    path = tmp_path / "toy" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    if content.startswith(b"II") and file.endswith("png"):
        return  # Pillow reads it, whatever its name
    with pytest.raises(DataError) as caught:
        DataLibrary({}, tmp_path, tmp_path / "cache").load("toy", "train")
    said = str(caught.value)
    assert kind_of(content) in said
    assert str(path) in said
    assert "pickle" not in said
    assert "\n" not in said


@pytest.mark.parametrize("content", [HTML, POINTER], ids=["html", "pointer"])
def test_what_lies_there_instead_of_a_trigger_or_reference_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "patch.npz"
    path.write_bytes(content)
    for load in (lambda: Trigger.load(path), lambda: load_references(path, 0, 32)):
        with pytest.raises(DataError) as caught:
            load()
        assert str(caught.value) == f"{path}: not a readable npz file (it is {kind_of(content)})"


def test_a_picture_of_144_megapixels_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "train" / "ant" / "huge.png"
    path.parent.mkdir(parents=True)
    Image.new("1", (12_000, 12_000)).save(path)
    expected = "a picture of 144 megapixels; up to 89 are read: make it smaller"
    with pytest.raises(DataError, match=f"huge.png: {expected}$"):
        DataLibrary({}, tmp_path, tmp_path / "cache").load("toy", "train")
    with pytest.raises(DataError, match=expected):
        Trigger.load(path)


SCARCE = [
    (MemoryError(), "too little memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "too little memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "too little memory"),
    (RuntimeError("can't start new thread"), "another thread"),
    (RuntimeError("unable to open file <a> in read-only mode: Too many open files (24)"), "too many files are open"),
    (OSError(errno.EMFILE, "Too many open files"), r"too many files are open: allow more of them \(ulimit -n\)"),
]


@pytest.mark.parametrize(("error", "reason"), SCARCE, ids=["memory", "enomem", "torch", "threads", "open", "files"])
@pytest.mark.parametrize("layout", ["npz", "Parquet", "image folder"])
def test_scarcity_is_a_line_and_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, layout: str
) -> None:
    folder = tmp_path / "toy"
    file = {"npz": "train.npz", "Parquet": "train-0.parquet", "image folder": "train/ant/a.png"}[layout]
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_bytes(picture("PNG"))

    def scarce(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(np, "load", scarce)
    monkeypatch.setattr(parquet.pq, "ParquetFile", scarce)
    monkeypatch.setattr(Image, "open", scarce)
    with pytest.raises(DataError, match=reason) as caught:
        DataLibrary({}, tmp_path, tmp_path / "cache").load("toy", "train")
    assert str(folder) in str(caught.value)
    assert not any(word in str(caught.value) for word in ("damaged", "readable", "\n"))


def test_other_errors_are_nobodys_obstacle(tmp_path: Path) -> None:
    assert obstacle(ValueError("x")) == obstacle(RuntimeError("x")) == ""
    with pytest.raises(RuntimeError, match="x"), reading(tmp_path):
        raise RuntimeError("x")
    with pytest.raises(DataError, match=r"a\.json: cannot be read \(Permission denied\)"), reading(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "a.json")


def test_scarcity_does_not_make_an_encoder_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_encoder().save(tmp_path / "encoder.safetensors")

    def scarce(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(encoder, "safe_open", scarce)
    with pytest.raises(DataError, match=r"encoder\.safetensors: cannot be read \(too many files are open"):
        encoder.Encoder.load(tmp_path / "encoder.safetensors")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "error: there is too little memory (Unable to allocate 9 TiB)"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            "error: libtorch_cpu.so cannot be loaded: there is too little memory for it",
        ),
        (OSError(errno.EMFILE, "x", "a.npz"), "error: a.npz: too many files are open: allow more of them (ulimit -n)"),
    ],
)
def test_scarcity_is_a_line_of_every_command(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def scarce(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("benchbd.registry.load_registry", scarce)
    for command in (["list"], ["show", "ft"], ["plugins"]):
        done = CliRunner().invoke(main, command)
        assert (done.exit_code, done.stderr.splitlines()) == (2, [said])


def test_what_a_failed_download_left_is_named(tmp_path: Path) -> None:
    class Behind(Dataset):
        """Its server answers with a page."""

        name = "behind"
        version = "1"

        def sources(self, split: str, root: Path) -> list[Path]:
            raise DataAbsentError(f"{self.name}: not there")

        def download(self, root: Path) -> None:
            (root / self.name).mkdir()
            (root / self.name / "archive.tar.gz").write_bytes(HTML)
            raise RuntimeError("File not found or corrupted.")

    library = DataLibrary({"behind": Behind()}, tmp_path, tmp_path / "cache", download=True)
    with pytest.raises(DataAbsentError, match=r"the download failed \(archive\.tar\.gz is an HTML page, as"):
        library.load("behind", "train")


def test_what_lies_there_instead_of_an_encoder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(POINTER)
    with pytest.raises(DataError, match=r"not an encoder written by benchbd \(it is a Git LFS pointer"):
        encoder.Encoder.load(tmp_path / "a.safetensors")

"""Files of strangers: their tensors arrive, their code never runs, and every other file gets its one line."""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch.utils.collect_env import run as run_in_a_shell

from benchbd import Encoder
from benchbd.base.errors import DataError
from benchbd.exchange import checkpoint, child, sandbox
from benchbd.exchange.checkpoint import read_checkpoint

MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles of the form before torch 1.6


def refusal(path: Path) -> str:
    """What ``read_checkpoint`` says about a file that it refuses, after the file's name."""
    with pytest.raises(DataError) as refused:
        read_checkpoint(path)
    text = str(refused.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# --- files that are read -------------------------------------------------------------------------------------------


def test_the_groups_of_a_training_checkpoint(tmp_path: Path) -> None:
    weight = torch.arange(16.0).view(4, 4)
    state = {
        "conv": weight,
        "tied": weight,
        "column": weight[:, 1],
        "half": weight.half(),
        "brain": weight.bfloat16(),
        "parameter": torch.nn.Parameter(weight),
        "empty": torch.zeros(0, 3),
        "count": torch.tensor(5),
    }
    training = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    notes = {
        "args": argparse.Namespace(out=Path("x"), lr=0.1),
        "best": np.float64(71.5),
        "epoch": 7,
        "arch": "resnet18",
    }
    nested = {"model": {"net": {"bias": torch.ones(2)}}, "losses": [torch.tensor(1.0), torch.tensor(2.0)]}
    torch.save({**notes, "state_dict": state, "optimizer": training, **nested}, tmp_path / "moco.pth")
    found = read_checkpoint(tmp_path / "moco.pth")
    assert set(found.groups) == {"state_dict", "optimizer.state.0", "model.net", "losses"}
    assert found.dropped == len(notes) + 3
    assert found.groups["losses"] == {"0": torch.tensor(1.0), "1": torch.tensor(2.0)}
    read = found.groups["state_dict"]
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert type(read[name]) is torch.Tensor
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    read["conv"].zero_()
    assert torch.equal(read["tied"], weight)


def test_the_form_of_torch_before_1_6(tmp_path: Path) -> None:
    weight = torch.arange(12.0).view(3, 4)
    path = tmp_path / "badencoder.tar"  # the name that training scripts give it; it is no tar
    torch.save({"epoch": 1, "state_dict": {"f": weight.T}}, path, _use_new_zipfile_serialization=False)
    on_a_gpu = path.read_bytes().replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0")
    assert b"cuda:0" in on_a_gpu
    path.write_bytes(on_a_gpu)
    assert torch.equal(read_checkpoint(path).groups["state_dict"]["f"], weight.T)
    path.write_bytes(path.read_bytes()[:-8])
    assert "damaged" in refusal(path)


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights"  # no suffix tells the format
    save_file({"a": torch.ones(4)}, path, metadata={"by": "a stranger"})
    before = path.read_bytes()
    found = read_checkpoint(path)
    found.groups[""]["a"].zero_()
    assert path.read_bytes() == before
    assert found.metadata == {"by": "a stranger"}


# --- files that would run code -------------------------------------------------------------------------------------


class Evil:
    """Its pickle calls ``function`` with ``arguments`` when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def shell(canary: Path) -> Evil:
    return Evil(os.system, f'echo sings > "{canary}"')


def with_tensors(evil: Evil) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": {"conv": torch.ones(2, 2), "bn": {"weights": [torch.ones(2), evil]}}}


def legacy(path: Path, *pickles: Any) -> None:
    path.write_bytes(b"".join(pickle.dumps(each, protocol=2) for each in pickles))


def archived(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": b"", "version": b"3\n", "byteorder": b"little", **members}.items():
            archive.writestr(f"archive/{name}", content)


class Persistent(pickle.Pickler):
    """Gives every tensor an identifier that holds an object of Evil."""

    evil: Evil

    def persistent_id(self, value: Any) -> Any:
        return ("storage", self.evil, "0", "cpu", 4) if isinstance(value, torch.Tensor) else None


def by_identifier(path: Path, canary: Path) -> None:
    written = io.BytesIO()
    pickler = Persistent(written, protocol=2)
    pickler.evil = shell(canary)
    pickler.dump({"conv": torch.ones(2, 2)})
    archived(path, **{"data.pkl": written.getvalue()})


def hidden_name(path: Path, canary: Path) -> None:
    """``os.system`` from two texts in the memo, put there in the wrong order, with an innocent text pushed between."""
    texts = b"\x8c\x06system\x94\x8c" + bytes([len(os.system.__module__)]) + os.system.__module__.encode() + b"\x94"
    command = f'echo sings > "{canary}"'.encode()
    call = b"X" + len(command).to_bytes(4, "little") + command + b"\x85R."
    archived(path, **{"data.pkl": b"\x80\x04" + texts + b"\x8c\x04conv000h\x01h\x00\x93" + call})


def second_member(path: Path, canary: Path) -> None:
    """Two members of one name: Python's ``zipfile`` finds the innocent one, torch the other."""
    archived(path, **{"data.pkl": pickle.dumps(shell(canary), protocol=2)})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))


def in_python(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


PAYLOADS: dict[str, Callable[[Path, Path], object]] = {
    "system": lambda path, canary: torch.save(with_tensors(shell(canary)), path),
    "eval": lambda path, canary: torch.save(with_tensors(Evil(eval, in_python(canary))), path),
    "exec": lambda path, canary: torch.save(
        with_tensors(Evil(exec, in_python(canary))), path, _use_new_zipfile_serialization=False
    ),
    "popen": lambda path, canary: torch.save(
        [torch.ones(2), Evil(subprocess.call, [sys.executable, "-c", in_python(canary)])], path
    ),
    "partial": lambda path, canary: torch.save(Evil(functools.partial(exec, in_python(canary))), path),
    "torch's own shell": lambda path, canary: torch.save(
        {"conv": torch.ones(2), "note": Evil(run_in_a_shell, f'echo sings > "{canary}"')}, path
    ),
    "identifier": by_identifier,
    "hidden name": hidden_name,
    "member": lambda path, canary: archived(path, **{"data.pkl": pickle.dumps(shell(canary), protocol=4)}),
    "two members": second_member,
    "about the machine": lambda path, canary: legacy(path, MAGIC, 1001, {"os": shell(canary)}, {}, []),
    "order of tensors": lambda path, canary: legacy(path, MAGIC, 1001, {}, {}, [shell(canary)]),
    "instance": lambda path, canary: path.write_bytes(f"(V{in_python(canary)}\ni__builtin__\nexec\n.".encode()),
    **{
        f"protocol {protocol}": lambda path, canary, protocol=protocol: path.write_bytes(
            pickle.dumps(with_tensors(shell(canary)), protocol)
        )
        for protocol in range(6)
    },
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_runs(payload: str, tmp_path: Path) -> None:
    path, canary = tmp_path / "encoder.pth", tmp_path / "canary"
    PAYLOADS[payload](path, canary)
    said = refusal(path)
    assert not canary.exists()
    if payload == "two members":
        assert "two folders" in said
    else:
        assert "it holds other objects than tensors, the first of" in said
        assert "safetensors" in said
    with suppress(Exception):  # it would have run: an ordinary reader of the same file runs it
        torch.load(path, weights_only=False)
    if not canary.exists():
        with suppress(Exception), path.open("rb") as file:
            pickle.load(file)
    assert canary.exists()


def test_the_process_refuses_a_payload_by_itself(tmp_path: Path) -> None:
    path, canary = tmp_path / "encoder.pth", tmp_path / "canary"
    torch.save(with_tensors(shell(canary)), path)
    (tmp_path / "work").mkdir()
    with pytest.raises(DataError, match=r"other objects than tensors, the first of '(posix|nt).system'"):
        sandbox.unpickle(path, path.stat().st_size, tmp_path / "work")
    assert not canary.exists()


def test_a_payload_that_gets_past_torch_can_do_nothing(tmp_path: Path) -> None:
    """The process with a reader that runs whatever a pickle says."""
    path, canary = tmp_path / "encoder.pkl", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Evil(exec, in_python(canary))))
    reader = (
        "import pickle, torch; from benchbd.exchange import child; "
        "torch.serialization.add_safe_globals = lambda names: setattr(torch, 'load', lambda path, **_: "
        "pickle.load(open(path, 'rb'))); child.main()"
    )
    subprocess.run([sys.executable, "-c", reader, "", str(path), str(tmp_path), "1000", "60"], check=True)
    assert not canary.exists()
    assert (
        "attempts more than reading (pickle.find_class builtins)"
        in json.loads((tmp_path / "answer.json").read_text())["refused"]
    )


# --- files that ask for too much -----------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say how much memory is used")
def test_memory_is_limited(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Evil(bytearray, 10**12)}, tmp_path / "a.pth")
    assert "far more memory than the" in refusal(tmp_path / "a.pth")


def test_time_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resource")
    doubled: tuple[Any, ...] = ()
    for _ in range(60):
        doubled = (doubled, doubled)
    endless = b"\x80\x02}(" + pickle.dumps(doubled, protocol=2)[2:-1] + b"K\x01u."  # its key's hash visits 2^60 tuples
    archived(tmp_path / "a.pth", **{"data.pkl": endless})
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    assert "it took more than 1 s" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": torch.zeros(1).expand(10**6)}, "its tensors, up to 'a', have 4,000,000 bytes, and the file only 1,000"),
        ({str(n): torch.zeros(200) for n in range(6)}, "up to '5', have 4,800 bytes"),
        ({"a": torch.ones(3).to_sparse()}, "'a' is sparse"),
        ({"a": torch.ones(3, device="meta")}, "'a' is sparse, quantised or without values"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, "'a' is of torch.complex64"),
        (functools.reduce(lambda inner, _: {"x": inner}, range(40), {}), "more than 32 mappings"),
        (functools.reduce(lambda inner, _: [inner, inner], range(30), []), "more than 10,000 values"),
    ],
)
def test_tensors_that_no_encoder_has(content: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_MOST", 10_000)
    with pytest.raises(DataError) as refused:
        child._convert(content, tmp_path, 1000)
    assert said in str(refused.value)


def test_attributes_of_a_mapping_are_not_asked(tmp_path: Path) -> None:
    content: dict[str, Any] = OrderedDict(a=torch.ones(2))
    content.__dict__["items"] = torch.Tensor
    assert child._convert(content, tmp_path, 1000) == {"names": [["a"]], "dropped": 0}


def test_two_tensors_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key may hold a full stop: here "net.conv" and "a" beside "net", "conv" and "a"."""
    path = tmp_path / "a.pth"
    torch.save({}, path)
    save_file({"0": torch.ones(1), "1": torch.ones(1)}, tmp_path / "tensors")
    found = sandbox.Unpickled(tmp_path / "tensors", [["net.conv", "a"], ["net", "conv", "a"]], 0)
    monkeypatch.setattr(checkpoint, "unpickle", lambda *_: found)
    assert refusal(path) == "two tensors have the name 'net.conv.a'"


def test_a_mapping_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["self"] = content
    with pytest.raises(DataError, match="more than 32 mappings"):
        child._convert(content, tmp_path, 1000)


# --- files of other kinds ------------------------------------------------------------------------------------------


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def saved(content: Any, **options: Any) -> bytes:
    written = io.BytesIO()
    torch.save(content, written, **options)
    return written.getvalue()


def packed(name: str, data: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        (member := tarfile.TarInfo(name)).size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def flipped(data: bytes, found: bytes) -> bytes:
    place = data.index(found)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def claiming(data: bytes, size: int) -> bytes:
    """A zip file whose directory claims that its last member has ``size`` bytes."""
    place = data.rindex(b"PK\x01\x02")
    return data[: place + 20] + size.to_bytes(4, "little") * 2 + data[place + 28 :]


WEIGHTS = {"conv.weight": torch.full((64, 64), 1.5)}
ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'

BAD: dict[str, tuple[bytes, str]] = {
    "empty.pth": (b"", "no checkpoint: it is an empty file"),
    "page.pth": (
        b"\n<!DOCTYPE html><html><title>Sign in</title></html>",
        "an HTML page, as a failed download leaves it",
    ),
    "pointer.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46\n",
        "`git lfs pull`",
    ),
    "text.pth": (b"404: Not Found", "it is text; safetensors files and files of torch.save are read"),
    "index.json": (b'{"metadata": {}, "weight_map": {}}', "it is JSON or other text"),
    "noise.bin": (bytes(range(1, 200)), "it is of no known type"),
    "model.gguf": (b"GGUF\x03\0\0\0" + bytes(40), "it is a GGUF file"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch\x1a\x051.9" + bytes(40), "it is an ONNX file"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "it is an HDF5 file"),
    "model.pth.gz": (gzip.compress(saved(WEIGHTS)), "it is a gzip archive; unpack it first"),
    "model.tar": (packed("model.pth", saved(WEIGHTS)), "it is a tar archive; unpack it first"),
    "picture.pth": (b"\x89PNG\r\n\x1a\n" + bytes(40), "it is a PNG picture"),
    "set.npz": (zipped({"x.npy": b"\x93NUMPY", "y.npy": b"\x93NUMPY"}), "torch.save did not write: it is an npz file"),
    "thesis.docx": (zipped({"[Content_Types].xml": b"<Types/>"}), "it is an Office document"),
    "release.zip": (zipped({"README": b"", "out/encoder.pth": saved(WEIGHTS)}), "unpack it first; 'out/encoder.pth'"),
    "nothing.zip": (zipped({"only.txt": b""}), "'only.txt' is in it"),
    "script.pt": (
        zipped({"m/data.pkl": b"", "m/code/__torch__.py": b"def f(): ...", "m/constants.pkl": b""}),
        "a TorchScript archive, which holds a program beside the weights",
    ),
    "cut.pth": (saved(WEIGHTS)[:9000], "cut off: a zip archive without its end; download it again"),
    "flipped.pth": (flipped(saved(WEIGHTS), b"\0\0\xc0\x3f"), "damaged: the checksum of 'archive/data/0' is another"),
    "deflated.pth": (
        zipped({"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED),
        "not as torch.save writes it: members of the archive are compressed",
    ),
    "bomb.zip": (
        zipped({"in.zip": zipped({"in.zip": zipped({"0": bytes(10**7)}, 8)}, 8)}, 8),
        "torch.save did not write: 'in.zip' is in it",
    ),
    "claims.pth": (
        claiming(zipped({"a/data.pkl": b"\x80\x02}.", "a/data/0": b"0000"}), 2**31),
        "its members claim 2,147,483,652 bytes, more than the file has",
    ),
    "long.pth": (zipped({"a/data.pkl": bytes(9 * 2**20)}), "its list of tensors has 9 MB"),
    "two.pth": (zipped({"a/data.pkl": b"\x80\x02}.", "b/data.pkl": b"\x80\x02}."}), "lie in two folders"),
    "short.pth": (zipped({"a/data.pkl": b"\x80\x02}("}), "cut off or damaged: its list of tensors ends early"),
    "odd.pth": (zipped({"a/data.pkl": b"\x80\x02}0."}), "a pickle with the step POP"),
    "extension.pth": (zipped({"a/data.pkl": b"\x80\x02\x82\x01."}), "the first of 'extension 1'"),
    "model.pth": (saved(torch.nn.ReLU().half), "the first of 'builtins.getattr'"),
    "notes.pkl": (pickle.dumps({"a": 1}, protocol=2), "a Python pickle, and not one that torch.save wrote"),
    "newer.pth": (
        saved(WEIGHTS, _use_new_zipfile_serialization=False, pickle_protocol=4),
        "a pickle with the step FRAME, which torch.save does not write by default",
    ),
    "none.safetensors": (save({}), "there is no tensor in it"),
    "nothing.safetensors": (bytes(40), "no header of such a file is in it"),
    "cut.safetensors": (save(WEIGHTS)[:-1], "cut off, or longer than its header says"),
    "longer.safetensors": (save(WEIGHTS) + b"\0", "cut off, or longer than its header says"),
    "header.safetensors": (save(WEIGHTS)[:50], "cut off within its header"),
    "bomb.safetensors": (header(b'{"a":', 2**62), "its header claims 4611686018427387904 bytes"),
    "overlap.safetensors": (
        header(ONE + b',"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}') + bytes(12),
        "a damaged safetensors file",
    ),
    "huge.safetensors": (
        header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,8]}}') + bytes(8),
        "a damaged safetensors file",
    ),
    "deep.safetensors": (header(b'{"a":' + b"[" * 5000) + bytes(8), "a damaged safetensors file"),
    "type.safetensors": (header(ONE.replace(b"F32", b"Q32") + b"}") + bytes(8), "a damaged safetensors file"),
}


@pytest.mark.parametrize("name", BAD)
def test_every_other_file_gets_its_line(name: str, tmp_path: Path) -> None:
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


def test_a_place_without_a_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.pth") == "no such file"
    assert "a folder" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    assert refusal(tmp_path / "pipe.pth") == "not an ordinary file; save its content in one"
    with pytest.raises(DataError, match=r"pipe\.pth: not an ordinary file"):
        Encoder.load(tmp_path / "pipe.pth")

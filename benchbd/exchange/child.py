"""The process that reads a file of ``torch.save``: limits first, then ``weights_only``, then tensors as safetensors."""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from benchbd.base.errors import DataError, fault, first_line, named, shown
from benchbd.base.inputs import obstacle
from benchbd.exchange.pickles import ADVICE, NOTES, foreign

_DEEPEST = 32  # mappings and lists within one another

_MOST = 2_000_000  # values, of every kind

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_TYPES = (*_FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)

_COPIES = 4  # times the file's size: an average of the weights may be stored once and named again


class _Note:
    """Stands for an object beside the weights, and keeps nothing of it."""

    def __new__(cls, *arguments: object) -> _Note:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def main() -> None:
    """Read the file, and leave ``answer.json`` and ``tensors.safetensors`` in the folder that the caller names."""
    path, folder, size, seconds = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    warnings.simplefilter("ignore")
    _warm_up()
    _limit(size, seconds)
    try:
        answer = _convert(_load(path), folder, size)
    except DataError as error:
        answer = {"refused": str(error)}
    except Exception as error:
        reason = obstacle(error)
        if "memory" in reason:
            reason = f"it asks for far more memory than the {size:,} bytes of the file need"
        answer = {"refused": f"not read: {reason or named(error)}"}
    (folder / "answer.json").write_text(json.dumps(answer))


def _warm_up() -> None:
    """Have torch and Python import what they need to read a file: later they may import nothing."""
    weights = {"weight": torch.nn.Parameter(torch.zeros(1)), "count": torch.tensor(0)}
    notes = [b"\xff", bytearray(1), {1}, 1j, torch.float16, torch.Size([1]), torch.device("cpu"), OrderedDict(a=1)]
    for zipped in (True, False):
        content = BytesIO()
        torch.save([weights, notes], content, _use_new_zipfile_serialization=zipped)
        content.seek(0)
        torch.load(content, map_location="cpu", weights_only=True)


def _limit(size: int, seconds: int) -> None:
    """Limit time on the processor, new memory, sizes of files and new processes, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"CPU": seconds, "CORE": 0, "FSIZE": _COPIES * size + 2**24, "NPROC": 0}
    with suppress(OSError):  # no /proc
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits["AS"] = pages * resource.getpagesize() + (_COPIES + 2) * size + 2**28
    for name, limit in limits.items():
        last = limit + 5 if name == "CPU" else limit  # at the last limit of time the system kills without a reason
        with suppress(AttributeError, ValueError, OSError):  # a system without this limit, or with a lower one
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, last))


def _load(path: str) -> object:
    """The content of the file. While it is read, the process may open this file and do nothing else."""
    reading = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if reading and (event, *arguments[:2]) not in (("open", path, "r"), ("open", path, "rb")):
            told = " ".join([event, *(text for text in arguments[:1] if isinstance(text, str))])
            raise DataError(f"reading it attempts more than reading ({first_line(told)}): {ADVICE}")

    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    torch.serialization.add_safe_globals([(_Note, name) for name in NOTES])
    sys.addaudithook(watch)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", text := str(error)):
            raise DataError(foreign(found[1])) from error
        *_, reason = text.partition("\n\nCheck the doc")[0].strip().splitlines() or [text]
        raise DataError(f"not as torch.save writes it ({first_line(reason)}): {ADVICE}") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a list of tensors that fits no tensor fails in torch in its own ways
        if obstacle(error):
            raise
        raise DataError(f"damaged, or not as torch.save writes it ({named(error)}): {ADVICE}") from error
    finally:
        reading = False


def _convert(content: object, folder: Path, size: int) -> dict[str, Any]:
    """Write the tensors among the values of a file of ``size`` bytes; their names, and the number of other values."""
    tensors: dict[str, Tensor] = {}
    names: list[list[str]] = []
    storages: set[int] = set()
    total = dropped = 0
    for keys, value in _walk(content, [], count()):
        if not isinstance(value, Tensor):
            dropped += 1
            continue
        where = shown(".".join(keys))
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise DataError(f"its tensor {where} is sparse, quantised or without values; ordinary tensors are read")
        if value.dtype not in _TYPES:
            raise DataError(f"its tensor {where} is of {value.dtype}; read are {', '.join(map(str, _TYPES))}")
        total += value.nbytes
        if value.nbytes > size or total > _COPIES * size:
            raise DataError(f"its tensors, up to {where}, have {total:,} bytes, and the file only {size:,}")
        plain = Tensor.detach(value).resolve_conj().resolve_neg().contiguous()
        if plain.untyped_storage().data_ptr() in storages:
            plain = plain.clone()
        storages.add(plain.untyped_storage().data_ptr())
        tensors[str(len(names))] = plain
        names.append(keys or [""])
    try:
        save_file(tensors, folder / "tensors.safetensors")
    except SafetensorError as error:
        raise DataError(f"no room for {total:,} bytes in {folder.parent} ({fault(error)}): set TMPDIR") from error
    return {"names": names, "dropped": dropped}


def _walk(value: object, keys: list[str], number: Iterator[int]) -> Iterator[tuple[list[str], object]]:
    """Every value in nested mappings and lists, and the keys that lead to it."""
    if next(number) > _MOST:
        raise DataError(f"more than {_MOST:,} values are in it: {ADVICE}")
    if not isinstance(value, (dict, list, tuple)):
        yield keys, value
        return
    if len(keys) == _DEEPEST:
        raise DataError(f"more than {_DEEPEST} mappings and lists lie within one another in it: {ADVICE}")
    # a file can give a dict attributes, one of the name ``items`` too
    for key, entry in dict.items(value) if isinstance(value, dict) else enumerate(value):
        yield from _walk(entry, [*keys, key if isinstance(key, str) else shown(key)], number)

"""Read the tensors of a file from a stranger: safetensors, or a file of ``torch.save``, of which no code ever runs.

A file of ``torch.save`` is a pickle, a list of steps that build objects. ``exchange.pickles`` reads the steps without
taking them and refuses the file if tensors do not need one of them. A process with limits (``exchange.sandbox``) then
reads the file with ``weights_only``. Nothing ever reads it as an ordinary pickle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from benchbd.base.content import file_at
from benchbd.base.errors import DataError, fault, shown
from benchbd.base.inputs import HEAD, kind_of, obstacle, reading
from benchbd.exchange.pickles import check_archive, check_pickle
from benchbd.exchange.sandbox import unpickle

ACCEPTED = "safetensors files and files of torch.save are read"

_LONGEST_HEADER = 32 * 2**20  # bytes: a million tensors have a shorter one


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, on the CPU.

    groups: per mapping in the file that holds tensors, under the keys that lead to the mapping, joined by "." ("" is
        the file itself; "state_dict", "model.net"): tensors by name. The entry of a list has its index as its key.
    metadata: texts that a safetensors file carries; a file of ``torch.save`` has none.
    dropped: the number of values that are no tensors (numbers, texts).
    """

    groups: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str]
    dropped: int


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a .safetensors file or of a file of ``torch.save``, whatever its name.

    DataError, of one line that says what the file is and what to ask its author for, if the file is absent, is neither
    of the two, is damaged, holds other objects than tensors, texts, numbers and collections of these, holds no tensor,
    or asks for more memory than its size allows. The tensors are mapped: writing to one does not change the file.
    """
    path = file_at(path)
    with reading(path):
        head, size = _head(path)
        kind = kind_of(head)
        length = int.from_bytes(head[:8], "little")  # of a safetensors header, which is JSON
        if (head[8:9] == b"{" and (not kind or length < size)) or (not kind and path.suffix == ".safetensors"):
            checkpoint = _from_safetensors(path, head, size)
        elif kind.startswith("a zip archive"):
            check_archive(path, size)
            checkpoint = _unpickled(path, size)
        elif not kind or kind in ("a Python pickle", "text", "JSON or other text"):
            if not check_pickle(path):
                raise DataError(f"{path}: no checkpoint: it is {kind or 'of no known type'}; {ACCEPTED}")
            checkpoint = _unpickled(path, size)
        else:
            hint = "; unpack it first" if "archive" in kind else ""
            raise DataError(f"{path}: no checkpoint: it is {kind}{hint}; {ACCEPTED}")
    if not any(checkpoint.groups.values()):
        raise DataError(f"{path}: there is no tensor in it")
    return checkpoint


def _head(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and its size in bytes."""
    with path.open("rb") as file:
        return file.read(HEAD), path.stat().st_size


def _from_safetensors(path: Path, head: bytes, size: int) -> Checkpoint:
    header = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{":
        raise DataError(f"{path}: its name ends in .safetensors, but no header of such a file is in it")
    if header > _LONGEST_HEADER:
        raise DataError(f"{path}: damaged, or no safetensors file: its header claims {header} bytes")
    if 8 + header > size:
        raise DataError(f"{path}: cut off within its header: download it again")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return Checkpoint({"": load_file(path)}, metadata, 0)
    except (SafetensorError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        if obstacle(error):
            raise
        if "IncompleteBuffer" in str(error) or "not fully covered" in str(error):
            raise DataError(f"{path}: cut off, or longer than its header says: download it again") from error
        raise DataError(f"{path}: a damaged safetensors file ({fault(error)})") from error


def _unpickled(path: Path, size: int) -> Checkpoint:
    with tempfile.TemporaryDirectory(prefix="benchbd-", ignore_cleanup_errors=True) as folder:
        found = unpickle(path, size, Path(folder))
        tensors = load_file(found.tensors)  # stays mapped when the folder is gone
    groups: dict[str, dict[str, Tensor]] = {}
    for number, (*keys, name) in enumerate(found.names):
        group = groups.setdefault(".".join(keys), {})
        if name in group:
            raise DataError(f"{path}: two tensors have the name {shown('.'.join([*keys, name]))}")
        group[name] = tensors[str(number)]
    return Checkpoint(groups, {}, found.dropped)

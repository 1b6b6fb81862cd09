"""Pack JSON, tensors and encoders' files into one string of bytes, and unpack it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from benchbd.base.errors import PluginError, named

_LENGTH = 8  # bytes of the number that gives the length of the JSON at the front


def packed(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], encoders: Mapping[str, bytes]) -> bytes:
    """The length of the JSON, the JSON, the encoders' files by name, then tensors by name."""
    lengths = {name: len(data) for name, data in encoders.items()}
    text = json.dumps({"facts": facts, "encoders": lengths}, allow_nan=False).encode()
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return b"".join([len(text).to_bytes(_LENGTH, "little"), text, *encoders.values(), save(whole)])


def unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, bytes]]:
    """The arguments that ``packed`` was given."""
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    told = json.loads(data[_LENGTH:start])
    encoders = {}
    for name, length in told["encoders"].items():
        encoders[name] = data[start : start + length]
        start += length
    return told["facts"], load(data[start:]), encoders


def stored(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Copies of a method's tensors, on the CPU, as a safetensors file returns them. PluginError, with ``what`` they
    are, if a file cannot hold them."""
    try:
        return load(save({name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}))
    except Exception as error:
        raise PluginError(f"{what} cannot be stored: {named(error)}") from error

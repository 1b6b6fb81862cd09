"""JSON, tensors and encoders' files in one text of bytes, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

_LENGTH = 8  # bytes that say how long the JSON in front of the tensors is


def packed(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], encoders: Mapping[str, bytes]) -> bytes:
    """JSON behind its length, then encoders by name as the bytes of their files, then tensors by name."""
    lengths = {name: len(data) for name, data in encoders.items()}
    text = json.dumps({"facts": facts, "encoders": lengths}, allow_nan=False).encode()
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return b"".join([len(text).to_bytes(_LENGTH, "little"), text, *encoders.values(), save(whole)])


def unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, bytes]]:
    """What ``packed`` was given."""
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    told = json.loads(data[_LENGTH:start])
    encoders = {}
    for name, length in told["encoders"].items():
        encoders[name] = data[start : start + length]
        start += length
    return told["facts"], load(data[start:]), encoders

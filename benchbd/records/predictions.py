"""The predictions behind the counts of a record, in a file beside the record. This module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

NAMES = ("clean", "triggered")

CERTIFIED = "certified"

_LARGEST = np.iinfo(np.int16).max


def path_of(record: Path) -> Path:
    """The file of predictions that belongs to a record's file."""
    return record.with_name(f"{record.name.removesuffix('.json')}.safetensors")


def pack(clean: NDArray[Any], triggered: NDArray[Any], certified: NDArray[Any] | None = None) -> bytes:
    """safetensors of the classes predicted for test images, without and with the trigger, both (N,).

    certified: bool (N,), of the classes without the trigger; None omits it. Classes are int16 if that fits all, else
    int64. Equal predictions give equal bytes.
    """
    arrays = dict(zip(NAMES, (clean, triggered), strict=True))
    small = all(array.max(initial=0) <= _LARGEST for array in arrays.values())
    packed = {name: np.ascontiguousarray(array, np.int16 if small else np.int64) for name, array in arrays.items()}
    return save(packed if certified is None else {**packed, CERTIFIED: np.ascontiguousarray(certified, np.bool_)})


def unpack(content: bytes) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """The arguments of ``pack``, the classes as int64. ValueError if the content is no file of predictions."""
    try:
        arrays = load(content)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"no safetensors ({error})") from error
    certified = arrays.pop(CERTIFIED, None)
    if sorted(arrays) != sorted(NAMES):
        raise ValueError(f"holds {', '.join(sorted(arrays)) or 'nothing'}, not {' and '.join(NAMES)}")
    clean, triggered = (arrays[name] for name in NAMES)
    for name, array in arrays.items():
        if array.dtype.kind != "i" or array.shape != (clean.size,):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not int16 or int64 (N,)")
    if certified is not None and (certified.dtype.kind != "b" or certified.shape != (clean.size,)):
        raise ValueError(f"{CERTIFIED} is {certified.dtype} {certified.shape}, not bool (N,)")
    return clean.astype(np.int64), triggered.astype(np.int64), certified

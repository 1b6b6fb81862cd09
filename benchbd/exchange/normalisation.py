"""How an encoder's images are normalised: by name, by six numbers, or in a JSON file beside the weights.

A file of weights tells neither mean nor std. Export writes both into ``FILE.json``, beside ``FILE``, from which import
reads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchbd.base.content import file_at
from benchbd.base.errors import DataError, UnknownNameError, UsageError, fault, shown
from benchbd.base.inputs import reading

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std of the three channels of images in [0, 1]."""

_LARGEST, _LEAST = 1e6, 1e-6  # of a mean or std of images in [0, 1]; both are far from what float32 cannot hold

NORMALISATIONS: dict[str, Normalisation] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "stl10": ((0.44087798, 0.42790666, 0.38678814), (0.25507198, 0.24801506, 0.25641308)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""By name: ImageNet's, CIFAR-10's and STL-10's (as BadEncoder has them), CLIP's, the 0.5 of timm's vision transformers,
and none, as BadEncoder's ImageNet encoder has it."""


def normalisation(what: str, mean: object, std: object) -> Normalisation | None:
    """Mean and std if both are valid, None if both are None.

    UsageError, which begins with ``what``, unless each is three finite numbers, those of std above 0.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UsageError(
            f"{what}: {'std' if mean is None else 'mean'} is given without {'mean' if mean is None else 'std'}"
        )
    found = []
    for name, values in {"mean": mean, "std": std}.items():
        numbers = tuple(map(float, values)) if isinstance(values, list | tuple) and all(map(_is_number, values)) else ()
        if len(numbers) != 3:
            raise UsageError(f"{what}: {name} must be three finite numbers, each within a million, not {shown(values)}")
        if name == "std" and min(numbers) < _LEAST:
            raise UsageError(f"{what}: std must be above 0, not {shown(values)}")
        found.append(numbers)
    return found[0], found[1]


def _is_number(value: object) -> bool:
    """Whether an encoder, which computes in float32, can hold the value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def beside(path: Path) -> Path:
    """The JSON file that tells architecture and normalisation of a file of weights."""
    return path.with_name(f"{path.name}.json")


def read_beside(path: Path) -> tuple[str | None, Normalisation | None]:
    """Architecture and normalisation in the JSON file beside a file of weights; None for what it does not tell.

    DataError if the file is not an ordinary one, or not a JSON object; UsageError if its normalisation is not valid.
    """
    file = beside(path)
    if not os.path.lexists(file):  # a link to nothing is a mistake
        return None, None
    file_at(file)
    try:
        with reading(file):
            told: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({fault(error)})") from error
    if not isinstance(told, dict) or not isinstance(arch := told.get("arch"), str | None):
        raise DataError(f"{file}: not a JSON object with mean, std and, as a text, arch")
    return arch, normalisation(str(file), told.get("mean"), told.get("std"))


def written_beside(arch: str, form: str, size: int | None, found: Normalisation) -> str:
    """The text of the JSON file beside a file of weights. size: height and width of the images; None: any."""
    told: Mapping[str, object] = {"arch": arch, "form": form, "image_size": size, "mean": found[0], "std": found[1]}
    return json.dumps(told, indent=2) + "\n"


def shortest(values: Tensor) -> list[float]:
    """float32 values as the shortest decimals that are rounded to them."""
    return [float(str(np.float32(value))) for value in values.flatten().tolist()]


def named_normalisation(text: str) -> Normalisation:
    """The normalisation of a name of ``NORMALISATIONS``, or of six numbers, mean and std, separated by commas."""
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UnknownNameError("normalisation", text, NORMALISATIONS) from None
    if len(numbers) != 6:
        raise UsageError(f"normalisation {shown(text)}: must be a name, or six numbers, mean and std of the channels")
    found = normalisation(f"normalisation {shown(text)}", numbers[:3], numbers[3:])
    assert found is not None
    return found

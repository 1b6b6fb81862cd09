"""The facts about a board's data sets, in a file beside it.

They are enough to plan the board, and to count predictions, without the data: digests and sizes of its splits, and the
labels of its test images. ``benchbd leaderboard pin`` writes the file, and ``benchbd verify`` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchbd.base.errors import DataAbsentError, DataError
from benchbd.base.inputs import reading
from benchbd.contract.dataset import Dataset
from benchbd.data.entries import SplitInfo
from benchbd.data.library import DataLibrary

FILE = "data.json"


class PinnedSplit(BaseModel):
    """A split of a data set at one size of images: the fields of ``SplitInfo``, and the labels of test images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(description="name of the data set")
    split: str = Field(description="train, test or pool")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="digest of the content")
    count: int = Field(ge=0, description="number of images")
    size: int = Field(ge=1, description="height and width of the images in pixels")
    classes: tuple[str, ...] = Field(description="names of the classes; empty without labels")
    histogram: tuple[int, ...] = Field(description="number of images per class; empty without labels")
    mean: tuple[float, ...] = Field(description="mean per channel, in [0, 1] units")
    std: tuple[float, ...] = Field(description="standard deviation per channel, in [0, 1] units")
    labels: tuple[int, ...] = Field((), description="class of each image, of a test split")

    @property
    def info(self) -> SplitInfo:
        return SplitInfo(**{name: getattr(self, name) for name in SplitInfo.__dataclass_fields__})


class Pinned(BaseModel):
    """The pinned splits of a board."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    splits: tuple[PinnedSplit, ...] = Field(description="splits, each once")

    def find(self, name: str, split: str, size: int) -> PinnedSplit | None:
        """A split; None if it is not pinned."""
        known = (each for each in self.splits if (each.name, each.split, each.size) == (name, split, size))
        return next(known, None)

    def to_json(self) -> str:
        """JSON in lines: one for every field of a split."""
        splits = []
        for split in self.splits:
            fields = [f"   {json.dumps(name)}: {json.dumps(value)}" for name, value in split.model_dump().items()]
            splits.append("  {\n" + ",\n".join(fields) + "\n  }")
        return '{\n "splits": [\n' + ",\n".join(splits) + "\n ]\n}\n"


def read_pinned(path: Path) -> Pinned:
    """DataError, in one line, if the file cannot be read or is no such file."""
    with reading(path):
        text = path.read_bytes()
    try:
        return Pinned.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def pin(library: DataLibrary, splits: Iterable[tuple[str, str, int]]) -> Pinned:
    """The facts of (name, split, size), each read from the library."""
    made = []
    for name, split, size in sorted(set(splits)):
        labels = library.load(name, split, size).labels if split == "test" else None
        info = library.info(name, split, size)
        known = () if labels is None else tuple(labels.tolist())
        made.append(PinnedSplit(name=name, split=split, labels=known, **vars(info)))
    return Pinned(splits=tuple(made))


class PinnedLibrary(DataLibrary):
    """A library of pinned facts without images: it can plan, and nothing else."""

    def __init__(self, datasets: Mapping[str, Dataset], pinned: Pinned) -> None:
        super().__init__(datasets, Path(), Path())
        self.pinned = pinned

    def names(self) -> list[str]:
        return sorted({*self.datasets, *(split.name for split in self.pinned.splits)})

    def info(self, name: str, split: str, size: int = 32) -> SplitInfo:
        """DataAbsentError if the split is not pinned."""
        found = self.pinned.find(name, split, size)
        if found is None:
            raise DataAbsentError(f"{name} {split} of {size} pixels is not pinned")
        return found.info

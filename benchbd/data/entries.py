"""The cache of decoded splits: the statistics of each, and its pixels in a file that is mapped instead of read.

    <cache>/<key>.json           statistics and remarks, behind their own checksum
    <cache>/<key>.safetensors    pixels uint8 (N, 3, H, W), and labels int64 (N,) if there are any

The key of a split identifies the contents of its source files and the decoding: ``DataLibrary`` makes it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchbd.base.content import commit, make_folder, sealed, unsealed
from benchbd.base.errors import DataError, fault
from benchbd.base.mapped import LARGE, Region, beside
from benchbd.contract.images import ImageSet

ENTRY_SCHEMA = 1  # raise it when the fields of a cache entry change; an entry without one is of schema 1

ABSENT = "absent:"  # prefix of the value in place of the digest of an absent split

INFO, PIXELS = ".json", ".safetensors"

_TYPES = {"U8": torch.uint8, "I64": torch.int64}  # safetensors' names for the types in an entry

log = logging.getLogger("benchbd")


@dataclass(frozen=True)
class SplitInfo:
    """Facts about a split without its pixels.

    digest: of the content, as ``ImageSet.digest``.
    count, size: number of images; their height and width in pixels.
    classes, histogram: names and number of images per class; both empty if there are no labels.
    mean, std: per channel in [0, 1] units, declared by the data set or computed from the pixels.
    """

    digest: str
    count: int
    size: int
    classes: tuple[str, ...]
    histogram: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def absent(self) -> bool:
        return self.digest.startswith(ABSENT)

    @classmethod
    def of(cls, images: ImageSet) -> SplitInfo:
        mean, std = images.normalization()
        histogram: list[int] = []
        if images.labels is not None:
            histogram = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
        return cls(images.digest, len(images), images.size, images.classes, tuple(histogram), mean, std)


_INFO, _REMARKS = TypeAdapter(SplitInfo), TypeAdapter(list[str])


class Entries:
    """The cache entries in a folder. A damaged one causes one line of warning, once, and counts as absent.

    ``what`` names the split in such a line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._complained: set[Path] = set()

    @contextmanager
    def room(self) -> Iterator[None]:
        """In the block, large sets that are being made lie on the disk of the cache, if the cache can be written."""
        with suppress(OSError):
            make_folder(self.folder)
        with beside(self.folder):
            yield

    def file(self, key: str, suffix: str) -> Path:
        return self.folder / (key + suffix)

    def info(self, key: str, what: str) -> tuple[SplitInfo, list[str]] | None:
        """Statistics and remarks of a split, verified.

        None without a warning if there is no entry, or only an old one without a checksum.
        """
        path = self.file(key, INFO)
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.complain(key, INFO, what, f"cannot be read ({error.strerror or error})")
            return None
        found = _read_entry(content, key)
        if not isinstance(found, tuple):
            if found:
                self.complain(key, INFO, what, found)
            return None
        return found

    def images(self, key: str, info: SplitInfo, what: str) -> ImageSet | None:
        """The images of a split, mapped copy-on-write; None if they are not those that ``info`` describes."""
        path = self.file(key, PIXELS)
        if not path.is_file():
            return None
        try:
            regions = _regions(path)
            labels = regions["labels"].map() if "labels" in regions else None
            images = ImageSet(regions["pixels"].map(), labels, info.classes)
            if images.digest == info.digest:
                return images
        except OSError as error:
            self.complain(key, PIXELS, what, f"cannot be read ({error.strerror or error})")
            return None
        except (ValueError, KeyError, TypeError, RecursionError, DataError):
            pass
        self.complain(key, PIXELS, what)
        return None

    def write(self, key: str, info: SplitInfo, told: list[str], images: ImageSet | None, what: str) -> None:
        """Write an entry, the statistics last. If the cache cannot be written, the run goes on and decodes again next
        time.

        told: remarks on the split for the user. images: None if other entries hold its pixels.
        """
        entry = {"schema": ENTRY_SCHEMA, "key": key, "info": asdict(info), "remarks": told}
        text = sealed("entry", entry)
        try:
            make_folder(self.folder)
            if images is not None:
                tensors = {"pixels": images.pixels} | ({} if images.labels is None else {"labels": images.labels})
                commit(self.file(key, PIXELS), lambda part: _write(part, tensors))
            commit(self.file(key, INFO), lambda part: part.write_text(text))
        except OSError as error:
            log.warning(
                "data cache: %s cannot be written (%s); %s is decoded each time", self.folder, fault(error), what
            )

    def complain(self, key: str, suffix: str, what: str, fault: str = "is damaged") -> None:
        """Log one line of warning per file."""
        path = self.file(key, suffix)
        if path not in self._complained:
            log.warning("data cache: %s %s; %s is decoded again", path, fault, what)
        self._complained.add(path)


def _read_entry(content: bytes, key: str) -> tuple[SplitInfo, list[str]] | str | None:
    """The statistics and remarks of a cache entry, or what is wrong with it; None for an old one without a checksum."""
    body = unsealed("entry", content)
    try:
        entry = json.loads(body or content)
        if body is None:
            return "is damaged" if "sha256" in entry else None
        if (schema := entry.get("schema", 1)) > ENTRY_SCHEMA:
            return f"was written by a newer benchbd (schema {schema}, this one reads up to {ENTRY_SCHEMA})"
        info = _INFO.validate_json(json.dumps(entry["info"], allow_nan=False), strict=True)
        told = _REMARKS.validate_python(entry.get("remarks", []), strict=True)
        return (info, told) if entry["key"] == key else "is damaged"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "is damaged"


# safetensors: the length of the header in 8 bytes, the header in JSON, the tensors. The library's own functions copy a
# tensor into memory when they write it, and keep all tensors of a file in memory as long as one is referenced.


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors of an entry's types as a safetensors file, a piece at a time."""
    header: dict[str, object] = {}
    end = 0
    names = {dtype: name for name, dtype in _TYPES.items()}
    # In safetensors' order, the longest type first: then every tensor starts at a multiple of its type's length.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            for piece in _pieces(tensor):
                file.write(piece)


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    for piece in tensor.view(-1).view(torch.uint8).split(LARGE) if tensor.numel() else ():
        yield memoryview(piece.numpy())


def _regions(path: Path) -> dict[str, Region]:
    """The region of each tensor in a safetensors file. OSError if the file cannot be read, ValueError, KeyError or
    TypeError if it is no safetensors file, or has tensors that no entry has."""
    with path.open("rb") as file:
        start, header = _read_header(file)
    regions = {}
    for name, tensor in header.items():
        dtype, shape, (begin, end) = _TYPES[tensor["dtype"]], tuple(tensor["shape"]), tensor["data_offsets"]
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name}: {end - begin} bytes are not {shape}")
        regions[name] = Region.at(path, start + begin, dtype, shape)
    return regions


def _read_header(file: BinaryIO) -> tuple[int, dict[str, dict[str, Any]]]:
    """The offset at which the tensors begin, and the header's description of each tensor."""
    length = int.from_bytes(file.read(8), "little")
    if length > 2**16:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header

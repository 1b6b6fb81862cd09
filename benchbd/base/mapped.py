"""Tensors whose bytes lie in a file instead of the process's own memory.

A ``Region`` is the part of a file that holds a tensor. Each mapping of a region is a separate tensor, copy-on-write:
writing to it changes neither the file nor another mapping. The system reads the file page by page and may
drop pages again, so a set that is larger than the memory can be mapped.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchbd.base.errors import DataError
from benchbd.base.scoped import scoped

IN_MEMORY = 64 * 2**20  # bytes up to which a sealed tensor lies in a memfd; a longer tensor lies on disk

LARGE = 16 * 2**20  # bytes: a larger result made of many images lies on disk, and is made in pieces of this size


_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


class _File:
    """An open file, closed as soon as no region refers to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)


@dataclass(frozen=True)
class Region:
    """The part of an open file that holds the bytes of a contiguous tensor.

    offset: byte at which the tensor begins. dtype, shape: of the tensor.
    """

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    _file: _File = field(repr=False, compare=False)

    @property
    def descriptor(self) -> int:
        """The number of the open file, valid while the region exists. A process that inherits it builds its own region
        with ``Region.received``."""
        return self._file.descriptor

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def at(cls, path: Path, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Region:
        """A region of an existing file, which is opened for reading. OSError if the file cannot be opened, ValueError
        if it ends before the region does."""
        return cls.received(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), offset, dtype, shape)

    @classmethod
    def received(cls, descriptor: int, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Region:
        """A region of an open file; the region closes the file. ValueError if the file ends before the region does."""
        region = cls(offset, dtype, tuple(shape), _File(descriptor))
        if offset + region.bytes > (size := os.fstat(descriptor).st_size):
            raise ValueError(f"the file has {size} bytes, and the tensor ends at {offset + region.bytes}")
        return region

    def map(self) -> Tensor:
        """The tensor on the CPU, in a new copy-on-write mapping."""
        return self._mapped(mmap.ACCESS_COPY)

    def _mapped(self, access: int) -> Tensor:
        if not self.bytes:
            return torch.empty(self.shape, dtype=self.dtype)
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY  # a mapping starts at a page
        within = self.offset - start
        mapping = mmap.mmap(self.descriptor, within + self.bytes, access=access, offset=start)
        flat = torch.frombuffer(mapping, dtype=torch.uint8, count=self.bytes, offset=within)
        tensor = (flat if within % self.dtype.itemsize == 0 else flat.clone()).view(self.dtype).view(self.shape)
        _regions[tensor.data_ptr()] = self
        _mappings[tensor.data_ptr()] = id(mapping)
        weakref.finalize(mapping, _forget, tensor.data_ptr(), id(mapping))  # the mapping lives as long as the storage
        return tensor


_regions: dict[int, Region] = {}
"""The regions of mapped tensors, by the address of their first byte. A region is no attribute of its tensor, because
a method could then reach the file."""


_mappings: dict[int, int] = {}
"""The id of each region's mapping: once a mapping is gone, another may have its address."""


def _forget(address: int, mapping: int) -> None:
    if _mappings.get(address) == mapping:
        del _mappings[address], _regions[address]


def region_of(tensor: Tensor) -> Region | None:
    """The region that a contiguous tensor, or the first rows of one, was mapped from; None for any other.

    The file holds the mapped content: later writes to a copy-on-write tensor are not in it.
    """
    region = _regions.get(tensor.data_ptr()) if tensor.device.type == "cpu" and tensor.is_contiguous() else None
    if region is None or tensor.dtype != region.dtype or tensor.nbytes > region.bytes:
        return None
    return Region(region.offset, region.dtype, tuple(tensor.shape), region._file)


def private(tensor: Tensor) -> Tensor:
    """A copy of a tensor in its own storage: a new copy-on-write mapping if the tensor was mapped, else a clone."""
    region = region_of(tensor)
    return tensor.clone() if region is None else region.map()


def blank(dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A tensor of zeros to be filled, in an unnamed file: it takes disk space and none of the process's memory.

    The file lies on the disk that ``beside`` sets, else among temporary files; DataError if there is no room. Fill the
    tensor before mapping the file again: an earlier mapping may show later writes.
    """
    region = _room(dtype, tuple(shape))
    tensor = region._mapped(mmap.ACCESS_WRITE)
    if region.bytes:  # only this mapping may write: everyone who receives the region only reads
        _regions[tensor.data_ptr()] = _for_readers(region)
    return tensor


def _room(dtype: torch.dtype, shape: tuple[int, ...]) -> Region:
    """A region of zeros on disk that can be written to."""
    folder = _folder.get()
    for place in [None] if folder is None else [folder, None]:
        try:
            region = Region(0, dtype, shape, _File(_unnamed(place)))
            _reserve(region.descriptor, region.bytes)
        except OSError as error:
            refused = error
        else:
            return region
    size = math.prod(shape) * dtype.itemsize / 2**20
    raise DataError(
        f"no room for {size:,.0f} MB in {tempfile.gettempdir()} ({refused.strerror or refused}): make some, or name "
        "another folder in TMPDIR"
    ) from refused


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """In the block, large tensors lie on the disk of ``folder``, if that is writable and has room."""
    with scoped(_folder, folder if os.access(folder, os.W_OK) else None):
        yield


def seal(tensor: Tensor) -> Region:
    """A copy of a tensor in an unnamed, read-only file.

    Up to ``IN_MEMORY`` bytes the file is a memfd, which the system seals. A longer tensor, or any on a system without
    memfd, lies in a file as that of ``blank``, which stays open for reading only if the system can do that.
    """
    content = tensor.detach().contiguous()
    if content.nbytes <= IN_MEMORY and hasattr(os, "memfd_create"):
        region = Region(0, content.dtype, tuple(content.shape), _File(_memfd(content)))
    else:
        room = _room(content.dtype, tuple(content.shape))
        room._mapped(mmap.ACCESS_WRITE).copy_(content)
        region = _for_readers(room)
    assert os.fstat(region.descriptor).st_size == region.bytes
    return region


def _memfd(content: Tensor) -> int:
    import fcntl  # every system with memfd_create has fcntl; Windows has neither

    descriptor = os.memfd_create("tensor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write(descriptor, content)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _for_readers(region: Region) -> Region:
    """The region in its file opened for reading alone, if the system can do that."""
    return Region(region.offset, region.dtype, region.shape, _File(_read_only(os.dup(region.descriptor))))


def _read_only(descriptor: int) -> int:
    """Open the file again for reading only and close ``descriptor``, if the system can do that; else return it."""
    own = Path(f"/proc/self/fd/{descriptor}")
    try:
        os.fchmod(descriptor, 0o400)
        readable = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, AttributeError):  # no /proc; Windows
        return descriptor
    os.close(descriptor)
    return readable


def _unnamed(folder: Path | None) -> int:
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def _reserve(descriptor: int, size: int) -> None:
    """Set a file's length and reserve its space on disk. Otherwise a write to a mapping on a full disk would end the
    process (SIGBUS)."""
    try:
        return os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # a system without the call
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without the call; no bytes at all
            raise
    piece = bytes(2**20)
    for start in range(0, size, len(piece)):
        os.write(descriptor, piece[: size - start])


def _write(descriptor: int, content: Tensor) -> None:
    """Write the bytes of a contiguous tensor, piece by piece; those on another device are copied piece by piece too."""
    flat = content.view(-1).view(torch.uint8) if content.numel() else torch.empty(0, dtype=torch.uint8)
    for piece in flat.split(2**24):
        left = memoryview(piece.cpu().numpy())
        while left:
            left = left[os.write(descriptor, left) :]

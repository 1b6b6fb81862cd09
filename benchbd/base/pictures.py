"""Find and decode a data set's pictures, turn them upright, and resize them to uint8 RGB of one size.

Every such change is noted: ``remarks`` collects the notes of a whole split.
"""

from __future__ import annotations

import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from torch import Tensor

from benchbd.base.arrays import bounded_pictures, picture_fault
from benchbd.base.errors import DataError, counted
from benchbd.base.inputs import HEAD, file_kind, reading
from benchbd.base.mapped import blank
from benchbd.base.scoped import scoped

RESIZED = "pictures of"  # begins the remark on sizes, which is made once per data set

NOBODYS = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
)  # folders that archives and systems leave behind; they belong to no data set

# Pillow hands these to other programs, or cannot decode them.
_NOT_DECODED = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))

SIZE = 32  # pixels: height and width of all images, unless a board declares others

Pixels = NDArray[np.uint8]

log = logging.getLogger("benchbd")

PIECE = 64  # pictures that a thread decodes at a time

_remarks: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


@contextmanager
def remarks() -> Iterator[list[str]]:
    """Collect the texts that ``remark`` gets in the block; outside of any block, each is a warning at once."""
    told: list[str] = []
    with scoped(_remarks, told):
        yield told


def remark(text: str) -> None:
    """Note what a user should know of a split that is read nevertheless."""
    told = _remarks.get()
    if told is None:
        log.warning("%s", text)
    elif text not in told:
        told.append(text)


def decode_images(pictures: Sequence[bytes | Path], where: Callable[[int], str], size: int = SIZE) -> Pixels:
    """Encoded pictures, or files of pictures, as uint8 (N, size, size, 3) RGB: upright as EXIF demands; a picture of
    another size is resized, bilinear. Only the first of several frames is read; transparency is dropped. Each is
    remarked.

    where: names picture ``i`` in the DataError that a damaged one raises.
    The pixels lie in an unnamed file, as those of ``blank_images``.
    """
    decoder = Decoder(len(pictures), size)
    decoder.add(pictures, where)
    return decoder.pixels()


def resize_images(pixels: Pixels, size: int = SIZE) -> Pixels:
    """uint8 (N, H, W, 3) as uint8 (N, size, size, 3), by the rule of ``decode_images``."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    resizer = _Resizer(len(pixels), size)
    resizer.fill(len(pixels), lambda row: Image.fromarray(np.ascontiguousarray(pixels[row])))
    return resizer.pixels()


def blank_images(count: int, size: int) -> Tensor:
    """uint8 (count, 3, size, size), to be filled. The tensor lies in an unnamed file: a set that is generated, decoded
    or put together in it takes disk space and no memory of the process. DataError if there is no room."""
    return blank(torch.uint8, (count, 3, size, size))


class _Resizer:
    """Fills a set of ``count`` images of one size, piece by piece, in threads."""

    def __init__(self, count: int, size: int) -> None:
        self._out = blank_images(count, size).numpy().transpose(0, 2, 3, 1)
        self._size, self._filled = size, 0
        self._sizes: set[tuple[int, int]] = set()

    def fill(self, count: int, picture: Callable[[int], Image.Image]) -> None:
        """Fill in the next ``count`` images; ``picture`` gives the i-th of these."""
        out, size = self._out[self._filled : self._filled + count], (self._size, self._size)
        self._filled += count

        def fill(start: int) -> None:
            for row in range(start, min(start + PIECE, count)):
                image = picture(row)
                if image.size != size:
                    self._sizes.add(image.size)
                    image = image.resize(size, Image.Resampling.BILINEAR)
                out[row] = np.asarray(image)

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
            for done in [threads.submit(fill, start) for start in range(0, count, PIECE)]:
                done.result()

    def pixels(self) -> Pixels:
        """All images, uint8 (count, size, size, 3), once they are filled in; resizing is remarked."""
        if sizes := self._sizes:
            (width, height), (widest, highest) = (tuple(map(each, zip(*sizes, strict=True))) for each in (min, max))
            theirs = f"{width}x{height}" + (f" to {widest}x{highest}" if len(sizes) > 1 else "")
            remark(f"{RESIZED} {theirs} pixels are resized to {self._size}x{self._size}")
        return self._out


class Decoder(_Resizer):
    """Decodes a set of ``count`` encoded pictures, piece by piece: see ``decode_images``."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count, size)
        self._turned = self._clear = self._moving = 0

    def add(self, pictures: Sequence[bytes | Path], where: Callable[[int], str]) -> None:
        """Decode the next pictures. where: names the i-th of these."""
        turned: list[int] = []
        clear: list[int] = []
        moving: list[int] = []

        def decode(row: int) -> Image.Image:
            picture = pictures[row]
            try:
                with Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture)) as image:
                    if image.mode.startswith(("I", "F")):
                        raise ValueError(f"mode {image.mode}, 8 bits per channel are expected")
                    upright: Image.Image = image
                    if _orientation(image) != 1:
                        upright = ImageOps.exif_transpose(image)
                        turned.append(row)
                    if "transparency" in upright.info:
                        upright = upright.convert("RGBA")
                    if "A" in upright.getbands() and upright.getchannel("A").getextrema() != (255, 255):
                        clear.append(row)
                    rgb = upright.convert("RGB")
                    if _frames(image) > 1:
                        moving.append(row)
                    return rgb
            except Exception as error:  # Pillow's decoders raise errors of any type on damaged bytes
                raise DataError(f"{where(row)}: {picture_fault(error, _head(picture))}") from error

        with bounded_pictures():
            self.fill(len(pictures), decode)
        self._turned, self._clear = self._turned + len(turned), self._clear + len(clear)
        self._moving += len(moving)

    def pixels(self) -> Pixels:
        pixels = super().pixels()
        if self._turned:
            remark(f"{counted(self._turned, 'picture')} turned upright, as the EXIF orientation says")
        if self._moving:
            remark(f"of {counted(self._moving, 'picture')} with several frames or pages the first is read")
        if self._clear:
            remark(f"the transparency of {counted(self._clear, 'picture')} is left out; the colours below it are read")
        return pixels


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1..8; 1 is upright, and also the result if EXIF is absent or unreadable."""
    with suppress(Exception):  # EXIF lies beside the pixels: its damage does not matter to them
        value = image.getexif().get(Base.Orientation, 1)
        return int(value) if value in range(1, 9) else 1
    return 1


def _frames(image: Image.Image) -> int:
    """The number of frames, pages or layers in a file; 1 if it cannot be determined."""
    with suppress(Exception):  # frames behind the first are not read, and may be damaged
        return int(getattr(image, "n_frames", 1))
    return 1


def _head(picture: bytes | Path) -> bytes:
    """The first bytes of a picture; empty if its file cannot be read."""
    if isinstance(picture, bytes):
        return picture[:HEAD]
    try:
        with picture.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


# Files below a folder


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the formats that Pillow decodes itself."""
    formats = Image.registered_extensions()  # loads all of Pillow's decoders, so only when needed
    return frozenset(suffix for suffix, kind in formats.items() if kind in Image.OPEN and kind not in _NOT_DECODED)


def read_folder(folder: Path, size: int, images: int | None, seed: int) -> Pixels:
    """The pictures below a folder, as ``decode_images`` gives them: all, or ``images`` of them, drawn with ``seed``."""
    if not folder.is_dir():
        raise DataError(f"{folder}: {'a folder of pictures is expected' if folder.exists() else 'no such folder'}")
    with reading(folder):
        files = pictures_below(folder)
    if images is not None and images < len(files):
        drawn = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))[:images]
        files = [files[row] for row in drawn.sort().values.tolist()]
    return decode_images(files, lambda row: str(files[row]), size)


def pictures_below(folder: Path, what: str = "it") -> list[Path]:
    """The pictures in a folder and below, in a fixed order; other files are remarked. DataError, which says that
    ``what`` is empty, if there is no picture."""
    found = expand([folder])
    pictures = [path for path in found if is_picture(path)]
    skipped = sorted({*found} - {*pictures})
    if not pictures:
        others = f", and {of_kinds(skipped)} of other kinds" if skipped else ""
        raise DataError(f"{folder}: {what} is empty: no picture below it{others}")
    if skipped:
        remark(f"{of_kinds(skipped)} skipped, for they are no pictures")
    return pictures


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name, or else by its content."""
    return path.suffix.lower() in picture_suffixes() or "picture" in file_kind(path)


def expand(paths: Sequence[Path]) -> list[Path]:
    """The files, and those below the folders, in a fixed order. Links are followed; hidden files and NOBODYS folders
    are skipped. DataError if a link leads nowhere, OSError if a folder may not be read."""
    files: list[Path] = []
    for path in paths:
        files += sorted(_below(path, ())) if path.is_dir() else [path]
    return files


def _below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """above: the folders, without links, on the way to ``folder``: a link back to one of them would never end."""
    here = (*above, os.path.realpath(folder))
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in NOBODYS:
            continue
        if path.is_dir():
            if os.path.realpath(path) in here:
                raise DataError(f"{path}: a link to a folder that it lies in")
            yield from _below(path, here)
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise DataError(dangling(path))


def dangling(link: Path) -> str:
    """What is wrong with a link to a file that does not exist."""
    target = os.readlink(link)
    hint = "; `git annex get` fetches the file" if ".git/annex" in target else ""
    return f"{link}: a link to {target}, which is not there{hint}"


def of_kinds(paths: Sequence[Path], most: int = 3) -> str:
    """The number of files and their suffixes: "3 files (2 .csv, 1 .txt)"."""
    kinds = Counter(path.suffix.lower() or "without suffix" for path in paths).most_common()
    told = [f"{count} {kind}" for kind, count in kinds[:most]]
    if rest := sum(count for _, count in kinds[most:]):
        told.append(f"{rest} others")
    return f"{counted(len(paths), 'file')} ({', '.join(told)})"

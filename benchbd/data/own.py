"""Read what a data-set plugin loads or generates itself, and check it by the rules of the layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchbd.base.errors import BenchbdError, DataAbsentError, DataError, PluginError, shown
from benchbd.base.inputs import file_kind, is_stand_in, reading
from benchbd.base.pictures import SIZE, expand, resize_images
from benchbd.contract.dataset import Dataset
from benchbd.contract.images import ImageSet
from benchbd.contract.method import ask, identity_of
from benchbd.data.classes import check_labels
from benchbd.data.layouts import WITHOUT_LABELS, Raw

R = TypeVar("R")


def read_own(dataset: Dataset, split: str, root: Path, files: list[Path], size: int) -> Raw:
    """The split that the plugin loads, checked like a folder in a known layout, and resized to ``size`` if its size is
    another. files: the files that the plugin reads."""
    where = root / dataset.name

    def load() -> Raw:
        images = dataset.load_at(split, root, size)
        if type(images) is not ImageSet:
            raise DataError(f"{where}: load() must return a benchbd.ImageSet, not {type(images).__name__}")
        if not (isinstance(images.classes, tuple) and all(isinstance(name, str) for name in images.classes)):
            raise DataError(f"{where}: class names must be a tuple of texts, not {shown(images.classes)}")
        labels = None if images.labels is None else images.labels.cpu().numpy()
        return Raw(images.pixels.permute(0, 2, 3, 1).cpu().numpy(), labels, images.classes or dataset.classes)

    try:
        raw = _told(dataset, root, "load()", load)
    except DataError as error:
        if page := next((file for file in expand(files) if is_stand_in(file_kind(file))), None):
            raise DataError(f"{page}: it is {file_kind(page)}") from error
        raise
    images, *shape = raw.pixels.shape[:3]
    if shape not in ([SIZE, SIZE], [size, size]):
        other = "" if size == SIZE else f" or {size}x{size}"
        raise DataError(f"{where}: images must be {SIZE}x{SIZE}{other}, not {tuple(shape)}")
    if (count := dataset.splits[split]) and count != images:
        raise DataError(f"{where}: {images:,} images in {split}, {count:,} are expected: unpack the archive again")
    if raw.labels is not None:
        check_labels(where, raw.labels, raw.classes, -1 if split in WITHOUT_LABELS else 0)
    return raw._replace(pixels=resize_images(raw.pixels, size))


def _told(dataset: Dataset, root: Path, what: str, work: Callable[[], R]) -> R:
    """The result of a data set's ``work``. Any exception becomes a DataError that names the data set, because planning
    reads it; interrupts pass."""

    def read() -> R:
        with reading(root / dataset.name):
            return work()

    try:
        told: R = ask(dataset, what, read)
    except DataAbsentError:
        raise
    except BenchbdError as error:
        if isinstance(error, DataError) and dataset.name in str(error):
            raise
        raise DataError(f"data set {dataset.name}: {error}") from error
    return told


def identity(dataset: Dataset) -> dict[str, Any]:
    try:
        return identity_of(dataset)
    except PluginError as error:
        raise DataError(f"data set {dataset.name}: {error}") from error


def sources_of(dataset: Dataset, split: str, root: Path) -> list[Path]:
    """The files that a data set names; DataError if one lies outside its folder."""
    folder = root / dataset.name
    files = _told(dataset, root, "sources()", lambda: list(dataset.sources(split, root)))
    for file in files:
        if not (isinstance(file, Path) and file.is_relative_to(folder)):
            raise DataError(f"data set {dataset.name}: sources() must give paths in {folder}, not {shown(file)}")
    return files


def is_there(dataset: Dataset, root: Path) -> bool:
    try:
        sources_of(dataset, "train", root)
    except DataAbsentError:
        return False
    return True

"""Find data sets in a folder in a known layout, check them, decode them once to uint8 RGB of one size, and cache them.

    <root>/<name>/train-00000-of-00001.parquet   Hugging Face's Parquet: image (encoded bytes) and label; also
                                                 train.parquet, train/*.parquet, and these in data/ or one other folder
    <root>/<name>/train.npz                      the BadEncoder release: x uint8 (N, H, W, 3) and y (N,) or (N, 1)
    <root>/<name>/train/<class>/<picture>        image folder; pictures directly in train/ have no labels, or those of
                                                 train.csv
    <root>/<name>/...                            the files that the data-set plugin of that name reads

Splits are train, test and unlabeled, ignoring case; a validation split replaces a missing test split.
``pool``, the images for pre-training, is the union of train and unlabeled without labels (one of them may be
missing), or ``train_unlabeled``, which is that union already. "<name>@<column>" is the same set with
its labels from another column of its Parquet.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from platformdirs import user_data_path

from benchbd.base.content import expanded, file_digest
from benchbd.base.errors import (
    DataAbsentError,
    DataError,
    UnknownDataError,
    UnknownNameError,
    UsageError,
    is_interrupt,
    says,
    shown,
)
from benchbd.base.inputs import file_kind, is_stand_in, is_text, reading
from benchbd.base.isolation import isolated
from benchbd.base.pictures import RESIZED, SIZE, dangling, expand, remark, remarks
from benchbd.base.pieces import join_images
from benchbd.contract.dataset import Dataset
from benchbd.contract.images import ImageSet, resize_rule
from benchbd.data.classes import odd_labels
from benchbd.data.entries import INFO, Entries, SplitInfo
from benchbd.data.layouts import (
    ACCEPTED,
    READERS,
    WITHOUT_LABELS,
    Raw,
    Wanted,
    class_folders,
    find,
    held,
    layouts_in,
    stand_in,
    unlabeled_reason,
)
from benchbd.data.own import identity, is_there, read_own, sources_of

SPLITS = ("train", "test", "unlabeled", "pool")

CACHE_SCHEMA = 2  # raise it when decoding changes

_OWN = "the data set's own layout"

log = logging.getLogger("benchbd")


class _At(NamedTuple):
    """A split of a data set, its images at this size."""

    name: str
    split: str
    size: int

    def __str__(self) -> str:
        return f"{self.name} {self.split}"


def find_data_root(option: str | Path | None = None) -> Path:
    """The folder that holds the data sets: ``option``, else ``BENCHBD_DATA``, else the user's data directory."""
    return expanded(option or os.environ.get("BENCHBD_DATA") or user_data_path("benchbd"))


class DataLibrary:
    """The data sets under ``root`` and those of plugins, decoded once.

    datasets: the known data sets by name.
    cache: folder for decoded splits, keyed by the contents of their files.
    download: whether an absent known data set is fetched.

    Any fault of a data set is a DataError of one line, raised before any of it is used.
    """

    def __init__(self, datasets: Mapping[str, Dataset], root: Path, cache: Path, download: bool = False) -> None:
        self.datasets, self.root, self.cache, self.download = dict(datasets), root, cache, download
        self._layouts: dict[str, str] = {}
        self._entries = Entries(cache)
        self._keys: dict[_At, str] = {}
        self._infos: dict[_At, SplitInfo] = {}
        self._images: dict[_At, ImageSet] = {}
        self._remarks: dict[_At, list[str]] = {}
        self._said: set[tuple[str, str]] = set()

    def names(self) -> list[str]:
        """Known data sets, and folders under the root that hold one in a known layout; sorted."""
        found = set(self.datasets)
        for path in self.root.iterdir() if self.root.is_dir() else ():
            with suppress(OSError):  # another user's folder
                found |= {path.name} if path.is_dir() and layouts_in(path) else set()
        return sorted(found)

    def _column(self, name: str) -> str:
        """The label column that a name chooses behind an @; "" if it chooses none."""
        base, at, column = name.rpartition("@")
        return column if base and at and name not in self.datasets and not (self.root / name).is_dir() else ""

    def _base(self, name: str) -> str:
        """The name without a label column."""
        column = self._column(name)
        return name.removesuffix(f"@{column}") if column else name

    def _folder(self, name: str) -> Path:
        return self.root / self._base(name)

    def known(self, name: str) -> Dataset | None:
        """The plugin's class of a data set, whatever its label column; None for a folder that no plugin knows."""
        return self.datasets.get(self._base(name))

    def info(self, name: str, split: str, size: int = SIZE) -> SplitInfo:
        """Digest, count and statistics of a split, its images at ``size``; the split is decoded only if the cache lacks
        it."""
        at = _checked(name, split, size)
        if at not in self._infos:
            with reading(self._folder(name)):
                memo = self._memo(at)
                self._infos[at] = memo or SplitInfo.of(self._load(at))
        info, dataset = self._infos[at], self.known(name)
        if not info.histogram:
            self._need_labels(name, split)
        if dataset and dataset.normalization:
            return replace(info, mean=dataset.normalization[0], std=dataset.normalization[1])
        return info

    def load(self, name: str, split: str, size: int = SIZE) -> ImageSet:
        """The images of a split: uint8 (N, 3, size, size), on the CPU, labels only for train and test.

        The pixels are a copy-on-write mapping of the cache file, not in memory. DataAbsentError or DataError if
        the split is not there or damaged.
        """
        at = _checked(name, split, size)
        with reading(self._folder(name)):
            images = self._load(at)
        if images.labels is None:
            self._need_labels(name, split)
        return images

    def _need_labels(self, name: str, split: str) -> None:
        """DataError for a split that is useless without its labels, unless it is part of a pool."""
        if split in ("train", "test"):
            with reading(self._folder(name)):
                reason = unlabeled_reason(self._layout(name), name, split, self._required(name, split))
            raise DataError(
                f"{reason}; without labels it can be pre-trained on, but is no task; nor can a method learn labels"
            )

    def holds(self, refs: Iterable[tuple[str, str, int, str]]) -> bool:
        """Whether each (name, split, size, digest) is what loading it gives; if one is not, ``info`` gives the right
        one.

        An entry of the cache may be undamaged but out of date, if another decoder reads the same files.
        """
        differ = [name for name, split, size, digest in refs if self.load(name, split, size).digest != digest]
        return not differ

    def _load(self, at: _At) -> ImageSet:
        if at not in self._images:
            images = self._cached(at) or (self._pool(at) if at.split == "pool" else self._decoded(at))
            dataset = self.known(at.name)
            if dataset and dataset.normalization:
                digest = images.digest
                images = replace(images, mean=dataset.normalization[0], std=dataset.normalization[1])
                images.__dict__["digest"] = digest  # normalisation does not change it: avoid a second hash
            self._images[at] = images
        return self._images[at]

    # The source of a split

    def _layout(self, name: str) -> str:
        """The one layout of the data set; an absent known set is downloaded if that is allowed."""
        if name not in self._layouts:
            folder, dataset = self._folder(name), self.known(name)
            if dataset is None and (Path(name).name != name or name in ("", "..")):
                raise UnknownNameError("data set", name, self.names())
            if not is_text(name):
                raise UsageError(f"data set {shown(name)}: its name is no UTF-8: rename the folder")
            if dataset is None and not folder.is_dir():
                raise UnknownDataError(name, self.names(), folder, ACCEPTED)
            found = layouts_in(folder)
            if dataset is not None and is_there(dataset, self.root):
                found.append(_OWN)
            if len(found) > 1:
                raise DataError(f"{folder}: two layouts in one folder, {found[0]} and {found[1]}: keep one")
            if not found and dataset is None:
                raise DataError(f"{folder}: no data set in a known layout{held(folder)}; accepted: {ACCEPTED}")
            if (column := self._column(name)) and found != ["Parquet"]:
                raise DataError(f"{folder}: only Parquet has columns, such as {column!r}, to choose labels from")
            self._layouts[name] = found[0] if found else _OWN
        return self._layouts[name]

    def _files(self, name: str, split: str) -> list[Path] | None:
        """The files of a stored split, in order; None if the data set has no such split."""
        layout = self._layout(name)
        if layout != _OWN:
            files = find(layout, self._folder(name), split)
            if lost := next((file for file in files if file.is_symlink() and not file.exists()), None):
                raise DataError(dangling(lost))
            return files or None
        dataset = self.known(name)
        assert dataset is not None
        if split not in dataset.splits:
            return None
        try:
            return sources_of(dataset, split, self.root)
        except DataAbsentError as absent:
            if not self.download:
                there = held(self._folder(name))
                raise DataAbsentError(f"{absent}{there}; accepted: {ACCEPTED}, {_OWN}; --download fetches it") from None
        try:
            with isolated(f"data set {name}"):
                dataset.download(self.root)
        except NotImplementedError:
            raise DataAbsentError(f"{name}: not in {self._folder(name)}, and it cannot be downloaded") from None
        except BaseException as error:  # any error of the network, the archive or the disk
            if is_interrupt(error):
                raise
            left = [path for path in self._folder(name).glob("*") if path.is_file() and is_stand_in(file_kind(path))]
            reason = f"{left[0].name} is {file_kind(left[0])}" if left else says(error)
            raise DataAbsentError(
                f"{name}: the download failed ({reason}); try again, or put it in "
                f"{self._folder(name)} by hand: {ACCEPTED}"
            ) from error
        return sources_of(dataset, split, self.root)

    def _parts(self, name: str) -> list[str]:
        """The stored splits that form the pre-training pool."""
        if self._files(name, "train_unlabeled") is not None:
            return ["train_unlabeled"]
        return [part for part in ("train", "unlabeled") if self._files(name, part) is not None] or ["train"]

    def _key(self, name: str, split: str, size: int = SIZE) -> str:
        """Identity of the decoded split: the contents of its files, not their paths."""
        at = _At(name, split, size)
        if at not in self._keys:
            dataset = self.known(name)
            key: dict[str, Any] = {"schema": CACHE_SCHEMA, "split": split, "resize": resize_rule(size)}
            digest = hashlib.sha256()
            if split == "pool":
                key["parts"] = [self._key(name, part, size) for part in self._parts(name)]
            else:
                files = self._required(name, split)
                layout = self._layout(name)
                key |= {
                    "layout": layout,
                    "column": self._column(name),
                    "classes": self._expected_classes(at),
                }
                key["dataset"] = identity(dataset) if dataset and layout == _OWN else None
                key["folders"] = [class_folders(file) for file in files if file.is_dir()]
                for file in expand(files):
                    digest.update(os.fsencode(file.relative_to(self._folder(name)).as_posix()) + b"\0")
                    digest.update(bytes.fromhex(file_digest(file)))
            digest.update(json.dumps(key, sort_keys=True).encode())
            self._keys[at] = digest.hexdigest()
        return self._keys[at]

    def _required(self, name: str, split: str) -> list[Path]:
        files = self._files(name, split)
        if files is None:
            hint = "; train_unlabeled is part of the pool only" if split == "unlabeled" else ""
            raise DataError(
                f"{self._folder(name)}: no {split} split ({self._layout(name)}){held(self._folder(name))}{hint}"
            )
        return files

    def _expected_classes(self, at: _At) -> tuple[str, ...]:
        """The names to check labels against: those of train for a test split, else those that the data set declares."""
        if at.split == "test":
            return self.info(at.name, "train", at.size).classes
        dataset = self.known(at.name)
        return dataset.classes if dataset and not self._column(at.name) else ()

    # Decoded

    def _pool(self, at: _At) -> ImageSet:
        parts = [at._replace(split=part) for part in self._parts(at.name)]
        pixels = [self._load(part).pixels for part in parts]
        self._remark(at, [text for part in parts for text in self._remarks.get(part, [])])
        with self._entries.room():
            pool = ImageSet(pixels[0] if len(pixels) == 1 else join_images(pixels))
        memo = self._memo(at)
        if sound := memo is not None and memo.digest == pool.digest:
            self._infos[at] = memo
        elif memo is not None:
            self._entries.complain(self._key(*at), INFO, str(at))
        return pool if sound and len(pixels) == 1 else self._remember(at, pool, with_pixels=len(pixels) > 1)

    def _decoded(self, at: _At) -> ImageSet:
        """The images, read from the source files, checked, and written to the cache."""
        name, split, size = at
        files, layout, expected = self._required(name, split), self._layout(name), self._expected_classes(at)
        folder, dataset = self._folder(name), self.known(name)
        with remarks() as told, self._entries.room():
            if layout == _OWN and dataset is not None:
                raw = read_own(dataset, split, self.root, files, size)
            else:
                raw = READERS[layout].read(files, Wanted(split, size, expected, self._column(name)))
                if stand_in(split, files):
                    remark(f"there is none of that name; {files[0].relative_to(folder).as_posix()} is read")
            labels = None if split in WITHOUT_LABELS or not len(raw.pixels) else raw.labels
            classes = () if labels is None else _agree(folder, split, raw, expected)
            for text in odd_labels(labels, classes, expected) if labels is not None and split == "train" else ():
                remark(text)
        self._remark(at, [text if text.startswith(RESIZED) else f"{split}: {text}" for text in told])
        if not len(raw.pixels):
            raise DataError(f"{folder}: the {split} split is empty")
        with self._entries.room():
            pixels = torch.from_numpy(raw.pixels.transpose(0, 3, 1, 2))
            pixels = pixels if pixels.is_contiguous() else join_images([pixels])
        images = ImageSet(pixels, None if labels is None else torch.from_numpy(labels), classes)
        return self._remember(at, images, with_pixels=True)

    def _cached(self, at: _At) -> ImageSet | None:
        """The verified cache entry; None, with a line of warning, if it is damaged."""
        memo = self._memo(at)
        return None if memo is None else self._entries.images(self._key(*at), memo, str(at))

    def _memo(self, at: _At) -> SplitInfo | None:
        """The verified statistics in the cache entry of a split; None if there is no valid entry."""
        found = self._entries.info(self._key(*at), str(at))
        if found is None:
            return None
        info, told = found
        self._remark(at, told)
        return info

    def _remark(self, at: _At, told: list[str]) -> None:
        """Tell the user, once, the remarks on a split; those on sizes once for all splits of a data set."""
        self._remarks[at] = told
        for text in told:
            once = (at.name, RESIZED if text.startswith(RESIZED) else text)
            if once not in self._said:
                log.warning("%s: %s", at.name, text)
            self._said.add(once)

    def _remember(self, at: _At, images: ImageSet, with_pixels: bool) -> ImageSet:
        """Write the cache entry and return the images mapped from it, or as given if the cache cannot be written."""
        key, info = self._key(*at), SplitInfo.of(images)
        self._infos[at] = info
        self._entries.write(key, info, self._remarks.get(at, []), images if with_pixels else None, at.name)
        return (self._entries.images(key, info, str(at)) if with_pixels else None) or images


def _checked(name: str, split: str, size: int) -> _At:
    if split not in SPLITS:
        raise UsageError(f"no split {shown(split)}: splits are {', '.join(SPLITS)}")
    return _At(name, split, size)


def _agree(folder: Path, split: str, raw: Raw, expected: tuple[str, ...]) -> tuple[str, ...]:
    """The class names of a labelled split: its own, which in test must be train's, else the expected, else numbers."""
    if split == "test" and raw.classes and raw.classes != expected:
        differ = next((pair for pair in zip(expected, raw.classes, strict=False) if pair[0] != pair[1]), None)
        detail = f"{differ[0]!r} against {differ[1]!r}" if differ else f"{len(expected)} against {len(raw.classes)}"
        raise DataError(f"{folder}: train and test name their classes differently: {detail}")
    assert raw.labels is not None
    return raw.classes or expected or tuple(str(label) for label in range(int(raw.labels.max()) + 1))

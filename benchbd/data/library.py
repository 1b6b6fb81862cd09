"""Data sets: found in a folder in a known layout, checked, decoded once to uint8 32x32 RGB, and kept in a cache.

    <root>/<name>/train-00000-of-00001.parquet   Hugging Face's Parquet: image (encoded bytes) and label; also
                                                 train.parquet, train/*.parquet, and these in data/ or one other folder
    <root>/<name>/train.npz                      the BadEncoder release: x uint8 (N, 32, 32, 3) and y (N,) or (N, 1)
    <root>/<name>/train/<class>/<picture>        image folder; pictures directly in train/ have no labels, or those of
                                                 train.csv
    <root>/<name>/...                            what the data-set plugin of that name reads

Splits are train, test and unlabeled, in any case; a validation split stands for a test split that is not there.
``pool``, what an encoder is pre-trained on, is what there is of train and unlabeled, with labels or without, unless
there is a ``train_unlabeled``, which is that union already; labels are dropped. "<name>@<column>" is the same set with
its labels from another column of its Parquet.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from platformdirs import user_data_path
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from benchbd.base.content import commit, expanded, file_digest, make_folder, sealed, unsealed
from benchbd.base.errors import (
    BenchbdError,
    DataAbsentError,
    DataError,
    PluginError,
    UnknownDataError,
    UnknownNameError,
    UsageError,
    fault,
    is_interrupt,
    says,
    shown,
)
from benchbd.base.inputs import file_kind, is_stand_in, is_text, reading
from benchbd.base.isolation import isolated
from benchbd.contract.dataset import Dataset
from benchbd.contract.images import RESIZE_RULE, ImageSet
from benchbd.contract.method import ask, identity_of
from benchbd.data.classes import check_labels, odd_labels
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
from benchbd.data.pictures import RESIZED, SIZE, dangling, expand, remark, remarks

SPLITS = ("train", "test", "unlabeled", "pool")

CACHE_SCHEMA = 2  # raise it when decoding changes

ENTRY_SCHEMA = 1  # raise it when the fields of a cache entry change; an entry without one is of schema 1

ABSENT = "absent:"  # begins what stands for the digest of a split that is not there

_OWN = "the data set's own layout"

log = logging.getLogger("benchbd")

R = TypeVar("R")


def find_data_root(option: str | Path | None = None) -> Path:
    """The folder that holds the data sets: ``option``, else ``BENCHBD_DATA``, else the user's data directory."""
    return expanded(option or os.environ.get("BENCHBD_DATA") or user_data_path("benchbd"))


@dataclass(frozen=True)
class SplitInfo:
    """What is known of a split without its pixels.

    digest: of the content, as ``ImageSet.digest``.
    count, size: number of images; their height and width in pixels.
    classes, histogram: names and number of images per class; both empty where there are no labels.
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


class DataLibrary:
    """The data sets under ``root`` and those that plugins know, decoded once.

    datasets: the known data sets by name.
    cache: folder for decoded splits, keyed by the contents of their files.
    download: whether an absent known data set is fetched.

    Whatever is wrong with a data set is a DataError of one line, raised before any of it is used.
    """

    def __init__(self, datasets: Mapping[str, Dataset], root: Path, cache: Path, download: bool = False) -> None:
        self.datasets, self.root, self.cache, self.download = dict(datasets), root, cache, download
        self._layouts: dict[str, str] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._infos: dict[tuple[str, str], SplitInfo] = {}
        self._images: dict[tuple[str, str], ImageSet] = {}
        self._remarks: dict[tuple[str, str], list[str]] = {}
        self._complained: set[Path] = set()
        self._said: set[tuple[str, str]] = set()

    def names(self) -> list[str]:
        """Known data sets, and folders under the root that hold one in a known layout; sorted."""
        found = set(self.datasets)
        for path in self.root.iterdir() if self.root.is_dir() else ():
            with suppress(OSError):  # a folder of others
                found |= {path.name} if path.is_dir() and layouts_in(path) else set()
        return sorted(found)

    def _column(self, name: str) -> str:
        """The label column that a name chooses behind an @; "" where it chooses none."""
        base, at, column = name.rpartition("@")
        return column if base and at and name not in self.datasets and not (self.root / name).is_dir() else ""

    def _base(self, name: str) -> str:
        """The name without a label column."""
        column = self._column(name)
        return name.removesuffix(f"@{column}") if column else name

    def _folder(self, name: str) -> Path:
        return self.root / self._base(name)

    def _known(self, name: str) -> Dataset | None:
        """The plugin that knows the data set, if any."""
        return self.datasets.get(self._base(name))

    def info(self, name: str, split: str) -> SplitInfo:
        """Digest, count and statistics of a split; it is decoded only where the cache does not know it."""
        _check_split(split)
        if (name, split) not in self._infos:
            with reading(self._folder(name)):
                memo = self._memo(name, split)
                self._infos[name, split] = memo or SplitInfo.of(self._load(name, split))
        info, dataset = self._infos[name, split], self._known(name)
        if not info.histogram:
            self._need_labels(name, split)
        if dataset and dataset.normalization:
            return replace(info, mean=dataset.normalization[0], std=dataset.normalization[1])
        return info

    def load(self, name: str, split: str) -> ImageSet:
        """The images of a split: uint8 (N, 3, 32, 32), on the CPU, labels only for train and test.

        DataAbsentError or DataError where it is not there or damaged.
        """
        _check_split(split)
        with reading(self._folder(name)):
            images = self._load(name, split)
        if images.labels is None:
            self._need_labels(name, split)
        return images

    def _need_labels(self, name: str, split: str) -> None:
        """DataError for a split that is of no use without its labels, but in a pool."""
        if split in ("train", "test"):
            with reading(self._folder(name)):
                reason = unlabeled_reason(self._layout(name), name, split, self._required(name, split))
            raise DataError(f"{reason}; without labels it can be pre-trained on, but is no task")

    def holds(self, refs: Iterable[tuple[str, str, str]]) -> bool:
        """Whether each (name, split, digest) is what loading it gives; ``info`` knows better where one is not.

        An entry of the cache may be sound and yet out of date, where another decoder reads the same files.
        """
        differ = [name for name, split, digest in refs if self.load(name, split).digest != digest]
        return not differ

    def _load(self, name: str, split: str) -> ImageSet:
        if (name, split) not in self._images:
            images = self._pool(name) if split == "pool" else self._cached(name, split) or self._decoded(name, split)
            dataset = self._known(name)
            if dataset and dataset.normalization:
                digest = images.digest
                images = replace(images, mean=dataset.normalization[0], std=dataset.normalization[1])
                images.__dict__["digest"] = digest  # normalisation is no part of it: spare the second hash
            self._images[name, split] = images
        return self._images[name, split]

    # Where a split comes from

    def _layout(self, name: str) -> str:
        """The one layout in which the data set lies; an absent known one is fetched where that is allowed."""
        if name not in self._layouts:
            folder, dataset = self._folder(name), self._known(name)
            if dataset is None and (Path(name).name != name or name in ("", "..")):
                raise UnknownNameError("data set", name, self.names())
            if not is_text(name):
                raise UsageError(f"data set {shown(name)}: its name is no UTF-8: rename the folder")
            if dataset is None and not folder.is_dir():
                raise UnknownDataError(name, self.names(), folder, ACCEPTED)
            found = layouts_in(folder)
            if dataset is not None and _is_there(dataset, self.root):
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
        """The files of a stored split, in order; None where the data set has no such split."""
        layout = self._layout(name)
        if layout != _OWN:
            files = find(layout, self._folder(name), split)
            if lost := next((file for file in files if file.is_symlink() and not file.exists()), None):
                raise DataError(dangling(lost))
            return files or None
        dataset = self._known(name)
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
        except BaseException as error:  # whatever the network, the archive or the disk comes up with
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
        """The stored splits that the pre-training pool is made of."""
        if self._files(name, "train_unlabeled") is not None:
            return ["train_unlabeled"]
        return [part for part in ("train", "unlabeled") if self._files(name, part) is not None] or ["train"]

    def _key(self, name: str, split: str) -> str:
        """Identity of the decoded split: the contents of its files, not where they lie."""
        if (name, split) not in self._keys:
            dataset = self._known(name)
            identity: dict[str, Any] = {"schema": CACHE_SCHEMA, "split": split, "resize": RESIZE_RULE}
            digest = hashlib.sha256()
            if split == "pool":
                identity["parts"] = [self._key(name, part) for part in self._parts(name)]
            else:
                files = self._required(name, split)
                layout = self._layout(name)
                identity |= {
                    "layout": layout,
                    "column": self._column(name),
                    "classes": self._expected_classes(name, split),
                }
                identity["dataset"] = _identity(dataset) if dataset and layout == _OWN else None
                identity["folders"] = [class_folders(file) for file in files if file.is_dir()]
                for file in expand(files):
                    digest.update(os.fsencode(file.relative_to(self._folder(name)).as_posix()) + b"\0")
                    digest.update(bytes.fromhex(file_digest(file)))
            digest.update(json.dumps(identity, sort_keys=True).encode())
            self._keys[name, split] = digest.hexdigest()
        return self._keys[name, split]

    def _required(self, name: str, split: str) -> list[Path]:
        files = self._files(name, split)
        if files is None:
            hint = "; train_unlabeled is part of the pool only" if split == "unlabeled" else ""
            raise DataError(
                f"{self._folder(name)}: no {split} split ({self._layout(name)}){held(self._folder(name))}{hint}"
            )
        return files

    def _expected_classes(self, name: str, split: str) -> tuple[str, ...]:
        """The names that labels are held against: those of train for a test split, else what the data set declares."""
        if split == "test":
            return self.info(name, "train").classes
        dataset = self._known(name)
        return dataset.classes if dataset and not self._column(name) else ()

    # Decoded

    def _pool(self, name: str) -> ImageSet:
        parts = [self._load(name, part) for part in self._parts(name)]
        pixels = parts[0].pixels if len(parts) == 1 else torch.cat([part.pixels for part in parts])
        self._remark(name, "pool", [text for part in self._parts(name) for text in self._remarks.get((name, part), [])])
        pool, memo = ImageSet(pixels), self._memo(name, "pool")
        if memo is not None and memo.digest != pool.digest:
            self._complain(name, "pool", ".json")
        if memo is None or memo.digest != pool.digest:
            self._remember(name, "pool", pool)
        return pool

    def _decoded(self, name: str, split: str) -> ImageSet:
        """Read and checked from the source files, and written to the cache."""
        files, layout, expected = self._required(name, split), self._layout(name), self._expected_classes(name, split)
        folder, dataset = self._folder(name), self._known(name)
        with remarks() as told:
            if layout == _OWN and dataset is not None:
                raw = read_own(dataset, split, self.root, files)
            else:
                raw = READERS[layout].read(files, Wanted(split, expected, self._column(name)))
                if stand_in(split, files):
                    remark(f"there is none of that name; {files[0].relative_to(folder).as_posix()} is read")
            labels = None if split in WITHOUT_LABELS or not len(raw.pixels) else raw.labels
            classes = () if labels is None else _agree(folder, split, raw, expected)
            for text in odd_labels(labels, classes, expected) if labels is not None and split == "train" else ():
                remark(text)
        self._remark(name, split, [text if text.startswith(RESIZED) else f"{split}: {text}" for text in told])
        if not len(raw.pixels):
            raise DataError(f"{folder}: the {split} split is empty")
        pixels = torch.from_numpy(np.ascontiguousarray(raw.pixels.transpose(0, 3, 1, 2)))
        images = ImageSet(pixels, None if labels is None else torch.from_numpy(labels), classes)
        self._remember(name, split, images, blob=True)
        return images

    def _cached(self, name: str, split: str) -> ImageSet | None:
        """The verified cache entry; None, with a line of warning, where it is damaged."""
        memo, path = self._memo(name, split), self._cache_file(name, split, ".safetensors")
        if memo is None or not path.is_file():
            return None
        try:
            tensors = load_file(path)
            images = ImageSet(tensors["pixels"], tensors.get("labels"), memo.classes)
            if images.digest == memo.digest:
                return images
        except OSError as error:
            self._complain(name, split, ".safetensors", f"cannot be read ({error.strerror or error})")
            return None
        except (SafetensorError, KeyError, DataError):
            pass
        self._complain(name, split, ".safetensors")
        return None

    def _memo(self, name: str, split: str) -> SplitInfo | None:
        """What the cache entry says of a split, verified; None, with a line of warning, where it is damaged.

        None without one where there is no entry, or only one of the days before they had a checksum.
        """
        path = self._cache_file(name, split, ".json")
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._complain(name, split, ".json", f"cannot be read ({error.strerror or error})")
            return None
        found = _read_entry(content, path.stem)
        if not isinstance(found, tuple):
            if found:
                self._complain(name, split, ".json", found)
            return None
        info, told = found
        self._remark(name, split, told)
        return info

    def _remark(self, name: str, split: str, told: list[str]) -> None:
        """Say once what a user should know of a split; of sizes, once for all splits of a data set."""
        self._remarks[name, split] = told
        for text in told:
            once = (name, RESIZED if text.startswith(RESIZED) else text)
            if once not in self._said:
                log.warning("%s: %s", name, text)
            self._said.add(once)

    def _complain(self, name: str, split: str, suffix: str, what: str = "is damaged") -> None:
        """One line of warning a file."""
        path = self._cache_file(name, split, suffix)
        if path not in self._complained:
            log.warning("data cache: %s %s; %s %s is decoded again", path, what, name, split)
        self._complained.add(path)

    def _remember(self, name: str, split: str, images: ImageSet, *, blob: bool = False) -> None:
        """Write the cache entry, the statistics last. A cache that cannot be written costs time, not the run."""
        info = self._infos[name, split] = SplitInfo.of(images)
        tensors = {"pixels": images.pixels} | ({} if images.labels is None else {"labels": images.labels})
        try:
            make_folder(self.cache)
            if blob:
                commit(self._cache_file(name, split, ".safetensors"), lambda part: save_file(tensors, part))
            key = self._key(name, split)
            told = self._remarks.get((name, split), [])
            text = sealed("entry", {"schema": ENTRY_SCHEMA, "key": key, "info": asdict(info), "remarks": told})
            commit(self._cache_file(name, split, ".json"), lambda part: part.write_text(text))
        except (OSError, SafetensorError) as error:
            log.warning(
                "data cache: %s cannot be written (%s); %s is decoded each time", self.cache, fault(error), name
            )

    def _cache_file(self, name: str, split: str, suffix: str) -> Path:
        return self.cache / (self._key(name, split) + suffix)


def read_own(dataset: Dataset, split: str, root: Path, files: list[Path]) -> Raw:
    """What the plugin loads, held to the same rules as a folder in a known layout. files: what it is read from."""
    where = root / dataset.name

    def load() -> Raw:
        images = dataset.load(split, root)
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
    images, *size = raw.pixels.shape[:3]
    if size != [SIZE, SIZE]:
        raise DataError(f"{where}: images must be {SIZE}x{SIZE}, not {tuple(size)}")
    if (count := dataset.splits[split]) and count != images:
        raise DataError(f"{where}: {images:,} images in {split}, {count:,} are expected: unpack the archive again")
    if raw.labels is not None:
        check_labels(where, raw.labels, raw.classes, -1 if split in WITHOUT_LABELS else 0)
    return raw


def _told(dataset: Dataset, root: Path, what: str, work: Callable[[], R]) -> R:
    """What a data set's ``work`` returns. Whatever it raises is a DataError that names it, for it is read while a run
    is planned; interrupts pass."""

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


def _identity(dataset: Dataset) -> dict[str, Any]:
    try:
        return identity_of(dataset)
    except PluginError as error:
        raise DataError(f"data set {dataset.name}: {error}") from error


def sources_of(dataset: Dataset, split: str, root: Path) -> list[Path]:
    """The files that a data set names; DataError where they are none of its folder's."""
    folder = root / dataset.name
    files = _told(dataset, root, "sources()", lambda: list(dataset.sources(split, root)))
    for file in files:
        if not (isinstance(file, Path) and file.is_relative_to(folder)):
            raise DataError(f"data set {dataset.name}: sources() must give paths in {folder}, not {shown(file)}")
    return files


def _read_entry(content: bytes, key: str) -> tuple[SplitInfo, list[str]] | str | None:
    """The statistics and remarks of a cache entry, or what is wrong with it; None for one that never had a checksum."""
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


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UsageError(f"no split {shown(split)}: splits are {', '.join(SPLITS)}")


def _is_there(dataset: Dataset, root: Path) -> bool:
    try:
        sources_of(dataset, "train", root)
    except DataAbsentError:
        return False
    return True


def _agree(folder: Path, split: str, raw: Raw, expected: tuple[str, ...]) -> tuple[str, ...]:
    """The class names of a labelled split: its own, which in test must be train's, else the expected, else numbers."""
    if split == "test" and raw.classes and raw.classes != expected:
        differ = next((pair for pair in zip(expected, raw.classes, strict=False) if pair[0] != pair[1]), None)
        detail = f"{differ[0]!r} against {differ[1]!r}" if differ else f"{len(expected)} against {len(raw.classes)}"
        raise DataError(f"{folder}: train and test name their classes differently: {detail}")
    assert raw.labels is not None
    return raw.classes or expected or tuple(str(label) for label in range(int(raw.labels.max()) + 1))

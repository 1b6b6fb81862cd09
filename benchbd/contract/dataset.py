"""The axis of data sets that need more than a folder in a known layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchbd.base.content import files_in
from benchbd.base.errors import DataAbsentError
from benchbd.contract.method import Method

if TYPE_CHECKING:
    from benchbd.contract.images import ImageSet


class Dataset(Method):
    """A named data set that needs more than a folder in a known layout.

    splits: the splits, train and test at least, and the number of images of each; 0 if it may vary.
    needs_files: whether ``load`` reads files. A generated data set declares False: it needs no files under the data
        root, and ``check_method`` loads it; a data set with files is only loaded if ``data_root`` is given.
    classes: the class names in label order, if they are known before loading; () if the files contain them. An
        ``ImageSet`` of ``load`` without class names gets these.
    normalization: declared (mean, std) per channel in [0, 1] units; None: computed from the pixels.
    """

    axis: ClassVar[str] = "dataset"
    splits: ClassVar[Mapping[str, int]] = {"train": 0, "test": 0}
    needs_files: ClassVar[bool] = True
    classes: ClassVar[tuple[str, ...]] = ()
    normalization: ClassVar[tuple[tuple[float, ...], tuple[float, ...]] | None] = None

    def sources(self, split: str, root: Path) -> list[Path]:
        """The files that ``load`` reads, in a fixed order: their names and contents are the key of the decoded cache.

        By default all files in ``root/name``, none if ``needs_files`` is False. DataAbsentError if there are
        none, DataError for a link that leads nowhere and for a folder that cannot be read.
        """
        if not self.needs_files:
            return []
        folder = root / self.name
        if not (files := sorted(files_in(folder)) if folder.is_dir() else []):
            raise DataAbsentError(f"{self.name}: no files in {folder} (a generated set declares needs_files = False)")
        return files

    def load(self, split: str, root: Path) -> ImageSet:
        """The images of ``split`` found under ``root`` (the data root), 32x32. DataAbsentError if they do not
        exist. It gets no seed: a generated set draws from a constant one, as ``stream(0, split)``."""
        raise NotImplementedError

    def load_at(self, split: str, root: Path, size: int) -> ImageSet:
        """The images of ``split`` for a board whose images are ``size`` x ``size`` pixels, 32 to 224.

        By default those of ``load``, which are 32x32 and which benchbd resizes (bilinear). A data set with larger
        pictures, or one that is drawn, overrides it and returns ``size`` x ``size``; its ``load`` calls it with 32.
        ``decode_images``, ``resize_images`` and ``blank_images`` make sets that take no memory.
        """
        return self.load(split, root)

    def download(self, root: Path) -> None:
        """Download the official archives into ``root``."""
        raise NotImplementedError

"""Class names and labels: give each class its label, and check labels."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from benchbd.base.errors import DataError

MOST_CLASSES = 10_000  # from this number on, a class name is a number for another reason than being a label

_ALMOST_A_LABEL = re.compile(r"\s*([+-]?\d+(\.0*)?\s*)?")  # -1, 1.0, a blank before a number, or nothing at all

Labels = NDArray[np.int64]


def check_labels(where: object, labels: Labels, classes: tuple[str, ...], lowest: int = 0, images: int = 0) -> None:
    """Check that labels are ``lowest``..C-1, if class names are known. DataError, with the row, if one is not.

    If class names are unknown, the labels determine the number of classes; more classes than images is a mistake.
    images: number of images in the split, if that is more than ``labels``.
    """
    limit = len(classes) if classes else max(len(labels), images, 1)
    bad = np.flatnonzero((labels < lowest) | (labels >= limit))
    if len(bad):
        known = f"{limit} classes are known" if classes else f"no class names, and only {limit} images"
        raise DataError(
            f"{where}: row {bad[0]}: label {labels[bad[0]]} is out of range {lowest}..{limit - 1} ({known})"
        )


def odd_labels(labels: Labels, classes: tuple[str, ...], declared: tuple[str, ...] = ()) -> list[str]:
    """Remarks for a user on labels 0..C-1: classes without a picture, and whether a number means another class
    than in ``declared``."""
    told = []
    counts = np.bincount(labels, minlength=len(classes))
    if absent := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        told.append(f"no pictures of class {', '.join(absent[:5])}{', ...' * (len(absent) > 5)}; labels stay")
    index = _expected(list(classes), declared)[0] if declared else {}
    if moved := [(label, name) for label, name in enumerate(classes) if declared and index.get(name) != label]:
        label, name = moved[0]
        other = declared[label] if label < len(declared) else "none"
        told.append(f"label {label} is {name}, where {other} is declared: the files are followed")
    return told


def name_labels(
    names: Iterable[str], expected: tuple[str, ...], *, fixed: bool = False
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each class name, and all classes in label order.

    The classes are those ``expected`` if all names are among them, by name or by number. Otherwise the names decide: a
    number is its own label, whatever other names there are; other names follow, sorted. A label without a name is
    called by its number, with as many leading zeros as the other names.

    fixed: whether only those expected are allowed, as in a test split. DataError if another class occurs, if two names
    are one number, if a number is too large for a label or no label (-1, 1.0), or if a name is blank.
    """
    names = sorted(names)
    index, unknown = _expected(names, expected)
    if expected and not unknown:
        return index, expected
    if fixed and unknown:
        raise DataError(f"class {unknown[0]}: train has no class of that name")
    if expected and all(name.isdecimal() for name in names):
        known = f"{len(expected)} classes are known"
        raise DataError(f"class {unknown[0]}: label {int(unknown[0])} is out of range 0..{len(expected) - 1} ({known})")
    return _by_names(names)


def _expected(names: list[str], expected: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
    """Labels of the names among the expected classes, by name or by number; and the remaining names."""
    index, unknown = {name: label for label, name in enumerate(expected)}, []
    for name in names:
        if name in index:
            continue
        label = int(name) if name.isdecimal() else len(expected)
        # "3" is the label 3, unless a class with another number has this name.
        if label < len(expected) and (not expected[label].isdecimal() or int(expected[label]) == label):
            index[name] = label
        else:
            unknown.append(name)
    return index, unknown


def _by_names(names: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    numbers: dict[int, str] = {}
    others = []
    for name in names:
        if not name.isdecimal():
            # Sorted as text, 10.0 would come before 2.0 and shift every label behind it.
            if _ALMOST_A_LABEL.fullmatch(name):
                raise DataError(f"class {name!r}: a class has a name, or the number that is its label: 0, 1, 2 ...")
            others.append(name)
        elif (label := int(name)) >= MOST_CLASSES:
            raise DataError(
                f"class {name}: a class that is named by a number has it for its label, up to {MOST_CLASSES - 1:,}; "
                f"name it class-{name} instead"
            )
        elif label in numbers:
            raise DataError(f"classes {numbers[label]} and {name} are one number, and so one label")
        else:
            numbers[label] = name
    widths = {len(name) for name in numbers.values()}
    digits = widths.pop() if len(widths) == 1 else 0
    first = max(numbers, default=-1) + 1
    classes = [*(numbers.get(label, str(label).zfill(digits)) for label in range(first)), *others]
    return {name: label for label, name in enumerate(classes)}, tuple(classes)

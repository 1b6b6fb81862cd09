"""Records as files: written whole, read and verified."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from benchbd.base.content import commit, expanded, make_folder
from benchbd.base.errors import DataError, StoreError, shown
from benchbd.base.inputs import HEAD, kind_of, reading
from benchbd.contract.axes import AXIS
from benchbd.records import verify
from benchbd.records.inspected import INSPECTED
from benchbd.records.models import SCHEMA, Entry, Inspected, Record
from benchbd.records.pictures import read_pictures, write_pictures
from benchbd.records.predictions import path_of
from benchbd.records.replicates import FOLDER as REPLICATES
from benchbd.records.replicates import is_replicate, pooled

E = TypeVar("E", bound=Entry)

PATTERNS = ("*.json", f"{REPLICATES}/*/*.json")
"""The files of records in the folder of cells, or of an axis that inspects."""


def write_records(records: Iterable[Entry], folder: Path) -> list[Path]:
    """Write one file per record and replicate, each replaced atomically, with one of its predictions and its pictures
    if there are any. Files of inspections are in a folder for each axis. Pictures are those beside the file that a
    record was read from; others in ``folder`` stay if their record is the same.

    StoreError if the folder cannot be written, DataError if pictures cannot be read.
    """
    paths, folder = [], expanded(folder)
    try:
        make_folder(folder)
        for record in (each for given in records for each in (given, *given.replicates)):
            text = record.to_json()
            paths.append(file_in(folder, record))
            make_folder(paths[-1].parent)
            _write_pictures(record, text, paths[-1])
            packed = record.packed if isinstance(record, Record) else None
            if packed is not None:
                commit(path_of(paths[-1]), partial(Path.write_bytes, data=packed))
            commit(paths[-1], partial(Path.write_text, data=text, encoding="utf-8"))
            if packed is None:  # the record that this one replaces had some
                path_of(paths[-1]).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"records cannot be written to {folder} ({error.strerror or error})") from error
    return paths


def _write_pictures(record: Entry, text: str, path: Path) -> None:
    """Put the pictures of a record beside the file that its text will have, and remove those of another one."""
    if record.path is not None and record.path.absolute() == path.absolute():
        return
    pictures = {} if record.path is None else read_pictures(record.path)
    if pictures or not (path.is_file() and path.read_bytes() == text.encode()):
        write_pictures(path, pictures)


def folder_of(record: Entry | type[Inspected], folder: Path) -> Path:
    """The folder of a record, under the folder of a board's records."""
    axis = getattr(record, "axis", None)
    return folder if axis is None else folder / AXIS[axis].plural


def file_in(folder: Path, record: Entry) -> Path:
    """The file that a record has when it is written to ``folder``, that of a board's records."""
    return folder_of(record, folder) / (record.file if is_replicate(record) else record.name)


def place_of(record: Entry) -> str:
    """The name of a record's file, with its folder under that of the board's records."""
    return str(folder_of(record, Path()) / record.file)


def remove_record(path: Path) -> None:
    """Remove a record's file, that of its predictions, and its pictures. OSError if they cannot be removed."""
    path.unlink()
    path_of(path).unlink(missing_ok=True)
    write_pictures(path, {})


def read_records(folder: Path) -> list[Record]:
    """Every record of a folder with its replicates, verified, by file name. DataError if a file is no record, cannot be
    read or contradicts itself, or if two are of one cell and no replicates; the text names the file and the field."""
    return _read(folder, Record, verify.cell)


def read_inspected(folder: Path) -> list[Inspected]:
    """Every record of an inspection under ``folder``, the folder of a board's records."""
    found = [_read(folder_of(kind, folder), kind, verify.inspection) for kind in INSPECTED.values()]
    return [record for records in found for record in records]


def read_record(path: Path) -> Record:
    """One record, verified. DataError if the file is no record, cannot be read or contradicts itself."""
    return _read_one(path, Record, verify.cell)


def read_each(folder: Path) -> Iterator[Entry | DataError]:
    """Every record of cells and inspections under ``folder``, verified, or the error that its file gives. Replicates
    are records of their own here."""
    kinds: list[tuple[type[Entry], Callable[[Any], str]]] = [(Record, verify.cell)]
    kinds += [(kind, verify.inspection) for kind in INSPECTED.values()]
    for kind, problem in kinds:
        place = folder_of(kind, folder) if issubclass(kind, Inspected) else folder
        for path in _paths(place):
            try:
                yield _read_one(path, kind, problem, named=True)
            except DataError as error:
                yield error


def _read(folder: Path, kind: type[E], problem: Callable[[E], str]) -> list[E]:
    return pooled(_read_one(path, kind, problem, named=True) for path in _paths(folder))


def _paths(folder: Path) -> list[Path]:
    """The records' files in a folder, those of replicates last; none if there is no such folder."""
    folder = expanded(folder)
    try:
        any(folder.iterdir())  # unlike glob, it raises the error of a folder that cannot be read
        return [path for pattern in PATTERNS for path in sorted(folder.glob(pattern))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _once(path: Path, pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. DataError if a name occurs twice: readers differ in which of the values they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise DataError(f"{path}: not a benchbd record ({shown(twice)} occurs twice in one object)")
    return found


def _read_one(path: Path, kind: type[E], problem: Callable[[E], str], named: bool = False) -> E:
    """named: whether the file must have the record's own name, which tells whose figures they are."""
    path = expanded(path)
    text = b""
    try:
        with reading(path):
            text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
            record = kind.model_validate_json(text, strict=True)
            json.loads(text, object_pairs_hook=partial(_once, path))
    except ValidationError as error:
        if kind is Record and (axis := _inspected(text)):
            raise DataError(f"{path}: a record of {axis}, which has no pictures and no row among cells") from error
        wrong = {fault["loc"]: fault["input"] for fault in error.errors()}
        if isinstance(schema := wrong.get(("schema",)), int) and schema > SCHEMA:
            raise DataError(
                f"{path}: a newer benchbd wrote it (schema {schema}; this one reads up to {SCHEMA}): update benchbd"
            ) from error
        found = kind_of(text[:HEAD])
        if found and not found.startswith("JSON"):
            raise DataError(f"{path}: not a benchbd record (it is {found})") from error
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: not a benchbd record ({field + ': ' if field else ''}{first['msg']})") from error
    among = path.parent.parent.name == REPLICATES
    record.__dict__["file"] = f"{REPLICATES}/{path.parent.name}/{path.name}" if among else path.name
    record.__dict__["path"] = path
    if isinstance(record, Record) and record.predictions is not None and path_of(path).is_file():
        with reading(path):
            record.with_packed(path_of(path).read_bytes())
    if contradiction := problem(record):
        raise DataError(f"{path}: contradicts itself: {contradiction}")
    if named and path.name != record.name:
        raise DataError(f"{path}: this record's file must be called {shown(record.name)}: rename it, or remove it")
    if among and record.source != path.parent.name:
        raise DataError(f"{path}: a replicate of source {record.source}, in the folder of {shown(path.parent.name)}")
    return record


def _inspected(text: bytes) -> str:
    """The axis of a text that is the record of an inspection; else empty."""
    for axis, kind in INSPECTED.items():
        with suppress(ValidationError):
            kind.model_validate_json(text)
            return axis
    return ""

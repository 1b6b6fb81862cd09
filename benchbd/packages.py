"""Encoders and boards as packages: the files of a repository of the Hugging Face Hub, or of a folder in its layout.

README.md                      the card: licence, facts, figures
benchbd.json                   kind, name, licence, and the sha256 of every file but these two
encoder.safetensors            an encoder as ``Encoder.save`` writes it
encoder.safetensors.json       its architecture and normalisation
board.toml                     or a board
records/                       verified records, of the board, or of cells with the encoder, with their pictures

What is pulled is a stranger's: every file must have the digest that benchbd.json gives, an encoder is read as
``import`` reads one, and records are verified. Files that benchbd.json does not list are not fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field, ValidationError

from benchbd._version import __version__
from benchbd.base.content import commit, expanded, file_digest, make_folder
from benchbd.base.errors import BenchbdError, DataError, StoreError, UsageError, first_line, shown
from benchbd.base.inputs import file_kind, is_stand_in, reading
from benchbd.contract.roles import Role
from benchbd.exchange.importing import OWN, import_encoder
from benchbd.exchange.normalisation import beside, shortest, written_beside
from benchbd.nets.encoder import Encoder
from benchbd.planning.board import board_names, board_path, load_board
from benchbd.records.files import read_inspected, read_record, read_records, write_records
from benchbd.records.models import Inspected, Record
from benchbd.records.odd import odd_files
from benchbd.records.places import check_board
from benchbd.records.points import within
from benchbd.report.card import board_card, encoder_card

LICENCES = ("apache-2.0", "mit")

ENCODER, BOARD, MANIFEST, CARD = "encoder.safetensors", "board.toml", "benchbd.json", "README.md"


class _Manifest(BaseModel):
    """The content of benchbd.json."""

    version: Literal[1] = Field(1, alias="schema")
    kind: Literal["encoder", "board"]
    name: Annotated[str, Field(pattern=r"^[^/\\.][^/\\]{0,99}$")]
    licence: str
    benchbd: str
    files: Annotated[dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]], Field(max_length=80_000)]


@dataclass(frozen=True)
class Package:
    """An encoder or a board with all that lies beside it.

    files: content by path, with forward slashes, including the card and benchbd.json.
    """

    kind: Literal["encoder", "board"]
    name: str
    licence: str
    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """sha256 of benchbd.json, which has the digests of the other files."""
        return hashlib.sha256(self.files[MANIFEST]).hexdigest()


class Source(Protocol):
    """Where a package is pulled from. ``fetch`` writes those of its files that exist below a folder."""

    def fetch(self, names: Sequence[str], folder: Path) -> None: ...


# Making a package ----------------------------------------------------------------------------------------------------


def encoder_package(path: str | Path, licence: str, records: Iterable[str | Path] = ()) -> Package:
    """The package of an encoder's file. records: files of records of cells with this encoder.

    UsageError if it is a file of another library, the licence is none of LICENCES, or a record is of another encoder;
    DataError if a file is damaged.
    """
    path, licence = expanded(path), _checked_licence(licence)
    imported = import_encoder(path)
    if imported.layout != OWN:
        raise UsageError(
            f"{path}: an encoder in the layout of {imported.layout}; benchbd import makes it one of benchbd"
        )
    with reading(path):
        content = path.read_bytes()
    encoder, digest, cells = Encoder.load(path), hashlib.sha256(content).hexdigest(), []
    for each in map(expanded, records):
        cells.append(read_record(each))
        if other := _other_encoder(cells[-1], encoder, digest):
            raise UsageError(f"{each}: a record of another encoder than {path}: {other}")
    normalisation = tuple(shortest(encoder.mean)), tuple(shortest(encoder.std))
    files = {
        ENCODER: content,
        beside(Path(ENCODER)).name: written_beside(encoder.arch, OWN, encoder.image_size, normalisation).encode(),
        **_written(cells),
    }
    facts = {
        "name": path.stem,
        "architecture": encoder.arch,
        "features": encoder.feature_dim,
        "image size": f"{encoder.image_size or '32 to 224'} pixels",
        "mean and std of images in [0, 1]": f"{list(normalisation[0])}, {list(normalisation[1])}",
        "projection head": "no" if encoder.head is None else "yes",
        "file": ENCODER,
        "sha256": digest,
    }
    tied = sum(_files_of(cell)[:1] == [digest] for cell in cells)
    return _package("encoder", _name(path.stem), licence, files, encoder_card(facts, licence, cells, tied))


def _other_encoder(record: Record, encoder: Encoder, digest: str) -> str:
    """What a record tells of its cell's encoder that another one, whose file has this digest, contradicts; else empty.

    Most records tell its architecture and normalisation alone; those of a file that ``run --encoder`` got, its digest.
    """
    if (files := _files_of(record)) and files[0] not in ("", digest):
        return f"its encoder is a file with the sha256 {files[0][:12]}, not {digest[:12]}"
    if any(files):
        return ""  # no record tells a file's architecture and normalisation
    arch = within(record.identity, "pretrain", "method", "options", "arch")
    if isinstance(arch, str) and arch != encoder.arch:
        return f"its architecture is {shown(arch)}, not {encoder.arch}"
    told, own = within(record.identity, "pretrain", "params", "normalization"), (encoder.mean, encoder.std)
    for name, theirs, ours in zip(("mean", "std"), told if isinstance(told, list) else (), own, strict=False):
        if not _alike(theirs, shortest(ours)):
            return f"its {name} is {shown(theirs)}, not {shortest(ours)}"
    return ""


def _alike(theirs: object, ours: Sequence[float]) -> bool:
    """Whether a record's JSON is these numbers, but for rounding."""
    numbers = theirs if isinstance(theirs, list) and len(theirs) == len(ours) else [None]
    pairs = zip(numbers, ours, strict=False)
    return all(isinstance(one, int | float) and abs(one - other) < 1e-5 for one, other in pairs)


def _files_of(record: Record) -> list[str]:
    """sha256 of the file that each stage of a record took its encoder from, the last stage first; empty text for a
    stage that made one."""
    files = []
    for kind in (kind for kind in ("defend", "attack", "pretrain") if kind in record.identity):
        file = within(record.identity, kind, "method", "options", "file")
        gives = kind == "pretrain" or (kind == "attack" and record.attack_role is Role.FILE)
        files.append(file if gives and isinstance(file, str) else "")
    return files


def board_package(
    board: str | Path, licence: str, records: Sequence[Record], inspected: Sequence[Inspected]
) -> Package:
    """The package of a board and its records, and of the files that its board.toml names.

    UsageError if one of these files does not lie below the board's folder, or the licence is none of LICENCES.
    """
    licence, loaded, path = _checked_licence(licence), load_board(board), board_path(board)
    check_board([*records, *inspected], loaded.name)
    content = path.read_bytes()
    files = {BOARD: content}
    for named in _texts(tomllib.loads(content.decode("utf-8-sig"))):
        if os.path.isfile(file := path.parent / expanded(named)):  # any text: Path.is_file raises for a long one
            if not _is_safe(named):
                raise UsageError(f"board {path}: its file {shown(named)} lies elsewhere; move it into {path.parent}")
            files[named] = file.read_bytes()
    files |= _written([*records, *inspected])
    return _package("board", loaded.name, licence, files, board_card(loaded, licence, records, inspected))


def _package(
    kind: Literal["encoder", "board"], name: str, licence: str, files: Mapping[str, bytes], card: str
) -> Package:
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())}
    told = {"schema": 1, "kind": kind, "name": name, "licence": licence, "benchbd": __version__, "files": digests}
    manifest = json.dumps(told, indent=1) + "\n"
    return Package(kind, name, licence, {CARD: card.encode(), MANIFEST: manifest.encode(), **files})


def _checked_licence(licence: str) -> str:
    if licence.lower() not in LICENCES:
        raise UsageError(f"licence {shown(licence)}: what is pushed has one of {', '.join(LICENCES)}")
    return licence.lower()


def _name(stem: str) -> str:
    return re.sub(r"[/\\\s]", "-", stem).lstrip(".")[:100] or "encoder"


def _written(records: Sequence[Record | Inspected]) -> dict[str, bytes]:
    """The files of records, by their path in a package."""
    with tempfile.TemporaryDirectory(prefix="benchbd-push-") as name:
        folder = Path(name)
        write_records(records, folder / "records")
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}


def _texts(value: object) -> Iterator[str]:
    """Every text in the values of a TOML file."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _is_safe(name: str) -> bool:
    """Whether a file of this name lies below the folder that it is written to, on every system."""
    parts = name.split("/")
    odd = any(part.startswith(".") or part.endswith((".", " ")) or not part.isprintable() for part in parts)
    return bool(name) and all(parts) and not odd and not set(name) & set('\\:*?"<>|') and len(parts) <= 5


# To and from a folder ------------------------------------------------------------------------------------------------


def write_package(package: Package, folder: str | Path) -> Path:
    """Write a package to a folder that does not exist or is empty; UsageError for any other, StoreError if it cannot be
    written."""
    folder = _free(folder)
    try:
        for name, content in package.files.items():
            make_folder((folder / name).parent)
            commit(folder / name, partial(Path.write_bytes, data=content))
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return folder


def _free(folder: str | Path) -> Path:
    folder = expanded(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; name a folder that does not exist")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder}: is not empty; name a folder that does not exist")
    return folder


@dataclass(frozen=True)
class Folder:
    """A folder as the source of a package."""

    place: Path

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        if not self.place.is_dir():
            raise DataError(f"{self.place}: no such folder")
        with reading(self.place):
            for name in names:
                if (path := self.place / name).is_file():
                    make_folder((folder / name).parent)
                    commit(folder / name, partial(Path.write_bytes, data=path.read_bytes()))


def pull(source: Source, where: str, out: str | Path) -> Package:
    """Fetch a package, verify it, and write it to a folder that does not exist or is empty. where: in messages.

    DataError if it is none, a file has another digest, an encoder or a record is not sound, or its licence is none of
    LICENCES: then nothing is written.
    """
    out = _free(out)
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out.parent}: no such folder")
    try:
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".pull-") as name:
            first = Path(name) / "first"
            first.mkdir()
            source.fetch([MANIFEST], first)
            manifest = _manifest(first / MANIFEST, where)
            if manifest.kind == "board" and out.absolute().name != manifest.name:
                raise UsageError(f"{out}: a board has the name of its folder, and this one is {shown(manifest.name)}")
            folder = Path(name) / "package" / manifest.name
            folder.mkdir(parents=True)
            source.fetch(list(manifest.files), folder)
            _check_digests(folder, manifest, where)
            verify = _verify_encoder if manifest.kind == "encoder" else _verify_board
            verify(folder, manifest, where)
            files = {each: (folder / each).read_bytes() for each in manifest.files}
            files[MANIFEST] = (first / MANIFEST).read_bytes()
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error.strerror or error})") from error
    package = Package(manifest.kind, manifest.name, manifest.licence, files)
    write_package(package, out)
    return package


def _check_digests(folder: Path, manifest: _Manifest, where: str) -> None:
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise DataError(f"{where}: its file {name} is missing")
        if (found := file_digest(folder / name)) != digest:
            kind = file_kind(folder / name)
            reason = f"it is {kind}" if is_stand_in(kind) else f"its sha256 is {found}, not {digest}"
            raise DataError(f"{where}: {name} is damaged or was replaced: {reason}")


def _manifest(path: Path, where: str) -> _Manifest:
    if not path.is_file():
        raise DataError(
            f"{where}: no {MANIFEST} is in it, so benchbd did not push it: download the weights and run benchbd import"
        )
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        kind = file_kind(path)
        reason = f"it is {kind}" if kind and not kind.startswith("JSON") else f"{field or 'JSON'}: {first['msg']}"
        raise DataError(f"{where}: its {MANIFEST} is not one of benchbd ({first_line(reason)})") from error
    if manifest.licence not in LICENCES:
        raise DataError(f"{where}: its licence is {shown(manifest.licence)}; pulled is {' or '.join(LICENCES)}")
    if odd := next((name for name in manifest.files if not _is_safe(name)), None):
        raise DataError(f"{where}: it has a file {shown(odd)}, whose name is not allowed")
    if (needed := ENCODER if manifest.kind == "encoder" else BOARD) not in manifest.files:
        raise DataError(f"{where}: no {needed} is in it")
    own = {ENCODER, beside(Path(ENCODER)).name}
    other = (name for name in manifest.files if name not in own and PurePosixPath(name).parts[0] != "records")
    if manifest.kind == "encoder" and (odd := next(other, None)):
        raise DataError(f"{where}: an encoder with a file {shown(odd)}, which belongs to none")
    return manifest


def _check_records(folder: Path) -> None:
    """DataError if a folder of records has a file that is none of theirs."""
    if odd := next(odd_files(folder), None):
        raise DataError(f"records/{odd[0]}: {odd[1]}")


def _verify_encoder(folder: Path, manifest: _Manifest, where: str) -> None:
    try:
        _check_records(folder / "records")
        imported = import_encoder(folder / ENCODER)
        for record in read_records(folder / "records"):
            if other := _other_encoder(record, imported.encoder, manifest.files[ENCODER]):
                raise DataError(f"records/{record.file} is of another encoder: {other}")
    except BenchbdError as error:
        raise DataError(f"{where}: {_without(error, folder)}") from error
    if imported.layout != OWN:
        raise DataError(f"{where}: {ENCODER} is in the layout of {imported.layout}, not of benchbd")


def _verify_board(folder: Path, manifest: _Manifest, where: str) -> None:
    try:
        _check_records(folder / "records")
        if manifest.name not in board_names():
            load_board(folder)
        elif (folder / BOARD).read_bytes() != board_path(manifest.name).read_bytes():
            raise DataError(f"its {BOARD} is not that of benchbd's board {manifest.name}")
        check_board([*read_records(folder / "records"), *read_inspected(folder / "records")], manifest.name)
    except BenchbdError as error:
        raise DataError(f"{where}: {_without(error, folder)}") from error


def _without(error: BenchbdError, folder: Path) -> str:
    """An error's text without the temporary folder."""
    return str(error).replace(f"{folder}{os.sep}", "").replace(f"{folder.parent}{os.sep}", "")

"""Encoders that lie beside records: each holds its sha256, loads, and is of a stage of the records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchbd.audit.findings import Finding
from benchbd.base.errors import BenchbdError
from benchbd.nets.encoder import Encoder
from benchbd.published import FOLDER, Published, read_one
from benchbd.records.models import Entry

LARGEST = 100_000_000  # bytes of an encoder: a ResNet-50 in single precision

_LARGEST_MANIFEST = 1_000_000  # bytes


def check(folder: Path, records: Iterable[Entry]) -> Iterator[Finding]:
    """What does not hold of the encoders beside the folder of records; nothing of them is run."""
    if folder.is_symlink():
        yield Finding(1, FOLDER, "a link; encoders are files")
        return
    keys = {key for record in records for key in record.stages.values()}
    seen: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        place = f"{FOLDER}/{path.relative_to(folder).as_posix()}"
        if text := _odd(path, folder):
            yield Finding(1, place, text)
        elif path.suffix == ".json":
            try:
                found = read_one(path)
                if found.key not in keys:
                    yield Finding(1, place, f"of the stage {found.key[:12]}, which no record has")
                elif other := seen.setdefault(found.key, path):
                    if other != path:
                        yield Finding(1, place, f"of one stage with {other.name}")
                    _load(found)
            except BenchbdError as error:
                yield Finding(1, place, str(error).removeprefix(f"{path}: ").replace(f"{folder}/", ""))


def _odd(path: Path, folder: Path) -> str:
    """Why a file is none that a submission has; else empty."""
    if path.is_symlink():
        return "a link; encoders are files"
    if path.is_dir() or path.parent != folder or path.suffix not in (".json", ".safetensors"):
        return "neither an encoder nor its manifest"
    most = LARGEST if path.suffix == ".safetensors" else _LARGEST_MANIFEST
    if (size := path.stat().st_size) > most:
        return f"{size:,} bytes; it has at most {most:,}"
    if path.suffix == ".safetensors" and not path.with_suffix(".json").is_file():
        return "an encoder without its manifest"
    return ""


def _load(found: Published) -> None:
    """BenchbdError if the file is here and is not the manifest's encoder."""
    if found.file.is_file():
        encoder = Encoder.from_bytes(found.read())
        if encoder.arch != found.architecture:
            raise BenchbdError(f"an encoder of {encoder.arch}, but the manifest tells {found.architecture}")

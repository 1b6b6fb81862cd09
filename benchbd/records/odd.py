"""Files in a folder of records that no run or submission writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchbd.records.files import folder_of
from benchbd.records.inspected import INSPECTED
from benchbd.records.pictures import MOST, PICTURES, picture_fault
from benchbd.records.replicates import FOLDER as REPLICATES

LARGEST = 8_000_000  # bytes of a record's file, or of its predictions: 50,000 images under three heads take 600,000


def odd_files(folder: Path) -> Iterator[tuple[str, str]]:
    """The place under ``folder`` of each such file, and what is wrong: links, large ones, predictions and pictures
    without a record, pictures that are not sound, and everything else that is no record."""
    homes = {folder, *(folder_of(kind, folder) for kind in INSPECTED.values())}
    homes |= {path for home in homes for path in home.glob(f"{REPLICATES}/*")}
    for path in sorted(folder.rglob("*")):
        if text := _fault(path, homes):
            yield path.relative_to(folder).as_posix(), text


def _fault(path: Path, homes: set[Path]) -> str:
    """What is wrong with a file or folder; empty if nothing is. homes: the folders with records."""
    if path.is_symlink():
        return "a link; records are files"
    if path.is_dir():
        size = sum(each.stat().st_size for each in path.glob("*.png") if each.is_file())
        return f"pictures of {size:,} bytes; those of a record have at most {MOST:,}" if size > MOST else ""
    if not path.is_file():
        return "neither a file nor a folder"
    if (size := path.stat().st_size) > LARGEST:
        return f"{size:,} bytes; a record has at most {LARGEST:,}"
    if path.suffix == ".png":
        return _picture_fault(path, homes)
    if path.suffix not in (".json", ".safetensors"):
        return "neither a record, nor its predictions, nor a picture of it"
    if path.parent not in homes:
        return "in a folder that has no records"
    if path.suffix == ".safetensors" and not path.with_suffix(".json").is_file():
        return "predictions of no record"
    return ""


def _picture_fault(path: Path, homes: set[Path]) -> str:
    record = path.parent.with_name(f"{path.parent.name}.json")
    if path.parent in homes or record.parent not in homes or not record.is_file():
        return "a picture of no record"
    if path.stem not in PICTURES:
        return f"no picture of a record has this name; they are {', '.join(PICTURES)}"
    return "" if path.stat().st_size > MOST else picture_fault(path.read_bytes())  # the folder is at fault if too large

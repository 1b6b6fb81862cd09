"""Encoders published with a board: anyone loads them by name, and a store takes them instead of computing them.

<board>/encoders/NAME.json           the manifest of the encoder's stage, as its store had it: identity, sha256, cost
<board>/encoders/NAME.safetensors    the encoder; absent if it is published by its sha256 alone
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchbd.base.content import make_folder, write_file
from benchbd.base.errors import DataError, UnknownNameError, UsageError, shown
from benchbd.base.inputs import reading
from benchbd.contract.roles import Role
from benchbd.planning.board import board_names, board_path
from benchbd.planning.sweeps import point_text
from benchbd.records.files import read_records
from benchbd.records.models import Entry, Record
from benchbd.stages.base import ENCODER, Stage
from benchbd.store.store import MANIFEST, Store, parse_manifest

FOLDER = "encoders"

LONGEST = 120  # characters of a file's name without its ending


@dataclass(frozen=True)
class Published:
    """An encoder with its manifest. file: where it lies, if it does. key: of its stage."""

    key: str
    manifest: bytes
    sha256: str
    architecture: str
    file: Path

    def read(self) -> bytes:
        """The encoder's file. DataError if it is absent or has another sha256."""
        if not self.file.is_file():
            raise DataError(f"{self.file}: is published by its sha256 alone: run its board to compute it")
        with reading(self.file):
            content = self.file.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DataError(f"{self.file}: is damaged or was replaced: its sha256 is not {self.sha256}")
        return content


def read_published(folder: Path) -> dict[str, Published]:
    """The encoders of a folder by key; none if there is no folder. DataError for a manifest that is damaged."""
    return {each.key: each for path in sorted(folder.glob("*.json")) for each in [read_one(path)]}


def read_one(path: Path) -> Published:
    """The encoder of a manifest. DataError if it is damaged, or of a stage that makes no encoder."""
    with reading(path):
        content = path.read_bytes()
    manifest = parse_manifest(content, path)
    if manifest is None or ENCODER not in manifest["blobs"]:
        raise DataError(f"{path}: {'damaged' if manifest is None else 'of a stage that makes no encoder'}")
    told = manifest["key"], content, manifest["blobs"][ENCODER], manifest["architecture"]
    return Published(*told, path.with_suffix(".safetensors"))


def published_encoder(name: str) -> bytes:
    """The file of a published encoder without a defense, by name: BOARD/ATTACK/sSEED, with PRETRAIN, TASK:TARGET or
    the point of a sweep before the seed where a board has several.

    UsageError, with the names that there are, for a name of none or of several; DataError if it is absent or damaged.
    """
    board, *words, last = name.split("/")
    if not words or not (seeded := re.fullmatch(r"s(\d+)", last)):
        raise UsageError(f"encoder {shown(name)}: a name is BOARD/ATTACK/sSEED, such as cifar10-small/badencoder/s1")
    if board not in board_names():
        raise UnknownNameError("board", board, board_names())
    home, attack, narrower = board_path(board).parent, words[0], words[1:]
    records = [r for r in read_records(home / "records") if r.defense_role is Role.FLOOR and not r.beside]
    if attack not in (known := sorted({record.attack for record in records})):
        raise UnknownNameError(f"attack of the published records of {board}", attack, known)
    of_attack = [record for record in records if record.attack == attack and record.on_board]
    mine = [record for record in of_attack if record.seed == int(seeded[1])]
    if not mine:
        seeds = ", ".join(f"s{seed}" for seed in sorted({record.seed for record in of_attack}))
        raise UsageError(f"encoder {shown(name)}: board {board} has no {attack} of that seed; it has {seeds}")
    found: dict[str, list[Record]] = {}
    for record in mine:
        if all(word in _words(record) for word in narrower):
            found.setdefault(undefended_key(record), []).append(record)
    if len(found) != 1:
        each = {tuple(sorted(_words(record))) for record in mine}
        telling = {word for words in each for word in words if not all(word in other for other in each)}
        what = "names no encoder" if not found else f"names {len(found)} encoders"
        raise UsageError(f"encoder {shown(name)}: {what}; put one of {', '.join(sorted(telling))} before {last}")
    (key,) = found
    if key not in (there := read_published(home / FOLDER)):
        raise UsageError(f"encoder {shown(name)}: board {board} does not publish it: run the board")
    return there[key].read()


class Listed(NamedTuple):
    """A published encoder for readers. name: as ``load_encoder`` takes it. size: bytes; None if only the manifest is
    published."""

    name: str
    architecture: str
    sha256: str
    size: int | None


def listed(board: str, home: Path, records: Iterable[Record]) -> list[Listed]:
    """The undefended encoders in a board's folder, by name, the shortest that names one of them."""
    there = read_published(home / FOLDER)
    of: dict[tuple[str, int], dict[str, set[str]]] = {}
    for record in records:
        if record.defense_role is Role.FLOOR and not record.beside and (key := undefended_key(record)) in there:
            shared = of.setdefault((record.attack, record.seed), {})
            shared[key] = shared.get(key, _words(record)) & _words(record)
    found = []
    for (attack, seed), keys in sorted(of.items()):
        for key, words in sorted(keys.items(), key=lambda item: sorted(item[1])):
            others = [word for other, them in keys.items() if other != key for word in them]
            telling = [word for word in sorted(words) if len(keys) > 1 and word not in others]
            each = there[key]
            size = each.file.stat().st_size if each.file.is_file() else None
            name = "/".join([board, attack, *telling[:1], f"s{seed}"])
            found.append(Listed(name, each.architecture, each.sha256, size))
    return found


def undefended_key(record: Entry) -> str:
    """The key of the stage that made the attacked encoder, or of the clean one without an attack."""
    return record.stages.get("attack", record.stages.get("pretrain", ""))


def _words(record: Record) -> set[str]:
    """The words that tell a record's encoder from others of its attack and seed."""
    told = {record.pretrain, f"{record.task}:{record.target}", point_text(record.point)}
    return {word for word in told if word}


def fill(store: Store, encoders: Iterable[Published]) -> None:
    """Put published encoders into a store, as if it had computed them. DataError if one is damaged."""
    for each in encoders:
        store.take(each.key, each.manifest, {ENCODER: each.read()})


def missing(store: Store, home: Path, stages: Iterable[Stage]) -> list[Published]:
    """The encoders published in a board's folder that are of these stages and that a store lacks, as far as their files
    are here."""
    there = read_published(home / FOLDER)
    wanted = (there[stage.key] for stage in stages if stage.key in there and not store.has(stage.key))
    return [each for each in wanted if each.file.is_file()]


def encoder_names(records: Iterable[Entry]) -> dict[str, str]:
    """A readable name, in a file's letters, for each encoder of the records, by the key of its stage: attack, defense,
    pre-training set, task, seed and point, as far as all its records have the same."""
    uses: dict[str, list[tuple[str, ...]]] = {}
    for record in records:
        attacked = "attack" in record.stages
        point = "+".join(f"{option}={value}" for option, value in sorted(record.point.items()))
        place = record.pretrain, _task(record) if attacked else "", f"s{record.seed}", point
        if attacked or record.attack_role is Role.FLOOR:
            uses.setdefault(undefended_key(record), []).append((record.attack, "", *place))
        if key := record.stages.get("defend"):
            uses.setdefault(key, []).append((record.attack, getattr(record, "defense", ""), *place))
    named: dict[str, str] = {}
    for key, each in sorted(uses.items()):
        parts = [values[0] for values in zip(*each, strict=True) if len({*values}) == 1]
        name = re.sub(r"[^\w.+=-]", "-", "_".join(filter(None, parts)))[:LONGEST]
        named[key] = f"{name}_{key[:8]}" if name in named.values() else name
    return named


def _task(record: Entry) -> str:
    return f"{record.task}-{record.target}" if isinstance(record, Record) else ""


def write_published(folder: Path, store: Store, names: Mapping[str, str], whole: Collection[str] = ()) -> int:
    """Write the manifests of those encoders that a store has, by key and name, and the encoders themselves of the keys
    in ``whole``; their number."""
    there = {key: name for key, name in names.items() if (store.folder(key) / ENCODER).is_file()}
    if there:
        make_folder(folder)
    for key, name in there.items():
        source, path = store.folder(key), folder / f"{name}.json"
        write_file(path, (source / MANIFEST).read_bytes())
        if key in whole:
            write_file(path.with_suffix(".safetensors"), (source / ENCODER).read_bytes())
    return len(there)

"""A gallery of known encoders: what detectors said of clean and of backdoored ones, gathered from published records.

An encoder counts once in a population, and only if its inspection has a result: one whose attack did not take is no
backdoored encoder, and is counted with the failed ones. Reading a gallery imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchbd.base.content import canonical, expanded
from benchbd.base.errors import DataError
from benchbd.base.inputs import file_kind, reading
from benchbd.contract.roles import Role
from benchbd.planning.board import Board, board_names, boards_folder, load_board
from benchbd.records.detection import DetectionRecord
from benchbd.records.files import read_inspected
from benchbd.records.gates import judge
from benchbd.records.points import within

GALLERY = Path(__file__).with_name("gallery.json")
"""The gallery of benchbd's own boards; `make docs` writes it."""

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Named(_Part):
    """A method as identities have it: axis, name, version, every option, and what else its plugin counts."""

    model_config = ConfigDict(extra="allow")

    axis: str
    name: str
    version: str
    options: dict[str, Any]


class Scored(_Part):
    """An inspected encoder. encoder: its key. clean: that of the clean encoder that it is or was made from. record:
    sha256 of the record's file."""

    score: float
    flagged: bool
    encoder: _Digest
    clean: _Digest
    record: _Digest


class Attacked(_Part):
    """Encoders that one attack put a backdoor into."""

    attack: Named
    encoders: tuple[Scored, ...]


class Population(_Part):
    """Encoders of one architecture and pre-training that one detector inspected in one way.

    images, size: number of the defender's images, and their height and width in pixels. pool: digest of the data set
    that they were drawn from. prepared: key of the stage in which the detector prepared itself; None if it does not.
    numerics: of the inspections. pretrain: name of the data set of pre-training, which is
    that of the images too. pretrain_digest: its digest. boards: those of the records.
    left_out: inspections that do not count, by status (those of clean encoders as "clean failed"), or as "inspected
    again".
    """

    detection: Named
    architecture: str
    images: int
    size: int
    pool: str
    prepared: str | None
    numerics: dict[str, Any]
    pretraining: Named
    pretrain: str
    pretrain_digest: str
    boards: tuple[str, ...]
    clean: tuple[Scored, ...]
    attacks: tuple[Attacked, ...]
    left_out: dict[str, int]

    @property
    def attacked(self) -> tuple[Scored, ...]:
        """The backdoored encoders of every attack."""
        return tuple(encoder for each in self.attacks for encoder in each.encoders)


class Gallery(_Part):
    """Populations, and the number of records that belong to none, by reason."""

    schema_version: Literal[1] = Field(1, alias="schema")
    populations: tuple[Population, ...] = ()
    left_out: dict[str, int] = {}

    def to_json(self) -> str:
        """The content of the gallery's file."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n"


def gather(found: Iterable[tuple[Board, Sequence[DetectionRecord]]]) -> Gallery:
    """The gallery of these boards, each with its records. A record is placed by its identity, so that records of
    several boards share a population if they are comparable."""
    placed: dict[str, list[tuple[Board, DetectionRecord]]] = {}
    left_out: Counter[str] = Counter()
    for board, records in found:
        for record in sorted(records, key=lambda record: (record.seed, record.name, record.key)):
            if reason := _stranger(record):
                left_out[reason] += 1
            else:
                placed.setdefault(canonical(_place(board, record)), []).append((board, record))
    populations = [_population(json.loads(place), placed[place]) for place in sorted(placed)]
    return Gallery(populations=tuple(populations), left_out=dict(sorted(left_out.items())))


def gather_published() -> Gallery:
    """The gallery of the records that are published with benchbd's boards."""
    boards = [load_board(name) for name in board_names()]
    return gather((board, detections(boards_folder() / board.name / "records")) for board in boards)


def detections(folder: Path) -> list[DetectionRecord]:
    """The detectors' records in a folder of a board's records, verified."""
    return [record for record in read_inspected(folder) if isinstance(record, DetectionRecord)]


def read_gallery(path: str | Path = GALLERY) -> Gallery:
    """The gallery in a file. DataError, of one line, if it cannot be read or is none."""
    path = expanded(path)
    try:
        with reading(path):
            found = Gallery.model_validate_json(path.read_bytes())
        if "schema_version" not in found.model_fields_set:  # {} has every field's default
            raise DataError(f"{path}: not a gallery of `benchbd gallery build` (schema: Field required)")
        return found
    except ValidationError as error:
        kind, first = file_kind(path), error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        why = f"it is {kind}" if kind and "text" not in kind else f"{field + ': ' if field else ''}{first['msg']}"
        raise DataError(f"{path}: not a gallery of `benchbd gallery build` ({why})") from error


_PLACE: dict[str, tuple[str, ...]] = {
    "detection": ("detect", "method"),
    "architecture": ("pretrain", "method", "options", "arch"),
    "images": ("detect", "params", "clean", "count"),
    "pool": ("detect", "data", "pool"),
    "numerics": ("detect", "numerics"),
    "pretraining": ("pretrain", "method"),
    "pretrain_digest": ("pretrain", "data", "pool"),
}
"""What encoders of one population share, and where a record's identity has it."""


def _stranger(record: DetectionRecord) -> str:
    """Why a record belongs to no population; empty if it belongs to one."""
    if "head" in record.identity:
        return "a classifier was inspected, not an encoder"
    if record.attack_role is Role.CONTROL:
        return "the encoder is a control's, neither clean nor backdoored"
    if within(record.identity, "detect", "params", "clean", "poisoned"):
        return "some of the defender's images had the trigger"
    methods = ["detect", "pretrain"] if record.attack_role is Role.FLOOR else ["detect", "pretrain", "attack"]
    needed = [*_PLACE.values(), *((kind, "method", field) for kind in methods for field in Named.model_fields)]
    missing = [".".join(path) for path in needed if within(record.identity, *path) is None]
    return f"the identity has no {missing[0]}" if missing else ""


def _place(board: Board, record: DetectionRecord) -> dict[str, Any]:
    """All that encoders of one population share. The size of the images is the board's: no identity has it but in the
    digests of the data."""
    prepared = record.identity.get("prepare")
    return {
        "size": board.image_size,
        "prepared": None if prepared is None else _sha256(canonical(prepared)),
        **{part: within(record.identity, *path) for part, path in _PLACE.items()},
    }


def _population(place: dict[str, Any], found: Sequence[tuple[Board, DetectionRecord]]) -> Population:
    clean: dict[str, Scored] = {}
    attacks: dict[str, dict[str, Scored]] = {}
    left_out: Counter[str] = Counter()
    for board, record in found:
        floor = record.attack_role is Role.FLOOR
        status, _ = judge(record, board.gates)
        if status != "ok" or record.score is None or record.flagged is None:
            left_out[f"clean {status}" if floor else status] += 1
            continue
        of = clean if floor else attacks.setdefault(canonical(record.identity["attack"]["method"]), {})
        origin = _sha256(canonical(record.identity["pretrain"]))
        encoder = origin if floor else _sha256(canonical(record.identity["attack"]))
        known = Scored(
            score=record.score,
            flagged=record.flagged,
            encoder=encoder,
            clean=origin,
            record=_sha256(record.to_json()),
        )
        if of.setdefault(encoder, known) is not known:  # inspected under two run seeds, or on two boards
            left_out["inspected again"] += 1
    told = {
        **place,
        "pretrain": found[0][1].pretrain,
        "boards": tuple(dict.fromkeys(board.name for board, _ in found)),
        "clean": tuple(clean.values()),
        "attacks": [
            {"attack": json.loads(attack), "encoders": tuple(encoders.values())}
            for attack, encoders in sorted(attacks.items())
        ],
        "left_out": dict(sorted(left_out.items())),
    }
    try:
        return Population.model_validate(told)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{found[0][1].file}: identity: {field}: {error.errors()[0]['msg']}") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

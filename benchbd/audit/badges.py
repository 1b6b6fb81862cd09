"""Badges: records that somebody computed again, in ``verified.json`` beside a board; the site shows them.

A badge is the word of the one who ran `benchbd verify --tier N --badges`, under review as the records are. It holds
for the content of a record: an edited record has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from benchbd.audit.again import Told
from benchbd.base.content import write_file
from benchbd.base.errors import DataError
from benchbd.base.inputs import reading
from benchbd.records.files import place_of
from benchbd.records.models import LONGEST_AUTHOR, Entry

FILE = "verified.json"


class Badge(BaseModel):
    """tier: the highest that a record held. verdict: whether counts were equal, or figures compatible. sha256: of the
    record's text. by: who computed it again, in any words."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tier: Literal[2, 3]
    verdict: Literal["equal", "compatible"]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    by: str = Field("", max_length=LONGEST_AUTHOR)


class _Badges(RootModel[dict[str, Badge]]):
    pass


def read_badges(home: Path, records: Iterable[Entry]) -> dict[str, Badge]:
    """The badges in a board's folder, by place, of these records as they are. DataError if the file is damaged."""
    path = home / FILE
    if not path.is_file():
        return {}
    with reading(path):
        content = path.read_bytes()
    try:
        known = _Badges.model_validate_json(content).root
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    of = {place_of(record): record for record in records}
    return {place: badge for place, badge in known.items() if place in of and badge.sha256 == digest_of(of[place])}


def digest_of(record: Entry) -> str:
    """sha256 of the record's text."""
    return hashlib.sha256(record.to_json().encode()).hexdigest()


def renewed(
    badges: Mapping[str, Badge], verdicts: Iterable[tuple[int, Told]], records: Iterable[Entry], by: str = ""
) -> dict[str, Badge]:
    """The badges after verdicts, in the order of their tiers: a record that is different loses its badge."""
    made, digests = dict(badges), {place_of(record): digest_of(record) for record in records}
    for tier, told in verdicts:
        if told.verdict == "different":
            made.pop(told.place, None)
        elif told.verdict != "not checked" and tier in (2, 3):
            badge = Badge.model_validate(
                {"tier": tier, "verdict": told.verdict, "sha256": digests[told.place], "by": by}, strict=True
            )
            if told.place not in made or made[told.place].tier <= tier:
                made[told.place] = badge
    return dict(sorted(made.items()))


def write_badges(home: Path, badges: Mapping[str, Badge]) -> Path:
    """Write the file of badges; its path."""
    write_file(home / FILE, (_Badges(dict(badges)).model_dump_json(indent=1) + "\n").encode())
    return home / FILE

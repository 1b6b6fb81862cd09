"""A forger: edits records, then makes keys, names, percentages and digests agree with the edit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchbd.base.content import canonical
from benchbd.base.seeds import derive_seed
from benchbd.records.models import Record
from benchbd.records.predictions import path_of

Json = dict[str, Any]

_ORDER = ("pretrain", "reference", "attack", "defend", "evaluate")


class Forger:
    """Works on a copy of a folder of records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, stem: str) -> Json:
        found: Json = json.loads((self.folder / f"{stem}.json").read_text())
        return found

    def forge(self, stem: str, edit: Callable[[Json], None], packed: bytes | None = None, keep: bool = False) -> str:
        """Write the edited record under the name that it then has. packed: other predictions. keep: the original
        stays."""
        data = self.read(stem)
        old = self.folder / f"{stem}.json"
        content = path_of(old).read_bytes() if packed is None else packed
        edit(data)
        _rekeyed(data)
        _percentages(data)
        data["predictions"] = hashlib.sha256(content).hexdigest()
        if not keep:
            old.unlink()
            path_of(old).unlink()
        name = Record.model_validate(data).name
        (self.folder / name).write_text(json.dumps(data))
        path_of(self.folder / name).write_bytes(content)
        return name.removesuffix(".json")


def reseeded(seed: int) -> Callable[[Json], None]:
    """Give a record another run seed, with the seeds that follow from it."""

    def edit(data: Json) -> None:
        data["seed"] = seed
        for name, identity in data["identity"].items():
            kind = name.rstrip("0123456789")
            identity["seed"] = derive_seed(seed, kind)
            params = identity["params"]
            if "pool_seed" in params:
                params["pool_seed"] = derive_seed(seed, "pretrain")
            if "clean" in params:
                params["clean"]["seed"] = derive_seed(seed, "clean")

    return edit


def _rekeyed(data: Json) -> None:
    """Keys of all stages, from the first to the last."""
    renamed: dict[str, str] = {}
    for name in sorted(data["identity"], key=lambda name: _ORDER.index(name.rstrip("0123456789"))):
        identity = data["identity"][name]
        old = data["stages"][name]
        identity["parents"] = {role: renamed.get(key, key) for role, key in identity["parents"].items()}
        renamed[old] = data["stages"][name] = hashlib.sha256(canonical(identity).encode()).hexdigest()
    data["key"] = data["stages"]["evaluate"]


def _percentages(data: Json) -> None:
    for name, counts, names in (
        ("metrics", "counts", ("acc", "asr", "asr_nontarget", "ra")),
        ("baseline", "baseline_counts", ("ca", "asr_b", "asr_b_nontarget", "ra_b")),
    ):
        own = data[counts]
        figures = (
            own["correct"] / own["total"],
            own["hits"] / own["total"],
            own["hits_nontarget"] / own["nontarget"],
            own["correct_triggered"] / own["nontarget"],
        )
        for field, value in zip(names, figures, strict=True):
            data[name][field] = round(100 * value, 4)

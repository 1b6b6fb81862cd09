"""Tiers 2 and 3 of an audit: records are computed again and compared."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchbd.audit import again
from benchbd.audit.again import Recomputed, Told, finding
from benchbd.audit.badges import read_badges
from benchbd.cli.main import main
from benchbd.records.files import place_of, read_records
from benchbd.records.models import Counts, Record
from benchbd.records.predictions import pack
from benchbd.registry import Registry

from ..boards import Tiny
from ..records_factory import counts_of, make_record
from .forger import Forger, Json

REPAIRED = "badencoder_ft_pool_task-1_s1_mlp"


def verify(tiny: Tiny, records: Path, tier: int, *more: str) -> Result:
    places = {"--records": records, "--store": tiny.store, "--data-root": tiny.data, "--tier": tier, "--device": "cpu"}
    return CliRunner().invoke(
        main, ["verify", str(tiny.board), *(str(p) for each in places.items() for p in each), *more]
    )


def test_a_true_record_is_equal_in_all_tiers(ran: Tiny, records: Path) -> None:
    done = verify(ran, records, 3, "--only", f"{REPAIRED}.json", "--badges", "--by", "us")
    assert (done.exit_code, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("no data.json beside the board")
    assert lines[1:] == [
        "tier 1: 6 records, all of them hold",
        f"tier 2: {REPAIRED}.json: equal",
        "tier 2: 1 equal",
        f"tier 3: {REPAIRED}.json: equal",
        "tier 3: 1 equal",
        f"wrote 1 badge to {ran.board.parent / 'verified.json'}",
    ]
    (badge,) = read_badges(ran.board.parent, read_records(records)).values()
    assert (badge.tier, badge.verdict, badge.by) == (3, "equal", "us")
    assert verify(ran, records, 1, "--badges").exit_code == 2


def test_counts_edited_together_with_predictions_fall_in_tier_2(ran: Tiny, records: Path) -> None:
    """The forger claims that every image is right with and without the trigger. The counts follow from it."""

    def perfect(data: Json) -> None:
        total, nontarget = data["counts"]["total"], data["counts"]["nontarget"]
        hits = total - nontarget
        data["counts"] |= {"correct": total, "hits": hits, "hits_nontarget": 0, "correct_triggered": nontarget}

    labels = np.arange(30) % 3
    stem = Forger(records).forge(REPAIRED, perfect, pack(labels, labels))
    assert stem == REPAIRED
    assert verify(ran, records, 1).exit_code == 0  # without the pinned labels of the data
    done = verify(ran, records, 2, "--only", f"{REPAIRED}.json")
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{REPAIRED}.json: ACC 100.0, but the stored encoder gives ")


def test_figures_of_clean_images_that_the_encoder_lacks_fall_in_tier_2(ran: Tiny, records: Path) -> None:
    """The forger claims that the repair moved the features far, so that its trial is taken."""

    def far(data: Json) -> None:
        data["clean_features"]["cosine"] -= 0.1

    assert Forger(records).forge(REPAIRED, far) == REPAIRED
    assert verify(ran, records, 1).exit_code == 0
    done = verify(ran, records, 2, "--only", f"{REPAIRED}.json")
    assert done.exit_code == 1
    assert re.fullmatch(
        rf"{REPAIRED}\.json: clean_features\.cosine: \S+, but the stored encoder gives \S+", done.stdout.strip()
    )


def test_what_the_store_lacks_is_not_checked(ran: Tiny, records: Path, tmp_path: Path) -> None:
    empty = Tiny.__new__(Tiny)
    empty.store, empty.data, empty.board = tmp_path / "empty", ran.data, ran.board
    done = verify(empty, records, 2, "--only", f"{REPAIRED}.json")
    assert done.exit_code == 0
    assert "tier 2: 1 not checked" in done.stderr
    assert "the store has no pretrain " in done.stderr


# The verdict ---------------------------------------------------------------------------------------------------------


def recomputed(acc: float, asr: float, heads: list[float] | None = None, forwards: int = 1000) -> Recomputed:
    counts = counts_of((acc, asr, asr))
    parts = [each for head in heads or [] if (each := counts_of((acc, head, head))) is not None]
    assert counts is not None
    return Recomputed(counts, parts, forwards)


def claimed(acc: float, asr: float, forwards: int = 1000) -> Record:
    return make_record(defense="ft", metrics=(acc, asr, asr), forwards=forwards, seconds=1.0)


@pytest.mark.parametrize(
    ("own", "same", "fresh", "verdict"),
    [
        ((80, 10), recomputed(80, 10), recomputed(70, 60), "equal"),
        ((80, 10), recomputed(79, 11.5), recomputed(80, 11), "compatible"),  # within two points
        ((80, 10), recomputed(80, 84), recomputed(79, 88), "different"),  # the method never ran
        ((80, 50), recomputed(80, 12), recomputed(80, 54), "compatible"),  # between two draws of the method
        ((80, 30), recomputed(80, 60, [50, 60, 70]), recomputed(80, 58), "compatible"),  # heads lie far apart
        ((90, 10), recomputed(80, 10), recomputed(80, 10), "different"),
    ],
)
def test_the_verdict(own: tuple[float, float], same: Recomputed, fresh: Recomputed, verdict: str) -> None:
    record = claimed(*own)
    told = again._judged(record, {"same": same, "fresh": fresh}, 3)
    assert told.verdict == verdict
    assert (finding(told, 3) is not None) == (verdict == "different")
    assert (told.text == "") == (verdict != "different")


def test_work_that_was_not_done_falls_in_tier_3() -> None:
    record = claimed(80, 10, forwards=100)
    found = {"same": recomputed(80, 10), "fresh": recomputed(80, 10)}
    told = again._judged(record, found, 3)
    assert told == Told(place_of(record), "different", "cost.defend.image_forwards: 100, but the method takes 1000")
    assert again._judged(record, found, 2).verdict == "equal"  # which lets no method work


@pytest.mark.slow
def test_a_defense_that_never_ran_falls_in_tier_3(tmp_path: Path, registry: Registry) -> None:
    """The store's encoder of ft is that of scratch, and the record was measured on it: tier 2 finds it equal."""
    from benchbd.api import Session
    from benchbd.planning.selection import Selection

    def session(*defenses: str) -> Session:
        chosen = Selection.of(attacks=("badencoder",), defenses=defenses, only=True)
        return Session.open("demo", chosen, store=tmp_path, device="cpu", registry=registry)

    (true,) = session("ft").run()
    (other,) = session("scratch").run()
    session("none").run()
    folders = [tmp_path / "stages" / key[:2] / key for key in (true.stages["defend"], other.stages["defend"])]
    content = (folders[1] / "encoder.safetensors").read_bytes()
    (folders[0] / "encoder.safetensors").write_bytes(content)
    manifest: dict[str, Any] = json.loads((folders[0] / "manifest.json").read_text())
    manifest["blobs"]["encoder.safetensors"] = hashlib.sha256(content).hexdigest()
    (folders[0] / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(tmp_path / "stages" / true.key[:2] / true.key)
    (false,) = session("ft").run()
    assert isinstance(false.counts, Counts)
    assert false.counts != true.counts
    arguments = ["verify", "demo", "--records", str(tmp_path / "records/demo"), "--store", str(tmp_path)]
    done = CliRunner().invoke(main, [*arguments, "--tier", "3", "--device", "cpu", "--only", "badencoder_ft_*"])
    assert "tier 2: 1 equal" in done.stderr
    assert "but what the method makes gives" in done.stdout
    assert done.exit_code == 1

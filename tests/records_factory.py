"""Records and pictures made by hand, for the tests of code that reads records."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image

from benchbd import Role
from benchbd.base.content import canonical
from benchbd.base.seeds import derive_seed
from benchbd.records.models import Baseline, Cost, Counts, Metrics, Record
from benchbd.records.predictions import pack

ROLES = {"none": Role.FLOOR, "scratch": Role.SCRATCH, "bn": Role.BN, "bassl-control": Role.CONTROL}
MACHINE = {"device": "cpu", "threads": 2, "torch": "2.15.0"}
TAKEN = (80.0, 99.0, 98.0)  # acc, asr, asr_nontarget under an attack that took


def make_record(
    attack: str = "badencoder",
    defense: str = "none",
    seed: int = 0,
    metrics: tuple[float, float, float] | None = TAKEN,
    baseline: tuple[float, float, float] | None = (82.0, 5.0, 3.0),
    forwards: int | None = None,
    seconds: float | None = None,
    **fields: Any,
) -> Record:
    """A record of the board "demo". metrics: acc, asr, asr_nontarget; baseline: ca, asr_b, asr_b_nontarget.

    Its counts and identity follow from the rest, unless they are given: a written record can be read back.
    """
    place = {"pretrain": "cifar10", "task": "gtsrb", "target": 12, "target_name": "priority road", "evaluator": "mlp"}
    roles = {"attack_role": role_of(attack), "defense_role": role_of(defense)}
    known = {"board": "demo", "on_board": True, "status": "ok", "machine": MACHINE, **place, **roles, **fields}
    own, judge = [known["pretrain"], known["task"], known["target"], attack], known["evaluator"]
    methods = {"attack": (attack, own), "defend": (defense, [*own, defense]), "evaluate": (judge, [*own, defense])}
    stages = {
        kind: {"method": {"name": name}, "params": {"cell": of}, "seed": derive_seed(seed, kind)}
        for kind, (name, of) in methods.items()
        if name != "none"
    }
    known = {"identity": stages, "key": digest(stages["evaluate"]), **known}
    known.setdefault("stages", {kind: digest(identity) for kind, identity in known["identity"].items()})
    known = {"counts": counts_of(metrics), **known}
    certified = 0 if known["counts"] and known["counts"].certified is not None else None
    known = {"baseline_counts": counts_of(baseline, certified), **known}
    other = baseline if attack == "none" else TAKEN
    own = (metrics, known["counts"]) if defense == "none" else (other, counts_of(other, certified))
    known.setdefault("undefended", _metrics(*own))
    if forwards is not None and seconds is not None:
        known["cost"] = {"defend": Cost(seconds=seconds, cpu_seconds=2 * seconds, image_forwards=forwards)}
    packed = predictions_of(known["counts"], known["target"])
    record = Record(
        attack=attack,
        defense=defense,
        seed=seed,
        metrics=_metrics(metrics, known["counts"]),
        baseline=baseline
        and Baseline(**dict(zip(Baseline.model_fields, (*baseline, _ra(known["baseline_counts"])), strict=True))),
        seconds=seconds,
        **{"predictions": packed and hashlib.sha256(packed).hexdigest(), **known},
    )
    return record.with_packed(packed) if packed else record


def role_of(name: str) -> Role:
    """The role of one of benchbd's methods, by its name."""
    return ROLES.get(name, Role.METHOD)


def _metrics(values: tuple[float, float, float] | None, counts: Counts | None = None) -> Metrics | None:
    """counts: those for RA and certified accuracy; else counts that give the other values."""
    counts = counts or counts_of(values)
    certified = 100 * counts.certified / counts.total if counts and counts.certified is not None else None
    return values and Metrics(**dict(zip(Metrics.model_fields, (*values, _ra(counts), certified), strict=True)))


def _ra(counts: Counts | None) -> float | None:
    if counts is None or counts.correct_triggered is None:
        return None
    return round(100 * counts.correct_triggered / counts.nontarget, 4)


def predictions_of(counts: Counts | None, target: int) -> bytes | None:
    """The file of predictions with this number of images and hits."""
    if counts is None:
        return None
    clean, place = np.full(counts.total, target + 1), np.arange(counts.total)
    certified = None if counts.certified is None else place < counts.certified
    return pack(clean, np.where(place < counts.hits, target, target + 1), certified)


def counts_of(percent: tuple[float, float, float] | None, certified: int | None = None) -> Counts | None:
    """Counts that give these percentages, of up to two decimals. certified: how many predictions are."""
    if percent is None:
        return None
    acc, asr, asr_nontarget = percent
    hits = {"hits": round(200 * asr), "hits_nontarget": round(100 * asr_nontarget)}
    hits["correct_triggered"] = round(100 * min(acc, 100 - asr_nontarget))  # correct despite the trigger
    return Counts(total=20_000, nontarget=10_000, correct=round(200 * acc), certified=certified, **hits)


def digest(identity: dict[str, Any]) -> str:
    """The key of a stage of this identity."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def paper_like() -> list[Record]:
    """Three tasks x {none, badencoder} x {none, scratch, ft, mimic}; three seeds undefended, one for the repairs."""
    tasks = {
        ("gtsrb", 12, "priority road"): ((81.84, 5.02, 4.31), (82.10, 98.88, 98.77)),
        ("svhn", 1, "1"): ((58.50, 37.53, 24.02), (68.71, 99.02, 98.80)),
        ("stl10", 9, "truck"): ((76.14, 10.38, 2.51), (75.98, 14.73, 12.90)),
    }
    repairs = {"scratch": (-19.4, -0.92), "ft": (-3.1, -0.62), "mimic": (-1.9, -0.91)}
    records = []
    for (task, target, name), (clean, attacked) in tasks.items():
        place = {"task": task, "target": target, "target_name": name}
        for seed in (0, 1, 2):
            drift = (0.37 * (seed - 1), 0.21 * (1 - seed), 0.24 * (1 - seed))
            floor = tuple(round(a + b, 2) for a, b in zip(clean, drift, strict=True))
            found = tuple(round(a + b, 2) for a, b in zip(attacked, drift, strict=True))
            why = {
                "notes": ["the reference is not classified as the target"] if task == "svhn" and seed == 2 else [],
            }
            records.append(make_record("none", "none", seed, floor, floor, **place))
            records.append(make_record("badencoder", "none", seed, found, floor, **place, **why))
            if seed:
                continue
            for attack, start in (("none", floor), ("badencoder", found)):
                for defense, (loss, share) in repairs.items():
                    if defense == "mimic" and attack == "badencoder" and task == "stl10":
                        lost = {
                            "status": "error",
                            "reason": "loss became NaN at step 412",
                            "undefended": _metrics(found),
                        }
                        records.append(make_record(attack, defense, seed, None, floor, **place, **lost))
                        continue
                    kept = floor[2] + (start[2] - floor[2]) * (1 + share)
                    repaired = (round(start[0] + loss, 2), round(kept + 0.7, 2), round(kept, 2))
                    cost = {"scratch": (1_200_000, 61.4), "ft": (1_200_000, 58.9), "mimic": (9_010_000, 412.0)}[defense]
                    state = {**why, "undefended": _metrics(found)} if attack == "badencoder" else {}
                    more = {"forwards": cost[0], "seconds": cost[1]}
                    records.append(make_record(attack, defense, seed, repaired, floor, **place, **more, **state))
    return records


def png(width: int = 8, height: int = 6, mode: str = "P", colour: int = 0, **options: Any) -> bytes:
    """A PNG of one colour as Pillow writes it."""
    content = io.BytesIO()
    Image.new(mode, (width, height), colour).save(content, "PNG", **options)
    return content.getvalue()


def grey(size: int) -> bytes:
    """A sound PNG of about ``size`` bytes: noise, which does not shrink."""
    side = int(size**0.5)
    content = io.BytesIO()
    Image.effect_noise((side, side), 80).save(content, "PNG")
    return content.getvalue()

"""The papers' figures: their tables as CSV files, and their protocol and suspicious figures as TOML.

A board is compared with them; every line names its paper and table. All figures are percentages. This package
imports the standard library alone.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple, get_args

Metric = Literal["acc", "asr"]
METRICS: tuple[Metric, ...] = get_args(Metric)

NONE = "none"  # no attack and no defense, in the tables below; a board's floor means the same


class Figure(NamedTuple):
    """A paper's figures for a cell, in percent; None if the paper prints none."""

    acc: float | None
    asr: float | None


class PublishedFloor(NamedTuple):
    """The clean encoder in the BadEncoder paper, in percent."""

    ca: float
    asr_b: float


class Setting(NamedTuple):
    """A downstream task of the papers. test: number of test images; of_target: how many have the target's class."""

    target: int
    test: int
    of_target: int


class Suspicion(NamedTuple):
    """A reason to doubt published figures.

    cells: "ATTACK PRETRAIN DOWNSTREAM DEFENSE" in our names, or "floor PRETRAIN DOWNSTREAM"; empty if it concerns a
    table that no board is compared with.
    """

    paper: str
    table: str
    figure: str
    text: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """The published figures that a board is compared with.

    cells: figures by defense, by (attack, pretrain, downstream), in the papers' order. averages: the same by attack,
    over its six cells. floors: by (pretrain, downstream). tasks: by downstream set. titles: of the papers, by name.
    """

    cells: Mapping[tuple[str, str, str], Mapping[str, Figure]]
    averages: Mapping[str, Mapping[str, Figure]]
    floors: Mapping[tuple[str, str], PublishedFloor]
    tasks: Mapping[str, Setting]
    titles: Mapping[str, str]
    arch: str
    evaluator: str
    trigger: str
    suspicions: tuple[Suspicion, ...]


def rows_of(name: str) -> list[dict[str, str]]:
    """The lines of one of benchbd's CSV files, such as "mimic_table1.csv"; an empty string means that the paper prints
    nothing. ``undefended`` is the papers' name for no defense."""
    return list(csv.DictReader(_text(name).splitlines()))


@cache
def published() -> Published:
    facts = tomllib.loads(_text("papers.toml"))
    protocol = facts["protocol"]
    cells: dict[tuple[str, str, str], dict[str, Figure]] = {}
    averages: dict[str, dict[str, Figure]] = {}
    clean = [row for row in rows_of("mimic_other.csv") if row["table"] == "III"]
    for row in [*rows_of("mimic_table1.csv"), *clean]:
        place = row["attack"], row["pretrain"], row["downstream"]
        cells.setdefault(place, {})[_our_name(row["defense"])] = _figure(row)
    for row in rows_of("mimic_table1_averages.csv"):
        averages.setdefault(row["attack"], {})[_our_name(row["defense"])] = _figure(row)
    printed: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows_of("badencoder.csv"):  # Table I has ASR-B, Table II has CA
        if row["table"] in {"I", "II"} and row["downstream"] == row["target_dataset"]:
            filled = {name: value for name, value in row.items() if value}
            printed.setdefault((row["pretrain"], row["downstream"]), {}).update(filled)
    return Published(
        cells=cells,
        averages=averages,
        floors={place: PublishedFloor(float(row["ca"]), float(row["asr_b"])) for place, row in printed.items()},
        tasks={name: Setting(**values) for name, values in protocol["tasks"].items()},
        titles={name: paper["title"] for name, paper in facts["papers"].items()},
        arch=protocol["arch"],
        evaluator=protocol["evaluator"],
        trigger=protocol["trigger"],
        suspicions=tuple(
            Suspicion(each["paper"], each["table"], each["figure"], each["text"], tuple(map(_our_cell, each["cells"])))
            for each in facts["suspicions"]
        ),
    )


def _text(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


def _our_name(defense: str) -> str:
    return NONE if defense == "undefended" else defense


def _our_cell(cell: str) -> str:
    *place, last = cell.split()
    return " ".join((*place, _our_name(last)))


def _figure(row: Mapping[str, str]) -> Figure:
    return Figure(*(float(row[metric]) if row[metric] else None for metric in METRICS))

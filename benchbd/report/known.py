"""What a detector's score of one encoder means beside its scores of known encoders.

Scores are compared only if detector, version, options, architecture, and number and size of the images are equal; the
answer names other differences beside the figures. Without such encoders there are no figures, and the answer says what
differs. The share of known clean encoders with at least this score is no probability that the encoder is clean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchbd.base.errors import counted
from benchbd.report.document import Column, Noted, Section, Table, Value
from benchbd.report.gallery import Attacked, Gallery, Population, Scored
from benchbd.report.statistics import auroc, auroc_interval, binomial_interval

_DEFAULT = "its default"  # an identity lacks a late option that has its default

LEGEND = (
    "Known clean, known backdoored: encoders of the gallery that the same detector inspected in the same way: their "
    "number, and the median of their scores (least to most).",
    "As high: how many of them score at least as high as this encoder, with Clopper and Pearson's 95 % interval.",
    "AUROC: chance that a known backdoored encoder scores higher than a known clean one, with its interval.",
    "No figure here is the probability that this encoder has a backdoor: it also depends on how common backdoors are, "
    "and on how much this encoder resembles the known ones.",
)

_COLUMNS = (
    Column("Detector", "words"),
    Column("Known encoders", "words", points=60),
    *(Column("Known clean"), Column("As high", over="Known clean", brief="Known clean as high")),
    *(Column("Known backdoored"), Column("As high", over="Known backdoored", brief="Known backdoored as high")),
    Column("AUROC"),
)


@dataclass(frozen=True)
class Facts:
    """An inspection. detection: the method's identity. images, size: number of the images, and their height and width
    in pixels. digest: of the images. numerics: precision and TF32."""

    detection: Mapping[str, Any]
    architecture: str
    images: int
    size: int
    digest: str
    numerics: Mapping[str, Any]


@dataclass(frozen=True)
class KnownScores:
    """The n scores of known encoders. attack: that of the encoders; empty for clean ones, and for all attacks together.

    at_least: how many score at least as high as the inspected encoder. share: the same as a share, 0..1, with
    Clopper and Pearson's 95 % interval: (value, low, high). auroc: of these encoders against the clean ones, 0..1, with
    its interval; None for clean encoders, and if there are none.
    """

    attack: str
    n: int
    least: float
    median: float
    most: float
    at_least: int
    share: tuple[float, float, float]
    auroc: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class KnownPopulation:
    """Known encoders of one pre-training that compare with an inspected one.

    boards: those whose records they are from. pretraining, pretrain: method and data set of the pre-training.
    clean, backdoored: None if there are none. attacks: the backdoored ones by attack.
    left_out: inspections that do not count, by status. differences: a line each, with what else may shift the score.
    """

    boards: tuple[str, ...]
    pretraining: str
    pretrain: str
    clean: KnownScores | None
    backdoored: KnownScores | None
    attacks: tuple[KnownScores, ...]
    left_out: Mapping[str, int]
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """Known encoders that compare with an inspected one, by population. reason: why there are none, a line."""

    populations: tuple[KnownPopulation, ...]
    reason: str = ""


def known(gallery: Gallery, facts: Facts, score: float) -> Known:
    """The known encoders of a gallery that compare with the inspected one, and their scores beside its ``score``."""
    parts = [(list(_apart(facts, population)), population) for population in gallery.populations]
    if compared := [_compared(facts, population, score) for apart, population in parts if not apart]:
        return Known(tuple(compared))
    name = facts.detection["name"]
    same = [(apart, population) for apart, population in parts if population.detection.name == name]
    if not same:
        names = sorted({population.detection.name for population in gallery.populations})
        known_by = f"it knows encoders by {', '.join(names)}" if names else "it is empty"
        return Known((), f"the gallery has no encoder that {name} inspected; {known_by}")
    apart, nearest = min(same, key=lambda each: len(each[0]))
    counts = f"{len(nearest.clean)} clean and {counted(len(nearest.attacked), 'backdoored encoder')}"
    return Known((), f"not compared with the {counts} of {', '.join(nearest.boards)}: {'; '.join(apart)}")


def _apart(facts: Facts, population: Population) -> Iterator[str]:
    """The differences that forbid a comparison."""
    ours, theirs = dict(facts.detection), population.detection.model_dump()
    options, known_options = ours.pop("options"), theirs.pop("options")
    pairs = {
        "architecture": (facts.architecture, population.architecture),
        "number of images": (facts.images, population.images),
        "size of images": (facts.size, population.size),
        **{f"detector's {part}": (ours.get(part), theirs.get(part)) for part in dict.fromkeys([*ours, *theirs])},
        **{
            f"option {option}": (options.get(option, _DEFAULT), known_options.get(option, _DEFAULT))
            for option in dict.fromkeys([*options, *known_options])
        },
    }
    for part, (here, there) in pairs.items():
        if here != there:
            yield f"{part} {_told(here)} here, {_told(there)} there"


def _told(value: object) -> str:
    """A value as ``-o`` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _compared(facts: Facts, population: Population, score: float) -> KnownPopulation:
    clean = [encoder.score for encoder in population.clean]
    return KnownPopulation(
        boards=population.boards,
        pretraining=population.pretraining.name,
        pretrain=population.pretrain,
        clean=_group("", population.clean, score),
        backdoored=_group("", population.attacked, score, clean),
        attacks=tuple(
            group
            for each in population.attacks
            if (group := _group(_label(each, population), each.encoders, score, clean)) is not None
        ),
        left_out=population.left_out,
        differences=tuple(_differences(facts, population)),
    )


def _label(attacked: Attacked, population: Population) -> str:
    """The attack's name, with the options in which another attack of this name differs."""
    options = attacked.attack.options
    twins = [each.attack.options for each in population.attacks if each.attack.name == attacked.attack.name]
    apart = [option for option in options if any(twin.get(option) != options[option] for twin in twins)]
    told = ", ".join(f"{option}={options[option]}" for option in apart)
    return f"{attacked.attack.name} ({told})" if told else attacked.attack.name


def _group(attack: str, encoders: Sequence[Scored], score: float, clean: Sequence[float] = ()) -> KnownScores | None:
    scores = [encoder.score for encoder in encoders]
    if not scores:
        return None
    count = sum(each >= score for each in scores)
    judged = auroc(clean, scores) if clean else None
    return KnownScores(
        attack=attack,
        n=len(scores),
        least=min(scores),
        median=median(scores),
        most=max(scores),
        at_least=count,
        share=(count / len(scores), *binomial_interval(count, len(scores))),
        auroc=None if judged is None else (judged, *auroc_interval(judged, len(clean), len(scores))),
    )


def _differences(facts: Facts, population: Population) -> Iterator[str]:
    """What may shift the score and does not forbid a comparison."""
    theirs = f"{population.pretraining.name} on {population.pretrain}"
    yield f"the known encoders were pre-trained by {theirs}; the pre-training of this encoder is not known here"
    if facts.digest != population.pool:
        whole = f"{population.pretrain} ({population.pool[:12]})"
        yield f"the known encoders were inspected with images of {whole}; these images ({facts.digest[:12]}) are others"
    if population.prepared is not None:
        yield "the detector prepared itself on images of their board for the known encoders, on these for this one"
    for part in dict.fromkeys([*facts.numerics, *population.numerics]):
        here, there = facts.numerics.get(part), population.numerics.get(part)
        if here != there:
            yield f"{part} {_told(here)} here, {_told(there)} there"
    origins = {encoder.clean for encoder in (*population.clean, *population.attacked)}
    if len(origins) == 1 and len(population.attacked) > 1:
        yield "all known encoders share one pre-training: the intervals leave it out"


def section(found: Sequence[tuple[str, Known]]) -> Section:
    """A row per detector and population. found: the name of each detector, and what is known for it."""
    rows = [_values(detector, each) for detector, known in found for each in known.populations]
    return Section(_COLUMNS, [Table(rows)], stacked="{0} beside known encoders: {1}")


def _values(detector: str, compared: KnownPopulation) -> list[Value]:
    several = [f"{group.attack}: {_scores(group)}, {_as_high(group)} as high" for group in compared.attacks]
    missing = [f"{count} {status}" for status, count in compared.left_out.items()]
    notes = [
        *compared.differences,
        *(several if len(several) > 1 else []),
        *([f"inspections that do not count: {', '.join(missing)}"] if missing else []),
    ]
    return [
        detector,
        Noted(f"{', '.join(compared.boards)} ({compared.pretraining} on {compared.pretrain})", tuple(notes)),
        *(_scores(compared.clean), _as_high(compared.clean)),
        *(_scores(compared.backdoored), _as_high(compared.backdoored)),
        "{:.3f} [{:.2f}, {:.2f}]".format(*compared.backdoored.auroc)
        if compared.backdoored and compared.backdoored.auroc
        else None,
    ]


def _scores(group: KnownScores | None) -> str | None:
    return f"{group.n}: {group.median:.3f} ({group.least:.3f} to {group.most:.3f})" if group else None


def _as_high(group: KnownScores | None) -> str | None:
    return "{}/{} [{:.2f}, {:.2f}]".format(group.at_least, group.n, *group.share[1:]) if group else None

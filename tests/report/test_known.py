"""A score beside the scores of known encoders: shares and intervals computed by hand, and why there are none."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from benchbd.report.document import Document
from benchbd.report.gallery import Attacked, Gallery, Named, Population, Scored
from benchbd.report.known import LEGEND, Facts, Known, known, section
from benchbd.report.writers.forms import write

DETECTOR = {"axis": "detection", "name": "decree", "version": "1", "options": {"steps": 3, "threshold": 0.1}}
POOL = "d" * 64
FACTS = Facts(DETECTOR, "w16", 100, 32, POOL, {"precision": "fp32", "tf32": False})


def scored(*scores: float, origin: str = "") -> tuple[Scored, ...]:
    """Encoders of pre-trainings of their own, or all of the pre-training ``origin``."""
    return tuple(
        Scored(score=score, flagged=False, encoder=f"{i:064x}", clean=origin or f"{i:064x}", record=f"{i:064x}")
        for i, score in enumerate(scores)
    )


def attacked(name: str, *scores: float, origin: str = "") -> Attacked:
    attack = Named(axis="attack", name=name, version="1", options={})
    return Attacked(attack=attack, encoders=scored(*scores, origin=origin))


def population(**fields: Any) -> Population:
    known: dict[str, Any] = {
        "detection": Named(**DETECTOR),
        "architecture": "w16",
        "images": 100,
        "size": 32,
        "pool": POOL,
        "prepared": None,
        "numerics": {"precision": "fp32", "tf32": False},
        "pretraining": Named(axis="pretraining", name="simclr", version="1", options={}),
        "pretrain": "shapes",
        "pretrain_digest": POOL,
        "boards": ("b",),
        "clean": scored(0.1, 0.2, 0.3, 0.4),
        "attacks": (attacked("bad", 0.35, 0.9),),
        "left_out": {},
    }
    return Population(**{**known, **fields})


def of(*populations: Population) -> Gallery:
    return Gallery(populations=populations)


def test_shares_and_intervals_are_those_of_the_binomial() -> None:
    (compared,) = known(of(population()), FACTS, 0.4).populations
    clean, backdoored = compared.clean, compared.backdoored
    assert clean is not None
    assert backdoored is not None
    assert (clean.n, clean.least, clean.median, clean.most) == (4, 0.1, pytest.approx(0.25), 0.4)
    assert clean.at_least == 1  # an equal score is as high
    # Clopper and Pearson of 1 in 4: the low end solves 1 - (1 - p)^4 = 0.025, the high one (1-p)^4 + 4p(1-p)^3 = 0.025.
    share, low, high = clean.share
    assert share == 0.25
    assert low == pytest.approx(1 - 0.975 ** (1 / 4), abs=1e-9)
    assert (1 - high) ** 4 + 4 * high * (1 - high) ** 3 == pytest.approx(0.025, abs=1e-9)
    assert clean.auroc is None
    assert (backdoored.n, backdoored.at_least, backdoored.share[0]) == (2, 1, 0.5)
    assert backdoored.auroc is not None
    assert backdoored.auroc[0] == 7 / 8  # 0.35 is above three of four clean ones, 0.9 above all
    assert 0 <= backdoored.auroc[1] < 7 / 8 < backdoored.auroc[2] <= 1


def test_no_clean_encoder_as_high_is_no_proof() -> None:
    (compared,) = known(of(population()), FACTS, 0.5).populations
    assert compared.clean is not None
    assert compared.clean.share == (0, 0, pytest.approx(1 - 0.025 ** (1 / 4), abs=1e-9))  # up to 60 % of clean ones


def test_every_attack_has_figures_of_its_own() -> None:
    several = population(attacks=(attacked("bad", 0.35, 0.9), attacked("worse", 0.05)))
    (compared,) = known(of(several), FACTS, 0.3).populations
    assert [(group.attack, group.n, group.at_least) for group in compared.attacks] == [("bad", 2, 2), ("worse", 1, 0)]
    assert [group.auroc and group.auroc[0] for group in compared.attacks] == [7 / 8, 0]
    assert compared.backdoored is not None
    assert (compared.backdoored.n, compared.backdoored.at_least) == (3, 2)
    assert compared.backdoored.auroc is not None
    assert compared.backdoored.auroc[0] == 7 / 12
    twins = [attacked("bad", 0.5), attacked("bad", 0.6)]
    for twin, steps in zip(twins, (1, 2), strict=True):
        twin.attack.options.update(steps=steps, lr=0.1)
    (compared,) = known(of(population(attacks=tuple(twins))), FACTS, 0.3).populations
    assert [group.attack for group in compared.attacks] == ["bad (steps=1)", "bad (steps=2)"]


def test_a_population_of_one_kind_has_no_auroc() -> None:
    (compared,) = known(of(population(attacks=())), FACTS, 0.3).populations
    assert compared.backdoored is None
    (compared,) = known(of(population(clean=())), FACTS, 0.3).populations
    assert compared.clean is None
    assert compared.backdoored is not None
    assert compared.backdoored.auroc is None


@pytest.mark.parametrize(
    ("ours", "part"),
    [
        ({"architecture": "resnet50"}, "architecture resnet50 here, w16 there"),
        ({"images": 50}, "number of images 50 here, 100 there"),
        ({"size": 224}, "size of images 224 here, 32 there"),
        ({"detection": {**DETECTOR, "version": "2"}}, "detector's version 2 here, 1 there"),
        (
            {"detection": {**DETECTOR, "options": {"steps": None, "threshold": 0.1}}},
            "option steps null here, 3 there",
        ),
        (
            {"detection": {**DETECTOR, "options": {**DETECTOR["options"], "late": True}}},
            "option late true here, its default there",
        ),
    ],
    ids=["architecture", "number", "size", "version", "option", "late option"],
)
def test_any_other_detector_key_or_architecture_gives_a_reason_and_no_figure(ours: dict[str, Any], part: str) -> None:
    assert known(of(population()), FACTS, 0.3).reason == ""
    context = known(of(population()), replace(FACTS, **ours), 0.3)
    assert context == Known((), f"not compared with the 4 clean and 2 backdoored encoders of b: {part}")


def test_the_reason_is_about_the_nearest_population() -> None:
    far = population(architecture="w32", images=7, boards=("far",))
    context = known(of(far, population()), replace(FACTS, size=64), 0.3)
    assert context.reason.endswith("encoders of b: size of images 64 here, 32 there")
    assert known(of(far, population()), FACTS, 0.3).populations[0].boards == ("b",)


def test_an_unknown_detector_is_told_what_is_known() -> None:
    other = replace(FACTS, detection={**DETECTOR, "name": "other"})
    assert known(of(population()), other, 0.3).reason == (
        "the gallery has no encoder that other inspected; it knows encoders by decree"
    )
    assert known(of(), other, 0.3).reason == "the gallery has no encoder that other inspected; it is empty"


def test_differences_that_allow_a_comparison_stand_beside_it() -> None:
    unknown = (
        "the known encoders were pre-trained by simclr on shapes; the pre-training of this encoder is not known here"
    )
    (same,) = known(of(population()), FACTS, 0.3).populations
    assert same.differences == (unknown,)
    facts = replace(FACTS, digest="a" * 64, numerics={"precision": "bf16", "tf32": False})
    (other,) = known(of(population()), facts, 0.3).populations
    assert other.differences == (
        unknown,
        "the known encoders were inspected with images of shapes (dddddddddddd); "
        "these images (aaaaaaaaaaaa) are others",
        "precision bf16 here, fp32 there",
    )
    assert other.clean == same.clean
    (prepared,) = known(of(population(prepared="e" * 64)), FACTS, 0.3).populations
    assert prepared.differences[1:] == (
        "the detector prepared itself on images of their board for the known encoders, on these for this one",
    )
    origin = "f" * 64
    twins = population(clean=scored(0.1, origin=origin), attacks=(attacked("bad", 0.3, 0.9, origin=origin),))
    (shared,) = known(of(twins), FACTS, 0.3).populations
    assert shared.differences[1:] == ("all known encoders share one pre-training: the intervals leave it out",)


def test_two_pretraining_sets_are_two_populations() -> None:
    real = population(pretrain="cifar10", pretrain_digest="c" * 64, boards=("c",), clean=scored(0.9))
    context = known(of(population(), real), FACTS, 0.3)
    assert [(each.pretrain, each.clean and each.clean.at_least) for each in context.populations] == [
        ("shapes", 2),
        ("cifar10", 1),
    ]


def test_the_document_has_a_row_per_population_and_notes_what_differs() -> None:
    several = population(attacks=(attacked("bad", 0.35, 0.9), attacked("worse", 0.05)), left_out={"attack-failed": 2})
    contexts = [("decree", known(of(several), FACTS, 0.3)), ("other", Known((), "none"))]
    document = Document(sections=[section(contexts)], legend=LEGEND, data=[asdict(context) for _, context in contexts])
    text = write(document, "text", 200)
    assert "decree beside known encoders: b (simclr on shapes) [1-4]" in text
    assert "Known clean              4: 0.250 (0.100 to 0.400)" in text
    assert "Known clean as high      2/4 [0.07, 0.93]" in text
    assert "Known backdoored         3: 0.350 (0.050 to 0.900)" in text
    assert "AUROC                    0.583 [" in text
    assert "[2] bad: 2: 0.625 (0.350 to 0.900), 2/2 [0.16, 1.00] as high" in text
    assert "[4] inspections that do not count: 2 attack-failed" in text
    assert write(document, "markdown").count("\n| decree") == 1

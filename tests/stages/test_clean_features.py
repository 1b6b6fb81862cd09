"""What the harness measures of a repair on the defender's clean images: without a label, a meter or a new key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchbd import Augment, DefenderKnowledge, Encoder, ImageSet, Mitigation, pretext_accuracy, pretext_outputs
from benchbd.nets.meter import ForwardMeter
from benchbd.registry import load_registry
from benchbd.stages.clean_features import SAMPLE, clean_features

from ..boards import TINY, Tiny, offering
from ..chance import seeded


class Keeps(Mitigation):
    """Returns what it is given."""

    name = "keeps"
    version = "1"

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return encoder


def some(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seeded(3))
    return ImageSet(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator))


def encoder(seed: int, head: bool = True) -> Encoder:
    made = Encoder.seeded("w16", (0.5,) * 3, (0.25,) * 3, seed=seeded(seed), device=torch.device("cpu"))
    if not head:
        made.head = None
    return made


def test_an_encoder_that_is_kept_is_as_it_was() -> None:
    same = clean_features(encoder(1), encoder(1), some(12), seed=5)
    assert same is not None
    assert same["cosine"] == 1.0
    assert same["pretext"] == same["pretext_given"]


@pytest.mark.parametrize("head", [True, False])
def test_the_values_are_those_of_the_public_functions(head: bool) -> None:
    given, repaired, images = encoder(1), encoder(2, head), some(20)
    told = clean_features(given, repaired, images, seed=5)
    assert told is not None
    outputs = pretext_outputs(repaired.eval(), images, Augment(), 5)
    first, second = map(repaired.project, outputs) if head else outputs
    assert told["pretext"] == round(pretext_accuracy(first, second), 6)
    one, other = (each.extract(images.pixels) for each in (given, repaired))
    cosines = (one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1)
    assert told["cosine"] == pytest.approx(float(cosines.mean()), abs=2e-6)
    assert told == clean_features(given, repaired, images, seed=5)  # the views are the seed's


def test_the_first_images_count_and_no_meter_counts_them() -> None:
    images = some(SAMPLE + 8)
    with ForwardMeter() as meter:
        told = clean_features(encoder(1), encoder(2), images, seed=5)
    assert meter.images == 0
    assert told == clean_features(encoder(1), encoder(2), images.subset(torch.arange(SAMPLE)), seed=5)


def test_a_head_that_overflows_leaves_nothing_to_compare() -> None:
    broken = encoder(2)
    assert broken.head is not None
    with torch.no_grad():
        next(broken.head.parameters()).fill_(float("inf"))
    assert clean_features(encoder(1), broken, some(12), seed=5) is None


def test_records_of_repairs_have_it_and_no_others(tmp_path: Path) -> None:
    registry = load_registry(extra={"local": offering(benchbd_defenses=[Keeps])})
    board = TINY.replace('"scratch", "ft"', '"scratch", "ft", "keeps"')
    tiny = Tiny(tmp_path, registry, board)
    records = {(record.attack, record.defense): record for record in tiny.run()}
    assert all(record.status == "ok" for record in records.values())
    for attack in ("none", "badencoder"):
        for without in ("none", "scratch"):
            assert records[attack, without].clean_features is None
            assert '"clean_features"' not in records[attack, without].to_json()
        kept, trained = (records[attack, name].clean_features for name in ("keeps", "ft"))
        assert kept is not None
        assert trained is not None
        assert kept.cosine == 1.0
        assert kept.pretext == kept.pretext_given == trained.pretext_given
        assert trained.cosine < 1.0
    assert tiny.run()[3:] == list(records.values())[3:]  # from the store

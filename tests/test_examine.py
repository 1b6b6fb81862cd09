"""Inspect and repair one encoder: the same results as on a board, and one line for what cannot be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import benchbd
from benchbd import (
    Classifier,
    ClassifierDetection,
    DefenderKnowledge,
    Detection,
    Encoder,
    ImageSet,
    Known,
    Mitigation,
    NotApplicable,
    TaskKnowledge,
    UsageError,
    Verdict,
)
from benchbd.base.errors import BenchbdError
from benchbd.contract.method import build
from benchbd.examine import Bench
from benchbd.records.detection import DetectionRecord
from benchbd.registry import Registry, load_registry
from benchbd.report.gallery import Gallery, gather

from .boards import TINY, Tiny, offering
from .chance import seeded

CPU = torch.device("cpu")


class Length(Detection):
    """Scores an encoder by the length of its features, after it prepared that of an untrained one."""

    name = "length"
    version = "1"
    prepares = True

    def prepare(self, blank: Encoder, knowledge: DefenderKnowledge) -> dict[str, torch.Tensor]:
        return {"blank": blank.extract(knowledge.images.pixels).norm(dim=1).mean()}

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        own = encoder.extract(knowledge.images.pixels).norm(dim=1).mean()
        benchbd.note("remarks", [f"seed {knowledge.seed}, labels {knowledge.images.labels}"])
        return Verdict(float(own / knowledge.prepared["blank"]), flagged=bool(own > 0))


class OfClassifiers(ClassifierDetection):
    """Judges classifiers."""

    name = "of-classifiers"
    version = "1"

    def inspect(self, classifier: Classifier, knowledge: TaskKnowledge) -> Verdict:  # type: ignore[override]
        raise AssertionError


class Refuses(Mitigation):
    """Repairs nothing."""

    name = "refuses"
    version = "1"

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        raise NotApplicable("it needs a moon")


class Boasts(Mitigation):
    """Repairs nothing, and begins with its name."""

    name = "boasts"
    version = "1"

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        raise NotApplicable("BOASTS needs a moon")


class Breaks(Mitigation):
    """Returns another architecture."""

    name = "breaks"
    version = "1"

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return Encoder("w32")


@pytest.fixture(scope="module")
def wide() -> Registry:
    local = offering(benchbd_detections=[Length, OfClassifiers], benchbd_defenses=[Refuses, Boasts, Breaks])
    return load_registry(extra={"local": local})


def pixels(count: int = 16, size: int = 32) -> ImageSet:
    generator = torch.Generator().manual_seed(seeded(5))
    return ImageSet(torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8))


def encoder(arch: str = "w16") -> Encoder:
    return Encoder.seeded(arch, (0.5,) * 3, (0.25,) * 3, seed=seeded(3), device="cpu")


def test_results_are_those_of_a_board(tmp_path: Path, wide: Registry) -> None:
    """A board's encoder and clean images outside of it: the score of the record, the weights of the defend stage."""
    text = TINY.replace("seeds = [1]", 'detections = ["length"]\nseeds = [3]')
    tiny = Tiny(tmp_path, wide, text)
    session = tiny.session(attacks=("badencoder",))
    records = {record.defense: record for record in session.run()}
    (verdict,) = (r for r in session.inspect() if isinstance(r, DetectionRecord) and r.attack == "badencoder")
    published = benchbd.load_encoder(records["ft"].stages["attack"], store=tiny.store)
    whole = session.library.load("pool", "pool", 32)
    assert verdict.clean_images is not None
    images = whole.subset(torch.tensor(verdict.clean_images))
    bench = Bench(wide, CPU, seed=3)
    (length,) = bench.methods(Detection, ["length"], [])
    told = bench.inspect(published, images, length)
    assert (told.score, told.flagged) == (verdict.score, verdict.flagged)
    assert told.image_forwards == 16
    assert told.known.reason.startswith("the gallery has no encoder that length inspected; it knows encoders by ")
    ft = build(wide.get("defense", "ft"), {"steps": 2, "batch": 8}, "ft")
    assert isinstance(ft, Mitigation)
    repaired = bench.repair(published, images, ft).encoder
    theirs = benchbd.load_encoder(records["ft"].stages["defend"], store=tiny.store)
    assert repaired.to_bytes() == theirs.to_bytes()
    scratch = build(wide.get("defense", "scratch"), {"steps": 2, "batch": 8}, "scratch")
    assert isinstance(scratch, Mitigation)
    theirs = benchbd.load_encoder(records["scratch"].stages["defend"], store=tiny.store)
    assert bench.repair(published, images, scratch).encoder.to_bytes() == theirs.to_bytes()


def test_a_score_stands_beside_those_of_a_boards_encoders(tmp_path: Path, wide: Registry) -> None:
    """What an inspection compares with is what a record's identity has: options, number and size of the images."""
    text = TINY.replace("seeds = [1]", 'detections = ["length"]\nseeds = [3, 4]')
    session = Tiny(tmp_path, wide, text).session(attacks=("badencoder",))
    records = [record for record in session.inspect() if isinstance(record, DetectionRecord)]
    own, other = (record for record in records if record.attack == "none")
    assert own.score is not None
    assert other.score is not None
    bench = Bench(wide, CPU, seed=3, gallery=gather([(session.board, records)]))
    (length,) = bench.methods(Detection, ["length"], [])
    published = benchbd.load_encoder(own.stages["pretrain"], store=session.store)
    drawn = session.library.load("pool", "pool", 32).subset(torch.tensor(own.clean_images))
    (beside,) = bench.inspect(published, drawn, length).known.populations
    assert beside.clean is not None
    assert (beside.clean.n, beside.clean.at_least) == (2, 1 + (other.score > own.score))
    assert (beside.clean.least, beside.clean.most) == tuple(sorted([own.score, other.score]))
    assert (beside.boards, beside.pretrain, beside.backdoored) == (("tiny",), "pool", None)
    assert beside.left_out == {"attack-failed": 2}  # two steps of BadEncoder have no effect
    few = bench.inspect(published, drawn.subset(torch.arange(8)), length).known
    reason = "not compared with the 2 clean and 0 backdoored encoders of tiny: number of images 8 here, 16 there"
    assert few == Known((), reason)


def test_five_lines_of_python(tmp_path: Path) -> None:
    """An encoder and a folder of pictures in, a verdict and a repaired encoder out; the given encoder stays."""
    draws = np.random.default_rng(seeded(1))
    for number in range(8):
        Image.fromarray(draws.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{number}.png")
    given = encoder()
    before = given.to_bytes()
    images = ImageSet.from_folder(tmp_path)
    decree = benchbd.method("detection", "decree", inversion_steps=2)
    assert isinstance(decree, Detection)
    told = benchbd.inspect(given, images, decree, device="cpu")
    assert np.isfinite(told.score)
    assert "number of images 8 here, 1000 there" in told.known.reason
    (tmp_path / "empty.json").write_text(Gallery().to_json())
    alone = benchbd.inspect(given, images, decree, device="cpu", gallery=tmp_path / "empty.json").known
    assert alone.reason == "the gallery has no encoder that decree inspected; it is empty"
    ft = benchbd.method("defense", "ft", steps=2, batch=4)
    assert isinstance(ft, Mitigation)
    repaired = benchbd.repair(given, images, ft, device="cpu")
    assert given.to_bytes() == before != repaired.to_bytes()
    repaired.save(tmp_path / "repaired.safetensors")
    assert Encoder.load(tmp_path / "repaired.safetensors").to_bytes() == repaired.to_bytes()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: benchbd.method("defence", "ft"), "unknown axis 'defence': did you mean 'defense'"),
        (lambda: benchbd.method("defense", "mimik"), "unknown defense 'mimik': did you mean 'mimic'"),
        (lambda: benchbd.method("defense", "ft", step=3), "unknown option of ft 'step': did you mean 'steps'"),
        (lambda: benchbd.method("defense", "none", step=3), r"^option none\.step: none has no options$"),
        (lambda: benchbd.method("defense", "ft", steps=-1), r"ft\.steps: .*greater than"),
        (lambda: benchbd.inspect(encoder(), pixels(), "ft"), "unknown detection 'ft'"),
        (lambda: benchbd.repair(encoder(), pixels(), 3), "defense 3: must be the name of a defense"),  # type: ignore[arg-type]
        (lambda: benchbd.repair("x.pth", pixels(), "ft"), "encoder 'x.pth': must be a benchbd.Encoder"),  # type: ignore[arg-type]
        (lambda: benchbd.repair(encoder(), "pictures", "ft"), "images 'pictures': must be a benchbd.ImageSet"),  # type: ignore[arg-type]
        *(
            (
                lambda seed=seed, ask=ask, name=name: ask(encoder(), pixels(), name, seed=seed),
                "seed .*: must be a whole",
            )
            for seed in (-1, "a", 2**64, 1.5)
            for ask, name in ((benchbd.inspect, "decree"), (benchbd.repair, "ft"))
        ),
        (lambda: benchbd.repair(encoder(), "pictures", "scratch"), "images 'pictures': must be a benchbd.ImageSet"),  # type: ignore[arg-type]
        *(
            (lambda size=size, ask=ask, name=name: ask(encoder(), pixels(4, size), name), line)
            for size, line in (
                (16, "^images of 16x16 pixels: w16 takes 32x32 to 224x224$"),
                (225, "^images of 225x225 pixels: w16 takes 32x32 to 224x224$"),
            )
            for ask, name in ((benchbd.inspect, "decree"), (benchbd.repair, "scratch"))
        ),
        (
            lambda: benchbd.inspect(encoder(), ImageSet(torch.zeros(2, 3, 32, 48, dtype=torch.uint8)), "decree"),
            "^images of 48x32 pixels: w16 takes 32x32 to 224x224$",
        ),
        (lambda: benchbd.inspect(encoder(), pixels(0), "decree"), "^images: there are none$"),
        (
            lambda: benchbd.inspect(encoder(), ImageSet(pixels(1).pixels.repeat(3, 1, 1, 1)), "decree"),
            "^images: they are all the same picture$",
        ),
        (lambda: benchbd.inspect(encoder(), pixels(), "decree", device="gpu"), "device 'gpu': known are"),
        (lambda: benchbd.inspect(encoder(), pixels(), "decree", gallery="absent.json"), "absent.json: cannot be read"),
    ],
)
def test_a_mistake_is_one_line(call: Any, line: str) -> None:
    with pytest.raises(BenchbdError, match=line) as raised:
        call()
    assert "\n" not in str(raised.value)


def masked(encoder: Encoder) -> None:
    encoder.mask.zero_()


def zeroed(encoder: Encoder) -> None:
    for parameter in encoder.backbone():
        parameter.data.zero_()


def no_std(encoder: Encoder) -> None:
    encoder.std.zero_()


def lost(encoder: Encoder) -> None:
    encoder.mean[0] = torch.nan


def huge(encoder: Encoder) -> None:
    encoder.body["layer3"][0].bn2.bias.data.fill_(1e30)  # type: ignore[index, operator, union-attr]


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (masked, "^the encoder: the features (collapsed|vanished): "),
        (zeroed, "^the encoder: the features (collapsed|vanished): "),
        (no_std, "^the encoder must be an encoder whose std is above 0, not 0$"),
        (lost, "^the weights are not finite: mean has NaN or infinity$"),
        (huge, "^the encoder: the features are not finite$"),
    ],
)
def test_an_encoder_without_features_gets_no_verdict(spoil: Any, line: str, count: int) -> None:
    """Neither a verdict nor a repair; a defense that uses no weights ignores them."""
    spoilt, images = encoder(), pixels(count)
    spoil(spoilt)
    with pytest.raises(UsageError, match=line):
        benchbd.inspect(spoilt, images, "decree", device="cpu")
    with pytest.raises(UsageError, match=line):
        benchbd.repair(spoilt, images, "none", device="cpu")


def test_methods_that_have_no_result(wide: Registry) -> None:
    bench = Bench(wide, CPU, seed=1)
    assert "of-classifiers" not in bench.detectors()
    assert {"decree", "length"} <= set(bench.detectors())
    with pytest.raises(UsageError, match="of-classifiers judges classifiers, not encoders"):
        bench.inspect(encoder(), pixels(), OfClassifiers())
    with pytest.raises(NotApplicable, match=r"^defense refuses: it needs a moon$"):
        bench.repair(encoder(), pixels(), Refuses())
    with pytest.raises(NotApplicable, match=r"^defense BOASTS needs a moon$"):
        bench.repair(encoder(), pixels(), Boasts())
    with pytest.raises(BenchbdError, match=r"^defense breaks must return a w16 encoder, not w32$"):
        bench.repair(encoder(), pixels(), Breaks())


def test_options_of_methods_that_take_no_part(wide: Registry) -> None:
    bench = Bench(wide, CPU, seed=1)
    (ft,) = bench.methods(Mitigation, ["ft", "ft"], ["ft.steps=7", "defense:ft.batch=4"])
    assert (ft.steps, ft.batch) == (7, 4)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"^option mimic\.steps: mimic takes no part, only ft does$"):
        bench.methods(Mitigation, ["ft"], ["mimic.steps=7"])
    with pytest.raises(UsageError, match="did you mean 'mimic'"):
        bench.methods(Mitigation, ["ft"], ["mimik.steps=7"])
    (none,) = bench.methods(Mitigation, ["none"], [])
    assert bench.repair(encoder(), pixels(), none).encoder.to_bytes() == encoder().to_bytes()


def test_a_repair_that_changes_nothing_or_the_normalisation_says_so(registry: Registry) -> None:
    given = Encoder.seeded("w16", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), seed=seeded(1), device="cpu")
    images = ImageSet(torch.arange(8 * 3 * 32 * 32).remainder(251).to(torch.uint8).reshape(8, 3, 32, 32))
    bench = Bench(registry, torch.device("cpu"), 1)
    same = bench.repair(given, images, benchbd.method("defense", "ft", steps=0))
    assert same.remarks == ("ft: it changed nothing: the encoder is the one that was given",)
    assert same.encoder.to_bytes() == given.to_bytes()
    fresh = bench.repair(given, images, benchbd.method("defense", "scratch", steps=0))
    mean, std = ("".join(f", {value:.4f}" for value in values)[2:] for values in images.normalization())
    assert fresh.remarks == (
        f"scratch: mean of the normalisation is now {mean}; the encoder and what is exported have it",
        f"scratch: std of the normalisation is now {std}; the encoder and what is exported have it",
    )

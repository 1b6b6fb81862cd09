"""Pictures: they exist, are equal when drawn again, readable, and show the content of record, store and data."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from benchbd_plugins.mimic import Mimic
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from benchbd import Dataset, DefenderKnowledge, Encoder, PruningLevel, Trigger, UsageError, keep, note, stream
from benchbd.base.errors import BenchbdError, DataError, StoreError
from benchbd.contract.evaluator import Predictions
from benchbd.contract.specs import TriggerSpec
from benchbd.data.library import DataLibrary
from benchbd.figures.pictures import (
    CLASSES,
    PICTURES,
    REST,
    STYLE,
    TARGET,
    Drawn,
    Picture,
    attention,
    class_colours,
    draw,
    draw_attention,
    draw_features,
    draw_information,
    draw_inversion,
    draw_pruning,
    draw_trigger,
    save,
)
from benchbd.figures.published import small_pictures, within
from benchbd.figures.scene import Absent, Scene, find_trigger, plane, spread
from benchbd.planning.board import Board, Row, boards_folder
from benchbd.records.models import Record
from benchbd.records.pictures import MOST, picture_fault
from benchbd.records.pictures import PICTURES as SHOWN_ON_PAGES
from benchbd.registry import load_registry
from benchbd.toolkit.patterns import make_trigger

from ..boards import TINY, Tiny, offering
from ..conftest import write_npz_set

BOARD = TINY.replace("[data]", "[options.inverter]\nmi_epochs = 1\nmi_pool = 2\n\n[data]")
ALL = ("trigger", "inversion", "attention", "information", "pruning", "features")

CURVE = [
    PruningLevel(0, 0.5),
    PruningLevel(2, 0.48, 0.1),
    PruningLevel(7, 0.47, 0.25),
    PruningLevel(9, 0.3, 0.3),
]
PRUNED = {"curve": [level.noted() for level in CURVE], "tolerance": 0.04, "pruned": 7, "neurons": 16}

MASKS = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
PATTERNS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


class Inverter(Mimic):
    """MIMIC that claims to have inverted two triggers and to have pruned: every picture applies to it."""

    name = "inverter"

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        keep("inverted.mask", MASKS)
        keep("inverted.pattern", PATTERNS)
        note("pruning", PRUNED)
        return super().repair(encoder, knowledge)


@dataclass
class Run:
    """A run of the tiny board: its records by attack and defense, and the inputs for drawing them."""

    tiny: Tiny
    records: dict[tuple[str, str], Record]

    @property
    def library(self) -> DataLibrary:
        return DataLibrary({}, self.tiny.data, self.tiny.store / "data")

    def draw(self, record: Record, out: Path) -> Drawn:
        return draw(record, out, store=self.tiny.store, library=self.library)

    def scene(self, attack: str, defense: str) -> Scene:
        record = self.records[attack, defense]
        return Scene(record, self.tiny.store, self.library, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    registry = load_registry(extra={"inverter": offering(benchbd_defenses=[Inverter])})
    tiny = Tiny(tmp_path_factory.mktemp("figures"), registry, BOARD)
    records = tiny.run(attacks=("none", "badencoder"), defenses=("none", "ft"))
    records += tiny.run(attacks=("badencoder",), defenses=("inverter",))
    return Run(tiny, {(record.attack, record.defense): record for record in records})


@pytest.fixture(scope="module")
def drawn(run: Run) -> Drawn:
    return run.draw(run.records["badencoder", "inverter"], run.tiny.folder / "out")


@pytest.fixture(scope="module")
def scene(run: Run) -> Scene:
    return run.scene("badencoder", "inverter")


def figure(made: Picture | str) -> Figure:
    assert isinstance(made, Picture)
    assert not made.without
    return made.figure


def having(scene: Scene, **values: Any) -> Scene:
    """A scene in which some inputs are replaced."""
    twin = copy.copy(scene)
    vars(twin).update(values)
    return twin


def noting(scene: Scene, note: Any, name: str = "mi") -> Scene:
    return having(scene, record=scene.record.model_copy(update={"findings": {"defend": {name: note}}}))


# Files


def test_every_picture_is_written(run: Run, drawn: Drawn) -> None:
    stem = run.records["badencoder", "inverter"].name.removesuffix(".json")
    assert [path.name for path in drawn.paths] == [
        f"{stem}_{name}.{form}" for name in ALL for form in ("png", "svg", "pdf")
    ]
    assert drawn.left_out == []
    assert {path.parent for path in drawn.paths} == {run.tiny.folder / "out"}
    assert sorted(drawn.paths) == sorted((run.tiny.folder / "out").iterdir())
    assert all(path.stat().st_size < 1_000_000 for path in drawn.paths)


def test_png_is_no_blank_page_and_svg_is_xml(drawn: Drawn) -> None:
    for path in drawn.paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L"))
            assert min(pixels.shape) > 300
            assert pixels.std() > 20
            assert (pixels == 255).mean() > 0.2  # paper
        elif path.suffix == ".pdf":
            text = path.read_bytes()
            assert text.startswith(b"%PDF-")
            assert b"/Type3" not in text
            assert b"CreationDate" not in text
        else:
            root = ET.parse(path).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert len(list(root.iter())) > 50
            assert "date" not in {node.tag.rpartition("}")[2] for node in root.iter()}


def test_drawn_again_the_files_are_equal(run: Run, drawn: Drawn, tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 20.0, "axes.labelcolor": "red"}):  # a user's own settings do not matter
        again = run.draw(run.records["badencoder", "inverter"], tmp_path)
        assert matplotlib.rcParams["font.size"] == 20.0
    for one, other in zip(drawn.paths, again.paths, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_what_does_not_apply_is_left_out_with_a_reason(run: Run, tmp_path: Path) -> None:
    left = run.draw(run.records["badencoder", "ft"], tmp_path)
    assert left.left_out == [
        "inversion: defense ft kept no inverted trigger",
        "information: defense ft noted no mutual information",
        "pruning: defense ft noted no pruning",
    ]
    assert len(left.paths) == 9
    undefended = run.scene("none", "none")
    for picture in (draw_inversion, draw_information, draw_pruning):
        assert picture(undefended) == "there is no defense"


# The content


def test_the_trigger_is_the_boards(run: Run, scene: Scene) -> None:
    square = Trigger.square(10)
    assert scene.trigger.digest == square.digest
    assert torch.equal(scene.triggered, square.stamp(scene.test.pixels))
    counts = run.records["badencoder", "inverter"].counts
    assert counts is not None
    assert counts.hits == int((scene.predictions.triggered == 1).sum())
    assert counts.correct == int((scene.predictions.clean == scene.labels).sum())


def test_a_trigger_from_a_file_is_found_by_content(tmp_path: Path) -> None:
    ours, theirs = (replace(white, pattern=white.pattern // 2) for white in map(Trigger.square, (4, 5)))
    ours.save(tmp_path / "ours.npz")
    theirs.save(tmp_path / "theirs.npz")
    spec, other = (TriggerSpec(file=str(tmp_path / name)) for name in ("ours.npz", "theirs.npz"))
    row = Row(pretrain="pool", tasks=("task:1",), triggers=(other,))
    board = Board(name="filed", rows=(row,), trigger=spec)
    assert torch.equal(find_trigger(ours.digest, board, 32).pattern, ours.pattern)
    assert torch.equal(find_trigger(theirs.digest, board, 32).pattern, theirs.pattern)
    assert find_trigger(Trigger.square(7).digest, board, 32).box == (24, 24, 30, 30)
    with pytest.raises(UsageError, match=r"^the record's trigger \w{12} is no white square: give the board whose"):
        find_trigger(ours.digest, None, 32)
    with pytest.raises(UsageError, match="is no white square and none of board filed"):
        find_trigger("0" * 64, board, 32)


def test_a_record_of_a_point_has_the_trigger_of_its_point(run: Run) -> None:
    board = Board(name="swept", rows=(Row(pretrain="pool", tasks=("task:1",)),))
    point = {"trigger.kind": "blend", "trigger.size": 6}
    trigger = make_trigger(TriggerSpec(kind="blend", size=6), 32)
    record = run.records["badencoder", "none"]
    evaluate = {**record.identity["evaluate"], "params": {"trigger": trigger.digest}}
    of_point = record.model_copy(update={"point": point, "identity": {**record.identity, "evaluate": evaluate}})
    scene = Scene(of_point, run.tiny.store, run.library, torch.device("cpu"), board)
    assert scene.trigger.digest == trigger.digest
    figure = Figure()
    scene.entitle(figure, "")
    assert "at trigger.kind=blend, trigger.size=6" in " ".join(figure.get_suptitle().split())
    with pytest.raises(UsageError, match="is no white square and none of board swept"):
        _ = Scene(replace_point(of_point), run.tiny.store, run.library, torch.device("cpu"), board).trigger


def replace_point(record: Record) -> Record:
    return record.model_copy(update={"point": {}})


def test_a_trigger_at_random_positions_is_stamped_as_it_was_evaluated(run: Run) -> None:
    anywhere = Trigger.square(10).within(0.10, 0.90)
    record = run.records["badencoder", "none"]
    evaluate = {**record.identity["evaluate"], "params": {"trigger": anywhere.digest}}
    wandering = record.model_copy(update={"identity": {**record.identity, "evaluate": evaluate}})
    scene = Scene(wandering, run.tiny.store, run.library, torch.device("cpu"), None)
    assert scene.trigger.wander == (0.10, 0.90)
    expected = anywhere.stamp(scene.test.pixels, stream(evaluate["seed"], "positions"))
    assert torch.equal(scene.triggered, expected)
    assert not torch.equal(expected, Trigger.square(10).stamp(scene.test.pixels))
    picture = figure(draw_trigger(scene))
    assert picture.axes[0].get_xlabel() == "random position"
    patch = np.asarray(picture.axes[0].images[0].get_array())[::6, ::6]
    assert (patch == 1).all(-1).sum() == 100
    machine: dict[str, Any] = {"machine": {"device": "NVIDIA H100"}}
    same = wandering.model_copy(update=machine)  # every run draws on the CPU
    assert torch.equal(replace(scene, record=same).triggered, expected)
    elsewhere = wandering.model_copy(update=machine | {"schema_version": 1})  # but before schema 2 on its own device
    alone = draw_trigger(Scene(elsewhere, run.tiny.store, run.library, torch.device("cpu"), None))
    assert isinstance(alone, Picture)
    ((reason, part),) = alone.without
    assert part == "test images of trigger"
    assert reason.endswith("can be drawn only on the kind of device that did it, NVIDIA H100")


def test_titles_say_of_which_cell_and_how_it_did(run: Run, scene: Scene) -> None:
    record = run.records["badencoder", "inverter"]
    metrics, undefended, clean = record.metrics, record.undefended, record.baseline
    assert metrics is not None
    assert undefended is not None
    assert clean is not None
    for picture in (draw_trigger, draw_inversion, draw_attention, draw_information, draw_pruning, draw_features):
        title = " ".join(figure(picture(scene)).get_suptitle().split())
        assert "attack badencoder, defense inverter, pre-trained on pool, task task, target 1, seed 1" in title
        assert f"in percent: ACC {metrics.acc:.1f}, ASR {metrics.asr:.1f}, RA {metrics.ra:.1f};" in title
        assert f"undefended ACC {undefended.acc:.1f}, ASR {undefended.asr:.1f}, RA {undefended.ra:.1f};" in title
        assert f"clean encoder ACC {clean.ca:.1f}, ASR {clean.asr_b:.1f}, RA {clean.ra_b:.1f}" in title


def test_hits_are_marked(scene: Scene) -> None:
    def shown(triggered: int) -> list[str]:
        all_alike = torch.full((30,), triggered)
        picture = figure(draw_trigger(having(scene, predictions=Predictions(scene.labels, all_alike))))
        return [axes.get_xlabel() for axes in picture.axes]

    labels = shown(1)
    assert labels.count("1\n(hit)") == 8
    assert labels[8:16] == ["0 ✓"] * 4 + ["2 ✓"] * 4  # classes 0 and 2 in turn: class 1 is the target
    labels = shown(0)
    assert labels[16:] == ["0 ✓"] * 4 + ["0 ✗"] * 4
    picture = figure(draw_trigger(scene))
    assert [axes.get_title() for axes in picture.axes[:3]] == ["trigger", "reference", ""]
    reference = np.asarray(picture.axes[1].images[0].get_array())[::6, ::6]
    rows = scene.record.reference["rows"]
    train = np.load(Path(scene.artifact("reference").folder).parents[3] / "data/task/train.npz")["x"]
    assert np.allclose(reference * 255, train[rows[0]])


def test_inverted_triggers_are_those_kept(scene: Scene) -> None:
    picture = figure(draw_inversion(scene))
    arrays = [np.asarray(axes.images[0].get_array())[::6, ::6] for axes in picture.axes]
    assert len(arrays) == 9  # mask, pattern, both; true, first, second
    for number in range(2):
        mask, pattern = MASKS[number, 0].numpy(), PATTERNS[number].permute(1, 2, 0).numpy()
        assert np.array_equal(arrays[1 + number], mask)
        assert np.array_equal(arrays[4 + number], pattern)
        assert np.array_equal(arrays[7 + number], mask[..., None] * pattern)
        assert picture.axes[1 + number].get_xlabel() == f"{mask.sum():.1f} pixels"
    assert arrays[0].sum() == 100
    assert picture.axes[0].get_xlabel() == "100 pixels"


def test_attention_is_that_of_the_encoders_before_and_after(run: Run, scene: Scene) -> None:
    attacked = Encoder.load(run.tiny.blob(scene.record.stages["attack"], "encoder.safetensors"))
    repaired = Encoder.load(run.tiny.blob(scene.record.stages["defend"], "encoder.safetensors"))
    assert list(scene.encoders) == ["before: attack badencoder", "after: defense inverter"]
    assert list(run.scene("badencoder", "none").encoders) == ["attack badencoder"]
    assert list(run.scene("none", "ft").encoders) == ["before: clean encoder", "after: defense ft"]
    pixels = scene.test.pixels[:2]
    for encoder, mine in zip((attacked, repaired), scene.encoders.values(), strict=True):
        maps = attention(mine, pixels)
        assert {name: tuple(value.shape) for name, value in maps.items()} == {
            "layer1": (2, 16, 16),
            "layer2": (2, 8, 8),
            "layer3": (2, 4, 4),
        }
        with torch.no_grad():
            outputs = encoder.intermediates(pixels.float() / 255)[1]
        for name, output in outputs.items():
            energy = (output**2).sum(1)
            assert torch.allclose(maps[name], energy / energy.flatten(1).norm(dim=1)[:, None, None], atol=1e-5)

    picture = figure(draw_attention(scene))
    labels = [axes.get_xlabel() for axes in picture.axes]
    assert [label for label in labels if label] == ["input"] + 2 * ["layer1", "layer2", "layer3"]
    rows = scene.samples(4)
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()][::2] == [
        str(int(scene.labels[row])) for row in rows
    ]
    stack = np.asarray(picture.axes[2].images[0].get_array())  # layer1 before: tiles of 96 with 3 around each
    both = torch.stack([part[row] for row in rows for part in (scene.test.pixels, scene.triggered)])
    first = attention(attacked, both)["layer1"]
    assert stack.shape == (8 * 102, 102)
    for number in range(8):
        tile = stack[102 * number + 3 : 102 * number + 99, 3:99]
        assert np.allclose(tile[::6, ::6], first[number].numpy(), atol=1e-6)


def test_information_and_weights_are_those_noted(scene: Scene) -> None:
    noted = scene.record.findings["defend"]["mi"]
    left, right = figure(draw_information(scene)).axes
    assert [bar.get_height() for bar in right.patches] == list(noted["beta"].values())  # type: ignore[attr-defined]
    assert [bar.get_height() for bar in left.patches] == list(noted["information"].values())  # type: ignore[attr-defined]
    assert left.get_ylabel() == "I(map; feature) [nats]"
    assert right.get_ylabel() == "layer weight β"

    lost = noting(scene, {"beta": {"layer1": 5.0, "layer2": 7.0}, "information": {"layer1": None, "layer2": 0.25}})
    texts = [text.get_text() for text in figure(draw_information(lost)).axes[0].texts]
    assert texts == ["n/a", "0.250"]
    uniform = figure(
        draw_information(noting(scene, {"beta": {"layer1": 5.0}, "information": {}, "uniform_fallback": False}))
    )
    assert uniform.axes[0].get_title() == "not estimated"


@pytest.mark.parametrize(
    ("note", "place"),
    [
        ({"beta": {"a\x00b": 1.0}}, "mi.beta.a\\x00b.[key]"),
        ({"beta": {"a\nb": 1.0}}, "mi.beta.a b.[key]"),
        ({"beta": {"a": 1.0}, "saturated": ["a" * 41]}, "mi.saturated.0"),
        (0.3, "mi"),
        (None, "mi"),
        ([1, 2], "mi"),
        ({"beta": 0.3}, "mi.beta"),
        ({"beta": {}}, "mi.beta"),
        ({"beta": {"layer1": "high"}}, "mi.beta.layer1"),
        ({"beta": {"layer1": float("nan")}}, "mi.beta.layer1"),
        ({"beta": {"layer1": 1e308}}, "mi.beta.layer1"),
        ({"beta": {"layer1": -1.0}}, "mi.beta.layer1"),
        ({"beta": {f"layer{n}": 1.0 for n in range(65)}}, "mi.beta"),
        ({"beta": {"layer1": 1.0}, "information": [0.1]}, "mi.information"),
        ({"beta": {"layer1": 1.0}, "saturated": "layer1"}, "mi.saturated"),
    ],
)
def test_the_note_of_another_author_is_left_out(scene: Scene, note: Any, place: str) -> None:
    made = draw_information(noting(scene, note))
    assert made == f"defense inverter has a note of its own at {place}, in another form than this picture reads"


def test_the_pruning_curve_is_that_noted(scene: Scene) -> None:
    (axes,) = figure(draw_pruning(scene)).axes
    curve, tolerance, taken = axes.lines
    assert curve.get_xydata().tolist() == [[0, 50], [2, 48], [7, 47], [9, 30]]  # type: ignore[union-attr]
    assert list(tolerance.get_ydata()) == pytest.approx([46, 46])  # type: ignore[arg-type]
    assert taken.get_xydata().tolist() == [[7, 47]]  # type: ignore[union-attr]
    assert [text.get_text() for text in axes.texts] == ["0.1", "0.25", "0.3"]
    labels = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert labels == ["tolerance: 4 points", "taken: 7 channels at 0.25"]
    bare = PRUNED | {"curve": [{"pruned": 0, "utility": 0.5}, {"pruned": 1, "utility": 0.4}], "pruned": 1}
    made = figure(draw_pruning(noting(scene, {**bare, "tolerance": None}, "pruning")))
    assert [text.get_text() for text in made.legends[0].get_texts()] == ["taken: 1 channel"]
    long = [PruningLevel(n, 0.5, n / 10).noted() for n in range(60)]
    made = figure(draw_pruning(noting(scene, PRUNED | {"curve": long}, "pruning")))
    assert [text.get_text() for text in made.axes[0].texts][:3] == ["0", "0.3", "0.6"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"curve": []}, "pruning.curve"),
        ({"curve": [{"pruned": 0, "utility": 1.5}]}, "pruning.curve.0.utility"),
        ({"curve": [{"pruned": "0", "utility": 0.5}]}, "pruning.curve.0.pruned"),
        ({"tolerance": 2}, "pruning.tolerance"),
    ],
)
def test_a_pruning_note_of_another_form_is_left_out(scene: Scene, change: dict[str, Any], place: str) -> None:
    made = draw_pruning(noting(scene, PRUNED | change, "pruning"))
    assert made == f"defense inverter has a note of its own at {place}, in another form than this picture reads"


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_masks_of_every_float_are_drawn(scene: Scene, kind: torch.dtype) -> None:
    kept = {"inverted.mask": MASKS.to(kind), "inverted.pattern": PATTERNS.to(kind)}
    assert len(figure(draw_inversion(having(scene, kept=kept))).axes) == 9


@pytest.mark.parametrize(
    ("mask", "pattern", "said"),
    [
        (torch.rand(1, 32, 32), PATTERNS, "kept inverted.mask as float32 (1, 32, 32), not as floats (K, 1, 32, 32)"),
        (MASKS, PATTERNS[:1], "kept inverted.pattern as float32 (1, 3, 32, 32), not as floats (K, 3, 32, 32)"),
        (MASKS[:0], PATTERNS[:0], "kept inverted.mask as float32 (0, 1, 32, 32), not as floats (K, 1, 32, 32)"),
        (MASKS.int(), PATTERNS, "kept inverted.mask as int32 (2, 1, 32, 32), not as floats (K, 1, 32, 32)"),
        (MASKS, PATTERNS * 300, "kept inverted.pattern with values outside 0 to 1"),
        (MASKS * float("nan"), PATTERNS, "kept inverted.mask with values outside 0 to 1"),
        (torch.tensor(1.0), PATTERNS, "kept inverted.mask as float32 (), not as floats (K, 1, 32, 32)"),
    ],
)
def test_what_another_author_kept_is_left_out(scene: Scene, mask: Tensor, pattern: Tensor, said: str) -> None:
    kept = {"inverted.mask": mask, "inverted.pattern": pattern}
    assert draw_inversion(having(scene, kept=kept)) == f"defense inverter {said}"


def test_maps_of_one_position_have_no_attention(scene: Scene) -> None:
    encoder = Encoder.seeded("w16", (0.5,) * 3, (0.25,) * 3, seed=0, device="cpu").eval()
    assert list(attention(encoder, scene.test.pixels[:2, :, ::4, ::4])) == ["layer1", "layer2"]


def test_features_are_told_apart_by_class(scene: Scene) -> None:
    picture = figure(draw_features(scene))
    assert [axes.get_title() for axes in picture.axes] == list(scene.encoders)
    for axes in picture.axes:
        assert axes.get_xlabel().startswith("first principal component (")
        assert axes.get_ylabel().startswith("second principal component (")
        points = [len(np.asarray(collection.get_offsets())) for collection in axes.collections]
        assert points == [10, 10, 10, 10]  # three classes, the target last, and every second of the other 20 triggered
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0", "2", "1 (target)", "triggered"]


def test_classes_beyond_the_palette_share_a_colour(scene: Scene) -> None:
    names = tuple(f"class {label}" for label in range(12))
    groups = list(class_colours(having(scene, test=replace(scene.test, classes=names))))
    assert groups[0] == ("2 other classes", [10, 11], REST)
    assert [colour for _, _, colour in groups[1:]] == [*CLASSES, TARGET]
    assert [members for _, members, _ in groups[1:]] == [[label] for label in (0, 2, 3, 4, 5, 6, 7, 8, 9, 1)]


def test_any_class_name_can_be_drawn(scene: Scene, tmp_path: Path) -> None:
    names = ("$x", "a$b_{$", "end of no passing for vehicles over 3.5 metric tons")
    odd = having(scene, test=replace(scene.test, classes=names))
    assert odd.class_name(2) == "end of no\npassing for…"
    with matplotlib.style.context(["default", STYLE]):
        for path in save(figure(draw_features(odd)), tmp_path, "odd"):
            assert path.stat().st_size > 10_000


# Published beside a record


def published(scene: Scene, generated: bool) -> Scene:
    """A scene whose pictures are published, of a data set that is generated or not."""
    _ = scene.test, scene.references  # read first: the folder of the data set is there too
    library = DataLibrary({"task": Drawn32()} if generated else {}, scene.library.root, scene.library.cache)
    return having(scene, published=True, library=library)


class Drawn32(Dataset):
    """A data set that is generated."""

    name = "task"
    needs_files = False


def images_in(made: Figure) -> list[str]:
    """What the axes with images show, by their texts."""
    return [axes.get_title() or axes.get_xlabel() for axes in made.axes if axes.images]


def test_published_pictures_show_only_images_that_are_generated(scene: Scene) -> None:
    theirs, ours = published(scene, generated=False), published(scene, generated=True)
    assert (scene.shows_images, theirs.shows_images, ours.shows_images) == (True, False, True)
    assert images_in(figure(draw_trigger(theirs))) == ["trigger"]
    assert len(images_in(figure(draw_trigger(ours)))) == len(images_in(figure(draw_trigger(scene)))) == 18
    maps = 2 * ["layer1", "layer2", "layer3"]
    assert images_in(figure(draw_attention(theirs))) == maps
    assert images_in(figure(draw_attention(ours))) == ["input", *maps]
    assert images_in(figure(draw_features(theirs))) == []


def test_without_images_the_attention_is_a_mean(run: Run, scene: Scene) -> None:
    picture = figure(draw_attention(published(scene, generated=False)))
    attacked = scene.encoders["before: attack badencoder"]
    rows = (scene.labels != scene.record.target).nonzero()[:, 0]
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()] == ["clean", "triggered"]
    stack = np.asarray(picture.axes[0].images[0].get_array())
    assert stack.shape == (2 * 102, 102)
    for number, images in enumerate((scene.test.pixels, scene.triggered)):
        mean = attention(attacked, images[rows])["layer1"].mean(0).numpy()
        tile = stack[102 * number + 3 : 102 * number + 99, 3:99]
        assert np.allclose(tile[::6, ::6], mean, atol=1e-5)
    assert picture.get_suptitle().startswith("Attention of each stage, mean over 20 test images:")


def test_maps_are_those_of_all_images_whatever_the_memory(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = scene.encoders["after: defense inverter"]
    whole = attention(encoder, scene.test.pixels)
    monkeypatch.setattr("benchbd.figures.pictures.AT_ONCE", 7)
    parts = attention(encoder, scene.test.pixels)
    assert parts.keys() == whole.keys()
    assert all(torch.allclose(parts[name], whole[name], atol=1e-6) for name in whole)


def test_a_picture_beside_its_record_does_not_repeat_it(scene: Scene) -> None:
    title = figure(draw_pruning(published(scene, generated=False))).get_suptitle()
    assert title == "Pruning: every level tried, with its threshold"


@pytest.mark.parametrize("generated", [True, False])
def test_small_pictures_are_all_that_apply_and_sound(scene: Scene, generated: bool) -> None:
    made = small_pictures(published(scene, generated))
    assert list(made) == list(ALL) == list(PICTURES) == list(SHOWN_ON_PAGES)
    assert sum(map(len, made.values())) <= MOST
    assert [picture_fault(content) for content in made.values()] == [""] * 6
    assert small_pictures(published(scene, generated)) == made


def noisy(size: float = 1.5) -> Figure:
    """A figure that does not shrink well."""
    made = Figure(figsize=(size, size))
    noise = torch.rand(150, 150, 3, generator=torch.Generator().manual_seed(1))
    made.subplots().imshow(noise.numpy(), interpolation="none")
    return made


def test_pictures_that_are_too_large_become_smaller_or_are_left_out() -> None:
    best = within({"a": noisy(), "b": noisy()}, 10**9)
    assert {name: size(content) for name, content in best.items()} == {"a": (150, 150), "b": (150, 150)}
    total = sum(map(len, best.values()))
    fewer = within({"a": noisy(), "b": noisy()}, total - 1)
    assert {name: size(content) for name, content in fewer.items()} == {"a": (150, 150), "b": (150, 150)}
    assert len(fewer["a"]) < len(best["a"])
    smaller = within({"a": noisy(), "b": noisy()}, total // 4)
    assert max(map(size, smaller.values())) < (150, 150)
    assert sum(map(len, smaller.values())) <= total // 4
    plain = Figure(figsize=(1, 1))
    left = within({"a": noisy(), "plain": plain, "b": noisy(1.0)}, 400)
    assert list(left) == ["plain"]
    assert size(within({"wide": Figure(figsize=(30, 1))}, 10**9)["wide"]) == (1980, 66)


def size(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size


# Errors


def refused(error: type[BenchbdError], match: str, record: Record, out: Path, **places: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        draw(record, out, **places)
    assert "\n" not in str(caught.value)
    assert not out.is_dir()


def test_wrong_places_are_one_line(run: Run, tmp_path: Path) -> None:
    record, out = run.records["badencoder", "inverter"], tmp_path / "out"
    here = {"store": run.tiny.store, "library": run.library}
    write_npz_set(tmp_path, "task", seed=9)
    other = DataLibrary({}, tmp_path, tmp_path / "cache")
    refused(DataError, "task: its test split has the digest", record, out, **{**here, "library": other})

    evaluate = record.identity["evaluate"]
    strange = {**record.identity, "evaluate": {**evaluate, "params": {"trigger": "f" * 64}}}
    refused(UsageError, "trigger ffffffffffff is no", record.model_copy(update={"identity": strange}), out, **here)
    failed = record.model_copy(update={"stages": {}, "status": "error", "reason": "loss became NaN"})
    refused(UsageError, r"was not evaluated \(error: loss became NaN\)", failed, out, **here)
    out.write_text("")
    refused(StoreError, "figures cannot be written to", record, out, **here)


# Published records: without the store, or the data, that they came from


def test_without_the_store_the_rest_is_drawn(run: Run, tmp_path: Path) -> None:
    record = run.records["badencoder", "inverter"]
    drawn = draw(record, tmp_path / "out", store=tmp_path / "empty", library=run.library)
    names = {path.stem.removeprefix(record.name.removesuffix(".json") + "_") for path in drawn.paths}
    assert names == {"trigger", "information", "pruning"}
    assert not (tmp_path / "empty").exists()
    key = {kind: record.stages[kind][:12] for kind in ("evaluate", "attack", "defend")}
    how = (
        f"in {tmp_path / 'empty'}: name the store that the record was computed in, or compute it here with benchbd run"
    )
    for what, kind in (
        ("predictions of trigger", "evaluate"),
        ("inversion", "defend"),
        ("attention, features", "attack"),
    ):
        assert [line for line in drawn.left_out if line.startswith(f"{what}: no {kind} stage {key[kind]} of ")]
    assert all(how in line for line in drawn.left_out)
    assert len(drawn.left_out) == 3


def test_reference_inputs_are_found_in_the_training_images(run: Run, scene: Scene, tmp_path: Path) -> None:
    away = having(run.scene("badencoder", "inverter"), store=tmp_path)
    assert torch.equal(away.references, scene.references)
    made = draw_trigger(away)
    assert isinstance(made, Picture)
    labels = [axes.get_xlabel() for axes in made.figure.axes]
    assert labels[:2] == [axes.get_xlabel() for axes in figure(draw_trigger(scene)).axes][:2]
    assert labels[8:] == [""] * 16  # the predictions are unknown
    nowhere = having(run.scene("badencoder", "inverter"), store=tmp_path)
    vars(nowhere)["record"] = scene.record.model_copy(update={"reference": {"rows": "all", "predicted": [1, "x"]}})
    with pytest.raises(Absent, match="no reference stage"):
        nowhere.references  # noqa: B018 - to look for them is the point


def test_without_store_and_data_there_is_still_the_trigger(run: Run, tmp_path: Path) -> None:
    record = run.records["badencoder", "ft"]
    nothing = DataLibrary({}, tmp_path, tmp_path / "cache")
    drawn = draw(record, tmp_path / "out", store=tmp_path / "empty", library=nothing)
    assert [path.suffix for path in drawn.paths] == [".png", ".svg", ".pdf"]
    assert any(line.startswith("test images of trigger, reference inputs of trigger: ") for line in drawn.left_out)
    picture = draw_trigger(Scene(record, tmp_path / "empty", nothing, torch.device("cpu"), None))
    assert isinstance(picture, Picture)
    patch = np.asarray(picture.figure.axes[0].images[0].get_array())[::6, ::6]
    assert (patch == 1).all(-1).sum() == 100


def test_the_clean_encoder_is_needed_only_where_it_is_drawn(run: Run) -> None:
    def lost(attack: str, defense: str) -> Scene:
        scene = run.scene(attack, defense)
        stages = {**scene.record.stages, "pretrain": "0" * 64}
        return having(scene, record=scene.record.model_copy(update={"stages": stages}))

    assert len(lost("badencoder", "ft").encoders) == 2
    with pytest.raises(Absent, match="no pretrain stage 000000000000"):
        lost("none", "ft").encoders  # noqa: B018 - to look for them is the point


def test_a_record_without_anything_to_draw_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchbd.figures.pictures.PICTURES", {"information": draw_information})
    record = run.records["badencoder", "none"]
    refused(
        UsageError,
        "nothing to draw: information: there is no defense",
        record,
        tmp_path / "out",
        store=run.tiny.store,
        library=run.library,
    )


def test_a_published_record_is_drawn_whatever_the_backend_of_a_notebook(tmp_path: Path) -> None:
    """In a process of its own: matplotlib reads MPLBACKEND when it is imported, and refuses unknown values."""
    (published,) = boards_folder().glob("detect-shapes/records/badencoder_none_*_s1_mlp.json")
    command = [sys.executable, "-m", "benchbd", "figures", str(published), "--out", str(tmp_path / "out")]
    places = {"BENCHBD_STORE": str(tmp_path / "store"), "BENCHBD_DATA": str(tmp_path / "data")}
    environment = {**os.environ, **places, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stem = json.loads(published.read_text())["attack"] + "_none_"
    assert sorted(Path(line).suffix for line in done.stdout.splitlines()) == [".pdf", ".png", ".svg"]
    assert all(Path(line).name.startswith(stem) for line in done.stdout.splitlines())
    assert all(line.startswith("left out: ") for line in done.stderr.splitlines())
    assert "attention, features: no attack stage" in done.stderr


# The helpers


def test_plane_finds_known_axes() -> None:
    """Three columns of one factor and one of another: variance 3 and 1 of 4, coordinates sqrt(3) a and b."""
    a, b = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    factor = (3 / 4) ** 0.5  # of the standard deviation, 4 / 3 in squares
    found = plane(torch.stack([5 * a + 2, 0.1 * a, a - 7, 3 * b, torch.full((4,), 6.0)], dim=1))
    assert found.share == pytest.approx((0.75, 0.25))
    assert torch.allclose(found.coordinates[:, 0].float(), factor * 3**0.5 * a, atol=1e-5)
    assert torch.allclose(found.coordinates[:, 1].float(), factor * b, atol=1e-5)


def test_plane_has_fixed_signs() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(40, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    features = features + 0.1 * torch.randn(40, 6, generator=generator)
    found = plane(features).coordinates
    assert torch.equal(found, plane(features).coordinates)
    order = torch.randperm(40, generator=generator)
    assert torch.allclose(plane(features[order]).coordinates, found[order], atol=1e-9)
    assert torch.allclose(plane(-features).coordinates, -found, atol=1e-9)  # the same axes, not reversed
    x = (features - features.mean(0)).double() / features.double().std(0)
    axes = torch.linalg.lstsq(x, found).solution  # (6, 2): the loadings
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_spread_takes_every_class_in_turn() -> None:
    assert spread(torch.tensor([2, 0, 0, 1, 2]), 4).tolist() == [1, 3, 0, 2]
    assert spread(torch.tensor([2, 0, 0, 1, 2]), 9).tolist() == [1, 3, 0, 2, 4]
    assert spread(torch.arange(10).flip(0), 4).tolist() == [9, 6, 3, 0]

"""The kinds of trigger: the effect of each on a pixel, its identity, and its name on a board."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor

from benchbd import Attack, AttackerKnowledge, Backdoor, DataError, Trigger, TriggerFunction, UsageError
from benchbd.base import pieces
from benchbd.base.errors import PluginError, UnknownNameError
from benchbd.base.mapped import region_of
from benchbd.contract.method import build
from benchbd.contract.specs import KINDS, TriggerSpec
from benchbd.figures.panels import marks
from benchbd.figures.scene import find_trigger
from benchbd.planning.board import load_board
from benchbd.records.gates import judge
from benchbd.registry import flaw_of, load_registry
from benchbd.stages.attack import check_backdoor
from benchbd.testing import ContractError, check_method, toy_attacker
from benchbd.toolkit.patterns import described, make_trigger

from ..boards import TINY, Tiny, offering
from ..chance import seeded


class Shift(TriggerFunction):
    """Moves every image to the right; the freed columns are black."""

    name = "shift"
    version = "1"
    by: int = Field(2, ge=0, description="columns")

    def stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        moved = images.roll(self.by, -1)
        moved[..., : self.by] = 0
        return moved


FUNCTIONS = {"shift": Shift}


def spec(**options: Any) -> TriggerSpec:
    return build(TriggerSpec, options, "trigger")


def one_pixel(kind: Any, value: int, *, opacity: float = 1.0) -> Trigger:
    """A trigger on 4x4 images that covers row 1, column 2."""
    keep = torch.ones(3, 4, 4, dtype=torch.bool)
    keep[:, 1, 2] = False
    pattern = torch.where(keep, 0, value).to(torch.int16 if kind == "add" else torch.uint8)
    return Trigger(pattern, keep, kind=kind, opacity=opacity)


def stamped_pixel(trigger: Trigger, before: int, seed: int = 0) -> int:
    images = torch.full((2, 3, 4, 4), before, dtype=torch.uint8)
    stamped = trigger.stamp(images, torch.Generator().manual_seed(seed))
    assert stamped.dtype == torch.uint8
    assert torch.equal(stamped[:, trigger.keep], images[:, trigger.keep])
    assert (images == before).all()
    return int(stamped[0, 0, 1, 2])


@pytest.mark.parametrize(
    ("trigger", "before", "after"),
    [
        (one_pixel("patch", 7), 200, 7),
        (one_pixel("blend", 255, opacity=0.2), 100, 131),  # 0.8 * 100 + 0.2 * 255 = 131
        (one_pixel("blend", 255, opacity=0.2), 101, 131),  # 131.8: the fraction is cut off
        (one_pixel("blend", 0, opacity=0.2), 3, 2),  # 2.4
        (one_pixel("blend", 255, opacity=0.2), 255, 255),
        (one_pixel("blend", 9, opacity=1.0), 100, 9),
        (one_pixel("add", 30), 100, 130),
        (one_pixel("add", -30), 100, 70),
        (one_pixel("add", 200), 100, 255),
        (one_pixel("add", -200), 100, 0),
    ],
)
def test_what_becomes_of_a_pixel(trigger: Trigger, before: int, after: int) -> None:
    assert stamped_pixel(trigger, before) == after


def test_blending_is_numpys() -> None:
    """Every pixel under every pattern: the cast of (1 - a) x + a p from doubles."""
    x, p = np.meshgrid(np.arange(256), np.arange(256))
    images = torch.from_numpy(x.astype(np.uint8)).expand(1, 3, -1, -1)
    pattern = torch.from_numpy(p.astype(np.uint8)).expand(3, -1, -1)
    for opacity in (0.05, 0.1, 0.2, 0.35, 0.7):
        trigger = Trigger(pattern, torch.zeros(3, 256, 256, dtype=torch.bool), kind="blend", opacity=opacity)
        expected = np.clip((1 - opacity) * x + opacity * p, 0, 255).astype(np.uint8)
        assert (trigger.stamp(images)[0, 1].numpy() == expected).all()


def test_noise_is_drawn_anew_for_every_image_and_equal_in_all_channels() -> None:
    trigger = make_trigger(spec(kind="noise", size=32, opacity=1.0), 32)
    images = torch.full((300, 3, 32, 32), 90, dtype=torch.uint8)
    first, again, other = (trigger.stamp(images, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[:, 0], first[:, 1])
    assert torch.equal(first[:, 0], first[:, 2])
    assert len({image.numpy().tobytes() for image in first}) == 300
    counts = torch.bincount(first[:, 0].flatten().long(), minlength=256) / (300 * 1024)
    assert counts.min() > 0.8 / 256  # uniform: 1,200 of each of the 256 values are expected, with a deviation of 35
    assert counts.max() < 1.2 / 256

    mixed = replace(trigger, opacity=0.2).stamp(images, torch.Generator().manual_seed(5))
    expected = np.clip((1 - 0.2) * 90 + 0.2 * first.numpy(), 0, 255).astype(np.uint8)  # NAD's per-image noise
    assert (mixed.numpy() == expected).all()
    with pytest.raises(UsageError, match="a trigger of kind noise needs a generator to draw from"):
        trigger.stamp(images)


@pytest.mark.parametrize("kind", ["blend", "add", "noise"])
def test_every_kind_of_data_wanders(kind: Any) -> None:
    """At any place the patch changes the pixels under it as it does at its fixed place."""
    fixed = make_trigger(spec(kind=kind, size=5, **({"pattern": "blocks"} if kind != "noise" else {})), 32)
    wandering = fixed.within(0.1, 0.9)
    images = torch.full((40, 3, 32, 32), 120, dtype=torch.uint8)
    stamped = wandering.stamp(images, torch.Generator().manual_seed(seeded(3)))
    changed = (stamped != images).any(1)
    places = set()
    for image, mask in zip(stamped, changed, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        assert rows.max() - rows.min() < 5
        assert columns.max() - columns.min() < 5
        places.add((int(rows.min()), int(columns.min())))
        if kind != "noise":
            part = fixed.stamp(images[:1])[0, :, 26:31, 26:31]
            found = image.unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 5, 5)
            assert (found == part).flatten(1).all(1).any()
    assert len(places) > 20


def test_a_function_stamps() -> None:
    images = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trigger = Trigger.by(Shift(by=3), 8)
    stamped = trigger.stamp(images, torch.Generator())
    assert torch.equal(stamped[..., 3:], images[..., :-3])
    assert not stamped[..., :3].any()
    assert stamped.shape == images.shape
    assert (trigger.size, trigger.box, trigger.draws) == (8, (0, 0, 7, 7), True)
    with pytest.raises(UsageError, match="needs a generator"):
        trigger.stamp(images)
    with pytest.raises(UsageError, match="does not wander"):
        trigger.within(0.1, 0.9)


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda images: images[:1], r"must return uint8 \(4, 3, 8, 8\), not torch.uint8 \(1, 3, 8, 8\)"),
        (lambda images: images.float(), r"not torch.float32 \(4, 3, 8, 8\)"),
        (lambda images: None, "not None"),
        (lambda images: 1 / 0, r"stamp\(\) raised ZeroDivisionError"),
        (lambda images: images.to("meta"), "must return images on cpu"),
    ],
)
def test_a_function_that_returns_no_images_is_one_line(work: Any, reason: str) -> None:
    class Broken(Shift):
        name = "broken"

        def stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
            found: Tensor = work(images)
            return found

    with pytest.raises(PluginError, match=reason) as caught:
        Trigger.by(Broken(), 8).stamp(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.Generator())
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("trigger broken: ")


def test_what_a_function_writes_to_is_its_own() -> None:
    class Writes(Shift):
        name = "writes"

        def stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
            torch.set_default_dtype(torch.float64)
            return images.fill_(3)

    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    assert (Trigger.by(Writes(), 8).stamp(images, torch.Generator()) == 3).all()
    assert not images.any()
    assert torch.get_default_dtype() == torch.float32


# The identity of a trigger


FAMILY = {
    "patch": spec(pattern="blocks"),
    "patch of grid": spec(pattern="grid", size=3),
    "other blocks": spec(pattern="blocks", seed=1),
    "random pixels": spec(pattern="random_pixel"),
    "blend": spec(kind="blend", pattern="blocks"),
    "stronger blend": spec(kind="blend", pattern="blocks", opacity=0.3),
    "whole blend": spec(kind="blend", pattern="blocks", opacity=1.0),
    "wandering blend": spec(kind="blend", pattern="blocks", position="random"),
    "add": spec(kind="add", pattern="blocks"),
    "less": spec(kind="add", pattern="blocks", magnitude=-50),
    "frequency": spec(kind="add", pattern="frequency"),
    "noise": spec(kind="noise"),
    "whole noise": spec(kind="noise", opacity=1.0),
}


def family() -> dict[str, Trigger]:
    made = {name: make_trigger(each, 32) for name, each in FAMILY.items()}
    return made | {"function": Trigger.by(Shift()), "other function": Trigger.by(Shift(by=1))}


def test_digests_of_today_stay() -> None:
    """Keys of stages, and so published records, contain these digests."""
    assert [
        each.digest
        for each in (
            *(Trigger.square(10), Trigger.square(5, center=True), Trigger.square(10).within(0.1, 0.9)),
            *(Trigger.square(0), make_trigger(TriggerSpec(), 32)),
        )
    ] == [
        "4b6ef9214d36b28b4bdceedb4c91bddadaa75f985ac3da1cf8348005a69394a3",
        "18a64d920c51b112073f2c7de4f318f4981d8fb9e2109bb47756d51e45a8bdf2",
        "cfcaf6d35cb57ceb7deebe14d788f4cb020a35634d02da8594dfac4835068761",
        "90daa369d52c2f00b3372e1d95662f294e793f214ee1a0311f59ab3eb6077d05",
        "4b6ef9214d36b28b4bdceedb4c91bddadaa75f985ac3da1cf8348005a69394a3",
    ]


def test_digests_are_distinct_and_stable() -> None:
    ours, again = family(), family()
    assert len({each.digest for each in ours.values()}) == len(ours)
    for name, each in ours.items():
        assert each.digest == again[name].digest == each.copy("cpu").digest == each.to("cpu").digest, name


def test_patterns_are_the_same_on_every_machine() -> None:
    found = {name: make_trigger(spec(pattern=name), 32).digest[:12] for name in ("blocks", "random_pixel")}
    found["frequency"] = make_trigger(spec(kind="add", pattern="frequency"), 32).digest[:12]
    assert found == {"blocks": "1d8d13a8c542", "random_pixel": "4f2c82df44c1", "frequency": "9a3c453aca88"}


def test_a_functions_digest_is_its_name_version_and_options() -> None:
    class Newer(Shift):
        version = "2"

    class Renamed(Shift):
        name = "renamed"

    own = Trigger.by(Shift()).digest
    assert own == Trigger.by(Shift(by=2)).digest
    others = (Trigger.by(Shift(by=3)), Trigger.by(Newer()), Trigger.by(Renamed()), Trigger.by(Shift(), 8))
    assert len({own, *(each.digest for each in others)}) == 5


@pytest.mark.parametrize("name", family())
def test_a_trigger_comes_back_from_its_parts_and_from_its_file(name: str, tmp_path: Path) -> None:
    trigger = family()[name]
    said, tensors = trigger.to_parts()
    again = Trigger.from_parts(said, tensors, FUNCTIONS)
    trigger.save(tmp_path / "trigger.npz")
    loaded = Trigger.load(tmp_path / "trigger.npz", functions=FUNCTIONS)
    assert again.digest == trigger.digest
    assert loaded.digest == replace(trigger, wander=None).digest  # a file contains a patch, not its position
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected, found = (each.stamp(images, torch.Generator().manual_seed(2)) for each in (trigger, again))
    assert torch.equal(expected, found)
    assert not torch.equal(expected, images)


def test_parts_that_are_none_are_one_line(tmp_path: Path) -> None:
    said, tensors = Trigger.by(Shift()).to_parts()
    with pytest.raises(UnknownNameError, match="unknown trigger 'shift'"):
        Trigger.from_parts(said, tensors)
    said["function"]["version"] = "0"
    with pytest.raises(PluginError, match="trigger shift: version 1 is installed here, not 0"):
        Trigger.from_parts(said, tensors, FUNCTIONS)
    for parts, reason in [({"kind": "paint"}, "kind: input should be"), ({"kind": "blend", "opacity": "x"}, "opacity")]:
        with pytest.raises(DataError, match=reason):
            Trigger.from_parts(parts, tensors)
    arrays = {"t": np.zeros((1, 4, 4, 3)), "tm": np.zeros((1, 4, 4, 3))}
    for text in ("{", "[]", "{}", "[" * 10_000):
        np.savez(tmp_path / "t.npz", **arrays, parts=np.array(text))
        with pytest.raises(DataError, match="parts must be the JSON"):
            Trigger.load(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", **arrays, parts=np.array('{"kind": "paint"}'))
    with pytest.raises(DataError, match="kind: input should be"):
        Trigger.load(tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "paint"}, "unknown kind of trigger 'paint'"),
        ({"opacity": 0.5}, "the opacity of a patch trigger is 1"),
        ({"kind": "blend", "opacity": 0.0}, "above 0 of blend and noise, not 0"),
        ({"kind": "function"}, "a trigger has a function if its kind is function"),
        ({"function": Shift()}, "a trigger has a function if its kind is function"),
        ({"kind": "add"}, "the pattern of kind add is torch.int16, not torch.uint8"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        replace(Trigger.square(), **changes)


# The triggers that a board draws

BLEND = 'kind = "blend"\npattern = "grid"\nopacity = 0.3'

BOARDS = {
    "patch": 'pattern = "blocks"\nseed = 3\nposition = "random"',
    "blend": BLEND,
    "add": 'kind = "add"\npattern = "frequency"',
    "noise": 'kind = "noise"\nsize = 32',
    "function": 'kind = "function"\nfunction = "shift"\n[options.shift]\nby = 7',
}


def board(tmp_path: Path, trigger: str, *classes: Any) -> Tiny:
    text = TINY.replace("[data]", f"[trigger]\n{trigger}\n[data]", 1)
    extra = {"own": offering(benchbd_triggers=[Shift], benchbd_attacks=list(classes))}
    return Tiny(tmp_path, load_registry(extra=extra), text)


@pytest.mark.parametrize("kind", BOARDS)
def test_a_board_of_each_kind_runs_its_floor(kind: str, tmp_path: Path) -> None:
    tiny = board(tmp_path, BOARDS[kind])
    (record,) = tiny.run(attacks=("none",), defenses=("none",))
    assert (record.status, record.reason, record.on_board) == ("ok", "", True)
    triggers = {stage.params["trigger"] for stage in tiny.plan().stages if stage.kind == "evaluate"}
    assert len(triggers) == 1
    assert triggers != {Trigger.square(10).digest}


def test_departures_name_kind_and_options(tmp_path: Path) -> None:
    tiny = board(tmp_path, BLEND)
    floor = {"attacks": ("none",), "defenses": ("none",)}

    def departures(*options: str) -> tuple[str, ...]:
        (cell,) = tiny.plan(options=options, **floor).cells
        return cell.departures

    assert departures() == ()
    assert departures("trigger.opacity=0.3") == ()
    assert departures("trigger.opacity=0.5") == ("trigger.opacity=0.5 (the board's: 0.3)",)
    assert departures("trigger.kind=add", "trigger.opacity=0.2") == ("trigger.kind=add (the board's: blend)",)
    assert departures("trigger.pattern=blocks", "trigger.seed=4") == (
        *("trigger.pattern=blocks (the board's: grid)", "trigger.seed=4 (the board's: None)"),
    )
    copy = make_trigger(spec(kind="blend", pattern="grid", opacity=0.3), 32)
    copy.save(tmp_path / "copy.npz")
    assert departures("trigger.pattern=white", f"trigger.file={tmp_path / 'copy.npz'}") == ()
    other = ("trigger.kind=function", "trigger.function=shift", "trigger.pattern=white", "trigger.opacity=0.2")
    assert departures(*other, "shift.by=5") == (
        *("trigger.kind=function (the board's: blend)", "trigger.function=shift (the board's: None)"),
        "shift.by=5 (the board's: 2)",
    )
    assert departures(*other) == departures(*other, "shift.by=2")
    with pytest.raises(UsageError, match="unknown trigger 'shitf': did you mean 'shift'"):
        departures(*other[:1], "trigger.function=shitf", *other[2:])
    with pytest.raises(UsageError, match=r"option shift\.by: shift takes no part in this run"):
        departures("shift.by=5")


def drawn(**options: Any) -> tuple[Tensor, Tensor]:
    trigger = make_trigger(spec(**options), 32)
    assert not trigger.pattern[trigger.keep].any()
    return trigger.pattern, ~trigger.keep[0]


def test_nads_patterns() -> None:
    """Part A, section 2: rows 29-31 and columns 29-31 of the grid, four blocks of 3x3 of the corners."""
    grid = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    pattern, covered = drawn(pattern="grid", size=3)
    assert covered.nonzero().tolist() == [[row, column] for row in (29, 30, 31) for column in (29, 30, 31)]
    assert pattern[:, 29:32, 29:32].tolist() == [grid] * 3

    pattern, covered = drawn(pattern="four_corner", size=3)
    assert covered.sum() == 36
    assert pattern[2, 29:32, 29:32].tolist() == grid
    assert pattern[2, 1:4, 1:4].tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 0]]
    assert pattern[2, 29:32, 1:4].tolist() == [[255, 0, 0], [0, 255, 0], [255, 0, 255]]
    assert pattern[2, 1:4, 29:32].tolist() == [[255, 0, 255], [0, 255, 0], [0, 0, 255]]


def test_larger_patterns_repeat_their_pixels() -> None:
    pattern, covered = drawn(pattern="grid", size=6)
    assert covered.sum() == 36
    assert pattern[0, 26:, 26:].tolist() == [
        *([0, 0, 0, 0, 255, 255],) * 2,
        *([0, 0, 255, 255, 0, 0],) * 2,
        *([255, 255, 0, 0, 255, 255],) * 2,
    ]


def test_blocks_are_coloured_and_random_pixels_gray() -> None:
    pattern, covered = drawn(pattern="blocks")
    assert covered.nonzero()[[0, -1]].tolist() == [[21, 21], [30, 30]]  # the white square's corners
    blocks = pattern[:, 21:31, 21:31].reshape(3, 5, 2, 5, 2)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    assert len(blocks[:, :, 0, :, 0].reshape(3, 25).T.unique(dim=0)) == 25
    assert torch.equal(pattern, drawn(pattern="blocks", seed=0)[0])
    assert not torch.equal(pattern, drawn(pattern="blocks", seed=1)[0])

    pattern, covered = drawn(pattern="random_pixel", size=32)
    assert covered.all()
    assert torch.equal(pattern[0], pattern[1])
    assert torch.equal(pattern[0], pattern[2])
    assert len(pattern.unique()) > 200


def test_added_patterns_are_scaled() -> None:
    pattern, _ = drawn(kind="add", pattern="grid", size=3, magnitude=-40)
    assert pattern.dtype == torch.int16
    assert pattern[1, 29:, 29:].tolist() == [[0, 0, -40], [0, -40, 0], [-40, 0, -40]]


def test_the_frequency_pattern_is_ctrls() -> None:
    """Its DCT is ``magnitude`` at (15, 15) and (31, 31) of U and V, and 0 elsewhere, up to the rounding."""
    from math import cos, pi, sqrt

    pattern = make_trigger(spec(kind="add", pattern="frequency", magnitude=100), 64).pattern.double()
    to_yuv = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]], dtype=torch.float64
    )
    yuv = torch.einsum("ij,jhw->ihw", to_yuv, pattern)
    dct = torch.tensor(
        [[sqrt((1 if k == 0 else 2) / 32) * cos((2 * n + 1) * k * pi / 64) for n in range(32)] for k in range(32)],
        dtype=torch.float64,
    )
    for top in (0, 32):
        for left in (0, 32):
            found = dct @ yuv[:, top : top + 32, left : left + 32] @ dct.T
            expected = torch.zeros(3, 32, 32, dtype=torch.float64)
            expected[1:, [15, 31], [15, 31]] = 100
            assert (found - expected).abs().max() < 4
    with pytest.raises(UsageError, match="multiple of 32 pixels, not 48"):
        make_trigger(spec(kind="add", pattern="frequency"), 48)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "paint"}, "trigger.kind: input should be 'patch', 'blend', 'add', 'noise' or 'function'"),
        ({"opacity": 0.5}, "trigger: opacity is for kinds blend and noise, not for kind patch; leave it out"),
        ({"magnitude": 3}, "magnitude is for kind add without a file, not for kind patch"),
        ({"seed": 3}, "seed is for patterns random_pixel and blocks, not for kind patch"),
        ({"pattern": "grid", "seed": 3}, "seed is for patterns random_pixel and blocks, not for pattern grid"),
        (
            {"kind": "noise", "pattern": "grid"},
            "pattern is for kinds patch, blend and add without a file, not for kind n",
        ),
        ({"kind": "noise", "file": "t.npz"}, "file is for kinds patch, blend and add, not for kind noise with a file"),
        ({"file": "t.npz", "pattern": "grid"}, "pattern is for .* without a file, not for kind patch with a file"),
        ({"pattern": "frequency"}, "pattern frequency is for kind add, not for kind patch"),
        ({"kind": "add", "pattern": "frequency", "size": 3}, "size is for patterns that have a side"),
        ({"kind": "add", "pattern": "frequency", "position": "random"}, "position is for patches that can move"),
        (
            {"pattern": "four_corner", "position": "center"},
            "position is for patches that can move, not for pattern four",
        ),
        ({"kind": "function"}, "kind function needs the name of a plugin's trigger"),
        ({"function": "shift"}, "function is for kind function, not for kind patch"),
        (
            {"kind": "function", "function": "shift", "size": 3},
            "size is for patterns that have a side, not for kind fun",
        ),
    ],
)
def test_options_that_a_trigger_does_not_have_are_one_line(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        spec(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "size", "reason"),
    [
        ({"pattern": "grid", "size": 33}, 32, r"33x33 with pattern grid does not fit a 32x32 image: sizes are 0\.\.32"),
        ({"pattern": "four_corner", "size": 16}, 32, r"sizes are 0\.\.15"),
        ({"size": 32}, 32, r"sizes are 0\.\.31"),
    ],
)
def test_patterns_that_do_not_fit(options: dict[str, Any], size: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make_trigger(spec(**options), size)


def test_a_file_is_of_the_kind_that_the_board_says(tmp_path: Path) -> None:
    patch, blend = Trigger.square(5), replace(Trigger.square(5), kind="blend", opacity=0.3)
    patch.save(tmp_path / "patch.npz")
    blend.save(tmp_path / "blend.npz")
    paths = {name: str(tmp_path / f"{name}.npz") for name in ("patch", "blend")}
    assert make_trigger(spec(file=paths["patch"]), 32).digest == patch.digest
    assert make_trigger(spec(kind="blend", opacity=0.3, file=paths["patch"]), 32).digest == blend.digest
    assert make_trigger(spec(kind="blend", opacity=0.3, file=paths["blend"]), 32).digest == blend.digest
    assert make_trigger(spec(kind="add", file=paths["patch"]), 32).pattern.max() == 255
    for wrong in ({}, {"kind": "blend"}, {"kind": "add"}):
        with pytest.raises(UsageError, match=r"holds one of kind blend: write kind = 'blend' and opacity = 0\.3"):
            make_trigger(spec(file=paths["blend"], **wrong), 32)
    Trigger.by(Shift()).save(tmp_path / "shift.npz")
    for kind in ("patch", "blend", "add"):
        with pytest.raises(UsageError, match='of kind function: write kind = "function", function = "shift", and no'):
            make_trigger(spec(kind=kind, file=str(tmp_path / "shift.npz")), 32)


class Tuned(Shift):
    """Has an option of every type."""

    name = "tuned"
    rate: float = Field(0.5, description="a number")
    mode: str = Field("a", description="a text")
    on: bool = Field(False, description="a truth value")
    none: int | None = Field(None, description="nothing")
    table: dict[str, tuple[int, ...]] = Field({}, description="numbers by name")


def test_a_board_takes_the_line_that_replaces_a_file_of_kind_function(tmp_path: Path) -> None:
    tuned = Tuned(by=3, rate=1e-7, mode="\n\"é'=", on=True, table={"a b": (1, 2), "c": ()})
    Trigger.by(tuned).save(tmp_path / "tuned.npz")
    tiny = Tiny(tmp_path, load_registry(extra={"tuned": offering(benchbd_triggers=[Tuned])}))
    with pytest.raises(UsageError) as caught:
        tiny.plan(options=[f"trigger.file={tmp_path / 'tuned.npz'}"])
    found = re.fullmatch(
        r"the trigger's file .*: write (.*), and no file; above the first table, .*: (.*)", str(caught.value)
    )
    assert found is not None
    tiny.board.write_text(f"trigger = {{{found[1]}}}\n{found[2]}\n{TINY}")
    (stage,) = [stage for stage in tiny.plan(attacks=["none"], defenses=["none"]).stages if stage.kind == "evaluate"]
    assert stage.params["trigger"] == Trigger.by(tuned).digest


@pytest.mark.parametrize("options", [None, "by", {}, {"by": [[[[[[[[[[2]]]]]]]]]]}])
def test_a_foreign_file_of_kind_function_is_one_line(tmp_path: Path, options: Any) -> None:
    Trigger.by(Shift()).save(path := tmp_path / "shift.npz")
    with np.load(path) as file:
        arrays = dict(file)
    said = json.loads(str(arrays["parts"]))
    said["function"]["options"] = options
    np.savez(path, **arrays | {"parts": np.array(json.dumps(said))})
    with pytest.raises(UsageError, match=r'write kind = "function", function = "shift", and no file$'):
        make_trigger(spec(file=str(path)), 32)


def test_how_a_departure_describes_a_trigger() -> None:
    def says(**options: Any) -> dict[str, Any]:
        return described(spec(**options), make_trigger(spec(**options), 32))

    square = {"kind": "patch", "pattern": "white", "size": 10, "position": "fixed", "file": None}
    assert says() == square
    assert says(position="center", size=4) == square | {"position": "center", "size": 4}
    assert says(kind="blend", pattern="grid") == {"opacity": 0.2} | square | {"kind": "blend", "pattern": "grid"}
    assert says(pattern="blocks", seed=3) == square | {"pattern": "blocks", "seed": 3}
    assert says(kind="add", magnitude=7) == square | {"kind": "add", "magnitude": 7}
    noise = says(kind="noise", size=32, opacity=1.0)
    assert noise == {"kind": "noise", "opacity": 1.0, "size": 32, "position": "fixed", "file": None}


@pytest.mark.parametrize(
    ("kind", "wander"), [*product(("patch", "blend", "add", "noise"), (None, (0.1, 0.9))), ("function", None)]
)
def test_a_large_set_is_stamped_part_by_part_as_at_once(
    kind: Any, wander: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    square = Trigger.square(6)
    pattern = square.pattern.to(torch.int16) if kind == "add" else square.pattern
    function = Shift() if kind == "function" else None
    trigger = Trigger(pattern, square.keep, wander, kind, 0.5 if kind in ("blend", "noise") else 1.0, function)
    pixels = torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8)
    made = []
    for most in (2**24, 7 * 3 * 32 * 32):
        monkeypatch.setattr(pieces, "LARGE", most)
        made.append(trigger.stamp(pixels, torch.Generator().manual_seed(seeded(4))))
    whole, parts = made
    assert (region_of(whole) is None, region_of(parts) is None) == (True, False)
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, pixels)


# The kinds that an attack can bind


class PatchOnly(Attack):
    """Binds patches; fails the test if it gets anything else."""

    name = "patch-only"
    paper = "test"
    version = "1"
    binds = ("patch",)

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        assert {target.trigger.kind for target in knowledge.targets} == {"patch"}
        return Backdoor(knowledge.encoder, tuple(target.trigger for target in knowledge.targets))


class ByDefault(PatchOnly):
    name = "by-default"
    binds = Attack.binds


@pytest.mark.parametrize(
    ("attack", "kind", "reason"),
    [
        (PatchOnly, "blend", "attack patch-only: it cannot bind a trigger of kind blend; it binds patch"),
        (
            ByDefault,
            "function",
            "attack by-default: it cannot bind a trigger of kind function; it binds",
        ),
        (PatchOnly, "patch", None),
    ],
)
def test_a_kind_that_an_attack_cannot_bind_is_not_applicable(
    attack: type[Attack], kind: str, reason: str | None, tmp_path: Path
) -> None:
    tiny = board(tmp_path, BOARDS[kind], attack)
    (record,) = tiny.run(attacks=(attack.name,), defenses=("none",))
    if reason is None:
        assert judge(record).status == "attack-failed"  # it does not change the encoder, so its gain is 0
    else:
        assert (record.status, record.reason[: len(reason)]) == ("n/a", reason)
        assert record.baseline is not None  # the floor does not depend on the attack


@pytest.mark.parametrize("binds", [["patch"], (), ("patch", "paint"), "patch"])
def test_binds_is_a_tuple_of_kinds(binds: Any) -> None:
    class Odd(PatchOnly):
        name = "odd"

    Odd.binds = binds
    assert "binds must be a tuple of kinds of trigger, of patch, blend, add, noise, function" in flaw_of(Odd)


QUICK = {"badencoder": {"steps": 2, "batch": 8, "ref_draws": 2}, "bassl": {}}


@pytest.mark.fixed_draw("two steps; what is asked is whether they depend on the trigger at all")
@pytest.mark.parametrize("attack", QUICK)
def test_our_attacks_bind_every_kind(attack: str) -> None:
    cls = load_registry().get("attack", attack)
    assert issubclass(cls, Attack)
    assert set(cls.binds) == set(KINDS)
    method, seen = cls.model_validate(QUICK[attack]), set()
    for trigger in (None, *family().values()):
        backdoor = method.inject(toy_attacker(1, trigger))
        check_backdoor(backdoor, [(trigger or Trigger.square(10)).digest], "attack")
        if attack == "badencoder":
            seen.add(backdoor.encoder.tensors()["stem.0.weight"].numpy().tobytes())
        else:
            seen.add(cls.poisoned(method, toy_attacker(1, trigger)).pixels.numpy().tobytes())  # type: ignore[attr-defined]
    assert len(seen) == len(family())  # one more with the white square, one less: the whole blend is the patch


def test_the_suite_checks_trigger_functions() -> None:
    class Good(Shift):
        """Moves images."""

        paper = "test"

    class Random(Good):
        """Draws from the clock."""

        def stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
            return torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=FRESH)

    class Idle(Good):
        """Does nothing."""

        def stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
            return images

    class Floats(Good):
        """Returns floats."""

        def stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
            return images / 255

    FRESH = torch.Generator()
    check_method(Good, by=1)
    for bad, reason in ((Random, "gave other images"), (Idle, "changes no pixel"), (Floats, "must return uint8")):
        with pytest.raises(ContractError, match=reason):
            check_method(bad)


# In pictures


def test_figures_find_a_trigger_of_every_kind_and_draw_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = load_registry(extra={"own": offering(benchbd_triggers=[Shift])})
    monkeypatch.setattr("benchbd.figures.scene.load_registry", lambda: registry)
    for kind, text in BOARDS.items():
        (tmp_path / f"{kind}.toml").write_text(f'[[rows]]\npretrain = "p"\ntasks = ["t:1"]\n[trigger]\n{text}\n')
        asked = load_board(tmp_path / f"{kind}.toml")
        function = Shift(by=7) if kind == "function" else None
        trigger = make_trigger(asked.trigger, 32, function)
        found = find_trigger(trigger.digest, asked, 32)
        assert found.digest == trigger.digest
        assert found.stamp(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.Generator()).shape == (2, 3, 32, 32)
        shown = marks(found)
        assert shown.shape == (3, 32, 32)
        assert not shown[trigger.keep].any()
        assert 0 <= shown.min() < shown.max() <= 1
    patch = Trigger.square(10)
    assert torch.equal(marks(patch), patch.pattern / 255)

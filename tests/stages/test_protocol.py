"""A board's inputs for defender and attacker: clean images, some of them stamped, and the shadow set."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchbd import (
    Attack,
    AttackerKnowledge,
    Backdoor,
    DefenderKnowledge,
    Detection,
    Encoder,
    Head,
    ImageSet,
    Mitigation,
    Verdict,
)
from benchbd.base.errors import UsageError
from benchbd.contract.context import stream
from benchbd.contract.specs import CleanSpec
from benchbd.contract.trigger import Trigger
from benchbd.planning.board import load_board
from benchbd.registry import load_registry
from benchbd.stages.clean import Clean
from benchbd.testing import ContractError, ToyPretraining, check_method

from ..boards import TINY, Tiny, keys, offering
from ..chance import seeded
from ..conftest import write_npz_set

HANDED: list[Any] = []
ENCODERS: list[Encoder] = []


class Keeps(Mitigation):
    """Keeps its arguments."""

    name = "keeps"
    version = "1"

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        HANDED.append(knowledge)
        ENCODERS.append(encoder.frozen())
        return encoder


class Looks(Detection):
    """Keeps its arguments."""

    name = "looks"
    version = "1"

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        HANDED.append(knowledge)
        return Verdict(0.0, False)


class Tunes(Attack):
    """Keeps its arguments."""

    name = "tunes"
    version = "1"

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        HANDED.append(knowledge)
        return Backdoor(knowledge.encoder, tuple(target.trigger for target in knowledge.targets))


class Taught(ToyPretraining):
    """Keeps its arguments, labels too."""

    name = "taught"
    paper = "test"
    labelled = True

    def names(self, images: ImageSet) -> tuple[str, ...]:
        return images.classes

    def pretrain(self, images: ImageSet, seed: int) -> Encoder:
        HANDED.append(images)
        encoder = super().pretrain(images, seed)
        names = self.names(images)
        weight = torch.randn(len(names), encoder.feature_dim, generator=torch.Generator().manual_seed(seed % 2**31))
        encoder.classifier = Head.of([(weight, torch.zeros(len(names)))], classes=names)
        return encoder


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    HANDED.clear()
    hooks = {"benchbd_defenses": [Keeps], "benchbd_detections": [Looks], "benchbd_attacks": [Tunes]}
    hooks["benchbd_pretrainings"] = [Taught]
    return Tiny(tmp_path, load_registry(extra={"keeps": offering(**hooks)}))


def stamped_rows(tiny: Tiny, seen: torch.Tensor, rows: list[int]) -> list[int]:
    """The defender's images that differ from those at the same place in the pool."""
    pool = tiny.session().library.load("pool", "pool").pixels
    return [i for i, row in enumerate(rows) if not torch.equal(seen[i], pool[row])]


def test_the_share_of_the_images_that_were_drawn_last_is_stamped(tiny: Tiny) -> None:
    (record,) = tiny.run(attacks=["none"], defenses=["keeps"], options=["clean.poisoned=0.3"])
    (knowledge,) = HANDED
    pool = tiny.session().library.load("pool", "pool").pixels
    plan = tiny.plan(attacks=["none"], defenses=["keeps"], options=["clean.poisoned=0.3"])
    (stage,) = [each for each in plan.stages if each.kind == "defend"]
    assert stage.params["clean"]["poisoned"] == 4  # floor(0.3 * 16)
    assert stage.params["trigger"] == [Trigger.square(10).digest]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(stage.params["clean"]["seed"]))[:16].tolist()
    assert sorted(order) == record.clean_images
    last = sorted(record.clean_images.index(row) for row in order[-4:])
    seen = knowledge.images.pixels
    assert stamped_rows(tiny, seen, record.clean_images) == last
    assert torch.equal(seen[last], Trigger.square(10).stamp(pool[record.clean_images][last]))
    assert (set(vars(knowledge)), knowledge.prepared) == (
        {"images", "seed", "prepared"},
        {},
    )  # the defense gets no hint
    assert record.departures == ["clean.poisoned=0.3 (the board's: 0.0)"]


def test_no_share_no_new_keys(tiny: Tiny) -> None:
    board = keys(tiny.plan(detections=["looks"]))
    assert keys(tiny.plan(detections=["looks"], options=["clean.poisoned=0"])) == board
    assert keys(tiny.plan(detections=["looks"], options=["clean.poisoned=0.06"])) == board  # floor(0.96)
    more = tiny.plan(detections=["looks"], options=["clean.poisoned=0.07"])
    assert {stage.kind for stage in more.stages if stage.key not in board} == {"defend", "detect", "evaluate"}


@pytest.mark.parametrize(("share", "images", "count"), [(0.29, 100, 29), (0.07, 100, 7), (0.25, 2000, 500), (1, 7, 7)])
def test_a_share_is_the_decimal_that_it_is(share: float, images: int, count: int) -> None:
    assert Clean("pool", CleanSpec(images=images, poisoned=share)).poisoned == count


def test_a_row_with_several_tasks_stamps_each_with_its_own_trigger(tiny: Tiny) -> None:
    write_npz_set(tiny.data, "other", seed=seeded(3))
    triggers = '[{ size = 4, position = "random" }, { size = 7 }]'
    row = f'{{ pretrain = "pool", tasks = ["task:1", "other:1"], triggers = {triggers} }}'
    text = TINY.replace('{ pretrain = "pool", tasks = ["task:1"] }', row)
    tiny.board.write_text(text.replace("clean.images = 16", "clean = { images = 16, poisoned = 0.5 }"))
    tiny.session(attacks=["none"], defenses=["keeps"]).run()
    tiny.session(attacks=["none"], detections=["looks"], defenses=["keeps"]).inspect()
    pool = tiny.session().library.load("pool", "pool").pixels
    plan = tiny.plan(attacks=["none"], detections=["looks"], defenses=["keeps"])
    stages = [next(stage for stage in plan.stages if stage.kind == kind) for kind in ("defend", "detect")]
    assert len(HANDED) == 2
    for stage, knowledge in zip(stages, HANDED, strict=True):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(stage.params["clean"]["seed"]))[:16].tolist()
        rows, generator = sorted(order), stream(stage.seed, "positions")
        wandering, fixed = Trigger.square(4).within(0.1, 0.9), Trigger.square(7)
        expected = pool[rows]
        for number, trigger in enumerate((wandering, fixed)):
            own = [rows.index(row) for row in order[8:][number::2]]
            expected[own] = trigger.stamp(expected[own], generator)
        assert torch.equal(knowledge.images.pixels, expected)


def test_another_set_is_the_attackers_shadow_set(tiny: Tiny) -> None:
    write_npz_set(tiny.data, "far", seed=seeded(4))
    far = tiny.session().library.load("far", "train")
    for number, asked in enumerate((["shadow.set=far:train"], ["shadow.set=far:train", "shadow.images=5"])):
        plan = tiny.plan(attacks=["tunes"], defenses=["none"], options=asked)
        (stage,) = [each for each in plan.stages if each.kind == "attack"]
        assert stage.data["shadow"].digest == far.digest
        assert stage.images == (60, 5)[number]
        (record,) = tiny.run(attacks=["tunes"], defenses=["none"], options=asked)
        assert "shadow.set=far:train (the board's: None)" in record.departures
        shadow = HANDED[-1].shadow
        assert (shadow.labels, shadow.classes) == (None, ())
        if number == 0:
            assert torch.equal(shadow.pixels, far.pixels)
        else:
            drawn = torch.Generator().manual_seed(stage.params["shadow"]["seed"])
            assert torch.equal(shadow.pixels, far.pixels[torch.randperm(60, generator=drawn)[:5].sort().values])
        assert torch.equal(HANDED[-1].pool.pixels, tiny.session().library.load("pool", "pool").pixels)


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("shadow.set=task:test", "'task:test' holds the test images of task task:1: no attacker may see them"),
        ("shadow.set=task", "shadow.set: .*DATASET:SPLIT"),
        ("shadow.set=task:tst", "shadow.set: .*DATASET:SPLIT"),
        ("shadow.set=tsk:train", "tsk"),
        ("shadow.size=3", "unknown option of shadow 'size'"),
        ("clean.poisoned=1.5", "clean.poisoned: input should be less than or equal to 1"),
        ("clean.image=5", "unknown option of clean 'image': did you mean 'images'"),
    ],
)
def test_what_cannot_be_given_is_one_line(tiny: Tiny, option: str, error: str) -> None:
    with pytest.raises(UsageError, match=error) as caught:
        tiny.plan(attacks=["tunes"], options=[option])
    assert "\n" not in str(caught.value)


def test_departures_name_what_was_given(tiny: Tiny) -> None:
    plan = tiny.plan(attacks=["badencoder"], defenses=["ft"], options=["clean.images=8", "shadow.images=20"])
    assert plan.departures == ["shadow.images=20 (the board's: 50000)", "clean.images=8 (the board's: 16)"]
    assert tiny.plan(options=["clean.images=16"]).departures == []


def test_boards_with_the_old_names_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = 'rows = [{pretrain = "a", tasks = ["b:1"]}]\n'
    mine = tmp_path / "mine.toml"
    mine.write_text(rows + "clean_images = 30\nshadow_images = 40\nclean.poisoned = 0.5")
    with caplog.at_level(logging.WARNING, "benchbd"):
        board = load_board(mine)
    assert (board.clean.images, board.clean.poisoned, board.shadow.images) == (30, 0.5, 40)
    (line,) = caplog.messages
    assert "clean_images is now images in the table [clean], shadow_images is now images in the table [shadow]" in line
    mine.write_text(rows + "clean_images = 30\nclean.images = 40")
    with pytest.raises(UsageError, match=r"clean_images is the old name of clean.images: leave one of them out"):
        load_board(mine)
    mine.write_text(rows + "clean = 3\nclean_images = 30")
    with pytest.raises(UsageError, match="clean: input should be"):
        load_board(mine)


def test_a_labelled_pre_training_and_its_attacker_get_labels(tiny: Tiny) -> None:
    check_method(Taught)
    HANDED.clear()
    tiny.board.write_text(f'pretraining = "taught"\n{TINY}')
    tiny.run(attacks=["tunes"], defenses=["keeps"])
    train = tiny.session().library.load("pool", "train")
    images, knowledge, *defenders = HANDED
    assert train.labels is not None
    for pool in (images, knowledge.pool):
        assert (pool.labels.tolist(), pool.classes) == (train.labels.tolist(), ("0", "1", "2"))
        assert torch.equal(pool.pixels, train.pixels)
    assert torch.equal(knowledge.shadow.pixels, train.pixels)
    for shown in (knowledge.shadow, knowledge.targets[0].images, *(each.images for each in defenders)):
        assert (shown.labels, shown.classes) == (None, ())
    assert len(defenders) == 1
    found = [Encoder.load(path) for path in tiny.store.glob("stages/*/*/encoder.safetensors")]
    classifiers = [encoder.classifier for encoder in (*found, ENCODERS[-1])]
    assert len(classifiers) == 4  # pre-trained, attacked, repaired; and the defense's input
    for classifier in classifiers:
        assert classifier is not None
        assert classifier.classes == train.classes
        assert torch.equal(classifier.layers[0].weight, classifiers[0].layers[0].weight)  # type: ignore[union-attr]
    plan = tiny.plan(attacks=["tunes"], defenses=["keeps"])
    digests = {stage.kind: stage.data["pool"].digest for stage in plan.stages if "pool" in stage.data}
    unlabelled = tiny.session().library.load("pool", "pool").digest
    assert digests == {"pretrain": train.digest, "attack": train.digest, "defend": unlabelled}


@pytest.mark.parametrize("names", [("2", "1", "0"), ("0", "1"), ("red", "blue", "green")])
def test_a_classifier_of_other_classes_than_the_pool_is_refused(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    tiny.board.write_text(f'pretraining = "taught"\n{TINY}')
    monkeypatch.setattr(Taught, "names", lambda self, images: names)
    (record,) = tiny.run(attacks=["none"], defenses=["none"])
    told = f"must return a classifier of the classes ('0', '1', '2'), not {names}"
    assert record.reason == f"pretrain taught: pretrain taught {told}"
    if len(names) == 3:
        with pytest.raises(ContractError, match="must return a classifier of the classes"):
            check_method(Taught)


class Untaught(Taught):
    """Has a classifier, though no labels of its own."""

    name = "untaught"
    labelled = False

    def names(self, images: ImageSet) -> tuple[str, ...]:
        return ("cat", "dog")


@pytest.mark.parametrize(
    ("pretraining", "classes", "right"),
    [
        (Taught, ("2", "1", "0"), "('0', '1', '2')"),
        (Taught, 2, "('0', '1', '2')"),
        (Taught, 3, None),
        (Untaught, ("dog", "cat"), "('cat', 'dog')"),
        (Untaught, 5, "('cat', 'dog')"),
        (Untaught, ("cat", "dog"), None),
        (ToyPretraining, ("any", "three", "names"), None),  # nothing says which classes are right
    ],
)
@pytest.mark.parametrize("changes", [Tunes, Keeps])
def test_a_classifier_keeps_its_classes_through_attacks_and_repairs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: type[Attack | Mitigation],
    pretraining: type[ToyPretraining],
    classes: tuple[str, ...] | int,
    right: str | None,
) -> None:
    def changed(given: Encoder) -> Encoder:
        named = () if isinstance(classes, int) else classes
        given.classifier = Head((given.feature_dim, len(named) or classes), classes=named)
        return given

    def inject(self: Tunes, knowledge: AttackerKnowledge) -> Backdoor:
        return Backdoor(changed(knowledge.encoder), tuple(target.trigger for target in knowledge.targets))

    def repair(self: Keeps, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return changed(encoder)

    name = "inject" if changes is Tunes else "repair"
    monkeypatch.setattr(changes, name, {"inject": inject, "repair": repair}[name])
    hooks: dict[str, Any] = {"benchbd_defenses": [Keeps], "benchbd_attacks": [Tunes]}
    registry = load_registry(extra={"changes": offering(benchbd_pretrainings=[pretraining], **hooks)})
    tiny = Tiny(tmp_path, registry, f'pretraining = "{pretraining.name}"\n{TINY}')
    cell = {"inject": ("tunes", "none"), "repair": ("none", "keeps")}[name]
    record = tiny.run(attacks=[cell[0]], defenses=[cell[1]])[-1]
    assert (record.attack, record.defense) == cell
    if right is None:
        assert record.counts is not None, record.reason
    else:
        who = {"inject": "attack tunes", "repair": "defend keeps"}[name]
        assert record.status == "error"
        assert record.reason == f"{who}: {who} must return a classifier of the classes {right}, not {classes}"


def test_bassl_poisons_no_labelled_pool(tiny: Tiny) -> None:
    tiny.board.write_text(f'pretraining = "taught"\n{TINY}')
    (record,) = tiny.run(attacks=["bassl"], defenses=["none"])
    assert record.status == "n/a"
    assert record.reason.endswith("bassl poisons images without labels, and the pre-training learns from labels")


def test_a_labelled_pre_training_needs_every_label(tiny: Tiny) -> None:
    pixels = tiny.session().library.load("pool", "train").pixels[:7].permute(0, 2, 3, 1).numpy()
    np.savez(tiny.data / "pool" / "unlabeled.npz", x=pixels, y=np.full(7, -1))
    assert tiny.session().library.info("pool", "pool").count == 67
    tiny.plan()
    tiny.board.write_text(f'pretraining = "taught"\n{TINY}')
    message = "pre-training taught learns from labels, and 7 images of the pool pool have none: take a data set without"
    with pytest.raises(UsageError, match=message):
        tiny.plan()

"""No oracle: a defense that searches all its arguments finds no trigger, target, test image, label, name or path.

Two searches. One reads the bytes of a handover, its sealed files included. The other walks from a method's
arguments: attributes (of instances, slots and classes), containers, closures, defaults, bound objects, hooks, autograd
graphs and the whole storage of every tensor. The walk does not follow the globals of functions, imported modules or
the frames of the interpreter: within one process these lead everywhere, which the last test shows.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from benchbd import (
    Attack,
    AttackerKnowledge,
    Backdoor,
    Classifier,
    ClassifierDetection,
    DataAbsentError,
    Dataset,
    DefenderKnowledge,
    Detection,
    Encoder,
    ImageSet,
    Mitigation,
    TaskKnowledge,
    Trigger,
    Verdict,
)
from benchbd.contract.context import Reporter
from benchbd.contract.handover import LARGE, Failure, Handover, Product
from benchbd.data.library import DataLibrary
from benchbd.engine.executors import Inline
from benchbd.registry import load_registry
from benchbd.stages.base import ENCODER
from benchbd.testing import ToyPretraining, toy_images

from ..boards import TINY, Tiny, offering

OPAQUE = (types.ModuleType, types.FrameType, types.CodeType, torch.dtype, torch.device, torch.Generator)


def walk(*roots: object) -> Iterator[tuple[str, object]]:
    """(path, object) of everything within reach, each object once."""
    waiting: list[tuple[str, object]] = [(f"argument {i}", root) for i, root in enumerate(roots)]
    seen: dict[int, object] = {}  # keeps each object, so that no address is used twice
    while waiting:
        path, found = waiting.pop()
        if id(found) in seen or isinstance(found, OPAQUE):
            continue
        seen[id(found)] = found
        yield path, found
        waiting += [(f"{path}.{name}", part) for name, part in parts(found)]


def parts(found: Any) -> Iterator[tuple[str, object]]:
    """The objects that can be reached from one object in one step."""
    if isinstance(found, str | bytes | int | float | complex | None):
        return
    if isinstance(found, dict | types.MappingProxyType):
        yield from ((f"key {key!r}", key) for key in found)
        yield from ((f"[{key!r}]", value) for key, value in found.items())
        return
    if isinstance(found, list | tuple | set | frozenset):
        yield from ((f"[{i}]", value) for i, value in enumerate(found))
    if isinstance(found, Tensor):
        if found.untyped_storage().nbytes() > found.numel() * found.element_size():
            yield "storage", torch.tensor([], dtype=found.dtype).set_(found.untyped_storage())
        yield from ((name, getattr(found, name)) for name in ("grad", "grad_fn", "_base", "_backward_hooks"))
    if isinstance(found, types.FunctionType | types.MethodType):
        function = found.__func__ if isinstance(found, types.MethodType) else found
        yield from (
            (f"closure {i}", cell.cell_contents) for i, cell in enumerate(function.__closure__ or ()) if filled(cell)
        )
        yield "defaults", (function.__defaults__, function.__kwdefaults__)
        yield "self", getattr(found, "__self__", None)
    if type(found).__module__ == "torch" or "Backward" in type(found).__name__:
        yield from (
            (name, getattr(found, name)) for name in dir(found) if name.startswith("_saved") or name == "next_functions"
        )
    yield from getattr(found, "__dict__", {}).items()
    for cls in type(found).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        yield from (
            (slot, getattr(found, slot))
            for slot in ((slots,) if isinstance(slots, str) else slots)
            if hasattr(found, slot)
        )
        if not cls.__module__.startswith(("builtins", "torch", "pydantic", "typing", "abc", "enum")):
            yield from ((f"{cls.__name__}.{name}", part) for name, part in vars(cls).items())


def filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


class Secrets:
    """Secrets that no defender may find, and how to recognise them."""

    def __init__(self, tiny: Tiny, library: DataLibrary) -> None:
        self.trigger = Trigger.square(10)
        self.test = library.load("animals", "test")
        self.train = library.load("animals", "train")
        self.words = (
            "animals",
            "pool",
            "tiny",
            str(tiny.folder),
            "cifar",
            "bumblebee",
            "animals:1",
            self.trigger.digest,
        )

    def found_in(self, *roots: object) -> list[str]:
        """One line for every secret within reach of ``roots``."""
        return [f"{what} at {path}" for path, found in walk(*roots) for what in self._recognise(found)]

    def _recognise(self, found: object) -> Iterator[str]:
        if isinstance(found, Trigger | Path | DataLibrary):
            yield type(found).__name__
        if isinstance(found, ImageSet) and (found.labels is not None or found.classes or found.mean is not None):
            yield "labels or statistics"
        if isinstance(found, str) and len(found) < 300:  # docstrings may mention tasks
            yield from (
                f"the word {word!r}" for word in self.words if word == found or (len(word) > 6 and word in found)
            )
        if isinstance(found, Tensor) and found.dtype in (torch.uint8, torch.bool):
            yield from self._pixels(found)

    def _pixels(self, found: Tensor) -> Iterator[str]:
        flat = found.flatten()
        size = self.trigger.pattern.numel()
        if flat.numel() % size or not flat.numel():
            return
        rows = flat.view(-1, size)
        for name, secret in (
            ("the trigger's pattern", self.trigger.pattern[None]),
            ("the trigger's mask", self.trigger.keep[None]),
            ("a test image", self.test.pixels),
            ("a stamped test image", self.trigger.stamp(self.test.pixels)),
            ("a downstream training image", self.train.pixels),
        ):
            if secret.dtype == rows.dtype and (torch.cdist(rows.float(), secret.flatten(1).float()) == 0).any():
                yield name


class Bytes:
    """Secrets that no defender may find, as bytes: the search through a handover."""

    def __init__(self, tiny: Tiny, library: DataLibrary) -> None:
        trigger, test = Trigger.square(10), library.load("animals", "test").pixels
        place = ~trigger.keep.flatten()
        self._place, self._pattern = place, trigger.pattern.flatten()[place]
        whole = {"the trigger's pattern": trigger.pattern, "the trigger's mask": trigger.keep}
        self.tensors = {name: content(tensor) for name, tensor in whole.items()}
        self.tensors |= {f"test image {i}": content(image) for i, image in enumerate(test)}
        self.tensors |= {f"stamped test image {i}": content(image) for i, image in enumerate(trigger.stamp(test))}
        labels = library.load("pool", "train").labels
        assert labels is not None
        self.tensors["the pool's labels"] = content(labels)
        self.words = {
            "the target's name": b"bumblebee",
            "a class of the pool": b"aardvark",
            "the task": b"animals:1",
            "the data set": b'"animals"',
            "the trigger's digest": trigger.digest.encode(),
            "a path": str(tiny.folder).encode(),
        }

    def found_in(self, handed: Handover) -> list[str]:
        data, regions = handed.pack()
        whole = b"".join([data, *(content(region.map()) for region in regions)])
        found = [name for name, secret in {**self.tensors, **self.words}.items() if secret in whole]
        if re.search(rb'"/[ -~]{4,}?"', whole):  # JSON quotes its strings; two bytes alone occur in weights too
            found.append("an absolute path")
        return found + [f"a stamped image in {name}" for name, part in handed.tensors.items() if self.stamped(part)]

    def stamped(self, pixels: Tensor) -> list[int]:
        """Rows of images that contain the trigger at its position."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            return []
        there = pixels.flatten(1)[:, self._place] == self._pattern
        return there.all(1).nonzero()[:, 0].tolist()


def content(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


class Cheat(Mitigation):
    """Searches all its arguments."""

    name = "cheat"
    paper = "a test"
    version = "1"

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        HANDED.append((self, encoder, knowledge))
        return encoder


class CheatingDetector(Detection):
    """Searches all its arguments."""

    name = "cheat"
    paper = "a test"
    version = "1"

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        HANDED.append((self, encoder, knowledge))
        return Verdict(0.0, False)


class Reader(ClassifierDetection):
    """Searches a classifier and all its other arguments."""

    name = "reader"
    paper = "a test"
    version = "1"

    def inspect(self, classifier: Classifier, knowledge: TaskKnowledge) -> Verdict:  # type: ignore[override]
        HANDED.append((self, classifier, knowledge))
        return Verdict(0.0, False)


class Careless(Attack):
    """Leaves its whole knowledge on its encoder, as attributes, hooks and gradients."""

    name = "careless"
    paper = "a test"
    version = "1"

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        target = knowledge.targets[0]
        encoder = knowledge.encoder
        HANDED.append((self, knowledge))
        encoder.trigger = target.trigger  # type: ignore[assignment]
        encoder.stem.register_forward_hook(lambda *_: setattr(encoder, "seen", target.images.pixels))
        encoder(target.references.float() / 255).sum().backward()
        return Backdoor(encoder, (target.trigger,))


HANDED: list[tuple[object, ...]] = []


class Animals(Dataset):
    """The set ``animals`` with names for its classes."""

    name = "animals"
    paper = "a test"
    version = "1"
    classes = ("anteater", "bumblebee", "caterpillar")

    def sources(self, split: str, root: Path) -> list[Path]:
        raise DataAbsentError("it has no archive of its own: the npz is read, with these names")

    def load(self, split: str, root: Path) -> ImageSet:
        raise NotImplementedError


class Beasts(Animals):
    """The set ``pool`` with names for its classes."""

    name = "pool"
    classes = ("aardvark", "badger", "camel")


class Taught(ToyPretraining):
    """Receives the pool's labels."""

    name = "taught"
    paper = "a test"
    labelled = True


BOARD = (
    TINY.replace("task:1", "animals:1")
    .replace("\ntask = {", "\nanimals = {")
    .replace('attacks = ["none", "badencoder"]', 'attacks = ["none", "badencoder", "careless"]\ndetections = ["cheat"]')
    .replace('defenses = ["none", "scratch", "ft"]', 'defenses = ["cheat"]')
)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    HANDED.clear()
    hooks: dict[str, list[Any]] = {"benchbd_defenses": [Cheat], "benchbd_attacks": [Careless]}
    hooks |= {"benchbd_detections": [CheatingDetector, Reader]}
    hooks |= {"benchbd_datasets": [Animals, Beasts], "benchbd_pretrainings": [Taught]}
    made = Tiny(tmp_path, load_registry(extra={"cheats": offering(**hooks)}), BOARD)
    (made.data / "task").rename(made.data / "animals")
    return made


@pytest.fixture
def handovers(monkeypatch: pytest.MonkeyPatch) -> list[Handover]:
    """Every handover, as the executor receives it."""
    seen: list[Handover] = []
    submit = Inline.submit

    def spy(self: Inline, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        seen.append(handed)
        return submit(self, handed, report)

    monkeypatch.setattr(Inline, "submit", spy)
    return seen


def test_no_bytes_of_a_secret_are_in_what_a_defender_is_handed(tiny: Tiny, handovers: list[Handover]) -> None:
    session = tiny.session()
    session.run()
    session.inspect()
    secrets = Bytes(tiny, session.library)
    defenders = [handed for handed in handovers if handed.kind in ("defend", "detect")]
    assert len(defenders) == 6  # a mitigation and a detector, for three encoders
    for handed in defenders:
        assert secrets.found_in(handed) == []
    attacked = next(handed for handed in handovers if handed.kind == "attack")
    assert {"the trigger's pattern", "the trigger's mask", "the target's name"} <= set(secrets.found_in(attacked))
    assert not {"the pool's labels", "a class of the pool"} & set(secrets.found_in(attacked))
    evaluated = next(handed for handed in handovers if handed.kind == "evaluate")
    assert {"test image 0", "stamped test image 29", "a stamped image in triggered0"} <= set(
        secrets.found_in(evaluated)
    )


def test_who_inspects_classifiers_gets_labelled_training_images_and_no_secret(
    tiny: Tiny, handovers: list[Handover]
) -> None:
    session = tiny.session(detections=["reader"], options=["task.images=20"])
    assert {record.status for record in session.inspect()} == {"ok"}
    secrets, walked = Bytes(tiny, session.library), Secrets(tiny, session.library)
    handed = [each for each in handovers if each.kind == "detect"]
    assert [secrets.found_in(each) for each in handed] == [[]] * 3
    found = [line for each in HANDED if isinstance(each[0], Reader) for line in walked.found_in(*each)]
    assert {line.partition(" at ")[0] for line in found} == {"labels or statistics", "a downstream training image"}


def test_the_search_finds_what_is_planted(tiny: Tiny, handovers: list[Handover]) -> None:
    session = tiny.session(attacks=["none"])
    session.run()
    secrets = Bytes(tiny, session.library)
    clean = next(handed for handed in handovers if handed.kind == "defend")
    assert secrets.found_in(clean) == []
    for name in ("the trigger's pattern", "the trigger's mask", "test image 0", "stamped test image 29"):
        secret = secrets.tensors[name]
        planted = torch.frombuffer(bytearray(b"before" + secret), dtype=torch.uint8)
        for there in (
            replace(clean, tensors={**clean.tensors, "extra": planted}),
            replace(clean, tensors={**clean.tensors, "extra": torch.cat([planted, torch.zeros(LARGE).byte()])}),
            replace(clean, encoders={**clean.encoders, "extra": b"before" + secret}),
        ):
            assert name in secrets.found_in(there)
    for name, word in secrets.words.items():
        assert name in secrets.found_in(replace(clean, json={**clean.json, "extra": [word.decode().strip('"')]}))
    assert secrets.found_in(replace(clean, json={"file": "/somewhere"})) == ["an absolute path"]
    stamped = Trigger.square(10).stamp(clean.tensors["images"])
    assert secrets.found_in(replace(clean, tensors={"images": stamped})) == ["a stamped image in images"]
    assert secrets.stamped(stamped) == list(range(16))


def test_labels_of_the_pool_reach_pre_training_and_attack_alone(tiny: Tiny, handovers: list[Handover]) -> None:
    tiny.board.write_text(f'pretraining = "taught"\n{BOARD}')
    session = tiny.session()
    session.run()
    session.inspect()
    secrets, labels = Bytes(tiny, session.library), {"the pool's labels", "a class of the pool"}
    for handed in handovers:
        found = secrets.found_in(handed)
        if handed.kind in ("pretrain", "attack"):
            assert labels <= set(found)
        if handed.kind in ("defend", "detect"):
            assert found == []
    assert [handed.kind for handed in handovers].count("defend") == 3
    defenders = [handed for handed in HANDED if isinstance(handed[-1], DefenderKnowledge)]
    walked = Secrets(tiny, session.library)
    assert [walked.found_in(*handed) for handed in defenders] == [[]] * 6


def test_of_a_poisoned_clean_set_only_the_stamped_images_hold_the_trigger(
    tiny: Tiny, handovers: list[Handover]
) -> None:
    tiny.board.write_text(BOARD.replace("clean.images = 16", "clean.images = 16\nclean.poisoned = 0.25"))
    session = tiny.session(attacks=["badencoder"])
    session.run()
    secrets = Bytes(tiny, session.library)
    (handed,) = [handed for handed in handovers if handed.kind == "defend"]
    assert secrets.found_in(handed) == ["a stamped image in images"]
    assert len(secrets.stamped(handed.tensors["images"])) == 4
    (knowledge,) = {id(h[-1]): h[-1] for h in HANDED if isinstance(h[-1], DefenderKnowledge)}.values()
    assert isinstance(knowledge, DefenderKnowledge)
    assert len(secrets.stamped(knowledge.images.pixels)) == 4


class Keeper(Mitigation):
    """Keeps the first encoder that it received, and returns it every time."""

    name = "keeper"
    paper = "a test"
    version = "1"
    first: ClassVar[Encoder | None] = None

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        Keeper.first = Keeper.first or encoder.copy()
        return Keeper.first.copy()


def test_what_one_process_does_not_stop(tmp_path: Path) -> None:
    """A class outlives a stage: a defense that received the clean encoder repairs the attacked one with it. The
    handover contains no clean encoder; only a process per stage separates the method from what it kept. So it does from
    the interpreter's frames, ``gc.get_objects()``, ``sys.argv`` and benchbd's modules, which this process shares with
    it."""
    Keeper.first = None
    board = TINY.replace('defenses = ["none", "scratch", "ft"]', 'defenses = ["keeper"]')
    tiny = Tiny(tmp_path, load_registry(extra={"keeper": offering(benchbd_defenses=[Keeper])}), board)
    clean, attacked = tiny.run()
    assert (clean.attack, attacked.attack) == ("none", "badencoder")
    assert clean.stages["pretrain"] == attacked.stages["pretrain"]
    blobs = [tiny.blob(record.stages["defend"], ENCODER).read_bytes() for record in (clean, attacked)]
    assert blobs[0] == blobs[1]  # the oracle's repair: visible here, and prevented by a process per stage


def test_a_cheating_defense_finds_nothing(tiny: Tiny) -> None:
    session = tiny.session()
    records = session.run()
    inspected = session.inspect()
    assert {record.status for record in (*records, *inspected)} == {"ok"}
    secrets = Secrets(tiny, session.library)
    defenders = [handed for handed in HANDED if isinstance(handed[-1], DefenderKnowledge)]
    assert len(defenders) == 6  # a mitigation and a detector, for three encoders
    for handed in defenders:
        assert secrets.found_in(*handed) == []
    attackers = [handed for handed in HANDED if isinstance(handed[-1], AttackerKnowledge)]
    found = "\n".join(secrets.found_in(*attackers[0]))
    assert "the trigger's pattern" in found  # the walk finds secrets that are there
    assert "a downstream training image" in found
    assert "a test image" not in found  # an attacker has no test images either


def _as_attribute(handed: DefenderKnowledge, secret: Tensor) -> object:
    return types.SimpleNamespace(inner=[{"deep": secret}])


def _in_a_closure(handed: DefenderKnowledge, secret: Tensor) -> object:
    return lambda: secret


def _as_a_default(handed: DefenderKnowledge, secret: Tensor) -> object:
    def function(x: Tensor = secret) -> Tensor:
        return x

    return function


def _behind_a_view(handed: DefenderKnowledge, secret: Tensor) -> object:
    return torch.cat([handed.images.pixels, secret])[: len(handed.images)]


def _in_a_hook(handed: DefenderKnowledge, secret: Tensor) -> object:
    encoder = Encoder("w16")
    encoder.stem.register_forward_hook(lambda *_: secret.sum())
    return encoder


def _with_its_labels(handed: DefenderKnowledge, secret: Tensor) -> object:
    return replace(handed, images=toy_images())


@pytest.mark.parametrize(
    "leak", [_as_attribute, _in_a_closure, _as_a_default, _behind_a_view, _in_a_hook, _with_its_labels]
)
def test_the_walk_would_find_a_leak(tiny: Tiny, leak: Callable[[DefenderKnowledge, Tensor], object]) -> None:
    session = tiny.session()
    secrets = Secrets(tiny, session.library)
    clean = DefenderKnowledge(ImageSet(toy_images(8).pixels.clone()), 1)
    assert secrets.found_in(clean) == []
    assert secrets.found_in(leak(clean, secrets.test.pixels[:2]))


def test_the_defenders_images_own_their_storage(tiny: Tiny) -> None:
    """The clean images' storage ends with the images, and no other tensor shares it."""
    session = tiny.session(attacks=["none"])
    session.run()
    pool = session.library.load("pool", "pool").pixels
    (knowledge,) = {id(h[-1]): h[-1] for h in HANDED if isinstance(h[-1], DefenderKnowledge)}.values()
    assert isinstance(knowledge, DefenderKnowledge)
    pixels = knowledge.images.pixels
    assert pixels.untyped_storage().nbytes() == pixels.numel()
    assert pixels.untyped_storage().data_ptr() != pool.untyped_storage().data_ptr()

"""The runner: every record is right, nothing is computed twice, failures stay in their cells, damage is repaired."""

from __future__ import annotations

import logging
import math
import random
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import benchbd.engine.recording
import benchbd.stages.reference
from benchbd import (
    Attack,
    AttackerKnowledge,
    Backdoor,
    DataError,
    DefenderKnowledge,
    Encoder,
    Evaluator,
    Mitigation,
    NotApplicable,
    Predictions,
    Probe,
    Steps,
    Trigger,
    UsageError,
    hookimpl,
    keep,
    note,
)
from benchbd.api import Session
from benchbd.records.files import read_records
from benchbd.records.gates import Gates, judge
from benchbd.records.models import Record
from benchbd.registry import Registry, load_registry
from benchbd.stages.base import Stage
from benchbd.store.store import Store
from benchbd.testing import toy_encoder, toy_images
from benchbd.toolkit.references import choose_references

from ..boards import TINY, Tiny, Watch, drive, ended, flip, in_flight, keys, offering, wait_until, weights
from ..chance import seeded
from ..conftest import write_npz_set

ENCODER, PREDICTIONS, MANIFEST = "encoder.safetensors", "predictions.safetensors", "manifest.json"
LABELS = torch.arange(30) % 3  # labels of the tiny task's test images; the target is class 1


class First(SimpleNamespace):
    """The tiny board, run once for all tests: they copy its store and do not change it."""

    tiny: Tiny
    records: list[Record]
    watch: Watch


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    watch = Watch()
    tiny = Tiny(tmp_path_factory.mktemp("first"), load_registry(extra={"watch": watch}))
    return First(tiny=tiny, records=tiny.run(), watch=watch)


@pytest.fixture
def again(first: First, tmp_path: Path) -> Callable[..., tuple[Tiny, Watch]]:
    """The tiny board with a copy of the first run's store, an observer, and the given plugins."""

    def copied(**plugins: Any) -> tuple[Tiny, Watch]:
        watch = Watch()
        tiny = Tiny(tmp_path / "again", load_registry(extra={"watch": watch, **plugins}))
        shutil.copytree(first.tiny.store, tiny.store)
        return tiny, watch

    return copied


def cell(records: list[Record], attack: str, defense: str) -> Record:
    (found,) = [record for record in records if (record.attack, record.defense) == (attack, defense)]
    return found


def same(one: list[Record], other: list[Record]) -> bool:
    return [record.to_json() for record in one] == [record.to_json() for record in other]


# Records -------------------------------------------------------------------------------------------------------------


def test_every_record_is_right(first: First) -> None:
    grid = [(a, d) for a in ("none", "badencoder") for d in ("none", "scratch", "ft")]
    assert [(r.attack, r.defense) for r in first.records] == grid
    floor = cell(first.records, "none", "none")
    assert floor.metrics is not None
    for record in first.records:
        assert record.status == "ok"
        assert (record.task, record.target, record.target_name, record.seed) == ("task", 1, "1", 1)
        assert record.on_board, record.departures
        assert record.baseline is not None
        assert [*record.baseline.model_dump().values(), None] == list(floor.metrics.model_dump().values())
        assert record.undefended == cell(first.records, record.attack, "none").metrics
        assert record.metrics is not None
        assert record.counts is not None
        assert (record.counts.total, record.counts.nontarget) == (30, 20)
        assert record.metrics.acc == round(100 * record.counts.correct / 30, 4)
        assert record.metrics.asr == round(100 * record.counts.hits / 30, 4)
        assert record.metrics.asr_nontarget == round(100 * record.counts.hits_nontarget / 20, 4)
        assert record.stages["evaluate"] == record.key
        assert len(record.clean_images) == (0 if record.defense == "none" else 16)
        assert (record.seconds == 0) == (record.defense == "none")


def test_counts_are_those_of_the_stored_predictions(first: First) -> None:
    for record in first.records:
        stored = weights(first.tiny.blob(record.key, PREDICTIONS))
        assert record.counts is not None
        assert record.counts.correct == int((stored["clean"] == LABELS).sum())
        assert record.counts.hits == int((stored["triggered"] == 1).sum())
        assert record.counts.hits_nontarget == int(((stored["triggered"] == 1) & (LABELS != 1)).sum())


def test_scratch_and_the_clean_images_are_the_same_for_every_attack(first: First) -> None:
    none, bad = (cell(first.records, attack, "scratch") for attack in ("none", "badencoder"))
    assert none.stages["defend"] == bad.stages["defend"]
    assert none.metrics == bad.metrics
    assert len({tuple(r.clean_images) for r in first.records if r.clean_images}) == 1
    rows = none.clean_images
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(60))


def test_records_land_in_the_store(first: First) -> None:
    files = sorted((first.tiny.store / "records" / "tiny").glob("*.json"))
    assert sorted(path.read_text() for path in files) == sorted(record.to_json() for record in first.records)


def scripted(monkeypatch: pytest.MonkeyPatch, nontarget_hits: dict[str, int]) -> None:
    """Predictions as if ``nontarget_hits`` of the 20 non-target images, and no others, had gone to the target."""

    def read(artifact: Any) -> Predictions:
        label = artifact.manifest["label"]
        hits = next((n for name, n in nontarget_hits.items() if f"of {name}" in label), 0)
        triggered = torch.zeros(30, dtype=torch.int64)
        triggered[(LABELS != 1).nonzero()[:hits, 0]] = 1
        return Predictions(LABELS.clone(), triggered)

    monkeypatch.setattr(benchbd.engine.recording, "read_predictions", read)


@pytest.mark.parametrize(("hits", "status"), [(5, "attack-failed"), (6, "ok"), (20, "ok"), (0, "attack-failed")])
def test_the_gate_of_attacks(
    again: Callable[..., tuple[Tiny, Watch]], monkeypatch: pytest.MonkeyPatch, hits: int, status: str
) -> None:
    # Floor 3 of 20, so 15 %: 6 of 20 is exactly 15 points above it, 5 of 20 is 10.
    scripted(monkeypatch, {"simclr": 3, "badencoder": hits, "ft on badencoder": 1})
    records = again()[0].run()
    for record in records:
        gated = record.attack == "badencoder"
        judged = judge(record, Gates(gain=15))
        assert judged.status == (status if gated else "ok")
        assert bool(judged.reason) == (gated and status != "ok")
        assert (record.status, record.reason) == ("ok", "")
        assert record.baseline is not None
        assert record.baseline.asr_b_nontarget == 15
        assert record.metrics is not None
        assert record.metrics.acc == 100
    undefended, repaired = (cell(records, "badencoder", defense).metrics for defense in ("none", "ft"))
    assert undefended is not None
    assert repaired is not None
    assert undefended.asr_nontarget == 5 * hits
    assert undefended.asr == round(100 * hits / 30, 4)
    assert repaired.asr_nontarget == 5


def test_a_missed_reference_is_reported(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = benchbd.stages.reference.choose_references
    monkeypatch.setattr(
        benchbd.stages.reference, "choose_references", lambda *a, **k: replace(choose(*a, **k), predicted=[2])
    )
    records = Tiny(tmp_path, registry).run(defenses=("none",))
    assert cell(records, "none", "none").notes == []
    (note,) = cell(records, "badencoder", "none").notes
    assert "1 of 1 reference inputs are not classified as the target 1" in note
    assert cell(records, "badencoder", "none").reference["reference"] == "train_split"


# Nothing twice -------------------------------------------------------------------------------------------------------


def test_references_need_three_images() -> None:
    """Half of two is one image, whose features have no deviation: all probabilities would be NaN, all guesses 0."""
    few = toy_images(2)
    with pytest.raises(DataError, match=r"^reference inputs are chosen from at least 3 training images, not 2$"):
        choose_references(toy_encoder(), few, target=1, count=1, seed=0)
    with pytest.raises(
        DataError, match=r"^20 reference inputs are asked for, and \d+ images of the target are held out$"
    ):
        choose_references(toy_encoder(), toy_images(30), target=1, count=20, seed=0)
    (probability,) = choose_references(toy_encoder(seeded(0)), toy_images(3), target=1, count=1, seed=0).probability
    assert math.isfinite(probability)


def test_observers_are_called_in_order(first: First) -> None:
    plan, events = first.tiny.plan(), first.watch.events
    started = first.watch.of("started")
    assert [position for *_, position in started] == list(range(1, len(plan.stages) + 1))
    assert first.watch.totals == {len(plan.stages)}
    assert {key for _, key, _ in started} == keys(plan)
    assert len(first.watch.of("computed")) == len(started)
    open_stage = None
    for what, _, key, *_ in events[: -len(plan.cells)]:
        if what == "started":
            assert open_stage is None
            open_stage = key
        assert key == open_stage
        if what == "computed":
            open_stage = None
    assert [event[0] for event in events[-len(plan.cells) :]] == ["cell"] * len(plan.cells)
    steps = [step for kind, _, step in first.watch.of("progress") if kind == "pretrain"]
    assert steps == sorted(steps)
    assert steps[-1] == 2


def test_a_rerun_computes_nothing(first: First, again: Callable[..., tuple[Tiny, Watch]]) -> None:
    tiny, watch = again()
    assert same(tiny.run(), first.records)
    assert watch.of("started") == watch.of("computed") == []
    assert len(watch.of("cached")) == len(tiny.plan().stages)


def test_two_stores_hold_the_same_bits(first: First, tmp_path: Path, registry: Registry) -> None:
    torch.rand(7), np.random.rand(7), random.random()  # whatever the state of the global generators
    other = Tiny(tmp_path, registry)
    records = other.run()
    for stage in first.tiny.plan().stages:
        for name in {ENCODER, PREDICTIONS, "references.safetensors"}:
            one, two = (tiny.blob(stage.key, name) for tiny in (first.tiny, other))
            assert one.is_file() == two.is_file()
            if one.is_file():
                assert one.read_bytes() == two.read_bytes(), f"{stage.kind} {stage.label}"
    assert [r.counts for r in records] == [r.counts for r in first.records]


def test_one_option_recomputes_its_stages(first: First, again: Callable[..., tuple[Tiny, Watch]]) -> None:
    tiny, watch = again()
    records = tiny.run(options=("ft.lr=0.01",))
    assert sorted(kind for kind, *_ in watch.of("started")) == ["defend", "defend", "evaluate", "evaluate"]
    assert {record.defense for record in records if not record.on_board} == {"ft"}
    for attack in ("none", "badencoder"):
        for defense in ("none", "scratch"):
            assert cell(records, attack, defense).metrics == cell(first.records, attack, defense).metrics


def test_repeated_names_are_one(first: First, again: Callable[..., tuple[Tiny, Watch]]) -> None:
    records = again()[0].run(attacks=("none",) * 2, defenses=("ft", "ft"), seeds=(1, 1), evaluators=("mlp",) * 2)
    assert same(records, [cell(first.records, "none", "ft")])


def test_global_state_is_put_back(again: Callable[..., tuple[Tiny, Watch]]) -> None:
    def state() -> tuple[Any, ...]:
        flags = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.is_grad_enabled())
        return torch.random.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()), flags

    before = state()
    again()[0].run(options=("ft.lr=0.01",))
    assert state() == before


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"), [("pretrain", ENCODER), ("evaluate", PREDICTIONS), ("attack", MANIFEST), ("reference", MANIFEST)]
)
def test_damage_is_named_and_healed(
    first: First,
    again: Callable[..., tuple[Tiny, Watch]],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    name: str,
) -> None:
    tiny, watch = again()
    key = cell(first.records, "badencoder", "ft").stages.get(kind) or next(
        stage.key for stage in tiny.plan().stages if stage.kind == kind
    )
    flip(tiny.blob(key, name))
    with caplog.at_level(logging.WARNING, "benchbd"):
        records = tiny.run()
    (warning,) = caplog.messages
    assert f"{name} of stage {key[:12]} is damaged; set aside" in warning
    assert [key for _, key, _ in watch.of("started")] == [key]  # and nothing that depends on it
    assert len(list((tiny.store / "damaged").iterdir())) == 1
    assert [r.metrics for r in records] == [r.metrics for r in first.records]
    assert [r.status for r in records] == [r.status for r in first.records]
    for blob in tiny.blob(key, "").glob("*.safetensors"):
        assert blob.read_bytes() == first.tiny.blob(key, blob.name).read_bytes()


# Failures ------------------------------------------------------------------------------------------------------------


class Odd(Mitigation):
    """A defense that follows the test's instructions."""

    name = "odd"
    paper = "test"
    version = "1"
    calls: ClassVar[list[tuple[Encoder, DefenderKnowledge]]] = []
    act: ClassVar[Any] = None

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        Odd.calls.append((encoder, knowledge))
        return encoder if Odd.act is None else Odd.act(encoder, knowledge)


ODD = offering(benchbd_defenses=[Odd])


@pytest.fixture(autouse=True)
def _reset_odd() -> Iterator[None]:
    Odd.calls, Odd.act = [], None  # type: ignore[misc]
    yield
    Odd.calls, Odd.act = [], None  # type: ignore[misc]


def raises(error: BaseException) -> Callable[..., Any]:
    def act(*_: Any) -> Any:
        raise error

    return act


def with_nan(encoder: Encoder, _: DefenderKnowledge) -> Encoder:
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    return encoder


def nan_loss(encoder: Encoder, _: DefenderKnowledge) -> Encoder:
    for _ in (steps := Steps(3)):
        steps.loss(torch.tensor(float("nan")))
    return encoder


def collapsed(encoder: Encoder, _: DefenderKnowledge) -> Encoder:
    with torch.no_grad():
        for parameter in encoder.backbone():
            parameter.zero_()
    return encoder


@pytest.mark.parametrize(
    ("act", "status", "reason", "traceback"),
    [
        (raises(RuntimeError("boom\nmore")), "error", "defend odd: RuntimeError: boom (traceback in logs/", True),
        (raises(SystemExit(0)), "error", "defend odd: SystemExit: 0", True),
        (raises(UsageError("needs 5 images")), "error", "defend odd: needs 5 images", False),
        (raises(NotApplicable("no head")), "n/a", "defend odd: no head", False),
        (lambda *_: "encoder", "error", "defense odd must return a benchbd.Encoder, not str", False),
        (lambda *_: Encoder("w32"), "error", "defense odd must return a w16 encoder, not w32", False),
        (with_nan, "error", "defend odd: .*(finite|NaN)", False),
        (nan_loss, "error", "defend odd: the loss is NaN at step 1 of 3", False),
        (collapsed, "error", "defend odd: .*collapsed", False),
    ],
)
def test_a_failure_stays_in_its_cells(
    again: Callable[..., tuple[Tiny, Watch]], act: Any, status: str, reason: str, traceback: bool
) -> None:
    tiny, watch = again(odd=ODD)
    Odd.act = act  # type: ignore[misc]
    records = tiny.run(defenses=("odd", "ft"))
    for attack in ("none", "badencoder"):
        record = cell(records, attack, "odd")
        assert record.status == status
        assert "\n" not in record.reason
        assert re.search(reason if "*" in reason else re.escape(reason), record.reason)
        assert record.metrics is None
        assert record.counts is None
        assert record.baseline is not None
        assert record.undefended is not None
        assert set(record.stages) >= {"pretrain"}
        assert "evaluate" not in record.stages
        if traceback:
            log = tiny.store / record.reason.partition("traceback in ")[2].partition(" of the store")[0]
            assert "repair" in log.read_text()
            assert "Traceback" in log.read_text()
        assert cell(records, attack, "ft").status == "ok"
        assert cell(records, attack, "ft").metrics is not None
    assert len(watch.of(status)) == 2
    assert {kind for kind, *_ in watch.of("started")} == {"defend"}  # its evaluations were not even started
    assert len(list((tiny.store / "logs").iterdir())) == 2 * traceback


def test_what_a_method_notes_lands_in_the_record(again: Callable[..., tuple[Tiny, Watch]]) -> None:
    def act(encoder: Encoder, _: DefenderKnowledge) -> Encoder:
        note("kept", {"units": 3})
        note("remarks", ["odd: the budget ended it"])
        return encoder

    tiny, _ = again(odd=ODD)
    Odd.act = act  # type: ignore[misc]
    for _ in range(2):  # computed, then from the store
        record = cell(tiny.run(defenses=("odd",)), "none", "odd")
        assert record.findings["defend"] == {"kept": {"units": 3}, "remarks": ["odd: the budget ended it"]}
        assert record.notes == ["odd: the budget ended it"]


def test_a_record_counts_the_clean_images_whose_copies_were_stamped(again: Callable[..., tuple[Tiny, Watch]]) -> None:
    def act(encoder: Encoder, _: DefenderKnowledge) -> Encoder:
        keep("stamped_rows", torch.arange(50))
        return encoder

    tiny, _ = again(odd=ODD)
    Odd.act = act  # type: ignore[misc]
    record = cell(tiny.run(defenses=("odd",)), "none", "odd")
    both = {*range(50)} & {*record.clean_images}
    assert 0 < len(both) < 16
    assert record.notes == [f"{len(both)} of 16 clean images are originals of images that the attack stamped"]


def test_no_folder_of_the_machine_reaches_a_record(again: Callable[..., tuple[Tiny, Watch]]) -> None:
    tiny, _ = again(odd=ODD)
    gone = tiny.store / "gone" / "w.pt"

    def act(encoder: Encoder, _: DefenderKnowledge) -> Encoder:
        note("read", {"from": [str(tiny.data / "w.npz"), 3], str(tiny.folder / "v.npz"): 1})
        note("remarks", [f"odd: no {gone}"])
        return encoder

    Odd.act = act  # type: ignore[misc]
    noted = cell(tiny.run(defenses=("odd",)), "none", "odd")
    assert noted.findings["defend"]["read"] == {"from": ["DATA/w.npz", 3], "v.npz": 1}
    assert noted.notes == ["odd: no STORE/gone/w.pt"]
    for number, error in enumerate((DataError(f"{gone}: no such file"), OSError(2, "No such file", str(gone)))):
        Odd.act = raises(error)  # type: ignore[misc]
        failed = cell(tiny.run(defenses=("odd",), seeds=[2 + number]), "none", "odd")
        assert failed.status == "error"
        assert "STORE/gone/w.pt" in failed.reason
    for path in (tiny.store / "records").rglob("*.json"):
        assert str(tiny.folder) not in path.read_text()


def test_failures_are_not_cached(again: Callable[..., tuple[Tiny, Watch]]) -> None:
    tiny, _ = again(odd=ODD)
    Odd.act = raises(RuntimeError("boom"))  # type: ignore[misc]
    assert {record.status for record in tiny.run(defenses=("odd",))} == {"error"}
    Odd.act = None  # type: ignore[misc]
    records = tiny.run(defenses=("odd",))
    assert len(Odd.calls) == 4
    assert "error" not in {record.status for record in records}
    # It returns the encoder, so its figures are the undefended ones.
    assert all(record.metrics == record.undefended for record in records)
    tiny.run(defenses=("odd",))
    assert len(Odd.calls) == 4


class Wild(Attack):
    """An attack that follows the test's instructions."""

    name = "wild"
    paper = "test"
    version = "1"
    handed: ClassVar[list[AttackerKnowledge]] = []
    act: ClassVar[Any] = None

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        Wild.handed.append(knowledge)
        return Wild.act(knowledge)


def honest(knowledge: AttackerKnowledge) -> Backdoor:
    return Backdoor(knowledge.encoder, tuple(target.trigger for target in knowledge.targets))


def other_trigger(knowledge: AttackerKnowledge) -> Backdoor:
    return Backdoor(knowledge.encoder, (Trigger.square(3),))


def no_trigger(knowledge: AttackerKnowledge) -> Backdoor:
    return Backdoor(knowledge.encoder, ())


def test_a_failed_attack_takes_what_stands_on_it(
    again: Callable[..., tuple[Tiny, Watch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, _ = again(wild=offering(benchbd_attacks=[Wild]))
    for act in (other_trigger, no_trigger):
        monkeypatch.setattr(Wild, "act", act)
        records = tiny.run(attacks=("wild", "badencoder"), defenses=("none", "ft"))
        for defense in ("none", "ft"):
            record = cell(records, "wild", defense)
            assert (record.status, record.metrics) == ("error", None)
            assert record.reason == (
                "attack wild: attack wild must return the triggers that it was given, unchanged and one per target"
            )
            assert cell(records, "badencoder", defense).metrics is not None


class Judge(Evaluator):
    """An evaluator that answers as the test demands."""

    name = "judge"
    paper = "test"
    version = "1"
    answer: ClassVar[Any] = None

    def evaluate(self, probe: Probe) -> Predictions:
        return Judge.answer(probe)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda p: Predictions(torch.zeros(30).long(), torch.full((30,), 3)), "predictions from 0 to 2, the classes"),
        (lambda p: Predictions(torch.full((30,), -1), torch.zeros(30).long()), "predictions from 0 to 2, the classes"),
        (lambda p: Predictions(torch.zeros(30), torch.zeros(30)), "predictions as int64"),
        (lambda p: Predictions(torch.zeros(29).long(), torch.zeros(29).long()), r"as int64 \(30,\)"),
        (lambda p: None, "must return benchbd.Predictions, not NoneType"),
    ],
)
def test_a_bad_evaluator_fails_its_own_cells(
    again: Callable[..., tuple[Tiny, Watch]], monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str
) -> None:
    tiny, _ = again(judge=offering(benchbd_evaluators=[Judge]))
    monkeypatch.setattr(Judge, "answer", answer)
    records = tiny.run(attacks=("none",), defenses=("none",), evaluators=("judge", "mlp"))
    judged, headed = sorted(records, key=lambda record: record.evaluator)
    assert judged.status == "error"
    assert re.search(reason, judged.reason)
    assert (headed.status, headed.evaluator) == ("ok", "mlp")


def test_an_evaluator_that_writes_spoils_only_its_own(
    again: Callable[..., tuple[Tiny, Watch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def vandal(probe: Probe) -> Predictions:
        zeros = torch.zeros(len(probe.test)).long()
        for pixels in (probe.train.pixels, probe.test, probe.triggered):
            pixels.zero_()
        return Predictions(zeros, zeros)  # the same tensor twice is allowed

    tiny, _ = again(judge=offering(benchbd_evaluators=[Judge]))
    monkeypatch.setattr(Judge, "answer", vandal)
    asked = {"attacks": ("none",), "defenses": ("none",)}
    spoilt = tiny.run(**asked, evaluators=("judge", "linear"))
    honest = tiny.run(**asked, evaluators=("linear",))
    assert spoilt[0].counts is not None
    assert spoilt[0].counts.hits == 0
    assert spoilt[1].metrics == honest[0].metrics
    fresh = Tiny(tiny.folder / "fresh", tiny.registry).run(**asked, evaluators=("linear",))
    assert spoilt[1].metrics == fresh[0].metrics


def test_an_attack_must_leave_living_features(
    again: Callable[..., tuple[Tiny, Watch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(knowledge: AttackerKnowledge) -> Backdoor:
        return Backdoor(with_nan(knowledge.encoder, DefenderKnowledge(knowledge.shadow, 0)), honest(knowledge).triggers)

    tiny, _ = again(wild=offering(benchbd_attacks=[Wild]))
    monkeypatch.setattr(Wild, "act", poisoned)
    (record,) = tiny.run(attacks=("wild",), defenses=("none",))
    assert (record.status, record.reason) == (
        "error",
        "attack wild: the weights are not finite: stem.0.weight has NaN or infinity",
    )


def test_a_test_set_of_the_target_class_alone_is_refused_at_once(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, TINY.replace("test = 30", "test = 10"))
    path = write_npz_set(tiny.data, "task", seed=2) / "test.npz"
    arrays = np.load(path)
    kept = arrays["y"][:, 0] == 1
    np.savez(path, x=arrays["x"][kept], y=arrays["y"][kept])
    with pytest.raises((UsageError, DataError), match="every test image is of target class 1"):
        tiny.run()


# Observers -----------------------------------------------------------------------------------------------------------


class Clumsy:
    @hookimpl
    def benchbd_stage_finished(self, status: str) -> None:  # an observer may take fewer arguments
        raise RuntimeError(f"spilled\non {status}")


def test_a_raising_observer_only_warns(
    first: First, again: Callable[..., tuple[Tiny, Watch]], caplog: pytest.LogCaptureFixture
) -> None:
    tiny, watch = again(clumsy=Clumsy())
    with caplog.at_level(logging.WARNING, "benchbd"):
        assert same(tiny.run(), first.records)
    (warning,) = caplog.messages  # once, not for each of the stages
    assert warning.startswith("observer clumsy: benchbd_stage_finished raised RuntimeError: spilled")
    assert len(watch.of("cached")) == len(tiny.plan().stages)


class Scribbler:
    """An observer that writes to all that it receives."""

    @hookimpl
    def benchbd_stage_finished(self, stage: Stage) -> None:
        stage.identity["seed"] = stage.identity["params"]["own"] = -1

    @hookimpl
    def benchbd_record_finished(self, record: Record) -> None:
        record.machine["device"] = "none"
        for stage in record.identity.values():
            stage["seed"] = -1
        record.identity.clear()
        record.point["x"] = 1


def test_an_observer_that_writes_changes_no_record(first: First, again: Callable[..., tuple[Tiny, Watch]]) -> None:
    tiny, _ = again(scribbler=Scribbler())
    shutil.rmtree(tiny.store / "records")
    records = tiny.run()
    assert [record.to_json() for record in records] == [record.to_json() for record in first.records]
    written = read_records(tiny.store / "records" / "tiny")
    assert {record.to_json() for record in written} == {record.to_json() for record in records}
    assert {record.packed for record in written} == {record.packed for record in records}


# Isolation ----------------------------------------------------------------------------------------------------------


def walk(thing: Any, seen: dict[int, Any]) -> dict[int, Any]:
    """Everything that can be reached from ``thing`` through attributes, items and modules."""
    if id(thing) in seen or thing is None:
        return seen
    seen[id(thing)] = thing
    inner: list[Any] = []
    if is_dataclass(thing):
        inner += [getattr(thing, field.name) for field in fields(thing)]
    if isinstance(thing, nn.Module):
        inner += [*thing.modules(), *thing.state_dict().values(), *(p.grad for p in thing.parameters())]
    if isinstance(thing, dict):
        inner += [*thing.keys(), *thing.values()]
    if isinstance(thing, (list, tuple, set, frozenset)):
        inner += list(thing)
    if not isinstance(thing, (type, Tensor)):
        inner += list(getattr(thing, "__dict__", {}).values())
    for each in inner:
        walk(each, seen)
    return seen


def pictures(things: Any) -> set[bytes]:
    """Every picture among the tensors, as bytes."""
    found = set()
    for tensor in things:
        if isinstance(tensor, Tensor) and tensor.dtype == torch.uint8 and tensor.shape[-3:] == (3, 32, 32):
            found |= {picture.numpy().tobytes() for picture in tensor.reshape(-1, 3, 32, 32)}
    return found


def test_a_defender_gets_clean_images_and_nothing_else(again: Callable[..., tuple[Tiny, Watch]]) -> None:
    tiny, _ = again(odd=ODD)
    session: Session = tiny.session(defenses=("odd",))
    records = session.run()
    pool, test = session.library.load("pool", "pool"), session.library.load("task", "test")
    stamped = Trigger.square(10).stamp(test.pixels)
    published = {r.attack: r.stages.get("attack", r.stages["pretrain"]) for r in records}
    assert len(Odd.calls) == 2
    for record, (encoder, knowledge) in zip(records, Odd.calls, strict=True):
        images = knowledge.images
        assert (images.labels, images.classes, images.mean, images.std) == (None, (), None, None)
        assert set(vars(knowledge)) == {"images", "seed", "prepared"}
        assert knowledge.prepared == {}
        assert torch.equal(images.pixels, pool.pixels[record.clean_images])
        assert images.pixels.untyped_storage().data_ptr() != pool.pixels.untyped_storage().data_ptr()
        assert images.pixels.untyped_storage().nbytes() == images.pixels.numel()  # the storage contains nothing else
        reached = walk((encoder, knowledge), {}).values()
        assert not [x for x in reached if isinstance(x, (Trigger, PurePath, Store, Session, bytes))]
        secrets = {"pool", "task", "badencoder", str(tiny.folder), *(stage.key for stage in tiny.plan().stages)}
        assert not [x for x in reached if isinstance(x, str) and any(secret in x for secret in secrets)]
        assert not pictures(reached) & (pictures([test.pixels]) | pictures([stamped]))
        assert all(parameter.requires_grad and parameter.grad is None for parameter in encoder.parameters())
        assert not encoder.training
        stored = weights(tiny.blob(published[record.attack], ENCODER))
        assert all(torch.equal(value, stored[name]) for name, value in encoder.state_dict().items())
    assert Odd.calls[0][1].seed == Odd.calls[1][1].seed


def test_an_attacker_gets_no_test_images(
    again: Callable[..., tuple[Tiny, Watch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, _ = again(wild=offering(benchbd_attacks=[Wild]))
    monkeypatch.setattr(Wild, "act", honest)
    monkeypatch.setattr(Wild, "handed", [])
    session = tiny.session(attacks=("wild",), defenses=("none",))
    (record,) = session.run()
    (knowledge,) = Wild.handed
    reached = list(walk(knowledge, {}).values())
    train, test = (session.library.load("task", split) for split in ("train", "test"))
    assert train.labels is not None
    assert not pictures(reached) & pictures([test.pixels])
    (target,) = knowledge.targets
    assert torch.equal(target.images.pixels, train.pixels[train.labels == 1])
    assert (target.label, target.name, target.images.labels, knowledge.pool.labels) == (1, "1", None, None)
    assert not [x for x in reached if isinstance(x, (PurePath, Store, Session))]
    assert pictures([target.references]) <= pictures([target.images.pixels])
    assert record.reference["predicted"]
    assert record.metrics == record.undefended


def vandalise(knowledge: AttackerKnowledge) -> Backdoor:
    knowledge.pool.pixels.zero_()
    for target in knowledge.targets:
        target.images.pixels.zero_()
    for parameter in knowledge.encoder.parameters():
        parameter.data.add_(0.01)
    return honest(knowledge)


def test_a_method_that_writes_to_its_images_spoils_nobody_elses(
    first: First, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wild, "act", vandalise)
    tiny = Tiny(tmp_path, load_registry(extra={"wild": offering(benchbd_attacks=[Wild])}))
    records = tiny.run(attacks=("wild", "badencoder"))
    for defense in ("none", "scratch", "ft"):
        assert cell(records, "badencoder", defense).metrics == cell(first.records, "badencoder", defense).metrics
    key = cell(first.records, "badencoder", "ft").stages["defend"]
    assert tiny.blob(key, ENCODER).read_bytes() == first.tiny.blob(key, ENCODER).read_bytes()


# Processes -----------------------------------------------------------------------------------------------------------


def test_two_processes_share_a_store(first: First, tmp_path: Path, registry: Registry) -> None:
    tiny, log = Tiny(tmp_path, registry), tmp_path / "log"
    processes = [drive(log, "run", *tiny.arguments, "--json", "--quiet") for _ in range(2)]
    results = [ended(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    computed = [line.split()[1] for line in log.read_text().splitlines()]
    assert sorted(computed) == sorted(keys(tiny.plan()))  # each stage once
    assert results[0] == results[1]
    assert [err for _, err in results] == ["", ""]
    assert [r.counts for r in tiny.run()] == [r.counts for r in first.records]


def test_a_second_run_computes_what_the_first_has_not_begun(first: First, tmp_path: Path, registry: Registry) -> None:
    """It waits only if nothing else is left; and if the other run dies, it computes that stage too."""
    tiny, logs = Tiny(tmp_path, registry), [tmp_path / "log1", tmp_path / "log2"]
    one = drive(logs[0], "run", *tiny.arguments, "--quiet", hang="defend")
    in_flight(one, logs[0], "defend")
    *before, held = [line.split()[1] for line in logs[0].read_text().splitlines()]
    plan, store = tiny.plan(), Store(tiny.store)
    free = {s.key for s in plan.stages if held not in {s.key, *(parent.key for parent in s.parents.values())}}
    two = drive(logs[1], "run", *tiny.arguments)
    wait_until(two, lambda: all(map(store.has, free)))
    assert not store.has(held)
    one.send_signal(signal.SIGKILL)
    _, stderr = ended(two)
    ended(one)
    assert two.returncode == 0, stderr
    waiting = [line for line in stderr.splitlines() if line.startswith("waiting for ")]
    (stage,) = (stage for stage in plan.stages if stage.key == held)
    assert waiting == [f"waiting for defend {stage.label}: process {one.pid} on {socket.gethostname()} computes it"]
    computed = [line.split()[1] for line in logs[1].read_text().splitlines()]
    assert sorted([*before, *computed]) == sorted(keys(plan))
    assert set(computed[-2:]) == keys(plan) - free  # the stage that the first run held, and its evaluation
    assert [r.counts for r in tiny.run()] == [r.counts for r in first.records]


def test_kill_9_loses_the_stage_in_flight(first: First, tmp_path: Path) -> None:
    watch = Watch()
    tiny, log = Tiny(tmp_path, load_registry(extra={"watch": watch})), tmp_path / "log"
    process = drive(log, "run", *tiny.arguments, "--quiet", hang="attack")
    in_flight(process, log, "attack")
    process.send_signal(signal.SIGKILL)
    ended(process)
    assert process.returncode == -signal.SIGKILL
    *finished, lost = [line.split()[1] for line in log.read_text().splitlines()]
    records = tiny.run()  # its lock was released when it died
    assert {key for _, key, _ in watch.of("cached")} == set(finished)
    assert {key for _, key, _ in watch.of("started")} == keys(tiny.plan()) - set(finished)
    assert lost in {key for _, key, _ in watch.of("computed")}
    assert [r.counts for r in records] == [r.counts for r in first.records]
    store = Store(tiny.store)
    assert all(store.get(key) is not None for key in keys(tiny.plan()))
    assert not (tiny.store / "damaged").exists()


class Together(Evaluator):
    """Predicts class 1 for all images, or fails for several encoders at once."""

    name = "together"
    paper = "a test"
    version = "1"
    sizes: ClassVar[list[int]] = []
    breaks: ClassVar[bool] = False

    def evaluate(self, probe: Probe) -> Predictions:
        return Predictions(torch.ones(len(probe.test)).long(), torch.full((len(probe.triggered),), 2))

    def evaluate_together(self, probes: Sequence[Probe]) -> list[Predictions]:
        self.sizes.append(len(probes))
        if self.breaks and len(probes) > 1:
            raise RuntimeError("not several")
        return [self.evaluate(probe) for probe in probes]


@pytest.mark.parametrize(("breaks", "sizes"), [(False, [4]), (True, [4, 1, 1, 1, 1])])
def test_evaluations_that_share_a_handover_are_as_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: bool, sizes: list[int]
) -> None:
    registry = load_registry(extra={"local": offering(benchbd_evaluators=[Together])})
    alone = Tiny(tmp_path / "alone", registry).run(evaluators=["together"], defenses=["none", "ft"])
    monkeypatch.setattr(Together, "sizes", [])
    monkeypatch.setattr(Together, "breaks", breaks)
    session = Tiny(tmp_path / "together", registry).session(evaluators=["together"], defenses=["none", "ft"])
    session._runner.scheduler.together = 8
    records = session.run()
    assert Together.sizes == sizes
    assert [record.predictions for record in records] == [record.predictions for record in alone]
    assert [record.status for record in records] == [record.status for record in alone]
    assert {record.cost["evaluate"].image_forwards for record in records} == {0}

"""Executors: stages that are computed elsewhere give the results that they give here."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchbd import Executor, Failure, Handover, Product, UsageError
from benchbd.api import Session
from benchbd.base.mapped import blank, region_of
from benchbd.contract.context import Reporter
from benchbd.engine.executors import Inline, executor_called
from benchbd.planning.selection import Selection
from benchbd.registry import load_registry

from .. import pool
from ..boards import TINY, Tiny, offering, weights


@pytest.mark.fixed_draw("both runs draw the same, whatever that is")
def test_a_pool_of_processes_gives_the_bits_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the children read it when they start
    registry = load_registry(extra={"pool": pool})
    here, there = Tiny(tmp_path / "here", registry), Tiny(tmp_path / "there", registry)
    executors: list[pool.Pool] = []
    make = pool.Pool.__init__

    def kept(self: pool.Pool, device: str) -> None:
        make(self, device)
        executors.append(self)

    monkeypatch.setattr(pool.Pool, "__init__", kept)
    session = Session.open(
        there.board,
        Selection(only=True),
        data_root=there.data,
        store=there.store,
        device="cpu",
        registry=registry,
        executor="pool",
    )
    records, own = session.run(), here.run()
    executors[0].workers.shutdown()
    assert executors[0].most == 2  # stages whose inputs are finished are computed at the same time
    assert [record.status for record in records] == [record.status for record in own]
    assert [record.counts for record in records] == [record.counts for record in own]
    for record in own:
        for kind, key in record.stages.items():
            if kind in ("pretrain", "attack", "defend"):
                ours, theirs = (weights(tiny.blob(key, "encoder.safetensors")) for tiny in (here, there))
                assert all((ours[name] == theirs[name]).all() for name in ours)


class Dead(Executor):
    """Its workers die."""

    name = "dead"

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        future: Future[Product | Failure] = Future()
        future.set_exception(RuntimeError("a worker died"))
        return future


def test_a_worker_that_dies_fails_its_stage(tmp_path: Path) -> None:
    registry = load_registry(extra={"dead": offering(benchbd_executors=[Dead])})
    tiny = Tiny(tmp_path, registry)
    session = Session.open(
        tiny.board,
        Selection(only=True),
        data_root=tiny.data,
        store=tiny.store,
        device="cpu",
        registry=registry,
        executor="dead",
    )
    records = session.run()
    assert {record.status for record in records} == {"error"}
    assert records[0].reason.startswith("pretrain simclr: RuntimeError: a worker died")


class Odd(Executor):
    """Returns what a test says."""

    name = "odd"
    slots = 4
    said: ClassVar[Any]

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        return self.said  # type: ignore[no-any-return]


class One(Executor):
    """Returns one future for all handovers, and finishes it at the second."""

    name = "one"
    slots = 2

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.future: Future[Product | Failure] = Future()
        self.handovers = 0

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        self.handovers += 1
        if self.handovers == 2:
            self.future.set_result(Failure("error", "nothing was done"))
        return self.future


def holding(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def failed(folder: Path, cls: type[Executor], board: str = TINY) -> set[str]:
    """The reasons of the records of a run with an executor; every record failed."""
    registry = load_registry(extra={"odd": offering(benchbd_executors=[cls])})
    tiny = Tiny(folder, registry, board)
    places = {"data_root": tiny.data, "store": tiny.store}
    records = Session.open(tiny.board, **places, device="cpu", registry=registry, executor=cls.name).run()
    assert {record.status for record in records} == {"error"}
    return {record.reason for record in records}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (None, "submit() must return a new Future, not None"),
        (holding(None), "a future must hold what carry_out() returns, not None"),
        (holding(Product()), "a future must hold what carry_out() returns, not Product(json={}, tensors={}"),
    ],
)
def test_an_executor_that_returns_anything_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Any, reason: str
) -> None:
    monkeypatch.setattr(Odd, "said", said, raising=False)
    (told,) = failed(tmp_path, Odd)
    assert told.startswith(f"pretrain simclr: executor odd: {reason}")


def test_a_future_that_is_given_twice_loses_no_stage(tmp_path: Path) -> None:
    said = "executor one: submit() must return a new Future, not one that it has given"
    two = TINY.replace("seeds = [1]", "seeds = [1, 2]")
    assert failed(tmp_path, One, two) == {f"pretrain simclr: {told}" for told in (said, "nothing was done")}


def test_an_unknown_executor_is_named_with_the_nearest() -> None:
    registry = load_registry(extra={"pool": pool})
    with pytest.raises(UsageError, match=r"unknown executor 'inlin'.*inline"):
        executor_called("inlin", registry, Inline(registry, "cpu").device)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (object, "which is not a class derived from benchbd.Executor"),
        (type("Idle", (Executor,), {"name": "idle"}), "Idle: it does not define submit()"),
        (type("Loud", (pool.Pool,), {"name": "LOUD"}), "is not made of lower-case letters"),
        (type("Own", (pool.Pool,), {"name": "inline"}), "'inline' is already the name of one"),
    ],
)
def test_what_is_no_executor_is_a_problem_of_its_plugin(cls: type, problem: str) -> None:
    assert problem in load_registry(extra={"odd": offering(benchbd_executors=[cls])}).problems[0]


class Looks(Executor):
    """Checks where large tensors lie, and computes nothing."""

    name = "looks"
    seen: ClassVar[set[Path]] = set()

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        region = region_of(blank(torch.uint8, (3,)))
        assert region is not None
        self.seen.add(Path(os.readlink(f"/proc/self/fd/{region.descriptor}")).parent)
        future: Future[Product | Failure] = Future()
        future.set_result(Failure("error", "nothing was done"))
        return future


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux says where a file lies")
def test_large_tensors_of_a_stage_lie_on_the_disk_of_the_store(tmp_path: Path) -> None:
    registry = load_registry(extra={"looks": offering(benchbd_executors=[Looks])})
    tiny = Tiny(tmp_path, registry)
    places = {"data_root": tiny.data, "store": tiny.store}
    Session.open(tiny.board, **places, device="cpu", registry=registry, executor="looks").run()
    assert Looks.seen == {tiny.store}

"""The provenance in records: where, by which software and by whom a stage was computed."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar

import benchbd_plugins.ft
import pytest
import torch
from click.testing import CliRunner

from benchbd import Executor, Failure, Handover, Product, UsageError, carry_out
from benchbd._version import __version__
from benchbd.api import Session
from benchbd.base import memory
from benchbd.base.errors import DataError
from benchbd.cli.main import main
from benchbd.contract.context import Reporter
from benchbd.engine import provenance
from benchbd.nets.encoder import ARCHITECTURES
from benchbd.planning.selection import Selection
from benchbd.records.files import read_records, write_records
from benchbd.records.models import Origin, Record
from benchbd.registry import Registry, load_registry
from benchbd.store.store import Store
from docs.examples import architecture, dataset, trigger
from docs.examples.architecture import Four

from ..boards import TINY, Tiny, offering
from ..records_factory import make_record

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def ran(tiny: Tiny) -> list[Record]:
    return tiny.run(attacks=("badencoder",), defenses=("none", "ft"))


def test_a_record_says_what_computed_each_stage(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry)
    _, record = ran(tiny)
    assert set(record.plugins) == {"pretrain", "attack", "defend", "evaluate"}  # the reference has no method
    source = Path(benchbd_plugins.ft.__file__).read_bytes()
    assert record.plugins["defend"] == Origin(
        distribution="benchbd", version=__version__, source=hashlib.sha256(source).hexdigest()
    )
    assert (record.precision, record.isolation, record.author, record.point) == ("fp32", "none", "", {})
    assert record.machine.keys() >= {"device", "cpu_capability", "threads", "torch", "python", "benchbd"}
    assert read_records(tiny.store / "records" / "tiny")[0].plugins == record.plugins
    assert all((cost.memory is None) == (sys.platform != "linux") for cost in record.cost.values())


class Near(Executor):
    """Works in this process, with the methods of a registry."""

    name = "near"
    registry: ClassVar[Registry]

    def submit(self, handed: Handover, report: Reporter) -> Future[Product | Failure]:
        future: Future[Product | Failure] = Future()
        future.set_result(carry_out(handed.private(), self.device, report, self.registry))
        return future


def test_a_record_names_every_plugin_that_took_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "four", Four)  # undone after the test
    modules = {"set": dataset, "wave": trigger, "net": architecture, "near": offering(benchbd_executors=[Near])}
    Near.registry = load_registry(extra=modules)
    text = TINY.replace('"w16"', '"four"').replace("task:1", "squares:1").replace("task =", "squares =")
    text = text.replace("train = 60, test = 30", "train = 600, test = 300")
    tiny = Tiny(
        tmp_path, Near.registry, text.replace("[data]", '[trigger]\nkind = "function"\nfunction = "wave"\n[data]')
    )
    places = {"data_root": tiny.data, "store": tiny.store}
    selected = Selection.of(attacks=["badencoder"], defenses=["ft"], only=True)
    opened = Session.open(tiny.board, selected, **places, device="cpu", registry=Near.registry, executor="near")
    (record,) = opened.run()
    everywhere, own = ("architecture:four", "executor:near"), {"pretrain", "attack", "defend", "evaluate"}
    told = {
        "reference": ["dataset:squares"],
        "attack": ["dataset:squares", "trigger:wave"],
        "pretrain": [],
        "defend": [],
    }
    told["evaluate"] = told["attack"]
    parts = {f"{kind}.{part}" for kind, more in told.items() for part in (*everywhere, *more)}
    assert record.plugins.keys() == own | parts
    for part in parts:
        module = {"four": architecture, "near": sys.modules[__name__], "squares": dataset, "wave": trigger}
        source = Path(str(module[part.partition(":")[2]].__file__)).read_bytes()
        assert record.plugins[part] == Origin(
            distribution="local", version="", source=hashlib.sha256(source).hexdigest()
        )
    assert record.plugins["attack"].distribution == "benchbd"
    assert read_records(tiny.store / "records" / "tiny") == [record]


def test_the_source_is_one_of_store_and_machine_and_tells_neither(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Tiny(tmp_path, registry)
    sources = {record.source for record in (*ran(tiny), *ran(tiny))}
    (source,) = sources
    assert source is not None
    assert re.fullmatch(r"[0-9a-f]{16}", source)
    assert Store(tiny.store).source == source
    assert Store(tmp_path / "other").source != source
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert Store(tiny.store).source != source
    assert {record.source for record in ran(tiny)} == sources  # that of the machine that computed them


@LINUX
def test_the_peak_is_that_of_the_block() -> None:
    peaks = []
    for size in (300_000_000, 1):
        with memory.peak_memory(CPU) as peak:
            held = bytearray(size)
            del held
        assert peak["memory"] is not None
        assert peak["gpu_memory"] is None
        peaks.append(peak["memory"])
    assert peaks[0] - peaks[1] > 200_000_000


def test_a_system_that_does_not_measure_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "absent")
    with memory.peak_memory(CPU) as peak:
        pass
    assert peak == {"memory": None, "gpu_memory": None}


def test_of_stages_from_before_nothing_is_said(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Tiny(tmp_path, registry)
    with monkeypatch.context() as before:
        before.setattr("benchbd.engine.scheduler.provenance", lambda *_: {"machine": provenance.machine(CPU)})
        ran(tiny)
    for record in ran(tiny):
        assert (record.plugins, record.source, record.isolation) == ({}, None, None)
        assert record.precision == "fp32"


def test_a_name_stands_in_the_record(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(tmp_path, registry)
    chosen = ["--only", "--attack", "none", "--defense", "none", "--quiet", "--json"]
    for by, expected in ((["--by", " Ada L. "], "Ada L."), ([], "Grace"), (["--by", ""], "")):
        monkeypatch.setenv("BENCHBD_AUTHOR", "Grace")
        result = CliRunner().invoke(main, ["run", *tiny.arguments, *chosen, *by])
        assert json.loads(result.stdout)["records"][0]["author"] == expected
    for wrong in ("x" * 101, "a\nb"):
        result = CliRunner().invoke(main, ["run", *tiny.arguments, *chosen, "--by", wrong])
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("error: author ")
        with pytest.raises(UsageError, match="a name is one line of at most 100 characters"):
            Session.open(tiny.board, store=tiny.store, data_root=tiny.data, registry=registry, by=wrong)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"precision": "bf16"}, "precision: bf16, but identity.evaluate has fp32"),
        (
            {"plugins": {"defend": Origin(distribution="x", version="1", source=None)}},
            "plugins, cost: of defend, which identity does not have",
        ),
        (
            {"plugins": {"defend.dataset:toys": Origin(distribution="x", version="1", source=None)}},
            "plugins, cost: of defend, which identity does not have",
        ),
        (
            {"plugins": {"evaluate.defense:ft": Origin(distribution="x", version="1", source=None)}},
            "plugins: 'evaluate.defense:ft' is neither a kind of stage nor of the form KIND.AXIS:NAME",
        ),
    ],
)
def test_what_contradicts_the_identity_is_refused(tmp_path: Path, fields: dict[str, object], wrong: str) -> None:
    numerics = {"numerics": {"precision": "fp32", "tf32": False}}
    evaluate = make_record().identity["evaluate"] | numerics
    key = hashlib.sha256(json.dumps(evaluate, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    known = {"identity": make_record().identity | {"evaluate": evaluate}, "key": key}
    write_records([make_record(**known, precision="fp32")], tmp_path)
    assert len(read_records(tmp_path)) == 1
    write_records([make_record(**known, **fields)], tmp_path)
    with pytest.raises(DataError, match=wrong):
        read_records(tmp_path)

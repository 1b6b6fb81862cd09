"""TensorBoard and W&B: asked for, they write what a run tells; unasked, they observe nothing.

What needs their libraries is marked ``extras``; stand-ins for these libraries check the rest.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import pytest
from benchbd_plugins import tensorboard, wandb

from benchbd.records.models import Metrics, Record
from benchbd.registry import load_registry

from ..boards import Tiny, Watch, completed
from ..records_factory import make_record

STAGE = SimpleNamespace(kind="defend", method_name="ft", key="ab" * 32, label="ft on badencoder seed 1")

NAME = "defend/ft-abababababab"

FIGURES = Metrics(acc=53.25, asr=96.5, asr_nontarget=95.75)

PLACE = {"attack": "none", "pretrain": "shapes", "evaluator": "mlp", "seed": 1, "status": "ok", "point": {}}

INSPECTION = SimpleNamespace(
    key="cd" * 32, to_json=lambda: json.dumps({**PLACE, "detection": "decree", "tasks": ["shapes:3"], "score": 1.5})
)


def told(observer: Any, *records: Any) -> None:
    """What a stage of three steps tells, the first of them without a loss, and then the records."""
    for step, loss in ((1, None), (2, 0.5), (3, 0.25)):
        observer.benchbd_stage_progress(stage=STAGE, step=step, loss=loss)
    if hasattr(observer, "benchbd_stage_finished"):
        observer.benchbd_stage_finished(stage=STAGE, status="computed", message="")
    for each in records:
        observer.benchbd_record_finished(record=each)


def cell(**changes: Any) -> Record:
    return make_record(defense="ft", seed=1).model_copy(update={"metrics": FIGURES, **changes})


class Writer:
    """Stands for ``SummaryWriter``."""

    made: dict[str, Writer]

    def __init__(self, folder: str) -> None:
        self.scalars: list[tuple[str, float, int | None]] = []
        self.texts: list[tuple[str, str]] = []
        self.summaries: list[Any] = []
        self.closed = False
        self.file_writer = SimpleNamespace(add_summary=self.summaries.append)
        Writer.made[folder] = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        self.scalars.append((tag, value, step))

    def add_text(self, tag: str, text: str) -> None:
        self.texts.append((tag, text))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Writer]:
    """A stand-in for torch.utils.tensorboard; what it wrote, by folder."""
    module, summary = ModuleType("torch.utils.tensorboard"), ModuleType("torch.utils.tensorboard.summary")
    module.SummaryWriter, summary.hparams = Writer, lambda *given: given  # type: ignore[attr-defined]
    Writer.made = {}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, summary.__name__, summary)
    return Writer.made


class Run:
    """Stands for a run of W&B."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.metrics: dict[str, str] = {}
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Run]]:
    """A stand-in for wandb; the arguments and the run of each ``init``."""
    made: list[tuple[dict[str, Any], Run]] = []

    def init(**arguments: Any) -> Run:
        made.append((arguments, Run()))
        return made[-1][1]

    module = ModuleType("wandb")
    module.init, module.Settings, module.setup = init, dict, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


def test_tensorboard_writes_curves_and_figures(writers: dict[str, Writer], tmp_path: Path) -> None:
    observer = tensorboard.TensorBoard(tmp_path)
    done = cell(point={"trigger.size": 5, "badencoder.ref": [1, 2]})
    told(observer, done, cell(metrics=None, status="n/a", reason="no"), INSPECTION)
    stage = writers[str(tmp_path / NAME)]
    assert stage.scalars == [("loss", 0.5, 2), ("loss", 0.25, 3)]
    assert stage.texts == [("stage", STAGE.label), ("status", "computed")]
    first, second = (writer for folder, writer in writers.items() if f"{tmp_path / 'records'}{os.sep}" in folder)
    assert first.scalars == [("acc", 53.25, None), ("asr", 96.5, None), ("asr_nontarget", 95.75, None)]
    place, figures = first.summaries
    assert figures == {"acc": 53.25, "asr": 96.5, "asr_nontarget": 95.75}
    assert place.items() >= {"attack": done.attack, "defense": done.defense, "task": done.task, "seed": 1}.items()
    assert place["badencoder.ref"] == "[1, 2]"  # the table holds numbers and texts
    assert second.scalars == [("score", 1.5, None)]
    assert all(writer.closed for writer in writers.values())


def test_no_name_leaves_the_folder(writers: dict[str, Writer], tmp_path: Path) -> None:
    tensorboard.TensorBoard(tmp_path).benchbd_record_finished(record=cell(task="../../up", pretrain="a/b c"))
    (folder,) = writers
    assert Path(folder).parent == tmp_path / "records"
    assert ".._.._up" in Path(folder).name


def test_wandb_logs_curves_and_figures(runs: list[tuple[dict[str, Any], Run]]) -> None:
    observer = wandb.WeightsAndBiases("encoders")
    assert runs == []  # nothing begins before there is a value
    told(observer, done := cell(point={"trigger.size": 5}), cell(metrics=None, status="n/a", reason="no"))
    observer.benchbd_record_finished(record=INSPECTION)
    ((arguments, run),) = runs
    assert arguments["project"] == "encoders"
    assert run.metrics == {f"{NAME}/loss": f"{NAME}/step"}
    assert run.logged == [{f"{NAME}/loss": loss, f"{NAME}/step": step} for step, loss in ((2, 0.5), (3, 0.25))]
    assert run.config == {f"{NAME}/label": STAGE.label}
    place = (
        f"{done.attack}/{done.defense}/{done.pretrain}/{done.task}:{done.target}/{done.evaluator}/seed1/trigger.size=5"
    )
    scores = {name: value for name, value in run.summary.items() if name.endswith("/score")}
    assert list(scores.values()) == [1.5]
    assert run.summary == {f"{place}/acc": 53.25, f"{place}/asr": 96.5, f"{place}/asr_nontarget": 95.75, **scores}


def test_wandb_that_does_not_begin_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt may take half a minute, and a run has thousands of steps."""
    attempts: list[dict[str, Any]] = []

    def init(**arguments: Any) -> None:
        attempts.append(arguments)
        raise RuntimeError("no login")

    module = ModuleType("wandb")
    module.init, module.Settings, module.setup = init, dict, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    observer = wandb.WeightsAndBiases("encoders")
    with pytest.raises(RuntimeError, match="no login"):
        told(observer)
    told(observer, cell())
    assert len(attempts) == 1


def loaded(module: ModuleType) -> ModuleType:
    """The module, imported once more under another name."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location("observer_again", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    return again


@pytest.mark.parametrize("module", [tensorboard, wandb], ids=["tensorboard", "wandb"])
def test_who_does_not_ask_has_no_observer(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin has none of the observers' hooks: calling one takes milliseconds, each time."""
    monkeypatch.delenv(module.ASKED, raising=False)
    for value in ("", None):
        if value is not None:
            monkeypatch.setenv(module.ASKED, value)
        registry = load_registry([], extra={"observer": loaded(module).plugin})
        assert registry.problems == []
        hooks = {caller.name for caller in registry.manager.get_hookcallers(registry.manager.get_plugin("observer"))}
        assert hooks == {"benchbd_executors"}
    monkeypatch.setenv(module.ASKED, "here")
    registry = load_registry([], extra={"observer": loaded(module).plugin})
    hooks = {caller.name for caller in registry.manager.get_hookcallers(registry.manager.get_plugin("observer"))}
    assert hooks >= {"benchbd_stage_progress", "benchbd_record_finished"}
    assert "benchbd_executors" not in hooks


def test_start_up_imports_neither() -> None:
    script = (
        "import os, sys\n"
        "os.environ |= {'BENCHBD_TENSORBOARD': 'here', 'BENCHBD_WANDB': 'there'}\n"
        "from benchbd.registry import load_registry\n"
        "assert not load_registry().problems\n"
        "assert not {'tensorboard', 'torch.utils.tensorboard', 'wandb'} & set(sys.modules)\n"
    )
    done = completed([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("absent", ["torch.utils.tensorboard", "wandb"])
def test_an_absent_library_is_named_and_stops_no_run(
    absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    observer: Any = wandb.WeightsAndBiases("encoders")
    if absent != "wandb":
        observer = tensorboard.TensorBoard(tmp_path / "events")
    watch = Watch()
    tiny = Tiny(tmp_path / "tiny", load_registry(extra={"asked": observer, "watch": watch}))
    with caplog.at_level(logging.WARNING, "benchbd"):
        (done,) = tiny.run(attacks=["none"], defenses=["none"])
    assert done.status == "ok"
    extra = "wandb" if absent == "wandb" else "tensorboard"
    asked = [line for line in caplog.messages if "asked" in line]
    assert len(asked) == 1
    assert f"pip install 'benchbd[{extra}]'" in asked[0]


# With the libraries -----------------------------------------------------------------------------------------------


@pytest.mark.extras
def test_event_files_read_back(tmp_path: Path) -> None:
    """A run of the command: TensorBoard's own reader finds a curve per stage that trained, and the printed figures."""
    done = completed(
        [sys.executable, "-m", "benchbd", "run", "--board", "smoke", "--attack", "none", "--defense", "ft", "--json"],
        BENCHBD_TENSORBOARD=str(tmp_path / "events"),
        BENCHBD_STORE=str(tmp_path / "store"),
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    script = (
        "import json, sys, pathlib\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "found = {}\n"
        "for folder in {path.parent for path in pathlib.Path(sys.argv[1]).rglob('events.*')}:\n"
        "    events = EventAccumulator(str(folder)).Reload()\n"
        "    tags = {tag: [(at.step, at.value) for at in events.Scalars(tag)] for tag in events.Tags()['scalars']}\n"
        "    own = 'hparams' in str(events.summary_metadata)\n"
        "    plugins = list(events.PluginTagToContent('hparams')) if own else []\n"
        "    found[folder.relative_to(sys.argv[1]).as_posix()] = [tags, plugins]\n"
        "print(json.dumps(found))\n"
    )
    read = completed([sys.executable, "-c", script, str(tmp_path / "events")])
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout.strip().splitlines()[-1])
    curves = {name: tags["loss"] for name, (tags, _) in found.items() if not name.startswith("records/")}
    assert {name.partition("-")[0] for name in curves} >= {"pretrain/simclr", "defend/ft", "evaluate/mlp"}
    assert all(len(curve) >= 1 and curve == sorted(curve) for curve in curves.values())
    records = json.loads(done.stdout)["records"]
    for each in records:
        (name,) = [name for name in found if name.endswith(each["key"][:12]) and name.startswith("records/")]
        tags, plugins = found[name]
        assert tags["acc"] == [[0, pytest.approx(each["metrics"]["acc"], rel=1e-6)]]
        assert tags["asr"] == [[0, pytest.approx(each["metrics"]["asr"], rel=1e-6)]]
        assert "_hparams_/session_start_info" in plugins


@pytest.mark.extras
def test_wandb_works_without_a_network(tmp_path: Path) -> None:
    """Offline it writes a run, whose file has the names of the curves and of the records' figures."""
    done = completed(
        [sys.executable, "-m", "benchbd", "run", "--board", "smoke", "--attack", "none", "--defense", "ft", "--json"],
        BENCHBD_WANDB="encoders",
        WANDB_MODE="offline",
        WANDB_DIR=str(tmp_path),
        BENCHBD_STORE=str(tmp_path / "store"),
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert done.stdout.startswith("{")
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name in (b"pretrain/simclr-", b"defend/ft-", b"none/ft/shapes/shapes:3/mlp/seed1/asr_nontarget"):
        assert name in content


@pytest.mark.extras
def test_wandb_without_a_login_asks_nobody(tmp_path: Path) -> None:
    """At a terminal W&B would ask who logs in, and the run would wait."""
    terminal, theirs = os.openpty()
    command = ["-m", "benchbd", "run", "--board", "smoke", "--attack", "none", "--defense", "none", "--only"]
    ours = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_DIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, *command],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("WANDB")},
            **ours,
            "BENCHBD_WANDB": "encoders",
            "BENCHBD_STORE": str(tmp_path / "store"),
            "TERM": "xterm",
        },
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 4096):
            said += part
    os.close(terminal)
    assert process.wait() == 0, said.decode()
    assert b"No API key configured" in said
    assert b"Enter your choice" not in said

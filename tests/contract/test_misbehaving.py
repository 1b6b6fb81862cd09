"""Plugins that misbehave: whatever one raises or returns, the run continues without it, or does not begin."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from pydantic import ConfigDict, Field, field_validator
from torch import nn

from benchbd import (
    Dataset,
    DefenderKnowledge,
    Detection,
    Encoder,
    Evaluator,
    ImageSet,
    Mitigation,
    Predictions,
    Verdict,
    hookimpl,
    keep,
    note,
)
from benchbd.base.errors import DataError, PluginError, StoreError, UsageError
from benchbd.base.process import Stopped
from benchbd.cli.main import main
from benchbd.nets.encoder import W16
from benchbd.records.files import read_records
from benchbd.registry import load_registry
from benchbd.stages.base import ENCODER
from benchbd.testing import toy_images

from ..boards import Tiny, Watch, offering

ALONE = {"attacks": ("none",), "defenses": ("none", "odd")}


class Odd(Mitigation):
    """A defense that follows the test's instructions."""

    name = "odd"
    paper = "test"
    version = "1"
    act: ClassVar[Any] = staticmethod(lambda encoder: encoder)

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return type(self).act(encoder)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny board's clean encoder and its evaluation: tests copy the store."""
    tiny = Tiny(tmp_path_factory.mktemp("clean"), load_registry())
    tiny.run(attacks=("none",), defenses=("none",))
    return tiny


@pytest.fixture
def again(clean: Tiny, tmp_path: Path) -> Callable[..., Tiny]:
    """The tiny board with a copy of that store and these plugins."""

    def copied(**plugins: Any) -> Tiny:
        tiny = Tiny(tmp_path / "again", load_registry(extra=plugins))
        shutil.copytree(clean.store, tiny.store)
        return tiny

    return copied


def offered(*classes: Any, axis: str = "defenses") -> Any:
    return offering(**{f"benchbd_{axis}": list(classes)})


def variant(**members: Any) -> type[Odd]:
    return type("Odd", (Odd,), {"__module__": __name__, "__doc__": "Odd.", **members})


def raising(error: Any) -> Any:
    def act(*_: Any) -> Any:
        raise error

    return staticmethod(act)


class Bye(BaseException):
    """An error of an unexpected type."""


class MuteError(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)

    __repr__ = __str__


class Halt(KeyboardInterrupt):
    """A plugin's own."""


# A stage fails, the run goes on ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Bye("so long"), "defend odd: Bye: so long (traceback in logs/"),
        (GeneratorExit(), "defend odd: GeneratorExit: no message (traceback in logs/"),
        (SystemExit(0), "defend odd: SystemExit: 0 (traceback in logs/"),
        (Halt("enough"), "defend odd: Halt: enough (traceback in logs/"),
        (MuteError(), "defend odd: MuteError: its message cannot be read (SystemExit) (traceback in logs/"),
        (RuntimeError("\ud800\x00" + "x" * 9999), "defend odd: RuntimeError: \\ud800"),
        (StoreError("the store is full"), "defend odd: StoreError: the store is full"),
        (UsageError("steps: must be 3"), "defend odd: steps: must be 3"),
        (DataError("no images"), "defend odd: no images"),
        (PluginError("no contract"), "defend odd: no contract"),
    ],
)
def test_whatever_a_method_raises_fails_its_stage_alone(
    again: Callable[..., Tiny], error: BaseException, reason: str
) -> None:
    tiny = again(odd=offered(variant(act=raising(error))))
    kept, failed = tiny.run(**ALONE)
    assert (kept.status, failed.status) == ("ok", "error")
    assert failed.reason.startswith(reason)
    assert len(failed.reason) < 700
    assert len(read_records(tiny.store / "records" / "tiny")) == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped(15)])
def test_the_user_still_ends_the_run(again: Callable[..., Tiny], stop: BaseException) -> None:
    class Interrupted:
        @hookimpl
        def benchbd_stage_finished(self) -> None:
            raise stop

    tiny = again(odd=offered(variant(act=raising(stop))))
    with pytest.raises(type(stop)):
        tiny.run(**ALONE)
    tiny.registry = load_registry(extra={"interrupted": Interrupted()})
    with pytest.raises(type(stop)):
        tiny.run(attacks=("none",), defenses=("none",))


def noting(name: Any, value: Any) -> Any:
    def act(encoder: Encoder) -> Encoder:
        note(name, value)
        return encoder

    return staticmethod(act)


def keeping(name: Any, tensor: Any) -> Any:
    def act(encoder: Encoder) -> Encoder:
        keep(name, tensor)
        return encoder

    return staticmethod(act)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (noting("x", object()), "note 'x' cannot be kept as JSON: Object of type object is not JSON serializable"),
        (noting("x", float("nan")), "note 'x' cannot be kept as JSON: Out of range"),
        (noting("x", "\ud800"), "note 'x' cannot be kept as JSON: 'utf-8' codec"),
        (noting("x", nested(40)), "note 'x' cannot be kept as JSON: nested deeper than 32 levels"),
        (noting("x", nested(100_000)), "note 'x' cannot be kept as JSON: maximum recursion depth"),
        (noting(3, 4), "note 3 cannot be kept as JSON: 3"),
        (noting("remarks", 5), "note 'remarks' must be a list of lines"),
        (noting("remarks", "text"), "note 'remarks' must be a list of lines"),
        (noting("remarks", [1]), "note 'remarks' must be a list of lines"),
        (keeping("x", torch.eye(2).to(torch.complex128)), "KeyError: torch.complex128"),
        (keeping(3, torch.eye(2)), "keep takes a name and a tensor, not 3 and tensor("),
    ],
)
def test_findings_that_cannot_be_kept_fail_the_stage(again: Callable[..., Tiny], act: Any, reason: str) -> None:
    kept, failed = again(odd=offered(variant(act=act))).run(**ALONE)
    assert (kept.status, failed.status) == ("ok", "error")
    assert reason in failed.reason


def test_a_note_is_what_it_was_when_it_was_noted(again: Callable[..., Tiny]) -> None:
    def act(encoder: Encoder) -> Encoder:
        note("x", values := [1])
        values.append(values)
        return encoder

    assert again(odd=offered(variant(act=staticmethod(act)))).run(**ALONE)[1].findings["defend"] == {"x": [1]}


def test_an_evaluator_and_a_detector_that_leave(again: Callable[..., Tiny]) -> None:
    class Judge(Evaluator):
        """Exits."""

        name = "judge"
        paper = "test"
        version = "1"
        layers: list[int] = Field([1, 2], description="a field that has no hash")

        def evaluate(self, probe: Any) -> Predictions:
            raise Bye

    class Guard(Detection):
        """Exits."""

        name = "guard"
        paper = "test"
        version = "1"

        def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
            raise StoreError("not yours")

    tiny = again(judge=offered(Judge, axis="evaluators"), guard=offered(Guard, axis="detections"))
    asked = {"attacks": ("none",), "defenses": ("none",), "evaluators": ("judge", "mlp"), "detections": ("guard",)}
    session = tiny.session(**asked)
    assert [record.status for record in session.run()] == ["error", "ok"]
    (found,) = session.inspect()
    assert (found.status, found.reason) == ("error", "detect guard: StoreError: not yours")


# Encoders that are not what they claim --------------------------------------------------------------------------------


class Saved(W16):
    """A subclass with a file of its own."""

    def save(self, path: str | Path) -> None:
        Path(path).write_text("mine")


def subclass(encoder: Encoder) -> Encoder:
    other = Saved("w16")
    other.load_state_dict(encoder.state_dict())
    return other


def foreign(encoder: Encoder) -> Encoder:
    encoder.body["layer1"] = nn.Identity()
    return encoder


def more(encoder: Encoder) -> Encoder:
    encoder.extra = nn.Linear(2, 2)
    return encoder


def other_stem(encoder: Encoder) -> Encoder:
    encoder.stem[0] = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
    return encoder


def smooth(encoder: Encoder) -> Encoder:
    encoder.stem[2] = nn.GELU()  # has no tensors
    return encoder


def lying(encoder: Encoder) -> Encoder:
    encoder.arch = "w32"
    return encoder


def hooked(encoder: Encoder) -> Encoder:
    encoder.body["layer1"].register_forward_hook(lambda module, given, out: out * 0)
    return encoder


def replaced_forward(encoder: Encoder) -> Encoder:
    encoder.forward = lambda x: torch.rand(len(x), 64)  # type: ignore[method-assign]
    return encoder


def with_nan(encoder: Encoder) -> Encoder:
    encoder.body["layer2"][0].bn1.running_var[3] = float("nan")  # type: ignore[index,union-attr]
    return encoder


def half_mask(encoder: Encoder) -> Encoder:
    encoder.mask.fill_(0.5)
    return encoder


PLAIN = "defend odd: defense odd must return a plain w16 encoder: "
OTHER = "defend odd: defense odd must return an encoder that is its weights alone: they give other features"


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (
            subclass,
            "defend odd: defense odd must return a benchbd.Encoder, not its subclass Saved, which no file can hold",
        ),
        (foreign, f"{PLAIN}it has no body.layer1.0.conv1.weight"),
        (more, f"{PLAIN}it has a tensor extra.weight, of which the architecture knows nothing"),
        (other_stem, f"{PLAIN}its stem.0.weight is (16, 3, 3, 3), not (16, 3, 4, 4)"),
        (lambda encoder: encoder.double(), f"{PLAIN}its mean is float64, not float32"),
        (lambda encoder: encoder.half(), f"{PLAIN}its mean is float16, not float32"),
        (lying, "defend odd: defense odd must return a w16 encoder, not w32"),
        (smooth, OTHER),
        (hooked, OTHER),
        (replaced_forward, OTHER),
        (with_nan, "defend odd: the weights are not finite: body.layer2.0.bn1.running_var has NaN or infinity"),
        (half_mask, "defend odd: defense odd must return an encoder whose mask is 0 or 1 per channel"),
    ],
)
def test_an_encoder_that_no_file_can_hold_fails_its_stage(again: Callable[..., Tiny], act: Any, reason: str) -> None:
    tiny = again(odd=offered(variant(act=staticmethod(act))))
    kept, failed = tiny.run(**ALONE)
    assert (kept.status, failed.status) == ("ok", "error")
    assert failed.reason == reason
    assert "defend" not in failed.stages  # nothing was stored


def in_training_mode(encoder: Encoder) -> Encoder:
    encoder.train()
    encoder.project(encoder(torch.rand(4, 3, 32, 32))).sum().backward()
    return encoder


def own_save(encoder: Encoder) -> Encoder:
    encoder.save = lambda path: None  # type: ignore[method-assign]
    return encoder


@pytest.mark.parametrize("act", [in_training_mode, own_save])
def test_an_encoder_is_stored_as_its_weights(again: Callable[..., Tiny], act: Any) -> None:
    tiny = again(odd=offered(variant(act=staticmethod(act))))
    stored = tiny.run(**ALONE)[1]
    assert (stored.status, stored.reason) == ("ok", "")
    Encoder.load(tiny.blob(stored.stages["defend"], ENCODER))


# A plan's calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [-1, float("nan"), "many", True, 10**30, Bye("no"), 1.5])
def test_a_cost_that_is_none_is_a_question_mark(
    again: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    def forwards(self: Any, images: int) -> Any:
        if isinstance(told, BaseException):
            raise told
        return told

    tiny = again(odd=offered(variant(forwards=forwards)))
    monkeypatch.setattr("benchbd.api.load_registry", lambda: tiny.registry)
    monkeypatch.setenv("COLUMNS", "300")  # wide: no column is left out
    arguments = ["--only", "--attack", "none", "--defense", "odd", "--defense", "none"]
    result = CliRunner().invoke(main, ["plan", *tiny.arguments, *arguments])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("defend ")]
    assert line.split()[-2:] == ["?", "?"]
    wrong = "raised Bye: no" if isinstance(told, Bye) else f"must give a whole number from 0 on or None, not {told!r}"
    assert result.stderr == f"warning: defend odd: its cost is not known: forwards() {wrong}\n"
    stages = json.loads(CliRunner().invoke(main, ["plan", *tiny.arguments, *arguments, "--json"]).stdout)["stages"]
    assert [stage["image_forwards"] for stage in stages if stage["kind"] == "defend"] == [None]


@pytest.mark.parametrize("told", [7, Bye("no"), "\ud800"])
def test_a_remark_that_is_none_does_not_end_a_run_that_has_computed(
    again: Callable[..., Tiny], caplog: pytest.LogCaptureFixture, told: Any
) -> None:
    def shortened(self: Any, images: int) -> Any:
        if isinstance(told, BaseException):
            raise told
        return told

    with caplog.at_level(logging.WARNING, "benchbd"):
        kept, odd = again(odd=offered(variant(shortened=shortened))).run(**ALONE)
    assert odd.metrics == kept.metrics
    if told == "\ud800":
        assert odd.notes == ["\\ud800"]
    else:
        assert odd.notes == []
        assert [line.startswith("defend odd: shortened() ") for line in caplog.messages] == [True]


class Fussy(Odd):
    """Options with which it cannot be planned."""

    name = "fussy"
    how: str = Field("well", description="which")

    @field_validator("how")
    @classmethod
    def _check(cls, how: str) -> str:
        if how == "silent":
            raise ValueError
        if how == "raise":
            raise Bye("no")
        return how

    def identity(self) -> dict[str, Any]:
        if self.how == "leave":
            raise SystemExit(0)
        return {} if self.how == "bare" else super().identity()


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("silent", "fussy.how: is not valid (got 'silent')"),
        ("raise", "fussy: its validation raised Bye: no"),
        ("leave", "defense fussy: identity() raised SystemExit: 0"),
        ("bare", "defense fussy: identity() must hold axis, name, version, options as Method.identity() does, not {}"),
    ],
)
def test_options_with_which_nothing_can_be_planned_are_one_line(
    clean: Tiny, monkeypatch: pytest.MonkeyPatch, how: str, complaint: str
) -> None:
    registry = load_registry(extra={"fussy": offered(Fussy)})
    monkeypatch.setattr("benchbd.api.load_registry", lambda: registry)
    for command in ("run", "plan"):
        chosen = ["--only", "--attack", "none", "--defense", "fussy", "-o", f"fussy.how={how}"]
        result = CliRunner().invoke(main, [command, *clean.arguments, *chosen])
        assert result.exit_code == 2
        assert result.stderr == f"error: {complaint}\n"
        assert result.stdout == ""


def test_an_option_nested_without_end_is_one_line(clean: Tiny) -> None:
    result = CliRunner().invoke(main, ["plan", *clean.arguments, "-o", "ft.lr=" + "[" * 100_000])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ft.lr: input should be a valid number")
    assert len(result.stderr) < 300


# Data sets ---------------------------------------------------------------------------------------------------------


def the_images(classes: Any = ("a", "b", "c"), pixels: torch.Tensor | None = None) -> ImageSet:
    images = toy_images(60).pixels if pixels is None else pixels
    return ImageSet(images, torch.arange(len(images)) % 3, classes)


class OddImages(ImageSet):
    """A subclass."""


@pytest.mark.parametrize(
    ("work", "told", "complaint"),
    [
        ("load", RuntimeError("boom"), "data set odd-set: load() raised RuntimeError: boom"),
        ("load", SystemExit(0), "data set odd-set: load() raised SystemExit: 0"),
        ("load", Bye("so long"), "data set odd-set: load() raised Bye: so long"),
        ("load", MuteError(), "data set odd-set: load() raised MuteError: its message cannot be read (SystemExit)"),
        ("load", StoreError("full"), "data set odd-set: full"),
        ("load", DataError("no images"), "data set odd-set: no images"),
        ("load", None, "odd-set: load() must return a benchbd.ImageSet, not NoneType"),
        ("load", OddImages(toy_images(60).pixels), "odd-set: load() must return a benchbd.ImageSet, not OddImages"),
        ("load", the_images((1, 2, 3)), "odd-set: class names must be a tuple of texts, not (1, 2, 3)"),
        ("load", the_images(["a"]), "odd-set: class names must be a tuple of texts, not ['a']"),
        ("load", the_images(pixels=toy_images(60).pixels.to("meta")), "odd-set: load() raised NotImplementedError: "),
        ("sources", SystemExit(0), "data set odd-set: sources() raised SystemExit: 0"),
        ("sources", None, "data set odd-set: sources() raised TypeError: 'NoneType' object is not iterable"),
        ("sources", ["train.bin"], "data set odd-set: sources() must give paths in "),
        ("sources", [Path("/etc/passwd")], "data set odd-set: sources() must give paths in "),
        ("identity", Bye("no"), "data set odd-set: identity() raised Bye: no"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, told: Any, complaint: str
) -> None:
    silent: list[bool] = []

    class OddSet(Dataset):
        """Odd."""

        name = "odd-set"
        version = "1"
        needs_files = False

        def load(self, split: str, root: Path) -> ImageSet:
            return self._told("load", the_images())

        def sources(self, split: str, root: Path) -> list[Path]:
            return self._told("sources", [])

        def identity(self) -> dict[str, Any]:
            return self._told("identity", super().identity())

        def _told(self, what: str, right: Any) -> Any:
            if what != work or not silent:
                return right
            if isinstance(told, BaseException):
                raise told
            return told

    registry = load_registry(extra={"odd": offered(OddSet, axis="datasets")})
    assert registry.problems == []
    silent.append(True)  # the class is asked for its identity when it is registered
    monkeypatch.setattr("benchbd.api.load_registry", lambda: registry)
    tiny = Tiny(tmp_path, registry)
    tiny.board.write_text(tiny.board.read_text().replace('"pool"', '"odd-set"'))
    for command in ("plan", "run"):
        chosen = ["--only", "--attack", "none", "--defense", "none", "--quiet"]
        result = CliRunner().invoke(main, [command, *tiny.arguments, *chosen])
        assert (result.exit_code, result.stdout) == (2, "")
        assert complaint in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("error", [SystemExit(0), Bye("so long"), MuteError()])
def test_a_download_that_leaves_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    class Far(Dataset):
        """Far."""

        name = "far"
        version = "1"

        def load(self, split: str, root: Path) -> ImageSet:
            return the_images()

        def download(self, root: Path) -> None:
            raise error

    registry = load_registry(extra={"far": offered(Far, axis="datasets")})
    monkeypatch.setattr("benchbd.api.load_registry", lambda: registry)
    tiny = Tiny(tmp_path, registry)
    tiny.board.write_text(tiny.board.read_text().replace('"pool"', '"far"'))
    result = CliRunner().invoke(main, ["run", *tiny.arguments, "--download", "--quiet"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: far: the download failed (")
    assert result.stdout == ""


def test_what_a_data_set_leaves_changed_is_put_back(tmp_path: Path) -> None:
    def spoil(self: Any, *_: Any) -> Any:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return the_images()

    members = {"__module__": __name__, "__doc__": "Spoils.", "name": "spoils", "version": "1", "needs_files": False}
    spoils = type("Spoils", (Dataset,), {**members, "load": spoil, "__annotations__": {}})
    registry = load_registry(extra={"spoils": offered(spoils, axis="datasets")})
    assert registry.problems == []
    tiny = Tiny(tmp_path, registry)
    tiny.board.write_text(tiny.board.read_text().replace('"pool"', '"spoils"'))
    tiny.plan(attacks=("none",), defenses=("none",))
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


# Observers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit(0), Bye("so long"), MuteError(), Halt()])
def test_an_observer_that_leaves_is_named_and_ignored(
    clean: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    class Leaving:
        @hookimpl
        def benchbd_stage_started(self) -> None:
            raise error

        @hookimpl
        def benchbd_stage_finished(self) -> None:
            raise error

        @hookimpl
        def benchbd_record_finished(self) -> None:
            raise error

    watch = Watch()
    tiny = Tiny(tmp_path, load_registry(extra={"leaving": Leaving(), "watch": watch}))
    shutil.copytree(clean.store, tiny.store)
    monkeypatch.setattr("benchbd.api.load_registry", lambda: tiny.registry)
    chosen = ["--only", "--attack", "none", "--defense", "none", "--seed", "1", "--seed", "2"]
    result = CliRunner().invoke(main, ["run", *tiny.arguments, *chosen, "--json"])
    assert result.exit_code == 0
    assert [record["status"] for record in json.loads(result.stdout)["records"]] == ["ok", "ok"]
    named = [line for line in result.stderr.splitlines() if line.startswith("warning: observer leaving: benchbd_")]
    assert sorted(line.split()[3] for line in named) == [
        "benchbd_record_finished",
        "benchbd_stage_finished",
        "benchbd_stage_started",
    ]
    assert len(watch.of("cell")) == 2


# Names -------------------------------------------------------------------------------------------------------------


def test_a_run_with_a_plugin_called_terminal(clean: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load_registry(extra={"terminal": offered(variant(name="odd"))})
    monkeypatch.setattr("benchbd.api.load_registry", lambda: registry)
    chosen = ["--only", "--attack", "none", "--defense", "none"]
    result = CliRunner().invoke(main, ["run", *clean.arguments, *chosen])
    assert result.exit_code == 0, result.output
    assert "stages from the store" in result.stderr


def test_an_entry_point_of_300_characters_leaves_the_table_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load_registry(extra={"e" * 300: offered(variant(name="odd"))})
    monkeypatch.setattr("benchbd.registry.load_registry", lambda: registry)
    result = CliRunner().invoke(main, ["plugins"], env={"COLUMNS": "80"})
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "e" * 30 + "..." in result.stdout
    names = [plugin["name"] for plugin in json.loads(CliRunner().invoke(main, ["plugins", "--json"]).stdout)]
    assert "e" * 300 in names


def test_defaults_of_every_sort_are_shown(clean: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shown(Odd):
        """Has odd defaults."""

        name = "shown"
        model_config = ConfigDict(arbitrary_types_allowed=True)
        steps: int = Field(3, description="steps")
        twice: int = Field(default_factory=lambda data: 2 * data["steps"], description="from another field")
        place: Path | None = Field(Path("/nowhere"), exclude=True, description="a path")
        kinds: frozenset[str] = Field(frozenset({"a"}), description="a set")

    registry = load_registry(extra={"shown": offered(Shown)})
    assert registry.problems == []
    monkeypatch.setattr("benchbd.registry.load_registry", lambda: registry)
    result = CliRunner().invoke(main, ["show", "shown", "--json"])
    assert result.exit_code == 0, result.output
    defaults = {option["name"]: option["default"] for option in json.loads(result.stdout)["options"]}
    assert defaults == {"steps": 3, "twice": 6, "place": "/nowhere", "kinds": ["a"]}
    assert CliRunner().invoke(main, ["show", "shown"]).exit_code == 0


@pytest.mark.parametrize("letter", ["x", "\u00e9"])
def test_a_record_of_long_names_is_written_and_read(again: Callable[..., Tiny], letter: str) -> None:
    """Data sets are folders, whose names may be as long as a file's: two give a name that is too long."""
    tiny = again()
    long = letter * (200 // len(letter.encode()))
    for name in ("pool", "task"):
        (tiny.data / name).rename(tiny.data / f"{long}-{name}")
    board = tiny.board.read_text().replace('"pool"', f'"{long}-pool"').replace("task:1", f"{long}-task:1")
    tiny.board.write_text(board.replace("\ntask =", f'\n"{long}-task" ='))
    first, second = tiny.run(**{**ALONE, "defenses": ("none", "scratch")})
    assert first.name != second.name
    assert all(len(record.name.encode()) <= 205 for record in (first, second))
    assert {record.name for record in read_records(tiny.store / "records" / "tiny")} >= {first.name, second.name}

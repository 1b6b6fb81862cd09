"""The command line: output and its stream, exit codes, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from benchbd import Mitigation, NotApplicable, Trigger
from benchbd.cli.main import main
from benchbd.planning.board import boards_folder
from benchbd.records.models import Record
from benchbd.registry import load_registry

from ..boards import TINY, Tiny, drive, ended, flip, in_flight, offering
from ..conftest import write_npz_set


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny board, computed once; tests that only read may use it."""
    tiny = Tiny(tmp_path_factory.mktemp("cli"), load_registry())
    assert call("run", *tiny.arguments, "--quiet").exit_code == 0
    return tiny


@pytest.fixture
def tiny(ran: Tiny, tmp_path: Path) -> Tiny:
    """The tiny board with a copy of the computed store."""
    copy = Tiny(tmp_path / "tiny", ran.registry)
    shutil.copytree(ran.store, copy.store)
    return copy


# Help ----------------------------------------------------------------------------------------------------------------


def test_help() -> None:
    whole = call("--help")
    assert whole.exit_code == 0
    for command in ("run", "plan", "list", "show", "plugins", "leaderboard"):
        assert f"\n  {command} " in whole.stdout
    told = call("run", "-h").stdout
    options = ["--board", "--attack", "--defense", "--pretrain", "--task", "--seed", "-o, --option", "--evaluator"]
    for option in [*options, "--data-root", "--store", "--json", "--download", "--device", "--quiet"]:
        assert option in told
    assert call("--version").stdout == "benchbd, version 0.1.0\n"


def test_what_only_reads_records_imports_no_torch(ran: Tiny, tmp_path: Path) -> None:
    build = ["leaderboard", "build", ran.board, "--store", ran.store, "--out", tmp_path / "out"]
    program = "import sys; from benchbd.cli.main import main; main(sys.argv[1:], standalone_mode=False)"
    program += "; assert 'torch' not in sys.modules, 'torch'; assert 'benchbd_plugins' not in sys.modules"
    for arguments in (["--help"], ["run", "--help"], ["leaderboard", "--help"], build):
        done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# Output --------------------------------------------------------------------------------------------------------------


def test_json_is_one_document_of_the_promised_shape(ran: Tiny) -> None:
    result = call("run", *ran.arguments, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert list(document) == ["board", "records", "detections"]
    assert document["board"] == "tiny"
    assert len(document["records"]) == 6
    for record in document["records"]:
        assert (record["pretrain"], record["task"], record["target"], record["seed"]) == ("pool", "task", 1, 1)
        assert record["attack"] in ("none", "badencoder")
        assert record["defense"] in ("none", "scratch", "ft")
        assert record["status"] == "ok"
        assert len(bytes.fromhex(record["key"])) == 32
        assert set(record["metrics"]) == {"acc", "asr", "asr_nontarget", "ra", "certified"}
        assert set(record["baseline"]) == {"ca", "asr_b", "asr_b_nontarget", "ra_b"}
        assert record["metrics"].pop("certified") is None
        for value in (*record["metrics"].values(), *record["baseline"].values()):
            assert 0 <= value <= 100
        assert isinstance(record["seconds"], float)
        assert record.pop("judged")["status"] in ("ok", "attack-failed", "collapsed")
        Record.model_validate(record)
    lines = result.stderr.splitlines()
    assert lines[0] == "11 stages from the store"
    assert len([line for line in lines if line.startswith("  = ")]) == 6


def test_table_on_stdout_and_progress_on_stderr(ran: Tiny) -> None:
    result = call("run", *ran.arguments)
    rows = [line.split()[:2] for line in result.stdout.splitlines() if line.startswith(("none", "badencoder"))]
    assert rows == [[a, d] for a in ("none", "badencoder") for d in ("none", "scratch", "ft")]
    assert "stages from the store" in result.stderr
    assert "ACC" not in result.stderr.splitlines()[0]


def test_quiet_says_nothing_but_the_table(ran: Tiny) -> None:
    result = call("run", *ran.arguments, "--quiet")
    assert result.stderr == ""
    assert result.stdout == call("run", *ran.arguments).stdout


def test_plan_in_both_forms(ran: Tiny, tmp_path: Path) -> None:
    everywhere = call("plan", *ran.arguments, "--json")
    document = json.loads(everywhere.stdout)
    assert (document["board"], document["cells"], document["departures"]) == ("tiny", 6, [])
    assert len(document["stages"]) == 11
    for stage in document["stages"]:
        assert {"key", "kind", "method", "cached"} <= set(stage)
        assert stage["cached"]
        assert len(stage["key"]) == 64
    assert "6 cells, 11 distinct stages, 11 cached, 0 to compute" in call("plan", *ran.arguments).stdout

    changed = json.loads(call("plan", *ran.arguments, "-o", "ft.lr=0.01", "--json").stdout)
    fresh = [(s["kind"], s["method"]) for s in changed["stages"] if not s["cached"]]
    assert sorted(fresh) == [("defend", "ft")] * 2 + [("evaluate", "mlp")] * 2
    text = call("plan", *ran.arguments, "-o", "ft.lr=0.01").stdout
    assert "off-board: ft.lr=0.01 (the board's: 0.001), in 2 of 6\n" in text
    assert "6 cells, 11 distinct stages, 7 cached, 4 to compute" in text

    empty = [*ran.arguments, "--store", tmp_path / "empty"]
    assert not any(stage["cached"] for stage in json.loads(call("plan", *empty, "--json").stdout)["stages"])
    assert not (tmp_path / "empty" / "stages").exists()


def test_a_plan_has_totals(ran: Tiny, tmp_path: Path) -> None:
    fresh = [*ran.arguments, "--store", tmp_path / "fresh"]
    stages = json.loads(call("plan", *fresh, "--json").stdout)["stages"]
    known = [stage["image_forwards"] for stage in stages if stage["image_forwards"] is not None]
    text = call("plan", *fresh).stdout
    unknown = len(stages) - len(known)
    assert f"image-forwards to compute: {sum(known):,}" + (f" and {unknown} stage" if unknown else "\n") in text
    assert "estimated: unknown (the store has no past stages of these methods)" in text
    changed = call("plan", *ran.arguments, "-o", "ft.lr=0.01").stdout
    assert re.search(r"^image-forwards to compute: [\d,]+\nestimated: \d+ s \(from what past stages", changed, re.M)
    assert "to compute:" not in call("plan", *ran.arguments).stdout


def test_a_large_plan_is_summed_up(ran: Tiny) -> None:
    seeds = [part for seed in range(1, 8) for part in ("--seed", seed)]
    text = call("plan", *ran.arguments, *seeds).stdout
    assert "6 cells" not in text
    assert "42 cells, 77 distinct stages, 11 cached, 66 to compute" in text
    assert "summed up by kind and method; --json has every stage" in text
    rows = {tuple(line.split()[:2]): line.split()[2:5] for line in text.splitlines() if line[:1].islower()}
    assert rows["defend", "ft"] == ["14", "2", "12"]
    assert rows["evaluate", "mlp"] == ["35", "5", "30"]
    assert len(json.loads(call("plan", *ran.arguments, *seeds, "--json").stdout)["stages"]) == 77


def test_what_stands_beside_a_defense_is_marked(tiny: Tiny) -> None:
    chosen = [*tiny.arguments, "--attack", "badencoder", "--defense", "ft"]
    records = json.loads(call("run", *chosen, "--json").stdout)["records"]
    found = {(record["attack"], record["defense"]): record.get("context") for record in records}
    assert found == {
        ("none", "none"): True,
        ("badencoder", "none"): True,
        ("badencoder", "scratch"): True,
        ("badencoder", "bn"): True,
        ("badencoder", "ft"): None,
    }
    assert all(record["on_board"] for record in records)
    rows = [line.split()[:2] for line in call("run", *chosen).stdout.splitlines() if line.startswith(("none", "bad"))]
    order = ("none", "scratch", "ft", "bn")  # the board's defenses, then the others
    assert rows == [
        [attack, defense] for attack in ("none", "badencoder") for defense in order if (attack, defense) in found
    ]
    (record,) = json.loads(call("run", *chosen, "--only", "--json").stdout)["records"]
    assert record.pop("judged")["status"] == "attack-failed"  # two steps of BadEncoder have no effect
    assert Record.model_validate(record).defense == "ft"
    assert "5 cells, 11 distinct stages" in call("plan", *chosen).stdout
    assert "4 of the cells stand beside those asked for; --only leaves them out" in call("plan", *chosen).stdout
    assert json.loads(call("plan", *chosen, "--json").stdout)["context"] == 4
    assert json.loads(call("plan", *chosen, "--only", "--json").stdout)["cells"] == 1


def test_plan_marks_absent_data(ran: Tiny) -> None:
    result = call("plan", *ran.arguments, "--task", "gtsrb:12")
    assert result.exit_code == 0
    assert "absent data sets, so keys are provisional: gtsrb (test), gtsrb (train)" in result.stdout
    stages = json.loads(call("plan", *ran.arguments, "--task", "gtsrb:12", "--json").stdout)["stages"]
    assert {stage["kind"] for stage in stages if stage["provisional"]} == {"reference", "attack", "defend", "evaluate"}
    assert call("run", *ran.arguments, "--task", "gtsrb:12").exit_code == 2


def test_plan_of_data_that_nobody_knows_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # wide: a line of advice is one line
    arguments = ["--board", "cifar10-small", "--data-root", tmp_path, "--store", tmp_path / "store"]
    result = call("plan", *arguments)
    assert result.exit_code == 0, result.stderr
    assert f"data set 'mnistm': not in {tmp_path / 'mnistm'}; put it there as Parquet" in result.stdout
    assert "--download fetches it" in result.stdout
    one_line(call("plan", *arguments, "--download"), "No such option '--download'")
    assert not list(tmp_path.iterdir())
    one_line(call("run", *arguments), "accepted: Parquet")


def test_plan_of_what_nobody_knows(ran: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # wide: no column is omitted
    result = call("plan", *ran.arguments, "--task", "shapse:3", "--attack", "none", "--defense", "none", "--only")
    assert "1 cell, 2 distinct stages, 1 cached, 1 to compute" in result.stdout
    assert "estimated: unknown (the store has no past stages of these methods)" in result.stdout
    (stage,) = [line for line in result.stdout.splitlines() if line.startswith("evaluate")]
    assert stage.split()[-2:] == ["?", "?"]


def test_plan_of_a_misspelt_data_set_offers_the_nearest(ran: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for arguments in (["--task", "tsk:1"], ["--pretrain", "pol"]):
        result = call("plan", *ran.arguments, *arguments)
        assert result.exit_code == 0
        assert "did you mean '" in result.stdout
        one_line(call("run", *ran.arguments, *arguments), "not in", "did you mean '")


def test_no_board_is_the_demo_and_says_so() -> None:
    result = call("plan", "--json")
    assert json.loads(result.stdout)["board"] == "demo"
    assert result.stderr.splitlines()[0] == (
        "no --board given: this is the demo board (generated images, small encoder)"
    )
    assert call("plan", "--quiet", "--json").stderr == ""


def test_list_in_both_forms() -> None:
    document = json.loads(call("list", "--json").stdout)
    axes = ["dataset", "pretraining", "trigger", "attack", "defense", "detection", "evaluator"]
    assert list(document) == [*axes, "architecture", "executor", "board"]
    assert {"none", "scratch", "ft", "mimic"} <= set(document["defense"])
    assert {"demo", "smoke", "cifar10-small", "table1"} <= set(document["board"])
    assert json.loads(call("list", "defenses", "--json").stdout) == {"defense": document["defense"]}
    text = call("list").stdout
    for axis, names in document.items():
        assert (f"{axis}\n" in text) == bool(names)
        assert all(f"\n  {name} " in text for name in names)
    longest = max(len(name) for names in document.values() for name in names)
    assert {line[longest + 2 : longest + 4] for line in text.splitlines() if line.startswith("  ")} == {"  "}


def test_show_in_both_forms() -> None:
    document = json.loads(call("show", "ft", "--json").stdout)
    assert {k: document[k] for k in ("axis", "name", "distribution")} == {
        "axis": "defense",
        "name": "ft",
        "distribution": "benchbd",
    }
    assert "MIMIC" in document["paper"]
    options = {option["name"]: option for option in document["options"]}
    assert set(options["lr"]) == {"name", "type", "bounds", "default", "help"}
    assert (options["lr"]["type"], options["lr"]["bounds"], options["lr"]["default"]) == (
        "float",
        "> 0, <= 1000",
        1e-3,
    )
    assert options["batch"]["bounds"] == ">= 2, <= 1000000"
    assert all(option["help"] for option in options.values())
    text = call("show", "ft").stdout
    assert text.startswith("defense ft (version ")
    assert all(name in text for name in options)
    assert re.search(r"^lr +float, > 0, <= 1000, default 0\.001\n +learning rate", text, re.MULTILINE)
    both = json.loads(call("show", "none", "--json").stdout)
    assert sorted(entry["axis"] for entry in both) == ["attack", "defense"]
    assert json.loads(call("show", "attack:none", "--json").stdout)["axis"] == "attack"


def test_show_an_architecture_and_an_executor() -> None:
    found = json.loads(call("show", "resnet50", "--json").stdout)
    assert found["stages"] == ["layer1", "layer2", "layer3", "layer4"]
    assert (found["distribution"], found["feature_dim"], found["parameters"]) == ("benchbd", 2048, 23_500_352)
    text = call("show", "architecture:resnet50").stdout
    assert text.startswith("architecture resnet50 (benchbd)\n\nResNet-50 with a 3x3 stem")
    assert re.search(r"^image size +32 to 224 pixels$", text, re.MULTILINE)
    assert "pip install 'benchbd[clip]'" in call("show", "clip-vit-b-32").stdout
    assert call("show", "inline").stdout.startswith("executor inline (benchbd)\n\nComputes one stage")
    one_line(call("show", "resnet5"), "unknown method 'resnet5': did you mean 'resnet50'?")
    one_line(call("show", "architecture:resnet5"), "unknown architecture 'resnet5': did you mean 'resnet50'?")
    one_line(call("show", "executor:inlin"), "unknown executor 'inlin': did you mean 'inline'?")


def test_what_cannot_be_built_here_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchbd.cli.describe.find_spec", lambda _: None)
    found = json.loads(call("show", "clip-rn50", "--json").stdout)
    assert (found["feature_dim"], found["image_size"], found["parameters"]) == (1024, 224, None)
    assert re.search(r"^parameters +-$", call("show", "clip-rn50").stdout, re.MULTILINE)


def test_show_a_part_of_the_protocol() -> None:
    document = json.loads(call("show", "trigger", "--json").stdout)
    assert {"kind", "size", "file", "position"} <= {option["name"] for option in document["options"]}
    assert all(option["help"] for option in document["options"])
    assert call("show", "budget").stdout.startswith("protocol budget\n")


def test_show_a_board() -> None:
    assert call("show", boards_folder() / "table1" / "board.toml").stdout == call("show", "table1").stdout
    text = call("show", "table1").stdout
    assert text.startswith("board table1: ")
    for part in ("cifar10 -> gtsrb:12", "stl10 -> cifar10:0", "attacks ", "defenses ", "seeds ", "clean images "):
        assert part in text
    assert "steps 100, batch 96" in call("show", "board:demo").stdout
    assert re.search(r"^detections +decree, lipschitz, patches$", call("show", "detect-shapes").stdout, re.MULTILINE)


def test_show_a_boards_sweeps_and_what_is_only_evaluated(tmp_path: Path) -> None:
    board = tmp_path / "mine.toml"
    board.write_text(
        'rows = [{ pretrain = "shapes", tasks = ["shapes:1"], also = ["shapes:2"] }]\n'
        '[[sweeps]]\nname = "size"\noption = "trigger.size"\nvalues = [3, 5]\n'
        '[[sweeps]]\nname = "rate"\npoints = { plain = [], slow = ["ft.lr=0.1", "ft.steps=2"] }\n'
    )
    text = " ".join(call("show", board).stdout.split())
    for part in (
        "evaluated too shapes -> shapes:2",
        "sweep size trigger.size = 3, 5",
        "sweep rate plain (the board itself); slow (ft.lr=0.1, ft.steps=2)",
    ):
        assert part in text


def test_compare_lays_records_beside_the_paper() -> None:
    text = call("compare", "cifar10-small").stdout
    assert "beside Table I of MIMIC" in text
    assert call("compare", "cifar10-small", "--paper").stdout == text  # an option of earlier versions
    assert "--paper" not in call("compare", "--help").stdout
    assert json.loads(call("compare", "cifar10-small", "--format", "json").stdout)
    one_line(call("compare", "smoke"), "no records of board smoke")


def test_an_axis_without_methods_says_so() -> None:
    registry = load_registry()
    registry.methods["detection"] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchbd.registry.load_registry", lambda: registry)
        assert call("list", "detection").stdout == "no detection is registered\n"


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "-o", LONG],
        ["plan", "-o", f"ft.lr={LONG}"],
        ["plan", "-o", f"ft.{LONG}=1"],
        ["plan", "-o", f"{LONG}.lr=1"],
        ["plan", "-o", f"{LONG}:ft.lr=1"],
        ["plan", "-o", f"trigger.size={LONG}"],
        ["plan", "-o", f"trigger.size={'9' * 5000}"],
        ["plan", "--attack", LONG],
        ["plan", "--task", LONG],
        ["plan", "--task", f"{LONG}:1"],
        ["plan", "--task", f"shapes:{LONG}"],
        ["plan", "--task", f"shapes:{'9' * 5000}"],
        ["plan", "--seed", "9" * 5000],
        ["plan", "--seed", LONG],
        ["plan", "--device", LONG],
        ["plan", "--pretrain", LONG],
        ["plan", f"--{LONG}"],
        ["show", LONG],
        ["list", LONG],
        [LONG],
        ["compare", "demo", "--format", LONG],
    ],
    ids=lambda arguments: " ".join(part[:20] for part in arguments),
)
def test_a_very_long_argument_is_not_echoed_whole(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert len(result.stderr) < 2500


def test_figures_of_a_file_that_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{}")
    for path, complaint in ((tmp_path / "text.json", "not a benchbd record"), (tmp_path / "none", "cannot be read")):
        result = CliRunner().invoke(main, ["figures", str(path)])
        assert result.exit_code == 2
        assert complaint in result.stderr
        assert result.stderr.count("\n") == 1
    document = json.loads(call("show", "demo", "--json").stdout)
    assert (document["name"], document["attacks"]) == ("demo", ["none", "badencoder"])


def test_list_has_the_data_sets_of_the_root(ran: Tiny) -> None:
    arguments = ["list", "dataset", "--data-root", ran.data]
    assert {"cifar10", "pool", "task"} <= set(json.loads(call(*arguments, "--json").stdout)["dataset"])
    assert f"  pool     In {ran.data / 'pool'}.\n" in call(*arguments).stdout


def test_plugins_as_json() -> None:
    found = {plugin["name"]: plugin for plugin in json.loads(call("plugins", "--json").stdout)}
    assert found["none"]["adds"] == {"attack": ["none"], "defense": ["none"]}
    assert {plugin["distribution"] for plugin in found.values()} == {"benchbd"}


def test_leaderboard_from_the_store(ran: Tiny, tmp_path: Path) -> None:
    common = ["leaderboard", "build", ran.board, "--store", ran.store]
    assert "| badencoder" in call(*common).stdout
    assert len(json.loads(call(*common, "--format", "json").stdout)) > 0
    out = tmp_path / "out"
    result = call(*common, "--out", out)
    assert result.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "board.csv",
        "board.json",
        "board.tex",
        "board.toml",
        "records",
    ]
    assert len(list((out / "records").glob("*.json"))) == 6
    again = call("leaderboard", "build", ran.board, "--records", out / "records")
    assert again.stdout == call(*common).stdout


def test_leaderboard_that_cannot_be_written(ran: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    common = ["leaderboard", "build", ran.board, "--store", ran.store]
    one_line(call(*common, "--out", tmp_path / "file" / "out"), "cannot be written", str(tmp_path / "file"))
    one_line(call(*common, "--out", tmp_path / "file"), "--out")


# The part of the grid ------------------------------------------------------------------------------------------------


def test_every_part_can_be_chosen(tiny: Tiny) -> None:
    chosen = ["--attack", "badencoder", "--defense", "none", "--pretrain", "pool", "--task", "task:2", "--seed", "7"]
    chosen += ["--only", "--pretraining", "simclr"]
    result = call("run", *tiny.arguments, *chosen, "--evaluator", "knn", "-o", "trigger.size=5", "--json")
    assert result.exit_code == 0
    (record,) = json.loads(result.stdout)["records"]
    assert [record[k] for k in ("attack", "defense", "task", "target", "seed", "evaluator")] == [
        "badencoder",
        "none",
        "task",
        2,
        7,
        "knn",
    ]
    assert record["on_board"] is False
    assert record["departures"] == [
        "trigger.size=5 (the board's: 10)",
        "task pool -> task:2",
        "evaluator knn",
        "seed not of the board (its seeds: 1)",
    ]
    # In the store the board's own records stay unchanged.
    assert len(list((tiny.store / "records" / "tiny").glob("*.json"))) == 7
    assert "trigger.size=5" in call("run", *tiny.arguments, *chosen, "-o", "trigger.size=5").stdout
    build = ["leaderboard", "build", tiny.board, "--store", tiny.store, "--format", "csv"]
    assert "trigger.size=5" not in call(*build).stdout
    assert "trigger.size=5" in call(*build, "--off-board").stdout


# Exit codes ----------------------------------------------------------------------------------------------------------


class Fussy(Mitigation):
    """Raises the test's error."""

    name = "fussy"
    paper = "test"
    version = "1"
    error: Any = None

    def repair(self, encoder: Any, knowledge: Any) -> Any:
        raise {"n/a": NotApplicable("no head"), "error": RuntimeError("boom")}[str(self.error)]


@pytest.mark.parametrize(("status", "code"), [("error", 1), ("n/a", 0)])
def test_a_failed_cell_is_exit_code_1(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, status: str, code: int) -> None:
    extra = {"fussy": offering(benchbd_defenses=[Fussy])}
    monkeypatch.setattr("benchbd.api.load_registry", lambda: load_registry(extra=extra))
    chosen = ["--defense", "fussy", "--defense", "ft", "-o", f"fussy.error={status}"]
    result = call("run", *tiny.arguments, *chosen, "--json")
    assert result.exit_code == code
    statuses = {(r["attack"], r["defense"]): r["status"] for r in json.loads(result.stdout)["records"]}
    assert {s for (_, defense), s in statuses.items() if defense == "fussy"} == {status}
    assert {s for (_, defense), s in statuses.items() if defense == "ft"} == {"ok"}
    assert "Traceback" not in result.stderr
    (line, _) = [line for line in result.stderr.splitlines() if f" {status} after " in line]
    assert re.match(r"\[2/8\] defend fussy on ", line)
    table = call("run", *tiny.arguments, *chosen)
    assert table.exit_code == code
    rows = [line for line in table.stdout.splitlines() if line.split()[1:2] == ["fussy"]]
    assert [status in row for row in rows] == [True, True], table.stdout


def test_what_a_method_prints_is_kept_out_of_the_document(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Chatty(Fussy):
        """Prints."""

        name = "chatty"

        def repair(self, encoder: Any, knowledge: Any) -> Any:
            print("hello from a plugin")
            return encoder

    extra = {"chatty": offering(benchbd_defenses=[Chatty])}
    monkeypatch.setattr("benchbd.api.load_registry", lambda: load_registry(extra=extra))
    result = call("run", *tiny.arguments, "--attack", "none", "--defense", "chatty", "--json")
    assert json.loads(result.stdout)["board"] == "tiny"
    assert "hello from a plugin" in result.stderr


def test_damage_does_not_change_the_exit_code(tiny: Tiny) -> None:
    before = call("run", *tiny.arguments).stdout
    key = json.loads(call("plan", *tiny.arguments, "--json").stdout)["stages"][0]["key"]
    flip(tiny.blob(key, "encoder.safetensors"))
    result = call("run", *tiny.arguments)
    assert result.exit_code == 0
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"encoder.safetensors of stage {key[:12]} is damaged" in warnings[0]
    assert result.stdout == before
    assert "warning" not in call("run", *tiny.arguments).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_128_and_its_number_and_keeps_what_is_done(tmp_path: Path, number: signal.Signals) -> None:
    tiny, log = Tiny(tmp_path, load_registry()), tmp_path / "log"
    process = drive(log, "run", *tiny.arguments, hang="defend")
    in_flight(process, log, "defend")
    process.send_signal(number)
    stdout, stderr = ended(process)
    assert process.returncode == 128 + number
    assert stdout == ""
    assert "Traceback" not in stderr
    *_, stage, last = stderr.splitlines()
    assert "interrupted after" in stage
    assert last == "interrupted: finished stages are kept; the same command goes on from there"
    stages = json.loads(call("plan", *tiny.arguments, "--json").stdout)["stages"]
    finished = {line.split()[1] for line in log.read_text().splitlines()[:-1]}
    assert {stage["key"] for stage in stages if stage["cached"]} == finished
    assert finished


def test_the_second_run_is_quick(ran: Tiny) -> None:
    """The command costs little beside the import of torch, in CPU time, which does not depend on the machine's load."""
    program = (
        "import sys, time, torch; imported = time.process_time()\n"
        "from benchbd.cli.main import main; main(sys.argv[1:], standalone_mode=False)\n"
        "assert not {'torch._dynamo', 'torchvision'} & set(sys.modules), 'seconds of imports that nothing needs'\n"
        "assert time.process_time() < 3 * imported, (imported, time.process_time())"
    )
    command = [sys.executable, "-c", program, "run", *ran.arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "11 stages from the store" in done.stderr


# Bad input -----------------------------------------------------------------------------------------------------------


def one_line(result: Result, *parts: str) -> None:
    """Exit 2 and a single line that starts with ``error:`` and contains every part, in any order."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


BAD_ARGUMENTS: list[tuple[list[str], list[str]]] = [
    (["--board", "dmo"], ["unknown board 'dmo'", "did you mean 'demo'"]),
    (["--board", "nowhere/board.toml"], ["nowhere/board.toml", "no such file"]),
    (["--attack", "badencodr"], ["unknown attack 'badencodr'", "did you mean 'badencoder'"]),
    (["--defense", "mimik"], ["unknown defense 'mimik'", "did you mean 'mimic'"]),
    (["--evaluator", "mpl"], ["unknown evaluator 'mpl'", "did you mean 'mlp'"]),
    (["--task", "tsk"], ["unknown task 'tsk'", "did you mean 'task'"]),
    (["--task", "pool"], ["'pool' is not of board tiny", "pool:3"]),
    (["--task", "task:9"], ["no class 9", "0..2"]),
    (["--task", "task:-1"], ["no class -1", "0..2"]),
    (["--task", "task:red"], ["unknown target class of task task 'red'"]),
    (["--task", ":1"], ["DATASET:TARGET"]),
    (["-o", "ft.lrr=1"], ["unknown option of ft 'lrr'", "did you mean 'lr'"]),
    (["-o", "clean_images=3"], ["write clean.images=3"]),
    (["-o", "trigg.size=3"], ["unknown method 'trigg'", "did you mean 'trigger'"]),
    (["--defense", "FT"], ["unknown defense 'FT'", "did you mean 'ft'"]),
    (["--defense", "decree", "-o", "decree.steps=3"], ["write defense:decree.steps=3"]),
    (["-o", "ftt.lr=1"], ["unknown method 'ftt'", "did you mean 'ft'"]),
    (["-o", "defence:ft.lr=1"], ["unknown axis 'defence'", "did you mean 'defense'"]),
    (["-o", "ft.lr=0"], ["ft.lr: input should be greater than 0 (got 0)"]),
    (["-o", "ft.lr=fast"], ["ft.lr: input should be a valid number"]),
    (["-o", "ft.lr=Infinity"], ["ft.lr: input should be a finite number"]),
    (["-o", "ft.schedule=cosin"], ["ft.schedule: input should be 'constant' or 'cosine' (got 'cosin')"]),
    (["-o", "mimic.lr=1"], ["mimic takes no part in this run"]),
    (["-o", "ft"], ["NAME.FIELD=VALUE"]),
    (["-o", "simclr.arch=w3"], ["simclr.arch"]),
    (["-o", "trigger.size=40"], ["a trigger of 40x40 does not fit a 32x32 image"]),
    (["-o", "trigger.siz=4"], ["unknown option of trigger 'siz'", "did you mean 'size'"]),
    (["-o", "trigger.file=/nowhere.npz"], ["/nowhere.npz: no such file"]),
    (["-o", "reference.file=/nowhere.npz"], ["/nowhere.npz: no such file"]),
    (["--device", "gpu"], ["device 'gpu'", "cpu"]),
    (["--device", "cuda:99"], ["CUDA devices"]),
]


@pytest.mark.parametrize(("arguments", "parts"), BAD_ARGUMENTS, ids=[" ".join(a) for a, _ in BAD_ARGUMENTS])
def test_bad_arguments(ran: Tiny, arguments: list[str], parts: list[str]) -> None:
    records = sorted((ran.store / "records" / "tiny").iterdir())
    one_line(call("run", *ran.arguments, *arguments), *parts)
    assert sorted((ran.store / "records" / "tiny").iterdir()) == records
    one_line(call("plan", *ran.arguments, *arguments), *parts)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--seed", "-1"],
        ["run", "--seed", "x"],
        ["run", "--sed", "1"],
        ["run", "extra"],
        ["plan", "--seed", "abc"],
        ["--sed"],
        ["show"],
        ["leaderboard", "biuld"],
        ["leaderboard", "build", "--format", "html"],
    ],
)
def test_usage_errors_of_click(arguments: list[str]) -> None:
    one_line(call(*arguments))


def test_no_command_is_a_call_for_help() -> None:
    for arguments in ([], ["leaderboard"]):
        result = call(*arguments)
        assert result.exit_code == 2
        assert result.output.startswith("Usage: ")


def test_unknown_names_elsewhere() -> None:
    one_line(call("rnu"), "unknown command 'rnu'", "did you mean 'run'")
    one_line(call("list", "defence"), "unknown axis 'defence'", "did you mean 'defense'")
    one_line(call("show", "mimik"), "unknown method 'mimik'", "did you mean 'mimic'")
    one_line(call("show", "attack:ft"), "unknown attack 'ft'")
    one_line(call("show", "atack:none"), "unknown axis 'atack'")
    one_line(call("leaderboard", "build", "dmo"), "did you mean 'demo'")
    one_line(call("leaderboard", "build", "smoke"), "no records of board smoke", "benchbd run --board smoke")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("clean.images = 16", "clan.images = 16", "unknown field 'clan': did you mean 'clean'"),
        (
            "[options.mimic]",
            "[options.nad]\nlr = -1\n[options.mimic]",
            "board tiny: nad.lr: input should be greater than 0",
        ),
        ("clean.images = 16", "clean.images = 61", "61 clean images, but the pool pool has 60"),
        ("seeds = [1]", "seeds = [", "tiny.toml"),
        ("[options.simclr]", "[options.smclr]", "unknown method 'smclr': did you mean 'simclr'"),
        ("[options.mimic]", "[options.mimc]", "unknown method 'mimc': did you mean 'mimic'"),
        ('tasks = ["task:1"]', 'tasks = ["task"]', "task 'task' has no target class"),
        ("steps = 2\nbatch = 16", "steps = -2\nbatch = 16", "simclr.steps: input should be greater than or equal to 0"),
    ],
)
def test_bad_boards(tmp_path: Path, old: str, new: str, part: str) -> None:
    assert old in TINY
    one_line(call("run", *Tiny(tmp_path, load_registry(), TINY.replace(old, new)).arguments), part)


def npz(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "task" / "train.npz"
        arrays = dict(np.load(path))
        edit(arrays)
        np.savez(path, **arrays)

    return change


def truncate(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:1000]) and None


def parquet(folder: Path) -> None:
    shutil.rmtree(folder / "task")
    (folder / "task").mkdir()
    for split in ("train", "test"):
        (folder / "task" / f"{split}-00000-of-00001.parquet").write_bytes(b"PAR1 but no more")


def picture(folder: Path) -> None:
    shutil.rmtree(folder / "task")
    for split in ("train", "test"):
        for label in ("a", "b"):
            for i in range(2):
                path = folder / "task" / split / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    (folder / "task" / "train" / "b" / "1.png").write_bytes(b"\x89PNG and no picture")


BAD_DATA: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "absent": (lambda folder: shutil.rmtree(folder / "task"), ["data set 'task': not in", "put it there as"]),
    "no test split": (lambda folder: (folder / "task" / "test.npz").unlink(), ["no test split"]),
    "label out of range": (npz(lambda a: a["y"].__setitem__(4, -3)), ["train.npz", "row 4", "-3"]),
    "another shape": (npz(lambda a: a.update(x=a["x"][:, :, :, :1])), ["train.npz", "(60, 32, 32, 1)"]),
    "floats": (npz(lambda a: a.update(x=a["x"] / 255)), ["train.npz", "float"]),
    "too few labels": (npz(lambda a: a.update(y=a["y"][:9])), ["train.npz"]),
    "an array less": (npz(lambda a: a.pop("y")), ["train.npz", "'y'"]),
    "truncated npz": (truncate("task/train.npz"), ["train.npz"]),
    "truncated pool": (truncate("pool/train.npz"), ["pool/train.npz"]),
    "corrupt Parquet": (parquet, ["train-00000-of-00001.parquet"]),
    "corrupt picture": (picture, ["1.png"]),
    "two layouts": (lambda f: (f / "task" / "train-0.parquet").write_bytes(b""), ["two layouts"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_known_before_anything_is_computed(tmp_path: Path, case: str) -> None:
    spoil, parts = BAD_DATA[case]
    tiny = Tiny(tmp_path, load_registry())
    spoil(tiny.data)
    one_line(call("run", *tiny.arguments), *parts)
    assert not list((tiny.store / "stages").iterdir())


def test_a_target_without_an_image(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, load_registry())
    npz(lambda a: a.update(y=np.where(a["y"] == 1, 0, a["y"])))(tiny.data)
    result = call("run", *tiny.arguments)
    warning, error = result.stderr.splitlines()
    assert result.exit_code == 2
    assert "no pictures of class 1; labels stay" in warning
    assert "no training image of target class 1" in error
    assert not list((tiny.store / "stages").iterdir())


def test_known_data_that_is_absent_says_where_and_how(ran: Tiny) -> None:
    one_line(call("run", *ran.arguments, "--task", "gtsrb:1"), "gtsrb", str(ran.data), "--download")


def test_a_trigger_for_another_size(ran: Tiny, tmp_path: Path) -> None:
    Trigger.square(10, 40).save(tmp_path / "t.npz")
    result = call("run", *ran.arguments, "-o", f"trigger.file={tmp_path / 't.npz'}")
    one_line(result, "the trigger is for 40x40 images, these are 32x32")


def test_a_reference_of_another_class(ran: Tiny, tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", x=np.zeros((1, 32, 32, 3), np.uint8), y=np.array([2]))
    one_line(call("run", *ran.arguments, "-o", f"reference.file={tmp_path / 'r.npz'}"), "no reference of class 1")


def test_a_store_that_cannot_be_written(ran: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file", tmp_path / "file" / "store", Path("/proc/benchbd")):
        one_line(call("run", *ran.arguments, "--store", store), str(store), "cannot be written", "--store")
    one_line(call("plan", *ran.arguments, "--store", tmp_path / "file"), "cannot be written", "is a file")


def test_an_empty_store_is_the_default(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCHBD_STORE", str(tiny.store))
    result = call("run", *tiny.arguments, "--store", "")
    assert result.exit_code == 0
    assert result.stderr.endswith(f"records: {tiny.store / 'records' / 'tiny'}\n")
    assert "11 stages from the store" in result.stderr


def test_home_is_expanded_in_every_path(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not expand ``--store=~/store``."""
    monkeypatch.setenv("HOME", str(tiny.folder))
    monkeypatch.chdir(tiny.folder)
    Trigger.square(5).save("~/patch.npz")
    places = ["--board=~/tiny.toml", "--device=cpu"]
    named = ["--data-root=~/data", "--store=~/store"]
    told = call("plan", *places, *named)
    assert (told.exit_code, told.stdout) == (0, call("plan", *tiny.arguments).stdout)
    patched = call("plan", *places, *named, "-o", "trigger.file=~/patch.npz")
    assert patched.stdout == call("plan", *tiny.arguments, "-o", f"trigger.file={tiny.folder}/patch.npz").stdout

    monkeypatch.setenv("BENCHBD_DATA", "~/data")
    monkeypatch.setenv("BENCHBD_STORE", "~/store")
    assert call("plan", *places).stdout == told.stdout
    assert call("list", "dataset").stdout == call("list", "dataset", "--data-root", tiny.data).stdout
    assert call("show", "~/tiny.toml").stdout == call("show", tiny.board).stdout
    built = call("leaderboard", "build", "~/tiny.toml", "--records=~/store/records/tiny", "--out=~/out")
    assert built.exit_code == 0
    assert (tiny.folder / "out" / "README.md").is_file()
    (record, *_) = sorted(tiny.store.glob("records/tiny/*.json"))
    drawn = call("figures", f"~/store/records/tiny/{record.name}", *places, "--out=~/drawn")
    assert drawn.exit_code == 0
    assert list((tiny.folder / "drawn").glob("*.png"))
    assert not (tiny.folder / "~").exists()


def test_every_path_of_the_command_line_knows_home() -> None:
    def paths(group: click.Group) -> Iterator[click.Parameter]:
        for command in group.commands.values():
            yield from paths(command) if isinstance(command, click.Group) else ()
            yield from (parameter for parameter in command.params if isinstance(parameter.type, click.Path))

    found = list(paths(main))
    assert len(found) >= 10
    for parameter in found:
        assert str(parameter.type.convert("~/x", parameter, None)) == str(Path.home() / "x"), parameter.name


def test_a_store_that_fills_up_loses_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("benchbd.store.store.commit", full)
        result = call("run", *tiny.arguments, "-o", "ft.lr=0.02")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(
        f"error: the store {tiny.store} cannot be written (No space left on device)"
    )
    assert "Traceback" not in result.output
    assert call("run", *tiny.arguments, "-o", "ft.lr=0.02").exit_code == 0


def test_a_new_data_set_needs_no_code(ran: Tiny, tiny: Tiny) -> None:
    write_npz_set(tiny.data, "unseen", seed=9)
    result = call(
        "run", *tiny.arguments, "--task", "unseen:0", "--attack", "none", "--defense", "none", "--only", "--json"
    )
    assert result.exit_code == 0
    (record,) = json.loads(result.stdout)["records"]
    assert (record["task"], record["status"]) == ("unseen", "ok")


@pytest.mark.parametrize("name", ["smoke", "board:smoke"])
def test_a_board_is_shown_as_the_file_it_is(name: str, tmp_path: Path) -> None:
    shown = call("show", name, "--toml")
    assert shown.exit_code == 0, shown.stderr
    mine = tmp_path / "mine.toml"
    mine.write_text(shown.stdout)
    assert json.loads(call("show", mine, "--json").stdout) == json.loads(call("show", "smoke", "--json").stdout) | {
        "name": "mine"
    }
    assert call("show", mine, "--toml").stdout == shown.stdout


def test_only_a_board_is_shown_as_toml_and_in_one_form() -> None:
    one_line(call("show", "ft", "--toml"), "--toml shows a board, which 'ft' is not: ")
    one_line(call("show", "trigger", "--toml"), "--toml shows a board, which 'trigger' is not: ")
    one_line(call("show", "smoke", "--toml", "--json"), "--json or --toml, not both")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "benchbd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == call("--version").stdout

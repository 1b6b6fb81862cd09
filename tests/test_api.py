"""The Python API does what the commands do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import benchbd
from benchbd import UsageError
from benchbd.api import Request, Work
from benchbd.base.device import pick_device
from benchbd.base.errors import DataAbsentError, StoreError, UnknownNameError
from benchbd.cli import main as cli
from benchbd.planning.cases import Plan
from benchbd.records.files import read_records, write_records
from benchbd.registry import load_registry
from benchbd.report.leaderboard import build
from benchbd.testing import toy_encoder

from .boards import Tiny, flip
from .records_factory import make_record


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("api"), load_registry())


def places(tiny: Tiny) -> dict[str, Any]:
    return {"data_root": tiny.data, "store": tiny.store, "device": "cpu"}


def test_plan_run_and_load(tiny: Tiny) -> None:
    part = {"attack": ["badencoder"], "defense": ["none", "ft"], "only": True, **places(tiny)}
    planned = benchbd.plan(tiny.board, **part)
    assert isinstance(planned, Plan)
    assert len(planned.cells) == 2
    assert not tiny.store.joinpath("records").exists()  # a plan computes nothing

    table = benchbd.run(tiny.board, **part)
    assert list(zip(table["attack"], table["defense"], strict=True)) == [("badencoder", "none"), ("badencoder", "ft")]
    assert set(table["key"]) == {cell.judged.key for cell in planned.cells}
    for column in ("acc", "asr", "asr_nontarget", "ca", "asr_b", "asr_b_nontarget"):
        assert table[column].between(0, 100).all()
    assert table.equals(benchbd.run(tiny.board, **part))

    (stage,) = [stage for stage in planned.stages if stage.kind == "defend"]
    encoder = benchbd.load_encoder(stage.key[:12], store=tiny.store, device="cpu")
    assert encoder.arch == "w16"
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    assert not torch.equal(
        next(encoder.parameters()), next(benchbd.load_encoder(planned.stages[0].key, store=tiny.store).parameters())
    )
    flip(tiny.blob(stage.key, "encoder.safetensors"))
    with pytest.raises(StoreError, match="is damaged; run its board again"):
        benchbd.load_encoder(stage.key, store=tiny.store)


def test_detect_returns_a_row_per_verdict(tiny: Tiny) -> None:
    options = ["detection:decree.inversion_steps=2", "detection:decree.inversion_batch=4"]
    table = benchbd.detect(tiny.board, detection="decree", option=options, **places(tiny))
    assert list(zip(table["attack"], table["seed"], strict=True)) == [("none", 1), ("badencoder", 1)]
    assert table["score"].between(-1, 1).all()
    assert table["flagged"].isin([True, False]).all()


def test_a_misspelt_argument_is_named(tiny: Tiny) -> None:
    named = benchbd.run, benchbd.plan, benchbd.detect
    for function in named:
        for wrong, right in (("defenses", "defense"), ("atack", "attack"), ("options", "option"), ("Store", "store")):
            text = rf"^{function.__name__}\(\) has no argument '{wrong}'; did you mean '{right}'\?$"
            with pytest.raises(UsageError, match=text):
                function(tiny.board, **{wrong: "none"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"plan\(\) has no argument 'x'; it takes board, attack, data_root, "):
        benchbd.plan(tiny.board, x=True)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"plan\(\) has no argument 'download'"):
        benchbd.plan(tiny.board, download=True)  # type: ignore[call-arg]


def test_the_arguments_are_the_options_of_the_commands() -> None:
    """All options but those about the output."""
    for command, takes in ((cli.run, Work), (cli.plan, Request)):
        named = {max(option.opts, key=len)[2:].replace("-", "_") for option in command.params}
        assert named - {"board", "json", "quiet"} == takes.__optional_keys__


def test_what_stands_beside_a_defense_is_marked(tiny: Tiny) -> None:
    table = benchbd.run(tiny.board, attack="badencoder", defense="ft", **places(tiny))
    found = {(row.attack, row.defense): row.context for row in table.itertuples()}
    assert found == {
        ("none", "none"): True,
        ("badencoder", "none"): True,
        ("badencoder", "scratch"): True,
        ("badencoder", "bn"): True,
        ("badencoder", "ft"): False,
    }
    assert len(benchbd.run(tiny.board, attack="badencoder", defense="ft", only=True, **places(tiny))) == 1


def test_every_argument_arrives(tiny: Tiny) -> None:
    planned = benchbd.plan(
        tiny.board,
        attack=["none"],
        defense=["ft"],
        pretrain="pool",
        task=["task:2"],
        seed=[4, 5],
        evaluator=["knn"],
        option=["ft.lr=0.01"],
        only=True,
        pretraining="simclr",
        **places(tiny),
    )
    cells = {(c.attack, c.defense, c.pretrain, str(c.task), c.seed, c.evaluator) for c in planned.cells}
    assert cells == {("none", "ft", "pool", "task:2", seed, "knn") for seed in (4, 5)}
    assert "ft.lr=0.01 (the board's: 0.001)" in planned.departures


def test_it_raises_what_the_commands_print(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown board 'dmo': did you mean 'demo'"):
        benchbd.plan("dmo")
    with pytest.raises(UnknownNameError, match="did you mean 'badencoder'"):
        benchbd.run(tiny.board, attack=["badencodr"], **places(tiny))
    with pytest.raises(DataAbsentError, match="gtsrb"):
        benchbd.run(tiny.board, task=["gtsrb:1"], **places(tiny))
    assert any(stage.provisional for stage in benchbd.plan(tiny.board, task=["gtsrb:1"], **places(tiny)).stages)
    with pytest.raises(UsageError, match="no encoder with key 'abc' in "):
        benchbd.load_encoder("abc", store=tmp_path)
    for key in ("abc0", "abc1"):
        (tmp_path / "stages" / "ab" / key).mkdir(parents=True)
        (tmp_path / "stages" / "ab" / key / "encoder.safetensors").touch()
    with pytest.raises(UsageError, match=r"2 encoders in .* have a key that starts with 'a'; give more of it"):
        benchbd.load_encoder("a", store=tmp_path)


@pytest.mark.parametrize("seed", ["a", -1, 1.5, [1, "2"]])
def test_a_seed_is_a_whole_number(tiny: Tiny, seed: Any) -> None:
    with pytest.raises(UsageError, match="must be a whole number from 0 to 9223372036854775807, such as seed=1"):
        benchbd.plan(tiny.board, seed=seed, **places(tiny))


def test_one_value_stands_for_a_list_of_it(tiny: Tiny) -> None:
    one = {"attack": "none", "defense": "ft", "task": "task:2", "seed": 0, "evaluator": "knn", "option": "ft.lr=0.01"}
    many = {name: [value] for name, value in one.items()}
    planned, same = (benchbd.plan(tiny.board, **part, **places(tiny)) for part in (one, many))
    assert [cell.judged.key for cell in planned.cells] == [cell.judged.key for cell in same.cells]
    assert [cell.defense for cell in planned.cells] == ["none", "scratch", "bn", "ft"]


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("foo", "meta", "cuda:99", ""):
        with pytest.raises(UsageError, match="device"):
            pick_device(name)


def test_home_is_expanded_in_python_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.folder))
    here = {"data_root": "~/data", "store": "~/store", "device": "cpu"}
    planned = benchbd.plan("~/tiny.toml", **here)
    assert [stage.key for stage in planned.stages] == [s.key for s in benchbd.plan(tiny.board, **places(tiny)).stages]
    with pytest.raises(UsageError, match=f"no encoder with key 'abc' in the store {tiny.store}: name its store"):
        benchbd.load_encoder("abc", store="~/store")
    toy_encoder().save("~/toy.safetensors")
    assert benchbd.Encoder.load("~/toy.safetensors").arch == "w16"
    write_records([make_record()], Path("~/records"))
    assert len(read_records(Path("~/records"))) == 1
    build("demo", [make_record()], Path("~/out"))
    assert (tiny.folder / "out" / "README.md").is_file()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, value) for name in ("attack", "task", "option", "detection") for value in (None, 5, [1], {"a": 1})),
        *((name, 3) for name in ("pretraining", "pretrain", "store", "data_root", "device", "board")),
        *((("pretraining", ["simclr"]), ("device", ["cpu"]), ("only", "no"), ("seed", True), ("store", b"x"))),
    ],
)
def test_an_argument_of_another_type_is_one_line(argument: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"^{argument} .*: must be ") as caught:
        benchbd.plan(**{"board": "smoke", "store": tmp_path, argument: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_argument_that_is_like_no_other_gets_the_list_of_them() -> None:
    with pytest.raises(UsageError, match="has no argument 'download'; it takes board, attack, "):
        benchbd.plan("smoke", download=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("key", ["*", "**", "[0-9]", "../", "../../s1"])
def test_a_key_is_no_pattern(key: str, tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "ab" / "abcd"
    folder.mkdir(parents=True)
    (folder / "encoder.safetensors").touch()
    with pytest.raises(UsageError, match=r"no encoder with key|a name is BOARD/ATTACK/sSEED|unknown board"):
        benchbd.load_encoder(key, store=tmp_path)


def test_a_key_of_another_type_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^key None: must be text"):
        benchbd.load_encoder(None, store=tmp_path)  # type: ignore[arg-type]

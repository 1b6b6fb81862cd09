"""The pages are right: concepts are facts, examples are plugins, and commands run."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from benchbd import Encoder, Inspection
from benchbd.api import Session
from benchbd.cli.main import main
from benchbd.contract.axes import AXES
from benchbd.contract.roles import ROLES, Role
from benchbd.nets.meter import ForwardMeter
from benchbd.planning.board import Tuned
from benchbd.planning.claims import Claim
from benchbd.planning.selection import Selection
from benchbd.records.gates import Gates, Judged
from benchbd.records.models import Status
from benchbd.registry import Registry, load_registry
from benchbd.testing import check_architecture, toy_encoder

from ..chance import seeded

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text()
ENCODERS = (ROOT / "docs" / "encoders.md").read_text()
PLUGIN_API = (ROOT / "docs" / "plugin-api.md").read_text()


def rows(head: str) -> list[list[str]]:
    """The cells of the table in docs/concepts.md whose first line is ``head``."""
    table = CONCEPTS.partition(f"{head}\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert table
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]


def console(text: str) -> list[list[str]]:
    """The commands of benchbd in the blocks of a page."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    found = re.findall(r"^\$ benchbd (.*?)(?: +#.*)?$", "\n".join(blocks), re.MULTILINE)
    assert found
    return [shlex.split(line) for line in found]


def test_the_gates_are_those_of_the_page() -> None:
    shown = re.search(r"```toml\n(\[gates\]\n.*?)```", CONCEPTS, re.DOTALL)
    assert shown is not None
    assert tomllib.loads(shown[1])["gates"] == Gates().model_dump()


def test_the_claims_of_the_pages_are_claims() -> None:
    found = re.findall(r"```toml\n(\[claims\..*?)```", CONCEPTS + (ROOT / "docs" / "join.md").read_text(), re.DOTALL)
    first, second = ({name: Claim(**told) for name, told in tomllib.loads(each)["claims"].items()} for each in found)
    assert first["my-defense"].model_fields_set == Claim.model_fields.keys()
    assert second["my-defense"].confirmed == first["my-defense"].confirmed


def test_the_trials_are_those_of_the_page() -> None:
    shown = re.search(r"```toml\n(\[tuned\]\n.*?)```", CONCEPTS, re.DOTALL)
    assert shown is not None
    assert tomllib.loads(shown[1])["tuned"] == Tuned().model_dump()


def test_statuses_and_exit_codes_are_those_of_the_page() -> None:
    table = rows("| status | meaning | exit code of `run` |")
    assert [row[0] for row in table] == list(get_args(Judged))
    assert [row[2] for row in table] == ["0", "0", "0", "0", "1", "1"]
    assert {*get_args(Status)} < {*get_args(Judged)}


def test_roles_are_those_of_the_page(registry: Registry) -> None:
    table = {row[0]: row[1].split(", ") for row in rows("| role | axis | meaning |")}
    assert table == {role: [axis for axis, roles in ROLES.items() if role in roles] for role in Role}
    assert registry.of_role("attack", Role.FLOOR) == registry.of_role("defense", Role.FLOOR) == ["none"]
    assert registry.of_role("defense", Role.SCRATCH) == ["scratch"]
    assert registry.of_role("defense", Role.BN) == ["bn"]
    assert not registry.get("defense", "scratch").uses_weights  # type: ignore[attr-defined]


def test_image_forwards_are_counted_as_the_page_says() -> None:
    """One image, so that the meter's counts equal the table's; a backward is counted with its forward."""

    def spent(*, weights: bool, inputs: bool) -> int:
        encoder, x = toy_encoder().requires_grad_(weights), torch.rand(1, 3, 32, 32, requires_grad=inputs)
        with ForwardMeter() as meter:
            features = encoder(x)
            if weights or inputs:
                features.sum().backward()  # type: ignore[no-untyped-call]
        return meter.images

    forward = spent(weights=False, inputs=False)
    measured = [forward, spent(weights=True, inputs=False) - forward, spent(weights=False, inputs=True) - forward]
    assert [int(row[1]) for row in rows("| of one image | image-forwards |")] == measured
    assert f"{256 * 2 * (measured[0] + measured[1]):,}" in CONCEPTS


def test_on_board_is_as_the_page_says(tmp_path: Path, registry: Registry) -> None:
    def departures(**asked: Any) -> list[str]:
        session = Session.open(
            "smoke", Selection.of(only=True, **asked), store=tmp_path, device="cpu", registry=registry
        )
        return session.plan(strict=True).departures

    assert departures(attacks=["badencoder"], defenses=["ft"]) == []
    assert departures(defenses=["nad"]) == []  # not of the board's grid
    assert departures(defenses=["ft"], options=["ft.lr=0.5"])
    assert departures(seeds=[77])


def with_examples() -> Registry:
    """Our own methods and those of the page's examples."""
    examples = [*(axis.name for axis in AXES), "architecture", "observer"]
    return load_registry(extra={f"example-{name}": import_module(f"docs.examples.{name}") for name in examples})


@pytest.mark.fixed_draw("a few steps for exit codes; no figure is read")
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    for arguments in console(CONCEPTS):
        done = CliRunner(env={"BENCHBD_STORE": str(tmp_path)}).invoke(main, arguments)
        assert done.exit_code == 0, (arguments, done.output)


@pytest.mark.fixed_draw("a few steps for exit codes; no figure is read")
def test_the_commands_for_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchbd.registry.load_registry", with_examples)
    monkeypatch.setattr("benchbd.api.load_registry", with_examples)
    assert with_examples().problems == []
    for arguments in console(PLUGIN_API):
        json_too = ["--json", "--quiet"] if arguments[0] == "run" else []
        done = CliRunner(env={"BENCHBD_STORE": str(tmp_path)}).invoke(main, [*arguments, *json_too])
        assert done.exit_code == 0, (arguments, done.output)
        assert ("none x none: ok" in done.stderr) == bool(json_too)  # the observer's line
        if json_too:
            assert {record["status"] for record in json.loads(done.stdout)["records"]} == {"ok"}


def test_the_example_of_an_architecture_keeps_its_contract() -> None:
    module = import_module("docs.examples.architecture")
    [cls] = module.benchbd_architectures()
    check_architecture(cls)
    assert Path(str(module.__file__)).read_text().rstrip() in PLUGIN_API


def test_the_distribution_of_the_page_is_one() -> None:
    [project] = re.findall(r"```toml\n(.*?)```", PLUGIN_API, re.DOTALL)
    assert tomllib.loads(project)["project"]["entry-points"]["benchbd"] == {"shrink": "benchbd_shrink"}


def write_pictures(folder: Path) -> None:
    draws = np.random.default_rng(seeded(1))
    (folder / "pictures").mkdir()
    for number in range(32):
        pixels = draws.integers(0, 256, (8, 8, 3), np.uint8)
        PIL.Image.fromarray(pixels).resize((32, 32)).save(folder / "pictures" / f"{number}.png")


def walk(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the commands of a page in a folder with pictures; what each printed."""
    monkeypatch.chdir(folder)
    write_pictures(folder)
    printed = []
    for arguments in console(page):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, (arguments, done.output)
        printed.append(done.stdout)
    return printed


def check_walk(printed: list[str]) -> None:
    """The form of what the commands print, whatever the figures: two tables of runs, two verdicts, files."""
    table, *written, clean, attacked, repaired, measured, exported = printed
    assert re.search(r"^badencoder +none +\d+\.\d", table, re.MULTILINE)
    assert [line.split(": ")[0] for line in written] == [
        "clean.pth",
        "attacked.pth",
        "clean.safetensors",
        "attacked.safetensors",
    ]
    assert all("from the layout benchbd" in line for line in written[2:])
    for name, told in (("clean", clean), ("attacked", attacked)):
        assert told.startswith(f"Encoder {name}.safetensors (")
        (row,) = [line.split() for line in told.splitlines() if line.startswith("decree")]
        assert row[2] in ("yes", "no")
        assert float(row[1]) == float(row[1])  # a number
    assert re.match(r"repaired.safetensors: w\d\d repaired by ft with 32 images in [\d.]+ s\n", repaired)
    assert re.search(r"^from-file +none +\d+\.\d", measured, re.MULTILINE)
    assert exported == "repaired.pth: written as benchbd\n"


@pytest.mark.fixed_draw("a few steps; the form of the output is read, no figure")
def test_an_encoder_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_walk(walk(ENCODERS.replace("demo", "smoke").replace("shapes-7", "shapes-3"), tmp_path, monkeypatch))


@pytest.mark.slow
@pytest.mark.fixed_draw("the form of the output is read, no figure")
def test_the_demos_encoders_go_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_walk(walk(ENCODERS, tmp_path, monkeypatch))


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five lines: a verdict, and a repaired encoder in a file."""
    (script,) = re.findall(r"```python\n(.*?)```", ENCODERS, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    encoder = Encoder.seeded("w16", (0.5,) * 3, (0.25,) * 3, seed=seeded(1), device="cpu")
    torch.save(encoder.state_dict(), "stranger.pth")
    told: dict[str, Any] = {}
    exec(script, told)
    assert isinstance(told["verdict"], Inspection)
    repaired = Encoder.load("repaired.safetensors")
    assert repaired.to_bytes() == told["repaired"].to_bytes() != encoder.to_bytes()

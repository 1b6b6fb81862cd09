"""from-file: an encoder in a file gets the figures of the same encoder made by a board, and says what it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchbd_plugins.bassl import Bassl
from benchbd_plugins.from_file import FileAttack, FilePretraining
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import benchbd
from benchbd import DataError, Encoder, NotApplicable, Role, UsageError
from benchbd.api import Session
from benchbd.cli.main import main
from benchbd.planning.cases import Plan
from benchbd.planning.selection import Selection
from benchbd.records.models import Record
from benchbd.registry import Registry, load_registry
from benchbd.testing import check_method, toy_attacker, toy_encoder, toy_images

from ..boards import TINY, Tiny, keys

BOARD = TINY + "\n[options.decree]\ninversion_steps = 2\ninversion_batch = 8\n"
CLEAN = "from-file: the encoder is that of a file, not trained on the images of this board; tables count it as clean, "
CLEAN += "but ASR is that of the board's trigger, and a backdoor may have another"
ATTACKED = "from-file: the encoder is that of a file; the floor is the board's own pre-training, not the encoder from "
ATTACKED += "which this one was made"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny board, computed: its stages hold a clean and an attacked encoder."""
    tiny = Tiny(tmp_path_factory.mktemp("from-file"), load_registry(), BOARD)
    tiny.run()
    return tiny


def session(tiny: Tiny, encoder: Path, **selection: Any) -> Session:
    chosen = Selection.of(**{"only": True, **selection})
    places: dict[str, Any] = {"data_root": tiny.data, "store": tiny.store, "device": "cpu"}
    return Session.open(tiny.board, chosen, **places, registry=tiny.registry, encoder=encoder)


def made(tiny: Tiny, kind: str) -> Path:
    """The file of the encoder that a stage of this kind made."""
    (key,) = {stage.key for stage in tiny.plan().stages if stage.kind == kind}
    return tiny.blob(key, "encoder.safetensors")


def by_defense(records: list[Record], attack: str) -> dict[str, Record]:
    return {record.defense: record for record in records if record.attack == attack}


# ------------------------------------------------------------------------------------------------ the same figures


def test_a_clean_encoder_in_a_file_gets_the_boards_figures(tiny: Tiny) -> None:
    """Seeds of defenses and evaluators depend on the run seed alone, so that equal encoders give equal counts."""
    own, found = by_defense(tiny.run(), "none"), session(tiny, made(tiny, "pretrain")).run()
    assert [(record.attack, record.defense) for record in found] == [("none", d) for d in ("none", "scratch", "ft")]
    for record in found:
        assert record.status == "ok"
        assert record.counts == own[record.defense].counts
        assert record.baseline == own["none"].baseline
        assert not record.on_board
        assert "pre-training method from-file (the board's: simclr)" in record.departures
        assert CLEAN in record.notes


def test_an_attacked_encoder_in_a_file_gets_the_attacks_figures(tiny: Tiny) -> None:
    own = by_defense(tiny.run(), "badencoder")
    records = session(tiny, made(tiny, "attack"), attacks=("from-file",)).run()
    found = by_defense(records, "from-file")
    assert len(found) == len(records) == 3
    for name, record in found.items():
        assert (record.counts, record.baseline, record.status) == (
            own[name].counts,
            own[name].baseline,
            own[name].status,
        )
        assert record.attack_role is Role.FILE
        assert ATTACKED in record.notes
        assert CLEAN not in record.notes
        assert "pretrain" in record.identity
        assert record.identity["pretrain"] == own[name].identity["pretrain"]


def test_a_detector_inspects_it(tiny: Tiny) -> None:
    detections = {"detections": ("decree",)}
    own = {record.attack: record for record in tiny.session(**detections).inspect()}
    (clean,) = session(tiny, made(tiny, "pretrain"), **detections).inspect()
    *_, attacked = session(tiny, made(tiny, "attack"), attacks=("from-file",), **detections).inspect()
    for found, wanted in ((clean, own["none"]), (attacked, own["badencoder"])):
        assert found.model_dump()["score"] == wanted.model_dump()["score"]


def test_its_content_counts_and_not_its_place(tiny: Tiny, tmp_path: Path) -> None:
    file = made(tiny, "pretrain")
    shutil.copy(file, tmp_path / "elsewhere.safetensors")
    for attacks in ((), ("from-file",)):
        plans = [
            session(tiny, each, attacks=attacks).plan(strict=True)
            for each in (file, tmp_path / "elsewhere.safetensors")
        ]
        assert keys(plans[0]) == keys(plans[1])
        assert keys(plans[0]) != keys(session(tiny, made(tiny, "attack"), attacks=attacks).plan(strict=True))
    assert str(tmp_path) not in session(tiny, tmp_path / "elsewhere.safetensors").run()[0].to_json()


# ------------------------------------------------------------------------------------------------------- headless


def test_a_headless_encoder_is_repaired_with_a_new_head(tiny: Tiny, tmp_path: Path) -> None:
    encoder = Encoder.load(made(tiny, "pretrain"))
    encoder.head = None
    encoder.save(tmp_path / "headless.safetensors")
    refused = by_defense(session(tiny, tmp_path / "headless.safetensors").run(), "none")
    assert [refused[name].status for name in ("none", "scratch", "ft")] == ["ok", "ok", "n/a"]
    assert refused["ft"].reason.endswith("ft.head_steps=200 trains one first")
    with_head = session(tiny, tmp_path / "headless.safetensors", defenses=("ft",), options=("ft.head_steps=3",))
    (repaired,) = with_head.run()
    assert repaired.status == "ok"
    assert "ft: a head was trained for 3 steps, as the encoder had none" in repaired.notes
    (stage,) = [stage for stage in with_head.plan(strict=True).stages if stage.kind == "defend"]
    assert Encoder.load(tiny.blob(stage.key, "encoder.safetensors")).head is None


# ---------------------------------------------------------------------------------------------------- the methods


def test_they_pass_the_suite(tmp_path: Path) -> None:
    toy_encoder().save(tmp_path / "toy.safetensors")
    for cls in (FilePretraining, FileAttack):
        check_method(cls, file=tmp_path / "toy.safetensors")


def test_images_and_seed_make_no_difference(tmp_path: Path) -> None:
    encoder = toy_encoder(seed=3)
    encoder.save(tmp_path / "toy.safetensors")
    method = FilePretraining(file=tmp_path / "toy.safetensors")
    assert (method.architecture, method.forwards(10**6), method.shortened(100)) == ("w16", 0, None)
    for images, seed in ((toy_images(8), 1), (toy_images(20, seed=4), 2)):
        found = method.pretrain(images, seed)
        assert all(torch.equal(tensor, encoder.tensors()[name]) for name, tensor in found.tensors().items())
        assert not found.training


def test_an_attack_needs_the_architecture_of_its_floor(tmp_path: Path) -> None:
    Encoder("w32").eval().save(tmp_path / "w32.safetensors")
    told = (
        "the encoder in the file is a w32, and the pre-training toy gives the floor as w16: set the architecture of "
        "the pre-training to w32"
    )
    with pytest.raises(NotApplicable, match=f"^{told}$"):
        FileAttack(file=tmp_path / "w32.safetensors").inject(toy_attacker())


def test_without_a_file_there_is_one_line() -> None:
    with pytest.raises(NotApplicable, match=r"^it has no file: give it one, as `benchbd run --encoder FILE` does$"):
        FileAttack().inject(toy_attacker())
    with pytest.raises(DataError, match=r"^pre-training from-file has no file: give it one, as"):
        _ = FilePretraining().architecture


def test_data_poisoning_has_no_pre_training_to_poison(tmp_path: Path) -> None:
    toy_encoder().save(tmp_path / "toy.safetensors")
    knowledge = toy_attacker()
    object.__setattr__(knowledge, "pretraining", FilePretraining(file=tmp_path / "toy.safetensors"))
    with pytest.raises(NotApplicable, match="bassl poisons a pre-training, and the clean encoder is that of a file"):
        Bassl().inject(knowledge)


# ----------------------------------------------------------------------------------------------------- the option


def test_python_takes_it_too(tiny: Tiny) -> None:
    places: dict[str, Any] = {"data_root": tiny.data, "store": tiny.store, "device": "cpu"}
    file = made(tiny, "attack")
    planned = benchbd.plan(tiny.board, encoder=file, defense="ft", **places)
    assert isinstance(planned, Plan)
    assert {cell.attack for cell in planned.cells} == {"none"}
    table = benchbd.run(tiny.board, encoder=str(file), attack="from-file", defense="ft", **places)
    assert list(zip(table["attack"], table["defense"], table["context"], strict=True)) == [
        ("none", "none", True),
        ("from-file", "none", True),
        ("from-file", "scratch", True),
        ("from-file", "bn", True),
        ("from-file", "ft", False),
    ]
    (verdict,) = benchbd.detect(tiny.board, encoder=file, detection="decree", **places).to_dict("records")
    assert verdict["status"] == "ok"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", ["run", "plan"])
def test_the_command_tells_what_the_figures_mean(tiny: Tiny, command: str) -> None:
    told = call(command, *tiny.arguments, "--encoder", made(tiny, "pretrain"), "--defense", "none", "--only", "--quiet")
    assert told.exit_code == 0
    assert "from-file" in told.stdout
    if command == "run":
        assert CLEAN in " ".join(told.stdout.split())


def _other_library(folder: Path) -> Path:
    save_file({"conv1.weight": torch.ones(2)}, folder / "theirs.safetensors")
    return folder / "theirs.safetensors"


def _torch_file(folder: Path) -> Path:
    torch.save({"conv1.weight": torch.ones(2)}, folder / "theirs.pth")
    return folder / "theirs.pth"


def _large(folder: Path) -> Path:
    Encoder("vit-s-16").save(folder / "vit.safetensors")
    return folder / "vit.safetensors"


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (lambda folder: folder / "absent", "absent: no such encoder file"),
        (lambda folder: folder, "a folder; name the file in it"),
        (_other_library, "not an encoder written by benchbd (its header lacks 'benchbd'); see `benchbd import`"),
        (
            _torch_file,
            "not an encoder written by benchbd (it is a zip archive, as npz files are); see `benchbd import`",
        ),
    ],
)
@pytest.mark.parametrize("attack", [[], ["--attack", "from-file"]], ids=["unknown", "known"])
def test_a_file_that_holds_none_is_one_line(
    tiny: Tiny, tmp_path: Path, file: Callable[[Path], Path], line: str, attack: list[str]
) -> None:
    told = call("run", *tiny.arguments, "--quiet", "--encoder", file(tmp_path), *attack)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.endswith(f"{line}\n")
    assert told.stderr.count("\n") == 1


def test_an_encoder_of_other_images_is_one_line(tiny: Tiny, tmp_path: Path) -> None:
    told = call("run", *tiny.arguments, "--quiet", "--encoder", _large(tmp_path))
    assert told.exit_code == 2
    assert told.stderr == "error: vit-s-16 takes images of 224 pixels, the board's have 32: set image_size = 224\n"


@pytest.mark.parametrize(
    ("selection", "line"),
    [
        ({"pretraining": "simclr"}, "it takes the place of simclr: select no pre-training"),
        (
            {"attacks": ("badencoder",)},
            "it is not attacked again, by badencoder: select no attack, or from-file if the board's trigger is that of "
            "its backdoor",
        ),
        ({"attacks": ("none", "from-file", "bassl")}, "it is not attacked again, by bassl"),
    ],
)
def test_what_it_does_not_go_with(tiny: Tiny, selection: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        session(tiny, made(tiny, "pretrain"), **selection)
    assert line in str(caught.value)


def test_what_it_goes_with(tiny: Tiny) -> None:
    file = made(tiny, "attack")
    for selection, attacks in (
        ({"attacks": ("none",)}, ["none"]),
        ({"attacks": ("none", "from-file")}, ["none", "from-file"]),
        ({"attacks": ("from-file",), "pretraining": "simclr"}, ["from-file"]),
    ):
        plan = session(tiny, file, defenses=("none",), **selection).plan(strict=True)
        assert [cell.attack for cell in plan.cells] == attacks


def test_without_the_plugin_one_line_says_so(tiny: Tiny) -> None:
    from importlib.metadata import entry_points

    bare: Registry = load_registry([point for point in entry_points(group="benchbd") if point.name != "from-file"])
    with pytest.raises(UsageError, match=r"^no attack has the role file, and this plan needs one: `benchbd plugins` "):
        Session.open(tiny.board, registry=bare, store=tiny.store, encoder=made(tiny, "attack"))

"""``import``, ``inspect``, ``repair`` and ``export``: an encoder and a folder of pictures from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from benchbd import Encoder, ImageSet
from benchbd.cli.main import main
from benchbd.registry import load_registry

from ..boards import TINY, Tiny
from ..chance import seeded


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``encoder.safetensors`` and ten pictures below ``pictures``."""
    folder = tmp_path_factory.mktemp("given")
    Encoder.seeded("w16", (0.5,) * 3, (0.25,) * 3, seed=seeded(1), device="cpu").save(folder / "encoder.safetensors")
    (folder / "pictures").mkdir()
    draws = np.random.default_rng(seeded(2))
    for number in range(10):
        pixels = draws.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(folder / "pictures" / f"{number}.png")
    return folder


DECREE = ("--detection", "decree", "-o", "decree.inversion_steps=2")


def test_inspect_prints_a_row_per_detector(given: Path) -> None:
    told = call("inspect", given / "encoder.safetensors", "--images", given / "pictures", *DECREE, "--quiet")
    assert told.exit_code == 0, told.stderr
    assert told.stdout.startswith("Encoder encoder.safetensors (w16, 10 images of 32x32 pixels, seed 1)\n")
    (row,) = [line for line in told.stdout.splitlines() if line.startswith("decree")]
    assert row.split()[2] in ("yes", "no")
    assert "higher is more suspicious" in told.stdout
    assert told.stderr == ""


def test_inspect_compares_with_the_encoders_of_a_gallery(given: Path, tmp_path: Path) -> None:
    text = TINY.replace("seeds = [1]", 'detections = ["decree"]\nseeds = [1, 2]')
    tiny = Tiny(tmp_path, load_registry(), text + "\n[options.'detection:decree']\ninversion_steps = 2\n")
    records = tiny.session(attacks=("badencoder",)).inspect()
    built = call("gallery", "build", tiny.board, "--store", tiny.store, "--out", tmp_path / "known.json")
    assert (built.exit_code, built.stderr) == (0, "2 scores of clean and 0 of backdoored encoders\n")
    (folder,) = tiny.store.glob(f"stages/*/{records[0].stages['pretrain']}")
    (tmp_path / "pictures").mkdir()
    for number in range(16):
        source = given / "pictures" / f"{number % 10}.png"
        (tmp_path / "pictures" / f"{number}.png").write_bytes(source.read_bytes())
    arguments = ("inspect", folder / "encoder.safetensors", "--images", tmp_path / "pictures", *DECREE, "--quiet")
    told = call(*arguments, "--gallery", tmp_path / "known.json")
    assert told.exit_code == 0, told.stderr
    assert "2 clean, 0 backdoored" in told.stdout
    assert "\n\ndecree beside known encoders: tiny (simclr on pool) [" in told.stdout
    assert "No figure here is the probability that this encoder has a backdoor" in told.stdout
    assert "left out" not in told.stdout
    document = json.loads(call(*arguments, "--gallery", tmp_path / "known.json", "--json").stdout)
    (population,) = document["detections"][0]["known"]["populations"]
    assert population["clean"]["n"] == 2
    alone = call(*arguments)
    assert "beside known encoders" not in alone.stdout
    assert "number of images 16 here, 1000 there" in " ".join(alone.stdout.split())
    absent = call(*arguments, "--gallery", tmp_path / "no.json")
    assert (absent.exit_code, absent.stdout) == (2, "")
    assert absent.stderr == f"error: {tmp_path / 'no.json'}: cannot be read (No such file or directory)\n"


def test_inspect_as_json(given: Path) -> None:
    """The draw of the pictures and the seed change the score; the same command gives the same again."""
    arguments = ("inspect", given / "encoder.safetensors", "--images", given / "pictures", *DECREE, "--json")
    scores = []
    for more in (("--number", 4), ("--number", 4), ("--number", 4, "--seed", 2)):
        document = json.loads(call(*arguments, *more).stdout)
        (row,) = document["detections"]
        assert (document["arch"], document["images"], document["size"]) == ("w16", 4, 32)
        assert row["status"] == "ok"
        scores.append({**row, "seconds": None})
    assert scores[0] == scores[1]


def test_an_encoder_of_constant_features_gets_no_verdict(given: Path, tmp_path: Path) -> None:
    pruned = Encoder.load(given / "encoder.safetensors")
    pruned.mask.zero_()
    pruned.save(tmp_path / "pruned.safetensors")
    told = call("inspect", tmp_path / "pruned.safetensors", "--images", given / "pictures", "--quiet")
    line = "error: the encoder: the features collapsed: their standard deviation is 0.0e+00\n"
    assert (told.exit_code, told.stdout, told.stderr) == (2, "", line)


def test_repair_writes_the_repaired_encoder(given: Path, tmp_path: Path) -> None:
    out = tmp_path / "repaired.safetensors"
    arguments = ("repair", given / "encoder.safetensors", "--images", given / "pictures", "--out", out)
    told = call(*arguments, "--defense", "ft", "-o", "ft.steps=2", "-o", "ft.batch=4")
    assert told.exit_code == 0, told.stderr
    assert told.stdout.startswith(f"{out}: w16 repaired by ft with 10 images in ")
    pixels = ImageSet.from_folder(given / "pictures").pixels
    before, after = (Encoder.load(path).extract(pixels) for path in (given / "encoder.safetensors", out))
    assert not before.equal(after)
    told = call(*arguments, "--defense", "none", "--number", 1)
    assert told.stderr.startswith(f"{given / 'pictures'}: 1 picture at 32x32 pixels\n")
    assert "w16 repaired by none with 1 image in " in told.stdout
    assert "Warning" not in told.stderr
    assert Encoder.load(out).extract(pixels).equal(before)  # it is written again


def test_an_encoder_that_a_detector_refuses_ends_with_1(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchbd import NotApplicable
    from benchbd.registry import load_registry

    def refuse(*_: object) -> None:
        raise NotApplicable("it needs a moon")

    monkeypatch.setattr(load_registry().get("detection", "decree"), "inspect", refuse)
    told = call("inspect", given / "encoder.safetensors", "--images", given / "pictures", *DECREE, "--quiet")
    assert told.exit_code == 1
    assert "n/a" in told.stdout
    assert "[1] detection decree: it needs a moon" in told.stdout


@pytest.fixture(scope="module")
def stranger(given: Path) -> Path:
    """The encoder as a stranger would publish it, without the JSON that tells its normalisation."""
    from benchbd import export_encoder

    encoder = Encoder.seeded("resnet18", (0.5,) * 3, (0.25,) * 3, seed=seeded(4), device="cpu")
    export_encoder(encoder, "badencoder", given / "stranger.pth")
    (given / "stranger.pth.json").unlink()
    return given / "stranger.pth"


def test_import_and_export_give_the_same_features(given: Path, stranger: Path, tmp_path: Path) -> None:
    """In from BadEncoder's layout, out as safetensors of the same, in again: told what it is, what it lacks."""
    first, out, again = tmp_path / "first.safetensors", tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    told = call("import", stranger, "--out", first, "--normalisation", "0.5,0.5,0.5,0.25,0.25,0.25")
    assert told.exit_code == 0, told.stderr
    assert told.stdout == f"{first}: resnet18 with a projection head, from the layout badencoder\n"
    assert "no file tells the stride" in told.stderr
    told = call("export", first, "--format", "badencoder", "--out", out)
    assert told.stdout == f"{out}: written as badencoder\n"
    assert "to load it: " in told.stderr
    assert call("import", out, "--out", again).exit_code == 0  # the JSON beside it tells the normalisation
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.fixed_draw("a few steps for keys and bytes; no figure is read")
def test_the_encoder_of_a_record_or_a_key(tmp_path: Path) -> None:
    """A record names the encoder that its cell evaluated; a key, or the start of one, the stage that made it."""
    store = tmp_path / "store"
    small = ("-o", "simclr.steps=2", "-o", "ft.steps=2", "-o", "mlp.epochs=1", "--store", store, "--quiet")
    assert call("run", "--board", "smoke", "--attack", "none", "--defense", "ft", "--only", *small).exit_code == 0
    (path,) = (store / "records" / "smoke").glob("none_ft_*.json")
    stages = json.loads(path.read_text())["stages"]
    outs = []
    for encoder in (path, stages["defend"], stages["defend"][:12], stages["pretrain"]):
        outs.append(tmp_path / f"{len(outs)}.safetensors")
        told = call("export", encoder, "--store", store, "--format", "benchbd", "--out", outs[-1])
        assert told.exit_code == 0, told.stderr
    repaired, by_key, by_start, clean = (out.read_bytes() for out in outs)
    assert repaired == by_key == by_start != clean
    told = call("export", path, "--store", tmp_path / "other", "--format", "benchbd", "--out", tmp_path / "o")
    absent = f"no encoder with key '{stages['defend'][:12]}' in the store {tmp_path / 'other'}"
    mend = "name its store with --store (in Python store=), or run its board"
    assert (told.exit_code, told.stderr) == (2, f"error: {path}, a record of board smoke: {absent}: {mend}\n")


@pytest.mark.parametrize(
    ("tensor", "value", "line"),
    [
        ("std", 0.0, "std must be above 0, not 0"),
        ("std", float("nan"), "std has NaN or infinity"),
        ("mask", 0.5, "mask must be 0 or 1 per channel"),
        ("stem.1.running_var", -1.0, "stem.1.running_var must be 0 or above, not -1"),
    ],
)
def test_no_command_takes_an_encoder_of_impossible_values(
    given: Path, tmp_path: Path, tensor: str, value: float, line: str
) -> None:
    encoder, file, out = Encoder.load(given / "encoder.safetensors"), tmp_path / "odd.safetensors", tmp_path / "o"
    encoder.state_dict()[tensor].fill_(value)
    encoder.save(file)
    for arguments in (
        ("inspect", file, "--images", given / "pictures"),
        ("repair", file, "--images", given / "pictures", "--defense", "scratch", "--out", f"{out}.safetensors"),
        ("export", file, "--format", "benchbd", "--out", out),
        ("import", file, "--out", tmp_path / "o.safetensors"),
        ("push", file, "--licence", "mit", "--to", out),
        ("plan", "--board", "smoke", "--encoder", file),
    ):
        told = call(*arguments)
        assert (told.exit_code, told.stdout) == (2, "")
        assert told.stderr.endswith(f"{file}: {line}\n"), told.stderr
        assert told.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["odd.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["inspect", "absent.safetensors", "--images", "pictures"], "absent.safetensors: no such encoder file"),
        (
            ["inspect", "pictures/1.png", "--images", "pictures"],
            "not an encoder written by benchbd (it is a PNG picture)",
        ),
        (["inspect", "encoder.safetensors", "--images", "absent"], "absent: no such folder"),
        (["inspect", "encoder.safetensors"], "Missing option '--images'"),
        (["inspect", "encoder.safetensors", "--images", "pictures", "--detection", "decre"], "did you mean 'decree'"),
        (
            ["inspect", "encoder.safetensors", "--images", "pictures", "-o", "ft.steps=2"],
            "only decree, lipschitz, patches do",
        ),
        (["inspect", "encoder.safetensors", "--images", "pictures", "-o", "decree.level=x"], "decree.level: "),
        (["inspect", "encoder.safetensors", "--images", "pictures", "--image-size", "20"], "--image-size"),
        (["repair", "encoder.safetensors", "--images", "pictures", "--defense", "ft"], "Missing option '--out'"),
        (["import", "stranger.pth", "--out", "o.safetensors"], "nothing tells how its images are normalised"),
        (["import", "stranger.pth", "--out", "o.pth"], "o.pth: its name must end in .safetensors"),
        (["import", "stranger.pth", "--out", ".safetensors"], "its name must end in .safetensors after a stem"),
        (["import", "stranger.pth", "--out", ""], "the path is empty"),
        (["import", "", "--out", "o.safetensors"], "the path is empty"),
        (["import", "/dev/stdin", "--out", "o.safetensors"], "/dev/stdin: not an ordinary file"),
        (["inspect", "/dev/null", "--images", "pictures"], "/dev/null: not an ordinary file"),
        (["export", "", "--format", "benchbd", "--out", "o"], "the path of the encoder file is empty"),
        (["export", "encoder.safetensors", "--format", "benchbd", "--out", "/dev/null"], "is no ordinary file"),
        (
            ["repair", "encoder.safetensors", "--images", "pictures", "--defense", "ft", "--out", "o.pth"],
            "o.pth: its name must end in .safetensors",
        ),
        (["import", "absent.pth", "--out", "o.safetensors"], "absent.pth: no such file"),
        (["import", "stranger.pth", "--out", "o.safetensors", "--arch", "resnet81"], "did you mean 'resnet18'"),
        (["import", "stranger.pth", "--out", "o.safetensors", "--normalisation", "imagnet"], "did you mean 'imagenet'"),
        (["import", "stranger.pth", "--out", "o.safetensors", "--key", "model"], "it has no part 'model'"),
        (["export", "encoder.safetensors", "--format", "torchvison", "--out", "o"], "did you mean 'torchvision'"),
        (["export", "encoder.safetensors", "--format", "timm", "--out", "o"], "timm has no net like w16"),
        (
            ["export", "encoder.safetensors", "--format", "benchbd", "--out", "encoder.safetensors"],
            "encoder.safetensors: is the encoder itself; write the export to another file",
        ),
        (
            ["export", "0123456789abcdef", "--format", "timm", "--out", "o"],
            "no encoder with key '0123456789abcdef' in the store ",
        ),
        (
            ["repair", "encoder.safetensors", "--images", "pictures", "--defense", "fft", "--out", "o"],
            "unknown defense 'fft'",
        ),
        (
            ["repair", "encoder.safetensors", "--images", "pictures", "--defense", "ft", "--out", "pictures"],
            "pictures: is a folder; name a file in it",
        ),
        (
            ["repair", "encoder.safetensors", "--images", "pictures", "--defense", "ft", "--out", "no/such/file"],
            "no/such: no such folder",
        ),
    ],
)
def test_a_mistake_is_one_line(
    given: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.chdir(given)
    told = call(*arguments)
    assert told.exit_code == 2
    assert line in told.stderr
    assert told.stderr.startswith("error: ")
    assert told.stderr.count("\n") == 1
    assert told.stdout == ""

"""``push`` and ``pull``: an encoder or a board goes to a folder or the Hub and comes back, or a line says why not.

No test uses the network: a folder has the Hub's layout, and a stand-in takes the place of the Hub's library.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import benchbd.exchange.hub
import benchbd.packages
from benchbd import Encoder
from benchbd.base.errors import BenchbdError, DataError, UsageError
from benchbd.cli.main import main
from benchbd.exchange.hub import Repository
from benchbd.packages import (
    CARD,
    ENCODER,
    MANIFEST,
    Folder,
    board_package,
    encoder_package,
    pull,
    write_package,
)
from benchbd.planning.board import boards_folder, load_board
from benchbd.records.files import read_record, read_records, write_records
from benchbd.records.models import Record
from benchbd.records.pictures import read_pictures, write_pictures

from .chance import seeded
from .records_factory import make_record, png


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, ``mine.safetensors``, and records of two cells with it."""
    folder = tmp_path_factory.mktemp("given")
    Encoder.seeded("w16", (0.5, 0.25, 0.1), (0.25,) * 3, seed=seeded(1), device="cpu").save(folder / "mine.safetensors")
    write_records([make_record(), make_record(task="svhn", target=1, target_name="1", seed=1)], folder / "cells")
    return folder


@pytest.fixture
def pushed(given: Path, tmp_path: Path) -> Path:
    """A folder that the encoder was pushed to."""
    return write_package(encoder_package(given / "mine.safetensors", "mit"), tmp_path / "pushed")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def head(card: str) -> dict[str, Any]:
    """The values at the head of a card, which are JSON."""
    lines = card.split("---\n")[1].splitlines()
    return {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in lines}


def rewrite(folder: Path, **changes: Any) -> None:
    """Change benchbd.json; a function changes a value that it has."""
    told = json.loads((folder / MANIFEST).read_text())
    for name, change in changes.items():
        told[name] = change(told[name]) if callable(change) else change
    (folder / MANIFEST).write_text(json.dumps(told))


def resealed(folder: Path, name: str, content: bytes) -> None:
    """Replace a file, and its digest in benchbd.json."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    rewrite(folder, files=lambda files: {**files, name: hashlib.sha256(content).hexdigest()})


def with_record(folder: Path, record: Record) -> None:
    """Add the files of a record, and their digests."""
    for name, content in benchbd.packages._written([record]).items():
        resealed(folder, name, content)


# Encoders ------------------------------------------------------------------------------------------------------------


def test_an_encoder_comes_back_byte_for_byte(given: Path, tmp_path: Path) -> None:
    cells = sorted(path for path in (given / "cells").iterdir() if path.suffix == ".json")
    records = [argument for path in cells for argument in ("--record", path)]
    told = call("push", given / "mine.safetensors", "--to", tmp_path / "hub", "--licence", "MIT", *records)
    assert told.exit_code == 0, told.stderr
    told = call("pull", tmp_path / "hub", "--out", tmp_path / "back")
    assert told.exit_code == 0, told.stderr
    digest = hashlib.sha256((tmp_path / "hub" / MANIFEST).read_bytes()).hexdigest()
    assert told.stdout == f"{tmp_path / 'back'}: encoder mine, mit, 7 files, sha256 {digest}\n"
    sent, back = contents(tmp_path / "hub"), contents(tmp_path / "back")
    assert sent.keys() - back.keys() == {CARD}  # anybody who may edit the repository may edit its card
    assert {name: sent[name] for name in back} == back
    assert back[ENCODER] == (given / "mine.safetensors").read_bytes()
    assert {name for name in back if name.startswith("records/")} == {f"records/{n}" for n in contents(given / "cells")}
    beside = json.loads(back[f"{ENCODER}.json"])
    assert (beside["arch"], beside["mean"], beside["std"]) == ("w16", [0.5, 0.25, 0.1], [0.25] * 3)
    assert Encoder.load(tmp_path / "back" / ENCODER).arch == "w16"


def test_the_card_has_the_figures_of_the_records(given: Path) -> None:
    cells = sorted((given / "cells").glob("*.json"))
    card = encoder_package(given / "mine.safetensors", "apache-2.0", cells).files[CARD].decode()
    assert (head(card)["license"], head(card)["library_name"]) == ("apache-2.0", "benchbd")
    results = head(card)["model-index"][0]["results"]
    assert [{each["type"]: each["value"] for each in result["metrics"]} for result in results] == [
        {"acc": 80.0, "asr": 99.0, "asr_nontarget": 98.0, "ra": 2.0}
    ] * 2
    assert {result["dataset"]["type"] for result in results} == {"gtsrb", "svhn"}
    assert re.search(r"\| badencoder +\| none +\| +1† \| +80\.00 ", card)
    assert "**This encoder was given a backdoor for research." in card
    assert UNTIED in card
    assert hashlib.sha256((given / "mine.safetensors").read_bytes()).hexdigest() in card


def told_of(identity: dict[str, Any], **fields: Any) -> Record:
    """A record of a cell whose encoder's stages have these identities."""
    plain = make_record(**fields).identity
    return make_record(identity={**plain, **identity}, **fields)


def pretrained(arch: str = "w16", mean: Sequence[float] = (0.5, 0.25, 0.1)) -> dict[str, Any]:
    method = {"axis": "pretraining", "name": "simclr", "options": {"arch": arch}}
    return {"pretrain": {"method": method, "params": {"normalization": [list(mean), [0.25] * 3]}, "seed": 1}}


def of_file(digest: str) -> dict[str, Any]:
    """The undefended cell of an encoder from a file, as an attack of role FILE gives it."""
    attack = make_record(attack="from-file").identity["attack"]
    method = {"axis": "attack", "name": "from-file", "options": {"file": digest}}
    return {**pretrained("w32"), "attack": {**attack, "method": method}}


UNTIED = "Nothing ties the records to these weights but the publisher's word"


@pytest.mark.parametrize(
    ("identity", "line"),
    [
        (pretrained(), ""),
        (pretrained("w32"), "its architecture is 'w32', not w16"),
        ({"pretrain": {**pretrained()["pretrain"], "params": {"normalization": ["x", 1]}}}, "its mean is 'x', not "),
        (pretrained(mean=(0.5, 0.25, 0.2)), "its mean is [0.5, 0.25, 0.2], not [0.5, 0.25, 0.1]"),
        (of_file("f" * 64), f"its encoder is a file with the sha256 {'f' * 12}, not "),
    ],
)
def test_a_record_of_another_encoder_is_refused(
    identity: dict[str, Any], line: str, given: Path, tmp_path: Path
) -> None:
    """By ``push``, and by ``pull`` if somebody else made the package."""
    attack = identity.get("attack", {}).get("method", {}).get("name", "badencoder")
    record = told_of(identity, attack=attack, attack_role="file" if attack == "from-file" else "method")
    (path, *_) = write_records([record], tmp_path / "cells")
    told = call("push", given / "mine.safetensors", "--to", tmp_path / "hub", "--licence", "mit", "--record", path)
    if not line:
        assert told.exit_code == 0, told.stderr
        assert UNTIED in (tmp_path / "hub" / CARD).read_text()
        return
    assert told.exit_code == 2
    assert told.stderr.startswith(
        f"error: {path}: a record of another encoder than {given / 'mine.safetensors'}: {line}"
    )
    assert told.stderr.count("\n") == 1
    folder = write_package(encoder_package(given / "mine.safetensors", "mit"), tmp_path / "pushed")
    with_record(folder, record)
    told = call("pull", folder, "--out", tmp_path / "back")
    assert told.exit_code == 2
    assert told.stderr.startswith(f"error: {folder}: records/{record.name} is of another encoder: {line}")


def test_a_record_with_the_digest_of_the_file_ties_the_figures(given: Path, tmp_path: Path) -> None:
    """Of the encoder that ``run --encoder`` got; a defense makes another of it, whose digest its record lacks."""
    digest = hashlib.sha256((given / "mine.safetensors").read_bytes()).hexdigest()
    record = told_of(of_file(digest), attack="from-file", attack_role="file")
    repaired = told_of(of_file(digest), attack="from-file", attack_role="file", defense="ft")
    paths = write_records([record, repaired], tmp_path / "cells")
    card = encoder_package(given / "mine.safetensors", "mit", paths[:1]).files[CARD].decode()
    assert "which contain the sha256 of this encoder's file" in card
    assert UNTIED not in card
    card = encoder_package(given / "mine.safetensors", "mit", paths[1:]).files[CARD].decode()
    assert UNTIED in card
    card = encoder_package(given / "mine.safetensors", "mit", paths).files[CARD].decode()
    assert "Nothing ties 1 record of 2 to these weights" in card


def test_a_card_without_records_claims_nothing(given: Path) -> None:
    card = encoder_package(given / "mine.safetensors", "mit").files[CARD].decode()
    assert "model-index" not in head(card)
    assert "Figures" not in card
    assert "given a backdoor" not in card


def test_a_dry_run_writes_nothing(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = call("push", given / "mine.safetensors", "--repo", "me/mine", "--dry-run", "--licence", "mit")
    assert told.exit_code == 0, told.stderr
    size = (given / "mine.safetensors").stat().st_size
    assert f"  {ENCODER}  {size:,} bytes\n" in told.stdout
    assert 'license: "mit"' in told.stdout
    assert list(tmp_path.iterdir()) == []


# What a stranger may have put there ----------------------------------------------------------------------------------


def without_json(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def other_weights(folder: Path) -> None:
    Encoder.seeded("w16", (0.5,) * 3, (0.25,) * 3, seed=seeded(5), device="cpu").save(folder / ENCODER)


def not_a_number(folder: Path) -> None:
    encoder = Encoder.load(folder / ENCODER)
    encoder.state_dict()["stem.1.bias"][0] = torch.nan
    resealed(folder, ENCODER, encoder.to_bytes())


def a_pickle(folder: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, folder / "x")
    resealed(folder, ENCODER, (folder / "x").read_bytes())


def other_architecture(folder: Path) -> None:
    beside = json.loads((folder / f"{ENCODER}.json").read_text())
    resealed(folder, f"{ENCODER}.json", json.dumps({**beside, "arch": "w32"}).encode())


def forged_record(folder: Path) -> None:
    text = make_record().to_json().replace('"acc": 80.0', '"acc": 81.0')
    resealed(folder, "records/a_s0.json", text.encode())


def pointer(folder: Path) -> None:
    (folder / ENCODER).write_text("version https://git-lfs.github.com/spec/v1\n")


def outside(name: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, files=lambda files: {**files, name: "0" * 64})


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no benchbd.json": (without_json, "no benchbd.json is in it, so benchbd did not push it"),
    "an HTML page": (lambda folder: (folder / MANIFEST).write_text("<html>no</html>"), "it is an HTML page"),
    "another schema": (lambda folder: rewrite(folder, schema=2), "schema: "),
    "another licence": (lambda folder: rewrite(folder, licence="cc-by-nc-4.0"), "licence is 'cc-by-nc-4.0'"),
    "a lost file": (lambda folder: (folder / ENCODER).unlink(), f"its file {ENCODER} is missing"),
    "other weights": (other_weights, f"{ENCODER} is damaged or was replaced: its sha256 is "),
    "a pointer": (pointer, "it is a Git LFS pointer"),
    "NaN": (not_a_number, "NaN"),
    "a pickle": (a_pickle, f"{ENCODER}: "),
    "an architecture": (other_architecture, f"{ENCODER}.json: arch is 'w32', but {ENCODER} itself has w16"),
    "a forged record": (forged_record, "contradicts itself"),
    "a parent": (outside("records/../../x"), "whose name is not allowed"),
    "an absolute path": (outside("/etc/x"), "whose name is not allowed"),
    "Windows": (outside("records\\..\\x"), "whose name is not allowed"),
    "a hidden file": (outside("records/.x"), "whose name is not allowed"),
    "a program": (outside("modeling.py"), "a file 'modeling.py', which belongs to none"),
    "no encoder": (lambda folder: rewrite(folder, files={}), f"no {ENCODER} is in it"),
    "a name": (lambda folder: rewrite(folder, name="../x"), "name: "),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_is_not_sound_is_not_written(how: str, pushed: Path, tmp_path: Path) -> None:
    spoil, line = SPOILED[how]
    spoil(pushed)
    told = call("pull", pushed, "--out", tmp_path / "back")
    assert told.exit_code == 2
    assert line in told.stderr
    assert told.stderr.startswith(f"error: {pushed}: ")
    assert told.stderr.count("\n") == 1
    assert ".pull-" not in told.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"pushed"}


def test_files_that_are_not_listed_stay_there(pushed: Path, tmp_path: Path) -> None:
    (pushed / "setup.py").write_text("raise SystemExit")
    pull(Folder(pushed), "there", tmp_path / "back")
    assert "setup.py" not in contents(tmp_path / "back")


# Boards --------------------------------------------------------------------------------------------------------------


def test_a_published_board_comes_back_with_its_records(tmp_path: Path) -> None:
    """``leaderboard build`` of what was pulled gives the published table."""
    told = call("push", "detect-shapes", "--to", tmp_path / "hub", "--licence", "apache-2.0")
    assert told.exit_code == 0, told.stderr
    told = call("pull", tmp_path / "hub", "--out", tmp_path / "detect-shapes")
    assert told.exit_code == 0, told.stderr
    published = boards_folder() / "detect-shapes"
    assert contents(tmp_path / "detect-shapes" / "records") == contents(published / "records")
    assert (tmp_path / "detect-shapes" / "board.toml").read_bytes() == (published / "board.toml").read_bytes()
    card = (tmp_path / "hub" / CARD).read_text()
    assert head(card)["license"] == "apache-2.0"
    row = next(line for line in (published / "README.md").read_text().splitlines() if line.startswith("| badencoder"))
    assert row in card
    records = tmp_path / "detect-shapes" / "records"
    built = [
        call("leaderboard", "build", "detect-shapes", "--records", place) for place in (records, published / "records")
    ]
    assert built[0].exit_code == 0, built[0].stderr
    assert built[0].stdout == built[1].stdout


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A board of one's own, with a trigger in a file, and a record."""
    folder = tmp_path / "mine"
    (folder / "files").mkdir(parents=True)
    text = (boards_folder() / "smoke" / "board.toml").read_text()
    (folder / "board.toml").write_text(text.replace('title = "', '# files/notes.txt\ntitle = "', 1))
    return folder


def test_a_board_of_ones_own_goes_with_its_files(own: Path, tmp_path: Path) -> None:
    (own / "files" / "t.npz").write_bytes(b"trigger")
    text = (own / "board.toml").read_text()
    (own / "board.toml").write_text(text + '\n[options.other]\nfile = "files/t.npz"\n')
    package = board_package_without_loading(own)
    assert package.files["files/t.npz"] == b"trigger"
    (own / "board.toml").write_text(text)
    (path,) = write_records([make_record(board="mine")], tmp_path / "records")
    write_pictures(path, {"trigger": png()})
    sent = board_package(own, "mit", [read_record(path)], [])
    folder = write_package(sent, tmp_path / "hub" / "mine")
    (tmp_path / "back").mkdir()
    pull(Folder(folder), "there", tmp_path / "back" / "mine")
    assert load_board(tmp_path / "back" / "mine").name == "mine"
    assert [each.to_json() for each in read_records(tmp_path / "back" / "mine" / "records")] == [
        make_record(board="mine").to_json()
    ]
    assert read_pictures(tmp_path / "back" / "mine" / "records" / path.name) == {"trigger": png()}
    with pytest.raises(UsageError, match="a board has the name of its folder, and this one is 'mine'"):
        pull(Folder(folder), "there", tmp_path / "other")


def test_a_long_text_is_no_file_of_a_board(own: Path) -> None:
    text = (own / "board.toml").read_text()
    (own / "board.toml").write_text(text + f'\n[options.other]\nfile = "{"word " * 100}"\n')
    assert set(board_package_without_loading(own).files) == {CARD, MANIFEST, "board.toml"}


def board_package_without_loading(folder: Path) -> benchbd.packages.Package:
    """The package of a board whose options no method has."""
    board = load_board(boards_folder() / "smoke").model_copy(update={"name": "mine"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(benchbd.packages, "load_board", lambda _: board)
        return board_package(folder, "mit", [], [])


def test_a_file_elsewhere_is_not_pushed(own: Path) -> None:
    (own.parent / "secret.npz").write_bytes(b"secret")
    text = (own / "board.toml").read_text()
    for place in ("../secret.npz", str(own.parent / "secret.npz")):
        (own / "board.toml").write_text(text + f'\n[options.other]\nfile = "{place}"\n')
        with pytest.raises(UsageError, match="lies elsewhere"):
            board_package_without_loading(own)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda folder: resealed(folder, "board.toml", b"title = 3"), "title: "),
        (lambda folder: with_record(folder, make_record()), "of board 'demo'"),
        (lambda folder: resealed(folder, "records/a.svg", b"<svg/>"), "records/a.svg: neither a record, nor its"),
        (lambda folder: resealed(folder, "records/trigger.png", png()), "records/trigger.png: a picture of no record"),
        (lambda folder: rewrite(folder, name="smoke"), "its board.toml is not that of benchbd's board smoke"),
    ],
    ids=["no board", "another board's record", "a drawing", "a picture of no record", "the name of one of benchbd's"],
)
def test_a_board_that_is_not_sound(spoil: Callable[[Path], None], line: str, own: Path, tmp_path: Path) -> None:
    folder = write_package(board_package(own, "mit", [], []), tmp_path / "hub" / "mine")
    spoil(folder)
    name = json.loads((folder / MANIFEST).read_text())["name"]
    (tmp_path / "back").mkdir()
    with pytest.raises(DataError, match=re.escape(line)) as caught:
        pull(Folder(folder), "there", tmp_path / "back" / name)
    assert str(caught.value).startswith("there: ")
    assert ".pull-" not in str(caught.value)
    assert list((tmp_path / "back").iterdir()) == []


# The Hub -------------------------------------------------------------------------------------------------------------


class Fake(ModuleType):
    """Stands for huggingface_hub: repositories are folders below ``place``."""

    def __init__(self, place: Path) -> None:
        super().__init__("huggingface_hub")
        self.place = place
        self.token: str | None = "hf_x"
        self.calls: list[tuple[Any, ...]] = []
        self.raises: Exception | None = None
        self.__spec__ = importlib.util.spec_from_loader("huggingface_hub", None)
        self.errors = ModuleType("huggingface_hub.errors")
        base = type("HfHubHTTPError", (Exception,), {"response": SimpleNamespace(status_code=500)})
        self.errors.HfHubHTTPError = base  # type: ignore[attr-defined]
        for name in ("RepositoryNotFoundError", "RevisionNotFoundError"):
            setattr(self.errors, name, type(name, (base,), {}))
        self.CommitOperationAdd = SimpleNamespace

        def adding(path_in_repo: str, path_or_fileobj: bytes) -> SimpleNamespace:
            return SimpleNamespace(path=path_in_repo, content=path_or_fileobj)

        self.CommitOperationAdd = adding  # type: ignore[assignment]

    def get_token(self) -> str | None:
        return self.token

    def HfApi(self) -> Fake:  # noqa: N802 - the library's name
        return self

    def create_repo(self, repo_id: str, *, repo_type: str, exist_ok: bool) -> str:
        self.calls.append(("create", repo_id, repo_type, exist_ok))
        return f"https://huggingface.co/{repo_id}"

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str, repo_type: str) -> None:
        if self.raises:
            raise self.raises
        for each in operations:
            path = self.place / repo_type / repo_id / each.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(each.content)

    def snapshot_download(
        self, repo_id: str, *, repo_type: str, revision: str | None, local_dir: Path, allow_patterns: list[str]
    ) -> None:
        import fnmatch

        self.calls.append(("download", repo_id, repo_type, revision))
        if self.raises:
            raise self.raises
        source = self.place / repo_type / repo_id
        for path in (path for path in source.rglob("*") if path.is_file()):
            name = path.relative_to(source).as_posix()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in allow_patterns):
                (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, local_dir / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(tmp_path / "huggingface")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", fake.errors)
    monkeypatch.setattr(benchbd.exchange.hub, "_reach", lambda endpoint: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return fake


def test_an_encoder_goes_to_the_hub_and_comes_back(hub: Fake, given: Path, tmp_path: Path) -> None:
    told = call("push", given / "mine.safetensors", "--repo", "me/mine", "--licence", "mit")
    assert told.exit_code == 0, told.stderr
    assert told.stdout.startswith("https://huggingface.co/me/mine: encoder mine, mit, 4 files, sha256 ")
    assert hub.calls == [("create", "me/mine", "model", True)]
    told = call("pull", "me/mine@abc123", "--out", tmp_path / "back")
    assert told.exit_code == 0, told.stderr
    assert f"its card, {CARD}, is left out: no digest covers it\n" in told.stderr
    assert hub.calls[1:] == [("download", "me/mine", "model", "abc123")] * 2
    assert (tmp_path / "back" / ENCODER).read_bytes() == (given / "mine.safetensors").read_bytes()


def test_a_board_goes_to_a_data_set(hub: Fake, own: Path, tmp_path: Path) -> None:
    record = make_record(board="mine", pretrain="cifar[1]")  # a pattern to the library
    Repository.of("datasets/me/board").commit(board_package(own, "mit", [record], []).files, "a board")
    assert hub.calls == [("create", "me/board", "dataset", True)]
    (tmp_path / "back").mkdir()
    pulled = pull(Repository.of("datasets/me/board"), "datasets/me/board", tmp_path / "back" / "mine")
    assert {name for name in pulled.files if name.startswith("records/")} >= {f"records/{record.name}"}


def errors_of_the_library() -> dict[str, tuple[Callable[[Fake], Exception], str]]:
    def refused(code: int) -> Callable[[Fake], Exception]:
        def make(fake: Fake) -> Exception:
            error = fake.errors.HfHubHTTPError("Client error\n\nfor url: x")
            error.response = SimpleNamespace(status_code=code)
            return error

        return make

    return {
        "no repository": (lambda fake: fake.errors.RepositoryNotFoundError("404\n..."), "the Hub has no such model"),
        "no revision": (lambda fake: fake.errors.RevisionNotFoundError("404"), "no such revision"),
        "token": (refused(401), "the token is not valid"),
        "rights": (refused(403), "the token may not write there"),
        "server": (refused(502), "the Hub refuses: Client error"),
        "network": (lambda fake: TimeoutError("timed out"), "the Hub does not answer (timed out)"),
    }


@pytest.mark.parametrize("how", errors_of_the_library())
def test_an_error_of_the_hub_is_a_line(how: str, hub: Fake, given: Path, tmp_path: Path) -> None:
    make, line = errors_of_the_library()[how]
    hub.raises = make(hub)
    for command in (
        ("pull", "me/mine", "--out", tmp_path / "back"),
        ("push", given / "mine.safetensors", "--repo", "me/mine", "--licence", "mit"),
    ):
        told = call(*command)
        assert (told.exit_code, told.stderr.count("\n")) == (2, 1)
        assert told.stderr.startswith("error: me/mine: ")
        assert line in told.stderr
        assert ("there is no folder me/mine here" in told.stderr) == (command[0] == "pull" and how == "no repository")


def test_without_a_token_nothing_is_pushed(hub: Fake, given: Path) -> None:
    hub.token = None
    told = call("push", given / "mine.safetensors", "--repo", "me/mine", "--licence", "mit")
    assert (told.exit_code, told.stderr) == (
        2,
        "error: pushing needs a token of the Hub: set HF_TOKEN, or run hf auth login\n",
    )
    assert hub.calls == []


def test_without_the_library(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchbd.exchange.hub, "find_spec", lambda name: None)
    told = call("push", given / "mine.safetensors", "--repo", "me/mine", "--licence", "mit")
    assert (told.exit_code, told.stderr) == (2, "error: the Hub needs a library: pip install 'benchbd[hub]'\n")


def test_offline_mode_is_asked_first(hub: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = call("pull", "me/mine", "--out", tmp_path / "back")
    assert (told.exit_code, told.stderr) == (
        2,
        "error: me/mine: HF_HUB_OFFLINE is set, so the Hub is not asked; there is no folder me/mine here\n",
    )
    assert hub.calls == []


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchbd.exchange.hub, "getproxies", dict)


def test_a_hub_that_cannot_be_reached(no_proxy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection, an unknown name, and a name that is looked up for ever, each once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match=r"127\.0\.0\.1 cannot be reached \(Connection refused\); push --to FOLDER"):
        benchbd.exchange.hub._reach(f"http://127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        benchbd.exchange.hub._reach(f"http://127.0.0.1:{server.getsockname()[1]}")
    asked = []

    over = threading.Event()

    def never(place: tuple[str, int], patience: float) -> None:
        asked.append((place, patience))
        over.wait(60)
        raise OSError("the test is over")

    monkeypatch.setattr(benchbd.exchange.hub, "PATIENCE", 0.05)
    monkeypatch.setattr("socket.create_connection", never)
    with pytest.raises(DataError, match=r"huggingface\.co cannot be reached \(no answer\)"):
        benchbd.exchange.hub._reach("https://huggingface.co")
    over.set()
    assert asked == [(("huggingface.co", 443), 0.05)]


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:{}", "127.0.0.1:{}"])
def test_a_proxy_is_asked_instead(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = proxy.format(server.getsockname()[1])
        monkeypatch.setattr(benchbd.exchange.hub, "getproxies", lambda: {"https": address})
        benchbd.exchange.hub._reach("https://no-such-host.invalid")


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["push", "mine.safetensors", "--to", "x"], "Missing option '--licence'"),
        (
            ["push", "mine.safetensors", "--to", "x", "--licence", "gpl-3.0"],
            "licence 'gpl-3.0': what is pushed has one of apache-2.0, mit",
        ),
        (["push", "mine.safetensors", "--licence", "mit"], "name one of --repo USER/NAME, --to FOLDER and --dry-run"),
        (["push", "mine.safetensors", "--licence", "mit", "--to", "x", "--repo", "a/b"], "name one of --repo"),
        (["push", "mine.safetensors", "--licence", "mit", "--to", "cells"], "cells: is not empty"),
        (["push", "mine.safetensors", "--licence", "mit", "--to", "mine.safetensors"], "mine.safetensors: is a file"),
        (["push", "absent.safetensors", "--licence", "mit", "--to", "x"], "absent.safetensors: no such file"),
        (["push", "demoo", "--licence", "mit", "--to", "x"], "did you mean 'demo'"),
        (["push", "table1", "--licence", "mit", "--to", "x"], "no records of board table1"),
        (["push", "demo", "--licence", "mit", "--to", "x", "--record", "y"], "--record is of an encoder"),
        (["push", "mine.safetensors", "--licence", "mit", "--to", "x", "--records", "cells"], "are of a board"),
        (["push", "mine.safetensors", "--licence", "mit", "--to", "x", "--record", "y"], "y: cannot be read"),
        *(
            (["push", "mine.safetensors", "--licence", "mit", "--repo", name], "it must be USER/NAME")
            for name in ("mine", "a/b/c", "../b", "a/b--c", "a/..", "-a/b", "a/b.git", "a /b", "a/" + "b" * 96, "a/b\n")
        ),
        (["push", "mine.safetensors", "--licence", "mit", "--repo", "a/b@v1"], "leave @v1 out"),
        (["pull", "mine"], "'.'; there is no folder mine here"),
        (["pull", "./absent", "--out", "x"], "absent: no such folder"),
        (["pull", "cells", "--out", "x"], "no benchbd.json is in it"),
        (["pull", "cells", "--out", "cells"], "cells: is not empty"),
        (["pull", "cells", "--out", "no/such"], "no: no such folder"),
    ],
)
def test_a_mistake_is_one_line(given: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str) -> None:
    monkeypatch.chdir(given)
    told = call(*arguments)
    assert told.exit_code == 2, told.output
    assert line in told.stderr
    assert told.stderr.startswith("error: ")
    assert told.stderr.count("\n") == 1
    assert {path.name for path in given.iterdir()} == {"mine.safetensors", "cells"}


def test_an_encoder_of_another_library_is_imported_first(tmp_path: Path) -> None:
    from benchbd.exchange.exporting import export_encoder

    encoder = Encoder.seeded("resnet18", (0.5,) * 3, (0.25,) * 3, seed=seeded(1), device="cpu")
    export_encoder(encoder, "torchvision", tmp_path / "net.safetensors")
    with pytest.raises(UsageError, match="benchbd import makes it one of benchbd"):
        encoder_package(tmp_path / "net.safetensors", "mit")
    export_encoder(encoder, "benchbd", tmp_path / "net.pth")
    with pytest.raises(DataError, match="not an encoder written by benchbd"):
        encoder_package(tmp_path / "net.pth", "mit")


def test_python_refuses_another_licence(given: Path) -> None:
    with pytest.raises(BenchbdError, match=r"licence 'gpl': what is pushed has one of apache-2.0, mit"):
        encoder_package(given / "mine.safetensors", "gpl")


# With the library ----------------------------------------------------------------------------------------------------


@pytest.mark.extras
def test_the_library_takes_these_calls_and_reads_the_card(given: Path) -> None:
    import inspect

    import huggingface_hub
    from huggingface_hub import errors

    class Same:
        """Takes any argument for a signature."""

    signature = inspect.signature(huggingface_hub.HfApi.create_commit)
    signature.bind(Same, "a/b", [], commit_message="x", repo_type="model")
    inspect.signature(huggingface_hub.HfApi.create_repo).bind(Same, "a/b", repo_type="dataset", exist_ok=True)
    inspect.signature(huggingface_hub.snapshot_download).bind(
        "a/b", repo_type="model", revision=None, local_dir=".", allow_patterns=["x"]
    )
    huggingface_hub.CommitOperationAdd("README.md", b"x")
    assert issubclass(errors.RepositoryNotFoundError, errors.HfHubHTTPError)
    assert issubclass(errors.RevisionNotFoundError, errors.HfHubHTTPError)
    assert callable(huggingface_hub.get_token)
    cells = sorted((given / "cells").glob("*.json"))
    card = huggingface_hub.ModelCard(encoder_package(given / "mine.safetensors", "mit", cells).files[CARD].decode())
    assert card.data.license == "mit"
    assert card.data.model_name == "mine"
    assert {(each.metric_type, each.metric_value) for each in card.data.eval_results} == {
        ("acc", 80.0),
        ("asr", 99.0),
        ("asr_nontarget", 98.0),
        ("ra", 2.0),
    }
    board = board_package("demo", "apache-2.0", [], [])
    assert huggingface_hub.DatasetCard(board.files[CARD].decode()).data.license == "apache-2.0"


@pytest.mark.extras
@pytest.mark.usefixtures("no_proxy")
def test_the_library_without_a_network(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers at the Hub's address; a line says so before the library asks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for command in (
        ("pull", "me/mine", "--out", tmp_path / "back"),
        ("push", given / "mine.safetensors", "--repo", "me/mine", "--licence", "mit"),
    ):
        told = call(*command)
        assert told.exit_code == 2
        assert told.stderr.startswith("error: 127.0.0.1 cannot be reached (Connection refused)")

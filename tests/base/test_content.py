"""Options as identities contain them: files by content, late options only if they differ from their default."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field

from benchbd import Content, DataError, DefenderKnowledge, Encoder, Mitigation
from benchbd.base.errors import UsageError
from benchbd.base.options import ContentPath, identity_options, validated
from benchbd.cli.main import main
from benchbd.contract.method import identity_of
from benchbd.contract.specs import ReferenceSpec, Table, TriggerSpec
from benchbd.registry import Registry, load_registry

from ..boards import TINY, Tiny, offering


class Part(BaseModel):
    file: Content | None = None


class Loaded(Mitigation):
    """Has a file."""

    name = "loaded"
    version = "1"

    weights: Content | None = Field(None, description="a file")
    more: tuple[Content, ...] = Field((), description="files")
    part: Part = Field(Part(), description="a part with a file")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        assert self.weights is not None
        raise DataError(f"{self.weights}: not the weights of this encoder")


class Plain(Mitigation):
    name = "toy"
    version = "1"

    steps: int = Field(3, description="steps")


class Grown(Plain):
    late = frozenset({"clone", "file"})

    clone: bool = Field(True, description="came later")
    file: Content | None = Field(None, description="came later too")


@pytest.fixture
def registry() -> Registry:
    return load_registry(extra={"loaded": offering(benchbd_defenses=[Loaded])})


def test_a_late_option_at_its_default_is_not_in_the_identity(tmp_path: Path) -> None:
    assert identity_of(Grown()) == identity_of(Plain())
    assert identity_of(Grown(steps=4, clone=True)) == identity_of(Plain(steps=4))
    assert identity_of(Grown(clone=False))["options"] == {"steps": 3, "clone": False}
    (tmp_path / "a").write_text("a")
    assert identity_of(Grown(file=tmp_path / "a"))["options"].keys() == {"steps", "file"}


def test_a_part_of_the_protocol_has_late_fields_too() -> None:
    class Part2(Table):
        late: ClassVar[frozenset[str]] = frozenset({"new"})

        count: int = 1
        new: int = 0

    assert identity_options(Part2()) == {"count": 1}
    assert identity_options(Part2(new=2)) == {"count": 1, "new": 2}


def test_a_file_is_its_content(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (tmp_path / name for name in "abc")
    for one, same, other in (
        (Loaded(weights=a), Loaded(weights=b), Loaded(weights=c)),
        (Loaded(more=(a, a)), Loaded(more=(a, b)), Loaded(more=(a, c))),
        (Loaded(part=Part(file=a)), Loaded(part=Part(file=b)), Loaded(part=Part(file=c))),
    ):
        assert identity_of(one) == identity_of(same) != identity_of(other)
        assert str(tmp_path) not in json.dumps(identity_of(one))


def test_an_absent_or_unreadable_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "absent.pt"
    for method in (Loaded(weights=absent), Loaded(more=(absent,)), Loaded(part=Part(file=absent))):
        with pytest.raises(DataError, match=rf"^loaded\.(weights|more|part): {absent}: no such file$"):
            identity_of(method)
    absent.write_text("there")

    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("benchbd.base.options.path_digest", refused)
    with pytest.raises(DataError, match=rf"^loaded\.weights: {absent}: cannot be read \(Permission denied\)$"):
        identity_of(Loaded(weights=absent))


def test_a_relative_path_is_of_the_boards_folder_and_of_the_working_directory_after_an_option(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TINY.replace('"ft"]', '"loaded"]') + '\n[options.loaded]\nweights = "w.pt"\nmore = ["w.pt"]\n'
    (tmp_path / "board").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "board" / "w.pt").write_text("weights")
    monkeypatch.chdir(tmp_path / "elsewhere")
    tiny = Tiny(tmp_path / "board", registry, text)

    def loaded(*options: str) -> Loaded:
        plan = tiny.plan(attacks=("none",), defenses=("loaded",), options=options)
        method = plan.cells[-1].chain[-1].method
        assert isinstance(method, Loaded)
        assert str(tmp_path) not in "".join(plan.departures)
        return method

    assert loaded().weights == tmp_path / "board" / "w.pt"
    assert loaded().more == (tmp_path / "board" / "w.pt",)
    (tmp_path / "elsewhere" / "o.pt").write_text("weights")
    other = loaded("loaded.weights=o.pt")
    assert (other.weights, other.more) == (Path("o.pt"), (tmp_path / "board" / "w.pt",))
    assert isinstance(other.weights, ContentPath)
    assert identity_of(other) == identity_of(loaded())
    assert tiny.plan(defenses=("loaded",), options=["loaded.weights=o.pt"]).departures == []


def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    for cls in (TriggerSpec, ReferenceSpec):
        with pytest.raises(UsageError, match=r"x\.file: neither a file nor a folder lies there \(got '.*/pipe'\)"):
            validated(cls, {"file": str(pipe)}, "x")


def test_an_empty_path_is_no_folder() -> None:
    with pytest.raises(UsageError, match=r"^x\.file: empty; name a file, or null \(got ''\)$"):
        validated(TriggerSpec, {"file": ""}, "x")
    assert validated(TriggerSpec, {"file": "."}, "x").file == ContentPath(".")
    with pytest.raises(UsageError, match=r"^x\.more\.1: empty; name a file, or null"):
        validated(Loaded, {"more": ["a", ""]}, "x")


def test_no_path_of_the_machine_is_in_a_record(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Tiny(tmp_path, registry)
    (tmp_path / "w.pt").write_text("weights")
    chosen = {"attacks": ("none",), "defenses": ("loaded",), "options": (f"loaded.weights={tmp_path / 'w.pt'}",)}
    (record,) = tiny.run(**chosen)
    assert record.reason == "defend loaded: w.pt: not the weights of this encoder"
    assert record.departures[0].startswith("loaded.weights=")
    assert str(tmp_path) not in record.to_json()
    monkeypatch.setattr("benchbd.api.load_registry", lambda: registry)
    arguments = ["--attack", "none", "--defense", "loaded", "-o", "loaded.weights=none.pt"]
    for command in ("plan", "run"):
        result = CliRunner().invoke(main, [command, *tiny.arguments, *arguments])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == "error: loaded.weights: none.pt: no such file\n"

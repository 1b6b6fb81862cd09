"""`benchbd plugin new`: every axis has a plugin that works, names are checked, nothing is overwritten."""

from __future__ import annotations

import ast
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchbd.base.errors import StoreError, UsageError
from benchbd.contract.axes import AXES, Axis
from benchbd.registry import Registry, load_registry
from benchbd.scaffold import LICENCES, example_of, new_plugin, trial

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
@pytest.mark.fixed_draw("three steps; check_method compares bits of one draw")
def test_a_new_plugin_keeps_its_contract_under_its_own_name(
    registry: Registry, axis: Axis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"new-{axis.name}"
    folder, files = new_plugin(registry, name, axis.name, tmp_path / "new", author="Ada Lovelace")
    assert sorted(files) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    module = f"benchbd_new_{axis.name}"
    assert project["project"]["name"] == f"benchbd-new-{axis.name}"
    assert project["project"]["entry-points"]["benchbd"] == {name: module}
    assert project["tool"]["setuptools"]["py-modules"] == [module]
    assert {f"{module}.py", f"tests/test_{module}.py", "README.md", "LICENSE", "CITATION.cff"} <= set(files)
    assert not [file for file in files if "{{" in (folder / file).read_text()]
    assert 'name: "Ada Lovelace"' in (folder / "CITATION.cff").read_text()
    assert f"$ {trial(axis, name, (folder / f'{module}.py').read_text())}\n" in (folder / "README.md").read_text()

    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(folder / "tests")
    loaded = load_registry(extra={name: import_module(module)})
    assert loaded.problems == []
    cls = loaded.get(axis.name, name)
    assert cls.__name__ == f"New{axis.name.capitalize()}"
    assert cls.model_fields, "no option shows the form"
    import_module(f"test_{module}").test_it_keeps_the_contract()


def test_a_name_that_python_has_or_the_module_uses_gets_another_class(registry: Registry, tmp_path: Path) -> None:
    for name, axis, cls in (
        ("none", "detection", "DetectionNone"),
        ("3d", "defense", "Mitigation3d"),
        ("encoder", "defense", "MitigationEncoder"),
        ("shrink", "defense", "Shrink"),
        ("a_b-c", "attack", "ABC"),
    ):
        folder, files = new_plugin(registry, name, axis, tmp_path / name)
        module = f"benchbd_{name.replace('-', '_')}"
        (found,) = (
            node for node in ast.parse((folder / f"{module}.py").read_text()).body if isinstance(node, ast.ClassDef)
        )
        assert found.name == cls
        assert f"import {cls}\n" in (folder / files[-1]).read_text()
    assert (tmp_path / "shrink" / "benchbd_shrink.py").read_text() == example_of(
        next(axis for axis in AXES if axis.name == "defense")
    )


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (("ft", "defense"), r"^defense 'ft' is in benchbd already; 'my-ft' would do$"),
        (("Grad Clip", "defense"), r"^the name 'Grad Clip' is not made of .*; 'grad-clip' would do$"),
        (("FT", "defense"), r"'FT' is not made of .*; 'my-ft' would do$"),
        (("../x", "defense"), r"; 'x' would do$"),
        (("", "defense"), r"^it has no name.*; 'mine' would do$"),
        (("x" * 41, "defense"), rf"^its name has 41 characters; .*; '{'x' * 37}' would do$"),
        (("trigger", "attack"), r"^the name 'trigger' is reserved.*; 'my-trigger' would do$"),
        (("good", "defence"), r"^unknown axis 'defence': did you mean 'defense'\?"),
        (("good", "defense", None, {"licence": "MIT"}), r"^unknown licence 'MIT': did you mean 'mit'\?"),
        (("good", "defense", None, {"author": 'A "B"'}), r"^author 'A \"B\"': a name is one line without quotes"),
        (("good", "defense", None, {"author": "a\nb"}), r"^author 'a\\nb': a name is one line"),
    ],
)
def test_what_would_be_no_plugin_is_refused(
    registry: Registry, asked: tuple[Any, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, axis, *rest = asked
    with pytest.raises(UsageError, match=complaint) as caught:
        new_plugin(registry, name, axis, **(rest[1] if rest else {}))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = new_plugin(registry, "good", "defense")
    assert folder == Path("benchbd-good")
    (folder / "benchbd_good.py").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for out in (None, "file", "empty", "link"):
        with pytest.raises(UsageError, match=rf"^{out or 'benchbd-good'}: exists already; --out names a new folder$"):
            new_plugin(registry, "good", "defense", out)
    assert (folder / "benchbd_good.py").read_text() == (tmp_path / "file").read_text() == "mine"
    with pytest.raises(StoreError, match=r"^file/good: cannot be written \(Not a directory\)$"):
        new_plugin(registry, "good", "defense", "file/good")


@pytest.mark.parametrize(("licence", "spdx"), LICENCES.items())
def test_the_licence_is_the_one_that_was_chosen(registry: Registry, tmp_path: Path, licence: str, spdx: str) -> None:
    folder, _ = new_plugin(registry, "good", "defense", tmp_path / licence, licence=licence)
    text = (folder / "LICENSE").read_text()
    assert (
        text == (ROOT / "LICENSE").read_text() if licence == "apache-2.0" else "(c) the authors of benchbd-good" in text
    )
    assert tomllib.loads((folder / "pyproject.toml").read_text())["project"]["license"] == spdx
    assert f"license: {spdx}\n" in (folder / "CITATION.cff").read_text()

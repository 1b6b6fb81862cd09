"""The tutorial is right: its modules keep the contract, and its commands lead from nothing to rows in tables."""

from __future__ import annotations

import os
import re
import shlex
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from benchbd.cli.main import main
from benchbd.contract.axes import AXES
from benchbd.registry import load_registry
from benchbd.testing.conformance import check_properties

from ..installed import install

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text()


def modules() -> dict[str, str]:
    """The text of each module, by the file that the page names before it."""
    found = {}
    for before, text in re.findall(r"(.*?)```python\n(.*?)```", PAGE, re.DOTALL):
        found[re.findall(r"`(benchbd-\w+/benchbd_\w+\.py)`:", before)[-1]] = text
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the page's commands run; whatever they install is found in it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def loaded(text: str, file: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(folder)
    (folder / Path(file).name).write_text(text)
    return import_module(Path(file).stem)


@pytest.mark.parametrize(("file", "text"), modules().items(), ids=modules())
@pytest.mark.fixed_draw("one step; the contract compares bits of one draw")
def test_a_module_of_the_page_holds_all_properties(
    file: str, text: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = loaded(text, file, folder, monkeypatch)
    assert load_registry(extra={module.__name__: module}).problems == []
    (axis,) = (axis for axis in AXES if hasattr(module, axis.hook))
    (cls,) = getattr(module, axis.hook)()
    (tmp_path / "check").mkdir()
    checked = check_properties(cls, tmp_path / "check")
    assert {finding.state for finding in checked.findings.values()} == {"pass"}, checked
    assert cls.model_fields, "no option shows the form"


def test_the_page_has_a_defense_an_attack_and_a_detector() -> None:
    assert [re.findall(r"^def benchbd_(\w+)s\(", text, re.MULTILINE)[0] for text in modules().values()] == [
        *("defense", "attack", "detection")
    ]


@pytest.mark.slow
@pytest.mark.fixed_draw("five steps a stage; the form of the output is read, no figure")
def test_the_page_leads_from_nothing_to_rows_in_tables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, printed = modules(), dict[str, str]()
    monkeypatch.setenv("BENCHBD_STORE", str(folder.parent / "store"))
    for language, text in re.findall(r"```(console|python)\n(.*?)```", PAGE, re.DOTALL):
        if language == "python":
            (file,) = (file for file, own in texts.items() if own == text)
            assert (folder / file).is_file()  # `plugin new` wrote the one that is replaced
            (folder / file).write_text(text)
        for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
            if line.startswith("pip install -e "):
                install(folder / line.split()[-1], folder.parent / "site", monkeypatch)
                places = [folder.parent / "site", *folder.glob("benchbd-*")]  # for the process of `plugin check`
                monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
                continue
            command = shlex.split(line.replace("demo", "smoke").removeprefix("benchbd "))
            done = CliRunner().invoke(main, command)
            assert done.exit_code == 0, (line, done.output)
            printed[line] = done.stdout

    def shown(command: str, pattern: str) -> bool:
        return any(line.startswith(command) and re.search(pattern, text, re.M) for line, text in printed.items())

    assert len(printed) == 15
    for name, pair in (("limit", "badencoder +limit"), ("magnet", "magnet +none"), ("magnet", "magnet +limit")):
        assert shown("benchbd run", rf"^{pair} +\d+\.\d"), pair
        assert shown(f"benchbd plugin check {name}", r"^  determinism +pass$")
    assert shown("benchbd run", r"^rank against magnet on shapes -> shapes:3$")
    assert "fail" not in "".join(text for line, text in printed.items() if "plugin check" in line)
    tables = (folder / "our-smoke" / "README.md").read_text()
    for first, second in (("badencoder", "limit"), ("magnet", "limit"), ("rank", "magnet")):
        assert re.search(rf"^\| {first} +\| {second} +\|", tables, re.M), first

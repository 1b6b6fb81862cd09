"""Stdout contains only the document: all that a plugin prints, in any way, goes to stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchbd.cli.main

from ..boards import completed

CHATTY = """
import atexit, ctypes, os, subprocess, sys
from benchbd import Mitigation, hookimpl

sys.stdout.close(), sys.stderr.close()  # nobody can
print("by print")
os.write(1, b"by descriptor\\n")
subprocess.run(["echo", "by a child"])
ctypes.CDLL(None).printf(b"by C\\n")  # held back until the process ends
sys.__stdout__.write("by the other name\\n")
sys.stdout.buffer.write(b"by bytes\\n")
atexit.register(sys.stdout.close)
atexit.register(print, "at exit")
sys.stdout = sys.stderr = None


class Mine(Mitigation):
    name = "mine"

    def repair(self, encoder, knowledge):
        return encoder


@hookimpl
def benchbd_defenses():
    print("by a hook")
    return [Mine]
"""
SAID = ("by print", "by descriptor", "by a child", "by C", "by the other name", "by bytes", "by a hook", "at exit")

# The plugin alone, so that nothing imports torch.
PROGRAM = """
import sys
from importlib.metadata import EntryPoint
import benchbd.registry
benchbd.registry.entry_points = lambda group: [EntryPoint("chatty", "chatty", "benchbd")]
from benchbd.cli.main import main
main(sys.argv[1:])
"""


def plugins(
    folder: Path, *arguments: str, redirect: str = "", program: str = PROGRAM
) -> subprocess.CompletedProcess[str]:
    """The command ``plugins`` in a process of its own, with a plugin that prints in every way."""
    (folder / "chatty.py").write_text(CHATTY)
    command = f'exec "{sys.executable}" -c "$PROGRAM" plugins {" ".join(arguments)} {redirect}'
    return completed(["bash", "-c", command], PYTHONPATH=str(folder), PROGRAM=program)


def test_a_process_prints_one_document_whatever_a_plugin_prints(tmp_path: Path) -> None:
    done = plugins(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["adds"] == {"defense": ["mine"]}
    assert sorted(done.stderr.splitlines()) == sorted(SAID)
    table = plugins(tmp_path)
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["plugin", "------", "chatty"]
    assert sorted(table.stderr.splitlines()) == sorted(SAID)


@pytest.mark.parametrize(("redirect", "code"), [(">&-", 0), ("2>&-", 0), (">/dev/full", 2)])
def test_a_stream_that_is_closed_or_full(tmp_path: Path, redirect: str, code: int) -> None:
    done = plugins(tmp_path, "--json", redirect=redirect)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if redirect == "2>&-":
        assert json.loads(done.stdout)[0]["name"] == "chatty"
    else:
        assert done.stdout == ""
    if code == 2:
        assert "error: No space left on device" in done.stderr.splitlines()


def test_stdout_is_given_back_where_the_process_goes_on(tmp_path: Path) -> None:
    program = PROGRAM.replace(
        "main(sys.argv[1:])", "main(sys.argv[1:], standalone_mode=False); print('after', flush=True)"
    )
    done = plugins(tmp_path, "--json", program=program)
    document, _, _ = done.stdout.partition("\nafter\n")
    assert json.loads(document)[0]["name"] == "chatty"


def test_every_line_for_stdout_is_said() -> None:
    """Click's own output goes to stderr while a command works."""
    sources = [path.read_text() for path in Path(benchbd.cli.main.__file__).parent.glob("*.py")]
    assert len(sources) > 5
    lines = [line for source in sources for line in source.splitlines()]
    assert [line for line in lines if "echo(" in line and "err=True" not in line] == []

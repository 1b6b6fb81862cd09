"""Have a process with limits read a file of ``torch.save``, and name in one line what it ran into."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchbd.base.errors import DataError, first_line

SECONDS = 60  # of a processor, for a file of any size; importing torch takes 2 to 5

_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL")  # no token, no password

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from benchbd.exchange import child; child.main()"


@dataclass(frozen=True)
class Unpickled:
    """What the process found.

    tensors: the safetensors file with the tensors, named by their number. names: per tensor, the keys that lead to it.
    dropped: the number of values that are no tensors.
    """

    tensors: Path
    names: list[list[str]]
    dropped: int


def unpickle(path: Path, size: int, folder: Path) -> Unpickled:
    """What a process of its own reads from a file of ``torch.save`` and leaves in an empty ``folder``.

    The process has a session, a folder and an environment of its own, no input, and, where the system has such limits,
    time for its processor and memory in proportion to ``size`` bytes. DataError if it refuses the file or is ended.
    """
    seconds = SECONDS + size // 10**7
    command = [sys.executable, "-I", "-c", _START, json.dumps([os.path.abspath(place) for place in sys.path])]
    own = {"HOME": str(folder), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | own
    with (folder / "errors").open("wb") as errors:
        try:
            code = subprocess.run(
                [*command, str(path.absolute()), str(folder), str(size), str(seconds)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=folder,
                env=environment,
                start_new_session=True,
                timeout=20 * seconds,  # for a process that waits, and for systems without limits
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise DataError(f"{path}: not read: it took more than {20 * seconds} s") from None
    if code < 0:
        raise DataError(f"{path}: not read: {_ended(-code, seconds)}")
    try:
        answer = json.loads((folder / "answer.json").read_text())
    except (OSError, ValueError):
        last = (folder / "errors").read_text(errors="replace").strip().rpartition("\n")[2]
        raise DataError(f"{path}: not read: the process that reads it failed ({first_line(last) or code})") from None
    if "refused" in answer:
        raise DataError(f"{path}: {answer['refused']}")
    return Unpickled(folder / "tensors.safetensors", answer["names"], answer["dropped"])


def _ended(number: int, seconds: int) -> str:
    """Why a signal ended the process."""
    if number == getattr(signal, "SIGXCPU", None):
        return f"it took more than {seconds} s, far too long for its size"
    if number == getattr(signal, "SIGKILL", None):
        return "the system ended the process that reads it, as it does if memory is full"
    return f"the process that reads it crashed (signal {number})"

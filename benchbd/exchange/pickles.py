"""Read the pickle in a file of ``torch.save`` without running it, and refuse every step that tensors do not need.

A pickle is a list of steps that build objects; a step that names a function or a class can run code. ``torch.load``
with ``weights_only`` allows few names and few steps. This module refuses what ``torch.load`` would refuse, but earlier,
without a process of its own, and names the class.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from benchbd.base.errors import DataError, fault, shown
from benchbd.base.inputs import obstacle

LONGEST = 8 * 2**20  # bytes of a pickle; that of a net with a thousand tensors has 0.2 MB

_MAGIC = 0x1950A86A20F9469CFC6C  # the number that a file of torch.save before 1.6 begins with

_STEPS = re.compile(
    "PROTO|STOP|MARK|GLOBAL|NEWOBJ|REDUCE|BUILD|APPENDS?|SETITEMS?|TUPLE[123]?|NONE|NEWFALSE|NEWTRUE|"
    "EMPTY_(TUPLE|LIST|DICT|SET)|BINPERSID|BININT[12]?|BINFLOAT|(LONG_)?BINGET|(LONG_)?BINPUT|BINUNICODE|"
    "SHORT_BINSTRING|LONG1"
)
"""The steps that torch's restricted reader knows; ``torch.save`` writes no others by default."""

_PROTOCOL = re.compile(rb"\x80[\x02-\x05]")  # how a pickle begins, unless it is of an old kind

_INERT = re.compile(
    r"torch(\.\w+)+|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(bytearray|set|complex)"
)
"""The names that may pass to the restricted reader, which decides about those of torch."""

NOTES = (
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
"""Classes of notes on a training that lie beside its weights; an empty object takes the place of each."""

ADVICE = "ask its author for a safetensors file, or for torch.save(model.state_dict(), ...) alone"


def foreign(name: str) -> str:
    """What is wrong with a file that names a class, or a function, that tensors do not need."""
    return (
        f"it holds other objects than tensors, the first of {shown(name)}, and building them could run a stranger's "
        f"code: {ADVICE}"
    )


def check_pickle(path: Path) -> bool:
    """Whether a file is one of ``torch.save`` in the form before 1.6; False if it is no pickle at all.

    DataError if it is another pickle, or one that does more than to list tensors.
    """
    with path.open("rb") as file:
        stream = BytesIO(file.read(LONGEST))
    written = False
    try:
        for _, argument, _ in pickletools.genops(stream):
            written = written or argument == _MAGIC
    except Exception:  # pickletools raises errors of many types on what is no pickle
        if not _PROTOCOL.match(stream.getbuffer()):
            return False
    stream.seek(0)
    _check(path, stream)
    if not written:
        raise DataError(f"{path}: a Python pickle, and not one that torch.save wrote: {ADVICE}")
    for _ in range(4):  # the version, the machine, the content, and the order of the bytes of tensors, which follow
        _check(path, stream)
    return True


def check_archive(path: Path, size: int) -> None:
    """DataError unless a zip file is one of ``torch.save`` whose pickle does no more than to list tensors.

    size: of the file, in bytes; no more can be in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickle = _member(path, archive.infolist(), size)
            _check(path, BytesIO(archive.read(pickle)))
            damaged = archive.testzip()
    except DataError:
        raise
    except Exception as error:  # zipfile raises errors of many types on damaged bytes
        if "memory" in (reason := obstacle(error)) or "files" in reason:
            raise
        if "not a zip file" in str(error):
            raise DataError(f"{path}: cut off: a zip archive without its end; download it again") from error
        raise DataError(f"{path}: a damaged zip archive ({fault(error)}); download it again") from error
    if damaged is not None:
        raise DataError(f"{path}: damaged: the checksum of {shown(damaged)} is another; download it again")


def _member(path: Path, members: list[zipfile.ZipInfo], size: int) -> zipfile.ZipInfo:
    """The member of an archive of ``torch.save`` that is its pickle; DataError if the archive is of another kind."""
    names = [member.filename for member in members]
    within = {name.partition("/")[2] for name in names}
    if "constants.pkl" in within or any(name.startswith("code/") for name in within):
        raise DataError(f"{path}: a TorchScript archive, which holds a program beside the weights: {ADVICE}")
    if "data.pkl" not in within:
        raise DataError(f"{path}: a zip archive that torch.save did not write: {_other(names)}")
    if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) > 1:
        raise DataError(f"{path}: not as torch.save writes it: its members have one name, or lie in two folders")
    if any(member.flag_bits & 1 for member in members):
        raise DataError(f"{path}: its members are encrypted: {ADVICE}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise DataError(f"{path}: not as torch.save writes it: members of the archive are compressed")
    if (declared := sum(member.file_size for member in members)) > size:
        raise DataError(f"{path}: its members claim {declared:,} bytes, more than the file has ({size:,})")
    pickle = next(member for member in members if member.filename.partition("/")[2] == "data.pkl")
    if pickle.file_size > LONGEST:
        raise DataError(f"{path}: its list of tensors has {pickle.file_size / 2**20:.0f} MB: {ADVICE}")
    return pickle


def _other(names: list[str]) -> str:
    """What a zip archive of another kind is, from the names in it."""
    packed = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors", ".pkl")
    if within := next((name for name in names if name.endswith(packed)), None):
        return f"unpack it first; {shown(within)} is in it"
    if "[Content_Types].xml" in names:
        return "it is an Office document"
    if names and all(name.endswith(".npy") for name in names):
        return "it is an npz file"
    return f"{shown(names[0])} is in it" if names else "it is empty"


def _check(path: Path, stream: BytesIO) -> None:
    """Read one pickle of a stream. DataError if it names a class or takes a step that a list of tensors has not."""
    odd = ""
    try:
        for step, name in _steps(stream):
            if name and not _INERT.fullmatch(name) and name not in NOTES:
                raise DataError(f"{path}: {foreign(name)}")
            odd = odd or ("" if _STEPS.fullmatch(step) else step)
    except DataError:
        raise
    except Exception as error:  # pickletools raises errors of many types on damaged bytes
        raise DataError(f"{path}: cut off or damaged: its list of tensors ends early ({fault(error)})") from error
    if odd:
        raise DataError(f"{path}: a pickle with the step {odd}, which torch.save does not write by default: {ADVICE}")


def _steps(stream: BytesIO) -> Iterator[tuple[str, str]]:
    """Each step of a pickle, and what it names ("module.class"), or an empty text."""
    texts: deque[str] = deque(["", ""], maxlen=2)  # the last that were pushed: STACK_GLOBAL takes them as its names
    memo: dict[int, str] = {}
    memoized = 0
    pushed = False
    for operation, argument, _ in pickletools.genops(stream):
        step, name = operation.name, ""
        if step in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            if pushed:
                memo[memoized if argument is None else argument] = texts[-1]
            memoized += 1
        pushed = isinstance(argument, str) and step not in ("GLOBAL", "INST")
        if pushed:
            texts.append(str(argument))
        elif step in ("GET", "BINGET", "LONG_BINGET") and argument in memo:
            texts.append(memo[argument])
        elif step in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".", 1)
        elif step == "STACK_GLOBAL":
            name = ".".join(texts)
        elif step.startswith("EXT"):
            name = f"extension {argument}"
        yield step, re.sub("^__builtin__", "builtins", name)  # as Python 2 called it

"""Check the installation, the device, the data root, the store and the process that reads strangers' files.

Whatever is broken, the result of a check is a finding: each check imports what it needs itself, and any exception that
leaves it becomes a problem.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from benchbd._version import __version__
from benchbd.base.errors import BenchbdError, first_line, is_interrupt, named
from benchbd.report.diagnosed import Finding, State

if TYPE_CHECKING:
    from benchbd.store.store import Store

GIB = 2**30

MEMORY = 2 * GIB  # bytes: a run on small images and its libraries need about half

SPACE = 5 * GIB  # bytes: a board leaves some hundred encoders of up to 45 MB

_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?[^;]*(?:;\s*extra\s*==\s*['\"]([\w-]+)['\"])?")

_DEVELOPMENT = ("dev", "docs")  # extras that only developers need

log = logging.getLogger("benchbd")


def examine(
    *, data_root: str | Path | None = None, store: str | Path | None = None, device: str | None = None
) -> list[Finding]:
    """One finding per check, in the order of the list below; arguments as in ``run``. Takes some seconds."""
    checks: dict[str, Callable[[str], Finding]] = {
        "installation": _installation,
        "extras": _extras,
        "torch": _torch,
        "plugins": _plugins,
        "device": partial(_device, name=device),
        "memory": _memory,
        "data root": partial(_data_root, option=data_root),
        "store": partial(_store, option=store),
        "space": partial(_space, option=store),
        "stages": partial(_stages, option=store),
        "sandbox": _sandbox,
    }
    with _quiet():
        found = {name: _isolated(name, check) for name, check in checks.items()}
    for name in ("space", "stages"):
        if found[name].state == "problem" and found[name].found == found["store"].found:
            found[name] = Finding(name, "warning", "not checked: see store")
    return list(found.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """In the block benchbd logs nothing: findings contain what the warnings would."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _isolated(name: str, check: Callable[[str], Finding]) -> Finding:
    """The finding of a check; a problem if an exception leaves it, and a warning if a library warned in it."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = check(name)
    except BenchbdError as error:
        return Finding(name, "problem", str(error))
    except ModuleNotFoundError as error:
        return Finding(name, "problem", first_line(str(error)), "install benchbd again, with its dependencies")
    except BaseException as error:  # a broken library may raise anything, and end the process
        if is_interrupt(error):
            raise
        return Finding(name, "problem", named(error))
    said = [first_line(str(each.message)) for each in told if not issubclass(each.category, DeprecationWarning)]
    if said and found.state == "ok":
        return Finding(name, "warning", f"{found.found}; a library warns: {said[0]}", found.mend)
    return found


# The installation ----------------------------------------------------------------------------------------------------


def _requirements() -> Iterator[tuple[str, str, str]]:
    """(distribution, oldest version, extra) of everything that benchbd asks for; the last two may be empty."""
    for line in requires("benchbd") or ():
        if found := _REQUIREMENT.match(line):
            yield found[1], found[2] or "", found[3] or ""


def _lacking(name: str, oldest: str) -> str:
    """What is wrong with a distribution that benchbd asks for; empty if it is there and new enough."""
    try:
        there = version(name)
    except PackageNotFoundError:
        return f"{name} is absent"
    numbers = [tuple(map(int, re.findall(r"\d+", text.partition("+")[0]))) for text in (there, oldest)]
    return f"{name} is {there}" if numbers[0] < numbers[1] else ""


def _installation(check: str) -> Finding:
    told = f"benchbd {__version__}, Python {platform.python_version()}"
    try:
        needed = [(name, oldest) for name, oldest, extra in _requirements() if not extra]
    except PackageNotFoundError:
        return Finding(check, "problem", f"{told}; it is not installed, so it has no plugins", "pip install .")
    if lacking := {name: flaw for name, oldest in needed if (flaw := _lacking(name, oldest))}:
        asked = " ".join(f"'{name}>={oldest}'" for name, oldest in needed if name in lacking)
        return Finding(check, "problem", f"{told}; {', '.join(lacking.values())}", f"pip install {asked}")
    return Finding(check, "ok", f"{told}, {len(needed)} libraries")


def _extras(check: str) -> Finding:
    by_extra: dict[str, list[tuple[str, str]]] = {}
    for name, oldest, extra in _requirements():
        if extra and extra not in _DEVELOPMENT:
            by_extra.setdefault(extra, []).append((name, oldest))
    present, absent, old = [], [], []
    for extra, needed in sorted(by_extra.items()):
        flaws = [flaw for name, oldest in needed if (flaw := _lacking(name, oldest))]
        if not flaws:
            present.append(extra)
        elif any("absent" in flaw for flaw in flaws):
            absent.append(extra)
        else:
            old.append(f"{extra}: {', '.join(flaws)}, too old")
    told = f"present: {', '.join(present) or 'none'}; absent: {', '.join(absent) or 'none'}"
    wanted = old or absent
    mend = f"pip install 'benchbd[{','.join(each.partition(':')[0] for each in wanted)}]'" if wanted else ""
    return Finding(check, "warning" if old else "ok", "; ".join([told, *old]), f"{mend} adds them" if mend else "")


def _torch(check: str) -> Finding:
    import torch
    import torchvision  # it raises if it was built for another torch

    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    return Finding(check, "ok", f"torch {torch.__version__} ({build}) and torchvision {torchvision.__version__} load")


def _plugins(check: str) -> Finding:
    from benchbd.registry import load_registry

    registry = load_registry()
    methods = sum(map(len, registry.methods.values()))
    if registry.problems:
        return Finding(check, "problem", "; ".join(registry.problems), "mend or uninstall it; the others work")
    if not methods:
        return Finding(check, "problem", "no plugin is found, so there is no method", "pip install .")
    return Finding(check, "ok", f"{len(registry.plugins)} plugins, {methods} methods")


# The machine ---------------------------------------------------------------------------------------------------------


def _device(check: str, name: str | None) -> Finding:
    import torch

    from benchbd.base.device import native_bf16, pick_device

    device = pick_device(name)
    ones = torch.ones(64, 64, device=device)
    if (total := float((ones @ ones).sum())) != 64**3:
        return Finding(check, "problem", f"{device} multiplies wrongly: {total} instead of {64**3}")
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        told = f"{device}, {torch.cuda.get_device_name(device)}, {_gib(free)} of {_gib(whole)} free, bf16"
        return Finding(check, "ok", told)
    threads, cores = torch.get_num_threads(), _cores()
    half = f"{'native' if native_bf16() else 'no native'} bf16"
    told = f"CPU, {platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, fp32, {half}, threads: {threads}"
    if name is None and Path("/proc/driver/nvidia/version").exists():
        mend = "install a build of torch for CUDA" if torch.version.cuda is None else "run nvidia-smi to see why"
        return Finding(check, "warning", f"{told}; there is an NVIDIA driver, and torch sees no GPU", mend)
    if threads > cores:
        return Finding(check, "warning", f"{told}, more than the {cores} cores", f"export OMP_NUM_THREADS={cores}")
    return Finding(check, "ok", told)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory(check: str) -> Finding:
    try:
        free = _available()
    except OSError:  # no /proc
        return Finding(check, "ok", "this system does not tell how much is free")
    if free < MEMORY:
        return Finding(check, "warning", f"{_gib(free)} free", f"close other programs; a run takes {_gib(MEMORY)}")
    return Finding(check, "ok", f"{_gib(free)} free")


def _available(proc: Path = Path("/proc"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process can still have, in a container too. OSError if the system does not tell."""
    told = dict(line.split()[:2] for line in (proc / "meminfo").read_text().splitlines())
    available = 1024 * int(told["MemAvailable:"])
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - used + int(stat.get("inactive_file", 0)))


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


# Places --------------------------------------------------------------------------------------------------------------


def _data_root(check: str, option: str | Path | None) -> Finding:
    from benchbd.data.library import find_data_root
    from benchbd.data.own import is_there
    from benchbd.registry import load_registry

    root = find_data_root(option)
    if not root.is_dir():
        state: State = "problem" if option or os.environ.get("BENCHBD_DATA") or root.exists() else "warning"
        what = "no folder" if root.exists() else "no such folder"
        mend = "name one with --data-root or BENCHBD_DATA; boards of generated images need none"
        return Finding(check, state, f"{root}: {what}", mend)
    found, flaws = [], []
    for folder in sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith(".")):
        try:
            if layout := _readable(folder):
                found.append(f"{folder.name} ({layout})")
        except OSError as error:
            flaws.append(f"{error.filename or folder}: {error.strerror or error}")
        except BenchbdError as error:
            flaws.append(str(error))
    known = load_registry().methods["dataset"]
    for name, cls in known.items():
        if (root / name).is_dir() and is_there(cls(), root):  # type: ignore[arg-type]
            found.append(f"{name} (torchvision's files)")
    told = f"{root}: {', '.join(sorted(found)) or 'no data set in a known layout'}"
    if flaws:
        return Finding(check, "problem", f"{told}; {'; '.join(flaws)}", "download these files again, or move them")
    mend = "" if found else "README.md lists the layouts; boards of generated images need none"
    return Finding(check, "ok" if found else "warning", told, mend)


def _readable(folder: Path) -> str:
    """The layout of a data set's folder; empty if it has none. DataError or OSError for the first file, apart from
    pictures in class folders, that is a stand-in for another or may not be read."""
    from benchbd.base.errors import DataError
    from benchbd.base.inputs import HEAD, is_stand_in, kind_of
    from benchbd.data.layouts import STORED, find, layouts_in

    layouts = layouts_in(folder)
    if len(layouts) > 1:
        raise DataError(f"{folder}: two layouts in one folder, {' and '.join(layouts)}")
    for file in (file for layout in layouts for split in STORED for file in find(layout, folder, split)):
        if not file.is_dir():
            with file.open("rb") as content:
                kind = kind_of(content.read(HEAD))
            if is_stand_in(kind):
                raise DataError(f"{file}: it is {kind}")
    return "".join(layouts)


def _place(option: str | Path | None) -> tuple[Path, Path]:
    """The store's folder, and the nearest folder of its path that exists."""
    from benchbd.store.store import find_root

    root = find_root(option)
    return root, next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())


def _store(check: str, option: str | Path | None) -> Finding:
    from benchbd.store.store import Store

    root, existing = _place(option)
    other = "choose another with --store or BENCHBD_STORE"
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".doctor-") as folder:
            if (held := Store(Path(folder)).hold("probe", wait=False)) is None:
                return Finding(check, "problem", f"{root}: a lock that nobody holds cannot be taken", other)
            with held:
                second = Store(Path(folder)).hold("probe", wait=False)
            if second is not None:
                return Finding(check, "problem", f"{root}: its file system lets two processes have one lock", other)
    except OSError as error:
        return Finding(check, "problem", f"{root}: cannot be written ({error.strerror or error})", other)
    return Finding(
        check, "ok", f"{root}: can be written, has locks{'' if existing == root else '; the first run makes it'}"
    )


def _space(check: str, option: str | Path | None) -> Finding:
    root, existing = _place(option)
    free = shutil.disk_usage(existing).free
    if free < SPACE:
        mend = "remove stages that you do not need, or choose another store with --store or BENCHBD_STORE"
        return Finding(check, "warning", f"{_gib(free)} free for {root}", mend)
    return Finding(check, "ok", f"{_gib(free)} free for the store")


def _stages(check: str, option: str | Path | None) -> Finding:
    from benchbd.store.store import MANIFEST, Store

    root, _ = _place(option)
    store = Store(root, writable=False)
    manifests = store.manifests()
    whole = [each for each in manifests if all((store.folder(each["key"]) / name).is_file() for name in each["blobs"])]
    damaged = sum(1 for _ in root.glob(f"stages/*/*/{MANIFEST}")) - len(whole)
    aside = sum(1 for _ in root.glob("damaged/*"))
    told = f"{len(whole)} in the store"
    computing = [path.stem for path in root.glob("locks/*.lock") if len(path.stem) == 64 and not store.has(path.stem)]
    if running := [key for key in computing if _is_held(store, key)]:
        told += f", {len(running)} being computed ({store.holder(running[0])})"
    if damaged or aside:
        told += f"; {damaged} damaged, {aside} set aside as damaged in {root / 'damaged'}"
        mend = "runs compute them again; delete those that are set aside, and check the disk if there are more"
        return Finding(check, "warning", told, mend)
    return Finding(check, "ok", told)


def _is_held(store: Store, key: str) -> bool:
    """Whether a process computes a stage now."""
    if (mine := store.hold(key, wait=False)) is None:
        return True
    mine.close()
    return False


# Strangers' files ----------------------------------------------------------------------------------------------------


class _Planted:
    """A pickle of it makes a file when it is loaded as an ordinary pickle."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.canary), "w")


def _sandbox(check: str) -> Finding:
    import torch

    from benchbd.base.errors import DataError
    from benchbd.exchange.checkpoint import read_checkpoint
    from benchbd.exchange.sandbox import unpickle

    with tempfile.TemporaryDirectory(prefix="benchbd-doctor-") as name:
        folder = Path(name)
        harmless, planted, canary = folder / "harmless.pth", folder / "planted.pth", folder / "canary"
        torch.save({"weight": torch.arange(3.0)}, harmless)
        torch.save({"note": _Planted(canary), "weight": torch.arange(3.0)}, planted)
        if read_checkpoint(harmless).groups[""]["weight"].tolist() != [0, 1, 2]:
            return Finding(check, "problem", "the process that reads strangers' files changes their tensors")
        (work := folder / "work").mkdir()
        try:
            unpickle(planted, planted.stat().st_size, work)
        except DataError:
            refused = not canary.exists()
        else:
            refused = False
        if not refused:
            return Finding(check, "problem", "a planted payload was not refused", "import no files, and report this")
    try:
        import resource  # noqa: F401
    except ImportError:
        told = "a file is read and a planted payload refused, but this system has no limits for a process"
        return Finding(check, "warning", told, "import files of strangers on Linux")
    return Finding(check, "ok", "a file is read in a process with limits, and a planted payload is refused")

"""``doctor``: what works is ok, and every broken setup is a finding of one line, never a traceback."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import benchbd.doctor
import benchbd.exchange.checkpoint
import benchbd.exchange.sandbox
from benchbd.base.errors import DataError
from benchbd.cli.main import main
from benchbd.doctor import GIB, examine
from benchbd.report.diagnosed import Finding
from benchbd.store.store import MANIFEST, Store

from .conftest import write_npz_set
from .store.test_store import KEY, put

CHECKS = (
    *("installation", "extras", "torch", "plugins", "device", "memory"),
    *("data root", "store", "space", "stages", "sandbox"),
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *(str(argument) for argument in arguments)])


def check(name: str, **places: Path | str) -> Finding:
    """The finding of one check."""
    options = {"data root": ("option", "data_root"), "device": ("name", "device")}
    ours, theirs = options.get(name, ("option", "store"))
    function = getattr(benchbd.doctor, f"_{name.replace(' ', '_')}")
    arguments = {ours: places.get(theirs)} if theirs in places else {}
    return benchbd.doctor._isolated(name, lambda called: function(called, **arguments))


def in_a_process(*paths: Path, arguments: tuple[str, ...] = ()) -> tuple[int, dict[str, Finding], str]:
    """Exit code, findings and stderr of ``benchbd doctor --json`` with folders before all others on Python's path."""
    told = subprocess.run(
        [sys.executable, "-m", "benchbd", "doctor", "--json", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in told.stderr, told.stderr
    checks = json.loads(told.stdout)["checks"]
    return told.returncode, {each["check"]: Finding(**each) for each in checks}, told.stderr


def test_a_working_setup_has_no_problem(tmp_path: Path) -> None:
    write_npz_set(tmp_path / "data", "colours")
    told = call("--data-root", tmp_path / "data", "--store", tmp_path / "store", "--device", "cpu", "--json")
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout)
    assert document["problems"] == 0
    findings = {each["check"]: each for each in document["checks"]}
    assert tuple(findings) == CHECKS
    assert findings["data root"]["found"] == f"{tmp_path / 'data'}: colours (npz)"
    assert findings["store"]["found"].endswith("can be written, has locks; the first run makes it")
    assert "planted payload is refused" in findings["sandbox"]["found"]
    assert not (tmp_path / "store").exists()  # nothing is changed


def test_the_table_has_a_row_per_check_and_what_would_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("torch", "problem", "libx.so is absent", "install it"), Finding("memory", "ok", "9 GiB free")]
    monkeypatch.setattr(benchbd.doctor, "examine", lambda **_: findings)
    told = call()
    assert told.exit_code == 1
    assert told.stdout.splitlines()[2:] == [
        "torch   problem  libx.so is absent: install it",
        "memory  ok       9 GiB free",
        "",
        "ok: 1, warnings: 0, problems: 1",
    ]


def test_a_torch_that_cannot_be_loaded(tmp_path: Path) -> None:
    """Every check that needs torch says why it cannot be loaded; the others go on."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')")
    code, found, _ = in_a_process(tmp_path)
    assert code == 1
    assert tuple(found) == CHECKS
    assert found["torch"].found == "OSError: libtorch_cpu.so: cannot open shared object file"
    states = {name: finding.state for name, finding in found.items()}
    assert {states[name] for name in ("torch", "plugins", "device", "sandbox")} == {"problem"}
    assert {states[name] for name in ("installation", "store", "stages")} == {"ok"}


def test_a_torchvision_for_another_torch_and_plugins_that_fail(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    about = tmp_path / "benchbd_odd-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: benchbd-odd\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[benchbd]\nleaves = benchbd_leaves\n")
    (tmp_path / "benchbd_leaves.py").write_text("print('hello')\nraise SystemExit(7)")
    code, found, _ = in_a_process(tmp_path)
    assert code == 1
    assert (found["torch"].state, found["torch"].found) == (
        "problem",
        "RuntimeError: operator torchvision::nms does not exist",
    )
    assert found["plugins"].state == "problem"
    assert "plugin 'leaves' (benchbd-odd 1.0): failed to import: SystemExit: 7" in found["plugins"].found
    assert found["sandbox"].state == "ok"


def test_a_library_that_is_absent_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2.10", "torchvision<3,>=0.25", "rich", "pytest>=1; extra == 'dev'", 'pytest>=1; extra == "hub"']
    asked += ["nowhere-to-be-found>=3.0; extra == 'clip'", "pytest>=9000; extra == 'old'"]
    monkeypatch.setattr(benchbd.doctor, "requires", lambda _: asked)
    assert check("installation").state == "ok"
    extras = check("extras")
    assert extras.state == "warning"
    assert extras.found.startswith("present: hub; absent: clip; old: pytest is ")
    monkeypatch.setattr(benchbd.doctor, "requires", lambda _: [*asked, "nowhere-to-be-found>=3.0", "click>=900.1"])
    lacks = check("installation")
    assert lacks.state == "problem"
    assert "nowhere-to-be-found is absent, click is " in lacks.found
    assert lacks.mend == "pip install 'nowhere-to-be-found>=3.0' 'click>=900.1'"


def test_benchbd_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise PackageNotFoundError("benchbd")

    monkeypatch.setattr(benchbd.doctor, "requires", absent)
    assert check("installation").state == "problem"
    assert "it is not installed" in check("installation").found


def test_a_device_that_does_not_exist() -> None:
    found = check("device", device="cuda:99")
    assert (found.state, "use --device cpu" in found.found) == ("problem", True)
    assert check("device", device="tpu").found == "device 'tpu': known are cpu, cuda and cuda:N"


def test_memory_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the container may still have counts, and pages of files that it can give back."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n")
    assert benchbd.doctor._available(tmp_path, tmp_path / "no group") == 32 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert benchbd.doctor._available(tmp_path, tmp_path) == 32 * GIB
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    assert benchbd.doctor._available(tmp_path, tmp_path) == 2 * GIB
    monkeypatch.setattr(benchbd.doctor, "_available", lambda: GIB)
    assert (check("memory").state, check("memory").found) == ("warning", "1.0 GiB free")


def test_a_data_root_with_files_that_are_none(tmp_path: Path) -> None:
    write_npz_set(tmp_path, "colours")
    write_npz_set(tmp_path, "pointers")
    (tmp_path / "pointers" / "test.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "two" / "train" / "a").mkdir(parents=True)
    (tmp_path / "two" / "train" / "a" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "two" / "train.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").mkdir()
    found = check("data root", data_root=tmp_path)
    assert found.state == "problem"
    assert found.found.startswith(f"{tmp_path}: colours (npz); {tmp_path / 'pointers' / 'test.npz'}: it is a Git LFS ")
    assert f"{tmp_path / 'two'}: two layouts in one folder" in found.found
    assert check("data root", data_root=tmp_path / "absent").state == "problem"
    assert check("data root", data_root=tmp_path / "colours" / "train.npz").found.endswith("train.npz: no folder")
    assert check("data root", data_root=tmp_path / "empty").state == "warning"


def test_the_default_data_root_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCHBD_DATA")
    monkeypatch.setattr("benchbd.data.library.user_data_path", lambda _: tmp_path / "absent")
    assert check("data root", data_root="").state == "warning"


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "store", Path("/proc/self/store")):
        found = check("store", store=place)
        assert found.state == "problem", found
        assert "cannot be written" in found.found
        assert "--store or BENCHBD_STORE" in found.found + found.mend


def test_a_problem_of_two_checks_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = {each.check: (each.state, each.found) for each in examine(store=tmp_path / "file", device="cpu")}
    assert found["store"][0] == "problem"
    assert f"{tmp_path / 'file'} is a file" in found["store"][1]
    assert found["space"] == found["stages"] == ("warning", "not checked: see store")


def test_a_store_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "hold", lambda *_, **__: ExitStack())  # everybody gets it
    assert "lets two processes have one lock" in check("store", store=tmp_path).found
    monkeypatch.setattr(Store, "hold", lambda *_, **__: None)
    assert "cannot be taken" in check("store", store=tmp_path).found
    assert list(tmp_path.iterdir()) == []


def test_damaged_stages_and_stages_that_are_computed(tmp_path: Path) -> None:
    store, other = Store(tmp_path), "1" * 64
    put(store, a=b"1")
    assert check("stages", store=tmp_path).found == "1 in the store"
    held = store.hold(other, wait=False)
    assert held is not None
    with held:
        told = check("stages", store=tmp_path)
    assert told.found.startswith("1 in the store, 1 being computed (process ")
    assert check("stages", store=tmp_path).found == "1 in the store"  # the lock of a process that ended
    (store.folder(KEY) / "a").unlink()
    damaged = check("stages", store=tmp_path)
    assert (damaged.state, damaged.found.partition(",")[0]) == ("warning", "0 in the store; 1 damaged")
    (store.folder(KEY) / MANIFEST).write_text("{")
    assert check("stages", store=tmp_path).found.startswith("0 in the store; 1 damaged, 0 set aside")
    assert store.get(KEY) is None
    assert check("stages", store=tmp_path).found.startswith("0 in the store; 0 damaged, 1 set aside")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": GIB // 2}))
    assert (check("space", store=tmp_path).state, check("space", store=tmp_path).found[:12]) == (
        "warning",
        "0.5 GiB free",
    )


def test_a_sandbox_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchbd.exchange.sandbox, "_START", "raise SystemExit(3)")
    found = check("sandbox")
    assert found.state == "problem"
    assert "the process that reads it failed (3)" in found.found


def test_a_sandbox_that_loads_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as one although it then fails."""

    def unpickle(path: Path, *_: object) -> None:
        with zipfile.ZipFile(path) as archive:
            try:
                pickle.loads(archive.read("planted/data.pkl"))
            except pickle.UnpicklingError as error:
                raise DataError(f"{path}: refused") from error

    monkeypatch.setattr(benchbd.exchange.sandbox, "unpickle", unpickle)
    # the harmless file has the true one: the module that reads it imported that earlier
    assert (check("sandbox").state, check("sandbox").found) == ("problem", "a planted payload was not refused")


@pytest.mark.parametrize("error", [ValueError("one\ntwo"), SystemExit(4), MemoryError(), RecursionError("deep")])
def test_whatever_a_check_raises_is_a_problem(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Finding:
        raise error

    for name in ("installation", "extras", "torch", "plugins", "device", "data_root", "store", "stages", "sandbox"):
        monkeypatch.setattr(benchbd.doctor, f"_{name}", lambda *_, **__: fail(""))
    found = {each.check: each for each in examine()}
    assert tuple(found) == CHECKS
    assert found["sandbox"].state == "problem"
    assert found["sandbox"].found.startswith(type(error).__name__)
    assert "\n" not in found["sandbox"].found


def test_an_interrupt_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> Finding:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchbd.doctor, "_installation", interrupt)
    with pytest.raises(KeyboardInterrupt):
        examine()


def test_a_library_that_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(name: str) -> Finding:
        warnings.warn("CUDA initialization: the driver is too old", stacklevel=1)
        return Finding(name, "ok", "CPU")

    found = benchbd.doctor._isolated("device", warned)
    assert (found.state, found.found) == (
        "warning",
        "CPU; a library warns: CUDA initialization: the driver is too old",
    )

"""Check a method property by property, on small budgets: what `benchbd plugin check` prints."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from benchbd.base.errors import BenchbdError, NotApplicable, says
from benchbd.contract.axes import AXIS
from benchbd.contract.dataset import Dataset
from benchbd.contract.handover import Failure, Product
from benchbd.contract.method import Method, build, most_forwards
from benchbd.contract.roles import Role
from benchbd.data.library import find_data_root
from benchbd.nets.encoder import Encoder
from benchbd.store.store import find_root
from benchbd.testing.again import DONE, HANDED
from benchbd.testing.architecture import check_architecture
from benchbd.testing.audit import Heard
from benchbd.testing.contract import check_method
from benchbd.testing.shortest import shortened
from benchbd.testing.toy_board import Work, work_of
from benchbd.testing.watch import ContractError, Property, Watch, same, watching
from benchbd.toolkit.toys import toy_encoder

State = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """The outcome for one property. reason: in one line; may be empty for a pass."""

    property: Property
    state: State
    reason: str = ""


@dataclass
class Checked:
    """A method, the options that it was checked with, and one finding a property.

    work: on the board of toys; None for an axis without stages.
    """

    axis: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    findings: dict[Property, Finding] = field(default_factory=dict)
    work: Work | None = None

    @property
    def holds(self) -> bool:
        return all(finding.state != "fail" for finding in self.findings.values())

    def told(self) -> dict[str, Any]:
        """As JSON."""
        findings = {of: {"state": each.state, "reason": each.reason} for of, each in self.findings.items()}
        options = {name: value if isinstance(value, int | None) else str(value) for name, value in self.options.items()}
        return {"axis": self.axis, "name": self.name, "options": options, "holds": self.holds, "findings": findings}

    def find(self, of: Property, state: State, reason: str = "") -> None:
        """Note a finding. The first of a property stays, unless a later one fails."""
        if of not in self.findings or (state == "fail" and self.findings[of].state != "fail"):
            self.findings[of] = Finding(of, state, reason)


def check_properties(
    cls: type[Method], folder: Path, options: Mapping[str, Any] | None = None, data_root: str | Path | None = None
) -> Checked:
    """One finding for each property of a method class.

    folder: a new one for what the check writes; ``repeat_elsewhere`` needs it. options: those given stay; others that
    set the length of the work take their shortest values. data_root: as in ``check_method``.
    UsageError if an option is not the method's or not valid.
    """
    build(cls, options or {}, cls.name)
    checked = Checked(cls.axis, cls.name, shortened(cls, options or {}))
    given = dict(checked.options)
    if cls.role is Role.FILE and "file" not in given:
        toy_encoder().save(folder / "toy.safetensors")
        given["file"] = folder / "toy.safetensors"
    heard = Heard(cls.__module__.partition(".")[0])
    if not issubclass(cls, Dataset):  # to read files is its work
        places = find_data_root(data_root), find_root(None), folder
        heard.places = tuple(place.resolve() for place in places)
        heard.own = tuple(Path(value).resolve() for value in given.values() if isinstance(value, str | Path))
    watch = Watch(heard=heard)
    _suite(cls, given, checked, watch, data_root)
    _on_the_board(cls, given, checked, watch, folder)
    for breach in watch.breaches:
        checked.find(breach.property, "fail", says(breach))
    _judge(checked, heard)
    checked.findings = {of: checked.findings[of] for of in Property}
    return checked


def _suite(
    cls: type[Method], options: Mapping[str, Any], checked: Checked, watch: Watch, data_root: str | Path | None
) -> None:
    """``check_method`` on toys, with its breaches by property."""
    reads = issubclass(cls, Dataset) and cls.needs_files and data_root is None
    try:
        with watching(watch):
            if reads:
                return checked.find(Property.CONTRACT, "skip", "it reads files: --data-root names their folder")
            check_method(cls, data_root=data_root, **options)
    except ContractError as breach:
        watch.breaches.append(breach)
    except NotApplicable as error:
        checked.find(Property.CONTRACT, "skip", f"it does not apply to toys: {error}")
    except BenchbdError as error:
        checked.find(Property.CONTRACT, "fail", str(error))
    except Exception as error:  # a plugin may raise anything where benchbd expects nothing
        checked.find(Property.CONTRACT, "fail", f"it raised {type(error).__name__}: {says(error)}")


def _on_the_board(cls: type[Method], options: Mapping[str, Any], checked: Checked, watch: Watch, folder: Path) -> None:
    """The method's work in a run on toys, unless it has none or the contract is broken already."""
    if not AXIS[cls.axis].stage or cls.passthrough or any(b.property is Property.CONTRACT for b in watch.breaches):
        return
    try:
        checked.work = work_of(build(cls, options, cls.name), folder, watch)
    except BenchbdError as error:
        checked.find(Property.CONTRACT, "fail", f"on a board: {error}")
        return
    for made in checked.work.made:
        if isinstance(made, Failure):
            state: State = "skip" if made.status == "n/a" else "fail"
            checked.find(Property.CONTRACT, state, f"on a board: {made.reason}")


def _judge(checked: Checked, heard: Heard) -> None:
    """Add the findings of the properties that hold, or that cannot be judged."""
    work, broken = checked.work, checked.findings.get(Property.CONTRACT)
    for of in (Property.CONTRACT, Property.DOCUMENTATION):
        checked.find(of, "pass")
    done = [] if work is None else [made for made in work.made if isinstance(made, Product)]
    reason = {"fail": "the contract is broken", "skip": broken.reason}.get(broken.state, "") if broken else ""
    for of in (Property.DETERMINISM, Property.STATE):
        checked.find(of, *(("skip", reason) if reason else ("pass", "")))
    if work is None or not done:
        told = reason or f"{checked.axis} {checked.name} has no work of its own on a board"
        checked.find(Property.BUDGET, "skip", told)
        checked.find(Property.SEALED, "fail" if heard.reached else "skip", "; ".join(heard.reached) or told)
    else:
        _budget(checked, int(done[-1].cost["image_forwards"]), work.forwards)  # a detector prepares before
        leaks = [f"the handover has {name}" for name in work.found()] + heard.reached
        checked.find(Property.SEALED, "fail" if leaks else "pass", "; ".join(leaks))
    checked.find(Property.NETWORK, "pass", f"reported: {'; '.join(heard.network)}" if heard.network else "")


def _budget(checked: Checked, spent: int, estimate: int | None) -> None:
    """Compare what was counted with the method's estimate: an estimate may be above, for what a method may spare."""
    if estimate is None:
        checked.find(Property.BUDGET, "skip", f"forwards() gives no estimate; {spent:,} image-forwards were counted")
        return
    told = f"{spent:,} image-forwards, forwards() says {estimate:,}"
    checked.find(Property.BUDGET, "pass" if spent <= most_forwards(estimate) else "fail", told)


def repeat_elsewhere(checks: Iterable[Checked]) -> None:
    """Let a fresh process do the work of all checks again, from the handovers alone, and compare: another result is no
    determinism. The plugins must be installed."""
    jobs = [(each, number) for each in checks if each.work for number, made in enumerate(each.work.made)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for job, (each, number) in enumerate(jobs):
            assert each.work is not None
            (folder / f"{job:04}.{HANDED}").write_bytes(each.work.handed[number].pack(files=False)[0])
        command = [sys.executable, "-m", "benchbd.testing.again", name, str(torch.get_num_threads())]
        order = {**os.environ, "PYTHONHASHSEED": "random"}  # of the words in a set, which no result may depend on
        subprocess.run(command, check=False, env=order, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for job, (each, number) in enumerate(jobs):
            assert each.work is not None
            first, done = each.work.made[number], folder / f"{job:04}.{DONE}"
            if isinstance(first, Product):
                other = Product.from_bytes(done.read_bytes()) if done.is_file() else None
                if other is None or not _equal(first, other):
                    told = "fails in" if other is None else "gives another result in"
                    each.find(Property.DETERMINISM, "fail", f"the same work {told} a process of its own")


def _equal(one: Product, other: Product) -> bool:
    """Whether two products have the same result, whatever it took."""
    return (one.json, one.encoder) == (other.json, other.encoder) and same(dict(one.tensors), dict(other.tensors))


def failed(plugin: str, problem: str) -> Checked:
    """The finding for a plugin that could not be loaded, or not all of it."""
    checked = Checked("plugin", plugin)
    checked.find(Property.CONTRACT, "fail", problem)
    return checked


def check_class(cls: type[Encoder]) -> Checked:
    """The findings for an architecture: its contract."""
    checked = Checked("architecture", cls.arch)
    if cls.needs is not None and find_spec(cls.needs[0]) is None:
        checked.find(Property.CONTRACT, "skip", f"it needs {cls.needs[0]}: pip install '{cls.needs[1]}'")
        return checked
    try:
        check_architecture(cls)
        checked.find(Property.CONTRACT, "pass")
    except ContractError as breach:
        checked.find(breach.property, "fail", says(breach))
    return checked

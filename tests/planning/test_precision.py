"""Precision: what is chosen, what is refused, and that figures of two precisions never meet in a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import benchbd
from benchbd import UsageError
from benchbd.base.device import native_bf16, pick_precision
from benchbd.cli.main import main
from benchbd.registry import Registry
from benchbd.report.leaderboard import frame, frame_of_rows

from ..boards import TINY, Tiny, keys

CPU = torch.device("cpu")

SLOW = "precision bf16: this CPU only emulates it and would be far slower; use --precision fp32"


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether the CPU has native bf16."""

    def has(native: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native}, raising=False)

    return has


def test_auto_is_fp32_on_every_cpu_and_bf16_on_cuda(capable: Callable[[bool], None]) -> None:
    for native in (True, False):
        capable(native)
        assert native_bf16() is native
        assert pick_precision("auto", CPU) == pick_precision("fp32", CPU) == "fp32"
        assert pick_precision("auto", torch.device("cuda")) == pick_precision("bf16", torch.device("cuda")) == "bf16"
    with pytest.raises(UsageError, match=f"^{SLOW}$"):
        pick_precision("bf16", CPU)
    capable(True)
    assert pick_precision("bf16", CPU) == "bf16"
    with pytest.raises(UsageError, match=r"^precision 'half': known are auto, fp32, bf16$"):
        pick_precision("half", CPU)


def test_no_key_depends_on_which_cpu_it_is(tmp_path: Path, registry: Registry, capable: Callable[[bool], None]) -> None:
    tiny = Tiny(tmp_path, registry)
    plans = []
    for native in (True, False):
        capable(native)
        plans += [tiny.plan(), tiny.plan(precision="auto"), tiny.plan(precision="fp32")]
    assert len({frozenset(keys(plan)) for plan in plans}) == 1
    assert all(plan.departures == [] for plan in plans)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_bf16_is_refused_where_the_cpu_emulates_it(
    command: str, tmp_path: Path, registry: Registry, capable: Callable[[bool], None]
) -> None:
    capable(False)
    tiny = Tiny(tmp_path, registry)
    pinned = tmp_path / "pinned.toml"
    pinned.write_text(f'precision = "bf16"\n{TINY}')
    for board, more in ((tiny.board, ["--precision", "bf16"]), (pinned, [])):
        asked = [command, "--board", board, "--data-root", tiny.data, "--store", tiny.store, "--device", "cpu", *more]
        result = CliRunner().invoke(main, list(map(str, asked)))
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {SLOW}\n")
    result = CliRunner().invoke(main, [command, *tiny.arguments, "--precision", "half"])
    assert (result.exit_code, result.stderr) == (2, "error: precision 'half': known are auto, fp32, bf16\n")
    places = {"data_root": tiny.data, "store": tiny.store, "device": "cpu"}
    with pytest.raises(UsageError, match=SLOW):
        benchbd.plan(tiny.board, precision="bf16", **places)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^precision 16: must be one of auto, fp32, bf16$"):
        benchbd.plan(tiny.board, precision=16, **places)  # type: ignore[arg-type]
    assert not tiny.store.exists()


def test_a_board_that_pins_a_precision_is_departed_from(
    tmp_path: Path, registry: Registry, capable: Callable[[bool], None]
) -> None:
    capable(True)
    tiny = Tiny(tmp_path, registry, f'precision = "bf16"\n{TINY}')
    plan = tiny.plan(precision="fp32")
    assert tiny.plan(precision="auto").departures == []
    assert plan.departures == ["precision=fp32 (the board's: bf16)"]
    assert all(case.departures == tuple(plan.departures) for case in plan.cases)
    assert keys(plan) == keys(Tiny(tmp_path / "auto", registry).plan())


@pytest.mark.skipif(not native_bf16(), reason="this CPU has no bf16 instructions")
def test_rows_of_two_precisions_stand_apart(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry)
    part = {"attacks": ("badencoder",), "defenses": ("none", "scratch", "ft")}
    records = [record for precision in ("fp32", "bf16") for record in tiny.run(precision=precision, **part)]
    assert {record.precision for record in records if record.on_board} == {"fp32"}
    half = [record for record in records if record.precision == "bf16"]
    assert {tuple(record.departures) for record in half} == {("precision=bf16 (the board's: fp32)",)}
    assert all(stage["numerics"]["precision"] == "bf16" for record in half for stage in record.identity.values())
    assert frame(records)["precision"].tolist() == ["fp32"] * 3 + ["bf16"] * 3
    rows = frame_of_rows(records, off_board=True)
    assert rows["precision"].tolist() == ["fp32", "bf16"] * 3
    assert set(rows["n"]) == {1}
    alone = frame_of_rows(
        [record for record in records if record.precision == "fp32" or record.defense == "ft"], off_board=True
    )
    compared = dict(zip(zip(alone["defense"], alone["precision"], strict=True), alone["acc_to_scratch"], strict=True))
    assert [key for key, value in compared.items() if pd.isna(value)] == [("ft", "bf16")]  # no control of its precision

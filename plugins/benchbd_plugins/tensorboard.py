"""TensorBoard: loss curves of stages, and the metrics of records, if BENCHBD_TENSORBOARD names a folder.

``benchbd[tensorboard]`` installs the library, which is imported with the first value to write. Every stage has a
folder of its own with the curve ``loss``, so that TensorBoard draws the curves of all stages in one chart. Every record
has one with its metrics, which TensorBoard's table of hyperparameters lists by attack, defense, task and seed.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from benchbd import Executor, UsageError, hookimpl

ASKED = "BENCHBD_TENSORBOARD"

PLACE = ("board", "attack", "defense", "detection", "pretrain", "task", "target", "evaluator", "seed", "status")


class TensorBoard:
    """Writes event files below a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._open: dict[str, Any] = {}
        self._lacks = False

    @hookimpl
    def benchbd_stage_progress(self, stage: Any, step: int, loss: float | None) -> None:
        if loss is None or self._lacks:
            return
        if stage.key not in self._open:
            self._open[stage.key] = self._writer(stage.kind, stage.method_name, stage.key[:12])
            self._open[stage.key].add_text("stage", stage.label)
        self._open[stage.key].add_scalar("loss", loss, step)

    @hookimpl
    def benchbd_stage_finished(self, stage: Any, status: str, message: str) -> None:
        if writer := self._open.pop(stage.key, None):
            writer.add_text("status", f"{status} {message}".strip())
            writer.close()

    @hookimpl
    def benchbd_record_finished(self, record: Any) -> None:
        told = json.loads(record.to_json())
        if self._lacks or not (figures := figures_of(told)):
            return
        place = {name: told[name] for name in PLACE if name in told} | told["point"]
        words = {name: value if isinstance(value, int | float | str) else str(value) for name, value in place.items()}
        method = told.get("defense") or told.get("detection")
        names = (told["attack"], method, told["pretrain"], told.get("task", ""), f"seed{told['seed']}", record.key[:12])
        with self._writer("records", *names) as writer:
            from torch.utils.tensorboard.summary import hparams

            for summary in hparams(words, figures):
                writer.file_writer.add_summary(summary)
            for name, value in figures.items():
                writer.add_scalar(name, value)

    def _writer(self, kind: str, *names: str) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            self._lacks = True  # a run says it once
            raise UsageError(f"{ASKED} is set without the library: pip install 'benchbd[tensorboard]'") from error
        return SummaryWriter(str(self.folder / kind / re.sub(r"[^\w.@+-]", "_", "-".join(filter(None, names)))))


def figures_of(told: dict[str, Any]) -> dict[str, float]:
    """The figures of a record, as JSON gives it: percentages of a cell, or the score of an inspection."""
    found = told.get("metrics") or {"score": told.get("score")}
    return {name: float(value) for name, value in found.items() if value is not None}


class Unasked:
    """Observes nothing, so that a run that does not ask pays nothing: calling an observer takes milliseconds."""

    @hookimpl
    def benchbd_executors(self) -> list[type[Executor]]:
        return []  # a plugin implements at least one hook


plugin = TensorBoard(folder) if (folder := os.environ.get(ASKED)) else Unasked()

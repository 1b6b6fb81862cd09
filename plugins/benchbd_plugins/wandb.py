"""Weights & Biases: loss curves of stages, and the metrics of records, if BENCHBD_WANDB names a project.

``benchbd[wandb]`` installs the library, which is imported with the first value to write. A process has one run of W&B.
It has a curve per stage, ``KIND/METHOD-KEY/loss``, and its summary has the figures of every record, such as
``badencoder/ft/cifar10/gtsrb:12/mlp/seed1/asr``. With WANDB_MODE=offline nothing is sent: the run lies in ``wandb/``,
or below WANDB_DIR, until ``wandb sync`` sends it.
"""

from __future__ import annotations

import json
import os
from typing import Any

from benchbd import Executor, UsageError, hookimpl

ASKED = "BENCHBD_WANDB"

PATIENCE = 30  # seconds for W&B to answer; a run waits for it


class WeightsAndBiases:
    """Logs to one run of a project, which begins with the first value."""

    def __init__(self, project: str) -> None:
        self.project = project
        self._begun: Any = None
        self._curves: set[str] = set()
        self._lacks = False

    @hookimpl
    def benchbd_stage_progress(self, stage: Any, step: int, loss: float | None) -> None:
        if loss is None or self._lacks:
            return
        name = f"{stage.kind}/{stage.method_name}-{stage.key[:12]}"
        if name not in self._curves:
            self._curves.add(name)
            self._run.define_metric(f"{name}/loss", step_metric=f"{name}/step")
            self._run.config.update({f"{name}/label": stage.label})
        self._run.log({f"{name}/loss": loss, f"{name}/step": step})

    @hookimpl
    def benchbd_record_finished(self, record: Any) -> None:
        if self._lacks:
            return
        told = json.loads(record.to_json())
        figures = told.get("metrics") or {"score": told.get("score")}
        task = f"{told['task']}:{told['target']}" if "task" in told else "+".join(told.get("tasks", ()))
        method = told.get("defense") or told.get("detection")
        place = [told["attack"], method, told["pretrain"], task, told["evaluator"], f"seed{told['seed']}"]
        place += [f"{option}={value}" for option, value in told["point"].items()]
        for name, value in figures.items():
            if value is not None:
                self._run.summary["/".join([*place, name])] = value

    @property
    def _run(self) -> Any:
        """The run of this process, which W&B ends with the process."""
        if self._begun is None:
            self._lacks = True  # without a library or a login every call would fail again, after its time-out
            try:
                import wandb
            except ImportError as error:
                raise UsageError(f"{ASKED} is set without the library: pip install 'benchbd[wandb]'") from error
            # benchbd restores its streams after every call of an observer, so W&B must not replace them; a silent W&B
            # does not ask at the terminal who logs in, while the run waits
            settings = wandb.Settings(console="off", silent=True, init_timeout=PATIENCE)
            wandb.setup(settings=settings)
            self._begun = wandb.init(project=self.project, settings=settings)
            self._lacks = False
        return self._begun


class Unasked:
    """Observes nothing, so that a run that does not ask pays nothing: calling an observer takes milliseconds."""

    @hookimpl
    def benchbd_executors(self) -> list[type[Executor]]:
        return []  # a plugin implements at least one hook


plugin = WeightsAndBiases(project) if (project := os.environ.get(ASKED)) else Unasked()

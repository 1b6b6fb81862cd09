"""The hooks of benchbd: one per axis, the architectures, and the observers. The results of all plugins are
collected.

A plugin is a module named under the entry-point group ``benchbd``; it implements any of these with ``@hookimpl``.
It is an error, which names both plugins, if two plugins offer method classes of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from benchbd.contract.attack import Attack
    from benchbd.contract.dataset import Dataset
    from benchbd.contract.defense import Mitigation
    from benchbd.contract.detection import Detection
    from benchbd.contract.evaluator import Evaluator
    from benchbd.contract.handover import Executor
    from benchbd.contract.observed import ObservedRecord, ObservedStage
    from benchbd.contract.pretraining import Pretraining
    from benchbd.contract.trigger_function import TriggerFunction
    from benchbd.nets.encoder import Encoder

hookspec = pluggy.HookspecMarker("benchbd")

hookimpl = pluggy.HookimplMarker("benchbd")
"""The decorator of a plugin's hooks: ``@hookimpl`` above ``def benchbd_defenses(): return [Shrink]``."""


@hookspec
def benchbd_datasets() -> list[type[Dataset]]:  # type: ignore[empty-body]
    """Return the data-set classes of this plugin. Called once, when the registry is built.

    A folder in a known layout needs no plugin: this hook is for sets that are generated or have their own archive.
    """


@hookspec
def benchbd_pretrainings() -> list[type[Pretraining]]:  # type: ignore[empty-body]
    """Return the pre-training classes of this plugin. Called once, when the registry is built."""


@hookspec
def benchbd_triggers() -> list[type[TriggerFunction]]:  # type: ignore[empty-body]
    """Return the trigger classes of this plugin. Called once, when the registry is built.

    A trigger that is a pattern needs no plugin: a board draws it or reads it from a file.
    """


@hookspec
def benchbd_attacks() -> list[type[Attack]]:  # type: ignore[empty-body]
    """Return the attack classes of this plugin. Called once, when the registry is built."""


@hookspec
def benchbd_defenses() -> list[type[Mitigation]]:  # type: ignore[empty-body]
    """Return the defense classes of this plugin. Called once, when the registry is built."""


@hookspec
def benchbd_detections() -> list[type[Detection]]:  # type: ignore[empty-body]
    """Return the detector classes of this plugin. Called once, when the registry is built."""


@hookspec
def benchbd_evaluators() -> list[type[Evaluator]]:  # type: ignore[empty-body]
    """Return the evaluator classes of this plugin. Called once, when the registry is built."""


@hookspec
def benchbd_architectures() -> list[type[Encoder]]:  # type: ignore[empty-body]
    """Return the architectures of this plugin, classes derived from ``Encoder``. A pre-training method names one by its
    ``arch``. Called when the registry is built, and by a script that makes an ``Encoder`` without one.

    Do not build a net in the hook: import slow libraries, such as torchvision, in ``build``.
    """


@hookspec
def benchbd_executors() -> list[type[Executor]]:  # type: ignore[empty-body]
    """Return the executor classes of this plugin, derived from ``Executor``. Called once, as the registry is built."""


@hookspec
def benchbd_stage_started(stage: ObservedStage, position: int, total: int) -> None:
    """A stage is about to be computed: the ``position``-th (from 1) of ``total`` that were not in the store."""


@hookspec
def benchbd_stage_progress(stage: ObservedStage, step: int, steps: int, loss: float | None) -> None:
    """Optimiser step ``step`` of ``steps`` in ``stage`` is done. Called a few times a second at most.

    loss: the latest loss that was read back from the device, or None if none is known yet.
    """


@hookspec
def benchbd_stage_finished(stage: ObservedStage, status: str, seconds: float, message: str) -> None:
    """A stage ended. status: ``computed``, ``cached``, ``n/a`` or ``failed``; message: the reason of the last two."""


@hookspec
def benchbd_record_finished(record: ObservedRecord) -> None:
    """A record is finished: that of a cell, once per evaluator, or of an inspection by a detector; in the order of the
    board. Only the record of an inspection has a ``detection``."""

"""benchbd: the benchmark of backdoor attacks on, and defenses of, self-supervised image encoders.

Everything a plugin needs is imported from here, and so are the commands as functions: ``plan``, ``run``, ``detect``
and ``load_encoder``. Names are loaded on first use, so that ``benchbd --help`` and the commands that only read records
start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchbd.api import detect as detect
    from benchbd.api import load_encoder as load_encoder
    from benchbd.api import plan as plan
    from benchbd.api import run as run
    from benchbd.augment import Augment as Augment
    from benchbd.augment import CropScale as CropScale
    from benchbd.augment import flip_and_shift as flip_and_shift
    from benchbd.distill import AttentionForm as AttentionForm
    from benchbd.distill import Distiller as Distiller
    from benchbd.distill import attention_distance as attention_distance
    from benchbd.distill import attention_map as attention_map
    from benchbd.encoder import Encoder as Encoder
    from benchbd.errors import BenchbdError as BenchbdError
    from benchbd.errors import DataAbsentError as DataAbsentError
    from benchbd.errors import DataError as DataError
    from benchbd.errors import Diverged as Diverged
    from benchbd.errors import NotApplicable as NotApplicable
    from benchbd.errors import UsageError as UsageError
    from benchbd.hookspecs import hookimpl as hookimpl
    from benchbd.images import ImageSet as ImageSet
    from benchbd.images import Trigger as Trigger
    from benchbd.inversion import Controller as Controller
    from benchbd.inversion import Inversion as Inversion
    from benchbd.inversion import Inverted as Inverted
    from benchbd.inversion import self_similarity as self_similarity
    from benchbd.methods import Attack as Attack
    from benchbd.methods import AttackerKnowledge as AttackerKnowledge
    from benchbd.methods import Backdoor as Backdoor
    from benchbd.methods import Dataset as Dataset
    from benchbd.methods import DefenderKnowledge as DefenderKnowledge
    from benchbd.methods import Detection as Detection
    from benchbd.methods import Evaluator as Evaluator
    from benchbd.methods import Mitigation as Mitigation
    from benchbd.methods import Predictions as Predictions
    from benchbd.methods import Pretraining as Pretraining
    from benchbd.methods import Probe as Probe
    from benchbd.methods import Target as Target
    from benchbd.methods import Verdict as Verdict
    from benchbd.mine import Estimate as Estimate
    from benchbd.mine import Mine as Mine
    from benchbd.pictures import decode_images as decode_images
    from benchbd.pictures import resize_images as resize_images
    from benchbd.threads import one_thread as one_thread
    from benchbd.training import ContrastiveMethod as ContrastiveMethod
    from benchbd.training import Steps as Steps
    from benchbd.training import Views as Views
    from benchbd.training import batch_indices as batch_indices
    from benchbd.training import derive_seed as derive_seed
    from benchbd.training import keep as keep
    from benchbd.training import note as note
    from benchbd.training import nt_xent as nt_xent
    from benchbd.training import pretext_accuracy as pretext_accuracy
    from benchbd.training import pretext_outputs as pretext_outputs
    from benchbd.training import project_views as project_views
    from benchbd.training import stream as stream

_NAMES = {
    "api": ("detect", "load_encoder", "plan", "run"),
    "augment": ("Augment", "CropScale", "flip_and_shift"),
    "distill": ("AttentionForm", "Distiller", "attention_distance", "attention_map"),
    "encoder": ("Encoder",),
    "errors": ("BenchbdError", "DataAbsentError", "DataError", "Diverged", "NotApplicable", "UsageError"),
    "hookspecs": ("hookimpl",),
    "images": ("ImageSet", "Trigger"),
    "inversion": ("Controller", "Inversion", "Inverted", "self_similarity"),
    "methods": (
        "Attack",
        "AttackerKnowledge",
        "Backdoor",
        "Dataset",
        "DefenderKnowledge",
        "Detection",
        "Evaluator",
        "Mitigation",
        "Predictions",
        "Pretraining",
        "Probe",
        "Target",
        "Verdict",
    ),
    "mine": ("Estimate", "Mine"),
    "pictures": ("decode_images", "resize_images"),
    "threads": ("one_thread",),
    "training": (
        "ContrastiveMethod",
        "Steps",
        "Views",
        "batch_indices",
        "derive_seed",
        "keep",
        "note",
        "nt_xent",
        "pretext_accuracy",
        "pretext_outputs",
        "project_views",
        "stream",
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'benchbd' has no attribute {name!r}")
    return getattr(import_module(f"benchbd.{_HOME[name]}"), name)

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
    from benchbd.encoder import projection_head as projection_head
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
    from benchbd.layouts import decode_images as decode_images
    from benchbd.layouts import resize_images as resize_images
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
    from benchbd.training import pretext_views as pretext_views
    from benchbd.training import project_views as project_views
    from benchbd.training import stream as stream

_HOME = {
    "Attack": "methods",
    "AttackerKnowledge": "methods",
    "AttentionForm": "distill",
    "Augment": "augment",
    "Backdoor": "methods",
    "BenchbdError": "errors",
    "ContrastiveMethod": "training",
    "Controller": "inversion",
    "CropScale": "augment",
    "DataAbsentError": "errors",
    "DataError": "errors",
    "Dataset": "methods",
    "DefenderKnowledge": "methods",
    "Detection": "methods",
    "Distiller": "distill",
    "Diverged": "errors",
    "Encoder": "encoder",
    "Estimate": "mine",
    "Evaluator": "methods",
    "ImageSet": "images",
    "Inversion": "inversion",
    "Inverted": "inversion",
    "Mine": "mine",
    "Mitigation": "methods",
    "NotApplicable": "errors",
    "Predictions": "methods",
    "Pretraining": "methods",
    "Probe": "methods",
    "Steps": "training",
    "Target": "methods",
    "Trigger": "images",
    "UsageError": "errors",
    "Verdict": "methods",
    "Views": "training",
    "attention_distance": "distill",
    "attention_map": "distill",
    "batch_indices": "training",
    "decode_images": "layouts",
    "detect": "api",
    "derive_seed": "training",
    "flip_and_shift": "augment",
    "hookimpl": "hookspecs",
    "keep": "training",
    "load_encoder": "api",
    "note": "training",
    "nt_xent": "training",
    "one_thread": "threads",
    "plan": "api",
    "pretext_accuracy": "training",
    "pretext_views": "training",
    "project_views": "training",
    "projection_head": "encoder",
    "resize_images": "layouts",
    "run": "api",
    "self_similarity": "inversion",
    "stream": "training",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'benchbd' has no attribute {name!r}")
    return getattr(import_module(f"benchbd.{_HOME[name]}"), name)

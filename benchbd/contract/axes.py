"""The axes: one row each; everything else about an axis follows from it."""

from __future__ import annotations

from benchbd.contract.attack import Attack
from benchbd.contract.dataset import Dataset
from benchbd.contract.defense import Mitigation
from benchbd.contract.detection import Detection
from benchbd.contract.evaluator import Evaluator
from benchbd.contract.method import Method
from benchbd.contract.pretraining import Pretraining
from benchbd.contract.specs import SECTIONS

AXES: dict[str, tuple[str, type[Method]]] = {
    "dataset": ("benchbd_datasets", Dataset),
    "pretraining": ("benchbd_pretrainings", Pretraining),
    "attack": ("benchbd_attacks", Attack),
    "defense": ("benchbd_defenses", Mitigation),
    "detection": ("benchbd_detections", Detection),
    "evaluator": ("benchbd_evaluators", Evaluator),
}
"""Per axis: the hook that collects its methods, and the class they derive from."""

WORK = {
    "dataset": "load",
    "pretraining": "pretrain",
    "attack": "inject",
    "defense": "repair",
    "detection": "inspect",
    "evaluator": "evaluate",
}
"""Per axis: the method that a class must define."""

RESERVED = {*SECTIONS, *AXES, "board"}

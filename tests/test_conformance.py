"""Every installed method passes the suite that third parties use; the suite itself catches what it promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import Field

from benchbd import DefenderKnowledge, Encoder, Mitigation, NotApplicable
from benchbd.plugins import AXES, load_registry
from benchbd.testing import ContractError, check_method, toy_defender

QUICK: dict[str, dict[str, Any]] = {
    "simclr": {"steps": 2, "batch": 16, "arch": "w16"},
    "badencoder": {"steps": 2, "batch": 16},
    "ft": {"steps": 2, "batch": 16},
    "scratch": {"steps": 2, "batch": 16},
    "mimic": {"steps": 2, "batch": 16, "mi_epochs": 1, "mi_pool": 2},
    "mlp": {"epochs": 2},
}
METHODS = [(axis, name) for axis in AXES for name in load_registry().names(axis)]


@pytest.mark.parametrize(("axis", "name"), METHODS)
def test_installed_method(axis: str, name: str, registry: Any) -> None:
    check_method(registry.get(axis, name), **QUICK.get(name, {}))


class Honest(Mitigation):
    """Does nothing."""

    name = "honest"
    paper = "control"
    version = "1"
    strength: float = Field(1.0, description="nothing")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return encoder


def test_honest_passes() -> None:
    check_method(Honest)


def variant(**members: Any) -> type[Mitigation]:
    return type("Variant", (Honest,), {"__module__": __name__, "__doc__": "A variant.", **members})


def _write_to_images(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    knowledge.images.pixels.zero_()
    return encoder


def _global_randomness(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    with torch.no_grad():
        next(encoder.parameters()).add_(torch.rand(1))
    return encoder


def _leave_a_hook(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
    encoder.stem.register_forward_hook(lambda *_: None)
    return encoder


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"__doc__": ""}, "docstring"),
        ({"paper": ""}, "paper"),
        ({"name": ""}, "name"),
        ({"repair": lambda self, encoder, knowledge: None}, "must return a benchbd.Encoder"),
        ({"repair": _write_to_images}, "clean images were changed"),
        ({"repair": _global_randomness}, "the same seed gave other weights"),
        ({"repair": _leave_a_hook}, "a hook is left"),
        ({"uses_weights": False}, "the weights matter"),
    ],
)
def test_breaches_are_named(members: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ContractError, match=complaint):
        check_method(variant(**members))


def test_toy_defender_has_no_oracle() -> None:
    images = toy_defender().images
    assert images.labels is None
    assert images.classes == ()


def test_not_applicable_is_not_swallowed() -> None:
    def refuse(self: Any, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        raise NotApplicable("never")

    with pytest.raises(NotApplicable, match="never"):
        check_method(variant(repair=refuse))

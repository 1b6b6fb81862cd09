"""Architectures: what the hook takes, what every one of them must do, and those that come with benchbd."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchbd_plugins.simclr import SimCLR
from torch import Tensor, nn

import benchbd
from benchbd import Encoder, UsageError, hookimpl
from benchbd.contract.encoder import ARCHITECTURES, W16
from benchbd.contract.method import build
from benchbd.contract.pretraining import flaw_of_architecture
from benchbd.contract.registry import Registry, load_registry

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Plain(Encoder):
    """Two convolutions, and the mean over positions."""

    arch = "plain"
    stages = ("first", "second")
    feature_dim = 6

    def build(self) -> None:
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

    def encode(self, x: Tensor, take: Any) -> Tensor:
        y = take("second", self.second(take("first", self.first(x)).relu()))
        return y.mean((2, 3))


def offering(*classes: object) -> Registry:
    @hookimpl
    def benchbd_architectures() -> Any:
        return list(classes)

    return load_registry(extra={"odd": SimpleNamespace(benchbd_architectures=benchbd_architectures)})


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setitem(ARCHITECTURES, "plain", Plain)
    return offering(Plain)


def test_a_plugin_offers_an_architecture(plain: Registry) -> None:
    assert plain.problems == []
    assert plain.architectures["plain"] is Plain
    assert plain.plugins[-1].adds == {"architecture": ["plain"]}
    assert type(Encoder("plain")) is Plain
    assert build(SimCLR, {"arch": "plain"}, "simclr").identity()["options"]["arch"] == "plain"


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (7, "7 is not a class derived from benchbd.Encoder"),
        (nn.Linear, "is not a class derived from benchbd.Encoder"),
        (type("Odd", (Plain,), {"arch": "Has Blanks"}), "Odd: its arch must be up to 40 lower-case letters"),
        (type("Odd", (Encoder,), {"arch": "odd"}), "Odd: it does not define build"),
        (type("Odd", (Plain,), {"arch": "odd", "encode": Encoder.encode}), "Odd: it does not define encode"),
        (type("Odd", (Plain,), {"arch": "odd", "image_size": 20}), "Odd: its image_size must be None or one of 32 to"),
        (type("Odd", (Plain,), {"arch": "w16"}), "its architecture 'w16' is already the name of W16"),
    ],
)
def test_a_class_that_is_none_is_named(cls: Any, problem: str) -> None:
    found = offering(cls)
    (told,) = found.problems
    assert told.startswith("plugin 'odd'")
    assert problem in told
    assert ARCHITECTURES["w16"] is found.architectures["w16"] is W16
    assert found.get("defense", "ft")


def test_simclr_takes_any_architecture_and_offers_the_nearest() -> None:
    assert SimCLR().identity()["options"]["arch"] == "resnet18"
    message = "simclr.arch: unknown architecture 'resnet8': did you mean 'resnet18'? known: "
    with pytest.raises(UsageError, match=re.escape(message)):
        build(SimCLR, {"arch": "resnet8"}, "simclr")


def test_what_an_architecture_needs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    needy = type("Needy", (Plain,), {"arch": "needy", "needs": ("no_such_module", "benchbd[none]")})
    assert flaw_of_architecture(needy) == ""
    monkeypatch.setitem(ARCHITECTURES, "needy", needy)
    line = "architecture needy needs no_such_module, which is not installed: pip install 'benchbd[none]'"
    for make in (lambda: Encoder("needy"), lambda: build(SimCLR, {"arch": "needy"}, "simclr")):
        with pytest.raises(UsageError, match=re.escape(line)):
            make()


def test_images_of_another_size_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "sized", type("Sized", (Plain,), {"arch": "sized", "image_size": 64}))
    encoder = Encoder("sized")
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, 6)
    with pytest.raises(UsageError, match="sized takes images of 64 pixels, not 32"):
        encoder(torch.rand(2, 3, 32, 32))
    line = "sized takes images of 64 pixels, the board's have 32: set image_size = 64"
    with pytest.raises(UsageError, match=re.escape(line)):
        benchbd.plan("smoke", option=["simclr.arch=sized"])

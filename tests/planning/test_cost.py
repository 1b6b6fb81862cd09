"""Estimated costs of stages: rates of past stages, by method, architecture and device."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from benchbd.base.errors import DataError
from benchbd.planning import cost
from benchbd.planning.cost import estimate_seconds, known_forwards


def stage(method: str, key: str = "k", architecture: str = "w32", forwards: int | None = 0) -> Any:
    return SimpleNamespace(
        key=key, kind="defend", method_name=method, architecture=architecture, forwards=lambda: forwards
    )


def past(method: str, forwards: int, seconds: float, device: str = "cpu", architecture: str = "w32") -> dict[str, Any]:
    return {
        "cost": {"seconds": seconds, "image_forwards": forwards},
        "identity": {"kind": "defend", "method": {"name": method}},
        "machine": {"device": device},
        "architecture": architecture,
    }


def test_seconds_follow_from_the_mean_rate_of_the_same_method_architecture_and_device() -> None:
    manifests = [
        *(past("ft", 1000, 10.0), past("ft", 3000, 10.0)),  # 100 and 300 image-forwards per second: 200
        *(past("ft", 10**9, 1.0, device="cuda"), past("ft", 10**9, 1.0, architecture="resnet18")),
        *(past("fp", 10**9, 1.0), past("ft", 0, 1.0), past("ft", 5, 0.0)),  # another method; no rate
    ]
    known = {"a": 4000, "b": None, "c": 4000}
    stages = [stage("ft", "a"), stage("ft", "b"), stage("nad", "c")]
    assert estimate_seconds(stages, known, manifests, "cpu") == {"a": 20.0, "b": None, "c": None}


def test_a_method_that_cannot_say_its_cost_is_named_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "KINDS", {"defend": SimpleNamespace(forwards=lambda stage: stage.forwards())})

    def refuse() -> int:
        raise DataError("forwards() is not a number")

    mute = [SimpleNamespace(**{**vars(stage("odd", key)), "forwards": refuse}) for key in "ab"]
    stages: list[Any] = [*mute, stage("ft", "c", forwards=7)]
    with caplog.at_level(logging.WARNING):
        assert known_forwards(stages) == {"a": None, "b": None, "c": 7}
    assert caplog.messages == ["defend odd: its cost is not known: forwards() is not a number"]

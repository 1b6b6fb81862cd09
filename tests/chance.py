"""Find the tests that train, and offset the seeds that they draw from.

A test that trains must hold for draws other than its own: ``seeded(3)`` is 3 plus the offset in
``BENCHBD_TEST_SEED_SHIFT`` (0 if it is not set). Every test in which an optimizer steps either reads the offset, by
``seeded`` in the test, its helpers or its fixtures, or gives the reason why no draw can matter:
``@pytest.mark.fixed_draw("compares two forms of one step")``. `make portable` runs them under other offsets, vector
instructions and thread counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

SHIFT = int(os.environ.get("BENCHBD_TEST_SEED_SHIFT", "0"))
KNOWN = "benchbd/trains"  # in pytest's cache: the tests that are known to train


class _Seen:
    """The steps and readings of one test or fixture so far."""

    def __init__(self) -> None:
        self.steps, self.reads = 0, 0

    def add(self, other: _Seen) -> None:
        self.steps, self.reads = self.steps + other.steps, self.reads + other.reads


_running = [_Seen()]  # innermost last: fixtures are set up inside each other


def seeded(seed: int) -> int:
    """``seed`` plus the offset of this run."""
    _running[-1].reads += 1
    return seed + SHIFT


def _stepped(*_: Any) -> None:
    _running[-1].steps += 1


class Watch:
    """Pytest plugin: counts the optimizer's steps and the readings of the offset; fails tests that break the rule."""

    def __init__(self, config: pytest.Config) -> None:
        self.cache = getattr(config, "cache", None)  # none under -p no:cacheprovider
        self.output: dict[str, Any] | None = getattr(config, "workeroutput", None)  # in a worker of pytest-xdist
        self.trains: dict[str, bool] = {}
        self.fixtures: dict[int, _Seen] = {}

    def pytest_sessionstart(self) -> None:
        self.hook = register_optimizer_step_post_hook(_stepped)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if config.getoption("trains") and self.cache is not None:
            known = set(self.cache.get(KNOWN, []))
            config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in known])
            items[:] = [item for item in items if item.nodeid in known]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        seen = _Seen()
        _running.append(seen)
        try:
            return (yield)
        finally:
            _running.pop()
            self.fixtures[id(fixturedef)] = seen  # a fixture's users get its newest setup

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        seen = _Seen()
        _running.append(seen)
        try:
            yield
        finally:
            _running.pop()
            for definitions in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
                for definition in definitions:
                    seen.add(self.fixtures.get(id(definition), _Seen()))
            self.trains[item.nodeid] = bool(seen.steps)
        marker = item.get_closest_marker("fixed_draw")
        if seen.steps and not seen.reads and not (marker and marker.args):
            pytest.fail(
                f"an optimizer steps {seen.steps} times and no seed is offset: draw from seeded(...), "
                'or say why the draw cannot matter: @pytest.mark.fixed_draw("...")',
                pytrace=False,
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.trains |= getattr(node, "workeroutput", {}).get(KNOWN, {})  # none from a worker that died

    def pytest_sessionfinish(self) -> None:
        self.hook.remove()
        if self.output is not None:
            self.output[KNOWN] = self.trains  # only the process that all workers report to writes the cache
        elif self.cache is not None:
            known = set(self.cache.get(KNOWN, [])) - self.trains.keys()
            self.cache.set(KNOWN, sorted(known | {name for name, steps in self.trains.items() if steps}))

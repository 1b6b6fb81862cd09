"""The whole grid: its methods, the cost of table1, and that a change recomputes only what depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchbd import Attack, AttackerKnowledge, Backdoor, Pretraining, Role
from benchbd.api import Session
from benchbd.planning.board import load_board
from benchbd.planning.cases import Plan
from benchbd.planning.selection import Selection
from benchbd.records.gates import judge
from benchbd.registry import Registry, load_registry
from benchbd.stages.base import Stage
from benchbd.stages.kinds import KINDS

from ..boards import TINY, Tiny, keys, offering

DEFENSES = ("ft", "fp", "nad", "anp", "moth", "decree", "medic", "mimic")


def cost(stage: Stage) -> int | None:
    return KINDS[stage.kind].forwards(stage)


def plan(board: str, store: Path, registry: Registry, **selection: Any) -> Plan:
    session = Session.open(board, Selection.of(**selection), store=store, device="cpu", registry=registry)
    return session.plan(strict=False)


def count(made: Plan) -> dict[str, int]:
    found = [stage.kind for stage in made.stages]
    return {kind: found.count(kind) for kind in dict.fromkeys(found)}


def test_every_method_of_the_papers_table_is_there(registry: Registry) -> None:
    assert {"none", "badencoder", "bassl", "bassl-control"} <= set(registry.names("attack"))
    assert {"none", "scratch", *DEFENSES} <= set(registry.names("defense"))
    assert "decree" in registry.names("detection")
    assert registry.problems == []


def test_table1_is_108_cells_on_the_stages_that_they_share(tmp_path: Path, registry: Registry) -> None:
    made = plan("table1", tmp_path, registry)
    assert len(made.cells) == 108
    assert made.departures == []
    assert count(made) == {"pretrain": 2, "reference": 6, "attack": 12, "defend": 96, "evaluate": 114}
    attacks = [stage for stage in made.stages if stage.kind == "attack"]
    assert [stage.method_name for stage in attacks].count("bassl") == 6
    assert all(cost(stage) for stage in made.stages)  # every stage has an estimate, absent data or not
    for stage in attacks:  # poisoning the pool means pre-training again
        if stage.method_name == "bassl":
            assert cost(stage) == cost(stage.parents["encoder"])


ATTACKS = {
    "demo-matrix": ("badencoder", "bassl", "bassl-control"),
    "cifar10-medium": ("badencoder",),
    "cifar10-bassl": ("badencoder", "bassl"),
}


@pytest.mark.parametrize("board", ATTACKS)
def test_the_boards_hold_the_whole_grid(board: str) -> None:
    loaded = load_board(board)
    assert set(loaded.names("attack")) == {"none", *ATTACKS[board]}
    assert set(loaded.names("defense")) == {"none", "scratch", "bn", "clp", *DEFENSES}


def test_cifar10_triggers_trains_nothing_that_cifar10_bassl_trains(tmp_path: Path, registry: Registry) -> None:
    """Pre-trainings, references, the clean encoder's repairs and BadEncoder with the patch are the same stages."""
    bassl, triggers = (plan(board, tmp_path, registry) for board in ("cifar10-bassl", "cifar10-triggers"))
    shared = [stage for stage in triggers.stages if stage.key in keys(bassl)]
    assert [count(triggers)[kind] for kind in ("pretrain", "reference")] == [3, 3]
    assert sum(stage.kind in ("pretrain", "reference") for stage in shared) == 6
    assert sorted(stage.method_name for stage in shared if stage.kind == "attack") == ["badencoder"] * 3
    assert sum(stage.kind == "defend" for stage in shared) == 3 * (5 + 4)  # scratch is the same for both encoders


LIMITS = {"demo-matrix": 300_000, "cifar10-medium": 500_000, "cifar10-bassl": 500_000}


@pytest.mark.parametrize("board", LIMITS)
def test_every_defense_keeps_within_the_budget_of_its_board(tmp_path: Path, registry: Registry, board: str) -> None:
    made = plan(board, tmp_path, registry, attacks=["badencoder"])
    costs = {stage.method_name: cost(stage) for stage in made.stages if stage.kind == "defend"}
    assert (costs.pop("bn"), costs.pop("clp")) == (load_board(board).clean.images, None)  # neither trains
    assert set(costs) == {"scratch", *DEFENSES}
    for name, forwards in costs.items():
        assert forwards is not None
        assert 0.6 * LIMITS[board] <= forwards <= LIMITS[board], name


def test_one_option_of_one_defense_recomputes_that_defense_and_nothing_else(tmp_path: Path, registry: Registry) -> None:
    before = plan("demo-matrix", tmp_path, registry)
    for option in ("nad.beta=500", "moth.batch=64", "fp.tolerance=0.1", "medic.imp_temp=1", "anp.eps=0.2"):
        name = option.partition(".")[0]
        after = plan("demo-matrix", tmp_path, registry, options=[option])
        fresh = [stage for stage in after.stages if stage.key not in keys(before)]
        repairs = [stage for stage in fresh if stage.kind == "defend"]
        assert {stage.method_name for stage in repairs} == {name}
        assert len(repairs) == 3  # on the clean encoder, on BadEncoder's and on BASSL's
        assert {stage.kind for stage in fresh} == {"defend", "evaluate"}
        assert len(fresh) == 6
        assert all(
            stage.parents["encoder"].key in {r.key for r in repairs} for stage in fresh if stage.kind == "evaluate"
        )


class Again(Attack):
    """Pre-trains again on the same pool."""

    name = "again"
    paper = "a test"
    version = "1"
    retrains = True

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        encoder = knowledge.pretraining.pretrain(knowledge.pool, knowledge.pool_seed)
        return Backdoor(encoder, tuple(target.trigger for target in knowledge.targets))


class AgainControl(Again):
    """The control of the other."""

    name = "again-calm"
    role = Role.CONTROL
    control_of = "again"


BOARD = TINY.replace('attacks = ["none", "badencoder"]', 'attacks = ["none", "again", "again-calm"]')


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    registry = load_registry(extra={"again": offering(benchbd_attacks=[Again, AgainControl])})
    return Tiny(tmp_path, registry, BOARD)


def test_a_control_is_undefended_and_never_gated(tiny: Tiny) -> None:
    made = tiny.plan()
    assert [c.defense for c in made.cells if c.attack == "again-calm"] == ["none"]
    assert [c.defense for c in made.cells if c.attack == "again"] == ["none", "scratch", "ft"]
    asked = tiny.plan(attacks=["again-calm"], defenses=["ft"])
    assert [(c.attack, c.defense) for c in asked.cells] == [("again-calm", "ft")]
    status = {(r.attack, r.defense): judge(r).status for r in tiny.run(defenses=[])}
    assert status["again", "none"] == "attack-failed"  # it changed nothing, and is an attack
    assert status["again-calm", "none"] == "ok"
    assert status["none", "ft"] == "ok"


def test_an_attack_that_pretrains_again_costs_what_pretraining_did(tiny: Tiny) -> None:
    stages = {stage.method_name: stage for stage in tiny.plan().stages}
    assert issubclass(type(stages["simclr"].method), Pretraining)
    assert cost(stages["again"]) == cost(stages["simclr"]) == 6 * 16 * 2

"""From a board to cells and stages: sharing, keys, options, departures, and one line for every fault."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchbd_plugins.simclr import SimCLR

from benchbd.base.content import sealed
from benchbd.base.errors import DataAbsentError, DataError, UnknownNameError, UsageError
from benchbd.cli.describe import fields_of
from benchbd.contract.trigger import Trigger
from benchbd.registry import Registry, load_registry

from ..boards import TINY, Tiny, keys, offering
from ..conftest import write_npz_set


@pytest.fixture
def tiny(tmp_path: Path, registry: Registry) -> Tiny:
    return Tiny(tmp_path, registry)


def kinds(tiny: Tiny, **selection: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for stage in tiny.plan(**selection).stages:
        found[stage.kind] = found.get(stage.kind, 0) + 1
    return found


def test_equal_stages_are_one(tiny: Tiny) -> None:
    # One scratch serves both attacks; none x none is the floor; nothing is stored for the passthrough controls.
    assert kinds(tiny) == {"pretrain": 1, "reference": 1, "attack": 1, "defend": 3, "evaluate": 5}
    plan = tiny.plan()
    assert len(plan.cells) == 6
    by_name = {(c.attack, c.defense): c for c in plan.cells}
    assert by_name["none", "none"].judged.key == by_name["badencoder", "ft"].floors[0].key
    assert by_name["none", "scratch"].judged.key == by_name["badencoder", "scratch"].judged.key
    assert by_name["badencoder", "none"].judged.key == by_name["badencoder", "ft"].undefended[0].key


def test_floors_are_implied(tiny: Tiny) -> None:
    assert kinds(tiny, attacks=("badencoder",), defenses=("ft",)) == {
        "pretrain": 1,
        "reference": 1,
        "attack": 1,
        "defend": 1,
        "evaluate": 3,
    }


def test_parents_come_first(tiny: Tiny) -> None:
    seen: set[str] = set()
    for stage in tiny.plan().stages:
        assert all(parent.key in seen for parent in stage.parents.values())
        seen.add(stage.key)


def test_keys_do_not_depend_on_where_data_lies(tmp_path: Path, registry: Registry) -> None:
    first, second = Tiny(tmp_path / "a", registry), Tiny(tmp_path / "b", registry)
    assert keys(first.plan()) == keys(second.plan())


def test_one_option_recomputes_its_stage_and_what_stands_on_it(tiny: Tiny) -> None:
    before = {stage.key: stage for stage in tiny.plan().stages}
    after = {stage.key: stage for stage in tiny.plan(options=("ft.lr=0.01",)).stages}
    fresh = [after[key] for key in after.keys() - before.keys()]
    assert sorted((s.kind, s.method_name) for s in fresh) == [
        ("defend", "ft"),
        ("defend", "ft"),
        ("evaluate", "mlp"),
        ("evaluate", "mlp"),
    ]
    # Every chain begins with pre-training, except the control that does not use the encoder.
    kept = keys(tiny.plan()) & keys(tiny.plan(options=("simclr.temperature=0.3",)))
    assert {(before[key].kind, before[key].method_name) for key in kept} == {("defend", "scratch"), ("evaluate", "mlp")}


def test_data_and_trigger_are_identity(tiny: Tiny) -> None:
    before = keys(tiny.plan())
    trigger = {s.key for s in tiny.plan(options=("trigger.size=5",)).stages}
    assert {s.kind for s in tiny.plan().stages if s.key in before & trigger} == {"pretrain", "reference", "defend"}
    path = tiny.data / "pool" / "train.npz"
    arrays = dict(np.load(path))
    arrays["x"][0, 0, 0, 0] ^= 1
    np.savez(path, **arrays)
    assert not before & keys(tiny.plan())


def test_a_trigger_file_is_its_content(tiny: Tiny, tmp_path: Path) -> None:
    Trigger.square(10).save(tmp_path / "t.npz")
    assert keys(tiny.plan()) == keys(tiny.plan(options=(f"trigger.file={tmp_path / 't.npz'}",)))


def test_stage_seeds_follow_seed_and_kind_alone(tiny: Tiny) -> None:
    one = {s.kind: s.seed for s in tiny.plan().stages}
    other = {s.kind: s.seed for s in tiny.plan(options=("simclr.lr=0.1", "ft.lr=0.1")).stages}
    assert one == other
    assert len(set(one.values())) == len(one)
    assert not set(one.values()) & {s.seed for s in tiny.plan(seeds=(2,)).stages}


def test_every_defense_gets_the_same_images(tiny: Tiny) -> None:
    clean = {tuple(s.params["clean"].items()) for s in tiny.plan().stages if s.kind == "defend"}
    assert len(clean) == 1


def crossed(tiny: Tiny, **selection: Any) -> dict[tuple[str, str], bool]:
    """The cells of a plan as the commands make it, and whether each is context."""
    return {(c.attack, c.defense): c.context for c in tiny.plan(**{"only": False, **selection}).cells}


def test_beside_a_defense_stand_the_undefended_row_the_floor_and_the_controls(tiny: Tiny) -> None:
    floor, undefended = ("none", "none"), ("badencoder", "none")
    controls = {("badencoder", "scratch"): True, ("badencoder", "bn"): True}
    asked = ("badencoder", "mimic")
    found = crossed(tiny, attacks=["badencoder"], defenses=["mimic"])
    assert found == {floor: True, undefended: True, **controls, asked: False}
    assert crossed(tiny, attacks=["badencoder"], defenses=["mimic", "none"]) == {**found, undefended: False}
    both = crossed(tiny, defenses=["mimic"])  # the board's attacks: the clean encoder is one of them
    assert both == {**found, ("none", "scratch"): True, ("none", "bn"): True, ("none", "mimic"): False}
    assert list(crossed(tiny, attacks=["badencoder"], defenses=["mimic"], only=True)) == [asked]
    assert not any(crossed(tiny).values())
    plan = tiny.plan(only=False, attacks=["badencoder"], defenses=["ft"], evaluators=["knn"], options=["ft.lr=0.1"])
    assert {c.evaluator for c in plan.cells} == {"knn"}
    assert [c.defense for c in plan.cells if "ft.lr=0.1 (the board's: 0.001)" in c.departures] == ["ft"]
    assert tiny.plan(only=False, defenses=["ft"], options=["scratch.lr=0.1"]).departures  # it takes part


def test_a_control_is_no_more_defended_in_the_context(tiny: Tiny) -> None:
    asked = crossed(tiny, attacks=["bassl", "bassl-control"], defenses=["ft"])
    assert {d for a, d in asked if a == "bassl-control"} == {
        "none",
        "scratch",
        "bn",
        "ft",
    }  # both named, so both are meant
    board = tiny.board.read_text().replace('attacks = ["none", "badencoder"]', 'attacks = ["bassl", "bassl-control"]')
    tiny.board.write_text(board)
    assert {d for a, d in crossed(tiny, defenses=["ft"]) if a == "bassl-control"} == {"none"}


def test_the_pretraining_method_is_an_axis_too(tmp_path: Path) -> None:
    class Other(SimCLR):
        """Another name for it."""

        name = "other"

    registry = load_registry(extra={"other": offering(benchbd_pretrainings=[Other])})
    tiny = Tiny(tmp_path, registry, TINY + "\n[options.other]\narch = 'w16'\nsteps = 2\nbatch = 16\n")
    plan = tiny.plan(pretraining="other")
    assert {stage.method_name for stage in plan.stages if stage.kind == "pretrain"} == {"other"}
    assert {cell.departures for cell in plan.cells} == {("pre-training method other (the board's: simclr)",)}
    assert tiny.plan(pretraining="simclr").departures == []
    with pytest.raises(UnknownNameError, match="unknown pretraining 'othr': did you mean 'other'"):
        tiny.plan(pretraining="othr")
    with pytest.raises(UsageError, match="simclr takes no part"):
        tiny.plan(pretraining="other", options=["simclr.lr=0.1"])


def test_a_pinned_pretraining_is_shared_by_the_seeds(tmp_path: Path, registry: Registry) -> None:
    board = TINY.replace("seeds = [1]", "seeds = [1, 2, 3]\npretrain_seed = 7")
    cells = Tiny(tmp_path, registry, board).plan().cells
    assert {(c.defense, c.seed) for c in cells} == {(d, s) for d in ("none", "scratch", "ft") for s in (1, 2, 3)}
    assert len({c.chain[0].key for c in cells}) == 1


def test_budget_reaches_every_defense_that_has_the_fields(tiny: Tiny) -> None:
    for stage in tiny.plan().stages:
        if stage.kind == "defend":
            assert stage.method.steps == 2  # type: ignore[union-attr]
            assert stage.method.batch == 8  # type: ignore[union-attr]


def test_departures(tiny: Tiny) -> None:
    assert tiny.plan().departures == []
    assert tiny.plan(attacks=("badencoder",), defenses=("mimic",)).departures == []
    assert tiny.plan(tasks=("task",)).departures == []
    assert tiny.plan(tasks=("task:1",)).departures == []
    assert tiny.plan(options=("ft.lr=0.001",)).departures == []  # the default, given explicitly
    assert tiny.plan(options=("ft.lr=0.01",)).departures == ["ft.lr=0.01 (the board's: 0.001)"]
    assert tiny.plan(options=("trigger.size=5",)).departures == ["trigger.size=5 (the board's: 10)"]
    assert tiny.plan(tasks=("task:2",)).departures == ["task pool -> task:2"]
    assert tiny.plan(seeds=(5,), defenses=("ft",)).departures == ["seed not of the board (its seeds: 1)"]
    assert tiny.plan(evaluators=("mlp", "knn")).departures == ["evaluator knn"]
    assert tiny.plan(options=("budget.steps=3",)).departures[0] == "budget.steps=3 (the board's: 2)"
    write_npz_set(tiny.data, "task", train=63, seed=2)
    assert tiny.plan().departures == ["task train is 63, the board pins 60"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "reference.count=999999",
            "reference.count: 999999 reference inputs are asked for, and the class 1 of task has",
        ),
        ("reference.count=9999999", "reference.count: input should be less than or equal to 1000000"),
        ("ft.steps=10000000000", "ft.steps: input should be less than or equal to 1000000000"),
        ("ft.batch=10000000", "ft.batch: input should be less than or equal to 1000000"),
        ("ft.temperature=1e-20", "ft.temperature: input should be greater than or equal to 0.0001"),
        ("ft.lr=1e30", "ft.lr: input should be less than or equal to 1000"),
        ("budget.steps=9999999999", "budget.steps: input should be less than or equal to 1000000000"),
    ],
)
def test_a_value_that_could_never_work_is_refused(tiny: Tiny, option: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"^{said}"):
        tiny.plan(options=[option])


@pytest.mark.parametrize("axis", ["attack", "defense", "evaluator", "detection", "pretraining"])
def test_every_number_of_our_methods_has_two_bounds(axis: str, registry: Registry) -> None:
    """A number without an upper bound would be accepted, computed with, and fail or mean nothing after hours."""
    free = {("knn", "temperature")}  # valid at any value: its votes are relative
    for name in registry.names(axis):
        for about in fields_of(registry.get(axis, name)):
            if about["type"].split(" | ")[0] in ("int", "float") and (name, about["name"]) not in free:
                low, high = (any(sign in about["bounds"] for sign in signs) for signs in (">", "<"))
                assert (low and high) or "tuple" in about["type"], (name, about["name"], about["bounds"])


def departed(tiny: Tiny, **selection: Any) -> dict[tuple[str, str], tuple[str, ...]]:
    """The cells that are off-board, with their departures."""
    return {(c.attack, c.defense): c.departures for c in tiny.plan(**selection).cells if c.departures}


def test_a_departure_is_of_the_cells_that_stand_on_it(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry)
    ft = ("ft.lr=0.01 (the board's: 0.001)",)
    assert departed(tiny, options=["ft.lr=0.01"]) == {(attack, "ft"): ft for attack in ("none", "badencoder")}
    for option in ("badencoder.steps=3 (the board's: 2)", "reference.count=2 (the board's: 1)"):
        found = departed(tiny, options=[option.partition(" ")[0]])
        assert found == {("badencoder", defense): (option,) for defense in ("none", "scratch", "ft")}
    budget = ("budget.steps=3 (the board's: 2)",)  # one table for all methods of the budget, and no more
    found = departed(tiny, options=["budget.steps=3"])
    assert found == {(attack, d): budget for attack in ("none", "badencoder") for d in ("scratch", "ft")}
    found = departed(tiny, options=["budget.steps=3", "ft.steps=4"])
    assert found["none", "ft"] == ("ft.steps=4 (the board's: 2)",)
    assert found["none", "scratch"] == budget
    for option in ("simclr.lr=0.1", "trigger.size=5", "mlp.lr=0.1"):
        assert len(departed(tiny, options=[option])) == 6
    both = tiny.plan(tasks=["task:1", "task:2"], evaluators=["mlp", "knn"])
    assert {(str(c.task), c.evaluator): c.departures for c in both.cells} == {
        ("task:1", "mlp"): (),
        ("task:1", "knn"): ("evaluator knn",),
        ("task:2", "mlp"): ("task pool -> task:2",),
        ("task:2", "knn"): ("task pool -> task:2", "evaluator knn"),
    }


def test_other_data_mark_only_the_rows_that_have_them(tmp_path: Path, registry: Registry) -> None:
    rows = 'rows = [{ pretrain = "pool", tasks = ["task:1"] }, { pretrain = "pool", tasks = ["other:2"] }]'
    board = TINY.replace('rows = [{ pretrain = "pool", tasks = ["task:1"] }]', rows)
    tiny = Tiny(tmp_path, registry, board.replace("[data]", "[data]\nother = { test = 99 }"))
    write_npz_set(tiny.data, "other", seed=3)
    off = {str(cell.task): cell.departures for cell in tiny.plan().cells}
    assert off == {"task:1": (), "other:2": ("other test is 30, the board pins 99",)}


def test_files_count_by_content(tiny: Tiny, tmp_path: Path) -> None:
    for name, size in (("board", 10), ("five", 5)):
        Trigger.square(size).save(tmp_path / f"{name}.npz")
    corner = Trigger.square(4)
    mixed = Trigger(corner.pattern.roll(-20, 1), corner.keep.roll(-20, 1))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        mixed.save(tmp_path / folder / "t.npz")
        x = np.full((2, 32, 32, 3), 7, np.uint8)
        np.savez(tmp_path / folder / "r.npz", x=x, y=np.array([1, 1]))
    assert departed(tiny, options=[f"trigger.file={tmp_path / 'board.npz'}"]) == {}
    square, size = ({"options": [option]} for option in (f"trigger.file={tmp_path / 'five.npz'}", "trigger.size=5"))
    assert departed(tiny, **square) == departed(tiny, **size)
    for name in ("t", "r"):
        part = {"t": "trigger", "r": "reference"}[name]
        one, other = (tiny.plan(options=[f"{part}.file={tmp_path / folder / name}.npz"]) for folder in ("a", "b"))
        assert one.departures == other.departures
        assert one.departures[0].startswith(f"{part}.file=")
        assert str(tmp_path) not in "".join(one.departures)
    assert one.departures[0].endswith(" (the board's: None)")


def test_the_boards_own_file_elsewhere_is_the_boards(tmp_path: Path, registry: Registry) -> None:
    np.savez(tmp_path / "r.npz", x=np.full((1, 32, 32, 3), 7, np.uint8), y=np.array([1]))
    np.savez(tmp_path / "copy.npz", x=np.full((1, 32, 32, 3), 7, np.uint8), y=np.array([1]))
    Trigger.square(7, center=True).save(tmp_path / "t.npz")
    Trigger.square(7, center=True).save(tmp_path / "tcopy.npz")
    tiny = Tiny(tmp_path, registry, f'{TINY}\n[reference]\nfile = "r.npz"\n[trigger]\nfile = "t.npz"\n')
    assert tiny.plan(options=[f"reference.file={tmp_path / 'copy.npz'}"]).departures == []
    assert tiny.plan(options=[f"trigger.file={tmp_path / 'tcopy.npz'}"]).departures == []
    assert departed(tiny, options=[f"trigger.file={tmp_path / 'tcopy.npz'}", "ft.lr=0.1"]).keys() == {
        ("none", "ft"),
        ("badencoder", "ft"),
    }


def test_a_pool_is_pinned_by_its_parts(tmp_path: Path, registry: Registry) -> None:
    for pins, departures in (
        ("pool = { train = 60 }", []),
        ("pool = { train = 61 }", ["pool pool is 60, the board pins 61"]),
        ("pool = { train = 40, unlabeled = 20 }", []),
        ('pool = { train = "0123" }', ["pool train is "]),
    ):
        tiny = Tiny(tmp_path, registry, TINY.replace("[data]", f"[data]\n{pins}"))
        found = tiny.plan().departures
        assert len(found) == len(departures)
        assert all(text.startswith(start) for text, start in zip(found, departures, strict=True))


TWO = """
rows = [{ pretrain = "pool", tasks = ["task:1", "other:2"], triggers = [{ size = 10 }, { size = 5 }] }]
"""


def test_several_targets_at_once(tmp_path: Path, registry: Registry) -> None:
    board = TINY.replace('rows = [{ pretrain = "pool", tasks = ["task:1"] }]', TWO)
    tiny = Tiny(tmp_path, registry, board)
    write_npz_set(tiny.data, "other", seed=3)
    plan = tiny.plan(attacks=("badencoder",), defenses=("none",))
    (attack,) = (stage for stage in plan.stages if stage.kind == "attack")
    assert len({target["trigger"] for target in attack.params["targets"]}) == 2
    for cell in plan.cells:  # each cell has the reference and the trigger of its own task
        (reference,) = (stage for stage in cell.chain if stage.kind == "reference")
        assert reference.data["train"].name == cell.task.name
        own = next(t for t in attack.params["targets"] if t["data"] == reference.data["train"].digest)
        assert cell.judged.params["trigger"] == own["trigger"]
    alone = tiny.plan(attacks=("badencoder",), defenses=("none",), tasks=("other:2",))
    assert [cell.task.name for cell in alone.cells] == ["other"]
    assert alone.departures == []
    assert {s.key for s in alone.stages if s.kind == "attack"} == {attack.key}  # a part of the row, not another attack


def test_a_trigger_per_task_or_one_for_all(tmp_path: Path, registry: Registry) -> None:
    row = 'rows = [{ pretrain = "pool", tasks = ["task:1"], triggers = [{ size = 3 }, { size = 5 }] }]'
    tiny = Tiny(tmp_path, registry, TINY.replace('rows = [{ pretrain = "pool", tasks = ["task:1"] }]', row))
    with pytest.raises(UsageError, match="2 triggers for 1 tasks"):
        tiny.plan()


def test_an_explicit_target_of_the_board_is_the_boards(tmp_path: Path, registry: Registry) -> None:
    rows = 'rows = [{ pretrain = "pool", tasks = ["task:1"] }, { pretrain = "task", tasks = ["pool:1"] }]'
    tiny = Tiny(tmp_path, registry, TINY.replace('rows = [{ pretrain = "pool", tasks = ["task:1"] }]', rows))
    for wanted in ("task", "task:1"):
        plan = tiny.plan(tasks=(wanted,))
        assert {(cell.pretrain, str(cell.task)) for cell in plan.cells} == {("pool", "task:1")}
        assert plan.departures == []


def test_pretrain_selects_or_replaces(tiny: Tiny) -> None:
    assert tiny.plan(pretrain="pool").departures == []
    assert tiny.plan(pretrain="task").departures == ["pre-training set task"]


@pytest.mark.parametrize(
    ("selection", "error", "text"),
    [
        ({"attacks": ("badencodr",)}, UnknownNameError, "unknown attack 'badencodr': did you mean 'badencoder'"),
        ({"defenses": ("mimc",)}, UnknownNameError, "unknown defense 'mimc': did you mean 'mimic'"),
        ({"evaluators": ("mpl",)}, UnknownNameError, "unknown evaluator 'mpl': did you mean 'mlp'"),
        ({"options": ("ft.lrr=1",)}, UnknownNameError, "unknown option of ft 'lrr': did you mean 'lr'"),
        ({"options": ("ft.lr=-1",)}, UsageError, r"ft.lr: input should be greater than 0 \(got -1\)"),
        ({"options": ("ft.lr=fast",)}, UsageError, "ft.lr: input should be a valid number"),
        ({"options": ("ftt.lr=1",)}, UnknownNameError, "unknown method 'ftt': did you mean 'ft'"),
        ({"options": ("ft.schedule=linear",)}, UsageError, "ft.schedule: input should be 'constant' or 'cosine'"),
        ({"options": ("ft.lr",)}, UsageError, "not of the form NAME.FIELD=VALUE"),
        ({"options": ("mimic.lr=1",)}, UsageError, "mimic takes no part in this run"),
        ({"options": ("none.x=1",)}, UsageError, "'none' stands on two axes"),
        (
            {"options": ("trigger.size=32",)},
            UsageError,
            "a trigger of 32x32 does not fit a 32x32 image: sizes are 0..31",
        ),
        ({"tasks": ("nowhere:1",)}, UnknownNameError, "nowhere"),
        ({"tasks": ("nowhere",)}, UnknownNameError, "unknown task 'nowhere': known: .*task"),
        ({"tasks": ("tsak",)}, UnknownNameError, "unknown task 'tsak': did you mean 'task'"),
        ({"tasks": ("shapes",)}, UsageError, "give its target, as in shapes:3"),
        ({"tasks": ("task:9",)}, UsageError, r"no class 9; its classes are 0\.\.2"),
        ({"tasks": ("task:",)}, UsageError, "not of the form DATASET:TARGET"),
        ({"pretrain": "nowhere"}, UnknownNameError, "nowhere"),
        ({"pretrain": "cifar10"}, DataAbsentError, "cifar10"),
    ],
)
def test_bad_input(tiny: Tiny, selection: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        tiny.plan(**selection)
    assert "\n" not in str(caught.value)


def test_too_few_images(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, TINY.replace("clean.images = 16", "clean.images = 61"))
    with pytest.raises(UsageError, match="61 clean images, but the pool pool has 60"):
        tiny.plan()


def test_labels_out_of_range(tiny: Tiny) -> None:
    path = tiny.data / "task" / "train.npz"
    arrays = dict(np.load(path))
    arrays["y"][4] = -3
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="-3"):
        tiny.plan()


def test_absent_data_make_provisional_keys(tiny: Tiny) -> None:
    plan = tiny.session(tasks=("gtsrb:12",), attacks=("badencoder",)).plan(strict=False)
    provisional = {stage.kind for stage in plan.stages if stage.provisional}
    assert provisional == {"reference", "attack", "defend", "evaluate"}
    assert not next(stage for stage in plan.stages if stage.kind == "pretrain").provisional


def test_seeds_asked_for_are_a_part_of_the_boards_grid_or_a_departure(tmp_path: Path, registry: Registry) -> None:
    tiny = Tiny(tmp_path, registry, TINY.replace("seeds = [1]", "seeds = [1, 2]"))
    part = tiny.plan(seeds=[2, 2])
    assert [(cell.defense, cell.seed) for cell in part.cells[:3]] == [("none", 2), ("scratch", 2), ("ft", 2)]
    assert {cell.seed for cell in part.cells} == {2}
    assert part.departures == []
    off = {cell.seed: cell.departures for cell in tiny.plan(seeds=[7, 2, 5]).cells}
    assert off == {2: (), 5: off[7], 7: tiny.plan(seeds=[7]).cells[0].departures}  # alone or together: one table
    assert off[7] == ("seed not of the board (its seeds: 1, 2)",)


def test_a_trigger_option_does_not_reach_rows_with_triggers_of_their_own(tmp_path: Path, registry: Registry) -> None:
    board = TINY.replace('tasks = ["task:1"] }]', 'tasks = ["task:1"], triggers = [{ size = 5 }] }]')
    with pytest.raises(UsageError, match="has triggers of its own"):
        Tiny(tmp_path, registry, board).plan(options=["trigger.size=7"])


def test_a_budget_that_cuts_a_method_is_said_in_figures(tiny: Tiny) -> None:
    said = {stage.method_name: stage.shortened() for stage in tiny.plan().stages if stage.kind == "defend"}
    full = 6 * 16 * 1000  # FT's 1000 epochs are 1000 steps of all 16 images
    assert said["ft"] == f"ft: 0.1 % of the {full:,} image-forwards that its defaults take"
    whole = tiny.plan(options=["ft.steps=1000", "ft.batch=16"])
    assert [s.shortened() for s in whole.stages if s.method_name == "ft"] == [None, None]


def test_a_plan_from_a_cache_out_of_date_is_made_again(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = Tiny(tmp_path, registry)
    sound = tiny.session()
    plan = sound.plan(strict=True)
    path = sound.library.cache / (sound.library._key("pool", "pool") + ".json")
    fields = asdict(sound.library.info("pool", "pool")) | {"digest": "0" * 64}
    path.write_text(sealed("entry", {"key": path.stem, "info": fields}))
    assert keys(tiny.plan()) != keys(plan)
    assert keys(tiny.session()._runner.plan) == keys(plan)
    assert caplog.messages == [f"data cache: {path} is damaged; pool pool is decoded again"]

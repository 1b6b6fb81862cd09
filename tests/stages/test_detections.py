"""Detectors: planned once per encoder, judged on populations, under the same threat model as defenses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import Field

import benchbd
from benchbd import DefenderKnowledge, Detection, Encoder, NotApplicable, Verdict
from benchbd.base.errors import DataError, UnknownNameError, UsageError
from benchbd.base.seeds import derive_seed
from benchbd.cli.main import main
from benchbd.records.detection import DetectionRecord
from benchbd.records.files import read_inspected, write_records
from benchbd.records.gates import judge
from benchbd.records.models import Counts, Gain
from benchbd.registry import Registry, load_registry
from benchbd.report.detection import document, frame, populations
from benchbd.report.leaderboard import build
from benchbd.report.writers.forms import write
from benchbd.testing import ContractError, check_method

from ..boards import TINY, Tiny, keys, offering
from ..records_factory import digest, role_of

SEEN: list[DefenderKnowledge] = []


class Brightness(Detection):
    """Scores an encoder by the length of its features of the clean images."""

    name = "brightness"
    paper = "a test"
    version = "1"
    threshold: float = Field(0.5, description="flagged above it")

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        SEEN.append(knowledge)
        benchbd.note("remarks", ["looked once"])
        score = float(encoder.extract(knowledge.images.pixels).norm(dim=1).mean())
        return Verdict(score, score > self.threshold)


def render(records: list[DetectionRecord], form: str = "text") -> str:
    return write(document(records), form)


@pytest.fixture(scope="module")
def detecting() -> Registry:
    return load_registry(extra={"local-detector": offering(benchbd_detections=[Brightness])})


BOARD = TINY.replace(
    'defenses = ["none", "scratch", "ft"]', 'defenses = ["none"]\ndetections = ["brightness"]'
).replace("seeds = [1]", "seeds = [1, 2]")


@pytest.fixture
def tiny(tmp_path: Path, detecting: Registry) -> Tiny:
    return Tiny(tmp_path, detecting, BOARD)


def test_every_encoder_goes_before_the_detector_once(tiny: Tiny) -> None:
    plan = tiny.plan()
    found = [(i.attack, i.seed) for i in plan.inspections]
    assert found == [("none", 1), ("badencoder", 1), ("none", 2), ("badencoder", 2)]
    assert len([stage for stage in plan.stages if stage.kind == "detect"]) == 4


def test_rows_share_their_clean_encoders_and_so_do_seeds_of_a_pinned_pretraining(
    tmp_path: Path, detecting: Registry
) -> None:
    two_rows = BOARD.replace(
        'tasks = ["task:1"] }]', 'tasks = ["task:1"] }, { pretrain = "pool", tasks = ["task:2"] }]'
    )
    plan = Tiny(tmp_path / "a", detecting, two_rows).plan()
    assert [i.attack for i in plan.inspections].count("none") == 2
    assert [i.attack for i in plan.inspections].count("badencoder") == 4
    pinned = Tiny(
        tmp_path / "b", detecting, BOARD.replace("seeds = [1, 2]", "seeds = [1, 2]\npretrain_seed = 1")
    ).plan()
    assert [(i.attack, i.seed) for i in pinned.inspections] == [("none", 1), ("badencoder", 1), ("badencoder", 2)]


def test_clean_encoders_are_there_whatever_attacks_are_asked_for(tiny: Tiny) -> None:
    assert [i.attack for i in tiny.plan(attacks=["badencoder"], seeds=[1]).inspections] == ["none", "badencoder"]
    assert [i.attack for i in tiny.plan(attacks=["bassl-control"], seeds=[1]).inspections] == ["none"]


def test_a_pinned_encoder_has_one_verdict_whatever_seeds_are_asked_for(tmp_path: Path, detecting: Registry) -> None:
    pinned = Tiny(tmp_path, detecting, BOARD.replace("seeds = [1, 2]", "seeds = [1, 2]\npretrain_seed = 1"))
    whole, part = pinned.plan(), pinned.plan(seeds=[2])
    assert whole.inspections[0].judged.key == part.inspections[0].judged.key


def test_a_row_of_several_tasks_keeps_every_stage(tmp_path: Path, detecting: Registry) -> None:
    board = BOARD.replace('tasks = ["task:1"]', 'tasks = ["task:1", "task:2"]').replace("seeds = [1, 2]", "seeds = [1]")
    attacked = Tiny(tmp_path, detecting, board).session().inspect()[1]
    assert {"reference", "reference2"} <= set(attacked.stages)
    assert set(attacked.gains) == {"task:1", "task:2"}


def test_an_option_of_the_detector_changes_its_stages_alone(tiny: Tiny) -> None:
    before, after = tiny.plan(), tiny.plan(options=["brightness.threshold=2"])
    changed = {stage.kind for stage in after.stages if stage.key not in keys(before)}
    assert changed == {"detect"}
    assert after.departures == ["brightness.threshold=2.0 (the board's: 0.5)"]


def test_a_run_leaves_a_record_per_encoder(tiny: Tiny) -> None:
    SEEN.clear()
    session = tiny.session()
    session.run()
    records = session.inspect()
    assert [(r.attack, r.seed) for r in records] == [("none", 1), ("badencoder", 1), ("none", 2), ("badencoder", 2)]
    for record in records:
        assert record.score is not None
        assert math.isfinite(record.score)
        assert record.flagged is (record.score > 0.5)
        assert record.tasks == ["task:1"]
        assert record.cost["detect"].image_forwards == 16  # the clean images, once
        assert len(record.clean_images) == 16
        assert record.notes == ["looked once"]
        assert set(record.stages) >= {"pretrain", "detect"}
        assert record.key == record.stages["detect"]
    (clean, attacked) = records[:2]
    assert judge(clean) == ("ok", "")
    assert clean.status == attacked.status == "ok"
    status, reason = judge(attacked)
    assert status == "attack-failed"  # two steps of BadEncoder have no effect
    assert "is +0.0 points from the clean encoder" in reason
    assert attacked.gains["task:1"].counts.nontarget == 20
    assert clean.gains["task:1"].points == 0
    assert attacked.evaluator == "mlp"
    folder = tiny.store / "records" / "tiny"
    assert sorted(read_inspected(folder), key=lambda r: r.name) == sorted(records, key=lambda r: r.name)
    for record in records:
        assert record.attack_role is role_of(record.attack)
        assert record.plugins["detect"].source is not None
        assert (record.precision, record.isolation, record.schema_version) == ("fp32", "none", 2)
    assert len(list((folder / "detections").iterdir())) == 4
    knowledge = SEEN[0]
    assert knowledge.images.labels is None
    assert knowledge.images.mean is None
    again = tiny.session()
    assert again.inspect() == records
    assert len(SEEN) == 4  # nothing was computed a second time


class Wrong(Brightness):
    """Behaves as its option demands."""

    name = "wrong"
    what: str = Field("none", description="which mistake")

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Any:
        if self.what == "refuse":
            raise NotApplicable("no head, no verdict")
        return Verdict(math.inf, True) if self.what == "infinite" else self.what


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("refuse", "n/a", "no head, no verdict"),
        ("infinite", "error", "must give a finite number as score, not inf"),
        ("text", "error", "must return a benchbd.Verdict, not str"),
    ],
)
def test_a_detector_that_breaks_its_contract_is_named(tmp_path: Path, what: str, status: str, reason: str) -> None:
    registry = load_registry(extra={"local-detector": offering(benchbd_detections=[Wrong])})
    tiny = Tiny(tmp_path, registry, BOARD.replace("brightness", "wrong").replace("seeds = [1, 2]", "seeds = [1]"))
    records = tiny.session(options=[f"wrong.what={what}"]).inspect()
    assert [record.status for record in records] == [status, status]
    assert all(reason in record.reason for record in records)
    assert all(record.score is None for record in records)


def test_the_suite_for_plugin_authors_knows_detectors() -> None:
    check_method(Brightness)
    with pytest.raises(ContractError, match="finite"):
        check_method(Wrong, what="infinite")
    with pytest.raises(ContractError, match=r"benchbd\.Verdict"):
        check_method(Wrong, what="text")


# Tables


def inspection(
    attack: str, seed: int, score: float | None, status: str = "ok", took: bool = True, **fields: Any
) -> DetectionRecord:
    """took: whether the attack passes the gate."""
    attacked = {} if attack == "none" else {"attack": {"method": {"name": attack}, "seed": derive_seed(seed, "attack")}}
    identity = {
        "pretrain": {"seed": seed},
        **attacked,
        "detect": {"method": {"name": "decree"}, "parents": [attack, seed]},
    }
    clean = Counts(total=10, correct=5, hits=2, nontarget=8, hits_nontarget=1, correct_triggered=1)
    taken = clean if attack == "none" or not took else Counts(**{**clean.model_dump(), "hits": 8, "hits_nontarget": 7})
    gain = Gain(counts=taken, baseline_counts=clean)
    known: dict[str, Any] = {
        "board": "detect",
        "attack_role": role_of(attack),
        "on_board": True,
        "pretrain": "shapes",
        "tasks": ["shapes:7"],
        "detection": "decree",
        "evaluator": "mlp",
        "identity": identity,
        "stages": {kind: digest(stage) for kind, stage in identity.items()},
        "key": digest(identity["detect"]),
        "gains": {} if score is None else {"shapes:7": gain},
        "cost": {"detect": {"seconds": 2.0, "cpu_seconds": 3.0, "image_forwards": 1000}},
    }
    flagged = None if score is None else score > 0.9
    return DetectionRecord(attack=attack, seed=seed, score=score, flagged=flagged, status=status, **{**known, **fields})


def separated(n: int = 10) -> list[DetectionRecord]:
    clean = [inspection("none", seed, 0.5 + seed / 100) for seed in range(n)]
    return clean + [inspection("badencoder", seed, 0.92 + seed / 1000) for seed in range(n)]


def test_perfect_separation_keeps_an_honest_interval() -> None:
    (population,) = populations(separated())
    flat = population.flat()
    assert flat["auroc"] == 1.0
    assert flat["auroc_high"] == 1.0
    assert flat["auroc_low"] == pytest.approx(0.025 ** (1 / 10), abs=1e-9)  # Clopper and Pearson's of 10 in 10
    assert flat["tpr_at_fpr_0"] == 1.0
    assert (flat["clean_flagged"], flat["attacked_flagged"]) == (0, 10)


def test_attacks_that_failed_are_no_positives_but_are_counted() -> None:
    records = [*separated(3), inspection("badencoder", 9, 0.1, took=False)]
    (population,) = populations(records)
    assert len(population.attacked) == 3
    assert population.left_out == {"attack-failed": 1}
    text = render(records)
    assert "ok, 1 attack-failed" in text
    assert "badencoder seed 9: attack-failed: undefended ASR 12.5 is +0.0 points from the clean encoder's" in text


def test_clean_encoders_that_failed_are_counted_too() -> None:
    lost = [inspection("none", seed, None, status="error", reason="NaN") for seed in (8, 9)]
    (population,) = populations([*separated(2), *lost])
    assert population.left_out == {"clean error": 2}
    text = render([*separated(2)[2:], *lost])
    assert "2 clean error" in text
    assert "no clean encoders" not in text


def test_encoders_of_two_protocols_are_not_one_population() -> None:
    def of_version(version: str, attack: str, seed: int) -> DetectionRecord:
        method = {"name": "decree", "version": version}
        return inspection(attack, seed, 0.5, identity={"pretrain": {"seed": seed}, "detect": {"method": method}})

    for attack, seed in (("none", 1), ("badencoder", 1)):
        with pytest.raises(DataError, match=r"of two protocols: identity\.detect\.method\.version is"):
            populations([of_version("1", "none", 0), of_version("2", attack, seed)])


def test_one_population_alone_has_no_curve() -> None:
    (population,) = populations([inspection("badencoder", 1, 0.95)])
    assert population.flat()["auroc"] is None
    assert "no clean encoders" in render([inspection("badencoder", 1, 0.95)])
    assert render([]) == ""


def test_clean_encoders_alone_still_have_their_false_positives() -> None:
    (population,) = populations([inspection("none", seed, score) for seed, score in ((1, 0.5), (2, 0.95))])
    assert (population.attack, len(population.clean), population.clean_flagged) == ("", 2, 1)
    text = render([inspection("none", 1, 0.95)])
    assert "no attacked encoders" in text
    assert "1/1 [0.03, 1.00]" in text


def test_an_encoder_counts_once() -> None:
    """Runs over other rows or seeds of a pinned pre-training add further records of one clean encoder."""
    shared = {"stages": {"pretrain": "one"}}
    clean = [inspection("none", 1, 0.5, **shared), inspection("none", 2, 0.6, **shared)]
    clean += [inspection("none", 1, 0.5, tasks=["shapes:3"], **shared)]
    attacked = [inspection("badencoder", seed, 0.9, **shared) for seed in (1, 2)]
    (population,) = populations([*clean, *attacked])
    assert population.clean == (0.5,)
    assert "all encoders share one pre-training: the intervals leave it out" in population.notes
    with pytest.raises(DataError, match="two records of one encoder"):
        populations([*attacked, inspection("badencoder", 1, 0.2, key="f" * 64, **shared)])


def test_off_board_inspections_are_a_population_of_their_own() -> None:
    other = [
        inspection(attack, 1, 0.7, on_board=False, departures=["decree.steps=3 (the board's: 9)"])
        for attack in ("none", "badencoder")
    ]
    records = [*separated(2), *other]
    assert len(populations(records)) == 1
    assert [p.departures for p in populations(records, off_board=True)] == [(), tuple(other[0].departures)]


def test_scores_of_two_precisions_are_two_populations() -> None:
    departures = ["precision=bf16 (the board's: fp32)"]
    whole = [each.model_copy(update={"precision": "fp32"}) for each in separated(2)]
    half = inspection("badencoder", 1, 0.4, on_board=False, departures=departures, precision="bf16")
    found = populations([*whole, half], off_board=True)
    assert [(p.precision, p.clean, p.attacked) for p in found] == [
        ("fp32", tuple(each.score for each in whole[:2]), tuple(each.score for each in whole[2:])),
        ("bf16", (), (0.4,)),
    ]
    assert [p.flat()["precision"] for p in found] == ["fp32", "bf16"]


def test_attacked_encoders_that_depart_are_told_from_the_boards_clean_ones() -> None:
    departures = ["badencoder.steps=3 (the board's: 9)"]
    records = [*separated(2), inspection("badencoder", 1, 0.4, on_board=False, departures=departures)]
    off = populations(records, off_board=True)[1]
    assert (off.departures, off.clean, off.attacked) == (tuple(departures), populations(records)[0].clean, (0.4,))
    other = ["decree.steps=3 (the board's: 9)"]
    both = [inspection("badencoder", 1, 0.4, on_board=False, departures=[*departures, *other])]
    both += [inspection("none", 1, 0.3, on_board=False, departures=other)]
    (population,) = (p for p in populations([*records, *both], off_board=True) if len(p.departures) == 2)
    assert population.clean == (0.3,)


def test_every_format_says_the_same() -> None:
    records = separated()
    markdown, csv = render(records, "markdown"), render(records, "csv")
    (data,) = json.loads(render(records, "json"))
    assert "| 1.000 [0.69, 1.00] | 10/10 [0.69, 1.00]" in markdown
    assert data["auroc"] == 1.0
    assert csv.splitlines()[0].startswith("detection,attack,pretrain")
    assert len(csv.splitlines()) == 2
    assert list(frame(records)["score"]) == [record.score for record in records]
    of_point = inspection("none", 1, 0.5, point={"clean.images": 250})
    assert frame([records[0], of_point])["point"].tolist() == ["", "clean.images=250"]
    assert render(list(reversed(records)), "markdown") == markdown


def test_no_text_of_a_record_breaks_the_markdown() -> None:
    odd = inspection("bad|encoder", 1, 0.95, notes=["no | <head>"])
    table, _, notes = render([inspection("none", 1, 0.5), odd], "markdown").partition("\n\n")
    assert "| bad\\|encoder " in table
    assert {line.replace("\\|", "").count("|") for line in table.splitlines()} == {14}
    assert "- [1] no \\| &lt;head> (1 of 2 encoders)\n" in notes


def test_a_leaderboard_carries_its_detections(tmp_path: Path) -> None:
    records = separated(2)
    files = build("detect", [], tmp_path, inspected=records)
    assert "## Detection" in files["README.md"]
    assert (tmp_path / "detections.csv").is_file()
    assert [p["n_attacked"] for p in json.loads((tmp_path / "detections.json").read_text())] == [2]
    assert read_inspected(tmp_path / "records") == sorted(records, key=lambda r: r.name)
    build("detect", [], tmp_path, inspected=records[:1])
    assert len(read_inspected(tmp_path / "records")) == 1  # the obsolete ones were removed
    build("detect", [], tmp_path)
    assert not list(tmp_path.glob("detections.*"))
    build("detect", [], tmp_path, inspected=records)
    with pytest.raises(DataError, match="a record of board 'detect', not of 'other'"):
        build("other", [], inspected=records)


def test_off_board_records_of_other_departures_have_other_names() -> None:
    names = {inspection("none", 1, 0.5, on_board=False, departures=[d]).name for d in ("a.lr=1", "a.lr=2")}
    assert len(names) == 2


def test_a_folder_with_verdicts_alone_is_a_leaderboard(tiny: Tiny) -> None:
    tiny.session().inspect()
    result = CliRunner().invoke(main, ["leaderboard", "build", str(tiny.board), "--store", str(tiny.store)])
    assert result.exit_code == 0, result.output
    assert "## Detection" in result.stdout


def test_detect_wants_a_detector(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="board smoke has no detectors: name one"):
        benchbd.detect("smoke", store=tiny.store)


def test_a_gain_survives_the_file(tmp_path: Path) -> None:
    shared = {"total": 10, "correct": 5, "nontarget": 8, "correct_triggered": 1}
    own, floor = (Counts(hits=n + 1, hits_nontarget=n, **shared) for n in (7, 1))
    record = inspection("badencoder", 1, 0.4, gains={"shapes:7": Gain(counts=own, baseline_counts=floor)})
    assert record.gains["shapes:7"].points == 75.0
    write_records([record], tmp_path)
    assert read_inspected(tmp_path) == [record]
    assert record.name == "badencoder_decree_shapes_shapes-7_s1.json"


def test_an_unknown_detector_is_one_line(tiny: Tiny) -> None:
    with pytest.raises(UnknownNameError, match="brightness"):
        tiny.plan(detections=["brightnes"])
    result = CliRunner().invoke(main, ["run", *tiny.arguments, "--detection", "nonsense"])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "unknown detection" in result.output

"""A record that contradicts itself is refused by file and field, in one line; those of a run are accepted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchbd.base.errors import DataError
from benchbd.contract.roles import Role
from benchbd.planning.board import boards_folder
from benchbd.records.files import read_inspected, read_record, read_records, write_records
from benchbd.records.models import Record
from benchbd.records.predictions import path_of
from benchbd.registry import load_registry

from ..records_factory import TAKEN, counts_of, digest, make_record
from ..stages.test_detections import inspection

PUBLISHED = boards_folder() / "cifar10-small" / "records"
REPAIRED = "badencoder_mimic_cifar10_gtsrb-12_s1_mlp"


def edit(record: dict[str, Any], place: str, value: Any) -> None:
    """Replace a value of a record's JSON at its dotted place."""
    *parents, last = place.split(".")
    into = record
    for parent in parents:
        into = into[parent]
    into[last] = value


def tampered(folder: Path, name: str, changes: dict[str, Any], published: Path = PUBLISHED) -> Path:
    """A published record with values replaced, each at its dotted path, and its predictions."""
    record = json.loads((published / f"{name}.json").read_text(encoding="utf-8"))
    for place, value in changes.items():
        edit(record, place, value)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    if (packed := path_of(published / path.name)).exists():
        path_of(path).write_bytes(packed.read_bytes())
    return path


def of_point(folder: Path, point: dict[str, Any], **changes: Any) -> Path:
    """A published record of schema 2 (attack badencoder, defense ft, 1000 clean images), called one of this point."""
    swept = boards_folder() / "sweeps-shapes" / "records"
    return tampered(folder, "badencoder_ft_shapes_shapes-7_s1_mlp", {"point": point, **changes}, swept)


@pytest.mark.parametrize("folder", sorted(boards_folder().glob("*/records")), ids=lambda path: path.parent.name)
def test_what_is_published_is_sound(folder: Path) -> None:
    assert read_records(folder) or read_inspected(folder)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"metrics.acc": 49.0}, "metrics.acc: 49.0, but counts give 48.0333 (2882 of 6000)"),
        ({"metrics.acc": 250}, "metrics.acc: 250.0, but counts give 48.0333"),
        ({"metrics.asr_nontarget": float("nan")}, "metrics.asr_nontarget: Input should be a finite number"),
        ({"seconds": float("inf")}, "seconds: Input should be a finite number"),
        ({"baseline.asr_b": 1.0}, "baseline.asr_b: 1.0, but baseline_counts give 16.2833"),
        ({"counts.hits": 6001}, "counts.hits: 6001; with the other counts it can be 3657 to 3985"),
        ({"counts.correct": 6001}, "counts.correct: 6001; with the other counts it can be 0 to 6000 (total)"),
        ({"counts.nontarget": 0}, "counts.nontarget: 0; with the other counts it can be 1 to 6000 (total)"),
        ({"counts": None}, "counts: missing; metrics and counts go together"),
        ({"metrics": None}, "metrics: missing; metrics and counts go together"),
        ({"metrics": None, "counts": None}, "status: ok, which has metrics, baseline and undefended; some are missing"),
        ({"undefended.acc": 101.0}, "undefended.acc: 101.0 is no percentage"),
        ({"status": "error", "reason": "NaN"}, "status: error, but the record has figures"),
        ({"reason": "well"}, "status: ok, but there is a reason; all but ok have one"),
        ({"identity.defend.method.options.epochs": 1}, "stages.defend: d572aec19711, but identity.defend gives "),
        ({"key": "0" * 64}, "key: 000000000000, but identity.evaluate gives dd8151e0fa60"),
        ({"identity": {}}, "identity.attack: missing; it is what key 9123caa1583f is the digest of"),
        ({"identity.attack.seed": float("nan")}, "identity: holds a number that is not finite"),
        ({"defense": "ft"}, "defense: 'ft', but identity.defend is of 'mimic'"),
        ({"departures": ["mimic.epochs=1"]}, "on_board: true, but departures are mimic.epochs=1"),
        (
            {"departures": ["mimic.lambda1=3.5 (the board's: 1.0)"], "on_board": False},
            "departures: mimic.lambda1=3.5 (the board's: 1.0), but identity.defend has lambda1 ",
        ),
        ({"on_board": False}, "on_board: false, but there are no departures"),
        ({"attack": "../../escaped"}, "attack: '../../escaped' is no name; one has no slash"),
        ({"task": ".hidden"}, "task: '.hidden' is no name"),
    ],
)
def test_a_tampered_record_is_refused_by_file_and_field(tmp_path: Path, changes: dict[str, Any], wrong: str) -> None:
    path = tampered(tmp_path, REPAIRED, changes)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: .*{re.escape(wrong)}") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("point", "wrong"),
    [
        ({"ft.temperature": 0.2}, "point: ft.temperature=0.2, but identity.defend has 0.5"),
        ({"ft.temperature": "0.2"}, "point: ft.temperature='0.2', but identity.defend has 0.5"),
        ({"defense:ft.temperature": "0.2"}, "point: defense:ft.temperature='0.2', but identity.defend has 0.5"),
        ({"ft.temperature": {"x": 1}}, "point: ft.temperature={'x': 1}, but identity.defend has 0.5"),
        ({"ft.crop_scale": [0.1, 1]}, "point: ft.crop_scale=[0.1, 1], but identity.defend has [0.2, 1.0]"),
        ({"ft.steps": None}, "point: ft.steps=None, but identity.defend has 100"),
        ({"ft.bn": "eval"}, "point: ft.bn='eval', but identity.defend has train"),
        ({"simclr.arch": "w32"}, "point: simclr.arch='w32', but identity.pretrain has w16"),
        ({"ft.nofield": 1}, "point: ft.nofield=1, but ft has no such option in identity.defend"),
        ({"mlp.epochs": 31}, "point: mlp.epochs=31, but identity.evaluate has 30"),
        ({"pretraining": "raw"}, "point: pretraining='raw', but identity.pretrain is of 'simclr'"),
        ({"clean.images": "250"}, "point: clean.images='250', but identity.defend has 1000"),
        ({"clean.poisoned": 0.1}, "point: clean.poisoned=0.1, but identity.defend has 0 poisoned of 1000 images"),
        ({"clean.poisoned": "much"}, "point: clean.poisoned='much', but identity.defend has 0 poisoned"),
        ({"reference.count": 3}, "point: reference.count=3, but identity.reference has 1"),
        ({"reference.file": "inputs.npz"}, "point: reference.file='inputs.npz', but identity.reference has no file"),
        ({"shadow.set": "cifar10:test"}, "point: shadow.set='cifar10:test', but identity.attack has no shadow set"),
        ({"clean.nofield": 3}, "point: clean has no option 'nofield'; it has images, poisoned"),
        ({"trigger.size": {"x": 3}}, "point: trigger.size={'x': 3} is no single value"),
        ({"seeds": [1]}, "point: 'seeds' is neither of the form NAME.FIELD nor pretraining"),
        ({"ft.": 1}, "point: 'ft.' is neither of the form NAME.FIELD nor pretraining"),
        ({"../x.lr": 1}, "point: '../x.lr' is neither of the form NAME.FIELD nor pretraining"),
    ],
)
def test_a_point_that_the_stages_contradict_is_refused(tmp_path: Path, point: dict[str, Any], wrong: str) -> None:
    path = of_point(tmp_path, point)
    with pytest.raises(DataError, match=rf"contradicts itself: {re.escape(wrong)}") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "point",
    [
        {"ft.temperature": "0.5", "ft.crop_scale": [0.2, 1], "ft.weight_decay": "1e-6", "ft.bn": "train"},
        {"mlp.shuffle": "true", "pretraining": "simclr", "evaluator:mlp.epochs": 30},
        {"clean.images": 1000, "clean.poisoned": 0.0009, "reference.count": 1},
        {"reference.file": None, "shadow.set": None, "shadow.images": 500, "task.images": 3},
        {"trigger.size": 3, "budget.steps": 7, "mimic.lambda1": 4, "drupe.late": "x"},  # in no identity
    ],
)
def test_a_point_that_the_stages_have_is_read(tmp_path: Path, point: dict[str, Any]) -> None:
    assert read_record(of_point(tmp_path, point)).point == point


def test_a_file_is_no_contradiction_of_its_content_nor_a_late_option_of_a_plugin(tmp_path: Path) -> None:
    stage = {"method": {"axis": "defense", "name": "ft", "options": {"weights": "ab" * 32}}}
    evaluate = {"method": {"name": "mlp"}, "parents": {"encoder": digest(stage)}}
    known = {"identity": {"defend": stage, "evaluate": evaluate}, "key": digest(evaluate)}
    record = make_record("none", "ft", **known, point={"ft.weights": "folder/w.pt", "ft.late": 3})
    (path,) = write_records([record], tmp_path)
    assert read_record(path) == record


AB, CD, EF = ("ab" * 32, "cd" * 32, "ef" * 32)

HELD = {
    "attack": {
        "params": {"shadow": {"count": 100}, "targets": [{"data": CD, "label": 12}]},
        "data": {"shadow": AB, "train0": CD},
    },
    "defend": {"data": {"pool": EF}},
    "reference": {"params": {"file": AB}},
    "detect": {"params": {"task": {"count": 50}}},
}
"""Parts of identities that hold what a board's tables say."""


def of_part(option: str, value: Any, beside: str) -> Record:
    """A record with an assignment to a part of the protocol. beside: the field that has it, point or departures."""
    made = make_record(defense="ft")
    identity = {kind: made.identity.get(kind, {}) | HELD.get(kind, {}) for kind in {**made.identity, **HELD}}
    identity["evaluate"] |= {"data": {"train": CD, "test": EF}}
    told: dict[str, Any] = {"point": {option: value}}
    if beside == "departures":
        told = {"departures": [f"{option}={value} (the board's: 1)"], "on_board": False}
    told["reference"] = {"reference": "file", "rows": [], "predicted": [3], "probability": [0.9]}
    return make_record(defense="ft", identity=identity, key=digest(identity["evaluate"]), **told)


@pytest.mark.parametrize("beside", ["point", "departures"])
@pytest.mark.parametrize(
    ("option", "value", "wrong"),
    [
        ("task.images", 49, "identity.detect has 50"),
        ("task.images", 50, ""),
        ("task.images", 1000, ""),  # the task may have only 50
        ("task.images", "many", "identity.detect has 50"),
        ("shadow.images", 99, "identity.attack has 100"),
        ("shadow.images", 100, ""),
        ("shadow.set", None, "identity.attack has a shadow set"),
        ("shadow.set", "cifar10:test", ""),  # nothing says what its digest is
        ("shadow.set", "gtsrb:train", f"identity.attack has another shadow set, with the digest {AB[:12]}"),
        ("shadow.set", "gtsrb:test", f"identity.attack has another shadow set, with the digest {AB[:12]}"),
        ("shadow.set", "cifar10:pool", f"identity.attack has another shadow set, with the digest {AB[:12]}"),
        ("reference.file", None, f"identity.reference has a file with the digest {AB[:12]}"),
        ("reference.file", "inputs.npz", ""),
        ("reference.file", AB, ""),
        ("reference.file", CD, f"identity.reference has a file with the digest {AB[:12]}"),
    ],
)
def test_a_part_of_the_protocol_is_compared_where_identities_hold_it(
    tmp_path: Path, option: str, value: Any, wrong: str, beside: str
) -> None:
    (path,) = write_records([record := of_part(option, value, beside)], tmp_path)
    if not wrong:
        assert read_record(path) == record
        return
    said = str(value) if beside == "departures" else value  # departures are texts
    told = f"{beside}: {option}={said!r}, but {wrong}"
    with pytest.raises(DataError, match=rf"contradicts itself: {re.escape(told)}$"):
        read_record(path)


def test_the_set_of_another_attacked_task_is_known_too(tmp_path: Path) -> None:
    made = of_part("shadow.set", "svhn:train", "point")
    identity = made.identity | {"attack": made.identity["attack"] | {"params": {"targets": [{"data": CD, "label": 1}]}}}
    write_records([made.model_copy(update={"identity": identity, "beside": ["svhn:1"], "status": "ok"})], tmp_path)
    with pytest.raises(DataError, match=r"point: shadow.set='svhn:train', but identity.attack has another shadow set"):
        read_records(tmp_path)


def test_options_of_a_plugin_that_name_files_or_have_parts(tmp_path: Path) -> None:
    known = {"weights": AB, "files": [AB, CD], "part": {"file": AB, "count": 3}, "by_file": {AB: 1}}
    stage = {"method": {"axis": "defense", "name": "ft", "options": known}}
    evaluate = {"method": {"name": "mlp"}, "parents": {"encoder": digest(stage)}}
    own = {"identity": {"defend": stage, "evaluate": evaluate}, "key": digest(evaluate)}
    for point, right in (
        ({"ft.weights": "w.pt", "ft.files": ["a", "b"], "ft.part": {"file": "c"}, "ft.by_file": {"a": 1}}, True),
        ({"ft.weights": None}, False),
        ({"ft.weights": 3}, False),
        ({"ft.files": ["a"]}, False),
        ({"ft.files": ["a", None]}, False),
        ({"ft.part": {"file": "c", "count": 4}}, False),
        ({"ft.part": {"nothing": 4}}, False),
    ):
        (path,) = write_records([record := make_record("none", "ft", **own, point=point)], tmp_path)
        if right:
            assert read_record(path) == record
        else:
            with pytest.raises(DataError, match="contradicts itself: point: ft"):
                read_record(path)


def test_an_option_that_the_user_changed_at_a_point_is_told_by_the_departures(tmp_path: Path) -> None:
    told = {"departures": ["ft.temperature=0.5 (the board's: 0.2)"], "on_board": False}
    assert read_record(of_point(tmp_path, {"ft.temperature": 0.2}, **told)).departures == told["departures"]
    of_budget = {"departures": ["budget.steps=100 (the board's: 7)"], "on_board": False}
    assert read_record(of_point(tmp_path, {"ft.steps": 7}, **of_budget)).point == {"ft.steps": 7}


def test_late_options_of_benchbd_are_zero_by_default(tmp_path: Path) -> None:
    """``benchbd.records.points`` relies on it: an identity lacks a late option at its default."""
    registry = load_registry()
    own = [cls for axis in registry.methods for cls in registry.methods[axis].values()]
    assert {cls.model_fields[name].default for cls in own for name in cls.late} == {0}
    assert read_record(of_point(tmp_path, {"ft.head_steps": 0})).point == {"ft.head_steps": 0}
    with pytest.raises(DataError, match=r"point: ft\.head_steps=3, but ft has no such option in identity\.defend"):
        read_record(of_point(tmp_path, {"ft.head_steps": 3}))


@pytest.mark.parametrize(
    ("place", "value", "wrong"),
    [
        ("cost.defend.seconds", -5.0, "greater than or equal to 0"),
        ("cost.defend.seconds", 1e308, "less than or equal to 10000000000"),
        ("cost.defend.cpu_seconds", -1, "greater than or equal to 0"),
        ("cost.pretrain.image_forwards", -1, "greater than or equal to 0"),
        ("cost.pretrain.image_forwards", 10**30, "less than or equal to 1000000000000000"),
        ("cost.attack.memory", 2**70, "less than or equal to 1000000000000000"),
        ("seconds", -1.0, "greater than or equal to 0"),
        ("seconds", 1e11, "less than or equal to 10000000000"),
        ("counts.total", 10**30, "less than or equal to 1000000000000000"),
        ("counts.correct", -1, "greater than or equal to 0"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than 9223372036854775808"),
    ],
)
def test_what_no_run_can_measure_is_refused(tmp_path: Path, place: str, value: Any, wrong: str) -> None:
    with pytest.raises(DataError, match=rf"not a benchbd record \({place}: Input should be {wrong}"):
        read_record(of_point(tmp_path, {}, **{place: value}))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"clean_images": []}, "clean_images: 0 rows, but identity.defend has 1000 clean images"),
        ({"clean_images": list(range(999))}, "clean_images: 999 rows, but identity.defend has 1000"),
        ({"clean_images": [0] * 1000}, "clean_images: rows are numbers from 0, ascending, each once"),
        ({"clean_images": list(range(-1, 999))}, "clean_images: rows are numbers from 0"),
        ({"clean_images": list(range(1000, 0, -1))}, "clean_images: rows are numbers from 0, ascending"),
        ({"stages": {}}, "stages: without attack, defend, evaluate, pretrain, reference, which identity has"),
        ({"seconds": 0.5}, "seconds: 0.5, but cost.defend has 6.081"),
        ({"machine": {"threads": float("nan")}}, "machine: holds a number that is not finite"),
        ({"reference": {}}, "reference.reference: None, but by identity.reference it is train_split"),
        ({"reference.reference": "file"}, "reference.reference: 'file', but by identity.reference it is train_split"),
        ({"reference.rows": "many"}, "reference.rows: 'many' is no list of whole numbers from 0"),
        ({"reference.rows": [-1]}, "reference.rows: [-1] is no list of whole numbers from 0"),
        ({"reference.rows": [1, 2]}, "reference.rows: 2 of them, but by identity.reference there are 1"),
        ({"reference.predicted": [True]}, "reference.predicted: [True] is no list of whole numbers"),
        ({"reference.probability": [1.5]}, "reference.probability: [1.5] is no list of numbers from 0 to 1"),
        ({"reference.probability": [float("nan")]}, "reference: holds a number that is not finite"),
        ({"undefended.acc": 72.16}, "undefended.acc: 72.16, which is no number of 2000 images"),
        ({"undefended.asr": 50.0}, "undefended.asr: 50.0, which no hits give beside asr_nontarget 100.0"),
    ],
)
def test_what_the_identity_or_the_counts_tell_is_compared(tmp_path: Path, changes: dict[str, Any], wrong: str) -> None:
    with pytest.raises(DataError, match=rf"contradicts itself: {re.escape(wrong)}") as caught:
        read_record(of_point(tmp_path, {}, **changes))
    assert "\n" not in str(caught.value)


def test_an_inspection_is_of_one_evaluator(tmp_path: Path) -> None:
    made = inspection("none", 1, 0.5)
    identity = made.identity | {"head": {"method": {"name": "mlp"}}}
    stages = {kind: digest(part) for kind, part in identity.items()}
    known = made.model_copy(update={"identity": identity, "stages": stages})
    write_records([known.model_copy(update={"evaluator": "knn"})], tmp_path)
    with pytest.raises(DataError, match=r"evaluator: 'knn', but identity\.head is of 'mlp'"):
        read_inspected(tmp_path)
    gain = made.gains["shapes:7"]
    certain = gain.model_copy(update={"counts": gain.counts.model_copy(update={"certified": 3})})
    write_records([known.model_copy(update={"gains": {"shapes:7": certain}})], tmp_path)
    with pytest.raises(DataError, match=r"gains\.shapes:7\.baseline_counts\.certified: missing, but gains\.sh"):
        read_inspected(tmp_path)


def test_an_undefended_figure_is_the_cell_s_own_where_nothing_was_repaired(tmp_path: Path) -> None:
    path = tampered(tmp_path, "badencoder_none_cifar10_gtsrb-12_s1_mlp", {"undefended.asr": 99.0})
    with pytest.raises(DataError, match="undefended: differs from metrics"):
        read_record(path)


def test_a_floor_with_a_stage_is_refused(tmp_path: Path) -> None:
    (path,) = write_records([make_record(attack_role=Role.FLOOR)], tmp_path)
    with pytest.raises(DataError, match=r"attack_role: floor, which has no stage, but there is identity\.attack"):
        read_record(path)


def test_the_record_of_a_detector_is_no_cell(tmp_path: Path) -> None:
    (path,) = write_records([inspection("none", 1, 0.5)], tmp_path)
    with pytest.raises(DataError, match=r"s1\.json: a record of detection, which has no pictures"):
        read_record(path)
    assert len(read_inspected(tmp_path)) == 1


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"score": None, "flagged": None}, "status: ok, which has score, flagged, and gains for each of its tasks"),
        ({"gains": {}}, "status: ok, which has score, flagged, and gains for each of its tasks"),
        ({"status": "error", "reason": "NaN"}, "status: error, but the record has figures"),
        ({"detection": "other"}, "detection: 'other', but identity.detect is of 'decree'"),
        ({"tasks": ["../x:7"]}, r"tasks\.0: '\.\./x' is no name"),
        ({"tasks": []}, "tasks: empty; it names each task of the encoder once"),
        ({"tasks": ["shapes:7", "shapes:7"]}, r"tasks: shapes:7 \+ shapes:7; it names each task of the encoder once"),
        ({"tasks": ["gtsrb:7"]}, "gains: of shapes:7, but tasks are gtsrb:7"),
    ],
)
def test_a_tampered_inspection_is_refused(tmp_path: Path, fields: dict[str, Any], wrong: str) -> None:
    (tmp_path / "detections").mkdir()
    text = inspection("badencoder", 1, 0.5).to_json()
    (tmp_path / "detections" / "x.json").write_text(json.dumps(json.loads(text) | fields), encoding="utf-8")
    with pytest.raises(DataError, match=rf"x\.json: contradicts itself: .*{wrong}"):
        read_inspected(tmp_path)


@pytest.mark.parametrize(
    ("tasks", "targets", "wrong"),
    [
        (["shapes:7"], [("d", 7)], ""),
        (["shapes:7", "shapes:2", "svhn:1"], [("d", 7), ("d", 2), ("s", 1)], ""),
        (["shapes:7", "shapes:2"], [("d", 7)], "shapes:7 + shapes:2, but identity.attack has targets of classes 7"),
        (["shapes:7"], [("d", 7), ("d", 2)], "shapes:7, but identity.attack has targets of classes 7, 2"),
        (["shapes:2"], [("d", 7)], "shapes:2, but identity.attack has targets of classes 7"),
        (["shapes:7", "shapes:2"], [("d", 7), ("s", 2)], "shapes:2, but identity.attack has a target of another data"),
    ],
)
@pytest.mark.parametrize("classifier", [False, True])
def test_the_tasks_of_an_inspection_are_those_that_its_encoder_was_attacked_on(
    tmp_path: Path, tasks: list[str], targets: list[tuple[str, int]], wrong: str, classifier: bool
) -> None:
    made = inspection("badencoder", 1, 0.5)
    attack = made.identity["attack"] | {"params": {"targets": [{"data": d, "label": label} for d, label in targets]}}
    identity = made.identity | {"attack": attack}
    if classifier:  # it belongs to one data set, and so do its tasks
        identity["head"] = {"data": {"train": "d"}}
        tasks, targets = tasks[:2], [each for each in targets if each[0] == "d"]
    gains = dict.fromkeys(tasks, made.gains["shapes:7"])
    stages = {kind: digest(part) for kind, part in identity.items()}
    record = made.model_copy(update={"identity": identity, "tasks": tasks, "gains": gains, "stages": stages})
    write_records([record], tmp_path)
    if wrong and not (classifier and "another data" in wrong):
        with pytest.raises(DataError, match=rf"contradicts itself: tasks: {re.escape(wrong)}"):
            read_inspected(tmp_path)
    elif not wrong:
        assert read_inspected(tmp_path) == [record]


def beside(folder: Path, *tasks: str) -> Path:
    """The record of a task that is not attacked, gtsrb:12, of an attack on gtsrb:3 and svhn:1; tasks: those told."""
    targets = [{"data": "g", "label": 3}, {"data": "s", "label": 1}]
    attack = {"method": {"name": "badencoder"}, "params": {"targets": targets}}
    evaluate = {"method": {"name": "mlp"}, "data": {"train": "g"}, "parents": {"encoder": digest(attack)}}
    known = {"identity": {"attack": attack, "evaluate": evaluate}, "key": digest(evaluate)}
    (path,) = write_records([make_record(**known)], folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beside": tasks}))
    return path


def test_a_record_of_a_task_beside_attacked_ones_is_read(tmp_path: Path) -> None:
    assert read_record(beside(tmp_path, "gtsrb:3", "svhn:1")).beside == ["gtsrb:3", "svhn:1"]


@pytest.mark.parametrize(
    ("tasks", "wrong"),
    [
        (["gtsrb:3"], "beside: gtsrb:3, but identity.attack has targets of classes 3, 1"),
        (["gtsrb:3", "svhn:2"], "beside: gtsrb:3 + svhn:2, but identity.attack has targets of classes 3, 1"),
        (["gtsrb:3", "gtsrb:1"], "beside: gtsrb:1, but identity.attack has a target of another data set"),
        (["gtsrb:3", "gtsrb:3"], "beside: gtsrb:3 + gtsrb:3, which names a task twice"),
        (["gtsrb:12", "svhn:1"], "beside: gtsrb:12 + svhn:1, but gtsrb:12 is the record's own task"),
        (["/../../../pwned/x:1"], "beside.0: '/../../../pwned/x' is no name; one has no slash"),
        (["gtsrb:3", "svhn:../../pwned"], "beside.1: 'svhn:../../pwned' does not end in the index of a class"),
        (["gtsrb"], "beside.0: '' is no name"),
        (["gtsrb:03", "svhn:1"], "beside.0: 'gtsrb:03' does not end in the index of a class"),
    ],
)
def test_tasks_that_were_not_attacked_are_refused(tmp_path: Path, tasks: list[str], wrong: str) -> None:
    with pytest.raises(DataError, match=rf"contradicts itself: {re.escape(wrong)}") as caught:
        read_record(beside(tmp_path, *tasks))
    assert "\n" not in str(caught.value)


def test_tasks_without_an_attack_are_checked_by_their_form(tmp_path: Path) -> None:
    (path,) = write_records([make_record("none", metrics=(82.0, 5.0, 3.0), beside=["svhn:1"])], tmp_path)
    assert read_record(path).beside == ["svhn:1"]
    path.write_text(path.read_text().replace("svhn:1", "../svhn:1"))
    with pytest.raises(DataError, match=r"beside\.0: '\.\./svhn' is no name"):
        read_record(path)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"attack_role": "scratch"}, "attack_role: scratch; the roles of attacks are method, floor, control"),
        ({"attack_role": "bn"}, "attack_role: bn; the roles of attacks are"),
        ({"defense_role": "control"}, "defense_role: control; the roles of defenses are method, floor, scratch, bn"),
        ({"seed": 2}, "seed: 2, but identity.attack.seed is of another run seed"),
        ({"counts.certified": 1}, "metrics.certified: None, but counts have 1 of "),
        ({"undefended.ra": None}, "undefended.ra: missing; records have it since schema 2"),
        ({"undefended.ra": 99.0}, "undefended.ra: 99.0; it can be at most "),
        ({"undefended.certified": 99.0}, "undefended.certified: 99.0; it can be at most "),
        ({"undefended.certified": 1.0}, "counts.certified: missing, but undefended has 1.0, of the same evaluator"),
        ({"counts.correct_triggered": None, "metrics.ra": None}, "counts.correct_triggered: missing; records have it"),
        (
            {"baseline_counts.correct_triggered": None, "baseline.ra_b": None},
            "baseline_counts.correct_triggered: missing; records have it since schema 2",
        ),
        ({"schema": 1, "source": None, "predictions": None}, "a field of schema 2, but the record is of schema 1"),
    ],
)
def test_what_schema_2_tells_agrees_with_the_rest(tmp_path: Path, changes: dict[str, Any], wrong: str) -> None:
    with pytest.raises(DataError, match=rf"contradicts itself: .*{re.escape(wrong)}") as caught:
        read_record(of_point(tmp_path, {}, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("point", {"trigger.size": 3}),
        ("beside", ["svhn:1"]),
        ("predictions", "0" * 64),
        ("source", "0" * 16),
        ("author", "Ann"),
        ("isolation", "none"),
        ("clean_features", {"pretext": 0.9, "pretext_given": 1.0, "cosine": 0.8}),
        ("precision", "fp32"),
        ("plugins", {"attack": {"distribution": "benchbd", "version": "1", "source": None}}),
        ("counts.correct_triggered", 1),
        ("cost.attack.memory", 1),
    ],
)
def test_a_record_of_schema_1_has_no_later_field(tmp_path: Path, field: str, value: Any) -> None:
    path = tampered(tmp_path, REPAIRED, {field: value})
    with pytest.raises(DataError, match=rf"contradicts itself: {field}.*: a field of schema 2, but"):
        read_record(path)


FEATURES = {"pretext": 0.9, "pretext_given": 1.0, "cosine": -0.8}


@pytest.mark.parametrize(
    ("defense", "changes", "wrong"),
    [
        ("ft", {"pretext": 1.1}, "clean_features.pretext: Input should be less than or equal to 1"),
        ("ft", {"pretext_given": -0.1}, "clean_features.pretext_given: Input should be greater than or equal to 0"),
        ("ft", {"cosine": -1.1}, "clean_features.cosine: Input should be greater than or equal to -1"),
        ("ft", {"asr": 1.0}, "clean_features.asr: Extra inputs are not permitted"),
        ("none", {}, "clean_features: measured on a repair, but no stage of the record repairs an encoder"),
    ],
)
def test_features_of_clean_images_are_of_a_repair(
    tmp_path: Path, defense: str, changes: dict[str, Any], wrong: str
) -> None:
    record = make_record(defense=defense)
    if defense != "none":
        identity = {**record.identity, "defend": {**record.identity["defend"], "parents": {"encoder": "0" * 64}}}
        record = make_record(defense=defense, identity=identity)
    (path,) = write_records([record], tmp_path)
    told = json.loads(path.read_text())
    assert "clean_features" not in told
    if defense != "none":
        path.write_text(json.dumps({**told, "clean_features": FEATURES}))
        assert json.loads(read_record(path).to_json())["clean_features"] == FEATURES
    path.write_text(json.dumps({**told, "clean_features": {**FEATURES, **changes}}))
    with pytest.raises(DataError, match=re.escape(wrong)):
        read_record(path)


def test_one_evaluator_certifies_all_or_nothing(tmp_path: Path) -> None:
    (path,) = write_records([make_record(defense="ft", counts=counts_of(TAKEN, 4_000))], tmp_path)
    text = path.read_text()
    assert read_record(path).to_json() == text
    for part in ("baseline_counts", "undefended"):
        changed = json.loads(text)
        changed[part]["certified"] = None
        path.write_text(json.dumps(changed))
        with pytest.raises(DataError, match=f"{part}.certified: missing, but counts has 4000, of the same evaluator"):
            read_record(path)


@pytest.mark.parametrize("role", [Role.METHOD, Role.CONTROL])
def test_a_role_with_a_stage_needs_the_stage(tmp_path: Path, role: Role) -> None:
    (path,) = write_records([make_record("none", metrics=(82.0, 5.0, 3.0), attack_role=role)], tmp_path)
    with pytest.raises(DataError, match=rf"attack_role: {role}, which has a stage, but there is no identity\.attack"):
        read_record(path)


@pytest.mark.parametrize("place", ["evaluate.seed", "defend.seed", "attack.seed", "defend.params.clean.seed"])
def test_stages_of_another_run_seed_are_refused(tmp_path: Path, place: str) -> None:
    record = json.loads((PUBLISHED / f"{REPAIRED}.json").read_text())
    identity = record["identity"]
    *parents, last = place.split(".")
    into = identity
    for parent in parents:
        into = into[parent]
    into[last] += 1
    keys = {}
    for kind, parent in (("attack", None), ("defend", "attack"), ("evaluate", "defend")):
        identity[kind]["parents"] |= {"encoder": keys[parent]} if parent else {}
        keys[kind] = record["stages"][kind] = digest(identity[kind])
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record | {"key": keys["evaluate"]}))
    with pytest.raises(DataError, match=rf"contradicts itself: seed: 1, but identity\.{place} is of another run seed"):
        read_record(path)

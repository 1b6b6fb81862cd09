"""Boards whose images are not 32x32: their plan, their run, and their memory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from benchbd_plugins.shapes import Shapes
from PIL import Image

from benchbd.contract.dataset import Dataset
from benchbd.planning.cases import Plan
from benchbd.registry import Registry, load_registry

from ..boards import FIVE_STEPS, Tiny, completed, offering
from ..footprint import STATUS

BOARD = """
attacks = ["none", "badencoder"]
defenses = ["none", "ft"]
clean.images = 32
rows = [{{ pretrain = "{pool}", tasks = ["{task}:3"] }}]
image_size = {size}

[trigger]
size = {trigger}

"""


class Few(Shapes):
    name = "few"
    splits = {"train": 100, "test": 40}


@pytest.fixture
def registry() -> Registry:
    few: list[type[Dataset]] = [Few]
    return load_registry(extra={"few": offering(benchbd_datasets=few)})


def board(size: int, pool: str = "few", task: str = "few") -> str:
    return (BOARD + FIVE_STEPS).format(arch="w16", size=size, trigger=10 * size // 32, pool=pool, task=task)


def planned(folder: Path, registry: Registry, size: int) -> Plan:
    return Tiny(folder, registry, board(size)).plan()


@pytest.mark.fixed_draw("five steps: nothing is claimed of what they learn")
@pytest.mark.parametrize("size", [64, 224])
def test_a_board_runs_at_its_size(tmp_path: Path, registry: Registry, size: int) -> None:
    tiny = Tiny(tmp_path, registry, board(size))
    records = tiny.session(only=False).run()
    assert {record.defense for record in records} >= {"none", "ft"}
    for record in records:
        assert record.status == "ok", record.reason
        assert record.counts is not None
        assert record.counts.total == 40
    again = tiny.session(only=False)
    assert [record.counts for record in again.run()] == [record.counts for record in records]
    assert again.library.load("few", "pool", size).size == size


def test_stages_of_two_sizes_are_two(tmp_path: Path, registry: Registry) -> None:
    small, large = (planned(tmp_path / str(size), registry, size) for size in (32, 64))
    assert len(small.stages) == len(large.stages)
    assert not {stage.key for stage in small.stages} & {stage.key for stage in large.stages}
    assert {ref.size for stage in large.stages for ref in stage.data.values()} == {64}


def test_32_pixels_are_what_boards_have_that_say_nothing(tmp_path: Path, registry: Registry) -> None:
    silent = Tiny(tmp_path / "a", registry, board(32).replace("image_size = 32\n", "")).plan()
    assert [stage.key for stage in silent.stages] == [
        stage.key for stage in planned(tmp_path / "b", registry, 32).stages
    ]


@pytest.mark.parametrize(
    ("size", "complaint"),
    [
        ("31", "image_size: input should be greater than or equal to 32"),
        ("225", "image_size: input should be less than or equal to 224"),
        ('"x"', "image_size: input should be a valid integer"),
    ],
)
def test_another_size_is_one_line(tmp_path: Path, size: str, complaint: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(board(64).replace("image_size = 64", f"image_size = {size}"))
    ended = completed([sys.executable, "-m", "benchbd", "plan", "--board", str(path)])
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: board {path}: {complaint}")
    assert ended.stderr.count("\n") == 1


def write_pictures(folder: Path, count: int) -> None:
    """Ten classes of coloured JPEGs of 64x64."""
    draws = np.random.default_rng(3)
    for split, number in (("train", count), ("test", count // 2)):
        for row in range(number):
            place = folder / split / str(row % 10)
            place.mkdir(parents=True, exist_ok=True)
            coarse = draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((64, 64)).save(place / f"{row:05}.jpg")


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="Linux says what memory is of a file")
def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """Memory of decoding, training, an attack and evaluations, for 100 training images, for 400, which are 43 MB more,
    and with test images that are 22 MB more.

    Arrays smaller than those that benchbd frees at once stay in glibc's heap, whose holes differ from run to run
    by up to a tenth of the peak. So the processes are set to free all from 1 MB on, and only arrays in use remain."""
    returned = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "1"}
    protocol = board(224, "set", "set").replace("batch = 8", "batch = 2").replace("images = 32", "images = 8")
    (tmp_path / "mine.toml").write_text(protocol.replace('["none", "ft"]', '["none"]'))
    peaks = []
    for count in (100, 400):
        write_pictures(tmp_path / str(count) / "set", count)
        places = [tmp_path / name for name in ("mine.toml", str(count), f"store{count}")]
        ended = completed([sys.executable, "-m", "tests.footprint", *map(str, places)], **returned)
        assert ended.returncode == 0, ended.stderr
        peaks.append(float(ended.stdout.splitlines()[-1]))
    assert abs(peaks[1] - peaks[0]) < 0.03 * peaks[0], peaks

"""Boards: found by name or path, checked on reading."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchbd.base.errors import UnknownNameError, UsageError
from benchbd.planning.board import board_names, load_board
from benchbd.stages.task import resolve_target, split_task


@pytest.mark.parametrize("name", ["demo", "demo-matrix", "smoke", "cifar10-small", "table1"])
def test_the_boards_that_come_with_it(name: str) -> None:
    board = load_board(name)
    assert board.name == name
    assert board.title
    assert board.description
    assert name in board_names()


def test_by_path(tmp_path: Path) -> None:
    text = 'rows = [{pretrain = "a", tasks = ["b:1"]}]'
    (tmp_path / "mine.toml").write_text(text)
    assert load_board(tmp_path / "mine.toml").name == "mine"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "board.toml").write_text(text)
    assert load_board(tmp_path / "folder").name == "folder"


def test_unknown_board_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'demo'"):
        load_board("dmeo")
    with pytest.raises(UsageError, match="no such file"):
        load_board("absent.toml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rows = [", "board .*mine.toml: "),
        ("", "rows: field required"),
        ('rows = [{pretrain = "a", tasks = []}]', "rows.0.tasks"),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\natacks = ["none"]',
            "mine.toml: unknown field 'atacks': did you mean 'attacks'",
        ),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"], task = 1}]',
            "unknown field of rows.0 'task': did you mean 'tasks'",
        ),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\ntrigger = {siz = 3}',
            "unknown field of trigger 'siz': did you mean 'size'",
        ),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\nseeds = [-1]',
            "seeds.0: input should be greater than or equal to 0",
        ),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\nseeds = [1, 1]', "seeds: 1 is listed 2 times"),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\nattacks = []', "attacks: tuple should have at least 1"),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\nname = "../../x"', "name: string should match"),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\nname = "demo"',
            "'demo' is that of a board of benchbd",
        ),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\nclean.images = 0', "clean.images: input should be greater"),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\nimage_size = 31', "image_size: input .* than or equal to 32$"),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\nimage_size = 225', "image_size: input .* than or equal to 224$"),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\noptions.ft.lr = 1979-05-27',
            r"options.ft.lr: 1979-05-27 is a date, which no option takes; write it as text, in quotes$",
        ),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\noptions.ft.lr = [{a = [1, 07:32:00]}]',
            r"options.ft.lr.0.a.1: 07:32:00 is a time, which no option takes",
        ),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\nsweeps = [{name = "s", option = "ft.lr", values = [1, nan]}]',
            r"sweeps.0.values.1: nan is not a finite number$",
        ),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\ndata.b.train = [{z = 1979-05-27T07:32:00Z}]',
            r"data.b.train.0.z: 1979-05-27 07:32:00\+00:00 is a datetime, which no option takes",
        ),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\nclean.poisoned = -inf', "clean.poisoned: -inf is not a finite"),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\nseeds = [2, true]', "seeds.1: must be a whole number, not true$"),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\nimage_size = 64.0',
            "image_size: must be a whole number, not 64.0$",
        ),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\ntrigger.size = true', "trigger.size: must be a whole number"),
        (
            'rows = [{pretrain = "a", tasks = ["b:1"]}]\nreference.file = ""',
            "reference.file: empty; name a file, or null$",
        ),
        ('rows = [{pretrain = "a", tasks = ["b:1"]}]\nimage_size = "x"', "image_size: input should be a valid integer"),
    ],
)
def test_a_wrong_board_says_what(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=complaint) as caught:
        load_board(tmp_path / "mine.toml")
    assert "\n" not in str(caught.value)


def test_table1_is_the_papers_grid() -> None:
    board = load_board("table1")
    assert [(row.pretrain, row.tasks) for row in board.rows] == [
        ("cifar10", ("gtsrb:12",)),
        ("cifar10", ("svhn:1",)),
        ("cifar10", ("stl10:9",)),
        ("stl10", ("gtsrb:12",)),
        ("stl10", ("svhn:1",)),
        ("stl10", ("cifar10:0",)),
    ]
    assert board.options == {}  # every setting is the methods' default
    assert board.trigger.size == 10


def test_a_file_says_itself_where_its_patch_is(tmp_path: Path) -> None:
    text = 'rows = [{pretrain = "a", tasks = ["b:1"]}]\ntrigger = {file = "t.npz", position = "center"}'
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match="position center is for the square"):
        load_board(tmp_path / "mine.toml")


def test_tasks_and_targets() -> None:
    assert split_task("gtsrb:12") == ("gtsrb", "12")
    assert split_task("gtsrb") == ("gtsrb", None)
    assert resolve_target("t", "1", ["a", "b"], 2) == (1, "b")
    assert resolve_target("t", "b", ["a", "b"], 2) == (1, "b")
    assert resolve_target("t", "1", [], 2) == (1, "1")
    with pytest.raises(UnknownNameError, match="did you mean 'truck'"):
        resolve_target("t", "truk", ["car", "truck"], 2)
    with pytest.raises(UsageError, match="names 2 classes"):
        resolve_target("t", "a", ["a", "a"], 2)
    assert resolve_target("t", "7", ["3", "7"], 2) == (1, "7")
    assert resolve_target("t", "1", ["3", "7"], 2) == (1, "7")
    with pytest.raises(UsageError, match="1 is the name of class 0 and the index of another"):
        resolve_target("t", "1", ["1", "2"], 2)
    with pytest.raises(UsageError, match="no class -1"):
        resolve_target("t", "-1", ["a"], 1)


def test_files_of_a_board_lie_beside_it(tmp_path: Path) -> None:
    text = 'rows = [{pretrain = "a", tasks = ["b:1"], triggers = [{file = "one.npz"}]}]\ntrigger = {file = "t.npz"}'
    (tmp_path / "mine.toml").write_text(text)
    board = load_board(tmp_path / "mine.toml")
    assert board.trigger.file == tmp_path / "t.npz"
    assert board.rows[0].triggers is not None
    assert board.rows[0].triggers[0].file == tmp_path / "one.npz"


def test_a_board_with_a_bom_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('rows = [{pretrain = "a", tasks = ["b:1"]}]', encoding="utf-8-sig")
    assert load_board(path).rows[0].pretrain == "a"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><title>404</title>", "it is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it is a Git LFS pointer"),
        ("rows = []".encode("utf-16"), "it is UTF-16 text; UTF-8 is expected"),
        (b"\x89PNG\r\n\x1a\n", "it is a PNG picture"),
        (b"a = " + b"[" * 100_000, "cannot be read (it is nested too deeply)"),
        (b"a = ", "Invalid value"),
    ],
)
def test_what_lies_there_instead_of_a_board_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_board(path)
    assert str(caught.value).startswith(f"board {path}: {reason}")


def test_home_is_expanded_in_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = 'rows = [{pretrain = "a", tasks = ["b:1"]}]\ntrigger = {file = "~/t.npz"}\nreference = {file = "~/r.png"}'
    (tmp_path / "mine.toml").write_text(text)
    board = load_board("~/mine.toml")
    assert (board.trigger.file, board.reference.file) == (tmp_path / "t.npz", tmp_path / "r.png")

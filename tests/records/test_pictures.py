"""Pictures beside records: what is one, and where they go with their records."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from benchbd.records.files import read_record, remove_record, write_records
from benchbd.records.pictures import MOST, PICTURES, SIDE, picture_fault, read_pictures, write_pictures

from ..records_factory import grey, make_record, png


def part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def told(text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", text)
    return info


def animated() -> bytes:
    content = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(content, "PNG", save_all=True, append_images=frames[1:])
    return content.getvalue()


SOUND = png()
HEAD, TAIL = SOUND[:33], SOUND[33:]  # the signature with the form, and the rest


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_pixels_alone_are_sound(mode: str) -> None:
    assert picture_fault(png(mode=mode)) == ""


def test_the_largest_sides_are_sound() -> None:
    assert picture_fault(png(SIDE, 1)) == picture_fault(png(1, SIDE)) == ""


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "no PNG picture (it is an empty file)"),
        (b"hello", "no PNG picture (it is text)"),
        (b"<svg onload=alert(1)/>", "no PNG picture (it is text)"),
        (b"<html><script>alert(1)</script>", "no PNG picture (it is an HTML page"),
        (b"\xff\xd8\xff\xe0", "no PNG picture (it is a JPEG picture)"),
        (SOUND[:8], "a damaged PNG picture"),
        (SOUND[:40], "a damaged PNG picture"),
        (SOUND[:-12], "a damaged PNG picture"),
        (HEAD + HEAD[8:] + TAIL, "a damaged PNG picture"),
        (SOUND + b"<script>", "a damaged PNG picture"),
        (SOUND + SOUND[-12:], "a damaged PNG picture"),
        (SOUND[:8] + TAIL, "a damaged PNG picture"),
        (SOUND[:8] + part(b"IHDR", b"short") + TAIL, "a damaged PNG picture"),
        (HEAD + part(b"IDAT", b"no pixels") + part(b"IEND", b""), "a damaged PNG picture ("),
        (HEAD + part(b"IDAT", zlib.compress(b"\0" * 5)) + part(b"IEND", b""), "a damaged PNG picture ("),
        (HEAD[:-1] + bytes([HEAD[-1] ^ 1]) + TAIL, "a damaged PNG picture ("),
        (SOUND[:8] + part(b"IHDR", struct.pack(">II5B", 0, 6, 8, 0, 0, 0, 0)) + TAIL, "a damaged PNG picture"),
        (png(SIDE + 1, 1), f"{SIDE + 1} x 1 pixels; a picture has at most {SIDE} x {SIDE}"),
        (
            SOUND[:8] + part(b"IHDR", struct.pack(">II5B", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)) + TAIL,
            f"2147483647 x 2147483647 pixels; a picture has at most {SIDE} x {SIDE}",
        ),
        (png(pnginfo=told("made by someone")), "has a part 'tEXt'; a picture has pixels alone"),
        (png(dpi=(72, 72)), "has a part 'pHYs'"),
        (animated(), "has a part 'acTL'"),
        (HEAD + part(b"\xe9\x1b[m", b"") + TAIL, "has a part '\ufffd\\x1b[m'"),
    ],
)
def test_what_is_no_sound_picture(content: bytes, fault: str) -> None:
    assert picture_fault(content).startswith(fault)


def test_pictures_are_read_in_the_order_of_a_page_and_no_others(tmp_path: Path) -> None:
    record, folder = tmp_path / "a_b.json", tmp_path / "a_b"
    assert read_pictures(record) == {}
    write_pictures(record, {"features": png(colour=1), "trigger": SOUND})
    assert list(read_pictures(record).items()) == [("trigger", SOUND), ("features", png(colour=1))]
    (folder / "pruning.png").write_bytes(b"<svg/>")
    (folder / "other.png").write_bytes(SOUND)
    (folder / "attention.png").symlink_to(folder / "trigger.png")
    (folder / "information.png").mkdir()
    (folder / "inversion.png").write_bytes(grey(MOST + 9000))
    assert list(read_pictures(record)) == ["trigger", "features"]
    (tmp_path / "link").symlink_to(folder)
    assert read_pictures(tmp_path / "link.json") == {}


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    each = grey(40_000)
    assert 3 * len(each) > MOST > 2 * len(each)
    write_pictures(tmp_path / "x.json", dict.fromkeys(("features", "attention", "pruning"), each))
    assert list(read_pictures(tmp_path / "x.json")) == ["attention", "pruning"]


def test_written_pictures_replace_those_before_and_spare_foreign_files(tmp_path: Path) -> None:
    record, folder = tmp_path / "x.json", tmp_path / "x"
    write_pictures(record, dict.fromkeys(PICTURES, SOUND))
    write_pictures(record, {"trigger": SOUND})
    assert [path.name for path in folder.iterdir()] == ["trigger.png"]
    write_pictures(record, {})
    assert not folder.exists()
    write_pictures(record, {"trigger": SOUND})
    (folder / "mine.txt").write_text("x")
    write_pictures(record, {})
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_pictures_go_with_their_record(tmp_path: Path) -> None:
    (here,) = write_records([make_record()], tmp_path / "here")
    write_pictures(here, {"trigger": SOUND})
    (there,) = write_records([read_record(here)], tmp_path / "there")
    assert read_pictures(there) == {"trigger": SOUND}
    write_records([read_record(there)], tmp_path / "there")
    write_records([make_record()], tmp_path / "there")  # the same record, from a run
    assert read_pictures(there) == {"trigger": SOUND}
    write_records([make_record(seconds=2.0, forwards=3)], tmp_path / "there")  # another result
    assert read_pictures(there) == {}


def test_a_removed_record_leaves_no_pictures(tmp_path: Path) -> None:
    (path,) = write_records([make_record()], tmp_path)
    write_pictures(path, {"trigger": SOUND})
    remove_record(path)
    assert list(tmp_path.iterdir()) == []

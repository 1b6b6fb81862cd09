"""Tensors in files: writing to a mapping changes neither the file nor another mapping."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchbd.base import mapped
from benchbd.base.errors import DataError
from benchbd.base.mapped import Region, beside, blank, private, region_of, seal

TENSORS = (
    torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2),
    torch.linspace(-1, 1, 7),
    torch.arange(12).view(3, 4).t(),  # not contiguous
    torch.tensor(3.5, dtype=torch.float64),
    torch.zeros(0, 3),
    torch.tensor([True, False]),
    torch.ones(5, dtype=torch.bfloat16),
)


@pytest.fixture(params=["memfd", "deleted file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "deleted file":
        monkeypatch.setattr(mapped, "IN_MEMORY", -1)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("tensor", TENSORS, ids=lambda t: str((t.dtype, *t.shape)))
def test_a_sealed_tensor_is_mapped_as_it_was(tensor: Tensor) -> None:
    found = seal(tensor).map()
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)


@pytest.mark.usefixtures("place")
def test_what_is_written_to_a_mapping_stays_in_it() -> None:
    region = seal(torch.zeros(10_000))
    one, other = region.map(), region.map()
    one += 1
    assert one.sum() == 10_000
    assert other.sum() == 0
    assert region.map().sum() == 0


@pytest.mark.usefixtures("place")
def test_a_sealed_file_has_no_name_and_takes_no_writes() -> None:
    region = seal(torch.zeros(10))
    with pytest.raises(OSError, match=r".") as refused:
        os.write(region.descriptor, b"x")
    assert refused.value.errno in (errno.EPERM, errno.EBADF)
    assert os.readlink(f"/proc/self/fd/{region.descriptor}").endswith("(deleted)")


def test_a_memfd_cannot_even_be_opened_for_writing_to_it() -> None:
    region = seal(torch.zeros(10))
    own = os.open(f"/proc/self/fd/{region.descriptor}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.write(own, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(own, 1)
    finally:
        os.close(own)


@pytest.mark.usefixtures("place")
def test_the_file_is_closed_with_its_last_mapping() -> None:
    region = seal(torch.ones(3))
    descriptor = region.descriptor
    tensor = region.map()
    view = tensor[1:]
    del region, tensor
    assert view.sum() == 2
    os.fstat(descriptor)
    del view
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_another_process_maps_what_it_inherits() -> None:
    region = seal(torch.arange(5))
    code = (
        "import sys, torch; from benchbd.base.mapped import Region; "
        "t = Region.received(int(sys.argv[1]), 0, torch.int64, (5,)).map(); t += 1; print(int(t.sum()))"
    )
    argv = [sys.executable, "-c", code, str(region.descriptor)]
    assert subprocess.check_output(argv, pass_fds=[region.descriptor]) == b"15\n"
    assert region.map().sum() == 10


@pytest.mark.parametrize("offset", [0, 3, 8, 4096, 5000])
def test_a_region_of_a_file_starts_anywhere(tmp_path: Path, offset: int) -> None:
    values = torch.arange(1000)
    file = tmp_path / "file"
    file.write_bytes(bytes(offset) + values.numpy().tobytes() + b"more")
    found = Region.at(file, offset, torch.int64, (10, 100)).map()
    assert torch.equal(found, values.view(10, 100))
    found.zero_()
    assert file.read_bytes()[offset:] == values.numpy().tobytes() + b"more"
    assert found.untyped_storage().nbytes() == values.nbytes  # it gives access to no other part of the file


def test_a_region_that_a_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(9))
    with pytest.raises(ValueError, match="the file has 9 bytes, and the tensor ends at 10"):
        Region.at(tmp_path / "file", 2, torch.uint8, (8,))


def test_the_region_of_a_tensor_is_known_while_it_is_whole() -> None:
    tensor = seal(torch.arange(6, dtype=torch.uint8).view(3, 2)).map()
    assert region_of(tensor) is not None
    assert torch.equal(private(tensor[:2]), tensor[:2])
    first = region_of(tensor[:2])
    assert first is not None
    assert first.shape == (2, 2)
    for other in (tensor[1:], tensor.t(), tensor.clone(), tensor.view(torch.int8), torch.zeros(3)):
        assert region_of(other) is None


def test_a_private_copy_is_of_the_file_or_a_clone() -> None:
    for tensor in (torch.zeros(3), seal(torch.zeros(3)).map()):
        copy = private(tensor)
        copy += 1
        assert tensor.sum() == 0
        assert (region_of(copy) is None) == (region_of(tensor) is None)


def test_no_region_is_remembered_longer_than_its_tensor() -> None:
    before = len(mapped._regions)
    kept = [seal(torch.ones(3)).map() for _ in range(3)]
    assert len(mapped._regions) == before + 3
    del kept
    assert len(mapped._regions) == before


@pytest.mark.parametrize("system", ["fallocate", "a system without it", "a file system without it"])
def test_a_blank_tensor_is_filled_and_then_mapped(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if system == "a system without it":
        monkeypatch.delattr(os, "posix_fallocate")
    elif system == "a file system without it":
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    tensor = blank(torch.uint8, (3, 2**20))
    assert tensor.sum() == 0
    tensor[1] = 1
    copy = private(tensor)
    copy[2] = 1
    assert (tensor.sum(), copy.sum()) == (2**20, 2**21)


def test_who_gets_the_region_of_a_blank_tensor_cannot_write_to_it() -> None:
    tensor = blank(torch.uint8, (3,))
    region = region_of(tensor)
    assert region is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(region.descriptor, b"x")
    tensor += 1
    assert region.map().tolist() == [1, 1, 1]


def test_a_blank_tensor_without_room_is_an_error_and_not_the_end() -> None:
    with pytest.raises(DataError, match=r"^no room for 1,073,741,824 MB in \S+ \(.*\): make some, or name another"):
        blank(torch.uint8, (2**50,))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux says where a file lies")
@pytest.mark.parametrize("made", ["blank", "sealed"])
def test_a_large_tensor_lies_where_it_should(made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "IN_MEMORY", -1)

    def lies_in() -> Path:
        region = region_of(blank(torch.uint8, (3,))) if made == "blank" else seal(torch.zeros(3))
        assert region is not None
        return Path(os.readlink(f"/proc/self/fd/{region.descriptor}")).parent

    elsewhere = lies_in()
    with beside(tmp_path):
        assert lies_in() == tmp_path
    with beside(tmp_path / "absent"):
        assert lies_in() == elsewhere
    assert not list(tmp_path.iterdir())


def anonymous() -> int:
    """Bytes of this process that belong to no file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what memory is of a file")
def test_neither_filling_nor_reading_takes_memory_of_the_process() -> None:
    size = 64 * 2**20
    before = anonymous()
    tensor = blank(torch.uint8, (size,))
    tensor.fill_(1)
    copy = private(tensor)
    assert int(copy.view(torch.int64).count_nonzero()) == size // 8
    assert anonymous() - before < size / 4
    copy.fill_(2)
    assert anonymous() - before > size / 2  # the measure would show it

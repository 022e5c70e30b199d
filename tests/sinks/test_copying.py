from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import CheckpointError, OutputError
from llamaconv.extents import Extent
from llamaconv.sinks.copying import copy_extents
from tests.sinks.files import extent_of, scattered
from tests.sinks.processes import run_mounted

IN_MEMORY = Path("/dev/shm")


def copied(extents: list[Extent], path: Path, offset: int = 0, size: int = 0) -> bytes:
    """What a file of ``size`` bytes 0xFF holds after the copy."""
    path.write_bytes(b"\xff" * size)
    descriptor = os.open(path, os.O_RDWR)
    try:
        copy_extents(extents, descriptor, offset, path, lambda: None)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    finally:
        os.close(descriptor)
    return path.read_bytes()


@given(st.binary(max_size=40), st.integers(0, 20), st.randoms(use_true_random=False))
def test_runs_are_joined_where_they_belong(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, offset: int, random: Random
) -> None:
    """Runs from several files become one, in their order, and nothing around it changes."""
    folder = tmp_path_factory.mktemp("runs")
    extents = scattered(folder, torch.tensor(list(data), dtype=torch.uint8), random)
    assert copied(extents, folder / "x", offset, 80) == b"\xff" * offset + data + b"\xff" * (80 - offset - len(data))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    if not IN_MEMORY.is_dir() or IN_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system to write to")
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as name:
        yield Path(name)


def test_bytes_cross_file_systems(tmp_path: Path, elsewhere: Path) -> None:
    """Where the kernel may refuse to copy by itself, there and back, the bytes are the same."""
    data = Random(0).randbytes(2**21 + 5)
    (tmp_path / "source").write_bytes(data)
    there = copied([extent_of(tmp_path / "source", 3, 2**21)], elsewhere / "x", 1)
    assert there == b"\0" + data[3 : 3 + 2**21]
    back = copied([extent_of(elsewhere / "x", 1, 2**21)], tmp_path / "y", 2)
    assert back == b"\0\0" + data[3 : 3 + 2**21]


REFUSALS = [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO]


@pytest.mark.parametrize("refusal", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("calls", [0, 1])
def test_a_kernel_that_refuses_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int, calls: int
) -> None:
    """Whatever reason it gives, at once or after a part, the copy goes on in blocks from there."""
    real, left = os.copy_file_range, calls

    def refuse(source: int, target: int, count: int, *offsets: int) -> int:
        nonlocal left
        if not left:
            raise OSError(refusal, os.strerror(refusal))
        left -= 1
        return real(source, target, 1000, *offsets)

    data = Random(0).randbytes(2**20 + 1234)
    (tmp_path / "source").write_bytes(data)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert copied([extent_of(tmp_path / "source", 7, len(data) - 7)], tmp_path / "x") == data[7:]
    assert left == 0


def test_a_system_without_the_call_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Linux copies between files; elsewhere blocks are read and written."""
    (tmp_path / "source").write_bytes(b"0123456789")
    monkeypatch.delattr(os, "copy_file_range")
    assert copied([extent_of(tmp_path / "source", 2, 5)], tmp_path / "x") == b"23456"


def test_a_source_that_changed_is_the_sources_fault(tmp_path: Path) -> None:
    """A file of another size or time, or one that ends too early, cannot be trusted; a missing one not be read."""
    path = tmp_path / "source"
    path.write_bytes(b"0123456789")
    good = extent_of(path, 2, 5)
    for wrong in (
        Extent(path, 2, 5, (11, good.stamp[1])),
        Extent(path, 2, 5, (10, good.stamp[1] - 1)),
        Extent(path, 8, 5, good.stamp),
    ):
        with pytest.raises(CheckpointError) as caught:
            copied([good, wrong], tmp_path / "x")
        assert caught.value.message == (
            f"{path}: the file changed after its header was read, so its tensors cannot be trusted."
        )
    path.unlink()
    with pytest.raises(CheckpointError) as caught:
        copied([good], tmp_path / "x")
    assert caught.value.message == f"{path}: cannot be read: No such file or directory."


def test_a_target_that_refuses_is_the_targets_fault(tmp_path: Path) -> None:
    """A file that may not grow further is named, not the one that was read."""
    (tmp_path / "source").write_bytes(bytes(2**17))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        with pytest.raises(OutputError) as caught:
            copied([extent_of(tmp_path / "source", 0, 2**17)], tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.message == f"{tmp_path / 'x'}: File too large."
    assert caught.value.hint == (
        "Files may not be so large here: write elsewhere, raise `ulimit -f`, or make smaller shards."
    )


@pytest.mark.parametrize("in_kernel", [True, False])
def test_copying_ends_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_kernel: bool) -> None:
    """The check is made before each part, of 64 MiB at most, and what it raises comes out as it is."""
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    with (tmp_path / "source").open("wb") as file:
        file.truncate(2**28)
    left = 2

    def check() -> None:
        nonlocal left
        if not left:
            raise ValueError("enough")
        left -= 1

    with (tmp_path / "x").open("w+b") as target, pytest.raises(ValueError, match=r"^enough$"):
        copy_extents([extent_of(tmp_path / "source", 0, 2**28)], target.fileno(), 0, tmp_path / "x", check)
    assert 0 < (tmp_path / "x").stat().st_size <= 2**27


FULL = """
import os, sys
from pathlib import Path
from llamaconv.errors import DiskFullError
from llamaconv.extents import Extent
from llamaconv.sinks.copying import copy_extents

volume, source = map(Path, sys.argv[1:])
info = source.stat()
descriptor = os.open(volume / "x", os.O_RDWR | os.O_CREAT)
os.truncate(descriptor, info.st_size)
try:
    extent = Extent(source, 0, info.st_size, (info.st_size, info.st_mtime_ns))
    copy_extents([extent], descriptor, 0, volume / "x", lambda: None)
except DiskFullError as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_the_targets_fault(tmp_path: Path) -> None:
    """Where no blocks were reserved, the copy that finds none left says so of the file it writes."""
    (tmp_path / "source").write_bytes(bytes(2**20))
    (tmp_path / "volume").mkdir()
    mount = 'mount -t tmpfs -o size=256k none "$1"'
    done = run_mounted(mount, FULL, tmp_path / "volume", tmp_path / "source")
    assert done.stdout.splitlines() == [f"{tmp_path / 'volume' / 'x'}: No space left on device."], done.stderr

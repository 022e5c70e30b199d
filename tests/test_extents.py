from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import CheckpointError
from llamaconv.extents import Extent, cut, open_regular, open_unchanged, read_extents


def whole(path: Path) -> Extent:
    with open_regular(path) as (_, stamp):
        return Extent(path, 0, stamp[0], stamp)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_what_is_cut_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]], begin: int, nbytes: int
) -> None:
    """Any part of any runs of two files holds the bytes at those places."""
    directory = tmp_path_factory.mktemp("any")
    files = [whole(written(directory / name, name.encode() * 9 + bytes(range(9)))) for name in "ab"]
    extents = [files[number % 2].part(offset, length) for number, (offset, length) in enumerate(runs)]
    every = bytes(read_extents(extents).tolist())
    assert every == b"".join(
        extent.path.read_bytes()[extent.offset : extent.offset + extent.nbytes] for extent in extents
    )
    assert bytes(read_extents(cut(extents, begin, nbytes)).tolist()) == every[begin : begin + nbytes]


def test_a_part_lies_within() -> None:
    """Bytes that an extent does not have are no part of it."""
    extent = Extent(Path("x"), 10, 5, (15, 0))
    assert extent.part(2, 3) == Extent(Path("x"), 12, 3, (15, 0))
    for begin, nbytes in ((-1, 2), (3, 3), (2, -1)):
        with pytest.raises(ValueError, match=rf"^bytes {begin} to {begin + nbytes} of 5$"):
            extent.part(begin, nbytes)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_file_that_is_written_to_is_noticed(tmp_path: Path, when: str) -> None:
    """Before it is opened again, or while it is read."""
    path = written(tmp_path / "x", bytes(8))
    stamp = whole(path).stamp

    def rewrite(condition: bool) -> None:
        if condition:
            path.write_bytes(b"\1" * 8)
            os.utime(path, ns=(0, stamp[1] + 1))  # however coarse the clock of the file system

    rewrite(when == "before")
    with pytest.raises(CheckpointError) as caught, open_unchanged(path, stamp):
        rewrite(when == "meanwhile")
    assert caught.value.message == (
        f"{path}: the file changed after its header was read, so its tensors cannot be trusted."
    )
    assert caught.value.hint == "Let whatever writes the checkpoint finish, then start again."


def test_a_file_that_stays_is_read(tmp_path: Path) -> None:
    """One that is put in its place meanwhile is another file."""
    path, other = written(tmp_path / "x", b"abc"), written(tmp_path / "y", b"de")
    stamp = whole(path).stamp
    with open_unchanged(path, stamp) as descriptor:
        other.replace(path)
        assert os.pread(descriptor, 9, 0) == b"abc"


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe would never answer; a folder has no bytes; what is not there is said to be missing."""
    os.mkfifo(tmp_path / "pipe")
    for name, fault in (
        ("pipe", "not a regular file"),
        ("", "not a regular file"),
        ("gone", "cannot be read: No such file or directory"),
    ):
        path = tmp_path / name
        with pytest.raises(CheckpointError) as caught:
            whole(path)
        assert (caught.value.message, caught.value.hint) == (f"{path}: {fault}.", None)


def test_too_many_open_files_have_a_hint(tmp_path: Path) -> None:
    """The limit is the user's own."""
    path = written(tmp_path / "x", b"")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)  # the lowest number that is not in use: all below it are
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            whole(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (caught.value.message, caught.value.hint) == (
        f"{path}: cannot be read: Too many open files.",
        "Raise the limit: `ulimit -n`.",
    )

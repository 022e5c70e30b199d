from __future__ import annotations

import hashlib
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Event
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.sinks.sealing import Sealing, crc32


def carry_on() -> None:
    """The check of somebody who never stops."""


@given(st.lists(st.integers(0, 3_000_000), max_size=4))
def test_the_digest_is_that_of_the_whole_whatever_the_steps(
    tmp_path_factory: pytest.TempPathFactory, ends: list[int]
) -> None:
    """Going on from where the last step ended hashes each byte once, over blocks and within them."""
    path, size = tmp_path_factory.getbasetemp() / "steps", 3_000_000
    if not path.exists():
        path.write_bytes(Random(0).randbytes(size))
    data = path.read_bytes()
    with path.open("rb") as file:
        sealing = Sealing(file.fileno())
        for end in [*sorted(ends), size]:
            sealing.advance(end, carry_on)
            assert sealing.position == end
            assert sealing.hexdigest() == hashlib.sha256(data[:end]).hexdigest()


@given(st.integers(0, 2_500_000), st.integers(0, 2_500_000))
def test_the_checksum_is_that_of_the_run(tmp_path_factory: pytest.TempPathFactory, begin: int, nbytes: int) -> None:
    """A CRC-32 covers the bytes asked for and none around them."""
    path, size = tmp_path_factory.getbasetemp() / "runs", 5_000_000
    if not path.exists():
        path.write_bytes(Random(1).randbytes(size))
    with path.open("rb") as file:
        assert crc32(file.fileno(), begin, begin + nbytes, carry_on) == zlib.crc32(path.read_bytes()[begin:][:nbytes])


def test_a_file_that_ends_too_early_is_no_endless_loop(tmp_path: Path) -> None:
    """Bytes that are not there are an error."""
    (tmp_path / "x").write_bytes(bytes(10))
    with (tmp_path / "x").open("rb") as file:
        with pytest.raises(OSError, match="the file was cut short while it was written"):
            Sealing(file.fileno()).advance(11, carry_on)
        with pytest.raises(OSError, match="the file was cut short while it was written"):
            crc32(file.fileno(), 4, 11, carry_on)


def test_hashing_can_be_stopped(tmp_path: Path) -> None:
    """Of a terabyte that would take minutes, a check that raises ends the work within a block."""
    stopped = Event()

    def check() -> None:
        if stopped.is_set():
            raise ValueError("enough")

    with (tmp_path / "x").open("w+b") as file, ThreadPoolExecutor(2) as pool:
        file.truncate(2**40)
        sealing = Sealing(file.fileno())
        works = [
            pool.submit(sealing.advance, 2**40, check),
            pool.submit(crc32, file.fileno(), 0, 2**40, check),
        ]
        begun = monotonic()
        stopped.set()
        for work in works:
            with pytest.raises(ValueError, match=r"^enough$"):
                work.result(60)
        assert monotonic() - begun < 2

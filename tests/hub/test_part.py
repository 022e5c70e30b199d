"""The unfinished bytes of a file."""

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.hub import part as parts
from llamaconv.hub.part import Part, Superseded, bytes_there
from llamaconv.hub.repository import Digest, RemoteFile


def remote(data: bytes, name: str = "model.safetensors") -> RemoteFile:
    return RemoteFile(name, len(data), Digest("sha256", hashlib.sha256(data).hexdigest()))


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "part", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PIECE", 10)


def test_bytes_of_a_part(descriptor: int) -> None:
    """Behind the bytes stand magic, hash, size, validator, count, and the bounds and progress of each piece."""
    file = remote(b"abcdefg")
    part = Part(descriptor, file)
    part.remember(part.pieces[0], "http://hub", '"e"')
    part.write(part.pieces[0], memoryview(b"abc"))
    found = os.pread(descriptor, 10_000, 0)
    assert found[:7] == b"abc\0\0\0\0"
    assert found[7:23] == b"llamaconv part 1"
    assert found[23:55] == bytes.fromhex(file.digest.hexdigest)
    assert found[55:65] == b"\x07" + bytes(7) + b"\x0e\x00"
    assert found[65:79] == b'http://hub "e"'
    assert found[79:575] == bytes(496)
    assert found[575:] == b"\x01\0\0\0" + struct.pack("<3Q", 0, 7, 3)


def test_git_hash_is_padded(descriptor: int) -> None:
    """A SHA-1 stands in the room of a SHA-256 with zeros behind it."""
    file = RemoteFile("config.json", 2, Digest("git-sha1", "ab" * 20))
    Part(descriptor, file)
    assert os.pread(descriptor, 32, 2 + 16) == b"\xab" * 20 + bytes(12)
    assert Part(descriptor, file).pieces[0].missing == 2


@given(data=st.binary(min_size=1, max_size=95), cuts=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12))))
def test_what_was_written_is_found_again(
    data: bytes, cuts: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever pieces grew in whatever order, the next process sees each byte that was written, and no other."""
    file = remote(data)
    path = tmp_path_factory.mktemp("part") / "part"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PIECE", 10)
        part = Part(descriptor, file)
    for number, length in cuts:
        piece = part.pieces[number % len(part.pieces)]
        part.write(piece, memoryview(data)[piece.position : min(piece.position + length, piece.end)])
    again = Part(descriptor, file)
    assert [(one.begin, one.end, one.done) for one in again.pieces] == [
        (one.begin, one.end, one.done) for one in part.pieces
    ]
    assert again.done == bytes_there(descriptor, file) == sum(one.done for one in part.pieces)
    for one in again.pieces:
        assert os.pread(descriptor, one.done, one.begin) == data[one.begin : one.position]
    gaps = [one.position for one in again.pieces if one.missing]
    assert again.front == (gaps[0] if gaps else len(data))
    os.close(descriptor)


@pytest.mark.usefixtures("small_pieces")
def test_pieces_cover_the_file(descriptor: int) -> None:
    """A file of two pieces' size and more is divided evenly, one of less is not."""
    assert [(one.begin, one.end) for one in Part(descriptor, remote(bytes(35))).pieces] == [(0, 11), (11, 23), (23, 35)]
    assert [(one.begin, one.end) for one in Part(descriptor, remote(bytes(19))).pieces] == [(0, 19)]


def test_other_contents_empty_it(descriptor: int) -> None:
    """A part of the same name and size but with another hash is none of this file's."""
    first = Part(descriptor, remote(b"first!"))
    first.write(first.pieces[0], memoryview(b"fir"))
    assert bytes_there(descriptor, remote(b"second")) == 0
    assert Part(descriptor, remote(b"second")).done == 0
    assert bytes_there(descriptor, remote(b"first!")) == 0


@pytest.mark.parametrize("length", [1, 7, 8, 30, 500, 580, 590])
def test_cut_short_it_is_started_anew(descriptor: int, length: int) -> None:
    """A part whose table was not written to its end holds nothing that could be trusted."""
    file = remote(b"abcdefgh" * 2)
    part = Part(descriptor, file)
    part.write(part.pieces[0], memoryview(b"abc"))
    os.ftruncate(descriptor, length)
    assert Part(descriptor, file).done == 0


def test_damaged_table_starts_anew(descriptor: int) -> None:
    """Pieces that overlap, leave a gap, or hold more than there is room for, are not believed."""
    file = remote(b"abcdefgh")
    for row in ((1, 8, 0), (0, 7, 0), (0, 8, 9), (0, 2**63, 0)):
        Part(descriptor, file).start_over(divided=True)
        os.pwrite(descriptor, struct.pack("<3Q", *row), os.fstat(descriptor).st_size - 24)
        assert bytes_there(descriptor, file) == 0


def test_sealed_it_is_the_file(descriptor: int) -> None:
    """Killed between sealing and renaming, the next process finds all bytes there, for the hash to judge."""
    file = remote(b"abcdefgh")
    part = Part(descriptor, file)
    part.write(part.pieces[0], memoryview(b"abcdefgh"))
    part.seal()
    assert os.pread(descriptor, 100, 0) == b"abcdefgh"
    assert Part(descriptor, file).front == 8


@pytest.mark.usefixtures("small_pieces")
def test_starting_over_supersedes(descriptor: int) -> None:
    """Who holds a piece of a file that another connection started over can neither write nor go on."""
    part = Part(descriptor, remote(bytes(range(30))))
    held = part.pieces[1]
    part.write(held, memoryview(bytes(range(10, 13))))
    part.start_over(divided=False)
    assert [(one.begin, one.end, one.done) for one in part.pieces] == [(0, 30, 0)]
    with pytest.raises(Superseded):
        part.write(held, memoryview(b"\x0d"))
    with pytest.raises(Superseded):
        part.require_present(held)
    assert os.pread(descriptor, 30, 0) == bytes(30)


def test_validator_is_of_its_endpoint(descriptor: int) -> None:
    """The ETag is kept for the endpoint that it came through, if it is a strong one."""
    part = Part(descriptor, remote(b"abc"))
    assert part.validator("http://hub") is None
    part.remember(part.pieces[0], "http://hub", 'W/"weak"')
    assert part.validator("http://hub") is None
    part.remember(part.pieces[0], "http://hub", '"strong one"')
    assert Part(descriptor, part.file).validator("http://hub") == '"strong one"'
    assert part.validator("http://mirror") is None
    part.remember(part.pieces[0], "http://hub", '"' + "x" * 600 + '"')
    part.remember(part.pieces[0], "http://hub", None)
    assert part.validator("http://hub") == '"strong one"'


def test_nothing_is_written_to_a_finished_part(descriptor: int, tmp_path: Path) -> None:
    """Sealed or closed, it takes neither bytes nor validators from connections that come too late."""
    part = Part(descriptor, remote(b"abc"))
    piece = part.pieces[0]
    part.write(piece, memoryview(b"abc"))
    part.seal()
    late = (
        lambda: part.write(piece, memoryview(b"")),
        lambda: part.remember(piece, "http://hub", '"late"'),
        lambda: part.require_present(piece),
        lambda: part.start_over(divided=False),
    )
    for act in late:
        with pytest.raises(Superseded):
            act()
    assert (tmp_path / "part").read_bytes() == b"abc"
    other = Part(os.dup(descriptor), remote(b"abc"))
    other.close()
    with pytest.raises(Superseded):
        other.remember(other.pieces[0], "http://hub", '"late"')


def test_more_than_is_missing_is_refused(descriptor: int) -> None:
    """No byte is ever written behind the end of a piece."""
    part = Part(descriptor, remote(b"abc"))
    with pytest.raises(ValueError, match="4 bytes for the 3 missing of a piece"):
        part.write(part.pieces[0], memoryview(b"abcd"))


def test_empty_file_is_complete(descriptor: int) -> None:
    """A file of no bytes misses none."""
    part = Part(descriptor, remote(b""))
    assert (part.done, part.front, part.pieces[0].missing) == (0, 0, 0)
    part.seal()
    assert os.fstat(descriptor).st_size == 0

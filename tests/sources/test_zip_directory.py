from __future__ import annotations

import os
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import CheckpointError, InputError
from llamaconv.extents import Extent, open_regular
from llamaconv.sources.torch_zip import read_torch_zip
from llamaconv.sources.zip_directory import read_directory
from tests.sources.torch_files import write_archive, write_holes, write_zip

RECORDS = {"one": b"first", "two": b"", "three": b"third!"}


def directory_of(path: Path) -> dict[str, Extent]:
    with open_regular(path) as (descriptor, stamp):
        return read_directory(descriptor, stamp, path)


def fault_of(path: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        directory_of(path)
    assert caught.value.hint == "The file is damaged: download or copy it again."
    return [line.removeprefix(f"{path}: ") for line in caught.value.message.splitlines()]


def patched(path: Path, mark: bytes, offset: int, number: int, size: int = 4) -> Path:
    """Overwrite the number at ``offset`` bytes from the last ``mark``."""
    data = bytearray(path.read_bytes())
    begin = data.rindex(mark) + offset
    data[begin : begin + size] = number.to_bytes(size, "little")
    path.write_bytes(data)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "x.zip", RECORDS)


def test_records_are_where_the_library_finds_them(archive: Path) -> None:
    """Offsets and sizes give each record's bytes, in the directory's order, empty ones too."""
    data = archive.read_bytes()
    found = directory_of(archive)
    assert {name: data[r.offset : r.offset + r.nbytes] for name, r in found.items()} == {
        f"archive/{name}": content for name, content in RECORDS.items()
    }
    assert list(found) == [f"archive/{name}" for name in RECORDS]


def test_a_comment_at_the_end_is_passed_over(archive: Path) -> None:
    """zip tools may leave one."""
    with zipfile.ZipFile(archive, "a") as file:
        file.comment = b"PK\5 not the end" * 100
    assert len(directory_of(archive)) == 3


def test_archives_over_4_gb_have_their_numbers_elsewhere(tmp_path: Path) -> None:
    """Sizes and offsets of 64 bits are taken from the zip64 fields, as Python's zipfile takes them."""
    path = write_holes(
        tmp_path / "x.pth", lambda: {f"t{i}": torch.empty(numel) for i, numel in enumerate((1_100_000_000, 7, 5))}
    )
    found = directory_of(path)
    with zipfile.ZipFile(path) as file, open(path, "rb") as raw:
        for info in file.infolist():
            raw.seek(info.header_offset + 26)
            name_size, extra_size = struct.unpack("<2H", raw.read(4))
            assert found[info.filename].offset == info.header_offset + 30 + name_size + extra_size
            assert found[info.filename].nbytes == info.file_size
    assert found["x/data/0"].nbytes == 4_400_000_000
    assert found["x/data/2"].offset > 2**32


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    """Their bytes are not a tensor's, and a bomb would unfold; each is named."""
    path = write_archive(tmp_path / "x.zip", {"a": bytes(10**6), "b": bytes(10**6)}, method=zipfile.ZIP_DEFLATED)
    assert fault_of(path) == ["the record 'archive/a' is compressed.", "the record 'archive/b' is compressed."]


def test_records_of_one_name_are_refused(tmp_path: Path) -> None:
    """Which of the two would count is nobody's guess."""
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for _ in range(2):
            file.writestr("x/data.pkl", b"")
    assert fault_of(tmp_path / "x.zip") == ["the record 'x/data.pkl' is there twice."]


ENTRY, END = b"PK\1\2", b"PK\5\6"


@pytest.mark.parametrize(
    ("mark", "offset", "number", "size", "fault"),
    [
        (ENTRY, 8, 1, 2, "the record 'archive/three' is encrypted."),
        (ENTRY, 10, 12, 2, "the record 'archive/three' is compressed."),
        (ENTRY, 20, 5, 4, "the record 'archive/three' is compressed."),
        (ENTRY, 42, 10**6, 4, "the record 'archive/three' begins at byte 1000000 of a file of 331 bytes."),
        (ENTRY, 42, 1, 4, "the record 'archive/three' is not at byte 1, where the zip directory has it."),
        (ENTRY, 42, 0, 4, "the record 'archive/three' is not at byte 0, where the zip directory has it."),
        (ENTRY, 24, 2**32 - 1, 4, "the zip directory lacks a size or offset of 64 bits."),
        (ENTRY, 28, 60000, 2, "the zip directory is broken after 2 entries."),
        (ENTRY, 0, 0, 4, "the zip directory is broken after 2 entries."),
        (END, 0, 0, 4, "truncated: the zip archive's directory, which is at its end, is missing."),
        (END, 10, 4, 2, "the zip directory has 3 entries where 4 are announced."),
        (END, 12, 2**32 - 2, 4, "a zip directory of 4294967294 bytes, where 32000000 are enough."),
        (END, 12, 10**6, 4, "the zip archive's directory is not where its end says."),
        (END, 16, 10**6, 4, "the zip archive's directory is not where its end says."),
        (END, 16, 7, 4, "the zip directory is broken after 0 entries."),
    ],
)
def test_a_contradiction_is_named(archive: Path, mark: bytes, offset: int, number: int, size: int, fault: str) -> None:
    """Whatever number is changed, what it contradicts is said."""
    assert fault_of(patched(archive, mark, offset, number, size)) == [fault]


def test_a_record_past_the_end_is_named(archive: Path) -> None:
    """Its size, in both of the directory's fields, is more than there is."""
    patched(patched(archive, ENTRY, 20, 10**6), ENTRY, 24, 10**6)
    assert fault_of(archive) == [f"the record 'archive/three' ends at byte {10**6 + 130} of a file of 331 bytes."]


def test_a_record_within_another_is_named(archive: Path) -> None:
    """Overlapping records are how a small file pretends to be a large one."""
    first = archive.read_bytes().index(ENTRY)
    data = bytearray(archive.read_bytes())
    data[first + 20 : first + 28] = struct.pack("<2L", 100, 100)
    archive.write_bytes(data)
    assert fault_of(archive) == [
        "the record 'archive/two' begins within the record 'archive/one'.",
        "the record 'archive/three' begins within the record 'archive/one'.",
    ]


def test_the_zip64_end_is_held_against_the_file(tmp_path: Path) -> None:
    """Its locator and it may say anything, too."""
    path = write_zip(tmp_path / "x.pth", {"a": torch.ones(3)})
    whole = path.read_bytes()
    for mark, offset, number, fault in (
        (b"PK\6\7", 8, 2**64 - 1, "the zip archive's directory is not where its end says."),
        (b"PK\6\6", 48, 2**64 - 1, "the zip archive's directory is not where its end says."),
        (b"PK\6\6", 40, 2**64 - 1, f"a zip directory of {2**64 - 1} bytes, where 32000000 are enough."),
    ):
        path.write_bytes(whole)
        assert fault_of(patched(path, mark, offset, number, 8)) == [fault]


@pytest.mark.parametrize("cut", [1, 30, 400])
def test_a_cut_off_archive_is_truncated(tmp_path: Path, cut: int) -> None:
    """A download that stopped early lacks the directory at the end."""
    path = write_zip(tmp_path / "x.pth", {"a": torch.ones(3)})
    os.truncate(path, path.stat().st_size - cut)
    assert fault_of(path) == ["truncated: the zip archive's directory, which is at its end, is missing."]


def spoiled(data: bytes) -> st.SearchStrategy[bytes]:
    """``data`` with a few bytes changed, or cut off."""
    changes = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)
    cuts = st.integers(0, 40).map(lambda cut: len(data) - cut)

    def spoil(changes: list[tuple[int, int]], length: int) -> bytes:
        changed = bytearray(data)
        for position, value in changes:
            changed[position] = value
        return bytes(changed[:length])

    return st.builds(spoil, changes, st.just(len(data)) | cuts)


@given(st.data())
def test_no_archive_escapes_our_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes are changed, the file is refused or every tensor that it names can be read."""
    path = write_zip(tmp_path_factory.mktemp("spoiled") / "x.pth", {"a": torch.ones(2, 3), "b": torch.arange(4)[1::2]})
    path.write_bytes(data.draw(spoiled(path.read_bytes())))
    try:
        file = read_torch_zip(path)
    except InputError:
        return
    for name, spec in file.specs.items():
        read = file[name].read()
        assert (tuple(read.shape), read.dtype) == (spec.shape, spec.dtype)

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch import Tensor

from llamaconv.errors import CheckpointError, InputError, UnsupportedError
from llamaconv.sources.torch_legacy import read_torch_legacy
from tests.sources.torch_files import LEGACY_START, Storage, pickled, tensor_of, write_legacy
from tests.sources.views import assert_same, state_dicts

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
]


def made(path: Path, content: object, keys: object, data: bytes = b"") -> Path:
    """A file of a pickle of ``content``, the list of storages ``keys``, and what should be these."""
    path.write_bytes(LEGACY_START + pickled(content) + pickled(keys) + data)
    return path


def refused(path: Path, kind: type[InputError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        read_torch_legacy(path)
    assert caught.value.exit_code == 3
    return caught.value.message.removeprefix(f"{path}: ")


@given(state_dicts(DTYPES))
def test_reads_what_torch_reads(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Tensor]) -> None:
    """Every dtype that the format knows, and views of any kind, come back bit for bit; extents are right."""
    path = write_legacy(tmp_path_factory.mktemp("any") / "model.bin", content)
    assert_same(read_torch_legacy(path), torch.load(path, weights_only=True))


def test_literal_bytes_of_the_format(tmp_path: Path) -> None:
    """A file written out by hand gives its tensor, its offset and its values."""
    content = (
        LEGACY_START + b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x007X\x03\x00\x00\x00cpuK\x04NtQ"
        b"K\x01K\x03\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRu.\x80\x02](X\x01\x00\x00\x007e."
    )
    path = tmp_path / "x.bin"
    path.write_bytes(content + struct.pack("<q4e", 4, 0.5, 1, 1.5, -2))
    read = read_torch_legacy(path)
    assert read["w"].extents[0].offset == len(content) + 8 + 2
    assert read["w"].read().tolist() == [1, 1.5, -2]
    assert torch.load(path, weights_only=True)["w"].tolist() == [1, 1.5, -2]


def test_a_file_of_holes_is_not_read(tmp_path: Path) -> None:
    """A storage of 1 TB opens at once, and a tensor in the middle of it is read alone."""
    numel = 2**38
    content = {"all": tensor_of(Storage("0", numel, torch.FloatStorage, None), 0, (numel,), (1,))}
    content["few"] = tensor_of(Storage("0", numel, torch.FloatStorage, None), numel // 2, (3,), (2,))
    path = made(tmp_path / "x.bin", content, ["0"], struct.pack("<q", numel))
    os.truncate(path, path.stat().st_size + 4 * numel)
    read = read_torch_legacy(path)
    assert read.specs["all"].nbytes == 2**40
    assert read["few"].read().tolist() == [0, 0, 0]


def test_a_cut_off_file_is_truncated(tmp_path: Path) -> None:
    """A download that stopped early shows in the storages' lengths."""
    path = write_legacy(tmp_path / "x.bin", {"a": torch.ones(4)})
    os.truncate(path, path.stat().st_size - 3)
    size = path.stat().st_size
    message = refused(path)
    assert message.startswith("truncated: the storage '")
    assert message.endswith(f"' ends at byte {size + 3}, the file at byte {size}.")


@pytest.mark.parametrize(
    ("claimed", "keys", "stored", "fault"),
    [
        (4, ["0"], 3, "the storage '0' has 3 elements where 4 are announced."),
        (4, ["1"], 4, "the list of storages is not that of the storages in use."),
        (4, ["0", "0"], 4, "the list of storages is not that of the storages in use."),
        (4, 0, 4, "the list of storages is not that of the storages in use."),
        (2**60, ["0"], 2**60, "truncated: the storage '0' ends at byte {end}, the file at byte {size}."),
        (3, ["0"], 3, "tensor 'w' reaches to byte 16 of a storage of 12."),
    ],
)
def test_storages_must_be_what_the_pickle_says(
    tmp_path: Path, claimed: int, keys: object, stored: int, fault: str
) -> None:
    """Another length, another list, or more than there is in the file are told apart."""
    content = {"w": tensor_of(Storage("0", claimed, torch.FloatStorage, None), 0, (4,), (1,))}
    path = made(tmp_path / "x.bin", content, keys, struct.pack("<q", stored) + bytes(16))
    size = path.stat().st_size
    assert refused(path) == fault.format(size=size, end=size - 16 + 4 * claimed)


def test_parts_of_storages_are_refused(tmp_path: Path) -> None:
    """torch once wrote a storage that is part of another; nobody has since."""
    content = {"w": tensor_of(Storage("0", 4, torch.FloatStorage, ("1", 0, 4)), 0, (4,), (1,))}
    assert refused(made(tmp_path / "x.bin", content, ["0"])) == (
        "the pickle in it cannot be read (ValueError: a reference to 'storage' [('1', 0, 4)])."
    )


def test_other_pickles_are_told_apart(tmp_path: Path) -> None:
    """A pickle of plain values, and a version that never was."""
    path = tmp_path / "x.bin"
    path.write_bytes(pickled({"a": 1}))
    assert refused(path, UnsupportedError) == "a pickle, but not one of torch.save."
    for version, shown in ((1002, "1002"), (2**20_000, "<int of 20001 bits>"), ([2**64], "[<int of 65 bits>]")):
        path.write_bytes(LEGACY_START[:15] + pickled(version))
        assert refused(path) == f"version {shown} of torch's format, where 1001 is the last."

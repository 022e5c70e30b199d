"""The files that ``torch.save`` wrote before torch 1.6, read without their data.

Five pickles follow one another (a magic number, the format's version, facts about the machine, the object, the keys of
its storages in order), then for each key its number of elements (little-endian int64) and its bytes
(``_legacy_save`` in ``torch/serialization.py``, ``THPStorage_writeFileRaw`` in ``torch/csrc/serialization.cpp``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from llamaconv.errors import UnsupportedError
from llamaconv.extents import Extent, Stamp, open_regular
from llamaconv.sources.base import damaged
from llamaconv.sources.pickle_names import Storage, shown
from llamaconv.sources.pickles import MAX_PICKLE_BYTES, unpickle
from llamaconv.sources.state_dict import named_tensors
from llamaconv.sources.torch_file import TorchFile

__all__ = ["read_torch_legacy"]

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001


class _Stream:
    """What unpickling reads, which counts its bytes and stops where no pickle of tensors would go on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def read(self, size: int, /) -> bytes:
        if self.position + size > MAX_PICKLE_BYTES:
            raise ValueError(f"more than {MAX_PICKLE_BYTES} bytes")
        data = self._file.read(size)
        self.position += len(data)
        return data

    def readline(self) -> bytes:
        line = self._file.readline(MAX_PICKLE_BYTES - self.position)
        self.position += len(line)
        return line


def read_torch_legacy(path: Path) -> TorchFile:
    """A file of the old format; only its pickles and the storages' lengths are read.

    Raises:
        CheckpointError: The file is unreadable, cut off, or contradicts itself.
        UnsupportedError: It is another pickle, or holds, or wants, more than plain tensors by name.
    """
    with open_regular(path) as (descriptor, stamp), os.fdopen(os.dup(descriptor), "rb") as file:
        stream = _Stream(file)
        magic, _ = unpickle(stream, path)
        if magic != _MAGIC_NUMBER:
            raise UnsupportedError(
                f"{path}: a pickle, but not one of torch.save.",
                hint="Use a safetensors checkpoint of the model.",
                file=str(path),
            )
        version, _ = unpickle(stream, path)
        if version != _VERSION:
            raise damaged(path, [f"version {shown(version)} of torch's format, where {_VERSION} is the last."])
        unpickle(stream, path)
        value, storages = unpickle(stream, path)
        tensors = named_tensors(value, path)
        keys, _ = unpickle(stream, path)
        if not isinstance(keys, list) or not _are_the_same(keys, storages):
            raise damaged(path, ["the list of storages is not that of the storages in use."])
        found = _storages(descriptor, stream.position, [storages[key] for key in keys], path, stamp)
    return TorchFile(path, stamp, tensors, found)


def _are_the_same(keys: list[object], storages: Mapping[str, Storage]) -> bool:
    strings = [key for key in keys if isinstance(key, str)]
    return len(keys) == len(storages) and set(strings) == set(storages)


def _storages(
    descriptor: int, position: int, storages: Sequence[Storage], path: Path, stamp: Stamp
) -> dict[str, Extent]:
    """Where the bytes of ``storages`` lie, whose first begins with its length at byte ``position``."""
    found: dict[str, Extent] = {}
    for storage in storages:
        numel = int.from_bytes(os.pread(descriptor, 8, position), "little")
        begin = position + 8
        position = begin + storage.nbytes
        if position > stamp[0]:
            fault = f"truncated: the storage {storage.key!r} ends at byte {position}, the file at byte {stamp[0]}."
            raise damaged(path, [fault])
        if numel != storage.numel:
            fault = f"the storage {storage.key!r} has {numel} elements where {storage.numel} are announced."
            raise damaged(path, [fault])
        found[storage.key] = Extent(path, begin, storage.nbytes, stamp)
    return found

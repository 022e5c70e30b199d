"""Tensors out of safetensors files, one at a time, each by pread into memory of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llamaconv.errors import CheckpointError
from llamaconv.sources.base import one_per_line, unknown_tensor
from llamaconv.sources.safetensors_header import Header, open_regular, read_header, read_headers
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["Header", "SafetensorsReader", "read_header", "read_headers"]

# Linux moves at most 0x7ffff000 bytes in a call and macOS refuses more than it.
_MOST_PER_CALL = 1 << 30


class SafetensorsReader:
    """A checkpoint of one or more safetensors files.

    A file is open only while a tensor is read from it, so hundreds of shards need one descriptor. (mmap would
    count every page read against the process's memory.)

    Args:
        headers: The files' headers, in the order in which their tensors shall be listed.
        index: The index file that named them, if there was one.

    Raises:
        CheckpointError: A tensor is in two files (all such tensors are named).
    """

    def __init__(self, headers: Sequence[Header], index: Path | None = None) -> None:
        self.headers = tuple(headers)
        self.files: tuple[Path, ...] = (*(header.path for header in headers), *([index] if index else []))
        self._homes: dict[str, Header] = {}
        faults = []
        for header in headers:
            for name in header.specs:
                first = self._homes.setdefault(name, header)
                if first is not header:
                    faults.append(f"Tensor {name!r} is both in {first.path} and in {header.path}.")
        if faults:
            raise CheckpointError(one_per_line(faults), hint="Give one of the files, or an index.json.")
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {name: spec for header in headers for name, spec in header.specs.items()}
        )

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor called ``name``, not read yet.

        Raises:
            CheckpointError: There is none of that name; or, from ``read()``, the file is gone, unreadable or
                not the one whose header was read.
        """
        header = self._homes.get(name)
        if header is None:
            raise unknown_tensor(name, self.specs)
        return LazyTensor(header.specs[name], partial(_read, header, name))


def _read(header: Header, name: str) -> Tensor:
    spec = header.specs[name]
    # The device is explicit because models are built under a default of "meta".
    buffer = torch.empty(spec.nbytes, dtype=torch.uint8, device="cpu")
    if spec.nbytes:
        _fill(buffer.numpy().data, header, name)
    return buffer.view(spec.dtype).reshape(spec.shape)


def _fill(memory: memoryview, header: Header, name: str) -> None:
    """Read the tensor's bytes into ``memory``, which has exactly their size."""
    path, offset, done = header.path, header.offsets[name], 0
    with open_regular(path) as (descriptor, stamp):
        if stamp != header.stamp:
            raise _changed(path, name)
        while done < len(memory):
            count = os.preadv(descriptor, [memory[done : done + _MOST_PER_CALL]], offset + done)
            if count == 0:
                raise _changed(path, name)
            done += count


def _changed(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the file changed after its header was read, so tensor {name!r} cannot be trusted.",
        hint="Let whatever writes the checkpoint finish, then start again.",
        file=str(path),
        tensor=name,
    )

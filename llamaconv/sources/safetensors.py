"""Tensors out of a safetensors file, one at a time, each by pread into memory of its own.

(mmap would count every page read against the process's memory.)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from llamaconv.extents import Extent, Stamp
from llamaconv.sources.base import read_tensor, unknown_tensor
from llamaconv.sources.safetensors_header import Header, read_header
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["SafetensorsFile", "read_safetensors"]


class SafetensorsFile:
    """A safetensors file, known by its checked header."""

    def __init__(self, header: Header) -> None:
        self.path: Path = header.path
        self.stamp: Stamp = header.stamp
        self.specs: Mapping[str, TensorSpec] = header.specs
        self._offsets = header.offsets

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor called ``name``, not read yet.

        Raises:
            CheckpointError: There is none of that name; or, from ``read()``, the file is gone, unreadable or
                not the one whose header was read.
        """
        spec = self.specs.get(name)
        if spec is None:
            raise unknown_tensor(name, self.specs)
        whole = Extent(self.path, self._offsets[name], spec.nbytes, self.stamp)
        extents = (whole,) if spec.nbytes else ()
        return LazyTensor(spec, partial(read_tensor, spec, extents), extents)


def read_safetensors(path: Path) -> SafetensorsFile:
    """A safetensors file; only its header is read.

    Raises:
        CheckpointError: As ``read_header``.
    """
    return SafetensorsFile(read_header(path))

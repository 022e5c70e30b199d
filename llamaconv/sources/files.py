"""Several weight files as one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from llamaconv.errors import CheckpointError
from llamaconv.sources.base import WeightFile, one_per_line, unknown_tensor
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["FilesReader"]


class FilesReader:
    """A checkpoint of one or more weight files.

    A file is open only while a tensor is read from it, so hundreds of shards need one descriptor.

    Args:
        files: In the order in which their tensors shall be listed.
        index: The index file that named them, if there was one.
        prefixes: One for each file, put before its tensors' names: files of tensor-parallel ranks hold the same
            names.

    Raises:
        CheckpointError: A tensor is in two files (all such tensors are named).
    """

    def __init__(
        self, files: Sequence[WeightFile], index: Path | None = None, prefixes: Sequence[str] | None = None
    ) -> None:
        self.files: tuple[Path, ...] = (*(file.path for file in files), *([index] if index else []))
        self._homes: dict[str, tuple[WeightFile, str]] = {}
        specs: dict[str, TensorSpec] = {}
        holdings: dict[Path, tuple[str, ...]] = {}
        faults = []
        for file, prefix in zip(files, prefixes or [""] * len(files), strict=True):
            for stored, spec in file.specs.items():
                name = prefix + stored
                first, _ = self._homes.setdefault(name, (file, stored))
                if first is not file:
                    faults.append(f"Tensor {name!r} is both in {first.path} and in {file.path}.")
                specs[name] = replace(spec, name=name)
            holdings[file.path] = tuple(prefix + stored for stored in file.specs)
        if faults:
            raise CheckpointError(one_per_line(faults), hint="Give one of the files, or an index.json.")
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self.holdings: Mapping[Path, tuple[str, ...]] = MappingProxyType(holdings)

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor called ``name``, not read yet.

        Raises:
            CheckpointError: There is none of that name; or, from ``read()``, the file is gone, unreadable or
                not the one whose header was read.
        """
        if name not in self._homes:
            raise unknown_tensor(name, self.specs)
        file, stored = self._homes[name]
        return replace(file[stored], spec=self.specs[name])

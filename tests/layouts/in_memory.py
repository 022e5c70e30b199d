"""Tensors in memory, read as if they lay in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from llamaconv.tensors import LazyTensor, TensorSpec


class InMemory:
    """A reader of tensors that are there already."""

    files: tuple[Path, ...] = ()

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.specs = {name: TensorSpec.of(name, tensor) for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> LazyTensor:
        return LazyTensor(self.specs[name], self._tensors[name].clone)

"""What a tensor is before it is read: a name, a shape, a dtype, and a way to get the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llamaconv.extents import Extent

__all__ = ["LazyTensor", "TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a tensor whose data may not exist yet."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements (1 for a scalar)."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.numel * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> TensorSpec:
        """The spec of an existing tensor (a meta tensor will do)."""
        return cls(name, tuple(tensor.shape), tensor.dtype)

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when, and only when, ``read()`` is called.

    ``read`` returns a new CPU tensor that the caller owns, with exactly the spec's shape and dtype.

    Attributes:
        spec: What it will be.
        read: Gets it.
        extents: Where its bytes lie in files, in row-major order, one run after the other; empty if they lie nowhere
            as they are, or if there are none.
        extra_bytes: Memory that reading takes for a while beside the tensor itself.
    """

    spec: TensorSpec
    read: Callable[[], Tensor]
    extents: tuple[Extent, ...] = ()
    extra_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """The most memory that reading takes."""
        return self.spec.nbytes + self.extra_bytes

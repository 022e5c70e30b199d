"""Whether tensors are the same, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from llamaconv.extents import cut, read_extents
from llamaconv.tensors import LazyTensor

__all__ = ["same_bits"]

_CHUNK = 1 << 24  # bytes


def same_bits(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors have one shape, one dtype and the same bytes; NaN equals NaN that way.

    Where both lie in files as they are, a few megabytes are read at a time, up to the first difference.
    """
    if (one.spec.shape, one.spec.dtype) != (other.spec.shape, other.spec.dtype):
        return False
    if one.extents and other.extents:
        return all(
            torch.equal(read_extents(cut(one.extents, begin, _CHUNK)), read_extents(cut(other.extents, begin, _CHUNK)))
            for begin in range(0, one.spec.nbytes, _CHUNK)
        )
    return torch.equal(_bytes(one.read()), _bytes(other.read()))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)

"""Reading and writing what stays dense: checked for NaN and Inf on the way in, for overflow on the way out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llamaconv.errors import NotFiniteError, NumericalError
from llamaconv.tensors import LazyTensor

__all__ = ["cast", "read_finite"]


def read_finite(source: Mapping[str, LazyTensor]) -> dict[str, Tensor]:
    """Read all tensors of a step.

    Raises:
        NotFiniteError: NaN or Inf; names every tensor that has one.
    """
    tensors = {name: lazy.read() for name, lazy in source.items()}
    faults = [
        f"{name}: {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values are NaN or Inf"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if faults:
        raise NotFiniteError("\n".join(faults), hint="The checkpoint is damaged: get it again from its source.")
    return tensors


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A floating-point tensor in another dtype; others, and all if ``dtype`` is None, as they are.

    Raises:
        NumericalError: A finite value became infinite.
    """
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    overflown = int((torch.isfinite(tensor) & ~torch.isfinite(result)).sum())
    if overflown:
        raise NumericalError(
            f"{name}: {overflown} of {tensor.numel()} values overflow {str(dtype).removeprefix('torch.')}",
            hint="Keep the source's dtype (--dtype keep) or choose bfloat16 or float32.",
        )
    return result

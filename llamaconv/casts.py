"""Floating-point values in another dtype, with a count of what does not survive it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from llamaconv.errors import UsageError

__all__ = ["FLOATS", "Loss", "cast", "named_dtype", "output_dtype"]

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes that weights are kept in, by name."""

_CHUNK = 1 << 22  # values looked at in one go


@dataclass(frozen=True)
class Loss:
    """What a cast lost of a tensor.

    Attributes:
        name: The tensor's.
        dtype: Cast to.
        values: How many there are.
        overflowed: Finite values that became infinite.
        flushed: Values that became zero.
    """

    name: str
    dtype: torch.dtype
    values: int
    overflowed: int
    flushed: int

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        return asdict(self) | {"dtype": str(self.dtype).removeprefix("torch.")}

    def __bool__(self) -> bool:
        return bool(self.overflowed or self.flushed)

    def __str__(self) -> str:
        counts = ((self.overflowed, "overflow"), (self.flushed, "flush to zero"))
        lost = " and ".join(f"{count:,} {what}" for count, what in counts if count)
        return f"{self.name}: of {self.values:,} values {lost} in {str(self.dtype).removeprefix('torch.')}"


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Loss | None]:
    """A tensor in another dtype, and what that lost (None where nothing was cast).

    Only floating-point tensors are cast; all stay as they are if ``dtype`` is None. Beside the result it takes a few
    megabytes.
    """
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor, None
    if torch.promote_types(tensor.dtype, dtype) == dtype:  # it holds every value
        return tensor.to(dtype), Loss(name, dtype, tensor.numel(), 0, 0)
    values = tensor.reshape(-1)
    result = torch.empty(values.shape, dtype=dtype, device=tensor.device)
    overflowed = flushed = 0
    for before, after in zip(values.split(_CHUNK), result.split(_CHUNK), strict=True):
        after.copy_(before)
        flushed += int(torch.count_nonzero(before)) - int(torch.count_nonzero(after))
        low, high = (float(extreme) for extreme in torch.aminmax(before))
        limit = torch.finfo(dtype).max
        if not -limit <= low <= high <= limit:  # NaN among them, or what may have become infinite
            overflowed += int((torch.isfinite(before) & ~torch.isfinite(after)).sum())
    return result.view(tensor.shape), Loss(name, dtype, tensor.numel(), overflowed, flushed)


def named_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float16.

    Raises:
        UsageError: Anything else.
    """
    if name not in FLOATS:
        raise UsageError(f"unknown dtype {name!r}", hint=f"Use one of {', '.join(FLOATS)}.")
    return FLOATS[name]


def output_dtype(name: str) -> torch.dtype | None:
    """The dtype of what is written: None for ``"keep"``.

    Raises:
        UsageError: Neither that nor a dtype's name.
    """
    return None if name == "keep" else named_dtype(name)

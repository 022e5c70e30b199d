"""Which values a weight may take: the uniform affine grid ``(code - zero) * scale``.

A grid is fitted per row and group of columns. Scales are rounded to float16 before any code is computed,
because float16 is what the checkpoint stores: a code is always the nearest one to the value a runtime will see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llamaconv.quantizers.kernels.cpu_numba import least_error

__all__ = ["AffineGrid", "GridParameters", "ScaleRule"]

ScaleRule = Literal["search", "minmax"]

# Fractions of the min-max range tried by the search. Going down to 0.2 instead changed the KL of a trained model by
# 2 to 5 % at 2 and 3 bits, not always for the better.
_SHRINKS = tuple(1.0 - 0.01 * step for step in range(61))
_SMALLEST_SCALE = 2.0**-24  # the smallest positive float16; a scale must not round to zero


@dataclass(frozen=True)
class GridParameters:
    """One scale and zero point per row: ``scale`` [N] float32, exact in float16; ``zero`` [N] float32, whole."""

    scale: Tensor
    zero: Tensor


@dataclass(frozen=True)
class AffineGrid:
    """``2**bits`` evenly spaced values.

    Args:
        bits: 2, 3, 4 or 8.
        symmetric: Zero point fixed at ``2**(bits-1)``; otherwise fitted, in ``1 .. 2**bits - 1`` because the
            GPTQ v1 format stores ``zero - 1`` and has no room for a zero point of 0.
        scale_rule: ``"minmax"`` covers the whole range (arXiv 2210.17323); ``"search"`` tries narrower ranges and
            keeps, per row, the one with the least rounding error weighted by each column's importance.
    """

    bits: int
    symmetric: bool = True
    scale_rule: ScaleRule = "search"

    @property
    def max_code(self) -> int:
        """The largest code, ``2**bits - 1``."""
        return (1 << self.bits) - 1

    def fit(self, weight: Tensor, importance: Tensor) -> GridParameters:
        """The grid of each row.

        Args:
            weight: [N, C] float32.
            importance: [C] float32, the weight of each column's squared error (the Hessian's diagonal); only
                the search looks at it.
        """
        low, high = weight.amin(1).clamp(max=0.0), weight.amax(1).clamp(min=0.0)
        if self.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        if self.scale_rule == "minmax":
            return self._spanning(low, high)
        shrinks = torch.tensor(_SHRINKS, dtype=weight.dtype)
        candidates = self._spanning(low[:, None] * shrinks, high[:, None] * shrinks)
        # To be clipped is a row's choice: one whose whole range overflows float16 gets no narrower one instead.
        whole = candidates.scale[:, :1]
        candidates.scale.masked_fill_(torch.isinf(whole), torch.inf)
        mean = importance.mean()
        # A column no calibration token lit still has to be rounded somewhere near itself.
        importance = importance / mean + 1e-6 if mean > 0 else torch.ones_like(importance)
        best = torch.empty(len(weight), dtype=torch.int64)
        least_error(
            weight.contiguous().numpy(),
            importance.numpy(),
            candidates.scale.numpy(),
            candidates.zero.numpy(),
            self.max_code,
            best.numpy(),
        )
        pick = best[:, None]
        return GridParameters(candidates.scale.gather(1, pick)[:, 0], candidates.zero.gather(1, pick)[:, 0])

    def _spanning(self, low: Tensor, high: Tensor) -> GridParameters:
        scale = (high - low) / self.max_code
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        scale = scale.clamp(min=_SMALLEST_SCALE).half().float()
        if self.symmetric:
            return GridParameters(scale, torch.full_like(scale, float(1 << (self.bits - 1))))
        return GridParameters(scale, (-low / scale).round_().clamp_(1, self.max_code))

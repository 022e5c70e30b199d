"""Coordinate descent after GPTQ: refit each group's scale, then each column's code, while all else stays.

GPTQ rounds every column once and never looks back. Each step here minimizes the same layer-wise error
``(W - Q) H (W - Q)^T`` exactly over one scale or one code, so it can only fall. Per sweep it costs about twice what the
GPTQ walk does.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llamaconv.quantizers.grids import AffineGrid
from llamaconv.quantizers.kernels.cpu_numba import descend_columns

__all__ = ["column_blocks", "sweep"]

_BLOCK = 128  # columns worked on between two updates of all others


def sweep(
    weight: Tensor,
    hessian: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_size: int,
    grid: AffineGrid,
) -> None:
    """One pass over all groups.

    Args:
        weight: [R, K] float32, in the order in which columns were quantized.
        hessian: [K, K] float32, damped, in the same order.
        codes: [R, K] uint8, updated.
        scales: [R, G] float16, updated; zeros: [R, G] uint8.
        group_size: Columns per group, -1 for all.
        grid: Of the codes.
    """
    columns = weight.shape[1]
    size = columns if group_size == -1 else group_size
    offsets, steps = zeros.float(), scales.float()
    quantized = torch.cat(
        [
            (codes[:, start : start + size].float() - offsets[:, index, None]) * steps[:, index, None]
            for index, start in enumerate(range(0, columns, size))
        ],
        1,
    )
    gradient = (weight - quantized) @ hessian
    for first, last, group in column_blocks(columns, group_size):
        if group is not None:
            index, end = group
            _refit(gradient, hessian, codes, scales, zeros, index, first, end)
            scale = scales[:, index].float()
        block_codes = codes[:, first:last].contiguous()
        change = torch.empty(block_codes.shape)
        descend_columns(
            gradient[:, first:last].contiguous().numpy(),
            hessian[first:last, first:last].contiguous().numpy(),
            scale.numpy(),
            grid.max_code,
            block_codes.numpy(),
            change.numpy(),
        )
        codes[:, first:last] = block_codes
        gradient.addmm_(change, hessian[first:last], alpha=-1.0)


def _refit(
    gradient: Tensor,
    hessian: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    index: int,
    first: int,
    end: int,
) -> None:
    """The best scale of one group for its codes, in float16; kept only where it lowers the error."""
    centred = codes[:, first:end].float() - zeros[:, index, None].float()
    slope = (gradient[:, first:end] * centred).sum(1)
    curvature = ((centred @ hessian[first:end, first:end]) * centred).sum(1)
    old = scales[:, index].float()
    new = (old + slope / curvature.clamp(min=torch.finfo(torch.float32).tiny)).half().float()
    step = new - old
    better = (new > 0) & torch.isfinite(new) & (step * (2 * slope - step * curvature) > 0)
    step = torch.where(better, step, torch.zeros_like(step))
    scales[:, index] = (old + step).half()
    gradient.addmm_(step[:, None] * centred, hessian[first:end], alpha=-1.0)


def column_blocks(columns: int, group_size: int) -> Iterator[tuple[int, int, tuple[int, int] | None]]:
    """Runs ``(first, last, (group, group's end) if one begins here)`` that cross no group's border."""
    size = columns if group_size == -1 else group_size
    for start in range(0, columns, size):
        end = min(start + size, columns)
        for first in range(start, end, _BLOCK):
            yield first, min(first + _BLOCK, end), (start // size, end) if first == start else None

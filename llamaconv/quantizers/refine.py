"""Coordinate descent after GPTQ: refit each group's scale, then each column's code, while all else stays.

GPTQ rounds every column once and never looks back. Each step here minimizes the same layer-wise error
``(W - Q) H (W - Q)^T`` exactly over one scale or one code, so it can only fall. In arithmetic
a sweep is two GPTQ walks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llamaconv.quantizers.grids import AffineGrid
from llamaconv.quantizers.kernels.cpu_numba import descend_columns

__all__ = ["column_blocks", "refine"]

_BLOCK = 128  # columns worked on between two updates of all others


def refine(
    weight: Tensor,
    hessian: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    *,
    group_size: int,
    grid: AffineGrid,
    sweeps: int,
) -> None:
    """Some passes over all groups.

    Args:
        weight: [R, K] float32, in the order in which columns were quantized.
        hessian: [K, K] float32, damped, in the same order.
        codes: [R, K] uint8, updated.
        scales: [R, G] float16, updated; zeros: [R, G] uint8.
        group_size: Columns per group, -1 for all.
        grid: Of the codes.
        sweeps: How many passes.
    """
    columns = weight.shape[1]
    size = columns if group_size == -1 else group_size
    group = torch.arange(columns) // size
    quantized = (codes.float() - zeros.float()[:, group]) * scales.float()[:, group]
    gradient = (weight - quantized) @ hessian
    for _ in range(sweeps):
        for index, first in enumerate(range(0, columns, size)):
            last = min(first + size, columns)
            part = slice(first, last)
            change = _refit(gradient[:, part], hessian[part, part], codes[:, part], scales, zeros, index)
            if last - first <= _BLOCK:
                # The group's own columns are brought up to date here, all others once for both changes.
                own = gradient[:, part].addmm(change, hessian[part, part], alpha=-1.0)
                change += _descend(own, hessian[part, part], codes[:, part], scales[:, index], grid)
                gradient.addmm_(change, hessian[part], alpha=-1.0)
                continue
            gradient.addmm_(change, hessian[part], alpha=-1.0)
            for start in range(first, last, _BLOCK):
                block = slice(start, min(start + _BLOCK, last))
                own = gradient[:, block].contiguous()
                change = _descend(own, hessian[block, block], codes[:, block], scales[:, index], grid)
                gradient.addmm_(change, hessian[block], alpha=-1.0)


def _refit(gradient: Tensor, hessian: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, index: int) -> Tensor:
    """The best scale of one group for its codes, in float16; kept only where it lowers the error.

    Returns:
        How much each of the group's dequantized values moved, [R, C].
    """
    centred = codes.float() - zeros[:, index, None].float()
    slope = (gradient * centred).sum(1)
    curvature = ((centred @ hessian) * centred).sum(1)
    old = scales[:, index].float()
    new = (old + slope / curvature.clamp(min=torch.finfo(torch.float32).tiny)).half().float()
    step = new - old
    better = (new > 0) & torch.isfinite(new) & (step * (2 * slope - step * curvature) > 0)
    step = torch.where(better, step, torch.zeros_like(step))
    scales[:, index] = (old + step).half()
    return step[:, None] * centred


def _descend(gradient: Tensor, hessian: Tensor, codes: Tensor, scale: Tensor, grid: AffineGrid) -> Tensor:
    """Each column's best code in turn; ``gradient`` [R, C] is used up.

    Returns:
        How much each dequantized value moved, [R, C].
    """
    chosen, change = codes.contiguous(), torch.empty(codes.shape)
    descend_columns(
        gradient.numpy(),
        hessian.contiguous().numpy(),
        scale.float().numpy(),
        grid.max_code,
        chosen.numpy(),
        change.numpy(),
    )
    codes.copy_(chosen)
    return change


def column_blocks(columns: int, group_size: int) -> Iterator[tuple[int, int, tuple[int, int] | None]]:
    """Runs ``(first, last, (group, group's end) if one begins here)`` that cross no group's border."""
    size = columns if group_size == -1 else group_size
    for start in range(0, columns, size):
        end = min(start + size, columns)
        for first in range(start, end, _BLOCK):
            yield first, min(first + _BLOCK, end), (start // size, end) if first == start else None

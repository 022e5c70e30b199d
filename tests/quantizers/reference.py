"""GPTQ in float64, straight from algorithm 1 of arXiv 2210.17323: no blocks, no kernels, nothing from the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reference", "gptq"]

Array = NDArray[np.float64]

# How far float32 may lie from float64 here, in units of a code (at 4 bits) and of float16's spacing.
_CODE_TOLERANCE = 1e-5
_SCALE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Reference:
    """What GPTQ gives.

    Attributes:
        codes: [N, K], columns in their original order.
        scales, zeros: [N, G].
        group_index: [K], of the columns in their original order.
        certain: [N], whether no decision in the row was so close that float32 may take it otherwise.
    """

    codes: Array
    scales: Array
    zeros: Array
    group_index: NDArray[np.int32]
    certain: NDArray[np.bool_]


def gptq(
    weight: Array, inputs: Array, *, bits: int, symmetric: bool, group_size: int, act_order: bool, damping: float
) -> Reference:
    """Quantize ``weight`` [N, K] for ``inputs`` [T, K]."""
    rows, columns = weight.shape
    size = columns if group_size == -1 else group_size
    top = 2**bits - 1

    hessian = 2 * inputs.T @ inputs
    diagonal = np.diag(hessian)
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(columns)
    hessian = hessian + damping * diagonal.mean() * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T

    weight = weight[:, order].copy()
    codes = np.zeros((rows, columns))
    scales, zeros = np.zeros((rows, columns // size)), np.zeros((rows, columns // size))
    certain = np.ones(rows, dtype=np.bool_)
    for j in range(columns):
        group, place = divmod(j, size)
        if place == 0:
            scale, zero, clear = _min_max(weight[:, j : j + size], bits, symmetric)
            scales[:, group], zeros[:, group] = scale, zero
            certain &= clear
        level = weight[:, j] / scale
        certain &= np.abs(level - np.floor(level) - 0.5) > _CODE_TOLERANCE * 2**bits / 16
        codes[:, j] = np.clip(np.rint(level) + zero, 0, top)
        error = (weight[:, j] - (codes[:, j] - zero) * scale) / upper[j, j]
        weight[:, j:] -= np.outer(error, upper[j, j:])

    original = np.empty_like(codes)
    original[:, order] = codes
    # As AutoGPTQ writes it: groups are runs of the ordered columns, looked up by original column.
    group_index = (np.arange(columns, dtype=np.int32) // size)[np.argsort(order)]
    return Reference(original, scales, zeros, group_index, certain)


def _min_max(weight: Array, bits: int, symmetric: bool) -> tuple[Array, Array, NDArray[np.bool_]]:
    """The grid that covers [N, C], its scale rounded to float16; and whether both roundings are certain."""
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    exact = (high - low) / (2**bits - 1)
    scale = exact.astype(np.float16).astype(np.float64)
    spacing = np.spacing(scale.astype(np.float16)).astype(np.float64)
    clear = 0.5 - np.abs(exact - scale) / spacing > _SCALE_TOLERANCE
    if symmetric:
        return scale, np.full_like(scale, 2.0 ** (bits - 1)), clear
    level = -low / scale
    clear &= np.abs(level - np.floor(level) - 0.5) > _CODE_TOLERANCE * 2**bits / 16
    return scale, np.clip(np.rint(level), 1, 2**bits - 1), clear

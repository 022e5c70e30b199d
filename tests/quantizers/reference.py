"""GPTQ in float64, straight from algorithm 1 of arXiv 2210.17323, and coordinate descent straight from its definition:
no blocks, no kernels, nothing kept up to date that can be computed anew, nothing from the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reference", "gptq", "refine"]

Array = NDArray[np.float64]

# How far float32 may lie from float64 here, in units of a code (at 4 bits) and of float16's spacing.
_CODE_TOLERANCE = 1e-5
_SCALE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Reference:
    """What GPTQ gives.

    Attributes:
        codes: [N, K].
        scales, zeros: [N, G].
        group_index: [K].
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
    """Quantize ``weight`` [N, K] for ``inputs`` [T, K]; codes and groups are those of the columns in their order."""
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
        certain &= _clear(level, bits)
        codes[:, j] = np.clip(np.rint(level) + zero, 0, top)
        error = (weight[:, j] - (codes[:, j] - zero) * scale) / upper[j, j]
        weight[:, j:] -= np.outer(error, upper[j, j:])

    original = np.empty_like(codes)
    original[:, order] = codes
    # As AutoGPTQ writes it: groups are runs of the ordered columns, looked up by original column.
    group_index = (np.arange(columns, dtype=np.int32) // size)[np.argsort(order)]
    return Reference(original, scales, zeros, group_index, certain)


def refine(
    weight: Array, hessian: Array, codes: Array, scales: Array, zeros: Array, *, bits: int, sweeps: int
) -> Reference:
    """Give each group in turn its best scale, then each of its columns its best code, while all else stays.

    Args:
        weight, codes: [N, K], groups side by side.
        hessian: [K, K].
        scales, zeros: [N, G].
        bits: Width of a code.
        sweeps: How often.
    """
    codes, scales = codes.copy(), scales.copy()
    group_index = np.arange(codes.shape[1]) // (codes.shape[1] // scales.shape[1])
    certain = np.ones(len(weight), dtype=np.bool_)
    zero = zeros[:, group_index]
    for group in list(range(scales.shape[1])) * sweeps:
        inside = group_index == group
        centred = codes - zero
        # The error is quadratic in the scale: what is left of it without this group, along the group's codes.
        direction, rest = centred * inside, weight - centred * scales[:, group_index] * ~inside
        best = ((rest @ hessian) * direction).sum(1) / ((direction @ hessian) * direction).sum(1)
        scales[:, group], clear = _to_float16(best)
        certain &= clear
        scale = scales[:, group_index]
        for j in np.flatnonzero(inside):
            off = weight - (codes - zero) * scale
            level = codes[:, j] + off @ hessian[:, j] / hessian[j, j] / scales[:, group]
            certain &= _clear(level, bits)
            codes[:, j] = np.clip(np.rint(level), 0, 2**bits - 1)
    return Reference(codes, scales, zeros, group_index.astype(np.int32), certain)


def _min_max(weight: Array, bits: int, symmetric: bool) -> tuple[Array, Array, NDArray[np.bool_]]:
    """The grid that covers [N, C], its scale rounded to float16; and whether both roundings are certain."""
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    exact = (high - low) / (2**bits - 1)
    scale, clear = _to_float16(exact)
    if symmetric:
        return scale, np.full_like(scale, 2.0 ** (bits - 1)), clear
    level = -low / scale
    return scale, np.clip(np.rint(level), 1, 2**bits - 1), clear & _clear(level, bits)


def _to_float16(exact: Array) -> tuple[Array, NDArray[np.bool_]]:
    """``exact`` [N] rounded to float16; and whether float32 rounds it so too."""
    half = exact.astype(np.float16)
    rounded, spacing = half.astype(np.float64), np.spacing(half).astype(np.float64)
    return rounded, 0.5 - np.abs(exact - rounded) / spacing > _SCALE_TOLERANCE


def _clear(level: Array, bits: int) -> NDArray[np.bool_]:
    """Whether float32 rounds ``level`` [N] to the same whole number."""
    clear: NDArray[np.bool_] = np.abs(level - np.floor(level) - 0.5) > _CODE_TOLERANCE * 2**bits / 16
    return clear

"""The inner loops of the scale search, of GPTQ and of its refinement, compiled for the CPU.

Rows do not depend on each other, so a kernel walks one row at a time: 128 columns of it stay in the first-level cache.
Kernels release the GIL and start no threads: the caller gives rows to threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["descend_columns", "least_error", "round_columns"]

Kernel = TypeVar("Kernel", bound=Callable[..., None])


def _compiled(**options: Any) -> Callable[[Kernel], Kernel]:
    """Compile on first use; the machine code is kept for the next process where there is a place to keep it."""

    def compile(kernel: Kernel) -> Kernel:
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            compiled: Kernel = numba.njit(cache=True, **settings)(kernel)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            compiled = numba.njit(**settings)(kernel)
        return compiled

    return compile


# Sums may be formed in any order, which lets them use vector registers: always the same order on one machine.
@_compiled(fastmath={"reassoc", "nsz"})
def least_error(
    weight: NDArray[np.float32],
    importance: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    max_code: float,
    best: NDArray[np.int64],
) -> None:
    """Which of several grids rounds each row with the least weighted squared error; the first of equals.

    Args:
        weight: [rows, columns]; importance: [columns].
        scale: [rows, candidates]; zero: [rows, candidates].
        max_code: ``2**bits - 1``.
        best: [rows], written.
    """
    rows, columns = weight.shape
    top = np.float32(max_code)
    for row in range(rows):
        least = np.float32(np.inf)
        best[row] = 0
        for candidate in range(scale.shape[1]):
            step, offset = scale[row, candidate], zero[row, candidate]
            error = np.float32(0.0)
            for j in range(columns):
                value = weight[row, j]
                code = min(max(np.rint(value / step) + offset, np.float32(0.0)), top)
                lost = (code - offset) * step - value
                error += lost * lost * importance[j]
            if error < least:
                least = error
                best[row] = candidate


@_compiled()
def round_columns(
    weight: NDArray[np.float32],
    upper: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    max_code: float,
    codes: NDArray[np.uint8],
    error: NDArray[np.float32],
) -> None:
    """Round each column and move its error to the columns behind it, in place.

    Args:
        weight: [rows, columns], overwritten by the updated weights.
        upper: [columns, columns], the diagonal block of the upper Cholesky factor.
        scale: [rows]; zero: [rows].
        max_code: ``2**bits - 1``.
        codes: [rows, columns], written.
        error: [rows, columns], written: ``(w - q) / upper[j, j]``.
    """
    rows, columns = weight.shape
    top = np.float32(max_code)
    for row in range(rows):
        step, offset = scale[row], zero[row]
        for j in range(columns):
            value = weight[row, j]
            code = np.rint(value / step) + offset
            code = min(max(code, np.float32(0.0)), top)
            codes[row, j] = np.uint8(code)
            scaled = (value - (code - offset) * step) / upper[j, j]
            error[row, j] = scaled
            for k in range(j + 1, columns):
                weight[row, k] -= scaled * upper[j, k]


@_compiled()
def descend_columns(
    gradient: NDArray[np.float32],
    hessian: NDArray[np.float32],
    scale: NDArray[np.float32],
    max_code: float,
    codes: NDArray[np.uint8],
    change: NDArray[np.float32],
) -> None:
    """Give each column in turn the code that is best while the others stay, in place.

    Args:
        gradient: [rows, columns], these columns of ``(W - Q) H``, kept up to date.
        hessian: [columns, columns], the diagonal block.
        scale: [rows].
        max_code: ``2**bits - 1``.
        codes: [rows, columns], updated.
        change: [rows, columns], written: how much each dequantized value moved.
    """
    rows, columns = gradient.shape
    top = np.float32(max_code)
    for row in range(rows):
        step = scale[row]
        for j in range(columns):
            old = np.float32(codes[row, j])
            best = np.rint(old + gradient[row, j] / (hessian[j, j] * step))
            best = min(max(best, np.float32(0.0)), top)
            moved = (best - old) * step
            change[row, j] = moved
            if moved != 0.0:
                codes[row, j] = np.uint8(best)
                for k in range(columns):
                    gradient[row, k] -= moved * hessian[j, k]

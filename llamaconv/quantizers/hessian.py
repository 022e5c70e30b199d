"""The second-order statistic of a linear layer's inputs, and the factor of its inverse that GPTQ walks along.

For inputs ``x`` the layer-wise error of a weight change ``d`` is ``d H d^T`` with ``H = sum_t x_t^T x_t``
(arXiv 2210.17323, section 3; the constant factor 2 cancels everywhere).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llamaconv.errors import NumericalError

if TYPE_CHECKING:
    from llamaconv.quantizers.base import Map

__all__ = ["Factor", "accumulate", "factorize", "mirror", "relative_error", "round_to_nearest"]

_PANEL = 256  # columns; a fixed width, so that sums do not depend on the number of workers
_TOKENS = 8192  # rows converted to float32 at a time
_ROWS = 256  # rows of a weight given to one worker at a time
_RAISE = 10.0**0.5  # each failed factorization raises the damping by this factor,
_SMALLEST_RAISED = 1e-4  # from here on where it was smaller, or 0
_LARGEST_DAMPING = 1.0  # times the mean of the diagonal; beyond it the Hessian says nothing


@dataclass(frozen=True)
class Factor:
    """The upper Cholesky factor of the inverse of the damped Hessian.

    Attributes:
        upper: [K, K] float32, upper triangular, ``H^-1 = upper^T upper``, in the order of ``order``.
        hessian: [K, K] float32, the damped Hessian ``H`` itself, in the same order.
        order: [K] int64, the columns in the order in which they are quantized.
        diagonal: [K] float32, the undamped Hessian's diagonal, in the original order.
        damping: The damping that worked, as a fraction of the mean diagonal.
        raises: How often it had to be raised.
    """

    upper: Tensor
    hessian: Tensor
    order: Tensor
    diagonal: Tensor
    damping: float
    raises: int


def accumulate(hessian: Tensor, inputs: Sequence[Tensor], map: Map) -> None:
    """Add ``sum_t x_t^T x_t`` over all inputs to ``hessian`` in place.

    Only panels on and above the diagonal are computed, each from all inputs in the order given, so the sum is
    the same for any number of workers. :func:`mirror` fills in the rest.

    Args:
        hessian: [K, K] float32.
        inputs: Tensors [tokens, K] of any float dtype.
        map: Applies a function to items, possibly concurrently.
    """
    starts = range(0, hessian.shape[0], _PANEL)
    for batch in _batches(inputs):
        exact = map(Tensor.float, batch)

        def panel(corner: tuple[int, int]) -> None:
            row, column = corner
            target = hessian[row : row + _PANEL, column : column + _PANEL]
            for x in exact:  # noqa: B023 - runs before the loop goes on
                target.addmm_(x[:, row : row + _PANEL].T, x[:, column : column + _PANEL])

        map(panel, combinations_with_replacement(starts, 2))


def _batches(inputs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of inputs with about ``_TOKENS`` rows together."""
    batch: list[Tensor] = []
    for x in inputs:
        batch.append(x)
        if sum(len(part) for part in batch) >= _TOKENS:
            yield batch
            batch = []
    if batch:
        yield batch


def mirror(hessian: Tensor) -> None:
    """Copy the panels above the diagonal below it, in place."""
    width = hessian.shape[0]
    for row, column in combinations_with_replacement(range(0, width, _PANEL), 2):
        if row != column:
            upper = hessian[row : row + _PANEL, column : column + _PANEL]
            hessian[column : column + _PANEL, row : row + _PANEL] = upper.T


def factorize(hessian: Tensor, damping: float, act_order: bool) -> Factor:
    """Damp, order, factor.

    ``H^-1 = U^T U`` with ``U`` upper triangular is had from one Cholesky factorization and one triangular
    inversion: reversing rows and columns turns the lower factor of the reversed matrix into an upper factor
    ``R`` with ``H = R R^T``, and ``U = R^-1``. The inverse itself is never formed.

    Args:
        hessian: [K, K] float32, symmetric; not changed.
        damping: Fraction of the mean diagonal that is added to the diagonal; raised step by step until it is enough.
        act_order: Quantize columns in the order of falling diagonal.

    Raises:
        NumericalError: Not positive definite even with the largest damping.
    """
    diagonal = hessian.diagonal().clone()
    dead = diagonal == 0
    mean = float(diagonal.double().mean())
    columns = diagonal.shape[0]
    order = (
        torch.argsort(diagonal, descending=True, stable=True)
        if act_order
        else torch.arange(columns, device=hessian.device)
    )
    steps = _dampings(damping)
    for raises, step in enumerate(steps):
        damped = hessian[order[:, None], order[None, :]]
        # A dead column has no inputs to learn from: with any diagonal it is rounded by itself. Damping gives it one,
        # and a larger one would let it pull at the scale of its group.
        damped.diagonal().add_(step * mean).masked_fill_(dead[order], step * mean or mean or 1.0)
        matrix = damped.flip(0, 1)
        lower, info = torch.linalg.cholesky_ex(matrix, out=(matrix, torch.empty((), dtype=torch.int32)))
        if int(info) == 0 and bool(torch.isfinite(lower.diagonal()).all()):
            identity = torch.eye(columns, dtype=lower.dtype, device=lower.device)
            upper = torch.linalg.solve_triangular(lower, identity, upper=False, out=identity)
            del matrix, lower  # K^2 floats each: nothing is kept longer than it is used
            return Factor(upper.flip(0, 1), damped, order, diagonal, step, raises)
    raise NumericalError(
        f"the Hessian is not positive definite, even with damping {steps[-1]:g} (raised {len(steps) - 1} times)",
        hint="Use more calibration data, or --fallback rtn to round this module to nearest.",
    )


def _dampings(first: float) -> list[float]:
    """``first``, then what it is raised to, up to the largest."""
    steps = [first]
    while steps[-1] < _LARGEST_DAMPING * (1 - 1e-9):  # not one step more for a rounding error
        steps.append(min(max(steps[-1], _SMALLEST_RAISED) * _RAISE, _LARGEST_DAMPING))
    return steps


def relative_error(weight: Tensor, approximation: Tensor, hessian: Tensor, map: Map) -> float:
    """``|(W - Q) X|^2 / |W X|^2`` over the inputs the Hessian was summed from; 0 where nothing comes out at all.

    Args:
        weight, approximation: [N, K] float32.
        hessian: [K, K] float32, symmetric, undamped.
    """

    def energies(first: int) -> tuple[float, float]:
        exact = weight[first : first + _ROWS]
        difference = exact - approximation[first : first + _ROWS]
        return energy(difference), energy(exact)

    def energy(part: Tensor) -> float:
        return float((part @ hessian).mul_(part).sum(dtype=torch.float64))

    parts = map(energies, range(0, weight.shape[0], _ROWS))
    lost, whole = (sum(column) for column in zip(*parts, strict=True))
    # Sums of squares by definition; rounding may leave a tiny negative number of one that is 0. NaN stays NaN.
    return 0.0 if whole <= 0 else 0.0 if lost < 0 else lost / whole


def round_to_nearest(hessian: Tensor) -> Factor:
    """A factor under which GPTQ moves no error: every weight is rounded by itself."""
    columns = hessian.shape[0]
    diagonal = torch.nan_to_num(hessian.diagonal().clone(), posinf=0.0)
    return Factor(
        torch.eye(columns, device=hessian.device),
        torch.eye(columns, device=hessian.device),
        torch.arange(columns, device=hessian.device),
        diagonal,
        damping=0.0,
        raises=0,
    )

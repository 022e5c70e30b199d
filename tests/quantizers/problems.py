"""Layer-wise quantization problems: a weight, and inputs whose columns are correlated and of unequal strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from llamaconv.quantizers.hessian import accumulate, mirror
from llamaconv.quantizers.packing import GptqWeight

__all__ = ["hessian_of", "inputs", "nearest", "nearest_codes", "same", "serial", "weight", "weighted_error"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def serial(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The simplest ``Map``."""
    return [function(item) for item in items]


def weight(seed: int, rows: int, columns: int) -> Tensor:
    """[rows, columns] float32 of a linear layer's usual size, each row with a scale of its own."""
    random = torch.Generator().manual_seed(seed)
    scale = (0.5 + torch.rand(rows, 1, generator=random)) / math.sqrt(columns)
    return torch.randn(rows, columns, generator=random) * scale


def inputs(seed: int, tokens: int, columns: int, *, spread: float = 0.5) -> Tensor:
    """[tokens, columns] float32; with a larger ``spread`` some columns are much stronger than others."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.eye(columns) + 0.7 * torch.randn(columns, columns, generator=random) / math.sqrt(columns)
    strength = torch.exp(spread * torch.randn(columns, generator=random))
    return (torch.randn(tokens, columns, generator=random) @ mixing) * strength


def hessian_of(x: Tensor) -> Tensor:
    """``x^T x`` as the package sums it."""
    hessian = torch.zeros(x.shape[1], x.shape[1])
    accumulate(hessian, [x], serial)
    mirror(hessian)
    return hessian


def weighted_error(difference: Tensor, hessian: Tensor) -> float:
    """``trace(D H D^T)`` in float64."""
    exact = difference.double()
    return float(((exact @ hessian.double()) * exact).sum())


def nearest_codes(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest code of each value in float64, ties to even: [N, C], [N] or [N, C], the same -> [N, C] float64."""
    if scale.ndim == 1:
        scale, zero = scale[:, None], zero[:, None]
    return ((weight.double() / scale.double()).round() + zero.double()).clamp(0, 2**bits - 1)


def same(one: GptqWeight, other: GptqWeight) -> bool:
    """Whether two weights agree in every bit."""
    return all(
        torch.equal(getattr(one, part), getattr(other, part)) for part in ("codes", "scales", "zeros", "group_index")
    )


def nearest(quantized: GptqWeight, w: Tensor) -> Tensor:
    """The nearest codes on the grids that ``quantized`` ended up with."""
    index = quantized.group_index.long()
    return nearest_codes(w, quantized.scales[:, index], quantized.zeros[:, index], quantized.bits)

"""Quantized weights through a layout: what moves the rows of weights moves those of codes, scales and zero points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llamaconv.errors import UnsupportedError
from llamaconv.quantizers.packing import GptqWeight

__all__ = ["RowOperation", "through"]


class RowOperation(Protocol):
    """What a layout's rule does to tensors."""

    @property
    def moves_rows(self) -> bool:
        """Whether each row of a result is a row of some input, whole, or zeros."""
        ...

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The tensors on the other side."""
        ...


def through(operation: RowOperation, weights: tuple[GptqWeight, ...]) -> tuple[GptqWeight, ...]:
    """The weights on the other side of a layout's rule, no code requantized.

    Dequantizing what comes out gives, bit for bit, what the operation makes of the dequantized weights. Rows of zeros
    that it adds have codes, scales and zero points of 0 (v1 of the GPTQ format cannot store the latter).

    Raises:
        UnsupportedError: The operation does more than move rows, or makes one weight of several that differ in the
            width of their codes, their groups of columns or their format.
        ValueError: Shapes that the operation cannot take.
    """
    if not operation.moves_rows:
        raise UnsupportedError("only whole rows of a quantized weight can be moved")
    facts = [
        what
        for what, alike in (
            ("bits", _all_equal([weight.bits for weight in weights])),
            ("checkpoint formats", _all_equal([weight.format for weight in weights])),
            ("numbers of groups", _all_equal([weight.scales.shape[1] for weight in weights])),
            ("g_idx", all(torch.equal(weight.group_index.long(), weights[0].group_index.long()) for weight in weights)),
        )
        if not alike
    ]
    if facts:
        raise UnsupportedError(
            f"{len(weights)} quantized weights differ in their {', '.join(facts)}, so they cannot become one",
            hint="Their dense weights can.",
        )
    first = weights[0]
    codes, scales, zeros = (
        operation.apply(tuple(getattr(weight, part) for weight in weights)) for part in ("codes", "scales", "zeros")
    )
    return tuple(
        GptqWeight(*parts, first.group_index, first.bits, first.format)
        for parts in zip(codes, scales, zeros, strict=True)
    )


def _all_equal(values: Sequence[object]) -> bool:
    return all(value == values[0] for value in values)

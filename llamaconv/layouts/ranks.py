"""One tensor for several tensor-parallel ranks: in equal parts, or a copy for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llamaconv.layouts.operations import Operation, cat, require

__all__ = ["Divide", "Replicate"]


@dataclass(frozen=True)
class Divide:
    """A tensor in equal parts, one for each tensor-parallel rank.

    Attributes:
        parts: How many.
        axis: 0 for output features, 1 for input features.
    """

    parts: int
    axis: int
    takes: ClassVar = 1

    @property
    def gives(self) -> int:
        return self.parts

    @property
    def moves_rows(self) -> bool:
        return self.axis == 0

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, axes=self.axis + 1)
        (whole,) = tensors
        size, remainder = divmod(whole.shape[self.axis], self.parts)
        if remainder:
            raise ValueError(f"{whole.shape[self.axis]} along axis {self.axis} are not {self.parts} equal parts")
        parts = whole.split([size] * self.parts, self.axis)
        return tuple(part.clone(memory_format=torch.contiguous_format) for part in parts)

    def inverse(self) -> Operation:
        return _Join(self)

    def __str__(self) -> str:
        return f"divide {'columns' if self.axis else 'rows'} by {self.parts}"


@dataclass(frozen=True)
class _Join:
    """The inverse of :class:`Divide`."""

    forward: Divide
    gives: ClassVar = 1

    @property
    def takes(self) -> int:
        return self.forward.parts

    @property
    def moves_rows(self) -> bool:
        return self.forward.moves_rows

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, axes=self.forward.axis + 1)
        _require_one_shape(tensors, "parts")
        return (cat(tensors, self.forward.axis),)

    def inverse(self) -> Divide:
        return self.forward

    def __str__(self) -> str:
        return f"join {self.forward.parts} parts by {'columns' if self.forward.axis else 'rows'}"


@dataclass(frozen=True)
class Replicate:
    """The same tensor several times: a norm for every rank, an embedding that is the head as well.

    Attributes:
        copies: How many.
    """

    copies: int
    takes: ClassVar = 1
    moves_rows: ClassVar = True

    @property
    def gives(self) -> int:
        return self.copies

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, axes=0)
        return tensors * self.copies

    def inverse(self) -> Operation:
        return _First(self)

    def __str__(self) -> str:
        return f"{self.copies} copies"


@dataclass(frozen=True)
class _First:
    """The inverse of :class:`Replicate`. That the others are copies of the first is not looked at here."""

    forward: Replicate
    gives: ClassVar = 1
    moves_rows: ClassVar = True

    @property
    def takes(self) -> int:
        return self.forward.copies

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, axes=0)
        _require_one_shape(tensors, "copies")
        return tensors[:1]

    def inverse(self) -> Replicate:
        return self.forward

    def __str__(self) -> str:
        return f"one of {self.forward.copies} copies"


def _require_one_shape(tensors: Sequence[Tensor], what: str) -> None:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError(f"{what} of different shapes, {', '.join(str(list(t.shape)) for t in tensors)}")

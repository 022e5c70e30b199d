"""The order of the rows of queries, keys and values: operations that know of heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llamaconv.layouts.operations import Operation, cat, require

__all__ = ["Interleave", "Rotary"]


@dataclass(frozen=True)
class Rotary:
    """The order of a head's rows: rotated pairs side by side (Meta) or in two halves (Hugging Face).

    Source: Meta's ``apply_rotary_emb`` on complex pairs against transformers' ``rotate_half``.

    Attributes:
        heads: n; of keys, the number of key-value heads.
        to_pairs: From halves ``view(n, 2, d/2)`` to pairs ``view(n, d/2, 2)``, or the other way.
    """

    heads: int
    to_pairs: bool
    takes: ClassVar = 1
    gives: ClassVar = 1
    moves_rows: ClassVar = True

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes)
        (tensor,) = tensors
        rows, *rest = tensor.shape
        if rows % (2 * self.heads):
            raise ValueError(f"{rows} rows are no {self.heads} heads of pairs")
        half = rows // self.heads // 2
        split = (2, half) if self.to_pairs else (half, 2)
        return (tensor.reshape(self.heads, *split, *rest).transpose(1, 2).reshape(tensor.shape),)

    def inverse(self) -> Rotary:
        return Rotary(self.heads, not self.to_pairs)

    def __str__(self) -> str:
        return f"rotary of {self.heads} heads to {'pairs' if self.to_pairs else 'halves'}"


@dataclass(frozen=True)
class Interleave:
    """Queries, keys and values group by group, as litgpt kept them before December 2024.

    ``[g*d*K, ...], [d*K, ...], [d*K, ...] -> [(g + 2)*d*K, ...]``: for each of K groups its g query heads, its key head
    and its value head, each d rows.

    Attributes:
        groups: K, key-value heads.
        queries: g, query heads per group.
        head_dim: d.
    """

    groups: int
    queries: int
    head_dim: int
    takes: ClassVar = 3
    gives: ClassVar = 1
    moves_rows: ClassVar = True

    @property
    def _parts(self) -> tuple[int, int, int]:
        return self.queries * self.head_dim, self.head_dim, self.head_dim

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, rows=tuple(self.groups * part for part in self._parts))
        shaped = [
            tensor.reshape(self.groups, part, *tensor.shape[1:])
            for tensor, part in zip(tensors, self._parts, strict=True)
        ]
        return (cat(shaped, 1).flatten(0, 1),)

    def inverse(self) -> Operation:
        return _Deinterleave(self)

    def __str__(self) -> str:
        return f"interleave {self.groups} groups"


@dataclass(frozen=True)
class _Deinterleave:
    forward: Interleave
    takes: ClassVar = 1
    gives: ClassVar = 3
    moves_rows: ClassVar = True

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parts = self.forward._parts
        require(tensors, self.takes, rows=(self.forward.groups * sum(parts),))
        (whole,) = tensors
        grouped = whole.reshape(self.forward.groups, sum(parts), *whole.shape[1:])
        copies = (part.clone(memory_format=torch.contiguous_format) for part in grouped.split(parts, 1))
        return tuple(part.flatten(0, 1) for part in copies)

    def inverse(self) -> Interleave:
        return self.forward

    def __str__(self) -> str:
        return f"take {self.forward.groups} groups apart"

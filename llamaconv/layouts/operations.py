"""What happens to tensors between two layouts: pure, invertible, and at home on the meta device.

An operation maps a tuple of tensors to a tuple of tensors; ``operation.inverse().apply(operation.apply(x))`` is ``x``,
bit for bit. They move whole rows (slices along axis 0, the output features) and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Chain", "Concat", "Identity", "Interleave", "Operation", "Pad", "Parallel", "Rotary"]


class Operation(Protocol):
    """A bijection between tuples of tensors of fixed shapes."""

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The tensors on the other side; meta tensors give meta tensors of the right shapes.

        Raises:
            ValueError: Shapes that the operation cannot take.
        """
        ...

    def inverse(self) -> Operation:
        """The way back."""
        ...


@dataclass(frozen=True)
class Identity:
    """Another name, the same bytes."""

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tensors

    def inverse(self) -> Identity:
        return self


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

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self._permuted(tensor) for tensor in tensors)

    def _permuted(self, tensor: Tensor) -> Tensor:
        rows, *rest = tensor.shape
        if rows % (2 * self.heads):
            raise ValueError(f"{rows} rows are no {self.heads} heads of pairs")
        half = rows // self.heads // 2
        split = (2, half) if self.to_pairs else (half, 2)
        return tensor.reshape(self.heads, *split, *rest).transpose(1, 2).reshape(tensor.shape)

    def inverse(self) -> Rotary:
        return Rotary(self.heads, not self.to_pairs)


@dataclass(frozen=True)
class Concat:
    """Several tensors one below the other: ``[(rows, ...), ...] -> [sum(rows), ...]``.

    Attributes:
        rows: Of each part, in order.
    """

    rows: tuple[int, ...]

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = tuple(tensor.shape[0] for tensor in tensors)
        if found != self.rows:
            raise ValueError(f"parts of {found} rows where {self.rows} belong")
        return (torch.cat(tensors),)

    def inverse(self) -> Operation:
        return _Split(self.rows)


@dataclass(frozen=True)
class _Split:
    """The inverse of :class:`Concat`: each part a copy, so that none keeps the whole alive."""

    rows: tuple[int, ...]

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (whole,) = tensors
        if whole.shape[0] != sum(self.rows):
            raise ValueError(f"{whole.shape[0]} rows where {' + '.join(map(str, self.rows))} belong")
        return tuple(part.clone() for part in whole.split(self.rows))

    def inverse(self) -> Concat:
        return Concat(self.rows)


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

    @property
    def _parts(self) -> tuple[int, int, int]:
        return self.queries * self.head_dim, self.head_dim, self.head_dim

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shaped = [
            tensor.reshape(self.groups, part, *tensor.shape[1:])
            for tensor, part in zip(tensors, self._parts, strict=True)
        ]
        return (torch.cat(shaped, 1).flatten(0, 1),)

    def inverse(self) -> Operation:
        return _Deinterleave(self)


@dataclass(frozen=True)
class _Deinterleave:
    forward: Interleave

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (whole,) = tensors
        parts = self.forward._parts
        grouped = whole.reshape(self.forward.groups, sum(parts), *whole.shape[1:])
        copies = (part.clone(memory_format=torch.contiguous_format) for part in grouped.split(parts, 1))
        return tuple(part.reshape(-1, *whole.shape[1:]) for part in copies)

    def inverse(self) -> Interleave:
        return self.forward


@dataclass(frozen=True)
class Pad:
    """Rows of zeros below, up to a multiple of something; they are cut off again.

    Attributes:
        rows: Without them.
        padded: With them.
    """

    rows: int
    padded: int

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        if tensor.shape[0] != self.rows:
            raise ValueError(f"{tensor.shape[0]} rows where {self.rows} belong")
        return (torch.cat([tensor, tensor.new_zeros((self.padded - self.rows, *tensor.shape[1:]))]),)

    def inverse(self) -> Operation:
        return _Unpad(self)


@dataclass(frozen=True)
class _Unpad:
    forward: Pad

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        if tensor.shape[0] != self.forward.padded:
            raise ValueError(f"{tensor.shape[0]} rows where {self.forward.padded} belong")
        return (tensor[: self.forward.rows].clone(),)

    def inverse(self) -> Pad:
        return self.forward


@dataclass(frozen=True)
class Parallel:
    """One operation for each tensor, each from one tensor to one."""

    operations: tuple[Operation, ...]

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = zip(self.operations, tensors, strict=True)
        return tuple(result for operation, tensor in pairs for result in operation.apply((tensor,)))

    def inverse(self) -> Parallel:
        return Parallel(tuple(operation.inverse() for operation in self.operations))


@dataclass(frozen=True)
class Chain:
    """One after the other."""

    operations: tuple[Operation, ...]

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for operation in self.operations:
            tensors = operation.apply(tensors)
        return tensors

    def inverse(self) -> Chain:
        return Chain(tuple(operation.inverse() for operation in reversed(self.operations)))

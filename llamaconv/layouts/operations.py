"""What happens to tensors between two layouts: pure, invertible, and at home on the meta device.

An operation maps a tuple of tensors to a tuple of tensors; ``operation.inverse().apply(operation.apply(x))`` is ``x``,
bit for bit. Most move whole rows (slices along axis 0, the output features) and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

__all__ = [
    "Chain",
    "Concat",
    "Identity",
    "Operation",
    "Pad",
    "Parallel",
    "cat",
    "require",
]


class Operation(Protocol):
    """A bijection between tuples of tensors of fixed shapes; as a string, what it does in a word or two."""

    def __hash__(self) -> int: ...

    @property
    def takes(self) -> int:
        """How many tensors it is applied to."""
        ...

    @property
    def gives(self) -> int:
        """How many tensors come out."""
        ...

    @property
    def moves_rows(self) -> bool:
        """Whether each row of a result is a row of some input, whole, or zeros."""
        ...

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The tensors on the other side; meta tensors give meta tensors of the right shapes.

        Raises:
            ValueError: Shapes that the operation cannot take, or another number of tensors.
        """
        ...

    def inverse(self) -> Operation:
        """The way back."""
        ...


@dataclass(frozen=True)
class Identity:
    """Another name, the same bytes."""

    takes: ClassVar = 1
    gives: ClassVar = 1
    moves_rows: ClassVar = True

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, axes=0)
        return tensors

    def inverse(self) -> Identity:
        return self

    def __str__(self) -> str:
        return "as it is"


@dataclass(frozen=True)
class Concat:
    """Several tensors one below the other: ``[(rows, ...), ...] -> [sum(rows), ...]``.

    Attributes:
        rows: Of each part, in order.
    """

    rows: tuple[int, ...]
    gives: ClassVar = 1
    moves_rows: ClassVar = True

    @property
    def takes(self) -> int:
        return len(self.rows)

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, rows=self.rows)
        return (cat(tensors),)

    def inverse(self) -> Operation:
        return _Split(self.rows)

    def __str__(self) -> str:
        return "concatenate"


@dataclass(frozen=True)
class _Split:
    """The inverse of :class:`Concat`: each part a copy, so that none keeps the whole alive."""

    rows: tuple[int, ...]
    takes: ClassVar = 1
    moves_rows: ClassVar = True

    @property
    def gives(self) -> int:
        return len(self.rows)

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes)
        (whole,) = tensors
        if whole.shape[0] != sum(self.rows):
            raise ValueError(f"{whole.shape[0]} rows where {' + '.join(map(str, self.rows))} belong")
        return tuple(part.clone() for part in whole.split(self.rows))

    def inverse(self) -> Concat:
        return Concat(self.rows)

    def __str__(self) -> str:
        return "split"


@dataclass(frozen=True)
class Pad:
    """Rows of zeros below, up to a multiple of something; they are cut off again.

    Attributes:
        rows: Without them.
        padded: With them.
    """

    rows: int
    padded: int
    takes: ClassVar = 1
    gives: ClassVar = 1
    moves_rows: ClassVar = True

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, rows=(self.rows,))
        (tensor,) = tensors
        return (cat((tensor, tensor.new_zeros((self.padded - self.rows, *tensor.shape[1:])))),)

    def inverse(self) -> Operation:
        return _Unpad(self)

    def __str__(self) -> str:
        return f"pad {self.rows} rows to {self.padded}" if self.padded > self.rows else "as it is"


@dataclass(frozen=True)
class _Unpad:
    forward: Pad
    takes: ClassVar = 1
    gives: ClassVar = 1
    moves_rows: ClassVar = True

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, rows=(self.forward.padded,))
        (tensor,) = tensors
        return (tensor[: self.forward.rows].clone(),)

    def inverse(self) -> Pad:
        return self.forward

    def __str__(self) -> str:
        return f"cut {self.forward.padded} rows to {self.forward.rows}"


@dataclass(frozen=True)
class Parallel:
    """One operation beside the other, each with as many of the tensors as it takes."""

    operations: tuple[Operation, ...]

    @property
    def takes(self) -> int:
        return sum(operation.takes for operation in self.operations)

    @property
    def gives(self) -> int:
        return sum(operation.gives for operation in self.operations)

    @property
    def moves_rows(self) -> bool:
        return all(operation.moves_rows for operation in self.operations)

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        require(tensors, self.takes, axes=0)
        results: list[Tensor] = []
        for operation in self.operations:
            results += operation.apply(tensors[: operation.takes])
            tensors = tensors[operation.takes :]
        return tuple(results)

    def inverse(self) -> Parallel:
        return Parallel(tuple(operation.inverse() for operation in self.operations))

    def __str__(self) -> str:
        words = list(map(str, self.operations))
        return words[0] if set(words) == {str(Identity())} else ", ".join(words)


@dataclass(frozen=True)
class Chain:
    """One after the other."""

    operations: tuple[Operation, ...]

    @property
    def takes(self) -> int:
        return self.operations[0].takes

    @property
    def gives(self) -> int:
        return self.operations[-1].gives

    @property
    def moves_rows(self) -> bool:
        return all(operation.moves_rows for operation in self.operations)

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for operation in self.operations:
            tensors = operation.apply(tensors)
        return tensors

    def inverse(self) -> Chain:
        return Chain(tuple(operation.inverse() for operation in reversed(self.operations)))

    def __str__(self) -> str:
        words = list(map(str, self.operations))
        return "; ".join(word for word in words if word != str(Identity())) or str(Identity())


def cat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """``torch.cat``; of meta tensors without the 75 MB of Python that torch loads for it.

    Raises:
        ValueError: Shapes or dtypes that do not go together.
    """
    first = tensors[0]
    others = {(t.dtype, *t.shape[:axis], -1, *t.shape[axis + 1 :]) for t in tensors}
    if len(others) != 1:
        raise ValueError(f"{', '.join(f'{list(t.shape)} {t.dtype}' for t in tensors)} do not go together")
    if not first.is_meta:
        return torch.cat(tuple(tensors), axis)
    length = sum(tensor.shape[axis] for tensor in tensors)
    return first.new_empty((*first.shape[:axis], length, *first.shape[axis + 1 :]))


def require(tensors: Sequence[Tensor], count: int, *, axes: int = 1, rows: tuple[int, ...] | None = None) -> None:
    """Refuse what an operation cannot be applied to.

    Args:
        tensors: What it is given.
        count: How many it takes.
        axes: How many each must have at least: 1 where rows are moved, 2 where columns are.
        rows: Of each tensor, in order; None if that is not for sure.

    Raises:
        ValueError: Says what is there and what belongs there.
    """
    if len(tensors) != count:
        raise ValueError(f"the tensors are {len(tensors)}, not {count}")
    for tensor in tensors:
        if tensor.ndim < axes:
            raise ValueError(f"a tensor of shape {list(tensor.shape)} has no axis {axes - 1}")
    if rows is None:
        return
    found = tuple(tensor.shape[0] for tensor in tensors)
    if found != rows:
        there, expected = (found[0], rows[0]) if count == 1 else (f"parts of {found}", rows)
        raise ValueError(f"{there} rows where {expected} belong")

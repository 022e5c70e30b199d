"""Where each row of an operation's results comes from, and tensors made that way without running it.

An operation that moves whole rows is applied once to row numbers. What comes out says, for any width and dtype, which
row of which input each row of a result is: long runs of rows are then bytes to copy from file to file, and the rest is
gathered by row, in the memory of the result and one input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from llamaconv.extents import Extent, cut, read_extents
from llamaconv.layouts.operations import Chain, Identity, Operation, Parallel
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["RowMap", "lazily", "row_maps"]

_SHORTEST_RUN = 1 << 16
"""Bytes of a run that is worth a system call of its own."""


@dataclass(frozen=True)
class Run:
    """Rows ``begin`` to ``begin + rows`` of input ``source``, or of nothing (zeros) where that is None."""

    source: int | None
    begin: int
    rows: int


class RowMap:
    """Where the rows of one result come from.

    Args:
        numbers: int64 [rows]: 0 for a row of zeros, else which of all inputs' rows it is, where input i begins at
            ``bases[i]``.
        bases: Ascending; between the last row of one input and the first of the next a number is left out.
    """

    def __init__(self, numbers: Tensor, bases: Sequence[int]) -> None:
        self._numbers = numbers
        self._bases = tuple(bases)
        breaks = (numbers.diff() != 1).nonzero().flatten() + 1
        self._starts = [0, *breaks.tolist()] if len(numbers) else []
        self.sources = tuple(
            index
            for index in range(len(bases))
            if bool(((numbers >= bases[index]) & (numbers < self._end(index))).any())
        )

    def _end(self, source: int) -> int:
        return self._bases[source + 1] if source + 1 < len(self._bases) else 1 << 62

    @property
    def run_count(self) -> int:
        """How many runs of consecutive rows there are."""
        return len(self._starts)

    def runs(self) -> list[Run]:
        """The runs, in the result's order."""
        first = self._numbers[self._starts].tolist()
        ends = [*self._starts[1:], len(self._numbers)]
        found = []
        for number, start, end in zip(first, self._starts, ends, strict=True):
            source = next((i for i in reversed(range(len(self._bases))) if self._bases[i] <= number), None)
            begin = 0 if source is None else number - self._bases[source]
            found.append(Run(source, begin, end - start))
        return found

    def rows_from(self, source: int) -> tuple[Tensor, Tensor]:
        """The result's rows that come from an input, and which of its rows they are: int64 [n] each."""
        chosen = (self._numbers >= self._bases[source]) & (self._numbers < self._end(source))
        positions = chosen.nonzero().flatten()
        return positions, self._numbers[positions] - self._bases[source]


@lru_cache(maxsize=16)
def row_maps(operation: Operation, rows: tuple[int, ...]) -> tuple[RowMap, ...]:
    """For each result of an operation that moves rows, where its rows come from; made once for all layers.

    Args:
        operation: What is done.
        rows: Of each input.

    Raises:
        ValueError: The operation cannot take inputs of so many rows.
    """
    bases = [1 + base for base in accumulate((count + 1 for count in rows), initial=0)][: len(rows)]
    numbers = tuple(torch.arange(base, base + count, device="cpu") for base, count in zip(bases, rows, strict=True))
    return tuple(RowMap(result, bases) for result in operation.apply(numbers))


def lazily(operation: Operation, inputs: Sequence[LazyTensor], names: Sequence[str]) -> tuple[LazyTensor, ...]:
    """The results of an operation, called ``names``, not read yet.

    Where an operation moves rows, a result takes the memory of itself and one input while it is read, and it has
    extents if they are few enough and its inputs have them.

    Raises:
        ValueError: The operation cannot take the inputs' shapes.
    """
    metas = tuple(torch.empty(lazy.spec.shape, dtype=lazy.spec.dtype, device="meta") for lazy in inputs)
    specs = [TensorSpec.of(name, meta) for name, meta in zip(names, operation.apply(metas), strict=True)]
    if _does_nothing(operation):
        return tuple(replace(lazy, spec=spec) for lazy, spec in zip(inputs, specs, strict=True))
    if not operation.moves_rows or not all(lazy.spec.shape for lazy in inputs):
        all_of_it = sum(lazy.spec.nbytes for lazy in inputs) + sum(spec.nbytes for spec in specs)
        extra = all_of_it + max(lazy.extra_bytes for lazy in inputs)
        return tuple(
            LazyTensor(spec, partial(_apply, operation, inputs, index), extra_bytes=extra - spec.nbytes)
            for index, spec in enumerate(specs)
        )
    maps = row_maps(operation, tuple(lazy.spec.shape[0] for lazy in inputs))
    return tuple(_moved(spec, rows, inputs) for spec, rows in zip(specs, maps, strict=True))


def _does_nothing(operation: Operation) -> bool:
    if isinstance(operation, Chain | Parallel):
        return all(map(_does_nothing, operation.operations))
    return isinstance(operation, Identity)


def _apply(operation: Operation, inputs: Sequence[LazyTensor], index: int) -> Tensor:
    return operation.apply(tuple(lazy.read() for lazy in inputs))[index].contiguous()


def _moved(spec: TensorSpec, rows: RowMap, inputs: Sequence[LazyTensor]) -> LazyTensor:
    extents = _extents(spec, rows, inputs)
    if extents:
        return LazyTensor(spec, partial(_read, spec, extents), extents)
    used = [inputs[source] for source in rows.sources]
    extra = max((lazy.spec.nbytes if lazy.extents else lazy.peak_bytes for lazy in used), default=0)
    return LazyTensor(spec, partial(_gather, spec, rows, inputs), extra_bytes=extra)


def _read(spec: TensorSpec, extents: Sequence[Extent]) -> Tensor:
    return read_extents(extents).view(spec.dtype).reshape(spec.shape)


def _extents(spec: TensorSpec, rows: RowMap, inputs: Sequence[LazyTensor]) -> tuple[Extent, ...]:
    """Where the result's bytes lie, if it is worth while to get them from there."""
    if not spec.nbytes or (rows.run_count > 1 and spec.nbytes // rows.run_count < _SHORTEST_RUN):
        return ()
    width = spec.nbytes // spec.shape[0]
    extents: list[Extent] = []
    for run in rows.runs():
        if run.source is None or not inputs[run.source].extents:
            return ()
        extents += cut(inputs[run.source].extents, run.begin * width, run.rows * width)
    return tuple(extents)


def _gather(spec: TensorSpec, rows: RowMap, inputs: Sequence[LazyTensor]) -> Tensor:
    """The result, its rows put where they belong one input after the other, as bytes: any dtype will do."""
    width = prod(spec.shape[1:]) * spec.dtype.itemsize
    result = torch.zeros((spec.shape[0], width), dtype=torch.uint8, device="cpu")
    for source in rows.sources if width else ():
        _place(result, inputs[source], *rows.rows_from(source))
    return result.view(-1).view(spec.dtype).reshape(spec.shape)


def _place(result: Tensor, lazy: LazyTensor, positions: Tensor, numbers: Tensor) -> None:
    """Put rows ``numbers`` of an input to ``positions`` of the result; only what lies between them is read."""
    width, first = result.shape[1], int(numbers.min())
    count = int(numbers.max()) + 1 - first
    if lazy.extents:
        stored = read_extents(cut(lazy.extents, first * width, count * width)).view(count, width)
    else:
        stored = lazy.read().reshape(-1).view(torch.uint8).view(-1, width)[first : first + count]
    start = int(positions[0])
    if bool((positions.diff() == 1).all()):
        torch.index_select(stored, 0, numbers - first, out=result[start : start + len(positions)])
    else:
        result.index_copy_(0, positions, stored.index_select(0, numbers - first))

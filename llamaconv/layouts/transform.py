"""What a conversion does with the tensors of one rule: bytes to copy where they stay as they are, else new tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from llamaconv.casts import Loss, cast
from llamaconv.extents import Extent
from llamaconv.layouts.rows import lazily
from llamaconv.layouts.rules import Rule, local_specs
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["Ledger", "Rearrange"]


class Ledger(Protocol):
    """Where losses are written down."""

    @property
    def losses(self) -> list[Loss]: ...


@dataclass(frozen=True)
class Rearrange:
    """Apply a rule's operation.

    Attributes:
        rule: From the names that are read to those that are written.
        dtype: Of floating-point tensors in the output, None for each one's own.
    """

    rule: Rule
    dtype: torch.dtype | None

    def writes(self, hub: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        """What it will yield.

        Raises:
            ValueError: The operation cannot take the tensors.
        """
        return tuple(self._stored(spec) for spec in local_specs([self.rule], hub).values())

    def peak_bytes(self, inputs: Sequence[LazyTensor]) -> int:
        """The most memory it takes; none where bytes go from file to file."""
        if self._at_once:
            read = sum(lazy.spec.nbytes for lazy in inputs)
            written = self.writes({lazy.spec.name: lazy.spec for lazy in inputs})
            cast = max(spec.nbytes for spec in written) if self.dtype else 0
            return 2 * read + max(cast, *(lazy.extra_bytes for lazy in inputs))
        peak = 0
        for made in lazily(self.rule.operation, inputs, self.rule.local):
            if self._casts(made.spec):
                peak = max(peak, made.peak_bytes, made.spec.nbytes + self._stored(made.spec).nbytes)
            elif not made.extents:
                peak = max(peak, made.peak_bytes)
        return peak

    @property
    def _at_once(self) -> bool:
        """Whether all results come from one reading of the inputs."""
        return not self.rule.operation.moves_rows and self.rule.operation.gives > 1

    def __call__(
        self, source: Mapping[str, LazyTensor], stream: Ledger
    ) -> Iterator[tuple[str, Tensor | tuple[Extent, ...]]]:
        inputs = [source[name] for name in self.rule.hub]
        if self._at_once:
            tensors = self.rule.operation.apply(tuple(lazy.read() for lazy in inputs))
            for name, tensor in zip(self.rule.local, tensors, strict=True):
                yield name, self._cast(name, tensor, stream)
            return
        for lazy in lazily(self.rule.operation, inputs, self.rule.local):
            if lazy.extents and not self._casts(lazy.spec):
                yield lazy.spec.name, lazy.extents
            else:
                yield lazy.spec.name, self._cast(lazy.spec.name, lazy.read(), stream)

    def _casts(self, spec: TensorSpec) -> bool:
        return self.dtype is not None and spec.dtype.is_floating_point and spec.dtype != self.dtype

    def _stored(self, spec: TensorSpec) -> TensorSpec:
        return spec if self.dtype is None or not self._casts(spec) else replace(spec, dtype=self.dtype)

    def _cast(self, name: str, tensor: Tensor, stream: Ledger) -> Tensor:
        result, loss = cast(name, tensor, self.dtype)
        if loss:
            stream.losses.append(loss)
        return result

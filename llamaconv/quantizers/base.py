"""What a quantizer is: it says what it will store, computes it, and reads it back; a dequantizer only reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor

from llamaconv.quantizers.hessian import Factor
from llamaconv.tensors import TensorSpec

__all__ = ["Dequantizer", "Map", "QuantizedWeight", "Quantizer", "StoredWeight"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Map(Protocol):
    """Applies a function to items, possibly concurrently; results in the items' order."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]: ...


class StoredWeight(Protocol):
    """The weight [N out, K in] of a linear layer, as read from a quantized checkpoint."""

    def dequantize(self) -> Tensor:
        """The weight that the stored tensors stand for: [N, K] float32."""
        ...


class QuantizedWeight(StoredWeight, Protocol):
    """The weight [N out, K in] of a linear layer, quantized."""

    def tensors(self) -> dict[str, Tensor]:
        """What the checkpoint stores, by the suffix that follows the layer's name (``qweight``)."""
        ...

    def rows(self, part: slice) -> QuantizedWeight:
        """Some of the rows."""
        ...


class Dequantizer(Protocol):
    """One way to read the quantized weights of linear layers."""

    @property
    def mode(self) -> str:
        """Its name, on the command line if it can be written as well (``gptq.int4``)."""
        ...

    @property
    def bits(self) -> int:
        """Width of a code."""
        ...

    @property
    def marker(self) -> str:
        """The suffix whose presence says that a layer is quantized."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """All that a quantized layer may store, the marker among them; a bias is not."""
        ...

    def read(self, tensors: Mapping[str, Tensor]) -> StoredWeight:
        """The weight that a layer's tensors, by suffix, stand for.

        Raises:
            InputError: They stand for none; the message does not name the layer.
        """
        ...


class Quantizer(Dequantizer, Protocol):
    """One way to quantize the weights of linear layers."""

    @property
    def group_size(self) -> int:
        """Columns that share a scale, -1 for all of them."""
        ...

    @property
    def calibrated(self) -> bool:
        """Whether it needs the Hessian of each layer's inputs."""
        ...

    def faults(self, weight: TensorSpec) -> list[str]:
        """Why this weight cannot be quantized, one line each; empty if it can."""
        ...

    def specs(self, layer: str, weight: TensorSpec) -> tuple[TensorSpec, ...]:
        """What :meth:`QuantizedWeight.tensors` will hold, under full names."""
        ...

    def quantize(self, weight: Tensor, factor: Factor | None, map: Map) -> QuantizedWeight:
        """Quantize ``weight`` [N, K] float32; ``factor`` is there if and only if the quantizer is calibrated."""
        ...

    def read(self, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        """The inverse of :meth:`QuantizedWeight.tensors`."""
        ...

    def config(self) -> dict[str, Any]:
        """config.json's ``quantization_config``, without what depends on the model."""
        ...

"""A quantized checkpoint seen as the dense one that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from llamaconv.errors import CheckpointError, InputError
from llamaconv.layouts.quantized import QuantizedLayer, as_if_dense
from llamaconv.layouts.view import Tensors
from llamaconv.model.dense import cast, read_finite
from llamaconv.quantizers.base import Dequantizer
from llamaconv.quantizers.bnb4 import stored_shape
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["DenseView"]


class DenseView:
    """Another reader's tensors, each quantized layer as its dense weight, made when it is read.

    Args:
        reader: The stored tensors.
        dequantizer: What its ``layers`` are stored with; may be None if there are none, or none is ever read.
        layers: Those that are stored quantized. One whose parts do not go together has no weight.
        dtype: Of the weights that are dequantized; whatever is dense is handed on as it is, with its extents.

    Attributes:
        specs: The tensors.
        files: The reader's.

    Raises:
        CheckpointError: The data that alone gives a weight's shape (of bitsandbytes' 4 bits) is damaged; all such
            layers are named.
    """

    def __init__(
        self,
        reader: Tensors,
        dequantizer: Dequantizer | None,
        layers: Sequence[QuantizedLayer],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._reader = reader
        self._dequantizer = dequantizer
        self._layers = {layer.weight.name: layer for layer in layers if layer.weight is not None}
        specs = dict(as_if_dense(reader.specs, layers))
        specs |= {name: replace(specs[name], dtype=dtype) for name in self._layers}
        specs |= self._measured(specs)
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self.files = reader.files

    def _measured(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """The weights whose shapes the headers do not tell."""
        found, faults = {}, []
        for name, layer in self._layers.items():
            if len(specs[name].shape) != 2:
                try:
                    shape = stored_shape({suffix: self._reader[part] for suffix, part in _parts(layer).items()})
                    found[name] = replace(specs[name], shape=shape)
                except CheckpointError as error:
                    faults.append(_named(layer, error))
        if faults:
            raise CheckpointError("\n".join(faults), hint="The checkpoint is damaged: get it again from its source.")
        return found

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor called ``name``, not read yet.

        Reading a dequantized weight raises NotFiniteError where a part of it has NaN or Inf, InputError where its
        parts' data contradict each other, and NumericalError where the dtype asked for overflows.

        Raises:
            KeyError: There is none of that name.
        """
        spec = self.specs[name]
        if name not in self._layers:
            return self._reader[name]
        # Codes of a byte, float32 values, and a scale and a zero point for each of them while they are multiplied.
        return LazyTensor(spec, partial(self._dequantized, self._layers[name], spec), extra_bytes=13 * spec.numel)

    def _dequantized(self, layer: QuantizedLayer, spec: TensorSpec) -> Tensor:
        if self._dequantizer is None or self._dequantizer.marker != layer.storage.marker:
            raise ValueError(f"{layer.name} is stored as {layer.storage.method}, which is not what it would be read as")
        stored = {suffix: self._reader[part] for suffix, part in _parts(layer).items()}
        codes = stored.pop(layer.storage.codes)
        values = read_finite({lazy.spec.name: lazy for lazy in stored.values()})
        tensors = {suffix: values[lazy.spec.name] for suffix, lazy in stored.items()}
        try:
            weight = self._dequantizer.read({layer.storage.codes: codes.read(), **tensors}).dequantize()
        except InputError as error:
            raise type(error)(_named(layer, error), hint=error.hint) from error
        return cast(spec.name, weight, spec.dtype)


def _parts(layer: QuantizedLayer) -> dict[str, str]:
    """The full names of what a layer stores, by suffix."""
    return {part.removeprefix(f"{layer.name}."): part for part in layer.parts}


def _named(layer: QuantizedLayer, error: InputError) -> str:
    return "\n".join(f"{layer.name}: {line}" for line in error.message.splitlines())

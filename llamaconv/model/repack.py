"""Quantized weights from one layout and packing to another, no code requantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llamaconv.errors import InputError
from llamaconv.layouts.quantized import QuantizedLayer
from llamaconv.layouts.rules import Rule, local_specs
from llamaconv.model.stream import Stream
from llamaconv.quantizers.base import Dequantizer
from llamaconv.quantizers.col_block import ColBlockWeight
from llamaconv.quantizers.packing import CheckpointFormat, GptqWeight
from llamaconv.quantizers.row_moves import through
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["Packing", "Repack"]

Packing = Literal["col-block"] | CheckpointFormat


@dataclass(frozen=True)
class Repack:
    """Take quantized weights through a rule.

    Attributes:
        rule: From the weights that are read to those that are written, under the names they have when dense.
        layers: What is read, by the weight's name.
        dequantizer: Reads it.
        packing: How it is written: lit-llama's, or a format of GPTQ.
    """

    rule: Rule
    layers: Mapping[str, QuantizedLayer]
    dequantizer: Dequantizer
    packing: Packing

    @property
    def reads(self) -> tuple[str, ...]:
        """Full names of what the weights are stored as."""
        return tuple(part for name in self.rule.hub for part in self.layers[name].parts)

    @property
    def writes(self) -> tuple[TensorSpec, ...]:
        """What it will yield."""
        specs = {name: layer.weight for name, layer in self.layers.items() if layer.weight is not None}
        bits = self.dequantizer.bits
        return tuple(
            TensorSpec(f"{name.removesuffix('.weight')}.{suffix}", shape, dtype)
            for name, spec in local_specs([self.rule], specs).items()
            for suffix, shape, dtype in _parts(spec, bits, self._groups, self.packing)
        )

    @property
    def peak_bytes(self) -> int:
        """Codes of a byte each: read, moved, and as 64-bit words while they are packed."""
        return 12 * sum(layer.weight.numel for layer in self.layers.values() if layer.weight is not None)

    @property
    def _groups(self) -> int:
        return next(iter(self.layers.values())).groups or 1

    def __call__(self, source: Mapping[str, LazyTensor], stream: Stream) -> Iterator[tuple[str, Tensor]]:
        moved = through(self.rule.operation, tuple(self._read(self.layers[name], source) for name in self.rule.hub))
        for name, weight in zip(self.rule.local, moved, strict=True):
            stored = ColBlockWeight.from_gptq(weight) if self.packing == "col-block" else weight
            for suffix, tensor in stored.tensors().items():
                yield f"{name.removesuffix('.weight')}.{suffix}", tensor

    def _read(self, layer: QuantizedLayer, source: Mapping[str, LazyTensor]) -> GptqWeight:
        stored = {part.removeprefix(f"{layer.name}."): source[part].read() for part in layer.parts}
        try:
            weight = self.dequantizer.read(stored)
            if isinstance(weight, ColBlockWeight):
                return weight.to_gptq("gptq" if self.packing == "col-block" else self.packing)
        except InputError as error:
            raise type(error)(f"{layer.name}: {error}", hint=error.hint) from error
        assert isinstance(weight, GptqWeight)
        return weight


def _parts(
    spec: TensorSpec, bits: int, groups: int, packing: Packing
) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
    rows, columns = spec.shape
    if packing == "col-block":
        return (
            ("quant_weight", (rows, columns * bits // 8), torch.uint8),
            ("scales", (rows, groups), torch.float32),
            ("zeros", (rows, groups), torch.float32),
        )
    return (
        ("qweight", (columns // 32 * bits, rows), torch.int32),
        ("qzeros", (groups, rows // 32 * bits), torch.int32),
        ("scales", (groups, rows), torch.float16),
        ("g_idx", (columns,), torch.int32),
    )

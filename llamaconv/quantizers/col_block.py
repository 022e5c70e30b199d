"""GPTQ weights as lit-llama keeps them (``ColBlockQuantizedLinear``), and the exact way from and to GPTQ's own format.

Format source: lit-llama 2023-06 ``lit_llama/quantization.py`` and ``quantize/gptq.py``. The code of column c is in byte
``c // (8 / b)``, low bits first. Groups are runs of columns of one size, which the file does not state; lit-llama's
loader takes one group for a row. It copies what it loads into buffers of its own, whatever strides and floating-point
dtype the file has; its quantizer leaves ``quant_weight`` transposed, ``scales`` and ``zeros`` in the weight's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llamaconv.errors import CheckpointError, UnsupportedError
from llamaconv.quantizers.packing import CheckpointFormat, GptqWeight
from llamaconv.tensors import TensorSpec

__all__ = ["COL_BLOCK_BITS", "ColBlock", "ColBlockWeight"]

COL_BLOCK_BITS = (2, 4, 8)
"""Widths whose codes fill bytes."""


@dataclass(frozen=True)
class ColBlockWeight:
    """An [N out, K in] weight as codes on an affine grid, one grid per row and run of K / G columns.

    Attributes:
        codes: [N, K] uint8.
        scales: [N, G] of a floating-point dtype.
        zeros: [N, G] of the same dtype, the code that stands for 0; lit-llama's are whole.
        bits: Width of a code: 2, 4 or 8.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in COL_BLOCK_BITS:
            raise UnsupportedError(
                f"codes of {self.bits} bits do not fill bytes, as lit-llama packs them",
                hint="lit-llama's tensors hold codes of 2, 4 and 8 bits; its loader takes 4 and 8.",
            )
        columns, groups = self.codes.shape[1], self.scales.shape[1]
        if not groups or columns % groups or columns % (8 // self.bits):
            raise _uneven(columns, groups)

    def tensors(self) -> dict[str, Tensor]:
        """``quant_weight`` uint8 [N, K / (8 / bits)]; ``scales`` and ``zeros`` [N, G]."""
        per_byte = 8 // self.bits
        packed = torch.zeros((self.codes.shape[0], self.codes.shape[1] // per_byte), dtype=torch.uint8)
        for place in range(per_byte):
            packed |= self.codes[:, place::per_byte] << (place * self.bits)
        return {"quant_weight": packed, "scales": self.scales.contiguous(), "zeros": self.zeros.contiguous()}

    def rows(self, part: slice) -> ColBlockWeight:
        """Some of the rows, as views."""
        return replace(self, codes=self.codes[part], scales=self.scales[part], zeros=self.zeros[part])

    def dequantize(self) -> Tensor:
        """``(code - zero) * scale``: [N, K] float32."""
        rows, columns = self.codes.shape
        grouped = self.codes.float().reshape(rows, self.scales.shape[1], -1)
        grouped -= self.zeros.float()[:, :, None]
        grouped *= self.scales.float()[:, :, None]
        return grouped.reshape(rows, columns)

    @classmethod
    def from_gptq(cls, weight: GptqWeight) -> ColBlockWeight:
        """The same codes, scales and zero points, the latter two as float32.

        Raises:
            UnsupportedError: Groups are not runs of columns of one size, or the codes are of 3 bits.
        """
        columns, groups = weight.codes.shape[1], weight.scales.shape[1]
        index = weight.group_index.long()
        if len(set(torch.bincount(index, minlength=groups).tolist())) != 1:
            raise _uneven(columns, groups)
        if not torch.equal(index, _in_order(columns, groups)):
            raise UnsupportedError(
                f"the {groups} groups are not runs of columns in their order (act-order), as lit-llama needs them",
                hint="Quantize without act-order, or with one group for each row.",
            )
        return cls(weight.codes, weight.scales.float(), weight.zeros.float(), weight.bits)

    def to_gptq(self, format: CheckpointFormat = "gptq") -> GptqWeight:
        """The same codes, scales and zero points in GPTQ's dtypes; the inverse of :meth:`from_gptq`.

        Raises:
            UnsupportedError: Zero points that are no codes, or scales that float16 does not hold exactly.
        """
        scales = self.scales.half()
        inexact = int((scales.to(self.scales.dtype) != self.scales).sum())
        codes = (self.zeros >= 0) & (self.zeros < 1 << self.bits) & (self.zeros == self.zeros.round())
        odd = codes.numel() - int(codes.sum())
        faults = [
            f"{count} of {codes.numel()} {what}"
            for count, what in ((inexact, "scales are not exact in float16"), (odd, "zero points are no codes"))
            if count
        ]
        if faults:
            raise UnsupportedError(
                f"GPTQ's format does not hold it: {' and '.join(faults)}", hint="Its dense weights can be had."
            )
        index = _in_order(self.codes.shape[1], scales.shape[1]).to(torch.int32)
        return GptqWeight(self.codes, scales, self.zeros.to(torch.uint8), index, self.bits, format)


@dataclass(frozen=True)
class ColBlock:
    """Reads lit-llama's GPTQ weights.

    Args:
        bits: Of a code; a layer's own tensors do not tell.
    """

    bits: int

    marker = "quant_weight"
    suffixes = ("quant_weight", "scales", "zeros")

    @property
    def mode(self) -> str:
        return f"lit-llama.gptq.int{self.bits}"

    def read(self, tensors: Mapping[str, Tensor]) -> ColBlockWeight:
        """The inverse of :meth:`ColBlockWeight.tensors`, whatever the strides.

        Raises:
            CheckpointError: The tensors do not go together.
            UnsupportedError: Groups that are not of one size.
        """
        packed, scales, zeros = (tensors[suffix] for suffix in self.suffixes)
        fits = scales.shape == zeros.shape and packed.shape[:1] == scales.shape[:1]
        grids = scales.dtype == zeros.dtype and scales.is_floating_point()
        if packed.dtype != torch.uint8 or packed.dim() != 2 or scales.dim() != 2 or not (fits and grids):
            specs = ", ".join(str(TensorSpec.of(suffix, tensors[suffix])) for suffix in self.suffixes)
            raise CheckpointError(f"these do not go together: {specs}")
        per_byte = 8 // self.bits
        codes = torch.empty((packed.shape[0], packed.shape[1] * per_byte), dtype=torch.uint8)
        for place in range(per_byte):
            codes[:, place::per_byte] = (packed >> (place * self.bits)) & ((1 << self.bits) - 1)
        return ColBlockWeight(codes, scales, zeros, self.bits)


def _uneven(columns: int, groups: int) -> UnsupportedError:
    return UnsupportedError(
        f"{columns} columns are not {groups} groups of one size in whole bytes",
        hint="Quantize with a group size that divides the columns, or with one group for each row.",
    )


def _in_order(columns: int, groups: int) -> Tensor:
    """The group of each column where groups are runs: int64 [K]."""
    return torch.arange(columns) // -(-columns // groups)

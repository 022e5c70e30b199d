"""Codes to int32 words and back, and the tensors of the GPTQ checkpoint format (v1 and v2).

Format source: AutoGPTQ 0.7.1 ``qlinear_cuda_old.py`` and GPTQModel 7.6 ``nn_modules/qlinear``; see also
``quantize_config.json``'s ``checkpoint_format``. Codes are packed along K, zero points along N, low bits first, as
one little-endian bit stream: 32 codes of ``b`` bits fill ``b`` words, also where ``b`` does not divide 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from llamaconv.errors import CheckpointError

__all__ = ["CheckpointFormat", "GptqWeight", "pack", "unpack"]

CheckpointFormat = Literal["gptq", "gptq_v2"]

_CODES = 32  # codes that fill a whole number of words, at any width
_WORD = 0xFFFF_FFFF


def pack(codes: Tensor, bits: int, *, along_last: bool = False) -> Tensor:
    """Pack along the first axis, or along the last.

    Args:
        codes: [R, C] uint8, each below ``2**bits``; the packed axis a multiple of 32.
        bits: 1 to 8.

    Returns:
        [R / 32 * bits, C] int32, or [R, C / 32 * bits].
    """
    if along_last:
        return pack(codes.T, bits).T.contiguous()
    groups = codes.reshape(-1, _CODES, codes.shape[1])
    words = torch.zeros((groups.shape[0], bits, codes.shape[1]), dtype=torch.int64, device=codes.device)
    for position in range(_CODES):
        word, shift = divmod(position * bits, 32)
        code = groups[:, position].to(torch.int64)
        words[:, word] |= (code << shift) & _WORD
        if shift + bits > 32:  # the code straddles two words
            words[:, word + 1] |= code >> (32 - shift)
    return _as_int32(words).reshape(-1, codes.shape[1])


def unpack(words: Tensor, bits: int, *, along_last: bool = False) -> Tensor:
    """Inverse of :func:`pack`: [R / 32 * bits, C] int32 -> [R, C] uint8."""
    if along_last:
        return unpack(words.T, bits).T.contiguous()
    groups = words.reshape(-1, bits, words.shape[1])
    codes = torch.empty((groups.shape[0], _CODES, words.shape[1]), dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for position in range(_CODES):
        word, shift = divmod(position * bits, 32)
        code = (groups[:, word].to(torch.int64) & _WORD) >> shift
        if shift + bits > 32:
            code |= (groups[:, word + 1].to(torch.int64) & _WORD) << (32 - shift)
        codes[:, position] = (code & mask).to(torch.uint8)
    return codes.reshape(-1, words.shape[1])


@dataclass(frozen=True)
class GptqWeight:
    """An [N out, K in] weight as codes on an affine grid, one grid per row and group of columns.

    Attributes:
        codes: [N, K] uint8, columns in the order of the original weight.
        scales: [N, G] float16.
        zeros: [N, G] uint8, the code that stands for 0.
        group_index: [K] int32, the group of each column (``g_idx``).
        bits: Width of a code.
        format: How zero points are stored: v1 (``"gptq"``) as ``zero - 1``, v2 as they are.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group_index: Tensor
    bits: int
    format: CheckpointFormat = "gptq"

    def rows(self, part: slice) -> GptqWeight:
        """Some of the rows, as views."""
        return replace(self, codes=self.codes[part], scales=self.scales[part], zeros=self.zeros[part])

    def dequantize(self) -> Tensor:
        """``(code - zero) * scale``: [N, K] float32."""
        index = self.group_index.long()
        weight = self.codes.float()
        weight -= self.zeros.float()[:, index]
        weight *= self.scales.float()[:, index]
        return weight

    def tensors(self) -> dict[str, Tensor]:
        """``qweight`` [K/32*bits, N] int32, ``qzeros`` [G, N/32*bits] int32, ``scales`` [G, N] float16,
        ``g_idx`` [K] int32.

        Raises:
            ValueError: A zero point of 0, which v1 cannot store.
        """
        zeros = self.zeros
        if self.format == "gptq":
            if bool((zeros == 0).any()):
                raise ValueError("the gptq v1 format cannot store a zero point of 0")
            zeros = zeros - 1
        return {
            "qweight": pack(self.codes.T, self.bits),
            "qzeros": pack(zeros.T, self.bits, along_last=True),
            "scales": self.scales.T.contiguous(),
            "g_idx": self.group_index.to(torch.int32),
        }

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], bits: int, format: CheckpointFormat = "gptq") -> GptqWeight:
        """The inverse of :meth:`tensors`. Without ``g_idx``, as old writers leave it, groups follow each other.

        Raises:
            CheckpointError: ``g_idx`` names a group that is not there.
        """
        zeros = unpack(tensors["qzeros"], bits, along_last=True).T.contiguous()
        if format == "gptq":
            # Writers that let a zero point of 0 through stored all ones; adding 1 wraps it back.
            zeros = (zeros + 1) & ((1 << bits) - 1)
        codes, groups = unpack(tensors["qweight"], bits).T.contiguous(), zeros.shape[1]
        columns = torch.arange(codes.shape[1], dtype=torch.int32)
        index = tensors.get("g_idx", columns // -(-len(columns) // groups))
        if not bool(((index >= 0) & (index < groups)).all()):
            raise CheckpointError(f"g_idx names groups from {int(index.min())} to {int(index.max())} of {groups}")
        return cls(codes, tensors["scales"].T.contiguous(), zeros, index, bits, format)


def _as_int32(words: Tensor) -> Tensor:
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)

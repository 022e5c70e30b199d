"""LLM.int8 (arXiv 2208.07339) as bitsandbytes stores it: one absolute maximum per row.

The bytes come from bitsandbytes itself; ``transformers`` casts to float16 first, so we do.
Format source: bitsandbytes 0.50 ``nn/modules.py`` (``Linear8bitLt``), transformers ``integrations/bitsandbytes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamaconv.errors import NumericalError, UnsupportedError
from llamaconv.quantizers.base import Map
from llamaconv.quantizers.hessian import Factor
from llamaconv.tensors import TensorSpec

__all__ = ["Int8Weight", "LlmInt8"]


_ROWS = 256  # rows given to one worker at a time; each row stands alone


@dataclass(frozen=True)
class Int8Weight:
    """``codes`` [N, K] int8 and ``absmax`` [N] float32: the weight is ``codes * absmax / 127``."""

    codes: Tensor
    absmax: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """``weight`` int8, ``SCB`` float32, ``weight_format`` 0 (row-major)."""
        return {"weight": self.codes, "SCB": self.absmax, "weight_format": torch.tensor(0, dtype=torch.uint8)}

    def rows(self, part: slice) -> Int8Weight:
        """Some of the rows, as views."""
        return Int8Weight(self.codes[part], self.absmax[part])

    def dequantize(self) -> Tensor:
        """[N, K] float32."""
        return self.codes.float() * (self.absmax / 127.0)[:, None]


@dataclass(frozen=True)
class LlmInt8:
    """The LLM.int8 quantizer.

    Args:
        threshold: Inputs above it are multiplied in 16 bits at run time (``llm_int8_threshold``).
    """

    threshold: float = 6.0

    mode = "llm.int8"
    bits = 8
    group_size = -1
    calibrated = False
    marker = "SCB"
    suffixes = ("weight", "SCB", "weight_format")

    def faults(self, weight: TensorSpec) -> list[str]:
        return []

    def specs(self, layer: str, weight: TensorSpec) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(f"{layer}.weight", weight.shape, torch.int8),
            TensorSpec(f"{layer}.SCB", weight.shape[:1], torch.float32),
            TensorSpec(f"{layer}.weight_format", (), torch.uint8),
        )

    def quantize(self, weight: Tensor, factor: Factor | None, map: Map) -> Int8Weight:
        """Quantize ``weight`` [N, K]. Needs no statistic.

        Raises:
            NumericalError: A weight overflows float16.
        """
        from bitsandbytes.functional import int8_vectorwise_quant

        rows = weight.shape[0]
        codes, absmax = torch.empty(weight.shape, dtype=torch.int8), torch.empty(rows)

        def quantize_rows(first: int) -> None:
            part = slice(first, first + _ROWS)
            half = weight[part].to(torch.float16)
            if not bool(torch.isfinite(half).all()):
                raise NumericalError(
                    "a weight overflows float16, in which bitsandbytes computes LLM.int8",
                    hint="Leave the layer out with --skip.",
                )
            codes[part], absmax[part], _ = int8_vectorwise_quant(half)

        map(quantize_rows, range(0, rows, _ROWS))
        return Int8Weight(codes, absmax)

    def read(self, tensors: Mapping[str, Tensor]) -> Int8Weight:
        """The inverse of :meth:`Int8Weight.tensors`.

        Raises:
            UnsupportedError: The codes are in a layout of some GPU's.
        """
        form = int(tensors.get("weight_format", torch.tensor(0)))
        if form:
            raise UnsupportedError(f"weight_format {form} is not row-major")
        return Int8Weight(tensors["weight"], tensors["SCB"])

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "load_in_4bit": False,
            "_load_in_8bit": True,
            "_load_in_4bit": False,
            "llm_int8_threshold": self.threshold,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_enable_fp32_cpu_offload": False,
        }

"""From a mode's name, or a checkpoint's ``quantization_config``, to its quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamaconv.errors import UnsupportedError, UsageError
from llamaconv.quantizers.base import Quantizer
from llamaconv.quantizers.gptq import Gptq
from llamaconv.quantizers.grids import AffineGrid, ScaleRule
from llamaconv.quantizers.llm_int8 import LlmInt8
from llamaconv.quantizers.names import MODES

__all__ = ["quantizer_for_mode", "quantizer_of_checkpoint"]


def quantizer_for_mode(
    mode: str,
    *,
    group_size: int = 128,
    symmetric: bool = True,
    act_order: bool = False,
    scales: ScaleRule = "search",
    sweeps: int = 3,
) -> Quantizer:
    """The quantizer of a mode; the settings are those of the ``gptq`` modes.

    Raises:
        UsageError: No such mode, or a group size that no group can have.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}", hint=f"Choose one of {', '.join(MODES)}.")
    if group_size != -1 and group_size < 1:
        raise UsageError(f"a group size of {group_size}", hint="Give a positive size, or -1 for one group per row.")
    if mode == "llm.int8":
        return LlmInt8()
    bits = int(mode.removeprefix("gptq.int"))
    return Gptq(AffineGrid(bits, symmetric, scales), group_size, act_order, sweeps)


def quantizer_of_checkpoint(config: Mapping[str, Any]) -> Quantizer:
    """The quantizer whose tensors a checkpoint with this ``quantization_config`` holds.

    Raises:
        UnsupportedError: A method, width or format that cannot be read.
    """
    method = config.get("quant_method")
    if method == "gptq":
        bits, form = config.get("bits"), config.get("checkpoint_format", "gptq")
        size = config.get("group_size", 128)
        if bits in (2, 3, 4, 8) and form in ("gptq", "gptq_v2") and isinstance(size, int) and (size == -1 or size > 0):
            grid = AffineGrid(int(bits), bool(config.get("sym", True)))
            return Gptq(grid, size, bool(config.get("desc_act", False)), format=form)
        raise UnsupportedError(
            f"GPTQ with bits={bits!r}, group_size={size!r} and checkpoint_format={form!r}",
            hint="2, 3, 4 and 8 bits, groups of 1 or more columns or -1, and the formats gptq and gptq_v2 can be read.",
        )
    if method == "bitsandbytes" and (config.get("load_in_8bit") or config.get("_load_in_8bit")):
        threshold = config.get("llm_int8_threshold", 6.0)
        if isinstance(threshold, int | float):
            return LlmInt8(float(threshold))
        raise UnsupportedError(
            f"LLM.int8 with llm_int8_threshold={threshold!r}", hint="Give the largest input as a number; 6.0 is usual."
        )
    raise UnsupportedError(
        f"quantization_config with quant_method={method!r} cannot be read",
        hint="GPTQ and bitsandbytes LLM.int8 checkpoints can.",
    )

"""From a mode's name to its quantizer, and from a checkpoint's ``quantization_config`` to what reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamaconv.errors import UnsupportedError, UsageError
from llamaconv.quantizers.base import Dequantizer, Quantizer
from llamaconv.quantizers.bnb4 import Bnb4
from llamaconv.quantizers.col_block import COL_BLOCK_BITS, ColBlock
from llamaconv.quantizers.gptqmodel import WORDWISE_BITS, WordwiseGptq
from llamaconv.quantizers.llm_int8 import LlmInt8
from llamaconv.quantizers.names import MODES

if TYPE_CHECKING:  # whatever is no GPTQ does without the kernels
    from llamaconv.quantizers.grids import ScaleRule

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
    from llamaconv.quantizers.gptq import Gptq
    from llamaconv.quantizers.grids import AffineGrid

    bits = int(mode.removeprefix("gptq.int"))
    return Gptq(AffineGrid(bits, symmetric, scales), group_size, act_order, sweeps)


def quantizer_of_checkpoint(config: Mapping[str, Any]) -> Dequantizer:
    """What reads the tensors of a checkpoint with this ``quantization_config``.

    Raises:
        UnsupportedError: A method, width or format that cannot be read.
    """
    # Configurations older than quant_method are bitsandbytes'.
    eight, four = (any(config.get(f"{own}load_in_{bits}bit") for own in ("", "_")) for bits in (8, 4))
    method = config.get("quant_method") or ("bitsandbytes" if eight or four else None)
    if method == "gptq":
        return _gptq(config)
    if method == "bitsandbytes" and eight:
        return _llm_int8(config)
    if method == "bitsandbytes" and four:
        return Bnb4()
    if method == "lit-llama-gptq":
        return _col_block(config)
    raise UnsupportedError(
        f"quantization_config with quant_method={method!r} cannot be read",
        hint="GPTQ and bitsandbytes checkpoints (LLM.int8, NF4, FP4) can.",
    )


def _col_block(config: Mapping[str, Any]) -> ColBlock:
    bits = config.get("bits")
    if isinstance(bits, int) and bits in COL_BLOCK_BITS:
        return ColBlock(bits)
    raise UnsupportedError(f"lit-llama's GPTQ with bits={bits!r}", hint="Codes of 2, 4 and 8 bits can be read.")


def _gptq(config: Mapping[str, Any]) -> Dequantizer:
    from llamaconv.quantizers.gptq import Gptq
    from llamaconv.quantizers.grids import AffineGrid

    bits, form = config.get("bits"), config.get("checkpoint_format", "gptq")
    size, words = config.get("group_size", 128), config.get("pack_dtype", "int32")
    symmetric = bool(config.get("sym", True))
    if bits not in (2, 3, 4, 8) or form not in ("gptq", "gptq_v2") or not _is_group_size(size) or words != "int32":
        packing = "" if words == "int32" else f", packed in {words!r},"
        raise UnsupportedError(
            f"GPTQ with bits={bits!r}, group_size={size!r}{packing} and checkpoint_format={form!r}",
            hint="2, 3, 4 and 8 bits, groups of 1 or more columns or -1, and the formats gptq and gptq_v2 can be read.",
        )
    if form == "gptq" and not symmetric and bits in WORDWISE_BITS and _is_from_gptqmodel(config):
        return WordwiseGptq(int(bits))
    return Gptq(AffineGrid(int(bits), symmetric), size, bool(config.get("desc_act", False)), format=form)


def _is_group_size(size: object) -> bool:
    return isinstance(size, int) and (size == -1 or size > 0)


def _is_from_gptqmodel(config: Mapping[str, Any]) -> bool:
    meta = config.get("meta")
    named = meta.get("quantizer") if isinstance(meta, Mapping) else None
    return any(str(name).startswith("gptqmodel:") for name in (named if isinstance(named, list) else [named]))


def _llm_int8(config: Mapping[str, Any]) -> LlmInt8:
    threshold = config.get("llm_int8_threshold", 6.0)
    if isinstance(threshold, int | float):
        return LlmInt8(float(threshold))
    raise UnsupportedError(
        f"LLM.int8 with llm_int8_threshold={threshold!r}", hint="Give the largest input as a number; 6.0 is usual."
    )

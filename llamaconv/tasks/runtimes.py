"""Which runtimes load what was written, as far as their own source says.

Sources: vLLM ``quantization/gptq_marlin.py`` and ``gptq.py``; transformers 5.23 with optimum 2.3; AutoGPTQ 0.7.1;
GPTQModel 7.6.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamaconv.plan.selection import Selection
from llamaconv.quantizers.base import Quantizer
from llamaconv.quantizers.gptq import Gptq
from llamaconv.tensors import TensorSpec

__all__ = ["runtimes"]


def runtimes(
    quantizer: Quantizer, selection: Selection, specs: Mapping[str, TensorSpec], blocks: tuple[str, ...]
) -> dict[str, str]:
    """For each runtime ``"yes"``, or the fact that keeps it from loading the checkpoint."""
    if not isinstance(quantizer, Gptq):
        return {"transformers": "yes", "bitsandbytes": "yes"}
    uniform = len(set(selection.blocks)) == 1
    bits = quantizer.grid.bits
    return {
        "gptqmodel": "yes",
        "transformers": _first(
            ("it cannot load a quantized lm_head", selection.head is not None),
            ("it cannot skip a layer in some blocks only", not uniform),
        ),
        "auto-gptq": _first(
            ("it cannot skip layers", bool(selection.skipped)),
            ("it cannot load a quantized lm_head", selection.head is not None),
        ),
        "vllm": _first(
            (f"it has no kernel for {bits} bits", bits not in (4, 8)),
            ("its kernels take symmetric grids only", not quantizer.grid.symmetric),
            ("its kernels take groups of 32, 64, 128 or -1", quantizer.group_size not in (-1, 32, 64, 128)),
            (
                "its kernels need outputs in multiples of 64 and inputs in multiples of 128",
                not _marlin(selection, specs, blocks),
            ),
        ),
    }


def _first(*reasons: tuple[str, bool]) -> str:
    return next((reason for reason, holds in reasons if holds), "yes")


def _marlin(selection: Selection, specs: Mapping[str, TensorSpec], blocks: tuple[str, ...]) -> bool:
    shapes = [
        specs[f"{block}.{layer}.weight"].shape
        for block, layers in zip(blocks, selection.blocks, strict=True)
        for layer in layers
    ]
    return all(rows % 64 == 0 and columns % 128 == 0 for rows, columns in shapes)

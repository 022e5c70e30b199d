"""What stands beside quantized weights: config.json patched, quantize_config.json, the model's other files copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llamaconv.config import ModelConfig, with_both_rope_forms
from llamaconv.digests import sha256_file
from llamaconv.model.skeleton import Skeleton
from llamaconv.plan.selection import Selection
from llamaconv.quantizers.base import Quantizer
from llamaconv.sinks.manifest import write_json
from llamaconv.tasks.companions import companions, copy_files
from llamaconv.tasks.runtimes import VLLM_FUSED

__all__ = ["gptq_config", "patched_config", "quantization_config", "write_companions"]


def patched_config(config: ModelConfig, quantization: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The source's config.json with ``quantization_config``, and the rope base in both forms.

    Everything else stays as it was written.
    """
    patched = with_both_rope_forms(config)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        patched |= dict.fromkeys(("dtype", "torch_dtype"), name)
    return patched | {"quantization_config": dict(quantization)}


def quantization_config(
    quantizer: Quantizer, selection: Selection, skeleton: Skeleton, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json's ``quantization_config``: the quantizer's own facts, and how left-out layers are named."""
    config = quantizer.config()
    if config["quant_method"] == "bitsandbytes":
        # transformers leaves the head alone by itself only where no list is given.
        return config | {
            "llm_int8_skip_modules": [
                *([skeleton.head] if selection.head is None and skeleton.head else []),
                *selection.skipped,
            ]
        }
    return gptq_config(config, selection, skeleton.block_names, settings)


def gptq_config(
    config: dict[str, Any], selection: Selection, block_names: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The GPTQ configuration as AutoGPTQ, GPTQModel, vLLM, optimum and transformers read it.

    GPTQModel and vLLM learn from ``dynamic`` which layers are dense. transformers and optimum ignore it and replace
    every linear layer of a block whose name does not end in one of ``modules_in_block_to_quantize``; vLLM takes no
    other layer for quantized either, the head included.
    """
    names = [*dict.fromkeys(sum(selection.blocks, ())), *([selection.head] if selection.head else [])]
    config |= {
        "damp_percent": settings["damping"],
        "lm_head": selection.head is not None,
        "modules_in_block_to_quantize": [[name] for name in names],
        "meta": {"quantizer": [f"llamaconv:{settings['version']}"]},
    }
    if not 0 < settings["damping"] < 1:
        del config["damp_percent"]  # transformers, optimum and AutoGPTQ refuse 0 and 1, and need none
    if selection.skipped:
        dense = [*selection.skipped, *_fused(selection.skipped, block_names)]
        config["dynamic"] = {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in dense}
    return config


def _fused(skipped: Sequence[str], block_names: Sequence[str]) -> Iterator[str]:
    """What vLLM calls the layers it fuses, where all their parts are skipped."""
    for block in block_names:
        for fused, parts in VLLM_FUSED.items():
            if {f"{block}.{part}" for part in parts} <= set(skipped):
                yield f"{block}.{fused}"


def write_companions(source: Path, out: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Write config.json (and quantize_config.json for GPTQ), copy the rest.

    Returns:
        sha256 of each file written, by its name relative to ``out``.
    """
    digests = copy_files(companions(source), source, out)
    written = {"config.json": config}
    quantization = config["quantization_config"]
    if quantization["quant_method"] == "gptq":
        written["quantize_config.json"] = quantization
    for name, content in written.items():
        write_json(out / name, content)
        digests[name] = sha256_file(out / name)
    return dict(sorted(digests.items()))

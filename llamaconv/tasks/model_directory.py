"""The files around the weights: config.json patched, quantize_config.json, tokenizer and generation files copied."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llamaconv.config import ModelConfig, with_both_rope_forms
from llamaconv.digests import sha256_file
from llamaconv.errors import CheckpointError
from llamaconv.model.skeleton import Skeleton
from llamaconv.plan.selection import Selection
from llamaconv.quantizers.base import Quantizer
from llamaconv.sinks.disk import writing
from llamaconv.sinks.manifest import write_json
from llamaconv.tasks.runtimes import VLLM_FUSED

__all__ = ["companions", "gptq_config", "patched_config", "quantization_config", "require_readable", "write_companions"]

# What makes a directory of weights a model: every one that exists is copied.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
)


def companions(directory: Path) -> list[Path]:
    """The files of a model directory that belong to the model whatever its weights are."""
    found = [directory / name for name in _COMPANIONS if (directory / name).is_file()]
    return found + sorted((directory / "additional_chat_templates").glob("*.jinja"))


def require_readable(paths: Sequence[Path]) -> None:
    """Raise before work begins what would stop it at its end.

    Raises:
        CheckpointError: Files that cannot be opened, all of them.
    """
    faults = []
    for path in paths:
        try:
            path.open("rb").close()
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
    if faults:
        raise CheckpointError("\n".join(faults), hint="These files belong to the model and are copied with it.")


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
    written = []
    for path in companions(source):
        target = out / path.relative_to(source)
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        written.append(target)
    write_json(out / "config.json", config)
    written.append(out / "config.json")
    quantization = config["quantization_config"]
    if quantization["quant_method"] == "gptq":
        write_json(out / "quantize_config.json", quantization)
        written.append(out / "quantize_config.json")
    return {str(path.relative_to(out)): sha256_file(path) for path in sorted(written)}

"""Tiny models that the layouts can hold, and what conversions make of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from llamaconv.progress import Report, silent
from llamaconv.tasks.convert import ConvertResult, ConvertSettings, convert
from tests.sources.files import bits

__all__ = [
    "HELD",
    "LLAMA_1",
    "MODELS",
    "NO_TOKENIZER",
    "PACKED",
    "PACKED_STATED",
    "STATED",
    "WARNING",
    "WHOLE",
    "lit_llama_dense",
    "same_bits",
    "stored",
    "to",
]

LLAMA_1: Mapping[str, Any] = MappingProxyType(
    # As wide as lit-llama computes it for a width of 96; the vocabulary needs padding.
    {"num_key_value_heads": 6, "head_dim": 16, "intermediate_size": 256, "rope_theta": 10000.0, "vocab_size": 290}
)
PACKED: Mapping[str, Any] = MappingProxyType({**LLAMA_1, "vocab_size": 288})
"""The same, but that the head's rows too are a multiple of 32, as GPTQ packs them."""
PACKED_STATED: Mapping[str, Any] = MappingProxyType({"heads": 6, "vocab_size": 288})
"""What the user must state of it when he converts from lit-llama's layout."""
WHOLE: Mapping[str, Any] = MappingProxyType({"group_size": -1, "lm_head": True})
"""How lit-llama's loader needs it quantized."""
_SCALED = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "Llama 1": ("llama", LLAMA_1),
        "Llama 1, tied": ("llama", {**LLAMA_1, "tie_word_embeddings": True}),
        "Llama 2": ("llama", {"head_dim": 16}),
        "Llama 3.1": (
            "llama",
            {"head_dim": 16, "rope_theta": 500000.0, "rope_parameters": _SCALED, "max_position_embeddings": 16384},
        ),
        "Llama 3.2": ("llama", {"head_dim": 16, "tie_word_embeddings": True}),
        "Llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
        "Mistral": ("mistral", {"head_dim": 16, "sliding_window": None}),
        "Mistral with a window": ("mistral", {}),
        "Qwen2": ("qwen2", {}),
        "Qwen3": ("qwen3", {"attention_bias": False}),
        "Mixtral": ("mixtral", {}),
    }
)
"""Family and changes to its config, as ``write_model`` takes them."""

HELD: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Llama 1": ("litgpt", "lit-llama", "meta"),
        "Llama 1, tied": ("litgpt", "lit-llama", "meta"),
        "Llama 2": ("litgpt", "meta"),
        "Llama 3.1": ("litgpt", "meta"),
        "Llama 3.2": ("litgpt", "meta"),
        "Llama with biases": ("litgpt",),
        "Mistral": ("litgpt", "meta"),
        "Mistral with a window": ("litgpt",),
        "Qwen2": ("litgpt",),
        "Qwen3": ("litgpt",),
        "Mixtral": ("litgpt",),
    }
)
"""Which layouts beside Hugging Face's can hold each model."""

STATED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "hf": {},
        "litgpt": {},
        "lit-llama": {"heads": 6, "vocab_size": 290},
        "meta": {},
    }
)
"""What the user must state of ``MODELS`` when he converts from each layout."""

NO_TOKENIZER = "the source has no tokenizer.model, which lit-llama's tools take their tokens from"
WARNING = "a vocabulary of 290; its logits have 30 more, of padding, all 0"
"""What is said of ``LLAMA_1`` in lit-llama's layout."""


def to(layout: str, source: Path, out: Path, report: Report = silent, **settings: Any) -> ConvertResult:
    """Convert; lit-llama's folder is called "tiny"."""
    if layout == "lit-llama":
        settings = {"size": "tiny", **settings}
    return convert(source, out, ConvertSettings(layout, **settings), report)


def stored(directory: Path) -> dict[str, Tensor]:
    """The tensors of all torch files below a directory; those of Meta's ranks are told apart by "00/"."""
    tensors: dict[str, Tensor] = {}
    paths = sorted(path for path in directory.rglob("*") if path.suffix in (".bin", ".pth"))
    ranks = [path for path in paths if path.name.startswith("consolidated.")]
    for path in paths:
        prefix = f"{path.name[13:15]}/" if len(ranks) > 1 else ""
        found: dict[str, Tensor] = torch.load(path, weights_only=True)
        tensors |= {f"{prefix}{name}": tensor for name, tensor in found.items()}
    return tensors


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same tensors, of the same dtypes and shapes, bit for bit."""
    return one.keys() == other.keys() and all(
        (tensor.dtype, tensor.shape, bits(tensor)) == (other[name].dtype, other[name].shape, bits(other[name]))
        for name, tensor in one.items()
    )


def lit_llama_dense(tensors: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """The weights of lit-llama's codes: (code - zero) * scale, the lowest bits of a byte first."""
    dense = dict(tensors)
    for layer in [name.removesuffix(".quant_weight") for name in tensors if name.endswith(".quant_weight")]:
        packed, scales, zeros = (dense.pop(f"{layer}.{part}") for part in ("quant_weight", "scales", "zeros"))
        codes = torch.stack([(packed >> shift) % (1 << bits) for shift in range(0, 8, bits)], -1).flatten(1)
        dense[f"{layer}.weight"] = (codes.float() - zeros.float()) * scales.float()
    return dense

"""Configurations of Llamas, and what Meta's layout stores of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llamaconv.config import ModelConfig
from llamaconv.layouts import meta_llama
from llamaconv.layouts.description import Described, Given, Native
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.layouts.meta_params import described
from llamaconv.layouts.rules import local_specs
from llamaconv.tensors import TensorSpec
from tests.configs import config

PATH = Path("params.json")
SCALING: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TINY = {"dim": 48, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 112, "norm_eps": 1e-5}


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> ModelConfig:
    """A Llama of these sizes; ``more`` are keys of config.json."""
    keys: dict[str, Any] = {"head_dim": ..., "rope_theta": 10000.0, "max_position_embeddings": 4096, **more}
    keys["architectures"] = ["LlamaForCausalLM"]
    return config(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, **keys,
    )  # fmt: skip


def scaled(factor: float) -> dict[str, Any]:
    """Keys of config.json for Llama 3's rotary scaling."""
    return {"rope_theta": 500000.0, "rope_scaling": SCALING | {"factor": factor}, "max_position_embeddings": 131072}


def specs_of(model: ModelConfig, ranks: int = 1, embedding: meta_llama.Axis = "columns") -> dict[str, TensorSpec]:
    """The tensors of rank 0, as the layout's rules make them."""
    hub = {name: TensorSpec(name, shape, torch.bfloat16) for name, shape in (expected_tensors(model) or {}).items()}
    specs = local_specs(meta_llama.layout(ranks, embedding).rules(model), hub)
    return {name.removeprefix("00/"): spec for name, spec in specs.items() if ranks == 1 or name.startswith("00/")}


def tiny(fields: dict[str, Any], given: Given | None = None, **shapes: tuple[int, ...] | None) -> Described:
    """``TINY`` with these fields changed (``...`` leaves one out), on tensors of which some have other shapes."""
    specs = specs_of(config(head_dim=8))
    for name, shape in shapes.items():
        specs.pop(name, None)
        if shape is not None:
            specs[name] = TensorSpec(name, shape, torch.bfloat16)
    stored = {key: value for key, value in (TINY | fields).items() if value is not ...}
    return described(Native(PATH, stored, specs, given=given or Given()))


def comparable(model: ModelConfig) -> ModelConfig:
    """Without what two config.json files for one model say in other words."""
    return replace(model, raw={}, source=b"")

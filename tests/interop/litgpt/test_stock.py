"""The models that litgpt knows by name: its own descriptions of them against ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from litgpt.config import Config, configs

from llamaconv.config import ModelConfig, parse_config
from llamaconv.errors import UnsupportedError
from llamaconv.layouts.description import Given, Native
from llamaconv.layouts.litgpt_config import fields_of, obstacles
from llamaconv.layouts.litgpt_described import described
from llamaconv.tensors import TensorSpec

pytestmark = pytest.mark.interop

STOCK = tuple(config["name"] for config in configs)
OTHER_ARITHMETIC = (
    *("stablelm-", "stablecode-", "stable-code-", "pythia-", "falcon-", "OLMo-", "Gemma-", "CodeGemma-"),
    *("phi-1_5", "phi-2", "Phi-4-mini-", "Qwen3-30B-A3B", "Qwen3-235B-A22B"),
)
"""What the names begin with of models that no family of ours is like."""
DIFFERENT = ("hf_config", "vocab_size", "padding_multiple")
"""litgpt has the repository, and the vocabulary without padding."""
SPECS = {f"{number}": TensorSpec(f"{number}", (2,), torch.bfloat16) for number in range(40_000)}
"""More tensors than the largest of them has."""

# As they stand in the repositories on the Hub, less what says nothing of the arithmetic.
_LLAMA_2 = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip
_LLAMA_3_SCALING = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
_LLAMA_3 = _LLAMA_2 | {
    "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rope_theta": 500000.0, "rope_scaling": _LLAMA_3_SCALING,
}  # fmt: skip
_MISTRAL = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
HUB: Mapping[str, Mapping[str, Any]] = {
    "Llama-2-7b-hf": _LLAMA_2,
    "CodeLlama-7b-hf": _LLAMA_2 | {"vocab_size": 32016, "max_position_embeddings": 16384, "rope_theta": 1000000},
    "Llama-3.1-8B": _LLAMA_3,
    "Llama-3.2-1B": _LLAMA_3 | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "rope_scaling": _LLAMA_3_SCALING | {"factor": 32.0}, "tie_word_embeddings": True,
    },
    "Mistral-7B-v0.3": _MISTRAL,
    "Mixtral-8x7B-v0.1": _MISTRAL | {
        "model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False,
        "max_window_layers": 28, "tie_word_embeddings": False,
    },
    "Qwen3-8B": {
        "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000, "sliding_window": None,
        "use_sliding_window": False, "max_window_layers": 36, "tie_word_embeddings": False, "attention_bias": False,
    },
}  # fmt: skip


def _read(fields: Mapping[str, Any]) -> ModelConfig:
    native = Native(Path("model_config.yaml"), fields, SPECS, given=Given(tied=False))
    config = parse_config(json.dumps(described(native).raw).encode())
    assert obstacles(config) == []
    return config


def _comparable(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in DIFFERENT}


@pytest.mark.parametrize("name", HUB)
def test_config_json_leads_to_litgpts_own_description(name: str) -> None:
    """For models of every family the fields are litgpt's, but for those that say nothing of the arithmetic."""
    fields = fields_of(parse_config(json.dumps(HUB[name]).encode()), name)
    assert _comparable(fields) == _comparable(asdict(Config.from_name(name)))
    assert fields["vocab_size"] == fields["padded_vocab_size"]


@pytest.mark.parametrize("name", [name for name in STOCK if not name.startswith(OTHER_ARITHMETIC)])
def test_descriptions_are_read_and_written_back(name: str) -> None:
    """litgpt's description of a model, read by us and written again, is litgpt's."""
    theirs = asdict(Config.from_name(name))
    config = _read(theirs)
    ours = fields_of(config, name)
    if theirs["rope_condense_ratio"] != 1:  # the same arithmetic, which it can say in two ways
        theirs |= {"rope_condense_ratio": 1, "rope_adjustments": {"factor": theirs["rope_condense_ratio"]}}
    if name.lower().startswith("phi"):  # Llamas and Mistrals that litgpt's converters take for something else
        assert ours["name"] == f"{config.model_type.capitalize()}-{name}"
        ours["name"] = name
    assert _comparable(ours) == _comparable(theirs)


@pytest.mark.parametrize("name", [name for name in STOCK if name.startswith(OTHER_ARITHMETIC)])
def test_other_arithmetic_is_refused(name: str) -> None:
    """What no family of ours computes is not read as one of them."""
    with pytest.raises(UnsupportedError, match=r"no family that can be converted computes so\.$"):
        _read(asdict(Config.from_name(name)))

"""config.json files of tiny models whose dimensions all differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llamaconv.config import ModelConfig, parse_config

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 112,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "rope_theta": 25000.0,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


def raw_config(**changes: Any) -> dict[str, Any]:
    """``TINY`` with changes; a key set to ``...`` is left out."""
    return {key: value for key, value in (TINY | changes).items() if value is not ...}


def config(**changes: Any) -> ModelConfig:
    """``raw_config`` parsed."""
    return parse_config(json.dumps(raw_config(**changes)).encode())


def write_config(directory: Path, **changes: Any) -> Path:
    """Write ``raw_config`` as config.json into ``directory``."""
    path = directory / "config.json"
    path.write_text(json.dumps(raw_config(**changes)))
    return path

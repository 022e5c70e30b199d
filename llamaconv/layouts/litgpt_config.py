"""``model_config.yaml`` for a model: every field of litgpt's ``Config``, as its own ``save_config`` writes them.

Source: litgpt 0.5.13 ``config.py`` (``Config``), ``model.py`` (``rope_cache``, ``build_rope_cache``, ``LLaMAMoE``) and
``scripts/convert_lit_checkpoint.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from llamaconv.config import ModelConfig
from llamaconv.json_files import shown
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.layouts.sliding_window import sliding_window

__all__ = ["LLAMA_3_SCALING", "fields_of", "is_mistral", "obstacles"]

LLAMA_3_SCALING: Mapping[str, str] = MappingProxyType(
    {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_seq_len",
    }
)
"""Parameters of Llama 3's rotary scaling: transformers' name and litgpt's."""

_SCALINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"linear": MappingProxyType({"factor": "factor"}), "llama3": LLAMA_3_SCALING}
)

_STEMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "llama": (),
        "mistral": ("mistral", "mathstral", "ministral"),
        "mixtral": (),
        "qwen2": ("qwen2.5", "qwq"),
        "qwen3": ("qwen3",),
    }
)
"""How the names of a family's models begin, where litgpt's converters (or ours, for Mistral) go by that."""
_FOREIGN_STEMS = ("phi", "olmo-2-", "gemma-2", "gemma-3")
_FOREIGN = ("Gemma", "falcon")

# What all families have in common, or leave to litgpt.
_COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "padding_multiple": 512,  # looked at only where padded_vocab_size is missing
        "norm_class_name": "RMSNorm",
        "norm_qk_type": "default",
        "post_attention_norm": False,
        "post_mlp_norm": False,
        "parallel_residual": False,
        "shared_attention_norm": False,
        "attention_scores_scalar": None,
        "attention_logit_softcapping": None,
        "rotary_percentage": 1.0,
        "rope_condense_ratio": 1,
        "rope_interleave": False,
        "moe_intermediate_size": None,
        "gelu_approximate": "none",
        "n_shared_expert": None,
        "n_expert_groups": None,
        "n_topk_groups": None,
        "n_topk_scores_per_group": None,
        "first_k_dense_replace": None,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": False,
        "scale_embeddings": False,
        "lm_head_bias": False,
        "final_logit_softcapping": None,
        "norm_1": True,
        "norm_2": True,
        "latent_attention": None,
        "rope_local_base_freq": None,
        "rope_indices": None,
    }
)


def fields_of(config: ModelConfig, name: str = "") -> dict[str, Any]:
    """The content of model_config.yaml for a model without obstacles.

    The vocabulary is the tensors', so nothing is padded. ``hf_config``, the repository that litgpt downloads a stock
    model from, stays empty.

    Args:
        config: The model.
        name: What it is called. litgpt goes by the name where it chooses a prompt's style, and where it converts back
            to Hugging Face's layout; one that would mislead it there gets the family's before it.
    """
    window = sliding_window(config)
    queries_keys_values, output, _ = _biases(config)
    return {
        **_COMMON,
        "name": _fitting(config.model_type, name),
        "hf_config": {},
        "block_size": config.max_positions,
        "n_layer": config.layers,
        "n_embd": config.hidden_size,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size,
        "norm_eps": config.norm_eps,
        "norm_qk": "model.layers.0.self_attn.q_norm.weight" in _first_layer(config),
        "n_head": config.heads,
        "head_size": config.head_dim,
        "n_query_groups": config.kv_heads,
        "bias": output,
        "attn_bias": queries_keys_values and not output,
        "sliding_window_size": None if window is None else window.size,
        "sliding_window_indices": None if window is None else [int(slides) for slides in window.layers],
        "rope_base": _whole(config.rope_theta),
        "rope_adjustments": _rope_adjustments(config.rope_scaling),
        "intermediate_size": config.intermediate_size,
        "mlp_class_name": "LLaMAMLP" if config.experts is None else "LLaMAMoE",
        "n_expert": config.experts or 0,
        "n_expert_per_token": config.experts_per_token or 0,
    }


def obstacles(config: ModelConfig) -> list[str]:
    """What litgpt's code cannot compute, one fact each with its value; empty if there is nothing."""
    facts = []
    activation = config.raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        facts.append(f"the activation {shown(activation)}; it computes with silu")
    _, output, mlp = _biases(config)
    if output != mlp:
        there, missing = ("attention output", "MLP") if output else ("MLP", "attention output")
        facts.append(f"biases in the {there} but none in the {missing}; it has both or neither")
    if config.rope_theta is None:
        facts.append("a rotary base for each type of layer")
    return facts + _rope_obstacles(config.rope_scaling or {})


def is_mistral(name: str) -> bool:
    """Whether a model of this name, which is Llama's in all that litgpt computes, is a Mistral."""
    return name.lower().startswith(_STEMS["mistral"])


def _rope_obstacles(scaling: Mapping[str, Any]) -> list[str]:
    if not scaling:
        return []
    kind = scaling.get("rope_type")
    parameters = _SCALINGS.get(kind) if isinstance(kind, str) else None
    if parameters is None:
        but = "; its own blends the frequencies the other way round" if kind == "yarn" else ""
        return [f"rope scaling of type {shown(kind)}{but}"]
    facts = []
    for key in parameters:
        value = scaling.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            facts.append(f"{kind} rope scaling in which {key} is {shown(value)}")
    others = [key for key in scaling if key not in parameters and key != "rope_type"]
    return facts + [f"{kind} rope scaling in which {key} is {shown(scaling[key])}" for key in others]


def _rope_adjustments(scaling: Mapping[str, Any] | None) -> dict[str, float] | None:
    if scaling is None:
        return None
    return {ours: scaling[theirs] for theirs, ours in _SCALINGS[scaling["rope_type"]].items()}


def _biases(config: ModelConfig) -> tuple[bool, bool, bool]:
    """Whether queries, keys and values have biases, whether attention's output has, whether the MLP has."""
    names = _first_layer(config)
    layers = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj")
    queries_keys_values, output, mlp = (f"model.layers.0.{layer}.bias" in names for layer in layers)
    return queries_keys_values, output, mlp


def _first_layer(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    return expected_tensors(replace(config, layers=1, experts=None)) or {}


def _whole(number: float | None) -> float | None:
    """As an integer where it is one, which is what litgpt's own files hold."""
    return int(number) if number is not None and number.is_integer() else number


def _fitting(family: str, name: str) -> str:
    """``name`` if litgpt takes it for one of the family's, else with the family's before it, else the family's."""
    stem = (_STEMS[family] or (family,))[0].capitalize()
    candidates = (name, f"{stem}-{name}") if name else ()
    return next((candidate for candidate in candidates if _fits(family, candidate)), stem)


def _fits(family: str, name: str) -> bool:
    other = [stem for key, stems in _STEMS.items() if key != family for stem in stems]
    begins = name.lower().startswith
    return (
        (not _STEMS[family] or begins(_STEMS[family]))
        and not begins((*other, *_FOREIGN_STEMS))
        and not any(word in name for word in _FOREIGN)
    )

"""Meta's own layout: rotated pairs side by side, one file per tensor-parallel rank (joined here).

Source: Meta's ``llama/model.py``; transformers ``models/llama/convert_llama_weights_to_hf.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from llamaconv.config import ModelConfig
from llamaconv.layouts.operations import Operation, Rotary
from llamaconv.layouts.rules import Layout, RuleTemplate

__all__ = ["LAYOUT"]

_HUB, _LOCAL = "model.layers.{layer}.", "layers.{layer}."


def _queries(config: ModelConfig) -> Operation:
    return Rotary(config.heads, to_pairs=True)


def _keys(config: ModelConfig) -> Operation:
    return Rotary(config.kv_heads, to_pairs=True)


def _obstacles(config: ModelConfig) -> list[str]:
    """Its code has one head size, no window over keys, and rotary scaling only as Llama 3 has it."""
    facts = []
    if config.head_dim * config.heads != config.hidden_size:
        facts.append(f"head_dim {config.head_dim} is not the hidden size over the {config.heads} heads")
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", "default")
    if kind not in ("default", "llama3"):
        facts.append(f"rope scaling of type {kind}")
    elif kind == "llama3" and scaling.get("original_max_position_embeddings") != 8192:
        facts.append(
            f"an original length of {scaling.get('original_max_position_embeddings')}; it takes 8192 for granted"
        )
    return facts


def _block(hub: str, local: str, operation: Callable[[ModelConfig], Operation] | None = None) -> RuleTemplate:
    names = (f"{_HUB}{hub}.weight",), (f"{_LOCAL}{local}.weight",)
    return RuleTemplate(*names) if operation is None else RuleTemplate(*names, operation)


LAYOUT = Layout(
    "meta",
    (
        RuleTemplate(("model.embed_tokens.weight",), ("tok_embeddings.weight",)),
        _block("self_attn.q_proj", "attention.wq", _queries),
        _block("self_attn.k_proj", "attention.wk", _keys),
        _block("self_attn.v_proj", "attention.wv"),
        _block("self_attn.o_proj", "attention.wo"),
        _block("mlp.gate_proj", "feed_forward.w1"),
        _block("mlp.down_proj", "feed_forward.w2"),
        _block("mlp.up_proj", "feed_forward.w3"),
        _block("input_layernorm", "attention_norm"),
        _block("post_attention_layernorm", "ffn_norm"),
        RuleTemplate(("model.norm.weight",), ("norm.weight",)),
        RuleTemplate(("lm_head.weight",), ("output.weight",)),
    ),
    _obstacles,
)

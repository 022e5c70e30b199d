"""litgpt: queries, keys and values in one tensor, in Hugging Face's order of rows.

Source: litgpt 0.5 ``scripts/convert_hf_checkpoint.py`` (``copy_weights_hf_llama``, ``copy_weights_qwen_2_5``,
``copy_weights_qwen_3``). Files from before December 2024 call the fused tensor ``attn.attn`` and interleave its rows
group by group: that is a layout of its own, told apart by the name.
"""

from __future__ import annotations

from llamaconv.config import ModelConfig
from llamaconv.layouts.attention import Interleave
from llamaconv.layouts.operations import Concat
from llamaconv.layouts.rules import Layout, RuleTemplate

__all__ = ["LAYOUT", "LEGACY"]

_HUB, _LOCAL = "model.layers.{layer}.", "transformer.h.{layer}."
_LEAVES = ("weight", "bias")


def _fused(config: ModelConfig) -> Concat:
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return Concat((queries, keys, keys))


def _interleaved(config: ModelConfig) -> Interleave:
    return Interleave(config.kv_heads, config.heads // config.kv_heads, config.head_dim)


def _qkv(leaf: str) -> tuple[str, ...]:
    return tuple(f"{_HUB}self_attn.{part}_proj.{leaf}" for part in "qkv")


def _renamed(hub: str, local: str) -> tuple[RuleTemplate, ...]:
    return tuple(RuleTemplate((f"{_HUB}{hub}.{leaf}",), (f"{_LOCAL}{local}.{leaf}",)) for leaf in _LEAVES)


_START = (RuleTemplate(("model.embed_tokens.weight",), ("transformer.wte.weight",)),)
_BLOCK = (
    *_renamed("self_attn.o_proj", "attn.proj"),
    *_renamed("self_attn.q_norm", "attn.norm_q"),
    *_renamed("self_attn.k_norm", "attn.norm_k"),
    *_renamed("mlp.gate_proj", "mlp.fc_1"),
    *_renamed("mlp.up_proj", "mlp.fc_2"),
    *_renamed("mlp.down_proj", "mlp.proj"),
    *_renamed("input_layernorm", "norm_1"),
    *_renamed("post_attention_layernorm", "norm_2"),
)
_END = (
    RuleTemplate(("model.norm.weight",), ("transformer.ln_f.weight",)),
    RuleTemplate(("lm_head.weight",), ("lm_head.weight",)),
)

LAYOUT = Layout(
    "litgpt",
    (
        *_START,
        *(RuleTemplate(_qkv(leaf), (f"{_LOCAL}attn.qkv.{leaf}",), _fused) for leaf in _LEAVES),
        *_BLOCK,
        *_END,
    ),
    stores_tied_head=True,
)
LEGACY = Layout(
    "litgpt-legacy",
    (
        *_START,
        *(RuleTemplate(_qkv(leaf), (f"{_LOCAL}attn.attn.{leaf}",), _interleaved) for leaf in _LEAVES),
        *_BLOCK,
        *_END,
    ),
    stores_tied_head=True,
)

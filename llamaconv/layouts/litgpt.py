"""litgpt: queries, keys and values in one tensor, in Hugging Face's order of rows.

Source: litgpt 0.5 ``scripts/convert_hf_checkpoint.py`` (``copy_weights_hf_llama``, ``copy_weights_qwen_2_5``,
``copy_weights_qwen_3``). Files from before December 2024 call the fused tensor ``attn.attn`` and interleave its rows
group by group: that is a layout of its own, told apart by the name.
"""

from __future__ import annotations

from collections.abc import Callable

from llamaconv.config import ModelConfig
from llamaconv.layouts.attention import Interleave
from llamaconv.layouts.litgpt_config import fields_of, obstacles
from llamaconv.layouts.litgpt_described import described
from llamaconv.layouts.litgpt_yaml import read_fields, yaml_of
from llamaconv.layouts.operations import Concat, Operation
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
    *_renamed("block_sparse_moe.gate", "mlp.gate"),
    *_renamed("block_sparse_moe.experts.{expert}.w1", "mlp.experts.{expert}.fc_1"),
    *_renamed("block_sparse_moe.experts.{expert}.w3", "mlp.experts.{expert}.fc_2"),
    *_renamed("block_sparse_moe.experts.{expert}.w2", "mlp.experts.{expert}.proj"),
    *_renamed("input_layernorm", "norm_1"),
    *_renamed("post_attention_layernorm", "norm_2"),
)
_END = (
    RuleTemplate(("model.norm.weight",), ("transformer.ln_f.weight",)),
    RuleTemplate(("lm_head.weight",), ("lm_head.weight",)),
)


def _layout(name: str, fused: str, operation: Callable[[ModelConfig], Operation]) -> Layout:
    queries_keys_values = (RuleTemplate(_qkv(leaf), (f"{_LOCAL}{fused}.{leaf}",), operation) for leaf in _LEAVES)
    return Layout(
        name,
        (*_START, *queries_keys_values, *_BLOCK, *_END),
        obstacles,
        stores_tied_head=True,
        config_file="model_config.yaml",
        description=lambda config: yaml_of(fields_of(config, _name(config))),
        read_fields=read_fields,
        described=described,
        tokenizers=("tokenizer.json", "tokenizer.model"),
    )


def _name(config: ModelConfig) -> str:
    """What the model is called, where config.json says it; a folder's name is no part of a model."""
    repository = config.raw.get("_name_or_path")
    return repository.rpartition("/")[2] if isinstance(repository, str) else ""


LAYOUT = _layout("litgpt", "attn.qkv", _fused)
LEGACY = _layout("litgpt-legacy", "attn.attn", _interleaved)

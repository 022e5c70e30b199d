"""lit-llama: Llama 1 only. Fused attention with Meta's order of rows, a vocabulary padded to a multiple of 64.

Source: lit-llama ``lit_llama/model.py`` and ``scripts/convert_hf_checkpoint.py``.
"""

from __future__ import annotations

from llamaconv.config import ModelConfig
from llamaconv.layouts.attention import Rotary
from llamaconv.layouts.lit_llama_facts import described, padded, warnings_of
from llamaconv.layouts.llama_config import beyond_llama
from llamaconv.layouts.operations import Chain, Concat, Identity, Operation, Pad, Parallel
from llamaconv.layouts.rules import Layout, RuleTemplate

__all__ = ["LAYOUT"]

_HUB, _LOCAL = "model.layers.{layer}.", "transformer.h.{layer}."


def _attention(config: ModelConfig) -> Operation:
    rows = config.heads * config.head_dim
    pairs = Rotary(config.heads, to_pairs=True)
    return Chain((Parallel((pairs, pairs, Identity())), Concat((rows, rows, rows))))


def _vocabulary(config: ModelConfig) -> Operation:
    return Pad(config.vocab_size, padded(config.vocab_size))


def _obstacles(config: ModelConfig) -> list[str]:
    """Its code computes the sizes that others read from a config, and hard-codes the rotary base."""
    facts = beyond_llama(config)
    if config.kv_heads != config.heads:
        facts.append(f"{config.kv_heads} key-value heads for {config.heads} heads (grouped-query attention)")
    width = -(-int(8 * config.hidden_size / 3) // 256) * 256
    if config.intermediate_size != width:
        facts.append(f"an MLP of {config.intermediate_size}; it computes {width}")
    if config.rope_theta not in (None, 10000.0):
        facts.append(f"a rotary base of {config.rope_theta:g}; it computes with 10000")
    if config.rope_scaling:
        facts.append(f"rope scaling of type {config.rope_scaling.get('rope_type')}")
    return facts


def _block(hub: str, local: str) -> RuleTemplate:
    return RuleTemplate((f"{_HUB}{hub}.weight",), (f"{_LOCAL}{local}",))


LAYOUT = Layout(
    "lit-llama",
    (
        RuleTemplate(("lm_head.weight",), ("lm_head.weight",), _vocabulary),
        RuleTemplate(("model.embed_tokens.weight",), ("transformer.wte.weight",), _vocabulary),
        _block("input_layernorm", "rms_1.scale"),
        RuleTemplate(
            tuple(f"{_HUB}self_attn.{part}_proj.weight" for part in "qkv"),
            (f"{_LOCAL}attn.c_attn.weight",),
            _attention,
        ),
        _block("self_attn.o_proj", "attn.c_proj.weight"),
        _block("post_attention_layernorm", "rms_2.scale"),
        _block("mlp.gate_proj", "mlp.c_fc1.weight"),
        _block("mlp.up_proj", "mlp.c_fc2.weight"),
        _block("mlp.down_proj", "mlp.c_proj.weight"),
        RuleTemplate(("model.norm.weight",), ("transformer.ln_f.scale",)),
    ),
    _obstacles,
    stores_tied_head=True,
    described=described,
    tokenizers=("tokenizer.model",),
    warnings=warnings_of,
)

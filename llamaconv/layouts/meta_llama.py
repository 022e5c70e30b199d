"""Meta's own layout: rotated pairs side by side, one file per tensor-parallel rank.

Source: Meta's ``llama/model.py`` (ColumnParallelLinear splits the outputs, RowParallelLinear the inputs; the embedding
is ParallelEmbedding, by columns, until Llama 2 and VocabParallelEmbedding, by rows, from Llama 3 on); transformers
``models/llama/convert_llama_weights_to_hf.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Literal

from llamaconv.config import ModelConfig
from llamaconv.json_files import read_object
from llamaconv.layouts.attention import Rotary
from llamaconv.layouts.meta_generations import LLAMA_3_VOCABULARY
from llamaconv.layouts.meta_params import described, obstacles, params_of
from llamaconv.layouts.operations import Chain, Identity, Operation
from llamaconv.layouts.ranks import Divide, Replicate
from llamaconv.layouts.rules import EMBEDDING, Layout, RuleTemplate

__all__ = ["LAYOUT", "Axis", "embedding_axis", "layout"]

Axis = Literal["rows", "columns"]

_HUB, _LOCAL = "model.layers.{layer}.", "layers.{layer}."


def _as_it_is(config: ModelConfig) -> Operation:
    return Identity()


def _queries(config: ModelConfig) -> Operation:
    return Rotary(config.heads, to_pairs=True)


def _keys(config: ModelConfig) -> Operation:
    return Rotary(config.kv_heads, to_pairs=True)


# Hub name, local name, what is done to the whole tensor, how ranks split it (None: each has all of it).
_TABLE: tuple[tuple[str, str, Callable[[ModelConfig], Operation], Axis | None], ...] = (
    (EMBEDDING, "tok_embeddings.weight", _as_it_is, "columns"),
    (f"{_HUB}self_attn.q_proj.weight", f"{_LOCAL}attention.wq.weight", _queries, "rows"),
    (f"{_HUB}self_attn.k_proj.weight", f"{_LOCAL}attention.wk.weight", _keys, "rows"),
    (f"{_HUB}self_attn.v_proj.weight", f"{_LOCAL}attention.wv.weight", _as_it_is, "rows"),
    (f"{_HUB}self_attn.o_proj.weight", f"{_LOCAL}attention.wo.weight", _as_it_is, "columns"),
    (f"{_HUB}mlp.gate_proj.weight", f"{_LOCAL}feed_forward.w1.weight", _as_it_is, "rows"),
    (f"{_HUB}mlp.down_proj.weight", f"{_LOCAL}feed_forward.w2.weight", _as_it_is, "columns"),
    (f"{_HUB}mlp.up_proj.weight", f"{_LOCAL}feed_forward.w3.weight", _as_it_is, "rows"),
    (f"{_HUB}input_layernorm.weight", f"{_LOCAL}attention_norm.weight", _as_it_is, None),
    (f"{_HUB}post_attention_layernorm.weight", f"{_LOCAL}ffn_norm.weight", _as_it_is, None),
    ("model.norm.weight", "norm.weight", _as_it_is, None),
    ("lm_head.weight", "output.weight", _as_it_is, "rows"),
)


def layout(ranks: int = 1, embedding: Axis = "columns") -> Layout:
    """The layout for a number of tensor-parallel ranks.

    Args:
        ranks: One file each.
        embedding: How the embedding is split: by columns for Llama 1 and 2, by rows for Llama 3.
    """
    return Layout(
        "meta",
        tuple(
            _template(ranks, hub, local, whole, embedding if hub == EMBEDDING else axis)
            for hub, local, whole, axis in _TABLE
        ),
        lambda config: obstacles(config) + _indivisible(config, ranks, embedding),
        stores_tied_head=True,
        ranks=ranks,
        config_file="params.json",
        description=_params_json,
        read_fields=lambda path: read_object(path)[1],
        described=described,
        tokenizers=("tokenizer.model",),
        warnings=_warnings,
    )


def embedding_axis(config: ModelConfig) -> Axis:
    """How Meta's code for this model splits the embedding: the vocabulary tells Llama 3 from the others."""
    return "rows" if config.vocab_size >= LLAMA_3_VOCABULARY else "columns"


def _template(
    ranks: int, hub: str, local: str, whole: Callable[[ModelConfig], Operation], axis: Axis | None
) -> RuleTemplate:
    if ranks == 1:
        return RuleTemplate((hub,), (local,), whole)
    spread = Replicate(ranks) if axis is None else Divide(ranks, 0 if axis == "rows" else 1)
    names = tuple(f"{rank:02d}/{local}" for rank in range(ranks))
    return RuleTemplate((hub,), names, partial(_spread, whole, spread))


def _spread(whole: Callable[[ModelConfig], Operation], spread: Operation, config: ModelConfig) -> Operation:
    return Chain((whole(config), spread))


def _params_json(config: ModelConfig) -> bytes:
    return (json.dumps(params_of(config), indent=2) + "\n").encode()


def _warnings(config: ModelConfig) -> list[str]:
    """Llama 3.2 is read with its own factor by us, not by Meta's code."""
    factor = (config.rope_scaling or {}).get("factor", 8)
    return [] if factor == 8 else [f"rope scaling with factor {factor:g}; Meta's own code computes with 8"]


def _indivisible(config: ModelConfig, ranks: int, embedding: Axis) -> list[str]:
    """What cannot be split evenly over the ranks, in whole heads."""
    split = {"heads": config.heads, "key-value heads": config.kv_heads, "rows of the MLP": config.intermediate_size}
    split |= {"rows of the vocabulary": config.vocab_size}
    split |= {"columns of the embedding": config.hidden_size} if embedding == "columns" else {}
    return [f"{count} {what} cannot be split over {ranks} ranks" for what, count in split.items() if count % ranks]


LAYOUT = layout()

"""Configs of tiny models whose dimensions differ wherever their family lets them, for laws."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from llamaconv.config import ModelConfig
from tests.configs import config

FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3")

_few = st.integers(1, 3)


def _vocabularies(ranks: int) -> st.SearchStrategy[int]:
    return st.integers(1, 24).map(lambda share: share * ranks).filter(lambda size: size % 64 != 0)


@st.composite
def configs(draw: st.DrawFn, family: str) -> ModelConfig:
    """A model with grouped queries or without, tied or not, in whatever way the family differs from a plain Llama."""
    plain = draw(llamas(draw(st.sampled_from([1, 2]))))
    habits: dict[str, st.SearchStrategy[Any]] = {"tie_word_embeddings": st.booleans()}
    if draw(st.booleans()):
        queries = plain.heads * plain.head_dim
        habits["hidden_size"] = st.integers(1, 40).filter(lambda size: size not in (queries, plain.intermediate_size))
    match family:
        case "llama":
            habits |= {"attention_bias": st.booleans(), "mlp_bias": st.booleans()}
        case "mistral":
            habits |= {"sliding_window": st.sampled_from([None, 128])}
        case "mixtral":
            habits |= {"num_local_experts": st.integers(1, 3), "num_experts_per_tok": st.just(1)}
        case "qwen3":
            habits |= {"attention_bias": st.booleans()}
    return config(**plain.raw | {"model_type": family} | draw(st.fixed_dictionaries(habits)))


@st.composite
def llamas(draw: st.DrawFn, ranks: int = 1) -> ModelConfig:
    """A Llama without biases whose heads, MLP and vocabulary are multiples of ``ranks``."""
    kv_heads, head_dim = ranks * draw(_few), 2 * draw(_few)
    heads = kv_heads * draw(_few)
    hidden = heads * head_dim
    return config(
        hidden_size=hidden,
        intermediate_size=draw(st.integers(1, 20).map(lambda share: share * ranks).filter(lambda size: size != hidden)),
        num_hidden_layers=draw(st.integers(1, 4).filter(lambda layers: layers not in (heads, kv_heads))),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=draw(_vocabularies(ranks)),
        tie_word_embeddings=draw(st.booleans()),
    )


@st.composite
def first_llamas(draw: st.DrawFn) -> ModelConfig:
    """A Llama 1, as lit-llama computes its sizes: every layout holds it, over two ranks as well."""
    heads, head_dim = 2 * draw(_few), 2 * draw(_few)
    hidden = heads * head_dim
    return config(
        hidden_size=hidden,
        intermediate_size=256,  # two thirds of four times any width up to 96, rounded up
        num_hidden_layers=draw(st.sampled_from([1, 3])),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        vocab_size=draw(_vocabularies(2)),
        tie_word_embeddings=draw(st.booleans()),
        rope_theta=10000.0,
    )

"""What cannot be written as params.json, and what is not believed of one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from llamaconv.errors import CheckpointError, ConfigError, UnsupportedError, UsageError
from llamaconv.layouts.description import Given
from llamaconv.layouts.meta_params import obstacles
from tests.configs import config
from tests.layouts.meta import SCALING, scaled, tiny


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"head_dim": 16}, ["head_dim 16 is not the hidden size over the 6 heads"]),
        ({"attention_bias": True, "mlp_bias": True}, ["attention_bias is true", "mlp_bias is true"]),
        ({"model_type": "mistral", "sliding_window": None, "attention_bias": True, "mlp_bias": True}, []),
        ({"model_type": "mistral", "sliding_window": 24}, ["a sliding window of 24 positions"]),
        ({"model_type": "mistral"}, ["a sliding window of 4096 positions"]),
        ({"model_type": "mixtral", "num_local_experts": 4}, ["a mixture of 4 experts"]),
        ({"hidden_act": "gelu"}, ['the activation "gelu"; it computes silu']),
        ({"hidden_act": "swish"}, []),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ['rope scaling of type "linear"']),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                },
                "rope_theta": ...,
            },
            ["a rotary base for each type of layer"],
        ),
        (scaled(8.0), []),
        (scaled(32), []),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 16,
                    "low_freq_factor": 2,
                    "original_max_position_embeddings": 4096,
                    "partial_rotary_factor": 0.5,
                }
            },
            [
                "rope scaling with low_freq_factor 2; it takes 1 for granted",
                "rope scaling with high_freq_factor null; it takes 4 for granted",
                "rope scaling with original_max_position_embeddings 4096; it takes 8192 for granted",
                "rope scaling with factor 16; it knows 8 and 32",
                "rope scaling with partial_rotary_factor 0.5; it turns whole heads",
            ],
        ),
    ],
)
def test_each_fact_that_metas_code_cannot_compute(changes: dict[str, Any], facts: list[str]) -> None:
    """With its value, all at once."""
    assert obstacles(config(**({"head_dim": 8} | changes))) == facts


def test_a_description_of_other_weights_is_refused() -> None:
    """Every contradiction in one error."""
    wrong = {
        "dim": 64, "n_layers": 5, "n_heads": 4, "n_kv_heads": 1, "vocab_size": 100, "head_dim": 8, "hidden_dim": 81,
        "multiple_of": 256,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        tiny(wrong, **{"rope.freqs": (4,)})
    assert str(caught.value).splitlines() == [
        "params.json: n_layers is 5, but the weights have 3 layers.",
        "params.json: dim is 64, but tok_embeddings.weight is [112, 48].",
        "params.json: dim is 64, but layers.0.attention.wk.weight is [16, 48].",
        "params.json: vocab_size is 100, but tok_embeddings.weight is [112, 48].",
        "params.json: head_dim is 8, but dim over n_heads is 16.",
        "params.json: n_heads is 4, but rope.freqs is for heads of 8.",
        "params.json: hidden_dim is 81, but the weights have an MLP of 80.",
        "params.json: multiple_of is 256 and ffn_dim_multiplier null, which makes an MLP of 256, but the weights have "
        "one of 80.",
    ]
    assert caught.value.hint == "It does not describe these weights."


@pytest.mark.parametrize(
    ("fields", "keys", "message"),
    [
        ({"n_heads": 5}, 16, "n_heads is 5, but dim, 48, is not that many heads of pairs"),
        ({"n_heads": 16}, 16, "n_heads is 16, but dim, 48, is not that many heads of pairs"),
        ({"n_kv_heads": 6}, 16, "n_kv_heads is 6, but the weights have 16 rows of keys for heads of 8"),
        ({"n_heads": 3}, 16, "n_kv_heads is 2, but the weights have 16 rows of keys for heads of 16"),
        ({"n_heads": 2, "n_kv_heads": ...}, 16, "n_heads is 2, but the weights have 16 rows of keys for heads of 24"),
        ({"n_kv_heads": 4}, 32, "n_heads is 6, but the weights have 4 key-value heads"),
        ({"n_kv_heads": None}, 4, "n_heads is 6, but the weights have 4 rows of keys for heads of 8"),
    ],
)
def test_heads_are_held_against_the_rows_of_keys(fields: dict[str, Any], keys: int, message: str) -> None:
    """Heads are whole, of pairs, as many as is said, and the keys' divide the queries'."""
    with pytest.raises(ConfigError) as caught:
        tiny(fields, **{"layers.0.attention.wk.weight": (keys, 48)})
    assert str(caught.value) == f"params.json: {message}."


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 1), (12, 4)])
def test_key_value_heads_that_nobody_says_are_counted(heads: int, kv_heads: int) -> None:
    """Off the rows of wk."""
    assert tiny({"n_heads": heads, "n_kv_heads": ...}).raw["num_key_value_heads"] == kv_heads


def test_values_that_cannot_be_are_refused_all_at_once() -> None:
    """Missing keys, wrong types, and sizes that nothing has."""
    hostile = {
        "dim": "48", "n_layers": ..., "n_heads": True, "n_kv_heads": 0, "vocab_size": -2, "multiple_of": 10**16,
        "ffn_dim_multiplier": 1e300, "norm_eps": -1e-5, "rope_theta": [1], "use_scaled_rope": 1,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        tiny(hostile)
    assert str(caught.value).splitlines() == [
        'params.json: dim is "48": input should be a valid integer.',
        "params.json: n_layers is missing.",
        "params.json: n_heads is true: input should be a valid integer.",
        "params.json: n_kv_heads is 0: input should be greater than 0.",
        "params.json: vocab_size is -2: input should be greater than or equal to -1.",
        "params.json: multiple_of is 10000000000000000: input should be less than or equal to 1000000000000000.",
        "params.json: ffn_dim_multiplier is 1e+300: input should be less than or equal to 1000000000000000000.",
        "params.json: norm_eps is -1e-05: input should be greater than 0.",
        "params.json: rope_theta is [1]: input should be a valid number.",
        "params.json: use_scaled_rope is 1: input should be a valid boolean.",
    ]


def test_claims_cost_nothing() -> None:
    """As many layers as can be claimed are refused in no time, as are names that number layers beyond all reason."""
    started = time.perf_counter()
    with pytest.raises(ConfigError, match="n_layers is 1000000000000000, but the weights have 3 layers"):
        tiny({"n_layers": 10**15})
    with pytest.raises(ConfigError) as caught:
        tiny({}, **{"layers.1.attention.wk.weight": None, f"layers.{'9' * 5000}.ffn_norm.weight": (48,)})
    assert time.perf_counter() - started < 5
    assert "n_layers is 3, but the weights have 4 layers" in str(caught.value)


def test_layers_without_gaps() -> None:
    """Numbers that no layer can have are named beside those that are missing."""
    with pytest.raises(ConfigError) as caught:
        tiny({"n_layers": 5}, **{"layers.03.ffn_norm.weight": (48,), "layers.x.ffn_norm.weight": (48,)})
    assert str(caught.value) == (
        'params.json: the weights have 5 layers, but among their numbers there is "03, x" and not "3, 4".'
    )


def test_keys_that_change_the_arithmetic_are_refused_by_name() -> None:
    """All of them, unless they are switched off, as Meta's own defaults are."""
    off = {"quantization_args": None, "lora_args": {}, "vision_chunk_size": -1, "use_qk_norm": False, "moe": None}
    assert tiny(off).raw["hidden_size"] == 48
    with pytest.raises(UnsupportedError) as caught:
        tiny(off | {"moe_args": {"num_experts": 16}, "vision_chunk_size": 560, "sliding_window": 4096})
    assert str(caught.value).splitlines() == [
        'params.json: moe_args is {"num_experts": 16}: no Llama computes with it.',
        "params.json: vision_chunk_size is 560: no Llama computes with it.",
        "params.json: sliding_window is 4096: no Llama computes with it.",
    ]
    assert caught.value.hint == (
        "Only dense text models of Llama 1 to 3.3 and Code Llama can be read from Meta's layout."
    )


def test_weights_without_the_tensors_that_say_sizes() -> None:
    """Missing, of another rank, or empty."""
    with pytest.raises(CheckpointError) as caught:
        tiny(
            {},
            **{
                "tok_embeddings.weight": None,
                "layers.0.attention.wk.weight": (768,),
                "layers.0.feed_forward.w1.weight": (0, 48),
            },
        )
    assert str(caught.value).splitlines() == [
        "params.json: the weights lack tok_embeddings.weight, from which the model's sizes are read.",
        "params.json: layers.0.attention.wk.weight is [768], where a matrix belongs.",
        "params.json: layers.0.feed_forward.w1.weight is [0, 48], where a matrix belongs.",
    ]


def test_the_user_does_not_overrule_the_files() -> None:
    """What he states must be open, or true."""
    true = Given(rope_theta=25000.0, norm_eps=1e-5, vocab_size=112, heads=6)
    assert tiny({"rope_theta": 25000.0}, true).raw["rope_theta"] == 25000.0
    with pytest.raises(UsageError) as caught:
        tiny({"rope_theta": 25000}, Given(rope_theta=1e6, rope_factor=8.0, norm_eps=1e-6, vocab_size=100, heads=3))
    assert str(caught.value).splitlines() == [
        "params.json: --heads says 3, but there it is 6.",
        "params.json: --vocab-size says 100, but there it is 112.",
        "params.json: --norm-eps says 1e-06, but there it is 1e-05.",
        "params.json: --rope-theta says 1000000.0, but there it is 25000.0.",
        "params.json: --rope-factor says 8.0, but there it is 1.",
    ]
    assert caught.value.hint == "An option states what the files leave open."


def test_a_factor_in_the_file_is_believed() -> None:
    """Under Llama 4's name for it, as this project writes it where the width would suggest another."""
    fields = {"use_scaled_rope": True, "rope_scaling_factor": 8.0}
    assert tiny(fields).raw["rope_scaling"] == SCALING
    assert tiny({"use_scaled_rope": True}).raw["rope_scaling"] == SCALING | {"factor": 32.0}
    assert "rope_scaling" not in tiny({"use_scaled_rope": False, "rope_scaling_factor": 8.0}).raw

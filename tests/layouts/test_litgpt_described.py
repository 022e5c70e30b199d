"""model_config.yaml as others may have written it: what is made of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.config import parse_config
from llamaconv.errors import InputError, UnsupportedError, UsageError
from llamaconv.layouts.description import Described, Given
from llamaconv.layouts.litgpt_described import described
from tests.layouts.litgpt_fields import PATH, SCALING, native

BEGIN_AND_END = "the tokens of begin and end are 1 and 2, as in Llama 2's base models"


def _read(*args: Any, **changes: Any) -> Described:
    return described(native(*args, **changes))


def test_config_json_is_whole() -> None:
    """Literally: rope in both forms, the dtype of the tensors under both keys, what the file leaves open."""
    assert _read(rope_adjustments=SCALING) == Described(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 112,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-05,
            "rope_theta": 25000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "float16",
            "torch_dtype": "float16",
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 25000.0,
            },
        },
        (BEGIN_AND_END,),
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral", "qwen2", "qwen3"])
def test_transformers_takes_the_same_facts(family: str) -> None:
    """Its configuration class has each key that is written, with the value that is written."""
    from transformers import AutoConfig

    raw = _read(family).raw
    theirs = AutoConfig.for_model(**raw)
    for key in raw.keys() - {"rope_theta", "rope_scaling", "torch_dtype", "dtype"}:  # 5 keeps them elsewhere
        assert getattr(theirs, key) == raw[key], key
    assert theirs.dtype == torch.float16
    assert theirs.rope_parameters["rope_theta"] == raw["rope_theta"]


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({}, "llama"),
        ({"bias": True}, "llama"),
        ({"bias": True, "attn_bias": True}, "llama"),
        ({"bias": True, "name": "Mistral-7B"}, "llama"),
        ({"name": "Mistral-7B"}, "mistral"),
        ({"sliding_window_size": 9}, "mistral"),
        ({"attn_bias": True}, "qwen2"),
        ({"attn_bias": True, "sliding_window_size": 9, "sliding_window_indices": [0, 1, 0]}, "qwen2"),
        ({"norm_qk": True}, "qwen3"),
        ({"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2}, "mixtral"),
    ],
)
def test_the_family_is_told_by_what_is_computed(changes: dict[str, Any], model_type: str) -> None:
    """Biases, norms, windows and experts say it; of Llama and Mistral, which may be one thing, the name."""
    assert _read(**changes).raw["model_type"] == model_type


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"head_size": None}, {"head_dim": 8}),
        ({"n_query_groups": ...}, {"num_key_value_heads": 6}),
        ({"padded_vocab_size": None, "vocab_size": 113}, {"vocab_size": 512}),
        ({"padded_vocab_size": ..., "vocab_size": 113, "padding_multiple": 64}, {"vocab_size": 128}),
        ({"padded_vocab_size": 128256}, {"bos_token_id": 128000, "eos_token_id": 128001}),
        ({"rope_condense_ratio": 4}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        (
            {"rope_condense_ratio": 4, "rope_adjustments": {"factor": 1.5}},
            {"rope_scaling": {"rope_type": "linear", "factor": 6.0}},
        ),
        ({"rope_adjustments": {}, "norm_eps": ..., "rope_base": ...}, {"rms_norm_eps": 1e-05, "rope_theta": 10000.0}),
        (
            {"attn_bias": True, "padded_vocab_size": 151936},
            {"bos_token_id": 151643, "use_sliding_window": False, "sliding_window": None},
        ),
        ({"attn_bias": True}, {"bos_token_id": None, "eos_token_id": None}),
        (
            {"norm_qk": True, "sliding_window_size": 9, "sliding_window_indices": [0, 1, 0, 1, 1]},
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "max_window_layers": 1,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
        ),
        ({"name": "Mistral", "sliding_window_size": 9, "sliding_window_indices": [0] * 3}, {"sliding_window": None}),
        (
            {
                "mlp_class_name": "LLaMAMoE",
                "n_expert": 4,
                "n_expert_per_token": 2,
                "intermediate_size": None,
                "sliding_window_size": 9,
            },
            {"intermediate_size": 192, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9},
        ),
        (
            {"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 1, "moe_intermediate_size": 24},
            {"intermediate_size": 24},
        ),
        ({"rotary_percentage": 1, "gelu_approximate": "tanh", "n_shared_expert": 0}, {"model_type": "llama"}),
    ],
)
def test_fields_become_facts(changes: dict[str, Any], facts: dict[str, Any]) -> None:
    """With litgpt's defaults where a field is not there, and what it computes of others."""
    raw = _read(**changes).raw
    assert {key: raw.get(key) for key in facts} == facts


def test_what_the_file_leaves_open_is_noted() -> None:
    """The tie where there are no tensors to tell, the tokens, windows before litgpt knew them, unknown fields."""
    changes = {"name": "Mistral", "sliding_window_size": ..., "sliding_window_indices": ..., "new": 1, "newer": None}
    there = native(**changes)
    assert described(replace(there, given=Given())).notes == (
        "there is no sliding window; model_config.yaml was written before litgpt knew of any",
        "the head is taken for one of its own; model_config.yaml does not say",
        "the tokens of begin and end are 1 and 2, as in Mistral's base models",
        'fields of model_config.yaml that are not known are passed over: "new, newer"',
    )
    assert _read("qwen3").notes == ("the tokens of begin and end are left open; model_config.yaml does not say",)


def test_the_tie_is_the_tensors_affair() -> None:
    """litgpt stores the head in any case."""
    assert described(replace(native(), given=Given(tied=True))).raw["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"parallel_residual": True}, ["parallel_residual is true"]),
        ({"rotary_percentage": 0.25}, ["rotary_percentage is 0.25"]),
        (
            {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "lm_head_bias": True},
            ['norm_class_name is "LayerNorm"', 'mlp_class_name is "GptNeoxMLP"', "lm_head_bias is true"],
        ),
        (
            {"name": "Gemma-2b", "mlp_class_name": "GemmaMLP", "scale_embeddings": True},
            [
                'mlp_class_name is "GemmaMLP"',
                "scale_embeddings is true",
                'name is "Gemma-2b", for which litgpt adds 1 to the weights of norms',
            ],
        ),
        (
            {"attention_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention_scores_scalar": 144},
            [
                "attention_logit_softcapping is 50.0",
                "final_logit_softcapping is 30.0",
                "attention_scores_scalar is 144, head_size 16",
            ],
        ),
        ({"latent_attention": {"q_lora_rank": 4}}, ['latent_attention is {"q_lora_rank": 4}']),
        ({"norm_qk": True, "norm_qk_type": "olmo2", "norm_1": False}, ['norm_qk_type is "olmo2"', "norm_1 is false"]),
        ({"norm_qk": True, "attn_bias": True}, ["norm_qk with attn_bias"]),
        (
            {"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2, "norm_qk": True, "bias": True},
            ["LLaMAMoE with norm_qk and bias"],
        ),
        ({"bias": True, "sliding_window_size": 9}, ["sliding_window_size with bias"]),
        (
            {"sliding_window_size": 9, "sliding_window_indices": [1, 0, 1]},
            ["sliding_window_indices is [1, 0, 1]"],
        ),
        (
            {"rope_adjustments": {"factor": 4.0, "beta_fast": 32, "beta_slow": 1, "original_max_seq_len": 64}},
            ["rope_adjustments.beta_fast is 32.0", "rope_adjustments.beta_slow is 1.0"],
        ),
        (
            {"rope_adjustments": SCALING, "rope_condense_ratio": 2},
            ["rope_condense_ratio is 2.0 beside Llama 3's rope_adjustments"],
        ),
    ],
)
def test_other_arithmetic_is_refused(changes: dict[str, Any], facts: list[str]) -> None:
    """What no family computes, all facts at once."""
    with pytest.raises(UnsupportedError) as caught:
        _read(**changes)
    assert str(caught.value).splitlines() == [
        f"{PATH}: {fact}: no family that can be converted computes so." for fact in facts
    ]


def test_options_that_say_something_else_are_refused() -> None:
    """The file carries these facts: a user may repeat them, not change them."""
    there = native(rope_adjustments=SCALING)
    same = Given(rope_theta=25000, rope_factor=8, max_positions=256, norm_eps=1e-5, vocab_size=112, heads=6, tied=False)
    assert described(replace(there, given=same)).notes == (BEGIN_AND_END,)
    other = Given(rope_theta=1e4, rope_factor=32.0, max_positions=1, norm_eps=1.0, vocab_size=2, heads=3, tied=False)
    with pytest.raises(UsageError) as caught:
        described(replace(there, given=other))
    assert str(caught.value).splitlines() == [
        f"{PATH}: {option} says {given}, but there it is {found}."
        for option, given, found in (
            ("--heads", 3, 6),
            ("--vocab-size", 2, 112),
            ("--max-positions", 1, 256),
            ("--norm-eps", 1.0, 1e-05),
            ("--rope-theta", 10000.0, 25000.0),
            ("--rope-factor", 32.0, 8.0),
        )
    ]
    with pytest.raises(UsageError, match="--rope-factor says 8, but there it is 1"):
        described(replace(native(), given=Given(rope_factor=8)))


FIELDS: Mapping[str, Any] = native("mixtral", sliding_window_size=9, rope_adjustments=SCALING).fields


@given(
    st.sampled_from(sorted(FIELDS)),
    st.none()
    | st.booleans()
    | st.integers(-(10**16), 10**16)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["", "LLaMAMLP", "Gemma", [], [1], [1] * 3, {}, {"factor": 2}, {"factor": None, "low_freq_factor": 1}]
    ),
)
def test_whatever_one_field_holds_it_is_refused_or_makes_a_config(field: str, value: object) -> None:
    """No value ends in another error, or in a config.json that cannot be read."""
    try:
        made = described(replace(native(), fields=FIELDS | {field: value}))
    except InputError:
        return
    parsed = parse_config(json.dumps(made.raw).encode())
    assert parsed.layers <= 100
    assert parsed.rope_theta == made.raw["rope_parameters"]["rope_theta"]

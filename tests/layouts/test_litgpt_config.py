"""model_config.yaml: what is written for a model, what cannot be, and that it is read back as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaconv.config import ModelConfig, parse_config
from llamaconv.errors import UnsupportedError
from llamaconv.layouts.description import Given, Native
from llamaconv.layouts.hugging_face import FAMILIES, expected_tensors
from llamaconv.layouts.litgpt import LAYOUT, LEGACY
from llamaconv.layouts.litgpt_config import fields_of, obstacles
from llamaconv.layouts.litgpt_described import described
from llamaconv.layouts.litgpt_yaml import fields_in, yaml_of
from llamaconv.layouts.rules import local_specs
from llamaconv.layouts.sliding_window import sliding_window
from llamaconv.tensors import TensorSpec
from tests.configs import config

PATH = Path("model_config.yaml")
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

WHOLE = b"""\
attention_logit_softcapping: null
attention_scores_scalar: null
attn_bias: false
bias: false
block_size: 256
final_logit_softcapping: null
first_k_dense_replace: null
gelu_approximate: none
head_size: 16
hf_config: {}
intermediate_size: 80
latent_attention: null
lm_head_bias: false
mlp_class_name: LLaMAMoE
moe_intermediate_size: null
n_embd: 48
n_expert: 5
n_expert_groups: null
n_expert_per_token: 2
n_head: 6
n_layer: 3
n_query_groups: 2
n_shared_expert: null
n_topk_groups: null
n_topk_scores_per_group: null
name: Mixtral-5x1B
norm_1: true
norm_2: true
norm_class_name: RMSNorm
norm_eps: 1.0e-05
norm_qk: false
norm_qk_type: default
norm_topk_prob: false
padded_vocab_size: 112
padding_multiple: 512
parallel_residual: false
post_attention_norm: false
post_mlp_norm: false
rope_adjustments:
  factor: 8.0
  high_freq_factor: 4.0
  low_freq_factor: 1.0
  original_max_seq_len: 8192
rope_base: 25000
rope_condense_ratio: 1
rope_indices: null
rope_interleave: false
rope_local_base_freq: null
rotary_percentage: 1.0
routed_scaling_factor: 1.0
scale_embeddings: false
shared_attention_norm: false
sliding_window_indices:
- 1
- 1
- 1
sliding_window_size: 24
vocab_size: 112
"""


def _stored(model: ModelConfig, dtype: torch.dtype) -> dict[str, TensorSpec]:
    shapes = expected_tensors(model) or {}
    return local_specs(LAYOUT.rules(model), {name: TensorSpec(name, shape, dtype) for name, shape in shapes.items()})


def test_all_fields_are_written_as_litgpt_writes_them() -> None:
    """Literally, for a model with nearly everything."""
    model = config(model_type="mixtral", num_local_experts=5, rope_scaling=LLAMA_3, sliding_window=24)
    assert LAYOUT.obstacles(model) == []
    assert yaml_of(fields_of(model, "Mixtral-5x1B")) == WHOLE


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {"bias": False, "attn_bias": False, "norm_qk": False, "mlp_class_name": "LLaMAMLP", "n_expert": 0}),
        ({"attention_bias": True, "mlp_bias": True}, {"bias": True, "attn_bias": False}),
        ({"rope_theta": 12345.5}, {"rope_base": 12345.5, "rope_adjustments": None}),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, {"rope_adjustments": {"factor": 2.5}}),
        ({"max_position_embeddings": ..., "rms_norm_eps": ...}, {"block_size": 2048, "norm_eps": 1e-6}),
        ({"tie_word_embeddings": True}, {"vocab_size": 112, "padded_vocab_size": 112}),
        ({"model_type": "mistral"}, {"sliding_window_size": 4096, "sliding_window_indices": [1, 1, 1]}),
        ({"model_type": "mistral", "sliding_window": None}, {"sliding_window_size": None}),
        ({"model_type": "qwen2", "attention_bias": True}, {"bias": False, "attn_bias": True, "norm_qk": False}),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
            {"sliding_window_size": 9, "sliding_window_indices": [0, 0, 1]},
        ),
        ({"model_type": "qwen3"}, {"bias": False, "attn_bias": False, "norm_qk": True}),
        ({"model_type": "mixtral"}, {"mlp_class_name": "LLaMAMoE", "n_expert": 8, "n_expert_per_token": 2}),
    ],
)
def test_facts_become_fields(changes: dict[str, Any], fields: dict[str, Any]) -> None:
    """Biases, norms, windows, rotary scaling and experts, with transformers' defaults where nothing is said."""
    model = config(**changes)
    assert obstacles(model) == []
    written = fields_of(model)
    assert {name: written[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("family", "name", "written"),
    [
        ("llama", "", "Llama"),
        ("llama", "Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("llama", "out", "out"),
        ("llama", "Mistral-Llama", "Llama-Mistral-Llama"),
        ("llama", "phi-4", "Llama-phi-4"),
        ("llama", "Qwen3-to-Llama", "Llama-Qwen3-to-Llama"),
        ("llama", "MyGemma", "Llama"),
        ("llama", "falcon", "Llama"),
        ("mistral", "out", "Mistral-out"),
        ("mistral", "Mathstral-7B-v0.1", "Mathstral-7B-v0.1"),
        ("mixtral", "8x7B", "8x7B"),
        ("qwen2", "out", "Qwen2.5-out"),
        ("qwen2", "QwQ-32B", "QwQ-32B"),
        ("qwen2", "qwen2.5-coder", "qwen2.5-coder"),
        ("qwen3", "Qwen2.5-7B", "Qwen3-Qwen2.5-7B"),
    ],
)
def test_names_lead_litgpt_to_the_right_family(family: str, name: str, written: str) -> None:
    """It chooses how to convert, and whether norms have an offset, by the name."""
    assert fields_of(config(model_type=family), name)["name"] == written


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"hidden_act": "gelu"}, ['the activation "gelu"; it computes with silu']),
        ({"hidden_act": "swish"}, []),
        (
            {"attention_bias": True},
            ["biases in the attention output but none in the MLP; it has both or neither"],
        ),
        ({"mlp_bias": True}, ["biases in the MLP but none in the attention output; it has both or neither"]),
        (
            {"model_type": "qwen3", "attention_bias": True},
            ["biases in the attention output but none in the MLP; it has both or neither"],
        ),
        (
            {"rope_theta": ..., "rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            ["a rotary base for each type of layer"],
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            ['rope scaling of type "yarn"; its own blends the frequencies the other way round'],
        ),
        (
            {"hidden_act": "relu", "rope_scaling": {"type": "dynamic", "factor": 4.0}},
            ['the activation "relu"; it computes with silu', 'rope scaling of type "dynamic"'],
        ),
        ({"rope_scaling": {"type": ["llama3"]}}, ['rope scaling of type ["llama3"]']),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, ['linear rope scaling in which factor is "2"']),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": True,
                    "low_freq_factor": 0,
                    "partial_rotary_factor": 0.5,
                }
            },
            [
                "llama3 rope scaling in which factor is true",
                "llama3 rope scaling in which low_freq_factor is 0",
                "llama3 rope scaling in which high_freq_factor is null",
                "llama3 rope scaling in which original_max_position_embeddings is null",
                "llama3 rope scaling in which partial_rotary_factor is 0.5",
            ],
        ),
    ],
)
def test_obstacles_are_facts_with_their_values(changes: dict[str, Any], facts: list[str]) -> None:
    """Both layouts of litgpt refuse for each of them, all at once."""
    model = config(**changes)
    assert LAYOUT.obstacles(model) == LEGACY.obstacles(model) == facts
    if facts:
        with pytest.raises(UnsupportedError) as caught:
            LAYOUT.rules(model)
        assert str(caught.value).splitlines()[1:] == facts


def _scalings() -> st.SearchStrategy[dict[str, Any] | None]:
    number = st.floats(0.125, 64)
    llama_3 = st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": number,
            "low_freq_factor": number,
            "high_freq_factor": number,
            "original_max_position_embeddings": st.integers(1, 10**6),
        }
    )
    linear = st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": st.floats(1.125, 64)})
    return st.none() | llama_3 | linear


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """config.json of any family without obstacles, every size its own."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    size, kv_heads = st.integers(1, 40), draw(st.integers(1, 4))
    raw = {
        "model_type": family,
        "hidden_size": draw(size),
        "intermediate_size": draw(size),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(size),
        "vocab_size": draw(st.sampled_from((1, 3, 70, 32000, 128256, 151936))),
        "max_position_embeddings": draw(st.integers(1, 10**7)),
        "rms_norm_eps": draw(st.floats(1e-12, 1e-2)),
        "rope_theta": draw(st.floats(1.5, 1e8) | st.integers(2, 10**8)),
        "rope_scaling": draw(_scalings()),
        "tie_word_embeddings": draw(st.booleans()),
        "torch_dtype": draw(st.sampled_from(("bfloat16", "float16", "float32", "float64"))),
    }
    window = draw(st.none() | st.integers(1, 100))
    match family:
        case "llama":
            raw |= dict.fromkeys(("attention_bias", "mlp_bias"), draw(st.booleans()))
        case "mistral":
            raw |= {"sliding_window": window}
        case "mixtral":
            experts = draw(st.integers(1, 5))
            each = draw(st.integers(1, experts))
            raw |= {"sliding_window": window, "num_local_experts": experts, "num_experts_per_tok": each}
        case _:
            first = draw(st.integers(0, 5))
            raw |= {"sliding_window": window, "use_sliding_window": window is not None, "max_window_layers": first}
    return raw


@settings(max_examples=150)
@given(models(), st.text())
def test_what_is_written_is_read_back(raw: dict[str, Any], name: str) -> None:
    """For every family, whatever it is called: the same model, all but the tie, which the tensors tell."""
    model = parse_config(json.dumps(raw).encode())
    assert obstacles(model) == []
    fields = fields_of(model, name)
    assert fields_in(yaml_of(fields), PATH) == fields
    assert model.dtype is not None
    native = Native(PATH, fields, _stored(model, model.dtype), given=Given(tied=model.tied))
    back = described(native)
    again = parse_config(json.dumps(back.raw).encode())
    unlike = {"raw": {}, "source": b"", "architectures": ()}
    assert replace(again, **unlike) == replace(model, **unlike)
    assert sliding_window(again) == sliding_window(model)
    assert [note.partition(" and ")[0] for note in back.notes] == ["the tokens of begin"]
    assert fields_of(again, name) == fields

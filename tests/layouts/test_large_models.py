"""Models of real sizes, without their data: shapes alone, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch

from llamaconv.config import ModelConfig
from llamaconv.errors import UnsupportedError
from llamaconv.layouts import lit_llama, litgpt, meta_llama
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.layouts.known import HUGGING_FACE
from llamaconv.layouts.rules import Layout, local_specs
from llamaconv.layouts.view import View
from llamaconv.tensors import TensorSpec
from tests.configs import config
from tests.layouts.in_memory import InMemory


def released(**keys: Any) -> ModelConfig:
    """A config with what these releases have in common."""
    return config(head_dim=128, num_key_value_heads=8, tie_word_embeddings=False, **keys)


LLAMA_2_70B = released(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, vocab_size=32000,
    max_position_embeddings=4096, rope_theta=10000.0,
)  # fmt: skip
LLAMA_3_1_405B = released(
    hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128, vocab_size=128256,
    max_position_embeddings=131072, rope_theta=500000.0,
    rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)  # fmt: skip
QWEN3_32B = released(
    model_type="qwen3", hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64,
    vocab_size=151936, max_position_embeddings=40960, rope_theta=1000000.0, rms_norm_eps=1e-6,
)  # fmt: skip
MIXTRAL_8X22B = released(
    model_type="mixtral", hidden_size=6144, intermediate_size=16384, num_hidden_layers=56, num_attention_heads=48,
    vocab_size=32000, max_position_embeddings=65536, rope_theta=1000000.0, num_local_experts=8, num_experts_per_tok=2,
)  # fmt: skip

MODELS = {
    "Llama-2-70B": (LLAMA_2_70B, 68_976_648_192),
    "Llama-3.1-405B": (LLAMA_3_1_405B, 405_853_388_800),
    "Qwen3-32B": (QWEN3_32B, 32_762_123_264),
    "Mixtral-8x22B": (MIXTRAL_8X22B, 140_620_634_112),
}
"""With the numbers of parameters that their releases tell."""

FOR_ALL = {"hf": HUGGING_FACE, "litgpt": litgpt.LAYOUT, "litgpt-legacy": litgpt.LEGACY}
FOR_LLAMAS = FOR_ALL | {
    "meta": meta_llama.LAYOUT,
    "meta-8-rows": meta_llama.layout(8, "rows"),
    "meta-8-columns": meta_llama.layout(8, "columns"),
}


def layouts_for(name: str) -> Mapping[str, Layout]:
    return FOR_LLAMAS if name.startswith("Llama") else FOR_ALL


CASES = [(name, layout) for name in MODELS for layout in layouts_for(name)]


def hub_specs(model: ModelConfig) -> dict[str, TensorSpec]:
    shapes = expected_tensors(model)
    assert shapes is not None
    return {name: TensorSpec(name, shape, torch.bfloat16) for name, shape in shapes.items()}


def stored(model: ModelConfig, layout: Layout) -> dict[str, TensorSpec]:
    return local_specs(layout.rules(model), hub_specs(model))


def elements(specs: Mapping[str, TensorSpec]) -> int:
    return sum(spec.numel for spec in specs.values())


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_numbers_of_elements_add_up(name: str, layout: str) -> None:
    """The release's number of parameters, and the norms once more for each rank after the first."""
    model, parameters = MODELS[name]
    again = FOR_LLAMAS[layout].ranks - 1
    norms = model.hidden_size * (2 * model.layers + 1)
    assert elements(hub_specs(model)) == parameters
    assert elements(stored(model, FOR_LLAMAS[layout])) == parameters + again * norms


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_the_way_back_gives_every_tensor_its_shape(name: str, layout: str) -> None:
    """What a layout stores, seen through its rules the other way round, is the hub's."""
    model, _ = MODELS[name]
    rules = FOR_LLAMAS[layout].rules(model)
    metas = {
        spec.name: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
        for spec in stored(model, FOR_LLAMAS[layout]).values()
    }
    assert View(InMemory(metas), [rule.inverse() for rule in rules]).specs == hub_specs(model)


SHAPES: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {
    ("Llama-2-70B", "litgpt"): {"transformer.h.79.attn.qkv.weight": (10240, 8192), "lm_head.weight": (32000, 8192)},
    ("Llama-2-70B", "litgpt-legacy"): {"transformer.h.79.attn.attn.weight": (10240, 8192)},
    ("Llama-2-70B", "meta"): {"layers.79.attention.wk.weight": (1024, 8192)},
    ("Llama-2-70B", "meta-8-columns"): {
        "07/tok_embeddings.weight": (32000, 1024),
        "07/layers.79.attention.wq.weight": (1024, 8192),
        "07/layers.79.attention.wk.weight": (128, 8192),
        "07/layers.79.attention.wo.weight": (8192, 1024),
        "07/layers.79.feed_forward.w1.weight": (3584, 8192),
        "07/layers.79.feed_forward.w2.weight": (8192, 3584),
        "07/output.weight": (4000, 8192),
    },
    ("Llama-3.1-405B", "litgpt"): {"transformer.h.125.attn.qkv.weight": (18432, 16384)},
    ("Llama-3.1-405B", "meta"): {"layers.125.feed_forward.w2.weight": (16384, 53248)},
    ("Llama-3.1-405B", "meta-8-rows"): {
        "07/tok_embeddings.weight": (16032, 16384),
        "07/layers.125.attention.wv.weight": (128, 16384),
        "07/layers.125.attention.wo.weight": (16384, 2048),
        "07/layers.125.feed_forward.w3.weight": (6656, 16384),
        "07/layers.125.ffn_norm.weight": (16384,),
        "07/norm.weight": (16384,),
    },
    ("Qwen3-32B", "hf"): {"model.layers.63.self_attn.o_proj.weight": (5120, 8192)},
    ("Qwen3-32B", "litgpt"): {
        "transformer.h.63.attn.qkv.weight": (10240, 5120),
        "transformer.h.63.attn.proj.weight": (5120, 8192),
        "transformer.h.63.attn.norm_k.weight": (128,),
        "transformer.wte.weight": (151936, 5120),
    },
    ("Mixtral-8x22B", "litgpt"): {
        "transformer.h.55.attn.qkv.weight": (8192, 6144),
        "transformer.h.55.mlp.gate.weight": (8, 6144),
        "transformer.h.55.mlp.experts.7.fc_2.weight": (16384, 6144),
        "transformer.h.55.mlp.experts.7.proj.weight": (6144, 16384),
    },
    ("Mixtral-8x22B", "litgpt-legacy"): {"transformer.h.55.attn.attn.weight": (8192, 6144)},
}


@pytest.mark.parametrize(("name", "layout"), SHAPES)
def test_tensors_have_the_shapes_of_the_tools_own_files(name: str, layout: str) -> None:
    """Those of the last layer, expert and rank, where a wrong count would show."""
    specs = stored(MODELS[name][0], FOR_LLAMAS[layout])
    shapes = SHAPES[name, layout]
    assert {tensor: specs[tensor].shape for tensor in shapes} == shapes


EXPERTS = [f"experts.{expert}.{part}" for expert, part in product(range(8), ("w1", "w2", "w3"))]
NOT_FOR_LIT_LLAMA = {
    "Llama-2-70B": [
        "8 key-value heads for 64 heads (grouped-query attention)",
        "an MLP of 28672; it computes 22016",
    ],
    "Llama-3.1-405B": [
        "8 key-value heads for 128 heads (grouped-query attention)",
        "an MLP of 53248; it computes 43776",
        "a rotary base of 500000; it computes with 10000",
        "rope scaling of type llama3",
    ],
    "Qwen3-32B": [
        "head_dim 128 is not the hidden size over the 64 heads",
        "8 key-value heads for 64 heads (grouped-query attention)",
        "an MLP of 25600; it computes 13824",
        "a rotary base of 1e+06; it computes with 10000",
        *(
            f"it has no place for model.layers.{layer}.self_attn.{norm}.weight"
            for layer, norm in product(range(64), ("q_norm", "k_norm"))
        ),
    ],
    "Mixtral-8x22B": [
        "a mixture of 8 experts",
        "8 key-value heads for 48 heads (grouped-query attention)",
        "a rotary base of 1e+06; it computes with 10000",
        *(
            f"it has no place for model.layers.{layer}.block_sparse_moe.{module}.weight"
            for layer, module in product(range(56), ["gate", *EXPERTS])
        ),
    ],
}


@pytest.mark.parametrize("name", MODELS)
def test_lit_llama_holds_none_of_them(name: str) -> None:
    """Each fact that stands in the way is named, each tensor that has no place."""
    with pytest.raises(UnsupportedError) as caught:
        lit_llama.LAYOUT.rules(MODELS[name][0])
    assert str(caught.value).splitlines() == [
        "The layout lit-llama cannot hold this model:",
        *NOT_FOR_LIT_LLAMA[name],
    ]


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("Qwen3-32B", "head_dim 128 is not the hidden size over the 64 heads"),
        ("Mixtral-8x22B", "a mixture of 8 experts"),
    ],
)
def test_meta_holds_llamas_alone(name: str, fact: str) -> None:
    """The first fact says why, before the tensors that have no place."""
    with pytest.raises(UnsupportedError) as caught:
        meta_llama.layout(8).rules(MODELS[name][0])
    assert str(caught.value).splitlines()[:2] == ["The layout meta cannot hold this model:", fact]
